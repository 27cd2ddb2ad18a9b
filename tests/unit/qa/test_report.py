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

from nightbeam.core.errors import BusyError, InputError, MissingError, StorageError
from nightbeam.gains.model import CalTable, TableKind
from nightbeam.imaging.files import measure_sources
from nightbeam.imaging.model import ImageOptions, ImageProduct, Verdict
from nightbeam.qa import CalibrationUse, Unread, read_metrics, sample_visibilities, write_mosaic_qa, write_qa
from nightbeam.qa.compute import GainPoints, Panels, compare_sources, judge, sum_flags
from nightbeam.qa.figures import draw_flags, draw_gains, draw_panels, draw_sources, draw_uv, draw_visibilities
from nightbeam.qa.files import count_flags, image_outline, read_coarse
from nightbeam.qa.measures import source_measures
from nightbeam.qa.model import FlagCounts, QaLimits, SourceComparison, VisibilitySample
from nightbeam.sky import Calibrator

GROUP = "2025-10-03T11:48:57"
CENTRE = (70.9, 54.5)
_unit = Path(__file__).resolve().parent
write_analytic_ms = runpy.run_path(str(_unit.parents[1] / "analytic_ms.py"))["write_analytic_ms"]
solutions = runpy.run_path(str(_unit / "test_compute.py"))["solutions"]


@pytest.fixture(scope="module")
def ms(tmp_path_factory):
    path = tmp_path_factory.mktemp("ms") / "tile.ms"
    return write_analytic_ms(path, centre=CENTRE, sources=[(*CENTRE, 2.0)], antennas=6, channels=4, integrations=3)


def header(nx, ny=None, *, cell_deg=1e-3, centre=CENTRE):
    card, ny = fits.Header(), ny or nx
    for axis, (kind, value, step, n) in enumerate(
        (("RA---SIN", centre[0], -cell_deg, nx), ("DEC--SIN", centre[1], cell_deg, ny)), start=1
    ):
        card[f"CTYPE{axis}"], card[f"CRVAL{axis}"], card[f"CDELT{axis}"] = kind, value, step
        card[f"CRPIX{axis}"], card[f"CUNIT{axis}"] = 0.5 * (n + 1), "deg"
    card["BMAJ"], card["BMIN"], card["BPA"], card["RADESYS"] = 0.005, 0.004, 30.0, "ICRS"
    return card


def product_of(folder, image, **said):
    """A product of an image and of a beam that is 0.5 everywhere."""
    paths = {"image": folder / "x.img.image.fits", "pb": folder / "x.img.pb.fits"}
    fits.writeto(paths["image"], image.astype(np.float32), header(image.shape[1]), overwrite=True)
    fits.writeto(paths["pb"], np.full_like(image, 0.5, np.float32), header(image.shape[1]), overwrite=True)
    floats = dict.fromkeys({f.name for f in fields(ImageProduct) if f.type == "float"}, 1.0)
    known = {
        "noise_jy": 1e-3, "peak_jy": 0.5, "deepest_jy": -0.01, "dynamic_range": 500.0, "peak_pbcor_jy": math.nan,
        "beam_major_arcsec": 18.0, "beam_minor_arcsec": 14.4, "beam_pa_deg": 30.0, "ra_deg": CENTRE[0],
        "dec_deg": CENTRE[1], "cell_arcsec": 3.6, "imsize": image.shape[1],
    }  # fmt: skip
    return ImageProduct(
        stem=folder / "x.img", ms=folder / "x.ms", engine="tclean", fits=paths, native={}, png=folder / "x.img.png",
        object_name="x", telescope="OVRO_MMA", datacolumn="data", channels_averaged=1, beam_model="dsacalib",
        pbcor=False, made_at=datetime.now(UTC), version="0", versions={}, parameters={}, provenance={},
        options=ImageOptions(), input_fingerprint="", **floats | known | said,
    )  # fmt: skip


def noise(n=256, seed=1):
    return np.random.default_rng(seed).normal(0, 1e-3, (n, n))


def with_source(image, x, y, peak):
    gy, gx = np.mgrid[: image.shape[0], : image.shape[1]]
    # a round one of 5 pixels, as wide as the beam's long side
    return image + peak * np.exp(-4.0 * math.log(2.0) * ((gx - x) ** 2 + (gy - y) ** 2) / 25.0)


def listed(name, x, y, flux):
    """Return a source of a list at a pixel of an image of 256."""
    return Calibrator(
        name, CENTRE[0] - (x - 127.5) * 1e-3 / math.cos(math.radians(CENTRE[1])), CENTRE[1] + (y - 127.5) * 1e-3, flux
    )


def is_small_png(path):
    with Image.open(path) as image:
        image.verify()
    return path.stat().st_size <= 100_000


def plain_json(path):
    def refuse(word):
        raise AssertionError(f"{path.name} holds {word}")

    assert path.stat().st_size <= 100_000
    return json.loads(path.read_text(), parse_constant=refuse)


def found_scores(report):
    return {score.name: score for score in report.scores}


@pytest.mark.slow
def test_a_group_is_judged_and_shown_in_small_files_with_their_numbers(tmp_path, ms):
    # 1 Jy, 0.6 Jy and 0.4 Jy as listed; seen through a beam of 0.5 the second is half as bright, and the third 3/4
    image = with_source(with_source(with_source(noise(), 128, 128, 0.5), 60, 190, 0.15), 200, 60, 0.15)
    product = product_of(tmp_path, image)
    catalogue = [listed("one", 128, 128, 1.0), listed("half", 60, 190, 0.6), listed("more", 200, 60, 0.4),
                 Calibrator("elsewhere", 10.0, 0.0, 5.0), Calibrator("faint", 70.9, 54.45, 1e-4)]  # fmt: skip
    report = write_qa(
        GROUP, tmp_path / "qa", ms=ms, product=product, catalogue=catalogue, verdict=Verdict(True),
        calibration=CalibrationUse("calset", age_hours=0.0, ratio=1.0), subbands=((), 16),
    )  # fmt: skip
    names = [a.name for a in report.artifacts]
    shown = ["flags", "uv", "visibilities", "sources", "image"]
    assert names == [f"{name}{end}" for name in shown for end in (".png", ".json")] + ["metrics.json"]
    assert all(a.path == tmp_path / "qa" / GROUP / a.name and a.group_id == GROUP for a in report.artifacts)
    assert all(is_small_png(a.path) if a.name.endswith(".png") else plain_json(a.path) for a in report.artifacts)
    scores = found_scores(report)
    assert scores["flux_ratio"].value == pytest.approx(0.75, rel=0.03)
    assert scores["astrometry"].value < 1.0
    assert (scores["completeness"].value, scores["flagged"].value, scores["dead_receptors"].value) == (1.0, 0.0, 0)
    assert scores["corrected_data"].verdict == "bad"  # the set has no CORRECTED_DATA
    assert scores["noise"].value == pytest.approx(1.0)
    assert report.scores[0].verdict == "bad"
    said = read_metrics(tmp_path / "qa" / GROUP)
    assert said["flags"]["by_antenna"] == dict.fromkeys("123456", 0.0)
    assert said["visibilities"]["median_amplitude"] == pytest.approx(2.0, rel=1e-3)
    assert said["verdict"] == {"good": True, "reasons": []}
    assert {s["name"] for s in said["scores"]} == set(scores)
    drawn = plain_json(tmp_path / "qa" / GROUP / "sources.json")
    assert drawn["names"] == ["one", "half", "more"]
    assert plain_json(tmp_path / "qa" / GROUP / "flags.json")["by_window"] == {"0": 0.0}


def test_of_close_pairs_of_a_list_neither_flux_nor_place_is_asked(tmp_path):
    # as listed, all of them: two pairs within a beam and a half, and three sources that are alone
    places = [("A", 128, 128, 1.0), ("a", 134, 128, 0.1), ("B", 60, 60, 0.8), ("b", 60, 67, 0.12),
              ("c", 200, 60, 0.5), ("d", 60, 190, 0.5), ("e", 200, 200, 0.5)]  # fmt: skip
    image = noise()
    for _, x, y, flux in places:
        image = with_source(image, x, y, 0.5 * flux)
    report = write_qa(
        GROUP, tmp_path / "qa", product=product_of(tmp_path, image), catalogue=[listed(*place) for place in places]
    )
    assert plain_json(tmp_path / "qa" / GROUP / "sources.json")["names"] == ["c", "d", "e"]
    scores = found_scores(report)
    assert [scores[name].verdict for name in ("flux_ratio", "astrometry", "completeness")] == ["good"] * 3


@pytest.mark.slow
def test_noise_alone_moves_no_image_from_its_place(tmp_path):
    from nightbeam.testing.sky_tiles import SkyTile, write_tile

    turn = math.cos(math.radians(33.0))
    sources = [Calibrator(f"s{k}", 50.0 + x / turn, 33.0 + y, 11.0 * 2e-3 / 0.93)
               for k, (x, y) in enumerate(((0.15, 0.1), (-0.15, 0.1), (0.0, -0.2)))]  # fmt: skip
    for seed in range(12):
        tile = SkyTile(
            ra_deg=50.0, dec_deg=33.0, mid_mjd=60950.1, imsize=256, cell_arcsec=10.0, beam_major_arcsec=83.0,
            beam_minor_arcsec=40.0, seed=seed,
        )  # fmt: skip
        made = write_tile(tmp_path / f"{seed}.img", tile, sources)
        fits_of = measure_sources(
            made.fits["image"], [(s.ra_deg, s.dec_deg) for s in sources], pb=made.fits["pb"],
            names=[s.name for s in sources],
        )  # fmt: skip
        found = compare_sources(fits_of, sources, catalogue="the list", beam_arcsec=(83.0, 40.0))
        (place,) = [m for m in source_measures(found, QaLimits()) if m.name == "astrometry"]
        assert judge(place).verdict == "good", place.says


@pytest.mark.slow
def test_the_same_data_give_the_same_files_and_a_later_call_adds_to_the_report(tmp_path, ms):
    first = write_qa(GROUP, tmp_path, ms=ms, extra={"conversion": {"rows": 5}})
    bytes_of = {a.name: a.path.read_bytes() for a in first.artifacts}
    again = write_qa(GROUP, tmp_path, ms=ms)
    assert {a.name: a.path.read_bytes() for a in again.artifacts} == bytes_of
    write_qa(GROUP, tmp_path, product=replace(product_of(tmp_path, noise()), fits={}))
    report = read_metrics(tmp_path / GROUP)
    assert report["conversion"] == {"rows": 5}
    assert report["image"]["telescope"] == "OVRO_MMA"


def test_what_is_missing_is_unknown_with_its_reason_and_the_rest_is_made(tmp_path):
    table = CalTable(tmp_path / "x_bpcal", TableKind.BANDPASS, 30, "0", "103")
    report = write_qa(
        GROUP, tmp_path / "qa", ms=tmp_path / "none.ms", tables=[table], product=Unread("the image is gone"),
        catalogue=[], calibration=Unread("there is no set"), subbands=((), 0),
    )  # fmt: skip
    scores = found_scores(report)
    assert {str(s.verdict) for s in report.scores} == {"unknown"}
    assert all(s.reason for s in report.scores)
    assert "none.ms" in scores["flagged"].reason
    assert "x_bpcal" in scores["bpcal_snr"].reason
    assert scores["noise"].reason == scores["flux_ratio"].reason == "the image is gone"
    assert scores["calibration_age"].reason == "there is no set"
    assert [a.name for a in report.artifacts] == ["metrics.json"]
    assert found_scores(write_qa(GROUP, tmp_path / "qa", tables=Unread("retired")))["solutions"].reason == "retired"


def test_tables_of_one_kind_and_of_kinds_that_are_not_known_have_names_of_their_own(tmp_path):
    table = CalTable(tmp_path / "x_gacal", TableKind.GAIN, 40, "0", "103")
    report = write_qa(GROUP, tmp_path, tables=[table, table, Unread("x_flux.cal is of the kind FLUX")])
    names = [score.name for score in report.scores]
    assert len(set(names)) == len(names)
    assert {"gacal_snr", "gacal2_snr", "solutions"} <= set(names)


@pytest.mark.slow
def test_a_blank_image_is_not_good_and_cannot_be_drawn(tmp_path):
    blank = product_of(
        tmp_path, np.full((64, 64), np.nan), noise_jy=math.nan, peak_jy=math.nan, dynamic_range=math.nan,
        beam_major_arcsec=math.nan,
    )  # fmt: skip
    report = write_qa(GROUP, tmp_path, product=blank, catalogue=[Calibrator("a", *CENTRE, 1.0)])
    scores = found_scores(report)
    assert "good" not in {str(s.verdict) for s in report.scores}
    assert scores["figure_image"].verdict == "unknown"
    assert "image.png could not be drawn" in scores["figure_image"].reason
    plain_json(report.artifacts[-1].path)


def test_an_image_kept_only_in_casas_form_still_has_its_numbers(tmp_path):
    report = write_qa(GROUP, tmp_path, product=replace(product_of(tmp_path, noise(64)), fits={}), catalogue=[])
    assert [a.name for a in report.artifacts] == ["metrics.json"]
    assert found_scores(report)["noise"].verdict == "good"
    assert "no FITS image" in found_scores(report)["flux_ratio"].reason


@pytest.mark.parametrize("error", [StorageError("full"), BusyError("being written"), ZeroDivisionError("ours")])
def test_what_is_no_fault_of_the_data_is_raised(tmp_path, monkeypatch, error):
    def fail(path):
        raise error

    monkeypatch.setattr("nightbeam.qa.report.count_flags", fail)
    with pytest.raises(type(error)):
        write_qa(GROUP, tmp_path, ms=tmp_path / "x.ms")


def test_what_is_gone_is_gone_from_the_report_too(tmp_path):
    product = product_of(tmp_path, with_source(noise(64), 32, 32, 0.5))
    catalogue = [Calibrator("one", *CENTRE, 1.0)]
    write_qa(GROUP, tmp_path, product=product, catalogue=catalogue, calibration=CalibrationUse("calset"))
    assert read_metrics(tmp_path / GROUP)["sources"]["fits"]
    write_qa(GROUP, tmp_path, product=Unread("gone"), catalogue=catalogue, calibration=Unread("gone"),
             ms=tmp_path / "none.ms", tables=Unread("gone"))  # fmt: skip
    report = read_metrics(tmp_path / GROUP)
    sections = ("image", "sources", "calibration", "flags", "coverage", "visibilities", "tables")
    assert {name: report[name] for name in sections} == dict.fromkeys(sections)
    assert {score["verdict"] for score in report["scores"]} == {"unknown"}


def test_places_on_the_sky_are_written_to_a_hundredth_of_an_arcsecond(tmp_path):
    there = (359.123456, -12.345678)
    paths = [tmp_path / "a" / "t.fits", tmp_path / "b" / "t.fits"]
    for path, ra in zip(paths, (there[0], 10.0), strict=True):
        path.parent.mkdir()
        fits.writeto(path, np.ones((50, 50), np.float32), header(50, centre=(ra, there[1])))
    made = write_mosaic_qa("m", tmp_path / "qa", paths[0], None, tiles=paths)
    outlines = plain_json(made[1].path)["tiles"]
    assert list(outlines) == [str(path) for path in paths]  # of one name, and two all the same
    for path in paths:
        off = np.abs(np.array(outlines[str(path)]) - image_outline(path)) * 3600.0
        assert off.max() < 0.01
    product = product_of(tmp_path, noise(64), ra_deg=there[0], dec_deg=there[1], peak_ra_deg=there[0])
    write_qa(GROUP, tmp_path / "qa", product=product)
    drawn = plain_json(tmp_path / "qa" / GROUP / "image.json")
    assert (drawn["ra_deg"], drawn["dec_deg"], drawn["peak_ra_deg"]) == (*there, there[0])


def test_a_damaged_report_is_replaced(tmp_path, caplog):
    (tmp_path / GROUP).mkdir()
    (tmp_path / GROUP / "metrics.json").write_text("[1]")
    with pytest.raises(InputError, match="report"):
        read_metrics(tmp_path / GROUP)
    write_qa(GROUP, tmp_path, extra={"a": 1})
    assert read_metrics(tmp_path / GROUP) == {"a": 1, "group_id": GROUP}
    assert "is replaced" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["table.dat", "data"])
def test_a_damaged_measurement_set_is_unknown_in_all_that_it_would_say(tmp_path, ms, damage):
    import shutil

    broken = tmp_path / "t.ms"
    shutil.copytree(ms, broken)
    files = [broken / damage] if damage == "table.dat" else [p for p in broken.glob("table.f*") if p.is_file()]
    for path in files:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    scores = found_scores(write_qa(GROUP, tmp_path / "qa", ms=broken))
    assert {str(s.verdict) for s in scores.values()} == {"unknown"}
    assert {"flagged", "uv_gap", "corrected_data", "dead_receptors"} <= set(scores)
    assert all("t.ms" in s.reason for s in scores.values())


# -- Measurement Sets -------------------------------------------------------------------------------------------


def test_the_sample_is_the_unflagged_cross_correlations(ms):
    sample = sample_visibilities(ms)
    assert sample.column == "DATA"
    assert len(sample.amplitude) == 15 * 3
    assert sample.amplitude == pytest.approx(2.0, rel=1e-3)
    assert sample.phase_deg == pytest.approx(0.0, abs=1e-3)
    assert sample.usable == 1.0
    assert np.hypot(sample.u_klambda, sample.v_klambda).max() < 1.1 / 0.2134


def test_flags_are_counted_by_receptor(tmp_path):
    path = write_analytic_ms(
        tmp_path / "t.ms", centre=CENTRE, sources=[(*CENTRE, 1.0)], antennas=4, channels=4, integrations=2
    )
    from nightbeam.casa.tables import open_table

    with open_table(path, write=True) as table:
        flag, ant1, ant2 = table.getcol("FLAG"), table.getcol("ANTENNA1"), table.getcol("ANTENNA2")
        flag[:] = False
        flag[(ant1 == 1) | (ant2 == 1)] = True  # antenna 2 is dead
        flag[(ant1 == 0) | (ant2 == 0), :, 1] = True  # and the second receptor of antenna 1
        flag[(ant1 == 2) & (ant2 == 3), 0, 0] = True  # a quarter of one pair's first product
        table.putcol("FLAG", flag)
    counts = count_flags(path)
    # 6 pairs x 2 products x 4 channels x 2 times
    assert counts.total.sum() == 96
    found = sum_flags(counts)
    assert (found.receptors, found.dead_receptors, found.dead_antennas) == (8, 3, ("2",))
    # first product: pairs 1-3, 1-4, 3-4 of 8 samples each, 2 flagged; second: 3-4 alone
    assert found.fraction == pytest.approx(2 / 32)
    assert found.by_antenna == pytest.approx({"1": 0.0, "3": 2 / 24, "4": 2 / 24})
    assert len(counts.uv_klambda) == 3 * 2
    assert len(count_flags(path, most_uv=3).uv_klambda) < 6


# -- solutions --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", [TableKind.BANDPASS, TableKind.GAIN, TableKind.SHORT, TableKind.DELAY])
def test_every_kind_of_table_of_the_full_array_has_its_figures(tmp_path, monkeypatch, kind):
    rng = np.random.default_rng(0)
    values = rng.normal(1, 0.1, (234, 48, 2)) * (1.0 if kind is TableKind.DELAY else np.exp(0.1j))
    table = solutions(
        values if kind is TableKind.BANDPASS else values[:, :1],
        antenna=np.tile(np.arange(117), 2), spw=np.repeat([0, 1], 117),
        freqs=[np.linspace(1.30e9, 1.31e9, 48), np.linspace(1.31e9, 1.32e9, 48)],
        names=tuple(str(k + 1) for k in range(117)),
        minutes=np.repeat([0.0, 1.0 if kind is TableKind.SHORT else 0.0], 117),
    )  # fmt: skip
    monkeypatch.setattr("nightbeam.gains.files.read_caltable", lambda path: table)
    monkeypatch.setattr("nightbeam.gains.read_caltable", lambda path: table, raising=False)
    caltable = CalTable(tmp_path / f"x{kind.suffix}", kind, kind.order_index, "0", "103")
    *figures, report = write_qa(GROUP, tmp_path, tables=[caltable]).artifacts
    name = kind.suffix[1:]
    panels = kind in (TableKind.BANDPASS, TableKind.SHORT)
    wanted = [f"{name}_amplitude", f"{name}_phase"] if panels else [name]
    assert [f.name for f in figures] == [f"{w}{end}" for w in wanted for end in (".png", ".json")]
    for figure in figures:
        assert is_small_png(figure.path) if figure.name.endswith(".png") else plain_json(figure.path)
    assert json.loads(report.path.read_text())["tables"][name]["path"].endswith(kind.suffix)


@pytest.mark.slow
def test_every_gain_of_every_window_of_the_full_array_is_too_much_for_a_figure_and_thinned(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    n, windows = 117, 16
    values = rng.normal(1.0, 0.1, (n * windows, 1, 2)) * 1.234e-5 * np.exp(2j * np.pi * rng.random((n * windows, 1, 2)))
    table = solutions(
        values, antenna=np.tile(np.arange(n), windows), spw=np.repeat(np.arange(windows), n),
        freqs=[np.array([1.3e9 + 1e7 * w]) for w in range(windows)],
        names=tuple(f"DSA-110-station-{k + 1:03d}" for k in range(n)), minutes=np.zeros(n * windows),
    )  # fmt: skip
    monkeypatch.setattr("nightbeam.gains.files.read_caltable", lambda path: table)
    monkeypatch.setattr("nightbeam.gains.read_caltable", lambda path: table, raising=False)
    caltable = CalTable(tmp_path / "x_gacal", TableKind.GAIN, 40, "0", "103")
    (_, numbers, _) = write_qa(GROUP, tmp_path, tables=[caltable]).artifacts
    assert len(plain_json(numbers.path)["amplitude"]) == 3000


def test_the_gap_that_ends_at_the_longest_spacing_is_shaded(tmp_path, monkeypatch):
    near = np.random.default_rng(0).uniform(1.0, 2.0, (20_000, 1)) * np.array([[0.6, 0.8]])
    counts = FlagCounts(
        antennas=("1", "2"), lengths_m=np.ones((2, 2)), total=np.ones((1, 1, 2, 2)), flagged=np.zeros((1, 1, 2, 2)),
        uv_klambda=np.concatenate([near, [[6.0, 8.0]]]).astype(np.float32), width_hz=1e6, integration_s=1.0,
    )  # fmt: skip
    monkeypatch.setattr("nightbeam.qa.report.count_flags", lambda ms: counts)
    drawn = []
    real = draw_uv
    monkeypatch.setattr("nightbeam.qa.figures.draw_uv", lambda *a, **k: drawn.append(real(*a, **k)) or drawn[-1])
    write_qa(GROUP, tmp_path, ms=tmp_path / "none.ms")
    said = plain_json(tmp_path / GROUP / "uv.json")
    assert (max(said["u_klambda"]), said["gap_klambda"][1]) == (6.0, 10.0)
    assert [len(axes.patches) for axes in drawn[0].axes] == [1, 1]


@pytest.mark.slow
def test_figures_of_nothing_can_be_drawn():
    nothing = np.zeros(0)
    sample = VisibilitySample("DATA", nothing, nothing, nothing, nothing)
    gains = GainPoints((), nothing.astype(int), nothing.astype(int), nothing, nothing, nothing)
    panels = Panels((), nothing, np.zeros((2, 0, 0)), np.zeros((2, 0, 0)), ("1", "2"))
    limits = {"ratio_limits": (1.2, 1.5), "offset_limits": (2.0, 5.0)}
    for figure in (
        draw_flags({}, {}, {}), draw_flags({}, {}, {}, dead=["1"]), draw_uv(np.zeros((0, 2))),
        draw_visibilities(sample), draw_gains(gains), draw_panels(panels, "phase", xlabel="x"),
        draw_sources(SourceComparison("the list"), beam_arcsec=math.nan, **limits),
    ):  # fmt: skip
        out = io.BytesIO()
        figure.savefig(out)
        assert out.getvalue().startswith(b"\x89PNG")


@pytest.mark.parametrize("quantity", ["amplitude", "phase"])
def test_a_dead_bandpass_can_be_drawn(quantity):
    dead = np.full((2, 3, 4), np.nan)
    draw_panels(Panels(("1", "2", "3"), np.arange(4.0), dead, dead, ()), quantity, xlabel="x").savefig(io.BytesIO())


# -- large images and mosaics -----------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [130 * 20, 300], ids=["rows", "parts of rows"])
def test_a_large_image_is_read_in_pieces_and_no_source_is_lost(tmp_path, monkeypatch, values):
    from nightbeam.qa import files

    sizes, usual = [], files._cells
    monkeypatch.setattr(files, "_cells", lambda block, *more: sizes.append(block.size) or usual(block, *more))
    data = np.full((70, 130), np.nan, np.float32)
    data[:60] = 0.25
    data[33, 100], data[10, 3] = 9.0, -5.0
    path = tmp_path / "m.fits"
    fits.writeto(path, data[None, None], header(130, 70))
    monkeypatch.setattr("nightbeam.qa.files._BLOCK_VALUES", values)
    plane = read_coarse(path, most=13)
    assert (plane.step, plane.shape, plane.data.shape) == (10, (70, 130), (7, 13))
    assert max(sizes) <= values
    assert plane.data[3, 10] == 9.0
    assert np.isnan(plane.data[6]).all()
    assert np.count_nonzero(plane.data[:6] != 0.25) == 1
    mean = read_coarse(path, most=13, brightest=False)
    assert mean.data[3, 10] == np.float32((99 * 0.25 + 9.0) / 100)
    whole = read_coarse(path, most=500)
    assert (whole.step, whole.data.shape) == (1, (70, 130))


def test_the_outline_of_an_image_goes_around_it(tmp_path):
    path = tmp_path / "t.fits"
    fits.writeto(path, np.zeros((100, 200), np.float32), header(200, 100, centre=(0.0, 0.0)))
    outline = image_outline(path)
    east = (outline[:, 0] + 180.0) % 360.0 - 180.0
    assert (east.min(), east.max()) == (pytest.approx(-0.1, abs=1e-5), pytest.approx(0.1, abs=1e-5))
    assert (outline[:, 1].min(), outline[:, 1].max()) == (pytest.approx(-0.05, abs=1e-5), pytest.approx(0.05, abs=1e-5))
    assert len(outline) == 32


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(120, 900), (300, 260)])
def test_a_mosaic_and_its_noise_are_shown_with_their_tiles(tmp_path, shape):
    ny, nx = shape
    rng = np.random.default_rng(2)
    image, noise_map, tile = tmp_path / "m.fits", tmp_path / "n.fits", tmp_path / "t.fits"
    fits.writeto(image, rng.normal(0, 1e-3, shape).astype(np.float32), header(nx, ny))
    fits.writeto(noise_map, np.full(shape, 1e-3, np.float32), header(nx, ny))
    fits.writeto(tile, np.zeros((90, 90), np.float32), header(90))
    made = write_mosaic_qa(
        "night_2026_01_25", tmp_path / "qa", image, noise_map, tiles=[tile, tmp_path / "gone.fits"], rejected=[tile]
    )
    assert [a.name for a in made] == ["mosaic.png", "mosaic.json"]
    assert is_small_png(made[0].path)
    said = plain_json(made[1].path)
    assert (said["width"], said["height"]) == (nx, ny)
    assert said["least_noise_jy"] == pytest.approx(1e-3)
    assert list(said["tiles"]) == list(said["rejected"]) == [str(tile)]


def test_the_least_noise_of_a_large_map_is_that_of_a_pixel(tmp_path):
    noise_map = np.full((40, 1000), 2e-3, np.float32)
    noise_map[17, 501] = 1e-3
    for name, data in (("m", np.ones((40, 1000), np.float32)), ("n", noise_map)):
        fits.writeto(tmp_path / f"{name}.fits", data, header(1000, 40))
    made = write_mosaic_qa("m", tmp_path / "qa", tmp_path / "m.fits", tmp_path / "n.fits")
    said = plain_json(made[1].path)
    assert (said["step"], said["least_noise_jy"]) == (2, 1e-3)


@pytest.mark.slow
def test_a_mosaic_of_a_whole_day_has_small_files_too(tmp_path, monkeypatch):
    ra = np.linspace(0, 359, 288)
    outline = {}
    for k in range(288):
        path = Path(f"/data/dsa110/contimg/output/images/2025-10-03T{k:06d}/2025-10-03T{k:06d}.img.image.pbcor.fits")
        side = np.concatenate([np.linspace(-1.5, 1.5, 8), np.full(8, 1.5), np.linspace(1.5, -1.5, 8), np.full(8, -1.5)])
        outline[path] = np.stack([ra[k] + 1.234567891 * side, 16.1234567891 + side], axis=1)
    monkeypatch.setattr("nightbeam.qa.report.image_outline", lambda path: outline[path])
    image = tmp_path / "m.fits"
    fits.writeto(image, np.ones((60, 300), np.float32), header(300, 60, cell_deg=0.1))
    made = write_mosaic_qa("m", tmp_path / "qa", image, None, tiles=list(outline))
    assert is_small_png(made[0].path)
    said = plain_json(made[1].path)
    assert [len(corners) for corners in said["tiles"].values()] == [4] * 288


def test_a_mosaic_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(MissingError):
        write_mosaic_qa("m", tmp_path, tmp_path / "m.fits", None)
    (tmp_path / "m.fits").write_text("no FITS")
    with pytest.raises(InputError, match="not a FITS image"):
        write_mosaic_qa("m", tmp_path, tmp_path / "m.fits", None)
    fits.writeto(tmp_path / "c.fits", np.zeros((3, 5, 5), np.float32))
    with pytest.raises(InputError, match="wanted one plane"):
        write_mosaic_qa("m", tmp_path, tmp_path / "c.fits", None)


def test_a_blank_mosaic_can_be_drawn(tmp_path):
    path = tmp_path / "m.fits"
    fits.writeto(path, np.full((40, 50), np.nan, np.float32), header(50, 40))
    made = write_mosaic_qa("m", tmp_path / "qa", path, path)
    assert plain_json(made[1].path)["brightest_jy"] is None


def test_a_large_image_is_shown_with_every_source_in_its_place(tmp_path):
    from nightbeam.qa.report import _shown

    image = np.zeros((1700, 1700))
    image[1201, 402] = 1.0
    product = product_of(tmp_path, image)
    sky = _shown(product.fits["image"])
    assert sky.data.shape == (850, 850)
    y, x = np.unravel_index(int(np.argmax(sky.data)), sky.data.shape)
    assert (y, x) == (600, 201)
    whole = fits.getheader(product.fits["image"])
    from astropy.wcs import WCS

    ra, dec = WCS(whole).all_pix2world(402, 1201, 0)
    assert sky.to_pixel(float(ra), float(dec)) == (pytest.approx(201, abs=0.5), pytest.approx(600, abs=0.5))
    assert sky.beam.major_px == pytest.approx(0.005 / 0.002)
    assert is_small_png(write_qa(GROUP, tmp_path / "qa", product=product).artifacts[0].path)


def test_without_figures_the_scores_are_the_same(ms, tmp_path):
    image = np.random.default_rng(0).normal(0.0, 1e-3, (64, 64))
    drawn = write_qa(GROUP, tmp_path / "a", ms=ms, product=product_of(tmp_path, image))
    plain = write_qa(GROUP, tmp_path / "b", ms=ms, product=product_of(tmp_path, image), figures=False)
    assert plain.scores == drawn.scores
    assert [artifact.name for artifact in plain.artifacts] == ["metrics.json"]
    assert [path.name for path in (tmp_path / "b" / GROUP).iterdir()] == ["metrics.json"]
    assert plain_json(plain.artifacts[0].path)["flags"] == plain_json(drawn.artifacts[-1].path)["flags"]
