import base64
import io
import json
import math
import runpy
from dataclasses import fields, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from PIL import Image

from nightbeam.core.errors import InputError, MissingError
from nightbeam.gains.model import CalTable, TableKind
from nightbeam.imaging.model import ImageOptions, ImageProduct, SourceFit, Verdict
from nightbeam.qa import read_metrics, sample_visibilities, write_qa
from nightbeam.qa.figures import draw_amplitudes, draw_flags, draw_gains, draw_uv, draw_waterfall

GROUP = "2025-10-03T11:48:57"
_unit = Path(__file__).resolve().parent
write_analytic_ms = runpy.run_path(str(_unit.parents[1] / "analytic_ms.py"))["write_analytic_ms"]
solutions = runpy.run_path(str(_unit / "test_compute.py"))["solutions"]


@pytest.fixture(scope="module")
def ms(tmp_path_factory):
    path = tmp_path_factory.mktemp("ms") / "tile.ms"
    centre = (70.9, 54.52)
    return write_analytic_ms(path, centre=centre, sources=[(*centre, 2.0)], antennas=6, channels=4, integrations=3)


@pytest.fixture
def product(tmp_path):
    """A megapixel of noise, the worst there is for PNG."""
    card = fits.Header()
    for axis, (kind, value, step) in enumerate((("RA---SIN", 70.9, -1e-3), ("DEC--SIN", 54.5, 1e-3)), start=1):
        card[f"CTYPE{axis}"], card[f"CRVAL{axis}"], card[f"CDELT{axis}"], card[f"CRPIX{axis}"] = (
            kind,
            value,
            step,
            512.0,
        )
        card[f"CUNIT{axis}"] = "deg"
    card["BMAJ"], card["BMIN"], card["BPA"], card["RADESYS"] = 0.005, 0.004, 30.0, "ICRS"
    path = tmp_path / "x.img.image.fits"
    fits.writeto(path, np.random.default_rng(1).normal(0, 1e-3, (1024, 1024)).astype(np.float32), card)
    measured = {f.name for f in fields(ImageProduct) if f.type == "float"} - {"peak_pbcor_jy"}
    numbers = dict.fromkeys(measured, 1.0)
    return ImageProduct(
        stem=tmp_path / "x.img", ms=tmp_path / "x.ms", engine="tclean", fits={"image": path}, native={},
        png=tmp_path / "x.img.png", object_name="x", telescope="OVRO_MMA", peak_pbcor_jy=math.nan, imsize=1024,
        datacolumn="data", channels_averaged=1, beam_model="dsacalib", pbcor=False, made_at=datetime.now(UTC),
        version="0", versions={}, parameters={}, provenance={}, options=ImageOptions(), input_fingerprint="", **numbers,
    )  # fmt: skip


def is_png(path):
    with Image.open(path) as image:
        image.verify()
    return path.stat().st_size < 100_000


@pytest.mark.slow
def test_data_and_image_are_shown_in_small_files(tmp_path, ms, product):
    found = SourceFit(name="3C48", ra_deg=70.9, dec_deg=54.5, found=True, peak_jy=16.0)
    lost = SourceFit(name="other", ra_deg=70.8, dec_deg=54.4, found=False, reason="no peak")
    artifacts = write_qa(GROUP, tmp_path / "qa", ms=ms, product=product, sources=[found, lost], verdict=Verdict(True))
    assert [a.name for a in artifacts] == ["flags.png", "uv.png", "amplitudes.png", "image.png", "metrics.json"]
    assert all(a.path == tmp_path / "qa" / GROUP / a.name and a.group_id == GROUP for a in artifacts)
    assert all(is_png(a.path) for a in artifacts[:-1])
    report = json.loads(artifacts[-1].path.read_text())
    assert report["flags"]["by_antenna"] == dict.fromkeys("123456", 0.0)
    assert report["visibilities"]["median_amplitude"] == pytest.approx(2.0, rel=1e-3)
    assert report["verdict"] == {"good": True, "reasons": []}
    assert report["sources"][1]["peak_jy"] is None
    assert report["image"]["noise_jy"] == 1.0


@pytest.mark.slow
def test_a_later_call_adds_to_the_report(tmp_path, product):
    write_qa(GROUP, tmp_path, extra={"conversion": {"rows": 5}})
    write_qa(GROUP, tmp_path, product=product)
    report = read_metrics(tmp_path / GROUP)
    assert report["conversion"] == {"rows": 5}
    assert report["image"]["telescope"] == "OVRO_MMA"


def test_an_image_kept_only_in_casas_form_still_has_its_numbers(tmp_path, product):
    artifacts = write_qa(GROUP, tmp_path, product=replace(product, fits={}))
    assert [a.name for a in artifacts] == ["metrics.json"]


def test_the_sample_is_the_unflagged_cross_correlations(ms):
    sample = sample_visibilities(ms)
    assert sample.column == "DATA"
    assert len(sample.amplitude) == 15 * 3
    assert sample.amplitude == pytest.approx(2.0, rel=1e-3)
    assert np.hypot(sample.u_klambda, sample.v_klambda).max() < 1.1 / 0.2134


def test_what_cannot_be_read_is_an_error(tmp_path):
    with pytest.raises(MissingError):
        write_qa(GROUP, tmp_path, ms=tmp_path / "none.ms")
    with pytest.raises(MissingError):
        write_qa(GROUP, tmp_path, tables=[CalTable(tmp_path / "x_bpcal", TableKind.BANDPASS, 30, "0", "103")])
    (tmp_path / GROUP).mkdir(exist_ok=True)
    (tmp_path / GROUP / "metrics.json").write_text("[1]")
    with pytest.raises(InputError, match="report"):
        write_qa(GROUP, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [TableKind.BANDPASS, TableKind.GAIN, TableKind.DELAY])
def test_every_kind_of_table_has_its_figure(tmp_path, monkeypatch, kind):
    rng = np.random.default_rng(0)
    values = rng.normal(1, 0.1, (234, 48, 2)) * (1.0 if kind is TableKind.DELAY else np.exp(0.1j))
    table = solutions(
        values if kind is TableKind.BANDPASS else values[:, :1],
        antenna=np.tile(np.arange(117), 2), spw=np.repeat([0, 1], 117),
        freqs=[np.linspace(1.30e9, 1.31e9, 48), np.linspace(1.31e9, 1.32e9, 48)],
        names=tuple(str(k + 1) for k in range(117)),
    )  # fmt: skip
    monkeypatch.setattr("nightbeam.gains.files.read_caltable", lambda path: table)
    monkeypatch.setattr("nightbeam.gains.read_caltable", lambda path: table, raising=False)
    caltable = CalTable(tmp_path / f"x{kind.suffix}", kind, kind.order_index, "0", "103")
    figure, report = write_qa(GROUP, tmp_path, tables=[caltable])
    assert figure.name == f"{kind.suffix[1:]}.png"
    assert is_png(figure.path)
    assert json.loads(report.path.read_text())["tables"][kind.suffix[1:]]["path"].endswith(kind.suffix)


def test_figures_of_nothing_can_be_drawn():
    from nightbeam.qa.compute import GainPoints
    from nightbeam.qa.model import VisibilitySample

    nothing = np.zeros(0)
    sample = VisibilitySample("DATA", nothing, nothing, nothing)
    gains = GainPoints((), nothing.astype(int), nothing.astype(int), nothing, nothing, nothing)
    for figure in (draw_flags({}, {}), draw_uv(sample), draw_amplitudes(sample), draw_gains(gains)):
        out = io.BytesIO()
        figure.savefig(out)
        assert base64.b64encode(out.getvalue()).startswith(b"iVBOR")


def test_a_dead_bandpass_can_be_drawn():
    from nightbeam.qa.compute import Waterfall

    dead = np.full((2, 3, 4), np.nan)
    draw_waterfall(Waterfall(("1", "2", "3"), np.arange(4.0), dead, dead)).savefig(io.BytesIO())
