"""CASA makes the images; pyuvdata made the data from the formula of the visibility."""

import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from nightbeam.casa.tables import open_table
from nightbeam.core.errors import NightbeamError, RejectedError, ToolError
from nightbeam.imaging import ImageOptions, find_sources, image_ms, judge_image, measure_sources
from nightbeam.sky import OVRO_DSA110, beam_attenuation, meridian_icrs, separation

pytestmark = pytest.mark.system

_analytic = runpy.run_path(str(Path(__file__).resolve().parents[1] / "analytic_ms.py"))
START_JD, CADENCE_S = _analytic["START_JD"], _analytic["CADENCE_S"]
DEC_APPARENT = np.radians(54.57)
INTEGRATIONS = 24
OPTIONS = ImageOptions(imsize=720, cell_arcsec=5.5, niter=600)


def pointing(jd):
    ra, dec = meridian_icrs(jd, DEC_APPARENT, OVRO_DSA110)
    return float(ra), float(dec)


def attenuation(jd, ra, dec, freqs_hz):
    angle = np.radians(separation(*pointing(jd), ra, dec))
    return beam_attenuation(angle, freqs_hz, model="dsacalib", diameter_m=4.65)


@pytest.fixture(scope="module")
def sky():
    """A source of 1 Jy at the centre and one of 2 Jy half a degree to the north-east."""
    ra, dec = pointing(START_JD + 0.5 * (INTEGRATIONS - 1) * CADENCE_S / 86400)
    north = dec + 0.36
    return [(ra, dec, 1.0), (ra + 0.36 / np.cos(np.radians(north)), north, 2.0)]


@pytest.fixture(scope="module")
def ms(tmp_path_factory, sky):
    return _analytic["write_analytic_ms"](
        tmp_path_factory.mktemp("ms") / "2025-10-03T11:48:57.ms",
        centre=sky[0][:2], sources=sky, antennas=16, channels=16, integrations=INTEGRATIONS, noise=0.05,
        longest_m=800.0, attenuation=attenuation,
    )  # fmt: skip


@pytest.fixture(scope="module")
def product(tmp_path_factory, ms):
    out = tmp_path_factory.mktemp("images")
    return image_ms(ms, out / "2025-10-03T11:48:57.img", options=OPTIONS, work_dir=out / "scratch")


def test_a_source_half_a_degree_off_is_at_its_place_with_its_flux(product, sky):
    places = [source[:2] for source in sky]
    centre, far = measure_sources(product.fits["image"], places, pb=product.fits["pb"])
    assert float(separation(*places[0], *places[1])) == pytest.approx(0.51, abs=0.01)
    assert far.offset_beams < 0.05
    assert far.peak_jy == pytest.approx(2.0, rel=0.02)
    assert far.integrated_jy == pytest.approx(2.0, rel=0.03)  # the dirty beam is no Gaussian
    assert centre.integrated_jy == pytest.approx(1.0, rel=0.02)
    assert far.pb < 0.85  # the beam was really at work


def test_the_corrected_image_shows_the_same_flux(product, sky):
    _, far = measure_sources(product.fits["pbcor"], [source[:2] for source in sky])
    assert far.peak_jy == pytest.approx(2.0, rel=0.02)


def test_the_sky_is_not_mirrored(product, sky):
    (ra, dec, _), (far_ra, far_dec, _) = sky
    (ghost,) = measure_sources(product.fits["image"], [(2 * ra - far_ra, 2 * dec - far_dec)])
    assert not ghost.found or ghost.peak_jy < 0.02


def test_the_two_sources_are_found_blind(product):
    bright = [fit for fit in find_sources(product.fits["image"], pb=product.fits["pb"]) if fit.peak_jy > 0.5]
    assert sorted(round(fit.peak_jy) for fit in bright) == [1, 2]


def test_the_metrics_are_those_of_the_data(product):
    assert judge_image(product).good
    assert 20 < product.beam_minor_arcsec < product.beam_major_arcsec < 90
    # 0.05 Jy a part over 120 baselines, 24 times, 16 channels, 2 products: 0.16 mJy of thermal noise; and a source of
    # 2 Jy that drifts through the beam is not constant, which leaves about a thousandth of it as sidelobes
    assert 0.16e-3 < product.noise_jy < 5e-3
    assert product.dynamic_range == pytest.approx(product.peak_jy / product.noise_jy)
    assert product.integration_s == pytest.approx(309.24, abs=0.1)
    assert product.bandwidth_hz == pytest.approx(187.5e6)
    assert (product.datacolumn, product.beam_model, product.flagged_fraction) == ("data", "dsacalib", 0.0)
    assert product.versions["casatasks"].startswith("6.")


def test_four_axes_in_the_order_that_wsclean_writes_too(product):
    card = fits.getheader(product.fits["image"])
    assert [card[f"CTYPE{k}"][:4] for k in (1, 2, 3, 4)] == ["RA--", "DEC-", "FREQ", "STOK"]
    assert (card["BUNIT"], card["RADESYS"], card["OBJECT"]) == ("Jy/beam", "ICRS", "tile")


def test_the_same_data_give_the_same_pixels(tmp_path, ms, product):
    again = image_ms(ms, tmp_path / "again.img", options=OPTIONS, work_dir=tmp_path / "scratch")
    for kind in product.fits:
        one, other = fits.getdata(product.fits[kind]), fits.getdata(again.fits[kind])
        assert np.array_equal(one, other, equal_nan=True), kind


def test_imaging_leaves_the_data_as_they_were(ms, product):
    found = image_ms(ms, product.stem, options=OPTIONS, work_dir=product.stem.parent / "scratch")
    assert found == product
    with open_table(ms) as table:
        assert "MODEL_DATA" not in table.colnames()


def test_averaged_channels_show_the_same_sources(tmp_path, ms, sky):
    options = ImageOptions(imsize=720, cell_arcsec=5.5, niter=600, chanbin=2, max_smearing=0.9)
    product = image_ms(ms, tmp_path / "averaged.img", options=options, work_dir=tmp_path / "scratch")
    assert product.channels_averaged == 2
    centre, _ = measure_sources(product.fits["image"], [s[:2] for s in sky], pb=product.fits["pb"])
    assert centre.integrated_jy == pytest.approx(1.0, rel=0.03)


def test_corrected_data_are_what_is_imaged_and_casa_images_can_be_kept(tmp_path, ms):
    own = shutil.copytree(ms, tmp_path / "own.ms")
    with open_table(own, write=True) as table:
        table.addcols({"CORRECTED_DATA": table.getcoldesc("DATA")})
        table.putcol("CORRECTED_DATA", 3.0 * table.getcol("DATA"))
    options = ImageOptions(imsize=256, cell_arcsec=8.0, niter=50, keep_casa_images=True)
    product = image_ms(own, tmp_path / "x.img", options=options, work_dir=tmp_path / "scratch")
    assert product.datacolumn == "corrected"
    assert product.peak_jy > 2.5
    assert (tmp_path / "x.img.image.pbcor" / "table.dat").is_file()
    assert (tmp_path / "x.img.psf" / "table.dat").is_file()


def test_noise_alone_is_not_a_good_image(tmp_path, ms):
    own = shutil.copytree(ms, tmp_path / "noise.ms")
    with open_table(own, write=True) as table:
        data = table.getcol("DATA")
        rng = np.random.default_rng(2)
        table.putcol("DATA", (rng.normal(size=data.shape) + 1j * rng.normal(size=data.shape)).astype(np.complex64))
    options = ImageOptions(imsize=128, cell_arcsec=10.0, niter=0)
    product = image_ms(own, tmp_path / "x.img", options=options, work_dir=tmp_path / "scratch")
    verdict = judge_image(product)
    assert not verdict.good
    assert "times the noise" in verdict.reasons[0]


def test_weights_of_zero_are_refused_not_imaged(tmp_path, ms):
    own = shutil.copytree(ms, tmp_path / "weightless.ms")
    with open_table(own, write=True) as table:
        for name in ("WEIGHT", "WEIGHT_SPECTRUM"):
            if name in table.colnames():
                table.putcol(name, 0 * table.getcol(name))
    with pytest.raises((RejectedError, ToolError)):
        image_ms(own, tmp_path / "x.img", options=OPTIONS.quick(), work_dir=tmp_path / "scratch")
    assert not (tmp_path / "x.img.json").exists()


def test_an_imager_out_of_time_is_stopped_and_quoted(tmp_path, ms):
    with pytest.raises(ToolError, match="ran longer than 1 s"):
        image_ms(ms, tmp_path / "x.img", options=OPTIONS, work_dir=tmp_path / "scratch", timeout_s=0.6)
    assert list((tmp_path / "scratch").iterdir()) == []


def test_what_casa_does_not_understand_comes_back_in_its_own_words(tmp_path, ms):
    options = ImageOptions(imsize=128, cell_arcsec=10.0, deconvolver="magic")
    with pytest.raises(NightbeamError, match="magic"):
        image_ms(ms, tmp_path / "x.img", options=options, work_dir=tmp_path / "scratch")


def nightbeam(*arguments, cwd):
    env = {name: value for name, value in os.environ.items() if not name.startswith(("NIGHTBEAM_", "IMG_"))}
    return subprocess.run(
        [sys.executable, "-m", "nightbeam", *map(str, arguments)], cwd=cwd, env=env, capture_output=True, text=True
    )


def test_the_command_makes_measures_and_judges(tmp_path, ms):
    arguments = (
        "image",
        ms,
        "--imagename",
        tmp_path / "x.img",
        "--imsize",
        256,
        "--cell-arcsec",
        8,
        "--weight",
        "briggs",
    )
    plan = json.loads(nightbeam(*arguments, "--dry-run", "--json", cwd=tmp_path).stdout)
    assert (plan["imsize"], plan["datacolumn"]) == (256, "data")
    assert not (tmp_path / "x.img.json").exists()
    done = nightbeam(*arguments, "--quick", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout)
    assert row["good"] is True
    assert Path(row["image"]).name == "x.img.image.pbcor.fits"
    assert "wrote" in done.stderr


def test_the_command_names_what_is_missing(tmp_path):
    done = nightbeam("image", tmp_path / "none.ms", cwd=tmp_path)
    assert done.returncode == 66
    assert "no Measurement Set" in done.stderr
    assert nightbeam("image", tmp_path, "--threshold", "5sigma", cwd=tmp_path).returncode == 64


def test_real_data_without_a_fringe_are_never_a_good_image(tmp_path, shared_data):
    """The ATA pair: negative weights, absurd amplitudes, no coherent fringe (its README)."""
    import warnings

    from astropy.utils import iers
    from pyuvdata import UVData

    files = sorted(map(str, (shared_data / "radio").glob("ata*.uvh5")))
    unchecked = {"run_check": False, "check_extra": False, "run_check_acceptability": False}
    with warnings.catch_warnings(), iers.conf.set_temp("auto_download", False):
        warnings.simplefilter("ignore")
        data = UVData()
        data.read(files, axis="freq", file_type="uvh5", strict_uvw_antpos_check=False, **unchecked)
        written = {"strict_uvw_antpos_check": False, "force_phase": True, **unchecked}
        data.write_ms(str(tmp_path / "negative.ms"), **written)
        data.nsample_array[:] = 1
        data.write_ms(str(tmp_path / "ata.ms"), **written)
    options = ImageOptions(imsize=256, niter=50)
    with pytest.raises((RejectedError, ToolError), match=r"zero everywhere|no unflagged"):
        image_ms(tmp_path / "negative.ms", tmp_path / "negative.img", options=options, work_dir=tmp_path / "scratch")
    verdict = judge_image(
        image_ms(tmp_path / "ata.ms", tmp_path / "x.img", options=options, work_dir=tmp_path / "scratch")
    )
    assert not verdict.good
    assert "times the noise" in verdict.reasons[0]
