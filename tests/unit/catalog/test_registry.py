"""The registry: sets as a whole, required windows, and the right set for a time."""

from __future__ import annotations

from pathlib import Path

import pytest

from nightbeam.catalog import Registry, SetSpec, TableSpec
from nightbeam.catalog.compute import table_kind, tables_of_prefix
from nightbeam.core.errors import InputError, MissingError


def exists(path: Path) -> None:
    if not path.is_dir():
        raise MissingError(f"no calibration table {path}")


@pytest.fixture
def registry(database_url: str) -> Registry:
    return Registry(database_url, check=exists)


def table(folder: Path, name: str) -> Path:
    path = folder / name
    path.mkdir()
    (path / "table.dat").write_text(name)
    return path


def put(registry: Registry, folder: Path, name: str, mid: float, *, half: float = 0.02, **keywords: float) -> None:
    specs = (
        TableSpec(table(folder, f"{name}_gcal"), "G", 40),
        TableSpec(table(folder, f"{name}_bpcal"), "BP", 30, "3C48", "103"),
    )
    spec = SetSpec(name, specs, mid - half, mid + half, mid_mjd=mid, dec_deg=keywords.get("dec"))
    registry.register_set(spec, now=keywords.get("now", 1.0))


def test_the_set_comes_back_in_the_order_of_application_with_checksums(registry: Registry, tmp_path: Path):
    put(registry, tmp_path, "calset_a", 60000.0)
    found = registry.find_set(60000.01)
    assert found is not None
    assert [p.name for p in found.paths] == ["calset_a_bpcal", "calset_a_gcal"]
    assert all(t.sha256 and len(t.sha256) == 64 for t in found.tables)
    assert (found.borrowed, round(found.age_days, 6)) == (False, 0.01)
    assert found.tables[0].cal_field == "3C48"


def test_the_nearest_in_time_wins_over_the_newest(registry: Registry, tmp_path: Path):
    put(registry, tmp_path, "near", 60000.0, now=1.0)
    put(registry, tmp_path, "far_but_new", 60000.015, now=2.0)
    chosen = registry.find_set(60000.001)
    assert chosen is not None
    assert chosen.set_name == "near"


def test_of_two_equally_near_the_newest_wins(registry: Registry, tmp_path: Path):
    put(registry, tmp_path, "first", 60000.0, now=1.0)
    put(registry, tmp_path, "again", 60000.0, now=2.0)
    chosen = registry.find_set(60000.0)
    assert chosen is not None
    assert chosen.set_name == "again"


def test_outside_every_window_a_set_of_the_strip_is_borrowed_and_said_so(registry: Registry, tmp_path: Path):
    put(registry, tmp_path, "tonight", 60000.0, dec=33.0)
    assert registry.find_set(60000.3, dec_deg=33.2) is None
    assert registry.find_set(60000.3, dec_deg=54.6, borrow_days=0.5) is None
    assert registry.find_set(60000.3, borrow_days=0.5) is None  # nobody knows that it is the same strip
    found = registry.find_set(60000.3, dec_deg=33.2, borrow_days=0.5)
    assert found is not None
    assert (found.borrowed, round(found.age_days, 3)) == (True, 0.3)
    assert registry.find_set(60000.6, dec_deg=33.2, borrow_days=0.5) is None


def test_a_set_of_another_strip_does_not_serve_even_in_its_window(registry: Registry, tmp_path: Path):
    put(registry, tmp_path, "a", 60000.0, dec=16.1)
    assert registry.find_set(60000.0, dec_deg=33.0) is None
    assert registry.find_set(60000.0, dec_deg=16.3) is not None
    assert registry.find_set(60000.0) is not None


def test_a_set_whose_table_is_gone_or_changed_is_passed_over(registry: Registry, tmp_path: Path):
    put(registry, tmp_path, "spoilt", 60000.0)
    put(registry, tmp_path, "sound", 60000.01)
    (tmp_path / "spoilt_gcal" / "table.dat").write_text("other")
    found = registry.find_set(60000.0)
    assert found is not None
    assert found.set_name == "sound"
    assert "has changed since it was registered" in found.passed_over[0]


def test_a_set_is_registered_whole_or_not_at_all(registry: Registry, tmp_path: Path):
    good = TableSpec(table(tmp_path, "x_bpcal"), "BP", 30)
    missing = TableSpec(tmp_path / "x_gcal", "G", 40)
    with pytest.raises(MissingError, match="x_gcal"):
        registry.register_set(SetSpec("x", (good, missing), 1.0, 2.0))
    assert registry.tables() == []


@pytest.mark.parametrize(
    ("start", "end"), [(2.0, 1.0), (1.0, 1.0), (float("nan"), 2.0), (1.0, float("inf"))]
)  # fmt: skip
def test_a_window_is_required_and_must_be_one(registry: Registry, tmp_path: Path, start: float, end: float):
    with pytest.raises(InputError, match="has the window"):
        registry.register_set(SetSpec("x", (TableSpec(table(tmp_path, "x_kcal"), "K", 10),), start, end))


def test_registering_again_replaces_the_set(registry: Registry, tmp_path: Path):
    put(registry, tmp_path, "a", 60000.0)
    spec = SetSpec("a", (TableSpec(tmp_path / "a_gcal", "G", 40),), 60000.0, 60001.0)
    registry.register_set(spec)
    assert [t.path for t in registry.tables("a")] == [str(tmp_path / "a_gcal")]


def test_a_retired_set_serves_nobody_and_keeps_the_reason(registry: Registry, tmp_path: Path):
    put(registry, tmp_path, "a", 60000.0)
    assert registry.retire("a", "bad refant") == 2
    assert registry.find_set(60000.0) is None
    assert {t.notes for t in registry.tables("a")} == {"bad refant"}
    (line,) = registry.sets()
    assert (line.set, line.rows, line.active, line.min_order, line.status) == ("a", 2, 0, 30, "retired")
    with pytest.raises(MissingError, match="no set nothing"):
        registry.retire("nothing", "x")


def test_a_rejected_solution_is_noted_and_serves_nobody(registry: Registry, tmp_path: Path):
    registry.register_failure("calset_g", "median SNR 2.1", mid_mjd=60000.0)
    (line,) = registry.sets()
    assert (line.status, line.reason, line.rows) == ("failed", "median SNR 2.1", 0)
    assert registry.find_set(60000.0) is None


def test_a_prefix_takes_known_suffixes_in_order_and_never_corrects_twice(registry: Registry, tmp_path: Path):
    for suffix in ("_2gcal", "_gpcal", "_gacal", "_bpcal", "_bacal", "_2kcal", "_kcal", "_fluxcal", "_notes"):
        table(tmp_path, f"obs_0{suffix}")
    rows = registry.register_prefix(
        tmp_path / "obs_0", name="s", valid_start_mjd=1.0, valid_end_mjd=2.0, cal_field="0", refant="103"
    )
    assert [(r.table_type, r.order_index) for r in rows] == [
        ("K", 10), ("BA", 20), ("BP", 30), ("GA", 40), ("GP", 50), ("FLUX", 70)
    ]  # fmt: skip
    assert Path(rows[0].path).name == "obs_0_kcal"
    assert registry.active_paths(mjd=1.5) == [Path(r.path) for r in rows]
    with pytest.raises(MissingError, match="no calibration table"):
        registry.register_prefix(tmp_path / "zzz", name="s", valid_start_mjd=1.0, valid_end_mjd=2.0)
    with pytest.raises(InputError, match="has no window"):
        registry.register_prefix(tmp_path / "obs_0", name="s", valid_start_mjd=None, valid_end_mjd=2.0)


def test_a_fast_delay_alone_is_a_delay():
    (spec,) = tables_of_prefix([Path("/c/x_2kcal")], cal_field=None, refant=None)
    assert (spec.table_type, spec.order_index) == ("K", 10)
    assert table_kind("x_2gcal") == ("2G", 60)
    assert table_kind("x_gcal") == ("G", 40)
    assert table_kind("x.ms") is None
