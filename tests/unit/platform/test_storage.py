"""A full disk fails, one that fills is warned of: as much as the next groups need, and those of the next hour."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from nightbeam.core.settings import Settings
from nightbeam.platform import storage
from nightbeam.platform.findings import Finding, Health
from nightbeam.platform.storage import Needs, directories_of, examine_storage, needs_of

GB = 1e9


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings.model_validate({"state_dir": tmp_path / "state", "elog": {"auth": "none"}}).resolved()


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch):
    """Let every file system have so much free."""

    def have(*, free: float = 1e15, inodes: int = 10**7) -> None:
        state = SimpleNamespace(f_bavail=int(free / 4096), f_frsize=4096, f_files=10**8, f_favail=inodes)
        monkeypatch.setattr(storage, "os", SimpleNamespace(**{**vars(os), "statvfs": lambda path: state}))

    return have


def of(findings: list[Finding], check: str) -> Finding:
    return next(f for f in findings if f.check == check)


@pytest.mark.parametrize(
    ("free_gb", "health"), [(5.0, Health.OK), (3.9, Health.WARN), (2.5, Health.WARN), (1.9, Health.FAIL)]
)
def test_below_what_the_next_groups_need_it_fails_and_below_what_the_next_hour_needs_it_is_warned_of(
    tmp_path: Path, disk, free_gb: float, health: Health
):
    disk(free=free_gb * GB)
    needs = {tmp_path: Needs(next=2 * GB, ahead=4 * GB)}
    assert of(examine_storage([tmp_path], needs), f"directory {tmp_path}").health is health


def test_directories_on_one_disk_share_what_is_free(tmp_path: Path, disk):
    disk(free=3 * GB)
    both = [tmp_path / "in", tmp_path / "out"]
    findings = examine_storage(both, {path: Needs(next=2 * GB, ahead=2 * GB) for path in both})
    assert {of(findings, f"directory {path}").health for path in both} == {Health.FAIL}
    (finding,) = examine_storage(both[:1], {both[0]: Needs(next=2 * GB, ahead=2 * GB)})[:1]
    assert finding.health is Health.OK


@pytest.mark.parametrize(("free", "health"), [(50_000, Health.OK), (5_000, Health.WARN), (500, Health.FAIL)])
def test_a_full_table_of_inodes_fails_and_a_filling_one_is_warned_of(tmp_path: Path, disk, free: int, health: Health):
    disk(inodes=free)
    assert of(examine_storage([tmp_path], {}), f"inodes {tmp_path}").health is health


def test_a_site_of_small_groups_needs_little_and_one_that_has_seen_none_is_only_warned(settings: Settings):
    c = settings.contimg
    assert (c.input_dir, c.output_dir, c.scratch_dir) != (None, None, None)
    settings.platform.pools["casa"] = 1
    # One group at a time: 2.33 GB come, 7.5 GB are asked for before it is converted, 5.1 GB are staged meanwhile.
    full = needs_of(settings, 2.33 * GB)
    assert sum(need.next for need in full.values()) == pytest.approx(14.9 * GB, rel=0.01)
    # Eleven more leave 2.33 GB of subbands and 5.1 GB of Measurement Set each.
    assert sum(need.ahead for need in full.values()) == pytest.approx((14.9 + 11 * 7.46) * GB, rel=0.01)
    assert sum(need.next for need in needs_of(settings, 1e6).values()) < 0.01 * GB
    unknown = needs_of(settings, None)
    assert {need.next for need in unknown.values()} == {0.0}
    assert sum(need.ahead for need in unknown.values()) == pytest.approx(14.9 * GB, rel=0.01)


def test_every_directory_that_is_written_to_is_probed(tmp_path: Path):
    told = {
        "state_dir": tmp_path / "state",
        "contimg": {"mosaic": {"output_dir": tmp_path / "mosaics"}, "ingest": {"set_aside_dir": tmp_path / "aside"}},
        "cxi": {"output_dir": tmp_path / "cxi"},
        "scans": {"output_dir": tmp_path / "scans"},
    }
    found = examine_storage(directories_of(Settings.model_validate(told).resolved()), {})
    checks = {finding.check for finding in found}
    assert {f"directory {tmp_path}/{name}" for name in ("state", "mosaics", "aside", "cxi", "scans")} <= checks
    assert not any("quarantine" in check for check in checks), "lies in another, and is not there yet"


def test_a_directory_that_cannot_be_made_is_a_failure(tmp_path: Path):
    (tmp_path / "file").touch()
    (finding,) = examine_storage([tmp_path / "file" / "below"], {})
    assert (finding.health, finding.found[:13]) == (Health.FAIL, "cannot write:")


def test_looking_leaves_nothing_behind(tmp_path: Path):
    before = list(tmp_path.iterdir())
    examine_storage([tmp_path / "new", tmp_path / "other"], {})
    assert list(tmp_path.iterdir()) == before
