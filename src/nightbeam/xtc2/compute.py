"""From the bytes of a datagram to detectors and values; every size is checked before it is believed.

The layout is that of LCLS-II's ``xtcdata`` library: little-endian, packed, blocks within blocks.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from nightbeam.xtc2.model import (
    Algorithm,
    BlockKind,
    ChunkInfo,
    Detector,
    Field,
    FieldType,
    Names,
    RunInfo,
    Segment,
    Transition,
    Xtc2Error,
)

__all__ = [
    "BLOCK_BYTES",
    "HEADER_BYTES",
    "MOST_DATAGRAM_BYTES",
    "MOST_EXPERIMENT",
    "MOST_FILENAME",
    "Block",
    "Header",
    "Value",
    "chunk_info",
    "detectors_of",
    "parse_header",
    "parse_names",
    "parse_shapes_data",
    "read_values",
    "run_info",
    "walk",
]

HEADER_BYTES = 24
BLOCK_BYTES = 12
#: No datagram is believed to be longer; the original's tools stop at 64 MiB, its event builder at 256 MiB.
MOST_DATAGRAM_BYTES = 1 << 30
#: Parents within Parents; files of several nodes have 2.
MOST_DEPTH = 16
#: Blocks in one datagram: real ones hold hundreds, and empty ones by the million would only cost time.
MOST_BLOCKS = 1 << 17
#: Characters in the name of an experiment and of a file; what is longer is neither.
MOST_EXPERIMENT, MOST_FILENAME = 127, 255

_HEADER = struct.Struct("<IIIIHHI")
_BLOCK = struct.Struct("<IHHI")
_NAMES = struct.Struct("<I256s256s256s256sII")
_FIELD = struct.Struct("<260x256sII")  # before the name: an algorithm of its own, which is nearly always empty
_SHAPE_BYTES = 20  # five u32, of which the first `rank` count
_MOST_RANK = 5
_CORRUPTED = 1 << 3
_FIELD_TYPES = tuple(FieldType)
_TRANSITIONS = tuple(Transition)
_KIND = 0xFFF
_SOURCE = 0x0FFF_FFFF

_NAME = re.compile(r"[0-9A-Za-z_-]{1,255}")
_PRINTABLE = re.compile(r"[ -~]*")

Value = int | float | str | NDArray[Any]
_T = TypeVar("_T", int, str)


class Header(NamedTuple):
    """The 24 bytes before a datagram's payload."""

    nanoseconds: int
    seconds: int
    env: int
    damage: int
    transition: Transition
    extent: int

    @property
    def size(self) -> int:
        """Bytes of the whole datagram."""
        return BLOCK_BYTES + self.extent

    @property
    def corrupted(self) -> bool:
        """Whether its payload must not be looked into."""
        return bool(self.damage & _CORRUPTED)


class Block(NamedTuple):
    """A Names or ShapesData block: its payload is ``data[begin:end]``."""

    kind: BlockKind
    names_id: int
    corrupted: bool
    begin: int
    end: int


def parse_header(data: bytes, offset: int = 0, *, most_bytes: int = MOST_DATAGRAM_BYTES) -> Header:
    """Return the header of the datagram at ``offset``.

    Raises
    ------
    Xtc2Error
        If fewer than 24 bytes are there, or they cannot be the header of a datagram.
    """
    if len(data) - offset < HEADER_BYTES:
        raise Xtc2Error(f"a datagram's header has {HEADER_BYTES} bytes, {max(0, len(data) - offset)} are there")
    nanoseconds, seconds, env, _, damage, block_type, extent = _HEADER.unpack_from(data, offset)
    service = env >> 24 & 0xF
    if extent < BLOCK_BYTES:
        raise Xtc2Error(f"its extent is {extent} bytes, the least is {BLOCK_BYTES}", fix=_FIX)
    if extent > most_bytes - BLOCK_BYTES:
        raise Xtc2Error(f"it claims {BLOCK_BYTES + extent} bytes, more than {most_bytes}", fix=_FIX)
    if block_type & _KIND:
        raise Xtc2Error(f"its outermost block is of kind {block_type & _KIND}, not a Parent (0)", fix=_FIX)
    if service >= len(_TRANSITIONS):
        raise Xtc2Error(f"there is no transition {service}", fix=_FIX)
    if env >> 28 & 0x3:
        raise Xtc2Error(f"its kind is {env >> 28 & 0x3}, not an event (0)", fix=_FIX)
    return Header(nanoseconds, seconds, env, damage, _TRANSITIONS[service], extent)


_FIX = "give LCLS-II .xtc2 files; if this is one, copy it again"


def walk(data: bytes, begin: int = 0, end: int | None = None, *, most_depth: int = MOST_DEPTH) -> Iterator[Block]:
    """Yield the Names and ShapesData blocks of a datagram's payload, in file order.

    Parents are looked into, however they are nested; blocks marked corrupted are yielded as such, and
    nothing inside them is.

    Parameters
    ----------
    data
        The bytes of the datagram.
    begin, end
        Where its payload begins and ends.
    most_depth
        How many Parents may lie within each other.

    Raises
    ------
    Xtc2Error
        If a block is shorter than its header, longer than the one around it, of a kind that cannot be
        there, or nested too deep, or if there are too many.
    """
    ends = [len(data) if end is None else end]
    at, count = begin, 0
    while ends:
        if at == ends[-1]:
            ends.pop()
            continue
        count += 1
        if count > MOST_BLOCKS:
            raise Xtc2Error(f"a datagram has more than {MOST_BLOCKS} blocks", fix=_FIX)
        source, damage, block_type, stop = _block(data, at, ends[-1])
        kind, corrupted = block_type & _KIND, bool(damage & _CORRUPTED)
        if kind == BlockKind.PARENT and not corrupted:
            if len(ends) > most_depth:
                raise Xtc2Error(f"blocks are nested more than {most_depth} deep", fix=_FIX)
            ends.append(stop)
            at += BLOCK_BYTES
            continue
        known = _WALKED.get(kind)
        if known is None:
            raise Xtc2Error(f"a block of kind {kind} cannot be where one is, at byte {at}", fix=_FIX)
        yield Block(known, source & _SOURCE, corrupted, at + BLOCK_BYTES, stop)
        at = stop


_WALKED = {int(kind): kind for kind in (BlockKind.PARENT, BlockKind.SHAPES_DATA, BlockKind.NAMES)}


def _block(data: bytes, at: int, end: int) -> tuple[int, int, int, int]:
    """Return source, damage, type and end of the block at ``at``, which lies within ``end``."""
    if end - at < BLOCK_BYTES:
        raise Xtc2Error(f"{end - at} bytes are left over at byte {at}, too few for a block", fix=_FIX)
    source, damage, block_type, extent = _BLOCK.unpack_from(data, at)
    if extent < BLOCK_BYTES:
        raise Xtc2Error(f"the block at byte {at} has an extent of {extent}, the least is {BLOCK_BYTES}", fix=_FIX)
    if extent > end - at:
        raise Xtc2Error(f"the block at byte {at} claims {extent} bytes, {end - at} are there", fix=_FIX)
    return source, damage, block_type, at + extent


def parse_names(data: bytes, block: Block) -> Names:
    """Return what a Names block says.

    Raises
    ------
    Xtc2Error
        If its size is no whole number of fields, the count of arrays is wrong, a type or rank is unknown,
        or a name has characters that names cannot have.
    """
    described = block.end - block.begin - _NAMES.size
    if described < 0 or described % _FIELD.size:
        raise Xtc2Error(
            f"a Names block of {block.end - block.begin + BLOCK_BYTES} bytes holds no whole fields", fix=_FIX
        )
    arrays, kind, name, serial, algorithm, version, segment = _NAMES.unpack_from(data, block.begin)
    fields = tuple(
        _field(*found) for found in _FIELD.iter_unpack(memoryview(data)[block.begin + _NAMES.size : block.end])
    )
    ranked = sum(1 for field in fields if field.rank)
    if ranked != arrays:
        raise Xtc2Error(f"a Names block announces {arrays} array fields and describes {ranked}", fix=_FIX)
    return Names(
        names_id=block.names_id,
        detector_type=_text(kind, "detector type"),
        detector_name=_name(name, "detector name"),
        detector_id=_text(serial, "detector id"),
        segment=segment,
        algorithm=_text(algorithm, "algorithm"),
        version=(version >> 16, version >> 8 & 0xFF, version & 0xFF),
        fields=fields,
    )


@lru_cache(maxsize=4096)  # every segment of a detector describes the same fields again
def _field(name: bytes, kind: int, rank: int) -> Field:
    if kind >= len(_FIELD_TYPES):
        raise Xtc2Error(f"there is no field type {kind}", fix=_FIX)
    if rank > _MOST_RANK:
        raise Xtc2Error(f"a field has {rank} dimensions, the most is {_MOST_RANK}", fix=_FIX)
    return Field(_text(name, "field name"), _FIELD_TYPES[kind], rank)


def _text(raw: bytes, what: str) -> str:
    text, nul, _ = raw.partition(b"\0")
    decoded = text.decode("latin-1")
    if not nul or not _PRINTABLE.fullmatch(decoded):
        raise Xtc2Error(f"the {what} {decoded[:32]!r} is no NUL-terminated ASCII text", fix=_FIX)
    return decoded


def _name(raw: bytes, what: str) -> str:
    name = _text(raw, what)
    if not _NAME.fullmatch(name):
        raise Xtc2Error(f"the {what} {name[:32]!r} is not made of letters, digits and underscores", fix=_FIX)
    return name


def parse_shapes_data(data: bytes, block: Block, names: Names, *, longest_text: int | None = None) -> dict[str, Value]:
    """Return the values of a ShapesData block by the names of their fields.

    Parameters
    ----------
    data
        The bytes that ``block`` lies in.
    block
        As `walk` yielded it.
    names
        The Names block with the same id.
    longest_text
        Texts are cut after so many bytes; by default they are as long as their block.

    Returns
    -------
    dict
        Scalars as int or float, arrays as copies, texts as str up to their first NUL, one character a byte
        (Latin-1): what is not ASCII can be seen, and takes no more room than in the file.

    Raises
    ------
    Xtc2Error
        If there is not one Data block, the shapes are missing, they do not make up its length, or either is
        marked as corrupted.
    """
    shapes, values = _shapes_and_data(data, block)
    n_arrays = sum(1 for field in names.fields if field.rank)
    if len(shapes) != _SHAPE_BYTES * n_arrays:
        raise Xtc2Error(f"{names.detector_name}: {len(shapes)} bytes of shapes for {n_arrays} array fields", fix=_FIX)
    rows = struct.iter_unpack("<5I", shapes)
    found: dict[str, Value] = {}
    at = 0
    for field in names.fields:
        shape = next(rows)[: field.rank] if field.rank else ()
        dtype = np.dtype(field.type.dtype)
        end = at + math.prod(shape) * dtype.itemsize
        if end > len(values):
            raise Xtc2Error(f"{names.detector_name}.{field.name} {shape} does not fit into its data", fix=_FIX)
        if field.type is FieldType.CHARSTR:
            text, _, _ = bytes(values[at:end][:longest_text]).partition(b"\0")
            found[field.name] = text.decode("latin-1")
        else:
            found[field.name] = _number_or_array(values[at:end], field, dtype, shape)
        at = end
    if at != len(values):
        raise Xtc2Error(f"{names.detector_name}: {len(values) - at} bytes of data belong to no field", fix=_FIX)
    return found


def _shapes_and_data(data: bytes, block: Block) -> tuple[memoryview, memoryview]:
    parts: dict[int, memoryview] = {}
    at, view = block.begin, memoryview(data)
    while at < block.end:
        _, damage, block_type, stop = _block(data, at, block.end)
        kind = block_type & _KIND
        if damage & _CORRUPTED:
            raise Xtc2Error(f"the block of kind {kind} at byte {at} is marked as corrupted", fix=_FIX)
        if kind not in (BlockKind.SHAPES, BlockKind.DATA) or kind in parts:
            raise Xtc2Error(f"a block of kind {kind} cannot be (again) in a ShapesData, at byte {at}", fix=_FIX)
        parts[kind] = view[at + BLOCK_BYTES : stop]
        at = stop
    if BlockKind.DATA not in parts:
        raise Xtc2Error(f"the ShapesData at byte {block.begin - BLOCK_BYTES} has no Data", fix=_FIX)
    return parts.get(BlockKind.SHAPES, view[:0]), parts[BlockKind.DATA]


def _number_or_array(raw: memoryview, field: Field, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Value:
    values = np.frombuffer(raw, dtype)
    if not field.rank:
        scalar: int | float = values[0].item()
        return scalar
    try:
        return values.reshape(shape).copy()
    except ValueError as error:  # no elements, and yet dimensions beyond what numpy counts
        raise Xtc2Error(f"{field.name} has the impossible shape {shape}", fix=_FIX) from error


def read_values(
    data: bytes, wanted: Iterable[Names], begin: int = 0, *, longest_text: int | None = None
) -> Iterator[tuple[Names, dict[str, Value]]]:
    """Yield the values that a datagram holds for some Names; texts are cut as by `parse_shapes_data`.

    Raises
    ------
    Xtc2Error
        As `walk` and `parse_shapes_data`.
    """
    by_id = {names.names_id: names for names in wanted}
    for block in walk(data, begin):
        names = by_id.get(block.names_id)
        if names is not None and block.kind is BlockKind.SHAPES_DATA and not block.corrupted:
            yield names, parse_shapes_data(data, block, names, longest_text=longest_text)


def run_info(values: dict[str, Value]) -> RunInfo:
    """Return what the values of a ``runinfo`` say.

    Raises
    ------
    Xtc2Error
        If one is missing or of another type, or the experiment is not up to 127 printable ASCII characters.
    """
    return RunInfo(_line(values, "expt", MOST_EXPERIMENT), _of_type(values, "runnum", int))


def chunk_info(values: dict[str, Value]) -> ChunkInfo:
    """Return what the values of a ``chunkinfo`` say.

    Raises
    ------
    Xtc2Error
        If one is missing or of another type, or the file's name is not up to 255 printable ASCII characters.
    """
    return ChunkInfo(_of_type(values, "chunkid", int), _line(values, "filename", MOST_FILENAME))


def _line(values: dict[str, Value], name: str, most: int) -> str:
    """Return a text that may be kept and printed."""
    text = _of_type(values, name, str)
    if len(text) > most:
        raise Xtc2Error(f"{name} has more than {most} characters", fix=_FIX)
    if not _PRINTABLE.fullmatch(text):
        raise Xtc2Error(f"{name} is {text[:32]!r}, no printable ASCII text", fix=_FIX)
    return text


def _of_type(values: dict[str, Value], name: str, kind: type[_T]) -> _T:
    value = values.get(name)
    if not isinstance(value, kind):
        raise Xtc2Error(f"{name} is {type(value).__name__}, not {kind.__name__}", fix=_FIX)
    return value


def detectors_of(names: Iterable[Names]) -> tuple[Detector, ...]:
    """Return the detectors that Names blocks describe, in the order of their first mention.

    Blocks of several streams may be given one after the other. A segment that is announced twice counts
    once; of a segment's ids, and of a detector's types, the first that is not empty holds.
    """
    types: dict[str, str] = {}
    ids: dict[str, dict[int, str]] = {}
    algorithms: dict[tuple[str, int], dict[Algorithm, None]] = {}
    for one in names:
        name, segment = one.detector_name, one.segment
        types[name] = types.get(name) or one.detector_type
        segments = ids.setdefault(name, {})
        segments[segment] = segments.get(segment) or one.detector_id
        algorithms.setdefault((name, segment), {})[Algorithm(one.algorithm, one.version)] = None
    return tuple(
        Detector(
            name,
            types[name],
            tuple(Segment(number, ids[name][number], tuple(algorithms[name, number])) for number in sorted(ids[name])),
        )
        for name in types
    )
