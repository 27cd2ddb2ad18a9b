"""A site whose directories lie on small file systems that are full, or fill in the middle of a step.

Run as a program, in a mount namespace of its own: what it mounts is gone with it, and where casacore aborts the process
no test is lost. ``python full_disk.py ROOT world`` makes the undisturbed site and keeps it as it was before each step;
``python full_disk.py ROOT JSON`` plays one case and prints what was seen as JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
import runpy
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from nightbeam.catalog import Owner
from nightbeam.contimg import Site, claim_group, scan_arrivals, steps, take_dispatchable, this_process
from nightbeam.contimg.room import may_dispatch
from nightbeam.core.settings import load_settings

PLACES = ("in", "out", "scratch", "state", "aside")
STEPS = {
    "convert": steps.convert_group_step,
    "calibrate": steps.calibrate_or_find,
    "apply": steps.apply_step,
    "image": steps.image_step,
    "record": steps.record_step,
    "qa": steps.qa_step,
}
SETTINGS = {
    "contimg.ingest.settle_s": 0,
    "contimg.ingest.expected_subbands": 2,
    "contimg.ingest.bad_file_wait_s": 0,
    "contimg.image.imsize": 128,
    "contimg.image.cell_arcsec": 40.0,
    "contimg.image.niter": 20,
    "contimg.image.gridder": "standard",
    "contimg.image.chanbin": 4,
}


@dataclass
class Place:
    """One of the directories of the site, on a file system of its own."""

    path: Path

    def mount(self) -> None:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(self.path)], check=True)

    def leave(self, *, bytes_: int | None = None, inodes: int | None = None) -> None:
        """Let so much be free from now on, as if another program had written the rest."""
        found = os.statvfs(self.path)
        used = (found.f_blocks - found.f_bfree) * found.f_frsize
        options = [] if bytes_ is None else [f"size={max(4096, used + bytes_)}"]
        options += [] if inodes is None else [f"nr_inodes={found.f_files - found.f_ffree + inodes}"]
        self._remount(",".join(options))

    def widen(self) -> None:
        self._remount("size=64m,nr_inodes=100000")

    def _remount(self, options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", str(self.path)], check=True)


@dataclass
class World:
    root: Path
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def home(self) -> Path:
        return self.root / "site"

    def site(self) -> Site:
        h = self.home
        told = {"state_dir": h / "state", "contimg.output_dir": h / "out", "contimg.scratch_dir": h / "scratch"}
        told |= {"contimg.input_dir": h / "in", "contimg.ingest.set_aside_dir": h / "aside"}
        overrides = {**told, **SETTINGS, **self.settings}
        return Site.from_settings(load_settings(config=Path(os.devnull), overrides=overrides, environ={}))

    def make(self) -> str:
        """Take a group through every step, and keep a copy of the site before each."""
        from nightbeam.simulate import SimulationSpec, simulate_subbands

        spec = SimulationSpec(
            groups=1, antennas=10, channels=4, subbands=2, integrations=4, calibrator="3C48", noise=0.5, seed=3
        )
        site = self.site()
        simulate_subbands(site.input_dir, spec)
        scan_arrivals(site)
        (group_id,) = [row.group_id for row in site.queue().groups()]
        for name, step in STEPS.items():
            shutil.copytree(self.home, self.root / "before" / name)
            claim_group(site, group_id, owner=this_process())
            step(site, group_id, owner=this_process())
            site.queue().release(group_id, this_process())
        return group_id

    def restore(self, step: str, on: str) -> Place:
        """Have the site as it was before a step, with one of its directories on a file system of its own."""
        shutil.rmtree(self.home, ignore_errors=True)
        for name in PLACES:
            (self.home / name).mkdir(parents=True)
            kept = self.root / "before" / step / name
            if name == on:
                place = Place(self.home / name)
                place.mount()
            if kept.exists():
                shutil.copytree(kept, self.home / name, dirs_exist_ok=True)
        return place


def of_a_dead_process() -> Owner:
    """Return an owner that lived on this machine."""
    child = subprocess.Popen(["true"])
    child.wait()
    return Owner("gone", socket.gethostname(), child.pid, time.time())


def let_guards_pass() -> None:
    """Have each step see room before it begins; what fills the disk comes after that look."""
    names = dict.fromkeys(("uvh5.convert", "imaging.product", "mosaic.product"), "require_space")
    for module, name in {**names, "contimg.guard": "require_room"}.items():
        inside = vars(import_module(f"nightbeam.{module}"))
        assert name in inside
        inside[name] = lambda *_args, **_more: None


def products(site: Site, group_id: str, step: str) -> str:
    """Return a digest of what a step makes: of numbers, not of files that hold times and names."""
    from astropy.io import fits

    from nightbeam.casa.tables import open_table

    digest = hashlib.sha256()

    def feed(array: Any) -> None:
        digest.update(np.ascontiguousarray(array).tobytes())

    ms = site.ms_path(group_id)
    columns = {"convert": ("DATA", "FLAG", "UVW"), "calibrate": ("MODEL_DATA",), "apply": ("CORRECTED_DATA", "FLAG")}
    if step in columns:
        with open_table(ms) as table:
            for name in columns[step]:
                feed(table.getcol(name))
    if step == "calibrate":
        for row in site.registry().tables(f"calset_{group_id}"):
            with open_table(row.path) as table:
                feed(table.getcol("CPARAM"))
    if step == "image":
        for file in sorted(site.image_stem(group_id).parent.glob("*.fits")):
            feed(fits.getdata(file))
    if step == "record":
        (row,) = site.products().images(group_id=group_id)
        digest.update(repr((row.peak_jy, row.noise_jy, row.calibration_set, row.path)).encode())
    if step == "qa":
        scores = site.products().scores("group", group_id)
        digest.update(repr(sorted((s.name, s.value, s.verdict) for s in scores)).encode())
        digest.update(repr(sorted(a.name for a in site.products().qa_artifacts(group_id))).encode())
    return digest.hexdigest()


def halves(site: Site) -> list[str]:
    """Return what lies half-written somewhere, or as scratch."""
    found = [p for root in (site.output_dir, site.state_dir) for p in root.rglob("*.part")]
    return sorted(str(p) for p in [*found, *site.scratch_dir.iterdir()])


def play(world: World, case: dict[str, Any]) -> dict[str, Any]:
    """Let a disk fill in the middle of a step, see what is said and kept, make room, and do the step again."""
    place = world.restore(case["step"], case["on"])
    site, step = world.site(), STEPS[case["step"]]
    (group_id,) = [row.group_id for row in site.queue().groups()]
    retries = site.queue().group(group_id).retry_count
    owner = of_a_dead_process()
    with_guards = case.get("guards", False)
    if not with_guards:
        let_guards_pass()
    claim_group(site, group_id, owner=owner)
    place.leave(bytes_=case.get("bytes"), inodes=case.get("inodes"))
    seen: dict[str, Any] = {"error": None, "told": None}
    try:
        step(site, group_id, owner=owner)
    except Exception as error:
        seen["error"] = f"{type(error).__name__}: {error}"
        try:
            steps.fail_group(site, group_id, error, owner=owner)
        except Exception as untold:
            seen["told"] = f"{type(untold).__name__}: {untold}"
    seen["halves"] = halves(site)
    place.leave(bytes_=0)
    try:
        seen["dispatch"] = may_dispatch(site, 4)
    except Exception as error:
        seen["dispatch"] = f"{type(error).__name__}: {error}"
    place.widen()
    if seen["told"]:
        scan_arrivals(site)
    row = site.queue().group(group_id)
    seen |= {"state": row.state, "retries": row.retry_count - retries, "why": row.error}
    seen["outcomes"] = [a.outcome for a in site.queue().attempts(group_id)][-1:]
    seen["later"] = [d.group_id for d in take_dispatchable(replace_pause(site), 4)] if case.get("dispatch") else None
    claim_group(site, group_id, owner=this_process())
    step(site, group_id, owner=this_process())
    seen["again"] = products(site, group_id, case["step"])
    seen["halves_again"] = halves(site)
    return seen


def replace_pause(site: Site) -> Site:
    from nightbeam.contimg import room

    room._PAUSE_S = 0.0
    return site


def play_undisturbed(world: World, case: dict[str, Any]) -> dict[str, Any]:
    world.restore(case["step"], case["on"])
    site = world.site()
    (group_id,) = [row.group_id for row in site.queue().groups()]
    claim_group(site, group_id, owner=this_process())
    STEPS[case["step"]](site, group_id, owner=this_process())
    return {"again": products(site, group_id, case["step"])}


def play_ingest(world: World, _case: dict[str, Any]) -> dict[str, Any]:
    """Have files arrive while the databases' disk is full."""
    place = world.restore("convert", "state")
    site = world.site()
    for file in site.state_dir.rglob("*"):
        if file.is_file():
            file.unlink()
    site.queue()
    place.leave(bytes_=0)
    seen: dict[str, Any] = {"error": None}
    try:
        scan_arrivals(site)
    except Exception as error:
        seen["error"] = f"{type(error).__name__}: {error}"
    place.widen()
    report = scan_arrivals(site)
    return {**seen, "new": report.new_files, "pending": list(report.became_pending), "bad": dict(report.bad)}


def play_aside(world: World, case: dict[str, Any]) -> dict[str, Any]:
    """Have a bad file moved to a file system that is full."""
    place = world.restore("convert", "aside")
    site = world.site()
    whole = next(site.input_dir.glob("*_sb00.hdf5"))
    bad = whole.with_name("2030-01-01T00:00:00_sb00.hdf5")
    bad.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    text = bad.read_bytes()
    place.leave(bytes_=case.get("bytes"), inodes=case.get("inodes"))
    first = scan_arrivals(site)
    rows = site.queue().bad_files()
    seen = {"moved": list(first.set_aside), "why": [r.not_moved for r in rows], "there": bad.read_bytes() == text}
    seen["halves"] = sorted(p.name for p in place.path.rglob("*") if p.is_file())
    place.widen()
    second = scan_arrivals(site)
    moved = list(place.path.rglob("*.hdf5"))
    return {**seen, "later": list(second.set_aside), "same": [p.read_bytes() == text for p in moved]}


NIGHT = "2025-10-03"
TILES = [f"{NIGHT}T04:{minute:02d}:00" for minute in (0, 5, 10)]


def play_mosaic(world: World, case: dict[str, Any]) -> dict[str, Any]:
    """Have a disk fill while the mosaic of a night is made; with nothing of ``on`` it is made undisturbed."""
    from nightbeam.contimg.nights import make_night

    observe_sky = runpy.run_path(str(Path(__file__).with_name("mosaic_world.py")))["observe_sky"]
    shutil.rmtree(world.home, ignore_errors=True)
    for name in PLACES:
        (world.home / name).mkdir(parents=True)
    place = Place(world.home / case["on"]) if "on" in case else None
    if place:
        place.mount()
    site = world.site()
    observe_sky(site, TILES)
    seen: dict[str, Any] = {"error": None}
    if place:
        let_guards_pass()
        place.leave(bytes_=case.get("bytes"), inodes=case.get("inodes"))
        try:
            make_night(site, NIGHT)
        except Exception as error:
            seen["error"] = f"{type(error).__name__}: {error}"
        place.widen()
        seen["halves"] = halves(site)
        seen["attempts"] = [night.attempts for night in site.products().nights()]
    outcome = make_night(site, NIGHT)
    (row,) = site.products().mosaics()
    digest = hashlib.sha256()
    for file in sorted(site.mosaic_dir().glob("*.fits")):
        digest.update(fits_pixels(file))
    scores = site.products().scores("mosaic", row.name)
    digest.update(repr(sorted((s.name, s.value, s.verdict) for s in scores)).encode())
    digest.update(repr(sorted(a.name for a in site.products().qa_artifacts(row.name))).encode())
    return {**seen, "row": [row.status, row.tiles_used, outcome.action], "again": digest.hexdigest(),
            "halves_again": halves(site)}  # fmt: skip


def fits_pixels(file: Path) -> bytes:
    from astropy.io import fits

    return np.ascontiguousarray(fits.getdata(file)).tobytes()


def main(root: str, what: str) -> None:
    world = World(Path(root))
    if what == "world":
        answer: dict[str, Any] = {"group": world.make()}
    else:
        case = json.loads(what)
        world = replace(world, settings=case.get("settings", {}))
        kinds = {"undisturbed": play_undisturbed, "ingest": play_ingest, "aside": play_aside, "mosaic": play_mosaic}
        answer = kinds.get(case.get("kind", ""), play)(world, case)
    sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
