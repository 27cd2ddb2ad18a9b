"""WSClean's words, names and failures; a script stands for the program, and says what WSClean 3.1 said."""

import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from nightbeam.casa.tables import open_table
from nightbeam.core.errors import InputError, StorageError, ToolError, UsageError
from nightbeam.imaging import ImageOptions, image_ms, plan_image
from nightbeam.imaging.model import ImageRequest
from nightbeam.imaging.remote import TcleanImager, check_engine, imager_named
from nightbeam.imaging.visibilities import fingerprint, read_visibilities
from nightbeam.imaging.wsclean import WscleanImager, with_row_flags, wsclean_arguments

OPTIONS = ImageOptions(engine="wsclean", imsize=100, cell_arcsec=3.0, niter=50)


@pytest.fixture
def request_of(tmp_path):
    def make(**changed):
        options = replace(OPTIONS, **changed)
        return ImageRequest(
            ms=tmp_path / "x.ms", directory=tmp_path, options=options, datacolumn="corrected", cell_arcsec=3.0, width=1,
            w_planes=16, fields=(0,), frame="ICRS", centre=(289.2, 54.6), log=tmp_path / "log", timeout_s=30.0,
            threads=2,            memory_gb=3.0,
        )  # fmt: skip

    return make


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Put a shell script named wsclean on the path, before everything else."""

    def write(script):
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        path = folder / "wsclean"
        path.write_text(
            f'#!/bin/sh\nif [ "$1" = -version ]; then echo "WSClean version 3.1.0 (2022-04-01)"; exit; fi\n{script}\n'
        )
        path.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    return write


def words(request):
    return " ".join(wsclean_arguments(request, Path("/scratch/tile")))


def test_settings_reach_wsclean_in_its_own_words(request_of):
    said = words(request_of(robust=-0.5, threshold="0.5mJy", niter=300))
    for part in (
        "-size 100 100 -scale 3.000000asec", "-weight briggs -0.5", "-niter 300 -mgain 0.8 -threshold 0.0005",
        "-data-column CORRECTED_DATA", "-field 0 ", "-j 2 -abs-mem 3", "-use-wgridder", "-pol I",
        "-reorder", "-no-update-model-required", "-name /scratch/tile",
    ):  # fmt: skip
        assert part in said
    assert said.endswith("/x.ms")


def test_both_engines_clean_as_deep_before_they_go_through_the_visibilities_again(request_of, monkeypatch):
    asked = {}

    def run(calls, **_options):
        asked.update(next(dict(call.kwargs) for call in calls if call.task == "tclean"))

    monkeypatch.setattr("nightbeam.imaging.remote.run_casa", run)
    TcleanImager().make(request_of(engine="tclean"))
    left = asked["minpsffraction"]
    assert asked["maxpsffraction"] == left, "whatever the sidelobes"
    assert f"-mgain {1 - left:g} " in words(request_of())
    asked.clear()
    TcleanImager().make(request_of(engine="tclean", deconvolver="clark"))
    assert asked["deconvolver"] == "clark"
    assert "minpsffraction" not in asked, "a patch of the beam wants CASA's own rule"


def test_of_averaged_data_the_selection_is_not_made_again(request_of):
    request = request_of(uvrange=">1klambda")
    said = " ".join(wsclean_arguments(request, Path("/scratch/tile"), Path("/scratch/averaged.ms")))
    assert "-data-column DATA -field 0 " in said
    assert said.endswith("/scratch/averaged.ms")


def test_what_is_not_asked_for_is_not_said(request_of):
    said = words(request_of(niter=0, weighting="natural", gridder="standard"))
    assert "-niter" not in said
    assert "-make-psf" in said
    assert "-weight natural -nwlayers 1" in said
    assert "-multiscale" in words(request_of(deconvolver="multiscale"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"deconvolver": "mtmfs"},
        {"phasecenter": "J2000 01h37m41.3 +33d09m35.1"},
        {"beam_model": "engine"},
    ],
)
def test_what_only_tclean_can_do_is_refused_before_any_work(program, wrong):
    program("exit 0")
    with pytest.raises(UsageError, match="WSClean"):
        check_engine(replace(OPTIONS, **wrong))
    check_engine(replace(OPTIONS, engine="tclean", **wrong))


def test_a_missing_program_is_said_before_any_work(tiny_ms, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    for call in (
        lambda: plan_image(tiny_ms, tmp_path / "x.img", options=OPTIONS),
        lambda: image_ms(tiny_ms, tmp_path / "x.img", options=OPTIONS, work_dir=tmp_path / "scratch"),
    ):
        with pytest.raises(ToolError, match="not installed") as caught:
            call()
        assert "apt-get install wsclean" in caught.value.fix
    assert not (tmp_path / "scratch").exists()


@pytest.mark.parametrize(
    ("script", "error", "retry", "what"),
    [
        ("echo '+ >>> Error writing to temporary file'; exit 255", StorageError, True, "no room"),
        ("echo 'CFITSIO: error writing to FITS file (Error writing data)'; exit 255", StorageError, True, "no room"),
        ("echo '+ >>> std::bad_alloc'; exit 255", ToolError, False, "memory"),
        ("kill -9 $$", ToolError, False, "memory or was killed"),
        ("echo '+ >>> the sky is falling'; exit 255", ToolError, False, "the sky is falling"),
    ],
)
def test_each_failure_says_what_why_and_whether_to_try_again(program, request_of, script, error, retry, what):
    program(script)
    request = request_of()
    request.log.write_text("of an earlier run: no space left on device, bad_alloc\n")
    with pytest.raises(error, match=what) as caught:
        WscleanImager().make(request)
    assert caught.value.retry is retry
    assert type(pickle.loads(pickle.dumps(caught.value))) is error
    assert caught.value.fix


def test_what_runs_for_a_flow_is_known_by_whose_it_is(program, request_of, monkeypatch):
    monkeypatch.setenv("PREFECT_HOME", "/state/prefect")
    monkeypatch.setenv("PREFECT__FLOW_RUN_ID", "run 7")
    program('echo "of $PREFECT_HOME, $PREFECT__FLOW_RUN_ID"; exit 1')
    with pytest.raises(ToolError, match="of /state/prefect, run 7"):
        WscleanImager().make(request_of())


@pytest.fixture
def painted(tmp_path, program, header, gaussian):
    """Stand for a run that left images, as WSClean names and writes them."""

    def write(kinds):
        card = header(100)
        card["EQUINOX"], card["CRVAL1"] = 2000.0, -70.9
        del card["RADESYS"]
        (tmp_path / "made").mkdir()
        for kind in kinds:
            data = np.full((100, 100), 0.5)
            if kind == "psf":
                data = gaussian(100, 50, 50, 6.0, 4.0, -17.0)
            fits.writeto(tmp_path / "made" / f"tile-{kind}.fits", data.astype(np.float32)[None, None], card)
        program(f'case "$*" in *-restore*) ;; *) cp {tmp_path}/made/* {tmp_path}/;; esac')

    return write


def test_images_get_our_names_the_frame_of_the_data_and_the_beam_of_the_main_lobe(painted, request_of, tmp_path):
    painted(["image", "residual", "model", "dirty", "psf"])
    made = WscleanImager().make(request_of())
    assert {kind: path.name for kind, path in made.fits.items()} == {
        kind: f"tile.{kind}.fits" for kind in ("image", "residual", "model")
    }
    card = fits.getheader(made.fits["image"])
    assert (card["RADESYS"], card["CRVAL1"], card["CRVAL2"]) == ("ICRS", 289.2, 54.6)
    found = 3600 * card["BMAJ"], 3600 * card["BMIN"], card["BPA"]
    assert found == pytest.approx((18.0, 12.0, -17.0), rel=0.01)
    assert "EQUINOX" not in card
    assert made.versions == {"wsclean": "3.1.0"}
    assert made.parameters["command"].startswith("wsclean -j 2")
    assert made.parameters["restore"].startswith("wsclean -j 2 -beam-shape ")
    assert not (tmp_path / "reordered").exists()


def test_without_cleaning_the_image_is_the_residual_and_the_model_is_nothing(painted, request_of):
    painted(["image", "dirty", "psf"])
    made = WscleanImager().make(request_of(niter=0))
    values = {kind: float(fits.getdata(path).max()) for kind, path in made.fits.items()}
    assert values == {"image": 0.5, "residual": 0.5, "model": 0.0}


def test_both_engines_are_known_by_name():
    assert [imager_named(name).name for name in ("tclean", "wsclean")] == ["tclean", "wsclean"]
    with pytest.raises(UsageError, match="tclean or wsclean"):
        ImageOptions(engine="miriad")


# -- data that WSClean would take wrongly -------------------------------------------------------------------------


@pytest.fixture
def ms(tiny_ms, tmp_path):
    return Path(shutil.copytree(tiny_ms, tmp_path / "copy.ms"))


def wrong_by_a_thousand_and_flagged_by_row(ms):
    with open_table(ms, write=True) as table:
        data, bad = table.getcol("DATA"), (table.getcol("ANTENNA1") == 3) | (table.getcol("ANTENNA2") == 3)
        data[bad] *= 1e3
        table.putcol("DATA", data)
        table.putcol("FLAG_ROW", bad)
    return bad


def test_a_row_that_is_flagged_as_a_row_is_flagged_in_what_wsclean_sees_and_the_set_stays_as_it_was(ms, tmp_path):
    bad = wrong_by_a_thousand_and_flagged_by_row(ms)
    before = fingerprint(ms)
    with open_table(with_row_flags(ms, tmp_path / "seen.ms")) as table:
        assert np.array_equal(table.getcol("FLAG").all(axis=(1, 2)), bad)
    assert fingerprint(ms) == before
    vis = read_visibilities(ms, OPTIONS)
    assert vis.rows_flagged


@pytest.mark.system
@pytest.mark.parametrize("uvrange", ["", ">0.001klambda"])
def test_what_is_flagged_by_row_alone_is_not_in_the_image(ms, tmp_path, uvrange):
    wrong_by_a_thousand_and_flagged_by_row(ms)
    options = replace(OPTIONS, uvrange=uvrange, niter=0)
    product = image_ms(ms, tmp_path / "x.img", options=options, work_dir=tmp_path / "scratch")
    assert product.peak_jy == pytest.approx(1.0, rel=0.01)  # of the source at the centre
    assert list((tmp_path / "scratch").iterdir()) == []


def test_fields_of_different_centres_are_refused_before_any_work(ms, tmp_path, program):
    program("exit 0")
    with open_table(ms / "FIELD", write=True) as table:
        table.addrows(1)
        for name in table.colnames():
            if table.iscelldefined(name, 0):
                table.putcell(name, 1, table.getcell(name, 0))
        table.putcell("PHASE_DIR", 1, table.getcell("PHASE_DIR", 0) + 0.01)
        table.putcell("NAME", 1, "aside")
    chosen = replace(OPTIONS, field="0,1")
    with pytest.raises(InputError, match="one centre") as caught:
        image_ms(ms, tmp_path / "x.img", options=chosen, work_dir=tmp_path / "scratch")
    assert "tile, aside" in caught.value.what
    plan_image(ms, tmp_path / "x.img", options=replace(chosen, engine="tclean"))
    plan_image(ms, tmp_path / "x.img", options=replace(chosen, field="0"))


def test_one_hand_is_refused_before_any_work(ms, tmp_path, program):
    program("exit 0")
    with open_table(ms / "POLARIZATION", write=True) as table:
        table.putcell("CORR_TYPE", 0, np.array([9, 10], np.int32))  # XX and XY: no YY
    with pytest.raises(InputError, match="have XX, XY only"):
        plan_image(ms, tmp_path / "x.img", options=OPTIONS)
