"""Every fault by itself, taken in and converted by the real code, and what the audit says of the night after it."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nightbeam.catalog import Registry
from nightbeam.contimg import TOOLS, Site, Tools
from nightbeam.core.errors import MissingError
from nightbeam.core.files import sha256
from nightbeam.core.settings import Settings
from nightbeam.qa import Grade, Score
from nightbeam.simulate import FAULT_KINDS, Fault, SimulationSpec, Truth, simulate_subbands
from nightbeam.simulate.model import DUPLICATE_KINDS, FOREIGN_KINDS
from nightbeam.testing.audit import (
    Finding,
    Policy,
    audit_groups,
    audit_memory,
    audit_night,
    audit_processes,
    audit_runs,
    checksums,
    not_imaged,
)
from nightbeam.testing.rehearsal import live_through

pytestmark = pytest.mark.slow

SMALL = SimulationSpec(groups=2, antennas=4, channels=2, integrations=3, sources=0, seed=5)
POLICY = Policy(14, 1000.0)


class StandIns:
    """What comes after the conversion: leaves files where the real tools leave them, and makes no images."""

    def match(self, site: Site, ra_deg: float, dec_deg: float) -> list[Any]:
        return [SimpleNamespace(name="3C48", weighted_flux=12.0, stored=lambda: {"name": "3C48"})]

    def solve(self, site: Site, ms: Path, calibrator: Any, prefix: Path, **_: Any) -> Any:
        table = prefix.with_name(f"{prefix.name}_bpcal")
        table.mkdir(exist_ok=True)
        (table / "table.dat").write_text("B")
        made = SimpleNamespace(path=table, kind="BP", order_index=30, cal_field="0", refant="103")
        return SimpleNamespace(tables=[made], report=None)

    def apply(self, site: Site, ms: Path, tables: Any, **_: Any) -> Any:
        return SimpleNamespace(flagged_fraction=0.02, seconds=0.5)

    def image(self, site: Site, ms: Path, stem: Path, **_: Any) -> Any:
        stem.with_name(f"{stem.name}.image.pbcor.fits").write_text(stem.name)
        return self.finished_image(stem)

    def finished_image(self, stem: Path) -> Any:
        fits = stem.with_name(f"{stem.name}.image.pbcor.fits")
        if not fits.is_file():
            raise MissingError(f"{fits} is gone")
        return SimpleNamespace(
            stem=stem, path=fits, fits={"pbcor": fits}, png=fits.with_suffix(".png"), sha256={fits.name: sha256(fits)},
            noise_jy=0.01, noise_centre_jy=0.009, peak_jy=5.0, dynamic_range=500.0, beam_major_arcsec=30.0,
            beam_minor_arcsec=20.0, beam_pa_deg=10.0, ra_deg=71.0, dec_deg=33.1, cell_arcsec=5.0, freq_hz=1.4e9,
            bandwidth_hz=1.8e8, integration_s=38.7, mid_mjd=60950.0, imsize=512, parameters={"niter": 5}, version="1",
            seconds=1.5,
        )  # fmt: skip

    def judge(self, site: Site, product: Any) -> Any:
        return SimpleNamespace(good=True, reasons=())

    def write_qa(self, site: Site, group_id: str, **_: Any) -> Any:
        path = site.qa_dir() / group_id / "image.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("png")
        score = Score("noise", 10.0, "mJy/beam", 0.9, Grade.GOOD, "the noise is 10 mJy/beam")
        return SimpleNamespace(artifacts=(SimpleNamespace(name="image.png", path=path),), scores=(score,))

    def tools(self) -> Tools:
        ours = ("match", "solve", "apply", "image", "finished_image", "judge", "write_qa")
        return replace(TOOLS, **{name: getattr(self, name) for name in ours})


@dataclass
class Rehearsed:
    """A night that was lived through."""

    site: Site
    truth: Truth
    sums: dict[str, str]

    def audit(self) -> list[Finding]:
        return audit_night(self.site, self.truth, self.sums, policy=POLICY, judge=lambda *_: "")

    def wrong(self) -> dict[str, tuple[str, str]]:
        return {f"{one.what} {one.subject}": (one.expected, one.found) for one in self.audit() if not one.right}


def rehearsed(place: Path, *faults: str, **more: Any) -> Rehearsed:
    """Simulate, and let the library live through it."""
    spec = replace(SMALL, faults=tuple(Fault.parse(text) for text in faults), **more)
    truth = simulate_subbands(place / "sky", spec)
    ingest = {
        "settle_s": 0.0, "min_subbands": 14, "partial_after_s": POLICY.timeout_s,
        "collecting_timeout_s": 2.0 * POLICY.timeout_s, "bad_file_wait_s": 60.0,
    }  # fmt: skip
    contimg = {"ingest": ingest, "convert": {"max_workers": 1}}
    site = Site.from_settings(Settings.model_validate({"state_dir": place / "state", "contimg": contimg}))
    live_through(site, place / "sky", truth, tools=StandIns().tools(), look_every_s=200.0)
    return Rehearsed(site, truth, checksums(place / "sky", (arrival.name for arrival in truth.arrivals)))


@pytest.fixture(scope="module", autouse=True)
def _tables_of_stand_ins() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nightbeam.catalog.registry.check_table", lambda path: None)
        patch.setattr(Site, "registry", lambda self: Registry(self.registry_url, check=lambda path: None))
        yield


#: Each in a group of its own, which nothing else happens to.
ALONE = (
    "missing-subband:5", "missing-subband:5 missing-subband:6 missing-subband:7", "late-subband:5",
    "late-subband:5=5000", "dead-antenna", "truncated-subband:5", "zero-byte:5", "nan-block:5", "restart-gap=412/1",
    "restart-gap=605", "clock-jump:5=82", "clock-jump:5=-618", "rfi-line:5", "rfi-burst", "wrong-pointing",
    "wrong-pointing:5", " ".join(f"zero-byte:{number}" for number in range(16)),
    *(f"duplicate-subband:5={kind}" for kind in DUPLICATE_KINDS), *(f"foreign-file:5={kind}" for kind in FOREIGN_KINDS),
)  # fmt: skip


@pytest.fixture(scope="module")
def one_by_one(tmp_path_factory: pytest.TempPathFactory) -> tuple[Rehearsed, dict[str, list[Finding]]]:
    """A night of a group for each fault, and what was found of each group and its files."""
    faults = [f"{fault}@{k}" for k, several in enumerate(ALONE) for fault in several.split()]
    night = rehearsed(tmp_path_factory.mktemp("one"), *faults, groups=len(ALONE) + 1)
    group_of = {arrival.name: arrival.group_id for arrival in night.truth.arrivals}
    found: dict[str, list[Finding]] = {group.group_id: [] for group in night.truth.groups} | {"": []}
    for finding in night.audit():
        group = group_of.get(finding.subject, finding.subject)
        found[group if group in found else ""].append(finding)
    return night, found


@pytest.mark.parametrize("faults", ALONE, ids=[one[:40] for one in ALONE])
def test_a_fault_alone_leads_to_what_is_stated_for_each_file_and_for_the_group(one_by_one, faults: str):
    night, found = one_by_one
    group = night.truth.groups[ALONE.index(faults)]
    assert {event.kind for event in night.truth.events if event.group_id == group.group_id} <= set(FAULT_KINDS)
    assert len(found[group.group_id]) > 3 * len(group.files), "each file, its bytes and its place were looked at"
    assert [finding for finding in found[group.group_id] if not finding.right] == []


def test_nothing_else_is_amiss_after_all_faults_and_each_kind_is_among_them(one_by_one):
    night, found = one_by_one
    assert {event.kind for event in night.truth.events} == set(FAULT_KINDS)
    assert [finding for finding in (*found[""], *found[night.truth.groups[-1].group_id]) if not finding.right] == []


def test_every_group_that_has_no_image_is_listed_with_its_reason(one_by_one):
    night, _ = one_by_one
    stated = {group.group_id: POLICY.stated(night.truth, group.group_id) for group in night.truth.groups}
    without = {name: one.state for name, one in stated.items() if one.state in ("failed", "absent")}
    listed = {one["group"]: one for one in not_imaged(night.site, night.truth)}
    assert without.items() <= {name: one["state"] for name, one in listed.items()}.items()
    assert sorted(without.values()) == ["absent", "failed"]
    assert all(one["reason"] for one in listed.values())


def test_all_faults_mixed_and_real_arrivals_lead_to_what_is_stated(tmp_path: Path):
    night = rehearsed(tmp_path, groups=14, fault_rate=1.0, arrivals="real")
    one_header = [one for one in night.truth.events if one.kind == "wrong-pointing" and one.file_outcome == "bad"]
    assert {event.kind for event in night.truth.events} == set(FAULT_KINDS)
    assert not one_header, "the ingest does not compare pointings yet: draw with another seed"
    assert night.wrong() == {}


def test_the_audit_finds_what_is_lost_changed_doubled_or_left(tmp_path: Path):
    night = rehearsed(tmp_path, "zero-byte:5@0", "truncated-subband:6@0")
    site, (partial, whole) = night.site, night.truth.groups
    assert night.wrong() == {}

    def only(what: str, subject: Path | str) -> None:
        assert set(night.wrong()) == {f"{what} {subject}"}

    file = site.input_dir / whole.files[3]
    content = file.read_bytes()
    file.unlink()
    only("bytes", file.name)
    file.write_bytes(content[:-1] + b"x")
    only("bytes", file.name)
    file.write_bytes(content)
    (row,) = (row for row in site.queue().set_aside.rows() if "sb06" in row.original_path)
    back = Path(row.path).rename(site.input_dir / "elsewhere")
    assert {one.split()[0] for one in night.wrong()} == {"bytes", "strangers"}
    back.rename(row.path)
    (site.scratch_dir / "left").touch()
    only("scratch", site.scratch_dir)
    (site.scratch_dir / "left").unlink()
    image = Path(site.products().images(group_id=whole.group_id)[0].path)
    image.write_text("another")
    only("image as recorded", whole.group_id)
    image.write_text(image.name.removesuffix(".image.pbcor.fits"))
    site.queue().drop_receipts(partial.group_id, ["qa"])
    only("steps with a receipt", partial.group_id)
    (attempt,) = site.queue().attempts(partial.group_id)
    columns = "group_id, attempt, started_at, ended_at, outcome"
    for ended_at, wrong in ((None, True), (attempt.started_at + 5.0, True), (attempt.started_at - 5.0, False)):
        begin = attempt.started_at - 60.0
        with closing(sqlite3.connect(site.queue_url.removeprefix("sqlite:///"))) as base, base:
            values = (partial.group_id, attempt.attempt - 1, begin, ended_at, "lost")
            base.execute(f"INSERT OR REPLACE INTO attempts ({columns}) VALUES (?, ?, ?, ?, ?)", values)
        assert (f"attempts at once {partial.group_id}" in night.wrong()) is wrong
    strict = audit_groups(site, night.truth, policy=Policy(None, POLICY.timeout_s))
    assert {(one.subject, one.expected, one.found) for one in strict if one.what == "group" and not one.right} == {
        (partial.group_id, "failed", "partial")
    }
    site.products().upsert_image(
        image.with_name("again"), ms_path=site.ms_path(whole.group_id), group_id=whole.group_id
    )
    assert {"rows of images", "imaged twice"} <= {one.what for one in night.audit() if not one.right}


def test_memory_is_flat_or_grows_and_a_short_life_says_nothing():
    flat = [(float(t), "server", 1, 2e8 + 1e6 * (t % 3)) for t in range(0, 3600, 10)]
    leaks = [(float(t), "worker", 2, 1e8 + 3e4 * t) for t in range(0, 3600, 10)]
    short = [(float(t), "page", 3, 1e8 * (1 + t)) for t in range(0, 500, 10)]
    findings, slopes = audit_memory([*flat, *leaks, *short])
    assert {one.subject: one.right for one in findings} == {"server (1)": True, "worker (2)": False}
    assert slopes[1]["mb_an_hour"] == pytest.approx(3e4 * 3600.0 / 1e6, rel=1e-6)
    assert abs(slopes[0]["mb_an_hour"]) < 0.5


def test_a_run_of_a_group_that_is_at_work_when_all_is_over_is_wrong():
    runs = [{"name": f"run {n}", "state_type": state} for n, state in enumerate(("COMPLETED", "CRASHED", "PENDING"))]
    assert audit_runs(runs[:2]).right
    assert audit_runs(runs).found == "run 2 PENDING"


def test_a_process_of_a_platform_without_an_ancestor_there_is_an_orphan(tmp_path: Path):
    script = "import sys; print('up', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", script],
        env={**os.environ, "PREFECT_HOME": str(tmp_path), "PREFECT__FLOW_RUN_ID": "a-run"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert audit_processes(tmp_path, {os.getpid()}).right
        assert audit_processes(tmp_path, {process.pid}).right
        assert audit_processes(tmp_path, ()).found.startswith(f"{process.pid} ")
        assert audit_processes(tmp_path, (), at_work=["a-run"]).right
        assert process.stdin is not None
        process.stdin.close()
    assert audit_processes(tmp_path, ()).right
