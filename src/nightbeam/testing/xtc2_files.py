"""Small valid LCLS-II data files, and their parts: what a data acquisition would have left behind.

The datagrams follow the order of real files: Configure, BeginRun, BeginStep, Enable, events, Disable, EndStep, EndRun.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from nightbeam.core.files import write_bytes
from nightbeam.xtc2.model import (
    Algorithm,
    BlockKind,
    ChunkInfo,
    Detector,
    Field,
    FieldType,
    Names,
    Segment,
    Transition,
)

__all__ = [
    "block",
    "datagram",
    "detector",
    "names_block",
    "names_of",
    "run_directory",
    "shapes_data",
    "write_run",
    "write_xtc2",
    "xtc2_bytes",
]

_RUN_INFO, _CHUNK_INFO, _SMALL_DATA_INFO = 255, 252, 254  # indices of Names with a fixed meaning
_PER_NODE = 200
_SECONDS = 1_000_000_000  # since 1990: September 2021
_LAST = (Transition.Disable, Transition.EndStep, Transition.EndRun)
_ORDER = (Transition.Configure, Transition.BeginRun, Transition.BeginStep, Transition.Enable, Transition.L1Accept)


def detector(
    name: str, kind: str, ids: Sequence[str], *, algorithms: Sequence[str] = ("raw", "config"), first_segment: int = 0
) -> Detector:
    """Return a detector with one segment for each id.

    Parameters
    ----------
    name, kind
        As in ``epixquad`` and ``epix10ka``.
    ids
        The serial text of each segment.
    algorithms
        What each segment writes; a name with ``config`` in it holds no data.
    first_segment
        The number of the first one.
    """
    written = tuple(Algorithm(algorithm, (2, 0, 1)) for algorithm in algorithms)
    return Detector(name, kind, tuple(Segment(first_segment + n, serial, written) for n, serial in enumerate(ids)))


def write_xtc2(path: Path, detectors: Sequence[Detector], **options: Any) -> Path:
    """Write one file as `xtc2_bytes` makes it, whole or not at all, and return its path."""
    write_bytes(path, xtc2_bytes(detectors, **options))
    return path


def write_run(
    xtc_dir: Path,
    detectors: Sequence[Detector],
    *,
    experiment: str,
    run: int,
    streams: int = 1,
    inprogress: bool = False,
    small_data: bool = False,
    **options: Any,
) -> tuple[Path, ...]:
    """Write the files of a run under their proper names and return the bulk files, one for each stream.

    Parameters
    ----------
    xtc_dir
        Where they go; small data go below, into ``smalldata``.
    detectors
        Their segments are dealt out to the streams in turn.
    experiment, run
        For the names and for the run information.
    streams
        How many files.
    inprogress
        Whether they are still being transferred.
    small_data
        Whether each stream has its small data as well.
    **options
        As for `xtc2_bytes`.
    """
    paths = []
    for stream, share in enumerate(_dealt(detectors, streams)):
        stem, end = f"{experiment}-r{run:04d}-s{stream:03d}-c000", ".xtc2" + ".inprogress" * inprogress
        given = {"experiment": experiment, "run": run, **options}
        paths.append(write_xtc2(xtc_dir / (stem + end), share, **given))
        if small_data:
            write_xtc2(xtc_dir / "smalldata" / f"{stem}.smd{end}", share, small_data=True, **given)
    return tuple(paths)


def run_directory(root: Path, experiment: str) -> Path:
    """Return where an experiment's files lie below a root, by the custom of LCLS."""
    return root / experiment[:3] / experiment / "xtc"


def _dealt(detectors: Sequence[Detector], streams: int) -> list[list[Detector]]:
    shares: list[list[Detector]] = [[] for _ in range(streams)]
    for one in detectors:
        for n, share in enumerate(shares):
            if segments := one.segments[n::streams]:
                share.append(replace(one, segments=segments))
    return shares


def xtc2_bytes(
    detectors: Sequence[Detector],
    *,
    experiment: str = "xpptut15",
    run: int = 1,
    events: int = 3,
    until: Transition = Transition.EndRun,
    configure: bool = True,
    run_info: bool = True,
    next_chunk: ChunkInfo | None = None,
    small_data: bool = False,
    cut_bytes: int = 0,
    seconds: int = _SECONDS,
) -> bytes:
    """Return the bytes of one small file.

    Parameters
    ----------
    detectors
        What its Configure announces, beside the run information.
    experiment, run
        What BeginRun says.
    events
        How many events; each holds an array for every algorithm that writes data.
    until
        The last transition that is written: Configure, BeginRun, BeginStep, Enable, L1Accept, Disable, EndStep, EndRun.
    configure
        False for a later chunk, which begins with the first event.
    run_info
        Whether BeginRun says which run it is.
    next_chunk
        Announced by a second Enable; the file then ends after its events.
    small_data
        Whether events are replaced by their places in the bulk file.
    cut_bytes
        How many bytes of the end are left out, as in a file that is still being written.
    seconds
        Time of the first datagram, counted from 1990-01-01 UTC.
    """
    names = names_of(detectors)
    parts: list[bytes] = []
    if configure:
        parts = _beginning(names, experiment, run, run_info, next_chunk, small_data, seconds)
        parts = parts[: _ORDER.index(until) + 1 if until in _ORDER else len(parts)]
    if until is Transition.L1Accept or until in _LAST:
        # Small data name the places of the bulk file, whose Configure is shorter by their own description.
        bulk_at = sum(map(len, parts)) - (len(names_block(_SMALL_DATA_NAMES)) if small_data and configure else 0)
        parts += _events(names, events, small_data, bulk_at, seconds)
        if next_chunk:
            parts.append(datagram(Transition.Enable, _chunk_payload(next_chunk), seconds=seconds + 2))
        elif until in _LAST:
            parts += [datagram(t, seconds=seconds + 2) for t in _LAST[: _LAST.index(until) + 1]]
    whole = b"".join(parts)
    return whole[: len(whole) - cut_bytes] if cut_bytes else whole


def _beginning(
    names: Sequence[Names],
    experiment: str,
    run: int,
    run_info: bool,
    next_chunk: ChunkInfo | None,
    small_data: bool,
    seconds: int,
) -> list[bytes]:
    described = [*names, _RUN_NAMES]
    if next_chunk:
        described.append(_CHUNK_NAMES)
    if small_data:
        described.append(_SMALL_DATA_NAMES)
    begin_run = shapes_data(_RUN_NAMES, {"expt": experiment, "runnum": run}) if run_info else b""
    payloads = {
        Transition.Configure: b"".join(names_block(one) for one in described),
        Transition.BeginRun: begin_run,
    }
    return [datagram(t, payloads.get(t, b""), seconds=seconds, nanoseconds=n) for n, t in enumerate(_ORDER[:-1])]


def _events(names: Sequence[Names], events: int, small_data: bool, at: int, seconds: int) -> list[bytes]:
    written = [one for one in names if "config" not in one.algorithm.lower()]
    bulk = [
        datagram(
            Transition.L1Accept,
            b"".join(shapes_data(one, _values(one, event)) for one in written),
            seconds=seconds + 1,
            nanoseconds=event,
        )
        for event in range(events)
    ]
    if not small_data:
        return bulk
    small = []
    for event, whole in enumerate(bulk):
        place = shapes_data(_SMALL_DATA_NAMES, {"intOffset": at, "intDgramSize": len(whole)})
        small.append(datagram(Transition.L1Accept, place, seconds=seconds + 1, nanoseconds=event))
        at += len(whole)
    return small


def _values(names: Names, event: int) -> dict[str, Any]:
    return {"array": np.arange(6, dtype=np.uint16).reshape(2, 3) + event, "count": event} if names.fields else {}


def names_of(detectors: Iterable[Detector]) -> tuple[Names, ...]:
    """Return one Names for every algorithm of every segment, each with an id of its own."""
    found: list[Names] = []
    for one in detectors:
        for segment in one.segments:
            for algorithm in segment.algorithms:
                node, index = divmod(len(found), _PER_NODE)
                config = "config" in algorithm.name.lower()
                fields = _CONFIG_FIELDS if config else _DATA_FIELDS
                identity = (1 + node) << 8 | index
                found.append(
                    Names(
                        identity,
                        one.type,
                        one.name,
                        segment.detector_id,
                        segment.number,
                        algorithm.name,
                        algorithm.version,
                        fields,
                    )
                )
    return tuple(found)


_DATA_FIELDS = (Field("array", FieldType.UINT16, 2), Field("count", FieldType.UINT32, 0))
_CONFIG_FIELDS = (Field("user.gain_mode", FieldType.UINT32, 0),)
_SMALL_DATA_NAMES = Names(
    1 << 8 | _SMALL_DATA_INFO,
    "offset",
    "smdinfo",
    "",
    0,
    "offsetAlg",
    (0, 0, 0),
    (Field("intOffset", FieldType.UINT64, 0), Field("intDgramSize", FieldType.UINT64, 0)),
)


_RUN_NAMES = Names(
    1 << 8 | _RUN_INFO,
    "runinfo",
    "runinfo",
    "",
    0,
    "runinfo",
    (0, 0, 1),
    (Field("expt", FieldType.CHARSTR, 1), Field("runnum", FieldType.UINT32, 0)),
)
_CHUNK_NAMES = Names(
    1 << 8 | _CHUNK_INFO,
    "chunkinfo",
    "chunkinfo",
    "",
    0,
    "chunkinfo",
    (0, 0, 1),
    (Field("chunkid", FieldType.UINT32, 0), Field("filename", FieldType.CHARSTR, 1)),
)


def _chunk_payload(chunk: ChunkInfo) -> bytes:
    return shapes_data(_CHUNK_NAMES, {"chunkid": chunk.chunk, "filename": chunk.filename})


def datagram(
    transition: int,
    payload: bytes = b"",
    *,
    seconds: int = _SECONDS,
    nanoseconds: int = 0,
    damage: int = 0,
    extent: int | None = None,
) -> bytes:
    """Return a datagram; a false ``extent`` can be given to see what a reader makes of it."""
    env = transition << 24
    return struct.pack("<III", nanoseconds, seconds, env) + block(
        BlockKind.PARENT, payload, damage=damage, extent=extent
    )


def block(kind: int, payload: bytes = b"", *, source: int = 0, damage: int = 0, extent: int | None = None) -> bytes:
    """Return an Xtc block; a false ``extent`` can be given."""
    return struct.pack("<IHHI", source, damage, kind, 12 + len(payload) if extent is None else extent) + payload


def names_block(names: Names, *, arrays: int | None = None) -> bytes:
    """Return a Names block; a false count of ``arrays`` can be given."""
    counted = sum(1 for field in names.fields if field.rank) if arrays is None else arrays
    major, minor, micro = names.version
    texts = (names.detector_type, names.detector_name, names.detector_id, names.algorithm)
    head = struct.pack(
        "<I256s256s256s256sII",
        counted,
        *(text.encode("ascii") for text in texts),
        major << 16 | minor << 8 | micro,
        names.segment,
    )
    fields = (struct.pack("<256xI256sII", 0, f.name.encode("ascii"), f.type, f.rank) for f in names.fields)
    return block(BlockKind.NAMES, head + b"".join(fields), source=names.names_id)


def shapes_data(names: Names, values: Mapping[str, Any]) -> bytes:
    """Return a ShapesData block with a value for every field of ``names``.

    Texts are padded with NULs to a multiple of four bytes, one NUL at least, as the original's writer does. What
    is not ASCII is written as Latin-1, to see what a reader makes of it.
    """
    shapes, data = b"", b""
    for field in names.fields:
        if field.type is FieldType.CHARSTR:
            raw = str(values[field.name]).encode("latin-1")
            array = np.frombuffer(raw + b"\0" * (4 - len(raw) % 4), "u1")
        else:
            array = np.asarray(values[field.name], field.type.dtype)
        if array.ndim != field.rank:
            raise ValueError(f"{field.name} has {array.ndim} dimensions, not {field.rank}")
        if field.rank:
            shapes += struct.pack("<5I", *array.shape, *[0] * (5 - array.ndim))
        data += array.tobytes()
    inner = block(BlockKind.SHAPES, shapes) if shapes else b""
    return block(BlockKind.SHAPES_DATA, inner + block(BlockKind.DATA, data), source=names.names_id)
