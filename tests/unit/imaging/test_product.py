import json
import shutil

import numpy as np
import pytest
from astropy.io import fits

from nightbeam.core.errors import BusyError, MissingError, RejectedError, StorageError, ToolError, UsageError
from nightbeam.core.locks import sole_owner
from nightbeam.imaging import ImageOptions, image_ms, measure_sources, plan_image, product_path, read_product
from nightbeam.imaging.model import EngineImages

pytestmark = pytest.mark.slow

STEM = "2025-10-03T11:48:57.img"
SMALL = ImageOptions(imsize=100, cell_arcsec=3.0)


class PaintedImager:
    """Paints one source of 1 Jy on noise of 10 mJy, and does what is asked of it wrong."""

    name = "painted"

    def __init__(self, header, gaussian, fault=""):
        self.header, self.gaussian, self.fault, self.requests = header, gaussian, fault, []

    def make(self, request):
        self.requests.append(request)
        n = request.options.imsize
        if self.fault == "dies":
            raise ToolError("CASA tclean was killed by signal 9")
        noise = np.random.default_rng(5).normal(0, 0.01, (n, n))
        source = self.gaussian(n, n / 2, n / 2, 6.0, 4.0, 30.0)
        made = {"image": noise + source, "residual": noise, "model": source / 27, "pb": np.full((n, n), 0.9)}
        if self.fault == "blank":
            made["image"] = made["residual"] = np.zeros((n, n))
        paths = {}
        for kind, data in made.items():
            paths[kind] = product_path(request.directory / "tile", kind)
            if kind != self.fault:
                fits.writeto(paths[kind], data.astype(np.float32)[None, None], self.header(n))
        native = request.directory / "tile.image"
        native.mkdir()
        (native / "table.dat").write_text("x")
        return EngineImages(fits=paths, native={".image": native}, parameters={"gain": 0.1}, versions={"painter": "1"})

    def adopt(self, fits, native, *, log, timeout_s):
        native.mkdir(exist_ok=True)
        shutil.copy(fits, native / "table.dat")


@pytest.fixture
def painter(header, gaussian):
    return lambda fault="": PaintedImager(header, gaussian, fault)


@pytest.fixture(autouse=True)
def _coarse_pictures(request, monkeypatch):
    """Drawing takes half of the time of these tests; one of them looks at the picture."""
    if "complete" not in request.node.name:
        monkeypatch.setattr("nightbeam.imaging.product.save_png", lambda figure, path: path.write_bytes(b"picture"))


@pytest.fixture
def run(tiny_ms, tmp_path, painter):
    def image(options=SMALL, engine=None, **more):
        engine = engine or painter()
        more.setdefault("provenance", {"calibration_set": "calset_x", "calibration_date": "2025-10-03"})
        stem, work = tmp_path / "images" / STEM, tmp_path / "scratch"
        return image_ms(tiny_ms, stem, options=options, engine=engine, work_dir=work, **more), engine

    return image


def names(directory):
    return sorted(p.name for p in directory.iterdir() if not p.name.startswith("."))


def test_a_product_is_complete_measured_and_leaves_nothing_in_scratch(run, tmp_path):
    product, _ = run()
    suffixes = [".image.fits", ".image.pbcor.fits", ".json", ".model.fits", ".pb.fits", ".png", ".residual.fits"]
    assert names(tmp_path / "images") == [STEM + suffix for suffix in suffixes]
    assert names(tmp_path / "scratch") == []
    assert product.path.name == f"{STEM}.image.pbcor.fits"
    assert (product.beam_major_arcsec, product.beam_minor_arcsec, product.beam_pa_deg) == pytest.approx((18, 12, 30))
    assert product.noise_jy == pytest.approx(0.01, rel=0.05)
    assert product.noise_centre_jy == pytest.approx(0.01, rel=0.05)
    assert product.peak_jy == pytest.approx(1.0, abs=0.04)
    assert product.dynamic_range == pytest.approx(100, rel=0.06)
    assert product.integration_s == pytest.approx(2 * 12.8849, rel=1e-3)
    assert (product.freq_hz, product.bandwidth_hz) == pytest.approx((1.405e9, 187.5e6))
    assert (product.datacolumn, product.telescope, product.pbcor) == ("data", "OVRO_MMA", True)


def test_the_description_brings_the_same_product_back(run, tmp_path):
    product, _ = run()
    assert read_product(tmp_path / "images" / STEM) == product
    moved = shutil.copytree(tmp_path / "images", tmp_path / "elsewhere")
    assert read_product(moved / STEM).path == moved / f"{STEM}.image.pbcor.fits"


def test_headers_tell_the_whole_story(run):
    product, _ = run()
    card = fits.getheader(product.fits["pbcor"])
    assert (card["OBJECT"], card["TELESCOP"], card["TIMESYS"], card["BUNIT"]) == ("tile", "OVRO_MMA", "UTC", "Jy/beam")
    # the first sample's middle is 11:48:57.441; its beginning half an integration before
    assert card["DATE-OBS"][:21] == "2025-10-03T11:48:50.9"
    assert card["MJD-OBS"] < card["MJD-AVG"]
    assert (card["CALSET"], card["CALDATE"], card["DATACOL"]) == ("calset_x", "2025-10-03", "DATA")
    assert card["BMAJ"] * 3600 == pytest.approx(18)
    assert card["RESTFRQ"] == 1.405e9
    assert card["PBMODEL"] == "dsacalib"
    history = "".join(str(line) for line in card["HISTORY"])
    for word in ("painter 1", "calibration_set = calset_x", "tiny.ms", "niter = 1000", "gain = 0.1"):
        assert word in history
    assert "BMAJ" not in fits.getheader(product.fits["pb"])
    assert fits.getheader(product.fits["model"])["BUNIT"] == "Jy/pixel"


def test_a_quick_image_says_so_in_its_header(run):
    product, _ = run(provenance={"imaging": "quick"})
    card = fits.getheader(product.fits["pbcor"])
    assert card["IMAGING"] == "quick"
    assert "imaging = quick" in "".join(str(line) for line in card["HISTORY"])


def test_a_transit_telescope_gets_the_beam_averaged_over_its_drift(run):
    pb = fits.getdata(run()[0].fits["pb"])[0, 0]
    assert pb[50, 50] == pytest.approx(1.0, abs=0.05)
    assert not np.allclose(pb, 0.9)
    assert fits.getdata(run(ImageOptions(imsize=100, cell_arcsec=3.0, beam_model="engine"))[0].fits["pb"])[
        0, 0, 50, 50
    ] == pytest.approx(0.9)


def test_the_corrected_image_is_the_image_over_the_beam(run):
    fits_of = run()[0].fits
    image, pb, pbcor = (fits.getdata(fits_of[kind]) for kind in ("image", "pb", "pbcor"))
    assert pbcor == pytest.approx(image / pb, rel=1e-5)


def test_what_is_finished_is_not_made_again(run):
    first, _ = run()
    second, engine = run()
    assert second == first
    assert engine.requests == []
    assert run(force=True)[1].requests


@pytest.mark.parametrize("spoil", ["option", "file gone", "file changed", "description"])
def test_it_is_made_again_when_anything_is_different(run, spoil):
    product, _ = run()
    options = SMALL
    if spoil == "option":
        options = ImageOptions(imsize=100, cell_arcsec=3.0, niter=7)
    elif spoil == "file gone":
        product.fits["residual"].unlink()
    elif spoil == "file changed":
        product.fits["image"].write_bytes(product.fits["image"].read_bytes()[:-1] + b"x")
    else:
        product.stem.with_name(STEM + ".json").write_text("{")
    again, engine = run(options)
    assert len(engine.requests) == 1
    assert again.made_at > product.made_at


@pytest.mark.parametrize(
    ("fault", "error"), [("dies", ToolError), ("blank", RejectedError), ("residual", ToolError), ("image", ToolError)]
)
def test_a_failed_image_leaves_no_product(run, painter, tmp_path, fault, error):
    with pytest.raises(error):
        run(engine=painter(fault))
    assert names(tmp_path / "images") == []
    assert names(tmp_path / "scratch") == []


def test_a_failed_second_try_leaves_the_first_product(run, painter, tmp_path):
    product, _ = run()
    with pytest.raises(ToolError):
        run(engine=painter("dies"), force=True)
    assert read_product(tmp_path / "images" / STEM) == product


def test_one_killed_while_publishing_is_made_again_whole(run, tmp_path, monkeypatch):
    def killed(product):
        raise SystemExit(137)

    with monkeypatch.context() as patch:
        patch.setattr("nightbeam.imaging.product.write_product", killed)
        with pytest.raises(SystemExit):
            run()
    (tmp_path / "images" / f".{STEM}.image.fits.123.abcd.part").write_text("half")
    assert f"{STEM}.json" not in names(tmp_path / "images")
    product, engine = run()
    assert len(engine.requests) == 1
    assert read_product(product.stem) == product
    assert not list((tmp_path / "images").glob(".*.part"))


def test_without_correction_there_is_no_corrected_image(run, tmp_path):
    run()
    product, _ = run(ImageOptions(imsize=100, cell_arcsec=3.0, pbcor=False))
    assert "pbcor" not in product.fits
    assert product.path.name == f"{STEM}.image.fits"
    assert f"{STEM}.image.pbcor.fits" not in names(tmp_path / "images")
    assert json.loads((tmp_path / "images" / f"{STEM}.json").read_text())["product"]["peak_pbcor_jy"] is None
    assert np.isnan(read_product(product.stem).peak_pbcor_jy)


def test_fits_can_be_skipped_for_native_images(run, tmp_path):
    product, _ = run(ImageOptions(imsize=100, cell_arcsec=3.0, skip_fits=True))
    assert product.fits == {}
    assert names(tmp_path / "images") == [STEM + s for s in (".image", ".image.pbcor", ".json", ".pb", ".png")]
    assert product.path.name == f"{STEM}.image.pbcor"


def test_native_images_can_be_kept_besides(run):
    product, _ = run(ImageOptions(imsize=100, cell_arcsec=3.0, keep_casa_images=True))
    assert set(product.native) == {"image", "pb", "image.pbcor"}
    assert set(product.fits) == {"image", "pb", "pbcor", "residual", "model"}


def test_sources_of_a_product_can_be_measured(run):
    product, _ = run()
    (found,) = measure_sources(product.fits["image"], [(70.9, 54.52)], pb=product.fits["pb"])
    assert found.found
    assert found.offset_beams < 0.05


def test_two_do_not_make_one_image_at_a_time(run, tmp_path):
    with sole_owner(tmp_path / "images" / f".{STEM}.lock"), pytest.raises(BusyError, match=f"the image {STEM}"):
        run()


def test_a_full_disk_is_told_before_work_begins(run, painter, monkeypatch):
    class Usage:
        free = 1000

    monkeypatch.setattr("nightbeam.core.files.shutil.disk_usage", lambda path: Usage)
    engine = painter()
    with pytest.raises(StorageError, match="are free"):
        run(engine=engine)
    assert engine.requests == []


def test_missing_data_and_absurd_names_are_refused(tmp_path, tiny_ms, painter):
    with pytest.raises(MissingError, match=r"none\.ms"):
        image_ms(tmp_path / "none.ms", tmp_path / "x.img", engine=painter(), work_dir=tmp_path)
    with pytest.raises(UsageError, match="no name for an image"):
        image_ms(tiny_ms, tmp_path, engine=painter(), work_dir=tmp_path)


def test_a_plan_makes_nothing(tiny_ms, tmp_path):
    plan = plan_image(tiny_ms, tmp_path / STEM, options=SMALL)
    assert plan.field_of_view_deg == pytest.approx(300 / 3600)
    assert (plan.beam_model, len(plan.expected)) == ("dsacalib", 5)
    assert names(tmp_path) == ["cwd"]


def test_an_unknown_engine_is_refused():
    from nightbeam.imaging.remote import imager_named

    with pytest.raises(UsageError, match="'miriad'"):
        imager_named("miriad")
