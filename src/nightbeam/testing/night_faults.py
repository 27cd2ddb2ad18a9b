"""What can go wrong in a simulated night: each kind of fault, and the error or flag that is owed for it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, Self

import numpy as np
import zarr
from numpy.typing import NDArray

from nightbeam.core.errors import UsageError
from nightbeam.scans.files import scan_name
from nightbeam.scans.model import (
    AtmosphereFitError,
    CalibrationError,
    ElevationError,
    Flag,
    FrequencyAxisError,
    GainError,
    LoadTemperatureError,
    MissingOffError,
    MissingOnError,
    NoCalibrationError,
    OpaqueError,
    Phase,
    RawScan,
    ReceiverTemperatureError,
    SaturationError,
    ScanSchemaError,
    StoreReadError,
    UnsupportedModeError,
)

__all__ = ["FAULT_KINDS", "Fault", "FaultKind", "Place", "leave_incomplete", "write_zarr_v2"]

#: Dump on the source, pixel, channel; None: all of them.
Place = tuple[int | None, int | None, int | None]
#: Samples next to each other that are spoilt together; not one, so that they are no spike, and not many.
_SAMPLES: Final = 3
#: What a scan has of each dump.
_BY_DUMP: Final = (
    "counts", "phase", "time_s", "duration_s", "elevation_deg", "azimuth_deg", "lon_off_deg", "lat_off_deg", "row",
    "flag",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong with one science scan.

    Attributes
    ----------
    kind
        A key of `FAULT_KINDS`.
    scan
        Number of the scan.

    Raises
    ------
    UsageError
        If nothing goes wrong in that way.
    """

    kind: str
    scan: int

    def __post_init__(self) -> None:
        if self.kind not in FAULT_KINDS:
            raise UsageError(f"no fault is called {self.kind!r}", fix=f"one of {', '.join(FAULT_KINDS)}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the fault that is written like ``truncated-chunk:12``.

        Raises
        ------
        UsageError
            If it is written otherwise, or there is no such kind.

        Examples
        --------
        >>> Fault.parse("truncated-chunk:12")
        Fault(kind='truncated-chunk', scan=12)
        """
        kind, colon, scan = text.partition(":")
        if not (colon and scan.isascii() and scan.isdigit()):
            raise UsageError(f"{text!r} names no fault of a scan", fix="write it like truncated-chunk:12")
        return cls(kind, int(scan))

    def __str__(self) -> str:
        return f"{self.kind}:{self.scan}"

    @property
    def meaning(self) -> FaultKind:
        """What the kind does, and what is owed for it."""
        return FAULT_KINDS[self.kind]


def _as_it_is(scan: RawScan) -> RawScan:
    return scan


@dataclass(frozen=True, slots=True)
class FaultKind:
    """What a fault does to a scan, to its load calibration and to their files.

    Attributes
    ----------
    says
        For who reads a list of them.
    error
        What the calibration of the scan ends with; None where it succeeds and samples are flagged.
    flag
        Of those samples.
    calibration
        ``shared``: that of the scans about it. The others give the scan a tuning of its own, so that no other scan can
        use what is wrong with it: ``own`` is a calibration of that tuning, ``old`` one of hours ago, ``none`` none.
    of_scan, of_load
        Make the scan, or its own calibration, into what they are to be.
    of_files
        Damages the directory of the written scan.
    transmission
        The water is so much that at most this comes through; ``opaque_channels`` tells in which channels.
    opaque_channels
        ``all``, or ``half``: those of more than median opacity.
    spoils
        Axes along which the spoilt samples are not all, of (d)ump, (p)ixel and (c)hannel.
    channels
        How many channels next to each other are spoilt.
    """

    says: str
    error: type[CalibrationError] | None = None
    flag: Flag = Flag.NONE
    calibration: Literal["shared", "own", "old", "none"] = "shared"
    of_scan: Callable[[RawScan], RawScan] = _as_it_is
    of_load: Callable[[RawScan], RawScan] = _as_it_is
    of_files: Callable[[Path], None] | None = None
    transmission: float | None = None
    opaque_channels: Literal["all", "half"] = "all"
    spoils: str = ""
    channels: int = 1

    def places(self, scan: RawScan) -> tuple[Place, ...]:
        """Return which samples are to be flagged; none where that depends on the air."""
        if not self.spoils:
            return ()
        on, pixel, channel = _spot(scan)
        one: tuple[int | None, int | None] = (on if "d" in self.spoils else None, pixel)
        if "c" not in self.spoils:
            return ((*one, None),)
        return tuple((*one, channel + n) for n in range(self.channels))


def _spot(scan: RawScan) -> tuple[int, int, int]:
    """Return where samples are spoilt: dump (among those on the source), pixel, channel, away from the line."""
    pixels, channels = scan.counts.shape[1:]
    return int(np.count_nonzero(scan.phase == Phase.ON)) // 2, pixels // 2, channels // 4


# -- damaged files --------------------------------------------------------------------------------------------------


def _damage_chunk(scan: Path, *, damage: Literal["cut", "flip", "remove"]) -> None:
    chunk = max(path for path in (scan / "counts" / "c").rglob("*") if path.is_file())
    if damage == "remove":
        chunk.unlink()
        return
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 4
    chunk.write_bytes(data[: len(data) // 2] if damage == "cut" else data)


def _remove_array(scan: Path) -> None:
    shutil.rmtree(scan / "frequency_image")


def _group(scan: Path) -> Any:
    return zarr.open_group(scan, mode="r+", zarr_format=3, use_consolidated=False)


def _remove_attribute(scan: Path) -> None:
    del _group(scan).attrs["lo_hz"]


def _shorten_array(scan: Path) -> None:
    group = _group(scan)
    group.create_array("elevation", data=group["elevation"][:-1], overwrite=True)


def _retype_array(scan: Path) -> None:
    group = _group(scan)
    group.create_array("phase", data=group["phase"][:].astype("f8"), overwrite=True)


def _change_units(scan: Path) -> None:
    _group(scan)["time"].attrs.update({"units": "d", "epoch": "J2000"})


# -- wrong scans ----------------------------------------------------------------------------------------------------


def _reverse_time(scan: RawScan) -> RawScan:
    return replace(scan, time_s=scan.time_s[::-1].copy())


def _fold_frequencies(scan: RawScan) -> RawScan:
    freq, image = scan.freq_hz.copy(), scan.image_hz.copy()
    freq[1:3], image[1:3] = freq[2:0:-1], image[2:0:-1]
    return replace(scan, freq_hz=freq, image_hz=image)


def _point_low(scan: RawScan) -> RawScan:
    return replace(scan, elevation_deg=np.full_like(scan.elevation_deg, 3.0))


def _rename_phases(scan: RawScan, *, names: Mapping[Phase, Phase]) -> RawScan:
    phases = [names.get(Phase(one), Phase(one)) for one in scan.phase]
    return replace(scan, phase=np.array(phases, np.uint8))


def _leave_out(scan: RawScan, *, phase: Phase) -> RawScan:
    kept = scan.phase != phase
    return replace(scan, **{name: getattr(scan, name)[kept] for name in _BY_DUMP})


# -- wrong loads ----------------------------------------------------------------------------------------------------


def _mistake_temperature(load: RawScan) -> RawScan:
    return replace(load, info=replace(load.info, t_hot_k=93.0))


def _lower_zero(load: RawScan, *, one_channel: bool = False) -> RawScan:
    """Take so much from all counts that the gain is as it was and the receiver has less than no noise."""
    hot, cold = (load.counts[load.phase == phase].mean(axis=0) for phase in (Phase.HOT, Phase.COLD))
    lower = cold + 0.2 * (hot - cold)
    if one_channel:
        _, pixel, channel = _spot(load)
        there = np.zeros(lower.shape, bool)
        there[pixel, channel] = True
        lower = np.where(there, lower, 0.0)
    return replace(load, counts=(load.counts - lower).astype(load.counts.dtype))


def _saturate(load: RawScan) -> RawScan:
    return _at_phase(load, Phase.HOT, _ceiling(load))


def _break_hot(load: RawScan) -> RawScan:
    counts = load.counts.copy()
    counts[load.phase == Phase.HOT, :, : counts.shape[2] * 5 // 8] = np.nan
    return replace(load, counts=counts)


def _heat_sky(load: RawScan) -> RawScan:
    return _at_phase(load, Phase.SKY, 1.05 * load.counts[load.phase == Phase.HOT].mean(axis=0))


def _at_phase(scan: RawScan, phase: Phase, values: float | NDArray[Any]) -> RawScan:
    counts = scan.counts.copy()
    counts[scan.phase == phase] = values
    return replace(scan, counts=counts)


def _ceiling(scan: RawScan) -> float:
    if scan.info.adc_ceiling is None:
        raise UsageError("nothing saturates without a ceiling", fix="give the plan an adc_ceiling")
    return scan.info.adc_ceiling


def _turn_gain(load: RawScan) -> RawScan:
    """Exchange the loads in one channel."""
    _, pixel, channel = _spot(load)
    counts, hot, cold = load.counts.copy(), load.phase == Phase.HOT, load.phase == Phase.COLD
    counts[hot, pixel, channel] = load.counts[cold, pixel, channel].mean()
    counts[cold, pixel, channel] = load.counts[hot, pixel, channel].mean()
    return replace(load, counts=counts)


# -- bad samples ----------------------------------------------------------------------------------------------------


def _spoil(scan: RawScan, *, to: Callable[[RawScan], float], samples: int = 1) -> RawScan:
    on, pixel, channel = _spot(scan)
    counts = scan.counts.copy()
    counts[np.flatnonzero(scan.phase == Phase.ON)[on], pixel, channel : channel + samples] = to(scan)
    return replace(scan, counts=counts)


def _much(scan: RawScan) -> float:
    """Return twice what is usual."""
    return 2.0 * float(np.median(scan.counts))


def _kill(scan: RawScan, *, channels: Literal["one", "all"]) -> RawScan:
    _, pixel, channel = _spot(scan)
    counts = scan.counts.copy()
    counts[:, pixel, channel if channels == "one" else slice(None)] = 0.0
    return replace(scan, counts=counts)


def _flag_dump(scan: RawScan) -> RawScan:
    on, pixel, _ = _spot(scan)
    flag = scan.flag.copy()
    flag[np.flatnonzero(scan.phase == Phase.ON)[on], pixel] = 1
    return replace(scan, flag=flag)


_DEAD_CHANNEL, _DEAD_PIXEL = partial(_kill, channels="one"), partial(_kill, channels="all")

#: Every fault by its name: those that end a scan's calibration, then those that flag samples of it.
FAULT_KINDS: Final[Mapping[str, FaultKind]] = {
    "truncated-chunk": FaultKind(
        "half of the last chunk of the counts is missing", StoreReadError, of_files=partial(_damage_chunk, damage="cut")
    ),
    "missing-chunk": FaultKind(
        "the last chunk of the counts is missing", StoreReadError, of_files=partial(_damage_chunk, damage="remove")
    ),
    "flipped-byte": FaultKind(
        "one bit of the counts is wrong", StoreReadError, of_files=partial(_damage_chunk, damage="flip")
    ),
    "missing-array": FaultKind("there are no image frequencies", ScanSchemaError, of_files=_remove_array),
    "missing-attribute": FaultKind("the local oscillator is not told", ScanSchemaError, of_files=_remove_attribute),
    "wrong-shape": FaultKind("there is an elevation too few", ScanSchemaError, of_files=_shorten_array),
    "wrong-dtype": FaultKind("the phases are no integers", ScanSchemaError, of_files=_retype_array),
    "wrong-units": FaultKind("the times are days since J2000", ScanSchemaError, of_files=_change_units),
    "times-backwards": FaultKind("the times descend", ScanSchemaError, of_scan=_reverse_time),
    "frequency-axis": FaultKind("two frequencies are exchanged", FrequencyAxisError, of_scan=_fold_frequencies),
    "low-elevation": FaultKind("the telescope points at the ground", ElevationError, of_scan=_point_low),
    "chopped": FaultKind(
        "the scan was chopped",
        UnsupportedModeError,
        of_scan=partial(_rename_phases, names={Phase.ON: Phase.SIG, Phase.OFF: Phase.REF}),
    ),
    "no-off": FaultKind("no reference was observed", MissingOffError, of_scan=partial(_leave_out, phase=Phase.OFF)),
    "no-on": FaultKind("no source was observed", MissingOnError, of_scan=partial(_leave_out, phase=Phase.ON)),
    "no-calibration": FaultKind("no loads were observed at its tuning", NoCalibrationError, calibration="none"),
    "old-calibration": FaultKind("the loads were observed two hours before", NoCalibrationError, calibration="old"),
    "load-temperature": FaultKind(
        "the hot load has 93 K", LoadTemperatureError, calibration="own", of_load=_mistake_temperature
    ),
    "swapped-loads": FaultKind(
        "hot and cold load are exchanged",
        GainError,
        calibration="own",
        of_load=partial(_rename_phases, names={Phase.HOT: Phase.COLD, Phase.COLD: Phase.HOT}),
    ),
    "broken-loads": FaultKind("most of the hot load is no number", GainError, calibration="own", of_load=_break_hot),
    "receiver-temperature": FaultKind(
        "the receiver has less than no noise", ReceiverTemperatureError, calibration="own", of_load=_lower_zero
    ),
    "saturated": FaultKind("the hot load is at the ceiling", SaturationError, calibration="own", of_load=_saturate),
    "hot-sky": FaultKind(
        "the sky is hotter than the hot load", AtmosphereFitError, calibration="own", of_load=_heat_sky
    ),
    "opaque": FaultKind("nothing comes through the air", OpaqueError, calibration="own", transmission=0.005),
    "nan-samples": FaultKind(
        "some samples are no numbers",
        flag=Flag.NOT_FINITE,
        of_scan=partial(_spoil, to=lambda _: np.nan, samples=_SAMPLES),
        spoils="dpc",
        channels=_SAMPLES,
    ),
    "dead-channel": FaultKind(
        "a channel of a pixel is zero, loads included",
        flag=Flag.DEAD,
        calibration="own",
        of_scan=_DEAD_CHANNEL,
        of_load=_DEAD_CHANNEL,
        spoils="pc",
    ),
    "dead-pixel": FaultKind(
        "a pixel is zero, loads included",
        flag=Flag.DEAD,
        calibration="own",
        of_scan=_DEAD_PIXEL,
        of_load=_DEAD_PIXEL,
        spoils="p",
    ),
    "saturated-samples": FaultKind(
        "some samples are at the ceiling",
        flag=Flag.SATURATED,
        of_scan=partial(_spoil, to=_ceiling, samples=_SAMPLES),
        spoils="dpc",
        channels=_SAMPLES,
    ),
    "odd-gain": FaultKind(
        "a channel of a pixel has a negative gain", flag=Flag.GAIN, calibration="own", of_load=_turn_gain, spoils="pc"
    ),
    "odd-receiver": FaultKind(
        "a channel of a pixel has less than no noise",
        flag=Flag.RECEIVER,
        calibration="own",
        of_load=partial(_lower_zero, one_channel=True),
        spoils="pc",
    ),
    "opaque-channels": FaultKind(
        "nothing comes through the air in half of the channels",
        flag=Flag.OPAQUE,
        calibration="own",
        transmission=0.02,
        opaque_channels="half",
    ),
    "spike": FaultKind(
        "one sample is twice too high", flag=Flag.SPIKE, of_scan=partial(_spoil, to=_much), spoils="dpc"
    ),
    "user-flag": FaultKind("a dump of a pixel is flagged", flag=Flag.USER, of_scan=_flag_dump, spoils="dp"),
}


# -- whole stores ---------------------------------------------------------------------------------------------------


def leave_incomplete(store: Path, scan: int) -> None:
    """Say of a scan of a store that whoever writes it has not finished."""
    _group(store / "scans" / scan_name(scan)).attrs["complete"] = False


def write_zarr_v2(store: Path) -> None:
    """Write an empty store of Zarr's format 2, which is not read."""
    zarr.create_group(store, zarr_format=2, attributes={"schema": "scal-l0", "schema_version": 1})
