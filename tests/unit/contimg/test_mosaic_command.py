"""``nightbeam mosaic``, with real tiles of a small sky: what it prints, how it ends, and bad input of every kind."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits

from nightbeam.cli import main
from nightbeam.contimg import Site
from nightbeam.core.settings import load_settings

_world = runpy.run_path(str(Path(__file__).resolve().parents[2] / "mosaic_world.py"))
mjd, observe_sky = (_world["mjd"], _world["observe_sky"])

NIGHT = "2025-10-03"
WHENS = [f"{NIGHT}T04:{minute:02d}:00" for minute in (0, 5, 10)]
pytestmark = pytest.mark.filterwarnings("ignore::astropy.wcs.FITSFixedWarning")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("NIGHTBEAM_STATE_DIR", str(tmp_path / "state"))
    return Site.from_settings(load_settings())


@pytest.fixture
def sky(site: Site) -> list[tuple[float, float, float]]:
    return observe_sky(site, WHENS)


def run(*argv: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(arg) for arg in argv])
    return int(ended.value.code or 0)


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def plan(*argv: object) -> int:
    return run("mosaic", "plan", "--name", "night", *argv)


@pytest.mark.slow
def test_a_night_is_planned_built_and_shown_and_its_sources_are_where_and_as_bright_as_they_were(site, sky, capsys):
    assert plan("--night", NIGHT, "--json") == 0
    (planned,) = lines(capsys)
    assert [(m["name"], m["tiles"], m["rejected"]) for m in planned["mosaics"]] == [("night", 3, 0)]
    assert [(t["tile"], t["used"]) for t in planned["tiles"]] == [(when, True) for when in WHENS]
    assert run("mosaic", "build", "--name", "night", "--json") in (0, 3)  # a sky of three sources may not be checked
    (built,) = lines(capsys)
    assert (built["status"], built["tiles"]) == ("built", 3)
    from nightbeam.imaging import measure_sources

    for fit, (_, _, flux) in zip(
        measure_sources(Path(built["image"]), [s[:2] for s in sky], min_snr=5.0), sky, strict=True
    ):
        # 1 % of noise at most, 1 % that the interpolation of four pixels a beam costs
        assert fit.peak_jy == pytest.approx(flux, rel=0.04)
        assert fit.offset_arcsec < 0.05 * 240.0
    assert run("mosaic", "show", "night", "--json") == 0
    (shown,) = lines(capsys)
    assert shown["mosaic"]["observed"] == f"{NIGHT}T04:05:00Z"
    assert {check["name"] for check in shown["checks"]} >= {"coverage"}
    assert run("mosaic", "show") == 0
    assert "night" in capsys.readouterr().out


def test_what_the_older_cron_line_asks_for_selects_by_observation(site, sky, capsys):
    begin = 1759449600  # date -u -d 2025-10-03 +%s
    assert plan("--products-db", site.state_dir / "products.sqlite3", "--since", begin, "--until", begin + 86399) == 0
    (row,) = site.products().mosaics()
    assert len(row.tiles.splitlines()) == 3
    now = site.products().images()[0].created_at
    assert plan("--since", now - 60, "--until", now + 60) == 1
    assert "no tile was observed" in capsys.readouterr().err
    assert len(site.products().mosaics()) == 1


def test_times_may_be_iso_as_well(site, sky, capsys):
    assert plan("--since", f"{NIGHT}T04:04", "--until", "2025-10-03T06:06:00+02:00", "--json") == 0
    assert [t["tile"] for t in lines(capsys)[0]["tiles"]] == [WHENS[1]]


@pytest.mark.parametrize(
    "argv",
    [
        ("--since", "once"),
        ("--since", "20251003"),
        ("--since", "nan"),
        ("--night", NIGHT, "--since", NIGHT),
        ("--night", "now"),
        ("--night", "20251003"),
        ("--night", "2025-W40-5"),
        ("--night", "9999-12-31"),
        ("--since", NIGHT, "--until", NIGHT),
    ],
)
def test_a_window_that_is_none_is_refused(site, argv):
    assert plan(*argv) == 64


def test_a_plan_can_be_looked_at_without_being_made(site, sky, capsys):
    assert plan("--night", NIGHT, "--dry-run") == 0
    assert WHENS[0] in capsys.readouterr().out
    assert site.products().mosaics() == []


def _truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 9000)


def _blank(path: Path) -> None:
    with fits.open(path, mode="update") as hdus:
        hdus[0].data[...] = np.nan


def _without(*cards: str) -> Any:
    def strip(path: Path) -> None:
        with fits.open(path, mode="update") as hdus:
            for card in cards:
                del hdus[0].header[card]

    return strip


BAD = {
    "cut short": _truncated,
    "blank": _blank,
    "no restoring beam": _without("BMAJ", "BMIN", "BPA"),
    "where on the sky": _without("CTYPE1", "CTYPE2", "CRVAL1", "CRVAL2", "CDELT1", "CDELT2", "CRPIX1", "CRPIX2"),
    "not there": Path.unlink,
}


@pytest.mark.parametrize("reason", BAD)
def test_a_bad_tile_is_left_out_with_the_reason_and_the_others_are_used(site, sky, capsys, reason):
    (first,) = [i for i in site.products().images() if i.group_id == WHENS[0]]
    BAD[reason](Path(first.path))
    assert plan("--night", NIGHT, "--json") == 0
    (planned,) = lines(capsys)
    assert [(t["tile"], t["used"]) for t in planned["tiles"]] == [
        (WHENS[0], False), (WHENS[1], True), (WHENS[2], True)
    ]  # fmt: skip
    assert reason in planned["tiles"][0]["reasons"]


@pytest.mark.parametrize("reason", BAD)
def test_where_no_tile_is_usable_each_says_why_and_the_exit_code_is_one(site, sky, capsys, reason):
    for image in site.products().images():
        BAD[reason](Path(image.path))
    assert plan("--night", NIGHT) == 1
    told = capsys.readouterr()
    assert told.err.count(reason) == 3
    assert "none of 3 tiles" in told.err
    assert site.products().mosaics() == []


def test_no_tile_at_all_ends_with_one_as_well(site, capsys):
    assert plan() == 1
    assert "no tile was observed in ever/ever" in capsys.readouterr().err


def test_what_was_not_planned_ends_with_one(site, capsys):
    assert run("mosaic", "build", "--name", "night") == 1
    assert "plan it first" in capsys.readouterr().err
    assert run("mosaic", "show", "night") == 66


def test_a_mean_of_tiles_that_do_not_share_their_pixels_ends_with_two(site, sky, capsys):
    assert plan("--night", NIGHT, "--method", "mean", "--json") == 0
    assert "needs the same pixels" in json.dumps(lines(capsys)[0]["tiles"])
    assert run("mosaic", "build", "--name", "night") == 2
    assert "do not share their pixels" in capsys.readouterr().err
    (row,) = site.products().mosaics()
    assert (row.status, row.output_path) == ("failed", None)
    assert "do not share" in (row.error or "")


def test_tiles_far_apart_are_mosaics_of_their_own(site, sky, capsys):
    observe_sky(site, [f"{NIGHT}T20:00:00", f"{NIGHT}T20:05:00"])  # about the same sky: another Dec tells them apart
    for image in site.products().images():
        if "T20" in image.path:
            for path in json.loads(image.files or "{}").values():
                with fits.open(path, mode="update") as hdus:
                    hdus[0].header["CRVAL2"] = 50.0
    assert plan("--night", NIGHT, "--json") == 0
    assert [(m["name"], m["tiles"]) for m in lines(capsys)[0]["mosaics"]] == [("night", 3), ("night_strip1", 2)]


def test_a_database_that_is_missing_or_newer_or_none_is_one_clear_error(site, sky, tmp_path, capsys):
    gone = tmp_path / "gone.sqlite3"
    assert plan("--products-db", gone) == 66
    newer = tmp_path / "newer.sqlite3"
    shutil.copy(site.state_dir / "products.sqlite3", newer)
    with sqlite3.connect(newer) as raw:
        raw.execute("UPDATE nightbeam_products_version SET version_num = '9999'")
        raw.execute("PRAGMA user_version = 9999")
    assert plan("--products-db", newer) == 65
    none = tmp_path / "none.sqlite3"
    none.write_text("not a database " * 100)
    assert plan("--products-db", none) == 65
    told = capsys.readouterr().err
    assert (told.count("nightbeam:"), told.count("Traceback")) == (3, 0)
    assert not gone.exists()


def test_two_rows_of_one_name_in_an_older_database_become_one(site, sky, tmp_path, capsys):
    old = tmp_path / "old.sqlite3"
    with sqlite3.connect(old) as raw:
        raw.execute(
            "CREATE TABLE mosaics (id INTEGER PRIMARY KEY, name TEXT NOT NULL, created_at REAL NOT NULL,"
            " status TEXT NOT NULL, method TEXT, tiles TEXT NOT NULL, output_path TEXT)"
        )
        raw.executemany(
            "INSERT INTO mosaics (name, created_at, status, method, tiles) VALUES (?, ?, 'planned', 'mean', ?)",
            [("night", 1.0, "/old/a"), ("night", 2.0, "/old/b")],
        )
    assert run("mosaic", "show", "--products-db", old, "--json") == 0
    (line,) = lines(capsys)
    assert (line["name"], line["tiles"]) == ("night", 1)
    assert run("mosaic", "build", "--products-db", old, "--name", "night") != 0
    assert "not there" in capsys.readouterr().err


@pytest.mark.slow
def test_a_full_disk_is_one_clear_error_and_a_row_that_says_so(site, sky, capsys, monkeypatch):
    assert plan("--night", NIGHT) == 0
    usage = shutil.disk_usage(site.output_dir)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    assert run("mosaic", "build", "--name", "night") == 74
    assert "free some space" in capsys.readouterr().err
    (row,) = site.products().mosaics()
    assert row.status == "failed"
    monkeypatch.undo()
    monkeypatch.setenv("NIGHTBEAM_STATE_DIR", str(site.state_dir))
    assert run("mosaic", "build", "--name", "night") in (0, 3)
    assert [m.status for m in site.products().mosaics()] == ["built"]


@pytest.mark.slow
def test_nights_that_are_due_are_shown_and_made(site, sky, capsys):
    assert run("mosaic", "nightly", "--now", "2025-10-04T03:15:00", "--dry-run", "--json") == 0
    assert lines(capsys) == [{"night": NIGHT, "mosaic": "night_2025_10_03"}]
    assert run("mosaic", "nightly", "--now", "2025-10-04T03:15:00", "--json") == 0
    assert [(o["night"], o["action"]) for o in lines(capsys)] == [(NIGHT, "built")]
    assert run("mosaic", "nightly", "--night", NIGHT, "--json") == 0
    assert [(o["night"], o["action"]) for o in lines(capsys)] == [(NIGHT, "unchanged")]
    for now in ("soon", "20251004", "0001-01-01", "9999-12-31T23:00:00"):
        assert run("mosaic", "nightly", "--now", now) == 64
    for night in ("20251003", "9999-12-31"):
        assert run("mosaic", "nightly", "--night", night) == 64
        assert run("mosaic", "nightly", "--night", night, "--dry-run") == 64
    assert [m.name for m in site.products().mosaics()] == ["night_2025_10_03"]


def test_a_night_that_cannot_be_made_ends_with_two_and_says_which(site, sky, capsys):
    for image in site.products().images():
        _truncated(Path(image.path))
    assert run("mosaic", "nightly", "--night", NIGHT, "--night", "2025-10-02") == 2
    told = capsys.readouterr()
    assert "2025-10-03: none of 3 tiles" in told.err
    assert "empty" in told.out
