"""One group of a plan: its files, what goes wrong with them, when they come, and what should become of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final

import numpy as np
from numpy.typing import NDArray

from nightbeam.core.keys import GroupId, SubbandName
from nightbeam.core.times import datetime_from_jd
from nightbeam.simulate import compute
from nightbeam.simulate.faults import restart_of, value_of
from nightbeam.simulate.inventory import Interval, draw_offsets
from nightbeam.simulate.model import (
    Fault,
    FileOutcome,
    GroupOutcome,
    SimulationSpec,
    TruthArrival,
    TruthFault,
    TruthGroup,
)
from nightbeam.sky import OVRO_DSA110, Calibrator, meridian_icrs

__all__ = ["FOREIGN", "Night", "PlannedGroup", "plan_group"]

#: What a foreign file is, what an ingest should do with it, and why.
FOREIGN: Final[Mapping[str, tuple[str, FileOutcome, str]]] = {
    "text": ("a text file with the name of a subband", "bad", "not HDF5"),
    "no-header": ("HDF5 without Header", "bad", "no Header"),
    "shape": ("a subband whose data have another shape than its header says", "bad", "shape"),
    "extra-subband": ("a subband beyond the band", "bad", "outside the band"),
    "spl": ("a spectral-line product", "ignored", "spectral line product"),
    "hidden": ("a copy that rsync never finished", "ignored", "hidden"),
    "incomplete": ("a file that was never finished", "ignored", "unfinished"),
}
#: The first number that no subband of the band has.
BEYOND_THE_BAND: Final = 16
COPIED_WITHIN_S: Final = 4.0
_REPEATABLE: Final = ("duplicate-subband", "foreign-file")


@dataclass(frozen=True)
class Night:
    """What all groups of a plan share; ``taken`` are the names that files have."""

    spec: SimulationSpec
    faults: tuple[Fault, ...]
    starts_s: tuple[float, ...]
    intervals: tuple[Interval, ...]
    first_jd: float
    dec_rad: float
    calibrator: Calibrator | None
    taken: set[str] = field(default_factory=set)

    def name(self, stamp: datetime, subband: int) -> SubbandName:
        """Return a name that no other file has, of this second or the next that is free."""
        name = SubbandName(stamp, subband)
        while str(name) in self.taken:
            name = name.later(1)
        self.taken.add(str(name))
        return name

    def faults_in(self, index: int) -> list[Fault]:
        """Return the faults of a group, none twice that cannot happen twice."""
        found: dict[object, Fault] = {}
        for place, fault in enumerate(f for f in self.faults if f.group in (None, index)):
            found.setdefault(place if fault.kind in _REPEATABLE else (fault.kind, fault.number), fault)
        return list(found.values())


@dataclass(frozen=True)
class PlannedGroup:
    """A group, what goes wrong in it, and its files."""

    group: TruthGroup
    events: tuple[TruthFault, ...]
    arrivals: tuple[TruthArrival, ...]


def plan_group(night: Night, index: int) -> PlannedGroup:
    """Return what will be true of the group with this number."""
    return _Planner(night, index).plan()


class _Planner:
    """Works out one group: first which files there are, then what each fault does, then when all come."""

    def __init__(self, night: Night, index: int) -> None:
        self.night, self.index, self.spec = night, index, night.spec
        self.start_jd = night.first_jd + night.starts_s[index] / 86400.0
        self.group_id = str(GroupId.from_jd(self.start_jd))
        self.faults = night.faults_in(index)
        ends = [restart_of(f)[1] for f in self.faults if f.kind == "restart-gap"]
        self.integrations = ends[0] if ends else self.spec.integrations
        # From the middle of the first integration of all to the end of the last of this group.
        self.done_s = night.starts_s[index] + (self.integrations - 0.5) * compute.INTEGRATION_S
        missing = {f.number for f in self._of("missing-subband")}
        self.present = [sb for sb in range(self.spec.subbands) if sb not in missing]
        self.refused = self._refused()
        self.usable = tuple(sb for sb in self.present if sb not in self.refused)
        self.offsets, self.names = self._named()
        self.events: list[TruthFault] = []
        self.arrivals: list[TruthArrival] = []

    def plan(self) -> PlannedGroup:
        self._deliver()
        for fault in self.faults:
            self._happen(fault)
        touched = {a.name: tuple(e.fault for e in self.events if a.name in e.files) for a in self.arrivals}
        arrivals = tuple(replace(a, faults=touched[a.name]) for a in self.arrivals)
        return PlannedGroup(self._group(), tuple(self.events), arrivals)

    def _of(self, *kinds: str) -> list[Fault]:
        return [f for f in self.faults if f.kind in kinds]

    def _numbered(self, kind: str) -> dict[int, Fault]:
        return {f.number: f for f in self._of(kind) if f.number is not None}

    def _rng(self, stream: int, *more: int) -> np.random.Generator:
        return np.random.default_rng([self.spec.seed, stream, self.index, *more])

    def _refused(self) -> dict[int, tuple[Fault, str]]:
        """Return the subbands whose files are bad, each with the fault and the reason."""
        found: dict[int, tuple[Fault, str]] = {}
        for kind, reason in (("zero-byte", "zero bytes"), ("truncated-subband", "truncated")):
            for subband, fault in self._numbered(kind).items():
                if subband in self.present:
                    found.setdefault(subband, (fault, reason))
        readable = [sb for sb in self.present if sb not in found]
        odd = {sb: f for sb, f in self._numbered("wrong-pointing").items() if sb in readable}
        if 2 * len(odd) < len(readable):  # otherwise nothing tells who is wrong, and nobody is
            found |= {sb: (fault, "pointing") for sb, fault in odd.items()}
        return found

    def _named(self) -> tuple[NDArray[np.int64], dict[int, SubbandName]]:
        # The latest computer opens its file just before the first sample, which is half an integration
        # before the first time in the header; its name has whole seconds.
        rng = self._rng(14)
        before_s = 0.5 * compute.INTEGRATION_S + float(rng.uniform(0.0, 3.0))
        latest = (datetime_from_jd(self.start_jd) - timedelta(seconds=before_s)).replace(microsecond=0)
        if self.night.intervals:
            offsets = draw_offsets(rng, self.spec.subbands, self.night.intervals[self.index])
        else:
            offsets = compute.clock_offsets(rng, self.spec.subbands)
        first = latest - timedelta(seconds=int(offsets.max()))
        jumps = {sb: value_of(f) for sb, f in self._numbered("clock-jump").items()}
        stamps = {sb: first + timedelta(seconds=int(offsets[sb]) + round(jumps.get(sb, 0.0))) for sb in self.present}
        return offsets, {sb: self.night.name(stamps[sb], sb) for sb in self.present}

    def _deliver(self) -> None:
        late = {sb: value_of(f) for sb, f in self._numbered("late-subband").items()}
        for sb in self.present:
            copied_s = float(np.random.default_rng([self.spec.seed, 18, self.index, sb]).uniform(0.0, COPIED_WITHIN_S))
            waits_s = float(self.offsets[sb]) if self.night.intervals else 0.0
            when_s = self.done_s + waits_s + copied_s + late.get(sb, 0.0)
            outcome, reason = self._outcome(sb)
            self.arrivals.append(TruthArrival(when_s, str(self.names[sb]), self.group_id, sb, outcome, reason))

    def _outcome(self, subband: int) -> tuple[FileOutcome, str]:
        return ("bad", self.refused[subband][1]) if subband in self.refused else ("used", "")

    def _happen(self, fault: Fault) -> None:
        event = getattr(self, "_" + fault.kind.replace("-", "_"))(fault)
        if event is not None:
            self.events.append(event)

    def _event(self, fault: Fault, what: str, **more: object) -> TruthFault:
        return replace(TruthFault(str(fault), fault.kind, self.group_id, what), **more)  # type: ignore[arg-type]

    def _on_file(self, fault: Fault, what: str, **more: object) -> TruthFault | None:
        """Return an event in the one file of a subband, or None where it never comes."""
        subband = fault.number
        if subband not in self.names:
            return None
        outcome, _ = self._outcome(subband)
        base = self._event(fault, what, subbands=(subband,), files=(str(self.names[subband]),), file_outcome=outcome)
        return replace(base, **more)  # type: ignore[arg-type]

    def _on_all(self, fault: Fault, what: str, **more: object) -> TruthFault:
        """Return an event in all files that can be imaged."""
        files = tuple(str(self.names[sb]) for sb in self.usable)
        return replace(self._event(fault, what, subbands=self.usable, files=files), **more)  # type: ignore[arg-type]

    @property
    def _lacking(self) -> GroupOutcome:
        return "incomplete" if self.spec.subbands > 1 else "absent"

    def _missing_subband(self, fault: Fault) -> TruthFault:
        assert fault.number is not None
        return self._event(
            fault,
            "its file never comes",
            subbands=(fault.number,),
            file_outcome=None,
            group_outcome=self._lacking,
        )

    def _late_subband(self, fault: Fault) -> TruthFault | None:
        late_s = value_of(fault)
        return self._on_file(fault, f"its file comes {late_s:.0f} s late", value=late_s)

    def _zero_byte(self, fault: Fault) -> TruthFault | None:
        return self._refusal(fault, "its file has zero bytes")

    def _truncated_subband(self, fault: Fault) -> TruthFault | None:
        kept = value_of(fault)
        return self._refusal(fault, f"its file is cut to {100.0 * kept:.2f} % of its bytes", value=kept)

    def _refusal(self, fault: Fault, what: str, **more: object) -> TruthFault | None:
        found = self.refused.get(fault.number) if fault.number is not None else None
        if found is None or found[0] != fault:
            return None
        return self._on_file(fault, what, group_outcome=self._lacking, **more)

    def _wrong_pointing(self, fault: Fault) -> TruthFault | None:
        off_deg = value_of(fault)
        if fault.number is not None:
            what = f"its header says a Dec {off_deg:+g} deg from that of the data and of the other headers"
            return self._refusal(fault, what, value=off_deg)
        what = f"all headers say a Dec {off_deg:+g} deg from that of the data, which nothing in the files tells"
        # Also those that differ from it by a fault of their own, which counts from here.
        files = tuple(str(name) for name in self.names.values())
        return self._event(fault, what, subbands=tuple(self.names), files=files, value=off_deg)

    def _duplicate_subband(self, fault: Fault) -> TruthFault | None:
        subband = fault.number
        if subband not in self.names:
            return None
        original = next(a for a in self.arrivals if a.subband == subband)
        rng = self._rng(24, subband, len(self.arrivals))
        name = str(self.names[subband])
        what, outcome, reason = "its file is written again under its name", "ignored", "same path again"
        if fault.value == "renamed":
            later = self.names[subband].later(int(rng.integers(1, 10)))
            name = str(self.night.name(later.stamp, subband))
            what, outcome, reason = "its file comes again under another name", "duplicate", "second file of its subband"
            if original.outcome == "bad":
                outcome, reason = original.outcome, original.reason
        when_s = original.arrival_s + float(rng.uniform(20.0, 120.0))
        self.arrivals.append(replace(original, arrival_s=when_s, name=name, outcome=outcome, reason=reason))  # type: ignore[arg-type]
        return self._event(fault, what, subbands=(subband,), files=(name,), file_outcome=outcome)

    def _foreign_file(self, fault: Fault) -> TruthFault:
        what, outcome, reason = FOREIGN[str(fault.value)]
        rng = self._rng(25, len(self.arrivals))
        stamp = datetime_from_jd(self.start_jd).replace(microsecond=0) + timedelta(seconds=int(rng.integers(2, 30)))
        assert fault.number is not None
        number = BEYOND_THE_BAND if fault.value == "extra-subband" else fault.number
        stem = str(self.night.name(stamp, number)).removesuffix(".hdf5")
        name = {
            "spl": f"{stem}_spl.hdf5",
            "hidden": f".{stem}.hdf5.Xk3f9Q",
            "incomplete": f"{stem}_incomplete.hdf5",
        }.get(str(fault.value), f"{stem}.hdf5")
        when_s = self.done_s + float(rng.uniform(0.0, COPIED_WITHIN_S))
        self.arrivals.append(TruthArrival(when_s, name, self.group_id, None, outcome, reason))
        return self._event(fault, what, files=(name,), file_outcome=outcome)

    def _nan_block(self, fault: Fault) -> TruthFault | None:
        if fault.number not in self.usable:
            return None
        fraction = value_of(fault)
        baselines = self._baselines()
        n_times = max(1, round(self.integrations * math.sqrt(fraction)))
        n_rows = max(1, min(baselines, round(baselines * self.integrations * fraction / n_times)))
        rng = self._rng(21, fault.number)
        begin = int(rng.integers(self.integrations - n_times + 1))
        row = int(rng.integers(baselines - n_rows + 1))
        return self._on_file(
            fault,
            f"{n_rows} of {baselines} baselines are NaN in {n_times} of {self.integrations} integrations",
            flagged=True,
            integrations=tuple(range(begin, begin + n_times)),
            baselines=(row, row + n_rows),
            value=fraction,
        )

    def _baselines(self) -> int:
        antennas = self.spec.antennas if self.spec.stations is None else len(self.spec.stations)
        return antennas * (antennas + 1) // 2

    def _restart_gap(self, fault: Fault) -> TruthFault:
        seconds, integrations = restart_of(fault)
        what = f"{integrations} integrations, and the next observation starts {seconds:g} s after this one"
        if integrations == self.spec.integrations:
            return self._event(fault, what, value=seconds)
        return self._on_all(fault, what, value=seconds)

    def _clock_jump(self, fault: Fault) -> TruthFault | None:
        off_s = value_of(fault)
        what = f"its name says a time {off_s:+g} s from the true one; its header is right"
        return self._on_file(fault, what, value=off_s)

    def _dead_antenna(self, fault: Fault) -> TruthFault:
        assert fault.number is not None
        return self._on_all(fault, "exact zeros on all its baselines", flagged=True, stations=(fault.number,))

    def _rfi_line(self, fault: Fault) -> TruthFault | None:
        subband, flux_jy = fault.number, value_of(fault)
        if subband not in self.usable:
            return None
        emitter = compute.draw_emitter(self.spec.seed, fault.kind, subband)
        channels = compute.line_channels(emitter, self.spec.channels)
        freqs = compute.channel_freqs(subband, self.spec.channels)[list(channels)]
        return self._on_file(
            fault,
            f"a lasting line of {flux_jy:g} Jy in 244 kHz from azimuth {emitter.azimuth_deg:.1f} deg on the horizon",
            flagged=True,
            channels=channels,
            freqs_hz=tuple(float(f) for f in freqs),
            integrations=tuple(range(self.integrations)),
            value=flux_jy,
        )

    def _rfi_burst(self, fault: Fault) -> TruthFault | None:
        integration, flux_jy = fault.number, value_of(fault)
        if integration is None or integration >= self.integrations:
            return None
        emitter = compute.draw_emitter(self.spec.seed, fault.kind, integration)
        return self._on_all(
            fault,
            f"a burst of {flux_jy:g} Jy over the band from azimuth {emitter.azimuth_deg:.1f} deg on the horizon",
            flagged=True,
            channels=tuple(range(self.spec.channels)),
            integrations=(integration,),
            value=flux_jy,
        )

    def _group(self) -> TruthGroup:
        times = compute.integration_times(self.start_jd, self.integrations)
        mid_jd = float(0.5 * (times[0] + times[-1]))
        ra, dec = meridian_icrs(mid_jd, self.night.dec_rad, OVRO_DSA110)
        missing = tuple(sb for sb in range(self.spec.subbands) if sb not in self.names)
        whole = len(self.usable) == self.spec.subbands
        lacking = [(sb, "missing") for sb in missing] + [(sb, why) for sb, (_, why) in self.refused.items()]
        calibrator = self.night.calibrator
        return TruthGroup(
            group_id=self.group_id,
            start_jd=self.start_jd,
            mid_jd=mid_jd,
            end_jd=float(times[-1]),
            ra_deg=float(ra),
            dec_deg=float(dec),
            files=tuple(str(name) for name in self.names.values()),
            missing=missing,
            late=tuple(sb for sb in sorted(self._numbered("late-subband")) if sb in self.names),
            dead_stations=tuple(sorted(self._numbered("dead-antenna"))),
            calibrator=calibrator.name if calibrator and self.index == self.spec.calibrator_group else None,
            integrations=self.integrations,
            usable=self.usable,
            header_dec_deg=math.degrees(self.night.dec_rad) + self._header_off_deg(),
            outcome="completed" if whole else "incomplete" if self.usable else "absent",
            reason="; ".join(f"sb{sb:02d} {why}" for sb, why in sorted(lacking)),
        )

    def _header_off_deg(self) -> float:
        return sum(value_of(f) for f in self._of("wrong-pointing") if f.number is None)
