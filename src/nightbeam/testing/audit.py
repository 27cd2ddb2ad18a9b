"""A night of simulated subbands held to its truth, in the morning: each file, each group, and what is left lying about.

Everything here only reads: the input directory, the databases, the output directories, the process table. What is to
be expected comes from `truth.json` and `stated_outcome` alone, never from what the night itself says.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil

from nightbeam.catalog.model import AttemptRow, GroupRow, State
from nightbeam.contimg import STEPS, Site
from nightbeam.core.errors import MissingError, NightbeamError
from nightbeam.core.files import sha256
from nightbeam.imaging import measure_sources, open_image, product_path, read_product, verify_product
from nightbeam.simulate import StatedOutcome, Truth, TruthGroup, expected_sources, stated_outcome

__all__ = [
    "Finding",
    "Policy",
    "audit_files",
    "audit_groups",
    "audit_leftovers",
    "audit_memory",
    "audit_night",
    "audit_processes",
    "audit_runs",
    "checksums",
    "compare_nights",
    "judge_image_of",
    "not_imaged",
]

#: What so few antennas and channels, and cleaning, do to a flux; thirty times the noise of the smallest groups.
MOST_FLUX_ERROR: Final = 0.05
#: Where the headers pointed elsewhere the sky is followed at another rate, which smears what is off the centre.
MOST_SMEARED: Final = 0.2
MOST_OFFSET_BEAMS: Final = 0.3
#: With several threads the order of sums is not always the same; with one two nights agree to the last bit.
MOST_PIXEL_ERROR: Final = 1e-5
#: A process that lived less says nothing of its memory; the first part of its life it takes what it needs.
LEAST_LIFE_S: Final = 600.0
MOST_GROWTH: Final = 0.15
MOST_GROWTH_BYTES: Final = 30e6
#: Whoever takes a group notes the time before its turn to write comes.
_SAME_MOMENT_S: Final = 1.0
#: Of what is said of an image these tell when, where and in which order it was made, not what it is.
_NOT_OF_THE_SKY: Final = frozenset({"id", "path", "ms_path", "created_at", "files", "sha256"})
#: They name the scratch in which they ran.
_COMMANDS: Final = frozenset({"command", "restore"})
#: Types of state of a run that has, or may have, a process.
_AT_WORK: Final = frozenset({"PENDING", "RUNNING", "CANCELLING"})
_NOT_OF_THE_DATA: Final = frozenset({"path", "processed_at", "stage_updated_at", "imagename"})


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at: what of the truth it is held against, and what there is."""

    what: str
    subject: str
    expected: str
    found: str

    @property
    def right(self) -> bool:
        """Whether there is what was expected."""
        return self.expected == self.found


@dataclass(frozen=True, slots=True)
class Policy:
    """What a site does with incomplete groups; ``timeout_s`` in seconds of the telescope."""

    minimum_subbands: int | None = None
    timeout_s: float = math.inf

    def stated(self, truth: Truth, group_id: str) -> StatedOutcome:
        """Return how a group should end."""
        return stated_outcome(truth, group_id, minimum_subbands=self.minimum_subbands, timeout_s=self.timeout_s)


JudgeImage = Callable[[Site, Truth, TruthGroup], str]


def audit_night(
    site: Site,
    truth: Truth,
    sums: Mapping[str, str],
    *,
    policy: Policy,
    judge: JudgeImage | None = None,
    mounts: Collection[Path] = (),
) -> list[Finding]:
    """Return everything that was looked at after a night whose queue has drained.

    Parameters
    ----------
    site
        Where the night was; only read.
    truth
        What was simulated.
    sums
        SHA-256 of each file that came, by name.
    policy
        Of the site, for incomplete groups.
    judge
        Says what is wrong with the image of a group, "" if nothing; `judge_image_of` if not given.
    mounts
        Scratch directories beside the site's own, such as one in memory, that are to be empty.
    """
    return [
        *audit_files(site, truth, sums, policy=policy),
        *audit_groups(site, truth, policy=policy, judge=judge_image_of if judge is None else judge),
        *audit_leftovers(site, truth, mounts=mounts),
    ]


def checksums(directory: Path, names: Iterable[str]) -> dict[str, str]:
    """Return the SHA-256 of files of a directory, by name."""
    return {name: sha256(directory / name) for name in sorted(set(names))}


# -- files --------------------------------------------------------------------------------------------------------


def audit_files(site: Site, truth: Truth, sums: Mapping[str, str], *, policy: Policy) -> Iterator[Finding]:
    """Yield for each file what became of it, whether every byte of it is still there, and what is there beside."""
    books = _Books(site)
    stated = {group.group_id: policy.stated(truth, group.group_id) for group in truth.groups}
    seen: set[str] = set()
    for arrival in truth.arrivals:
        if arrival.name in seen:  # written again under its name, which is to change nothing
            continue
        seen.add(arrival.name)
        expected: str = arrival.outcome
        if expected == "used" and arrival.subband in stated[arrival.group_id].late:
            expected = "late"
        yield Finding("file", arrival.name, expected, books.became(arrival.name, arrival.group_id))
        aside = books.aside.get(arrival.name)
        place = aside or site.input_dir / arrival.name
        found = sha256(place) if place.is_file() else "gone"
        yield Finding("bytes", arrival.name, sums[arrival.name], found)
        wanted = "set aside" if arrival.outcome == "bad" else "in place"
        yield Finding("place", arrival.name, wanted, "set aside" if aside else "in place")
    known = {*seen, "truth.json", site.set_aside_dir().name}
    others = sorted(path.name for path in site.input_dir.iterdir() if path.name not in known)
    yield Finding("strangers", str(site.input_dir), "", ", ".join(others))


class _Books:
    """What the queue says of each file, by name."""

    def __init__(self, site: Site) -> None:
        queue = site.queue()
        self.queue, self.input_dir = queue, site.input_dir
        rows = queue.set_aside.rows(states=("moving", "held"))
        self.aside = {Path(row.original_path).name: Path(row.path) for row in rows if row.state == "held"}
        self.reasons = {Path(row.original_path).name: row.reason for row in rows}
        self.reasons |= {Path(row.path).name: row.reason for row in queue.bad_files()}
        self.second = {Path(row.path).name for row in queue.duplicates()}

    @cached_property
    def recorded(self) -> dict[str, tuple[str, str]]:
        """The group of each recorded file, and whether it came in time."""
        return {
            Path(row.path).name: (group.group_id, "late" if row.late else "used")
            for group in self.queue.groups()
            for row in self.queue.subbands(group.group_id)
        }

    def became(self, name: str, group_id: str) -> str:
        """Return what became of a file; more than one word if it is in two lists, or in another's group."""
        words = []
        if name in self.recorded:
            group, how = self.recorded[name]
            words.append(how if group == group_id else f"{how} in {group}")
        if name in self.second:
            words.append("duplicate")
        if name in self.reasons:
            words.append("bad" if self.reasons[name] else "bad without a reason")
        return " and ".join(words) or "ignored"


# -- groups -------------------------------------------------------------------------------------------------------


def audit_groups(site: Site, truth: Truth, *, policy: Policy, judge: JudgeImage | None = None) -> Iterator[Finding]:
    """Yield for each group how it ended and whether everything that should be there is there once.

    Without ``judge`` no image is looked into.
    """
    rows = {row.group_id: row for row in site.queue().groups()}
    for group in truth.groups:
        stated = policy.stated(truth, group.group_id)
        row = rows.pop(group.group_id, None)
        yield Finding("group", group.group_id, stated.state, _ended(row))
        if row is None:
            continue
        used = tuple(file.subband_idx for file in site.queue().subbands(group.group_id) if not file.late)
        yield Finding("subbands", group.group_id, _numbers(stated.used), _numbers(used))
        yield Finding("attempts at once", group.group_id, "", _at_once(site.queue().attempts(group.group_id)))
        if row.state == State.COMPLETED:
            yield from _completed(site, truth, group, judge)
        else:
            yield Finding(
                "rows of images", group.group_id, "0", str(len(site.products().images(group_id=row.group_id)))
            )
    yield Finding("groups that nobody simulated", "queue", "", ", ".join(rows))
    counted = Counter(image.group_id for image in site.products().images())
    twice = [str(name) for name, count in counted.items() if count > 1]
    yield Finding("imaged twice", "products", "", ", ".join(twice))


def not_imaged(site: Site, truth: Truth) -> list[dict[str, str]]:
    """Return every group that has no image, with its reason as the operator finds it; "" where there is none."""
    found = []
    rows = {row.group_id: row for row in site.queue().groups()}
    books = _Books(site)
    for group in truth.groups:
        row = rows.get(group.group_id)
        if row is None:
            files = [arrival.name for arrival in truth.arrivals if arrival.group_id == group.group_id]
            reasons = sorted({books.reasons[name] for name in files if name in books.reasons})
            found.append({"group": group.group_id, "state": "absent", "reason": "; ".join(reasons) or "no file of it"})
        elif row.state != State.COMPLETED:
            found.append({"group": group.group_id, "state": row.state, "reason": row.error or ""})
    return found


def judge_image_of(site: Site, truth: Truth, group: TruthGroup) -> str:
    """Return what is wrong with the image of a group: its files, their checksums, its brightest source; "" if nothing.

    Where the headers pointed elsewhere, the source is looked for where they displace it.
    """
    stem = site.image_stem(group.group_id)
    try:
        verify_product(read_product(stem))
        pixels = open_image(product_path(stem, "image")).data
    except NightbeamError as error:
        return error.what
    if not np.isfinite(pixels).any():
        return "no finite pixel"
    off_deg = group.header_dec_deg - truth.array.dec_apparent_deg
    expected = expected_sources(truth, group.group_id, within_deg=0.5)
    if not expected:
        return ""
    source = max(expected, key=lambda one: one.apparent_jy)
    (fit,) = measure_sources(
        product_path(stem, "image"),
        [_displaced(source.ra_deg, source.dec_deg, group, off_deg)],
        pb=product_path(stem, "pb"),
        names=[source.name],
    )
    if not fit.found:
        return f"{source.name} is not there: {fit.reason}"
    ratio = fit.peak_jy / source.flux_jy
    if not abs(ratio - 1.0) <= (MOST_SMEARED if off_deg else MOST_FLUX_ERROR):
        return f"{source.name} has {ratio:.3f} of its flux"
    if not fit.offset_beams <= MOST_OFFSET_BEAMS:
        return f"{source.name} is {fit.offset_beams:.2f} beams from its place"
    return ""


def _displaced(ra_deg: float, dec_deg: float, group: TruthGroup, off_deg: float) -> tuple[float, float]:
    """Return where a source is seen whose field was given another declination: as far from its centre as it was."""
    shrunk = math.cos(math.radians(dec_deg)) / math.cos(math.radians(dec_deg + off_deg))
    return group.ra_deg + (ra_deg - group.ra_deg) * shrunk, dec_deg + off_deg


def _completed(site: Site, truth: Truth, group: TruthGroup, judge: JudgeImage | None) -> Iterator[Finding]:
    queue, products, name = site.queue(), site.products(), group.group_id
    images = products.images(group_id=name)
    yield Finding("rows of images", name, "1", str(len(images)))
    for image in images:
        path = Path(image.path)
        found = sha256(path) if path.is_file() else "gone"
        yield Finding("image as recorded", name, str(image.sha256), found)
    sets = [ms for ms in products.ms_index() if ms.group_id == name]
    yield Finding(
        "rows of Measurement Sets", name, f"1 {site.ms_path(name)}", " ".join([str(len(sets)), *(s.path for s in sets)])
    )
    steps = sorted((receipt.step for receipt in queue.receipts(name)), key=STEPS.index)
    yield Finding("steps with a receipt", name, ", ".join(STEPS), ", ".join(steps))
    attempts = queue.attempts(name)
    outcomes = [attempt.outcome for attempt in attempts]
    last = outcomes[-1] if outcomes else "none"
    completed = [attempt.attempt for attempt in attempts if attempt.outcome == "completed"]
    # Later ones may have made up for what was owed, and nothing else.
    made_up = [r for r in queue.receipts(name) if completed and (r.attempt or 0) > completed[0]]
    count = 1 if completed and all(r.step in _OWED_STEPS for r in made_up) else len(completed)
    yield Finding("attempts that completed", name, "1, the last", f"{count}, {_last(last)}")
    owed = queue.group(name).owed
    yield Finding("owed", name, "nothing", str(owed) if owed else "nothing")
    yield Finding("attempts that still run", name, "0", str(outcomes.count("running")))
    if judge is not None:
        yield Finding("image", name, "", judge(site, truth, group))


#: What is done again where a group was imaged quickly, or without figures.
_OWED_STEPS = ("image", "record", "qa")


def _at_once(attempts: Sequence[AttemptRow]) -> str:
    """Return which attempts of a group began before the last had ended."""
    return ", ".join(
        f"{one.attempt} and {other.attempt}"
        for one, other in pairwise(sorted(attempts, key=lambda attempt: attempt.attempt))
        if one.ended_at is None or other.started_at < one.ended_at - _SAME_MOMENT_S
    )


def _last(outcome: str) -> str:
    return "the last" if outcome == "completed" else f"the last {outcome}"


def _ended(row: GroupRow | None) -> str:
    if row is None:
        return "absent"
    if row.state == State.COMPLETED:
        return "partial" if row.partial else "completed"
    if row.state == State.FAILED:
        return "failed" if row.error else "failed without a reason"
    return str(row.state)


def _numbers(subbands: Sequence[int]) -> str:
    return ",".join(str(number) for number in sorted(subbands))


# -- what is left -------------------------------------------------------------------------------------------------


def audit_leftovers(site: Site, truth: Truth, *, mounts: Collection[Path] = ()) -> Iterator[Finding]:
    """Yield what lies about that belongs to nobody: scratch, parts of files, sets and tables without a group."""
    for scratch in (site.scratch_dir, *mounts):
        left = sorted(path.name for path in scratch.iterdir()) if scratch.is_dir() else []
        yield Finding("scratch", str(scratch), "", ", ".join(left))
    parts = sorted(path.name for path in site.output_dir.rglob("*") if path.name.endswith(".part"))
    yield Finding("parts", str(site.output_dir), "", ", ".join(parts))
    names = {group.group_id for group in truth.groups}
    sets = sorted(path.name for path in site.output_dir.glob("*.ms") if path.name.removesuffix(".ms") not in names)
    yield Finding("sets of no group", str(site.output_dir), "", ", ".join(sets))
    rows = [row for row in site.registry().tables() if row.status == "active"]
    doubled = [path for path, count in Counter(row.path for row in rows).items() if count > 1]
    yield Finding("tables registered twice", "registry", "", ", ".join(doubled))
    gone = [row.path for row in rows if not Path(row.path).is_dir()]
    yield Finding("tables that are gone", "registry", "", ", ".join(gone))


def audit_runs(runs: Iterable[Mapping[str, Any]]) -> Finding:
    """Return which runs of groups, as the server gives them, are at work although none should be."""
    active = sorted(f"{run['name']} {run['state_type']}" for run in runs if run["state_type"] in _AT_WORK)
    return Finding("runs that are at work", "group-imaging", "", ", ".join(active))


def audit_processes(prefect_home: Path, roots: Collection[int], *, at_work: Collection[str] = ()) -> Finding:
    """Return which processes of a platform have no living ancestor among those that should always run.

    Parameters
    ----------
    prefect_home
        By which its processes are known: it is in the environment of each.
    roots
        Supervisor, server, workers and page; empty for a platform that was stopped.
    at_work
        Flow runs that the server calls running: a run outlives the worker that started it, as it should.
    """
    orphans = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            told = process.environ()
            if told.get("PREFECT_HOME") != str(prefect_home) or told.get("PREFECT__FLOW_RUN_ID") in at_work:
                continue
            if process.status() == psutil.STATUS_ZOMBIE or process.pid in roots:
                continue
            if not any(parent.pid in roots for parent in process.parents()):
                orphans.append(f"{process.pid} {' '.join(process.cmdline())[:120]}")
    return Finding("orphans", str(prefect_home), "", "; ".join(orphans))


def audit_memory(samples: Iterable[tuple[float, str, int, float]]) -> tuple[list[Finding], list[dict[str, Any]]]:
    """Return whether the memory of the processes that lived long was flat, and the slope of each.

    Parameters
    ----------
    samples
        Seconds, name and number of a process, bytes it had.

    Returns
    -------
    findings
        One for each process that lived for `LEAST_LIFE_S`: its median of the last third of its life against that of
        the second.
    slopes
        MB an hour of each, by least squares without the first third.
    """
    lives: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for when, name, pid, size in samples:
        lives.setdefault((name, pid), []).append((when, size))
    findings, slopes = [], []
    for (name, pid), life in sorted(lives.items()):
        t, size = np.array(life).T
        lived = float(t[-1] - t[0])
        if lived < LEAST_LIFE_S or len(t) < 9:
            continue
        third = len(t) // 3
        slope = float(np.polyfit(t[third:], size[third:], 1)[0]) * 3600.0 / 1e6
        middle, end = float(np.median(size[third : 2 * third])), float(np.median(size[2 * third :]))
        grown = end - middle > max(MOST_GROWTH * middle, MOST_GROWTH_BYTES)
        how = f"grew from {middle / 1e6:.0f} to {end / 1e6:.0f} MB" if grown else "flat"
        findings.append(Finding("memory", f"{name} ({pid})", "flat", how))
        told = {"process": name, "pid": pid, "lived_s": round(lived), "mb": round(end / 1e6, 1)}
        slopes.append(told | {"mb_an_hour": round(slope, 2)})
    return findings, slopes


# -- two nights ---------------------------------------------------------------------------------------------------


def compare_nights(one: Site, other: Site, groups: Iterable[str]) -> tuple[list[Finding], float]:
    """Return whether two nights of the same files made the same: states, rows and pixels.

    Returns
    -------
    findings
        For each group.
    worst
        Greatest difference of two pixels over the peak of their image; 0 where all are equal bit for bit.
    """
    found: list[Finding] = []
    worst = 0.0
    for group_id in groups:
        found.append(Finding("state as undisturbed", group_id, _ended_in(other, group_id), _ended_in(one, group_id)))
        rows, wanted = (_rows_of(site, group_id) for site in (one, other))
        differ = sorted(name for name in rows.keys() | wanted.keys() if rows.get(name) != wanted.get(name))
        sides = [", ".join(f"{name} {side.get(name)}" for name in differ) for side in (wanted, rows)]
        found.append(Finding("rows as undisturbed", group_id, sides[0], sides[1]))
        if not (one.products().images(group_id=group_id) and other.products().images(group_id=group_id)):
            continue
        differs = _difference(one, other, group_id)
        worst = max(worst, differs)
        how = "equal" if differs <= MOST_PIXEL_ERROR else f"differ by {differs:.2g} of the peak"
        found.append(Finding("pixels as undisturbed", group_id, "equal", how))
    return found, worst


def _ended_in(site: Site, group_id: str) -> str:
    try:
        return _ended(site.queue().group(group_id))
    except MissingError:
        return "absent"


def _rows_of(site: Site, group_id: str) -> dict[str, Any]:
    """Return what the products say of a group, but for when, where and in which order it was made."""
    products = site.products()
    found: dict[str, Any] = {}
    for number, image in enumerate(products.images(group_id=group_id)):
        found |= {f"image {number} {name}": value for name, value in _plain(image, _NOT_OF_THE_SKY).items()}
    for number, ms in enumerate(row for row in products.ms_index() if row.group_id == group_id):
        found |= {f"set {number} {name}": value for name, value in _plain(ms, _NOT_OF_THE_DATA).items()}
    return found


def _plain(row: Any, without: Collection[str]) -> dict[str, Any]:
    told = {name: value for name, value in dataclasses.asdict(row).items() if name not in without}
    if told.get("parameters"):
        parameters = json.loads(told["parameters"])
        told["parameters"] = {name: parameters[name] for name in sorted(parameters.keys() - _COMMANDS)}
    return {name: float(f"{value:.6g}") if isinstance(value, float) else value for name, value in told.items()}


def _difference(one: Site, other: Site, group_id: str) -> float:
    worst = 0.0
    for kind in ("image", "pbcor", "residual"):
        paths = [product_path(site.image_stem(group_id), kind) for site in (one, other)]
        if not all(path.exists() for path in paths):
            worst = math.inf if any(path.exists() for path in paths) else worst
            continue
        a, b = (np.asarray(open_image(path).data, float) for path in paths)
        if a.shape != b.shape or not np.array_equal(np.isnan(a), np.isnan(b)):
            return math.inf
        peak = float(np.nanmax(np.abs(open_image(product_path(other.image_stem(group_id), "image")).data)))
        worst = max(worst, float(np.nanmax(np.abs(a - b), initial=0.0)) / peak)
    return worst
