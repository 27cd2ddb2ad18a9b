"""What a step is asked before it begins: room on disks, scratch in memory, its turn; two groups on one machine."""

import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from nightbeam.catalog import Registry, SetSpec, TableSpec
from nightbeam.contimg import Site, Tools, run_group, scan_arrivals, tidy_up
from nightbeam.contimg.budget import Ledger
from nightbeam.contimg.guard import at_work, plan_mosaic, plan_step
from nightbeam.contimg.owners import owned_scratch
from nightbeam.contimg.report import group_report
from nightbeam.contimg.site import ram_of_machine
from nightbeam.core import files
from nightbeam.core.errors import MissingError, StorageError
from nightbeam.core.memory import Memory
from nightbeam.core.settings import load_settings
from nightbeam.qa import Grade, Score

GB = 1_000_000_000
G1, G2 = "2025-10-02T01:02:03", "2025-10-02T01:07:12"
JD = {G1: 2460950.5 + 3723.25 / 86400, G2: 2460950.5 + 4032.25 / 86400}
LONG_S = 60.0  # nobody waits so long unless something is wrong


def site_of(tmp_path: Path, **settings: object) -> Site:
    overrides = {"state_dir": tmp_path / "state", "contimg.ingest.settle_s": 0, **settings}
    site = Site.from_settings(load_settings(overrides=overrides, environ={}))
    site.input_dir.mkdir(parents=True)
    return site


# -- room on the disks ------------------------------------------------------------------------------------------


@pytest.fixture
def one_disk(tmp_path, monkeypatch):
    """One file system with so many bytes and files free."""
    usage = SimpleNamespace(f_bavail=100, f_frsize=1_000_000, f_files=10**6, f_favail=10**5)
    monkeypatch.setattr(files.os, "statvfs", lambda path: usage)
    return usage


def test_directories_of_one_disk_must_hold_all_together(one_disk, tmp_path):
    files.require_room({tmp_path / "a": 60_000_000, tmp_path / "b" / "c": 40_000_000}, what="convert of G")
    with pytest.raises(StorageError, match=r"convert of G needs 0.11 GB in .*, 0.10 GB are free") as refusal:
        files.require_room({tmp_path / "a": 60_000_000, tmp_path / "b" / "c": 50_000_000}, what="convert of G")
    assert refusal.value.retry


def test_a_disk_that_can_make_no_more_files_is_full(one_disk, tmp_path):
    one_disk.f_favail = 7
    with pytest.raises(StorageError, match="7 more can be made"):
        files.require_room({tmp_path: 1}, what="convert of G")
    one_disk.f_files = one_disk.f_favail = 0  # a file system that does not count them
    files.require_room({tmp_path: 1}, what="convert of G")


@pytest.mark.parametrize("step", ["convert", "calibrate", "apply", "image", "record", "qa"])
def test_each_step_is_refused_before_it_begins_where_there_is_no_room(step, one_disk, tmp_path):
    site = site_of(tmp_path)
    plan = plan_step(site, G1, step, input_bytes=10**8, set_bytes=10**8)
    one_disk.f_bavail = 1
    with pytest.raises(StorageError, match=f"{step} of {G1} needs"), at_work(site, G1, step, plan):
        raise AssertionError("it began")
    assert site.ledger().places() == []


def test_a_mosaic_waits_for_its_turn_behind_the_groups(tmp_path):
    site = site_of(tmp_path)
    with at_work(site, "mosaic-night", "mosaic", plan_mosaic(site, 12)):
        (place,) = site.ledger().places()
    assert place.order > "9"  # as text after any time of data


# -- scratch in memory ------------------------------------------------------------------------------------------


def test_scratch_is_on_disk_unless_memory_is_asked_for(tmp_path):
    site = site_of(tmp_path)
    assert site.scratch_ram is None
    assert plan_step(site, G1, "convert", input_bytes=1000, set_bytes=0).scratch == site.scratch_dir


def test_memory_is_asked_for_by_a_word_a_path_or_as_of_old(tmp_path):
    mine = f"nightbeam-{os.geteuid()}"
    for n, (setting, found) in enumerate(
        [
            ({"contimg.scratch_ram": "auto"}, Path("/dev/shm") / mine),
            ({"contimg.scratch_ram": True}, Path("/dev/shm") / mine),  # YAML's on
            ({"contimg.scratch_ram": False}, None),  # YAML's off
            ({"contimg.scratch_ram": "/mnt/ram"}, Path("/mnt/ram") / mine),
            ({"contimg.convert.stage_to_tmpfs": True}, Path("/dev/shm") / mine),
        ]
    ):
        assert site_of(tmp_path / str(n), **setting).scratch_ram == found
    assert ram_of_machine() == Path("/dev/shm") / mine


def test_scratch_in_memory_counts_as_memory(tmp_path):
    disk, ram = site_of(tmp_path / "a"), site_of(tmp_path / "b", **{"contimg.scratch_ram": tmp_path / "ram"})
    on_disk = plan_step(disk, G1, "convert", input_bytes=10**7, set_bytes=0)
    in_ram = plan_step(ram, G1, "convert", input_bytes=10**7, set_bytes=0)
    assert in_ram.scratch == ram.scratch_ram
    assert in_ram.demand.memory_bytes == on_disk.demand.memory_bytes + 10**7
    assert plan_step(ram, G1, "apply", input_bytes=10**7, set_bytes=10**7).scratch == ram.scratch_dir


@pytest.mark.parametrize("why", ["full", "over budget", "somebody else's", "a link", "no such place"])
def test_without_room_in_memory_scratch_is_on_disk_and_the_log_says_why(why, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", logger="nightbeam")
    monkeypatch.setattr(logging.getLogger("nightbeam"), "propagate", True)  # a command may have set up its own
    ram = tmp_path / "ram"
    site = site_of(tmp_path, **{"contimg.scratch_ram": ram})
    assert site.scratch_ram is not None
    if why == "full":
        usage = namedtuple("usage", "total used free")
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1, 1, 2 * 10**7))
    elif why == "over budget":
        monkeypatch.setattr("nightbeam.contimg.guard.read_memory", lambda: Memory(10**8, 10**8))
    elif why == "somebody else's":
        monkeypatch.setattr("nightbeam.contimg.guard.os.geteuid", lambda: 4711)
    elif why == "a link":
        ram.mkdir()
        site.scratch_ram.symlink_to(tmp_path)
    else:
        ram.write_text("a file")
    assert plan_step(site, G1, "convert", input_bytes=10**7, set_bytes=0).scratch == site.scratch_dir
    assert f"convert of group {G1} has its scratch on disk" in caplog.text


KILLED = """
import os, sys
from pathlib import Path
from nightbeam.contimg.owners import owned_scratch
with owned_scratch(Path(sys.argv[1]), sys.argv[2], "convert") as scratch:
    (scratch / "table.dat").write_bytes(bytes(1000))
    print("there", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("look", ["scan", "step", "another user's name"])
def test_a_killed_run_leaves_nothing_in_memory_once_anything_starts_again(look, tmp_path, monkeypatch):
    site = site_of(tmp_path, **{"contimg.scratch_ram": tmp_path / "ram"})
    ram = site.scratch_ram
    assert ram is not None
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, ram, G1], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout.readline() == "there\n"
    with owned_scratch(ram, G2, "image"):
        scan_arrivals(site)
        assert len(list(ram.iterdir())) == 2  # both live
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdin.close()
        child.stdout.close()
        if look == "scan":
            scan_arrivals(site)
        elif look == "step":
            plan_step(site, G1, "convert", input_bytes=1000, set_bytes=0)
        else:
            with monkeypatch.context() as patched:
                patched.setattr("nightbeam.contimg.guard.os.geteuid", lambda: 4711)
                scan_arrivals(site)
            assert len(list(ram.iterdir())) == 2
            scan_arrivals(site)
        assert [path.name.split(".")[1] for path in ram.iterdir()] == [G2]
    assert list(ram.iterdir()) == []


def test_housekeeping_looks_into_memory_too(tmp_path):
    site = site_of(tmp_path, **{"contimg.scratch_ram": tmp_path / "ram", "contimg.housekeeping.scratch_age_s": 0})
    assert site.scratch_ram is not None
    left = site.scratch_ram / "casa.pid4194304.abcdefgh"  # beyond the largest number of a process
    left.mkdir(parents=True)
    tidy_up(site)
    assert not left.exists()


# -- two groups in flight ---------------------------------------------------------------------------------------


class Bench:
    """Tools that leave what the steps ask for, tell what they do, and wait where a test wants it."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.story: list[str] = []
        self.taken: list[int] = []
        self.when: dict[tuple[str, str], object] = {}

    def _do(self, step: str, group: str) -> None:
        self.taken.append(sum(p.memory_bytes for p in self.site.ledger().places() if p.works))
        self.story.append(f"{step} {group} begins")
        self.when.get((step, group), lambda: None)()
        self.story.append(f"{step} {group} ends")

    def tools(self) -> Tools:
        def convert(site, paths, ms, *, expected_subbands, scratch):
            assert scratch.is_dir()
            self._do("convert", ms.stem)
            ms.mkdir(parents=True, exist_ok=True)
            mid = JD[ms.stem] - 2400000.5 + 0.0018
            return SimpleNamespace(
                ms=ms, writer_type="direct-subband", rows=48, n_spw=16, missing_subbands=(), start_mjd=mid - 0.0018,
                mid_mjd=mid, end_mjd=mid + 0.0018, ra_deg=71.0, dec_deg=33.1, flagged_fraction=0.01,
                load_s=1.0, phase_s=2.0, write_s=3.0, total_s=6.5,
            )  # fmt: skip

        def apply(site, ms, tables, *, work, log):
            self._do("apply", ms.stem)
            return SimpleNamespace(flagged_fraction=0.02, seconds=0.5)

        def image(site, ms, stem, *, provenance, work, log):
            self._do("image", ms.stem)
            stem.with_name(stem.name + ".fits").write_text("image")
            return finished(stem)

        def finished(stem):
            path = stem.with_name(stem.name + ".fits")
            if not path.is_file():
                raise MissingError(f"no {path}")
            numbers = dict.fromkeys(
                ("noise_jy", "noise_centre_jy", "peak_jy", "dynamic_range", "beam_major_arcsec", "beam_minor_arcsec",
                 "beam_pa_deg", "ra_deg", "dec_deg", "cell_arcsec", "freq_hz", "bandwidth_hz", "integration_s",
                 "mid_mjd", "seconds"), 1.0)  # fmt: skip
            return SimpleNamespace(
                stem=stem, path=path, fits={"image": path}, png=path, sha256={}, imsize=512, parameters={},
                version="1", **numbers,
            )  # fmt: skip

        def write_qa(site, group_id, **_):
            self._do("qa", group_id)
            path = site.qa_dir() / group_id / "image.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("png")
            score = Score("noise", 10.0, "mJy/beam", 0.9, Grade.GOOD, "the noise is 10 mJy/beam")
            return SimpleNamespace(artifacts=(SimpleNamespace(name="image.png", path=path),), scores=(score,))

        def read_header(path):
            start = JD[G1 if "T01:02" in path.name else G2]
            return SimpleNamespace(subband=None, start_jd=start, mid_jd=start + 0.0018, dec_rad=0.5773)

        return Tools(
            read_header=read_header,
            convert=convert,
            verify_ms=lambda site, ms, rows, applied=False: None,
            match=lambda site, ra_deg, dec_deg: [],
            apply=apply,
            image=image,
            judge=lambda site, product: SimpleNamespace(good=True, reasons=()),
            finished_image=finished,
            write_qa=write_qa,
        )

    def both(self, first: str = G1, second: str = G2) -> None:
        """Work on both groups at a time, the second as soon as the first images."""
        imaging, go_on = threading.Event(), self.when.get(("image", first), lambda: None)

        def image_first() -> None:
            imaging.set()
            go_on()

        self.when[("image", first)] = image_first
        with ThreadPoolExecutor(2) as pool:
            one = pool.submit(run_group, self.site, first, tools=self.tools())
            assert imaging.wait(LONG_S)
            two = pool.submit(run_group, self.site, second, tools=self.tools())
            assert [one.result().state, two.result().state] == ["completed", "completed"]


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """Return a maker of a site with two groups that have arrived, and one set of gains."""

    def make(**settings: object) -> Bench:
        monkeypatch.setattr("nightbeam.catalog.registry.check_table", lambda path: None)
        monkeypatch.setattr(Site, "registry", lambda self: Registry(self.registry_url, check=lambda path: None))
        site = site_of(tmp_path, **settings)
        bench = Bench(site)
        for group in (G1, G2):
            for sb in range(16):
                (site.input_dir / f"{group}_sb{sb:02d}.hdf5").write_text("data")
        scan_arrivals(site, tools=bench.tools())
        path = site.output_dir / "set_bpcal"
        path.mkdir(parents=True)
        mid = JD[G1] - 2400000.5
        tables = (TableSpec(path, "BP", 30),)
        site.registry().register_set(SetSpec("set", tables, mid - 0.02, mid + 0.02, mid_mjd=mid, dec_deg=33.1))
        return bench

    return make


@pytest.fixture
def looks(monkeypatch):
    """Let who waits look again when somebody has ended, and tell that somebody waits."""
    waits = threading.Event()

    def sleep(_seconds: float) -> None:
        waits.set()
        threading.Event().wait(0.01)

    memory = Memory(24 * GB, 22 * GB)
    monkeypatch.setattr(Site, "ledger", lambda self: Ledger(self.ledgers(), read=lambda: memory, sleep=sleep))
    return waits


@pytest.mark.slow
def test_the_next_group_is_converted_while_the_last_is_imaged(bench, looks):
    work, converting = bench(), threading.Event()
    work.when[("convert", G2)] = converting.set
    work.when[("image", G1)] = lambda: converting.wait(LONG_S) or pytest.fail("the second did not convert meanwhile")
    work.both()
    order = work.story.index
    assert order(f"image {G1} begins") < order(f"convert {G2} begins") < order(f"image {G1} ends")
    assert max(work.taken) <= 18 * GB
    assert work.site.ledger().places() == []


@pytest.mark.slow
def test_two_images_are_made_one_after_the_other_where_the_machine_bears_one(bench, looks):
    work = bench(**{"contimg.pipeline.same_step": 1})
    said = []

    def until_the_other_waits() -> None:
        assert looks.wait(LONG_S)
        said.append(group_report(work.site, G2)["group"]["waits"])

    work.when[("image", G1)] = until_the_other_waits
    work.both()
    assert said == [f"image waits: image of {G1} is at work"]
    order = work.story.index
    assert order(f"convert {G2} ends") < order(f"image {G1} ends") < order(f"image {G2} begins")
    assert group_report(work.site, G2)["group"]["waits"] is None


@pytest.mark.slow
def test_the_budget_is_never_exceeded_and_older_data_go_first_when_memory_is_short(bench, looks):
    work = bench(**{"contimg.pipeline.memory_gb": 0.85})  # less than any two steps
    work.when[("image", G2)] = lambda: looks.wait(LONG_S) or pytest.fail("the older did not come")
    work.both(first=G2, second=G1)
    assert max(work.taken) <= 0.85 * GB
    begun, ended = work.story[::2], work.story[1::2]
    assert [line.replace("begins", "ends") for line in begun] == ended  # never two at a time
    assert work.story.index(f"image {G2} ends") + 1 == work.story.index(f"convert {G1} begins")
