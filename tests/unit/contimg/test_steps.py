"""The steps of a group with stand-ins for the tools: order, receipts, failures, waiting, what the databases say."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nightbeam.catalog import FileFact, GroupFact, Owner, Registry, SetSpec, State, TableSpec
from nightbeam.contimg import (
    Site,
    Tools,
    claim_group,
    finish,
    make_quality,
    run_group,
    scan_arrivals,
    take_dispatchable,
)
from nightbeam.contimg import this_process as me
from nightbeam.contimg.model import ConvertReceipt
from nightbeam.contimg.room import may_dispatch
from nightbeam.core.errors import (
    BusyError,
    InputError,
    MissingError,
    RejectedError,
    ResourceError,
    StorageError,
    ToolError,
)
from nightbeam.core.locks import sole_owner
from nightbeam.qa import Grade, Score
from nightbeam.rfi import FlagReport

pytestmark = pytest.mark.slow

G = "2025-10-02T01:02:03"
START_JD = 2460950.5 + (3723.25 / 86400)
MID = 60950.0 + (3723.25 / 86400) + 0.0018


@dataclass
class Fakes:
    """Stand-ins that leave files, count their calls, and fail where they are told to."""

    fail: dict[str, Exception] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    calibrator: bool = True
    good: bool = True
    taken_back: bool = False
    missing: tuple[int, ...] = ()
    expected_subbands: int = 0

    def _called(self, name: str) -> None:
        self.calls.append(name)
        if name in self.fail:
            raise self.fail[name]

    def read_header(self, path: Path) -> Any:
        if not path.read_text():
            raise InputError(f"{path.name} is empty")
        return SimpleNamespace(subband=None, start_jd=START_JD, mid_jd=START_JD + 0.0018, dec_rad=0.5773)

    def convert(self, site: Site, files: Any, ms: Path, *, expected_subbands: int, scratch: Path) -> Any:
        self._called("convert")
        self.expected_subbands = expected_subbands
        ms.mkdir(parents=True, exist_ok=True)
        (ms / "table.dat").write_text("ms")
        return SimpleNamespace(
            ms=ms, writer_type="direct-subband", rows=48, n_spw=len(files), missing_subbands=self.missing,
            start_mjd=MID - 0.0018,
            mid_mjd=MID, end_mjd=MID + 0.0018, ra_deg=71.0, dec_deg=33.1, flagged_fraction=0.01,
            load_s=1.0, phase_s=2.0, write_s=3.0, total_s=6.5,
        )  # fmt: skip

    def flag(self, site: Site, ms: Path, *, work: Path, log: Path) -> Any:
        self._called("flag")
        assert work.is_dir()
        return FlagReport(
            engine="aoflagger",
            version="3.1",
            strategy="default",
            strategy_sha256="",
            before=0.01,
            after=0.04,
            seconds=2.0,
        )

    def verify_ms(self, site: Site, ms: Path, rows: int, *, applied: bool = False) -> None:
        if not (ms / "table.dat").is_file():
            raise MissingError(f"no Measurement Set {ms}")
        if applied and self.taken_back:
            raise InputError(f"{ms.name} has no CORRECTED_DATA")

    def read_ms(self, ms: Path, *, prove: bool = False) -> Any:
        self._called("read_ms")
        if not (ms / "table.dat").is_file():
            raise InputError(f"{ms} is no Measurement Set")
        start = float((ms / "table.dat").read_text().removeprefix("start "))
        return SimpleNamespace(
            start_mjd=start - 6.442450944 / 86400, mid_mjd=start + 0.0018, end_mjd=start + 0.0036, rows=48, n_spw=16,
            integration_s=12.884901888, flagged_fraction=0.01, fields=[SimpleNamespace(ra_deg=71.0, dec_deg=33.1)],
        )  # fmt: skip

    def match(self, site: Site, ra_deg: float, dec_deg: float) -> list[Any]:
        self._called("match")
        found = SimpleNamespace(name="3C48", weighted_flux=12.0, stored=lambda: {"name": "3C48", "weighted_flux": 12.0})
        return [found] if self.calibrator else []

    def solve(self, site: Site, ms: Path, calibrator: Any, prefix: Path, **_: Any) -> Any:
        self._called("solve")
        tables = []
        for kind, order in (("BP", 30), ("GA", 40)):
            path = prefix.with_name(f"{prefix.name}_{kind.lower()}cal")
            path.mkdir(exist_ok=True)
            (path / "table.dat").write_text(kind)
            tables.append(SimpleNamespace(path=path, kind=kind, order_index=order, cal_field="0", refant="103"))
        return SimpleNamespace(tables=tables, report=None)

    def apply(self, site: Site, ms: Path, tables: Any, *, work: Path, log: Path) -> Any:
        self._called("apply")
        assert work.is_dir()
        return SimpleNamespace(flagged_fraction=0.02, seconds=0.5)

    def image(self, site: Site, ms: Path, stem: Path, *, provenance: Any, work: Path, log: Path) -> Any:
        self._called("image")
        fits = stem.with_name(stem.name + ".image.pbcor.fits")
        fits.write_text(json.dumps(dict(provenance)))
        return self.finished_image(stem)

    def finished_image(self, stem: Path) -> Any:
        fits = stem.with_name(stem.name + ".image.pbcor.fits")
        if not fits.is_file():
            raise MissingError(f"{fits} is gone")
        return SimpleNamespace(
            stem=stem, path=fits, fits={"pbcor": fits}, png=fits.with_suffix(".png"),
            sha256={fits.name: "ab"},
            noise_jy=0.01, noise_centre_jy=0.009, peak_jy=5.0, dynamic_range=500.0, beam_major_arcsec=30.0,
            beam_minor_arcsec=20.0, beam_pa_deg=10.0, ra_deg=71.0, dec_deg=33.1, cell_arcsec=5.0, freq_hz=1.4e9,
            bandwidth_hz=1.8e8, integration_s=309.2, mid_mjd=MID, imsize=512, parameters={"niter": 5}, version="1",
            seconds=1.5,
        )  # fmt: skip

    def judge(self, site: Site, product: Any) -> Any:
        reasons = () if self.good else ("peak 2.0 times the noise", "beam 500 arcsec")
        return SimpleNamespace(good=self.good, reasons=reasons)

    def write_qa(self, site: Site, group_id: str, **_: Any) -> Any:
        self._called("qa")
        path = site.qa_dir() / group_id / "image.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("png")
        score = Score("noise", 10.0, "mJy/beam", 0.9, Grade.GOOD, "the noise is 10 mJy/beam")
        return SimpleNamespace(artifacts=(SimpleNamespace(name="image.png", path=path),), scores=(score,))

    def tools(self) -> Tools:
        return Tools(**{f.name: getattr(self, f.name) for f in dataclasses.fields(Tools)})


@pytest.fixture
def site(tmp_path: Path, contimg_databases: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Site:
    from nightbeam.core.settings import Settings

    monkeypatch.setattr("nightbeam.catalog.registry.check_table", lambda path: None)
    monkeypatch.setattr(Site, "registry", lambda self: Registry(self.registry_url, check=_is_there))
    monkeypatch.setattr("nightbeam.contimg.steps._LOCK_WAIT_S", 0.1)
    contimg = {"ingest": {"settle_s": 0}, **contimg_databases}
    settings = Settings.model_validate({"state_dir": tmp_path / "state", "contimg": contimg})
    site = Site.from_settings(settings)
    site.input_dir.mkdir(parents=True)
    return site


def _is_there(path: Path) -> None:
    if not path.is_dir():
        raise MissingError(f"no calibration table {path}")


def arrive(site: Site, n: int = 16) -> None:
    for sb in range(n):
        (site.input_dir / f"2025-10-02T01:02:{sb % 7:02d}_sb{sb:02d}.hdf5").write_text("data")


@pytest.fixture
def fakes(site: Site) -> Fakes:
    fakes = Fakes()
    arrive(site)
    scan_arrivals(site, tools=fakes.tools())
    return fakes


def put_set(site: Site, name: str, mid: float) -> None:
    path = site.output_dir / f"{name}_bpcal"
    path.mkdir(parents=True, exist_ok=True)
    spec = SetSpec(name, (TableSpec(path, "BP", 30),), mid - 0.02, mid + 0.02, mid_mjd=mid, dec_deg=33.1)
    site.registry().register_set(spec)


def test_a_group_goes_from_files_to_an_image_and_every_table_says_so(site: Site, fakes: Fakes):
    outcome = run_group(site, G, tools=fakes.tools())
    assert (outcome.state, outcome.calibration_set) == ("completed", f"calset_{G}")
    assert fakes.calls == ["convert", "match", "solve", "apply", "image", "qa"]
    row = site.queue().group(G)
    assert (row.state, row.processing_stage, row.owner, row.has_calibrator) == ("completed", "completed", None, 1)
    (image,) = site.products().images()
    assert (image.group_id, image.noise_jy, image.pbcor, image.type) == (G, 0.01, 1, "5min")
    assert (image.calibration_set, image.cal_borrowed) == (f"calset_{G}", 0)
    (ms,) = site.products().ms_index()
    assert (ms.stage, ms.status, ms.cal_applied, ms.n_rows) == ("imaged", "done", 1, 48)
    assert ms.imagename == str(site.image_stem(G))
    measured = site.queue().performance(G)
    assert measured is not None
    assert (measured.load_time, measured.phase_time, measured.write_time, measured.total_time) == (1.0, 2.0, 3.0, 6.5)
    assert [a.name for a in site.products().qa_artifacts(G)] == ["image.png"]
    (score,) = site.products().scores("group", G)
    assert (score.name, score.verdict, score.reason) == ("noise", "good", "the noise is 10 mJy/beam")
    said = json.loads(Path(image.path).read_text())
    assert (said["calibration_set"], said["calibration_borrowed"]) == (f"calset_{G}", "no")
    (line,) = site.registry().sets()
    assert (line.set, line.active, line.calibrator) == (f"calset_{G}", 2, "3C48")
    assert list(site.scratch_dir.iterdir()) == []


def test_interference_is_flagged_once_before_calibration_where_that_is_set(site: Site, fakes: Fakes):
    flagging = dataclasses.replace(site, flag=site.flag.model_copy(update={"engine": "aoflagger"}))
    run_group(flagging, G, tools=fakes.tools())
    assert fakes.calls == ["convert", "flag", "match", "solve", "apply", "image", "qa"]
    receipt = site.queue().receipt(G, "convert")
    assert receipt is not None
    assert (receipt["flagged_fraction"], receipt["flagging"]["before"], receipt["flagging"]["after"]) == (
        0.04,
        0.01,
        0.04,
    )
    (image,) = site.products().images()
    assert json.loads(Path(image.path).read_text())["flagger"] == "aoflagger 3.1 (default)"


def test_a_flagger_that_fails_is_asked_again_and_too_much_interference_is_final(site: Site, fakes: Fakes):
    flagging = dataclasses.replace(site, flag=site.flag.model_copy(update={"engine": "aoflagger"}))
    fakes.fail["flag"] = ToolError("AOFlagger was killed by signal 9")
    with pytest.raises(ToolError):
        run_group(flagging, G, tools=fakes.tools())
    assert site.queue().group(G).state == "pending"
    assert site.queue().receipt(G, "convert") is None
    fakes.fail["flag"] = RejectedError("60 % are flagged")
    with pytest.raises(RejectedError):
        run_group(flagging, G, tools=fakes.tools())
    assert site.queue().group(G).state == "failed"


def test_a_receipt_of_before_there_was_a_flagger_is_still_read():
    old = {"group_id": G, "ms": "x.ms", "writer_type": "direct", "rows": 1, "n_spw": 1, "missing_subbands": []}
    old |= dict.fromkeys(("start_mjd", "mid_mjd", "end_mjd", "ra_deg", "dec_deg", "flagged_fraction", "total_s"), 0.5)
    old |= dict.fromkeys(("load_s", "phase_s", "write_s"))
    found = ConvertReceipt.from_json(old)
    assert found is not None
    assert found.flagging is None
    assert ConvertReceipt.from_json({**old, "strange": 1}) is None
    del old["ms"]
    assert ConvertReceipt.from_json(old) is None


def test_a_partial_group_is_measured_against_the_whole_band(site: Site):
    # Else the subbands that are missing at the end of the band would not be listed as missing.
    fakes = Fakes()
    arrive(site, 14)
    scan_arrivals(site, tools=fakes.tools())
    assert site.queue().reprocess(G, force=True).partial == 1
    assert run_group(site, G, tools=fakes.tools()).state == "completed"
    assert fakes.expected_subbands == 16


def test_a_file_that_came_after_the_group_was_taken_is_not_in_what_is_called_partial(site: Site):
    fakes = Fakes()
    arrive(site, 14)
    scan_arrivals(site, tools=fakes.tools())
    queue = site.queue()
    queue.reprocess(G, force=True)
    queue.claim(G, me("worker"))
    arrive(site, 16)
    assert len(scan_arrivals(site, tools=fakes.tools()).late) == 2
    queue.release(G, me("worker"))
    for subbands, partial in ((14, 1), (16, 0)):
        run_group(site, G, tools=fakes.tools())
        ms = site.products().ms(site.ms_path(G))
        assert ms is not None
        assert (ms.n_spw, ms.partial) == (subbands, partial)
        queue.reprocess(G)


@pytest.mark.parametrize("step", ["convert", "solve", "apply", "image", "qa"])
def test_whatever_fails_ends_failed_with_its_reason_after_three_attempts(site: Site, fakes: Fakes, step: str):
    fakes.fail[step] = ToolError(f"{step} fell over")
    for attempt in (1, 2, 3):
        with pytest.raises(ToolError, match="fell over"):
            run_group(site, G, tools=fakes.tools())
        assert site.queue().group(G).state == ("failed" if attempt == 3 else "pending")
    row = site.queue().group(G)
    assert row.error == f"{step} fell over"
    assert [a.outcome for a in site.queue().attempts(G)] == ["failed"] * 3
    assert {m.status for m in site.products().ms_index()} <= {"failed"}
    with pytest.raises(InputError, match="is failed, not pending"):
        run_group(site, G, tools=fakes.tools())


def test_a_failed_applycal_is_said_in_the_index(site: Site, fakes: Fakes):
    fakes.fail["apply"] = ToolError("applycal: SEVERE")
    with pytest.raises(ToolError):
        run_group(site, G, tools=fakes.tools())
    (ms,) = site.products().ms_index()
    assert (ms.stage, ms.cal_applied) == ("applycal_failed", 0)


@pytest.mark.parametrize("error", [InputError("sb03 is not HDF5"), RejectedError("all flagged")])
def test_data_at_fault_are_failed_at_once(site: Site, fakes: Fakes, error: Exception):
    fakes.fail["convert"] = error
    with pytest.raises(type(error)):
        run_group(site, G, tools=fakes.tools())
    assert site.queue().group(G).state == "failed"
    assert len(site.queue().attempts(G)) == 1


@pytest.mark.parametrize("step", ["convert", "solve", "apply", "image"])
def test_a_full_disk_fails_no_group_however_often_it_stops_it(site: Site, fakes: Fakes, step: str):
    fakes.fail[step] = StorageError("no space left for x")
    for _ in range(site.ingest.max_retries + 1):
        with pytest.raises(StorageError):
            run_group(site, G, tools=fakes.tools())
    row = site.queue().group(G)
    assert (row.state, row.retry_count, row.error) == ("pending", 0, "no space left for x")
    assert {a.outcome for a in site.queue().attempts(G)} == {"disk"}
    fakes.fail.clear()
    assert run_group(site, G, tools=fakes.tools()).state == "completed"


def test_want_of_memory_fails_no_group_and_holds_the_others_back(site: Site, fakes: Fakes):
    fakes.fail["image"] = ResourceError("image takes 3 GB, 1 GB is free on this machine")
    for _ in range(site.ingest.max_retries + 1):
        with pytest.raises(ResourceError):
            run_group(site, G, tools=fakes.tools())
    row = site.queue().group(G)
    assert (row.state, row.retry_count, {a.outcome for a in site.queue().attempts(G)}) == ("pending", 0, {"memory"})
    (stopped,) = site.queue().stopped()
    assert may_dispatch(site, 4, now=(stopped.ended_at or 0.0) + 5.0)[0] == 0
    fakes.fail.clear()
    assert run_group(site, G, tools=fakes.tools()).state == "completed"


@pytest.mark.usefixtures("fakes")
def test_a_set_whose_tables_are_gone_is_not_chosen_and_the_reason_says_so(site: Site, fakes: Fakes):
    fakes.calibrator = False
    put_set(site, "near", MID + 0.001)
    put_set(site, "far", MID + 0.01)
    shutil.rmtree(site.output_dir / "near_bpcal")
    (near, far) = sorted(site.registry().sets(), key=lambda line: line.set, reverse=True)
    assert (near.status, near.reason) == ("active", f"1 of 1 tables are gone: {site.output_dir / 'near_bpcal'}")
    assert far.reason is None
    assert run_group(site, G, tools=fakes.tools()).calibration_set == "far"


def test_a_group_waits_where_the_only_set_has_lost_its_tables_and_goes_on_with_the_next(site: Site, fakes: Fakes):
    fakes.calibrator = False
    put_set(site, "lost", MID)
    shutil.rmtree(site.output_dir / "lost_bpcal")
    assert run_group(site, G, tools=fakes.tools()).state == "waiting_for_gains"
    row = site.queue().group(G)
    gone = f"no calibration table {site.output_dir / 'lost_bpcal'}"
    assert row.error == f"no calibration set for MJD {MID:.5f}; lost would serve, but {gone}"
    assert take_dispatchable(site, 5) == [], "the broken set does not wake it"
    put_set(site, "next", MID)
    assert [d.group_id for d in take_dispatchable(site, 5)] == [G]


def test_tables_that_vanish_after_they_were_chosen_cost_an_attempt_and_another_set_is_taken(site: Site, fakes: Fakes):
    fakes.calibrator = False
    put_set(site, "first", MID)
    put_set(site, "second", MID + 0.01)
    apply = fakes.apply

    def lose(*args: Any, **more: Any) -> Any:
        shutil.rmtree(site.output_dir / "first_bpcal")
        raise MissingError(f"no calibration table {site.output_dir / 'first_bpcal'}")

    fakes.apply = lose  # type: ignore[method-assign]
    with pytest.raises(MissingError):
        run_group(site, G, tools=fakes.tools())
    assert site.queue().group(G).state == "pending"
    fakes.apply = apply  # type: ignore[method-assign]
    outcome = run_group(site, G, tools=fakes.tools())
    assert (outcome.state, outcome.calibration_set) == ("completed", "second")


@pytest.mark.usefixtures("fakes")
def test_the_dispatch_stands_back_while_a_disk_has_no_room(site: Site, monkeypatch: pytest.MonkeyPatch):
    room = SimpleNamespace(free=0)
    monkeypatch.setattr("nightbeam.core.files.shutil.disk_usage", lambda _: room)
    monkeypatch.setattr(site.queue().__class__, "bytes_of", lambda _self, _ids: {G: 1_000_000_000})
    assert may_dispatch(site, 4) == (0, f"group {G} needs 3.20 GB in {there(site.output_dir)}, 0.00 GB are free")
    assert take_dispatchable(site, 4) == []
    room.free = 3_300_000_000
    assert [d.group_id for d in take_dispatchable(site, 4)] == [G]


def test_no_group_is_begun_and_none_is_lost_while_the_input_directory_is_away(site: Site, fakes: Fakes):
    away = site.input_dir.with_name("away")
    site.input_dir.rename(away)
    with pytest.raises(MissingError, match="no input directory"):
        scan_arrivals(site, tools=fakes.tools())
    assert take_dispatchable(site, 5) == []
    site.input_dir.mkdir()  # the mount point without its mount
    report = scan_arrivals(site, tools=fakes.tools())
    assert (report.changed, report.expired, report.bad, report.counts["pending"]) == ((), (), {}, 1)
    assert may_dispatch(site, 5) == (0, f"the input directory {site.input_dir} is empty; is it mounted?")
    site.input_dir.rmdir()
    away.rename(site.input_dir)
    report = scan_arrivals(site, tools=fakes.tools())
    assert (report.new_files, report.late, report.duplicates) == (0, (), ())
    assert [d.group_id for d in take_dispatchable(site, 5)] == [G]
    assert len(site.queue().subbands(G)) == 16


def test_a_machine_that_does_not_see_the_input_directory_spends_no_attempt(site: Site, fakes: Fakes):
    away = site.input_dir.with_name("away")
    site.input_dir.rename(away)
    site.input_dir.mkdir()
    with pytest.raises(BusyError, match=r"cannot be converted on .* is empty; is it mounted"):
        run_group(site, G, tools=fakes.tools())
    row = site.queue().group(G)
    assert (row.state, row.attempts, row.retry_count) == ("pending", 0, 0)
    site.input_dir.rmdir()
    away.rename(site.input_dir)
    fakes.fail["image"] = ToolError("it died")
    with pytest.raises(ToolError):
        run_group(site, G, tools=fakes.tools())
    fakes.fail.clear()
    site.input_dir.rename(away)
    assert run_group(site, G, tools=fakes.tools()).state == "completed", "its Measurement Set is there"


def test_groups_that_are_converted_wait_neither_for_input_nor_for_room(
    site: Site, fakes: Fakes, monkeypatch: pytest.MonkeyPatch
):
    other = "2025-10-01T00:00:00"
    files = [FileFact(0, site.input_dir / f"{other}_sb00.hdf5", size_bytes=10**9)]
    site.queue().record(GroupFact(other, 60949.0), files, expected_subbands=1)
    fakes.fail["image"] = ToolError("it died")
    with pytest.raises(ToolError):
        run_group(site, G, tools=fakes.tools())
    with monkeypatch.context() as patched:
        patched.setattr("nightbeam.core.files.shutil.disk_usage", lambda _: SimpleNamespace(free=0))
        assert [d.group_id for d in take_dispatchable(site, 4)] == [G], "the older one is to be converted"
    for path in site.input_dir.iterdir():
        path.unlink()
    assert [d.group_id for d in take_dispatchable(site, 4, resend_after_s=-1.0)] == [G]


def test_an_input_directory_that_goes_while_it_is_read_costs_no_more_than_an_attempt(site: Site, fakes: Fakes):
    away = site.input_dir.with_name("away")
    assert claim_group(site, G, owner=me()).claimed
    site.input_dir.rename(away)
    with pytest.raises(MissingError, match="cannot find"):
        run_group(site, G, tools=fakes.tools())
    row = site.queue().group(G)
    assert (row.state, row.retry_count) == ("pending", 1)
    away.rename(site.input_dir)
    assert run_group(site, G, tools=fakes.tools()).state == "completed"


def there(path: Path) -> Path:
    return next(p for p in (path, *path.parents) if p.is_dir())


@pytest.mark.parametrize(("blocks", "inodes", "what"), [(1, 10**6, "4.10 kB"), (10**6, 3, "3 inodes")])
def test_a_full_disk_is_asked_for_before_any_database(
    site: Site, monkeypatch: pytest.MonkeyPatch, blocks: int, inodes: int, what: str
):
    found = SimpleNamespace(f_bavail=blocks, f_frsize=4096, f_files=10**6, f_favail=inodes)
    monkeypatch.setattr("nightbeam.core.files.os.statvfs", lambda _: found)
    monkeypatch.setattr(Site, "queue", lambda _self: pytest.fail("SQLite cannot be read on a full disk"))
    limit, why = may_dispatch(site, 4)
    assert limit == 0
    assert what in why


def test_a_directory_that_cannot_be_made_is_a_matter_of_the_disk(
    site: Site, fakes: Fakes, monkeypatch: pytest.MonkeyPatch
):
    real = Path.mkdir

    def broken(path: Path, *args: Any, **told: Any) -> None:
        if path == site.output_dir:
            raise OSError(errno.EROFS, "Read-only file system")
        real(path, *args, **told)

    monkeypatch.setattr(Path, "mkdir", broken)
    with pytest.raises(StorageError, match="Read-only"):
        run_group(site, G, tools=fakes.tools())
    assert site.queue().group(G).retry_count == 0


def test_after_a_disk_has_stopped_a_group_one_at_a_time_is_tried(site: Site, fakes: Fakes):
    fakes.fail["convert"] = StorageError("cannot write x: Input/output error")
    with pytest.raises(StorageError):
        run_group(site, G, tools=fakes.tools())
    (stopped,) = site.queue().stopped()
    assert stopped.ended_at is not None
    assert may_dispatch(site, 4, now=stopped.ended_at + 59.0)[0] == 0
    limit, why = may_dispatch(site, 4, now=stopped.ended_at + 60.0)
    assert limit == 1
    assert why == f"{G} was stopped 60 s ago: cannot write x: Input/output error"
    assert may_dispatch(site, 4, now=stopped.ended_at - 3600.0)[0] == 1, "a clock that was set back holds nobody up"
    claim_group(site, G, owner=me())
    assert may_dispatch(site, 4, now=stopped.ended_at + 60.0) == (4, "")


def test_a_bad_image_is_not_recorded_and_the_group_is_failed_with_every_reason(site: Site, fakes: Fakes):
    fakes.good = False
    with pytest.raises(RejectedError):
        run_group(site, G, tools=fakes.tools())
    row = site.queue().group(G)
    assert row.state == "failed"
    assert "peak 2.0 times the noise; beam 500 arcsec" in (row.error or "")
    assert site.products().images() == []


def test_a_retry_goes_on_after_the_last_finished_step(site: Site, fakes: Fakes):
    fakes.fail["image"] = ToolError("tclean was killed")
    with pytest.raises(ToolError):
        run_group(site, G, tools=fakes.tools())
    fakes.calls.clear()
    fakes.fail.clear()
    assert site.queue().group(G).processing_stage == "resuming"
    run_group(site, G, tools=fakes.tools())
    assert fakes.calls == ["image", "qa"]


def test_no_set_is_solved_on_a_group_that_lacks_subbands(site: Site, fakes: Fakes):
    fakes.missing = (7,)
    assert run_group(site, G, tools=fakes.tools()).state == "waiting_for_gains"
    assert fakes.calls == ["convert", "match"]
    assert site.registry().sets() == []


def test_gains_that_somebody_took_back_are_applied_again(site: Site, fakes: Fakes):
    fakes.fail["qa"] = ToolError("no fonts")
    with pytest.raises(ToolError):
        run_group(site, G, tools=fakes.tools())
    fakes.calls.clear()
    fakes.fail.clear()
    fakes.taken_back = True
    run_group(site, G, tools=fakes.tools())
    assert fakes.calls == ["apply", "image", "qa"]


def test_what_was_finished_and_is_gone_is_done_again_with_all_after_it(site: Site, fakes: Fakes):
    fakes.fail["qa"] = ToolError("no fonts")
    with pytest.raises(ToolError):
        run_group(site, G, tools=fakes.tools())
    (site.ms_path(G) / "table.dat").unlink()
    fakes.calls.clear()
    fakes.fail.clear()
    run_group(site, G, tools=fakes.tools())
    assert fakes.calls == ["convert", "match", "solve", "apply", "image", "qa"]
    assert len(site.products().images()) == 1


def test_reprocessing_does_everything_again_and_leaves_one_row(site: Site, fakes: Fakes):
    run_group(site, G, tools=fakes.tools())
    with pytest.raises(InputError, match="is completed, not pending"):
        run_group(site, G, tools=fakes.tools())
    site.queue().reprocess(G)
    fakes.calls.clear()
    run_group(site, G, tools=fakes.tools())
    assert "solve" in fakes.calls
    assert len(site.products().images()) == len(site.products().ms_index()) == len(site.registry().sets()) == 1


@pytest.mark.parametrize("step", ["convert", "solve", "apply", "image"])
def test_what_was_said_of_an_earlier_image_is_not_said_of_a_group_that_failed_since(
    site: Site, fakes: Fakes, step: str
):
    run_group(site, G, tools=fakes.tools())
    site.queue().reprocess(G)
    fakes.fail[step] = RejectedError("all flagged")
    with pytest.raises(RejectedError):
        run_group(site, G, tools=fakes.tools())
    assert site.queue().group(G).state == "failed"
    assert site.products().scores("group", G) == []
    assert site.products().qa_artifacts(G) == []
    assert not (site.qa_dir() / G / "image.png").exists()


def test_a_step_that_is_not_done_again_leaves_what_was_said(site: Site, fakes: Fakes):
    run_group(site, G, tools=fakes.tools())
    before = site.products().scores("group", G)
    site.queue().requeue(G)
    fakes.calls.clear()
    run_group(site, G, tools=fakes.tools())
    assert fakes.calls == []
    assert site.products().scores("group", G) == before


def test_a_rejected_image_is_drawn_when_asked_for_as_its_error_says(site: Site, fakes: Fakes):
    fakes.good = False
    with pytest.raises(RejectedError) as error:
        run_group(site, G, tools=fakes.tools())
    assert error.value.fix == f"`nightbeam qa make {G}` draws it; look at its calibration set"
    assert make_quality(site, G, tools=fakes.tools()).scores
    assert [row.name for row in site.products().qa_artifacts(G)] == ["image.png"]


def test_without_any_set_a_group_waits_and_goes_on_when_one_appears(site: Site, fakes: Fakes):
    fakes.calibrator = False
    outcome = run_group(site, G, tools=fakes.tools())
    row = site.queue().group(G)
    assert (outcome.state, row.state, row.processing_stage) == ("waiting_for_gains", "pending", "waiting_for_gains")
    assert row.has_calibrator == 0
    assert site.products().ms_index()[0].status == "skipped_no_caltables"
    assert take_dispatchable(site, 5) == []
    put_set(site, "calset_later", MID + 0.01)
    (dispatch,) = take_dispatchable(site, 5)
    assert dispatch.group_id == G
    assert take_dispatchable(site, 5) == []
    fakes.calls.clear()
    assert run_group(site, G, tools=fakes.tools()).calibration_set == "calset_later"
    assert fakes.calls == ["match", "apply", "image", "qa"]
    assert site.queue().group(G).retry_count == 0


def test_a_set_of_the_strip_is_borrowed_and_every_product_says_so(site: Site, fakes: Fakes):
    fakes.calibrator = False
    put_set(site, "calset_yesterday", MID - 0.4)
    assert run_group(site, G, tools=fakes.tools()).state == "completed"
    (image,) = site.products().images()
    assert (image.calibration_set, image.cal_borrowed) == ("calset_yesterday", 1)
    assert image.cal_age_days == pytest.approx(0.4)
    assert json.loads(Path(image.path).read_text())["calibration_borrowed"] == "yes"


def test_rejected_solutions_are_noted_and_another_set_serves(site: Site, fakes: Fakes):
    put_set(site, "calset_before", MID - 0.01)
    fakes.fail["solve"] = RejectedError("median SNR 2.1")
    assert run_group(site, G, tools=fakes.tools()).calibration_set == "calset_before"
    lines = {line.set: line for line in site.registry().sets()}
    assert (lines[f"calset_{G}"].status, lines[f"calset_{G}"].reason) == ("failed", "median SNR 2.1")
    receipt = site.queue().receipt(G, "calibrate") or {}
    assert (receipt["solved"], receipt["rejected"]) == (False, "median SNR 2.1")


def test_rejected_solutions_without_another_set_fail_the_group(site: Site, fakes: Fakes):
    fakes.fail["solve"] = RejectedError("median SNR 2.1")
    with pytest.raises(RejectedError):
        run_group(site, G, tools=fakes.tools())
    row = site.queue().group(G)
    assert (row.state, row.error) == ("failed", "median SNR 2.1; and no other set serves this time")


def test_a_changed_table_is_not_applied(site: Site, fakes: Fakes):
    fakes.fail["apply"] = ToolError("once")
    with pytest.raises(ToolError):
        run_group(site, G, tools=fakes.tools())
    (site.output_dir / "caltables" / f"{G}_0_bpcal" / "table.dat").write_text("other")
    fakes.fail.clear()
    fakes.calls.clear()
    run_group(site, G, tools=fakes.tools())
    assert fakes.calls[:2] == ["match", "solve"]  # the set was no longer what the receipt said: solved again


def test_nothing_is_completed_that_has_not_been_through_every_step(site: Site, fakes: Fakes):
    owner = me("run")
    claim_group(site, G, owner=owner)
    with pytest.raises(MissingError, match="has not been through convert, calibrate, apply, image, record, qa"):
        finish(site, G, owner=owner, tools=fakes.tools())
    assert site.queue().group(G).state == "in_progress"


def test_a_group_that_somebody_living_holds_is_left_alone(site: Site, fakes: Fakes):
    site.queue().claim(G, me("other"))
    claim = claim_group(site, G, owner=me("mine"))
    assert (claim.claimed, claim.state) == (False, "in_progress")
    with pytest.raises(BusyError, match="is being worked on by other"):
        run_group(site, G, tools=fakes.tools())


def test_a_group_of_a_dead_process_is_taken_back_as_a_retry(site: Site, fakes: Fakes):
    gone = Owner("gone", socket.gethostname(), 2**22 + 5, 1.0)
    site.queue().claim(G, gone)
    run_group(site, G, tools=fakes.tools())
    row = site.queue().group(G)
    assert (row.state, row.retry_count) == ("completed", 1)
    assert [a.outcome for a in site.queue().attempts(G)] == ["lost", "completed"]


def test_a_flow_run_that_starts_again_takes_up_its_own_group(site: Site, fakes: Fakes):
    site.queue().claim(G, Owner("flow-run-1", socket.gethostname(), 2**22 + 5, 1.0))
    run_group(site, G, owner=me("flow-run-1"), tools=fakes.tools())
    assert (site.queue().group(G).state, site.queue().group(G).retry_count) == ("completed", 0)


def test_an_owner_that_lost_its_group_records_nothing(site: Site, fakes: Fakes):
    owner = me("slow")

    def stolen(*args: Any, **keywords: Any) -> Any:
        report = Fakes.convert(fakes, *args, **keywords)
        site.queue().reprocess(G, force=True)
        return report

    tools = dataclasses.replace(fakes.tools(), convert=stolen)
    with pytest.raises(BusyError, match="no longer held by slow"):
        run_group(site, G, owner=owner, tools=tools)
    assert (site.queue().group(G).state, site.queue().receipts(G)) == ("pending", [])


def test_an_interrupted_group_goes_back_without_a_retry(site: Site, fakes: Fakes):
    fakes.fail["image"] = KeyboardInterrupt()  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        run_group(site, G, tools=fakes.tools())
    row = site.queue().group(G)
    assert (row.state, row.retry_count, row.owner) == ("pending", 0, None)


def test_a_step_that_waits_for_its_turn_leaves_when_its_group_is_somebody_elses(
    site: Site, fakes: Fakes, monkeypatch: pytest.MonkeyPatch
):
    class Busy:
        def group(self, _group: str) -> Any:
            raise BusyError("the database is locked")

    @contextmanager
    def waiting(site: Site, *_: Any, still: Callable[[], None]) -> Iterator[None]:
        still()
        with monkeypatch.context() as patched:
            patched.setattr(site.queue().__class__, "group", Busy.group)
            still()  # that says nothing of whose it is
        site.queue().reprocess(G, force=True)
        site.queue().claim(G, Owner("other"))
        still()
        pytest.fail("it waits still")
        yield

    monkeypatch.setattr("nightbeam.contimg.steps.at_work", waiting)
    with pytest.raises(BusyError, match="no longer held"):
        run_group(site, G, tools=fakes.tools())
    assert (fakes.calls, site.queue().group(G).owner) == ([], "other")
    with sole_owner(site.group_lock(G)):
        pass


def test_two_processes_of_one_machine_never_work_on_one_group_at_once(site: Site, fakes: Fakes):
    from nightbeam.core.locks import sole_owner

    with sole_owner(site.group_lock(G)), pytest.raises(BusyError, match=f"group {G} is held by process {os.getpid()}"):
        run_group(site, G, tools=fakes.tools())


def test_a_group_whose_files_went_away_says_which(site: Site, fakes: Fakes):
    next(site.input_dir.iterdir()).unlink()
    with pytest.raises(MissingError, match="cannot find"):
        run_group(site, G, tools=fakes.tools())
    assert site.queue().group(G).state == State.PENDING


def test_an_unknown_group_is_missing(site: Site, fakes: Fakes):
    with pytest.raises(MissingError, match="no group 1999"):
        run_group(site, "1999-01-01T00:00:00", tools=fakes.tools())
