"""The layout of a cache file: a pickle, then a JSON index of what lies where in it, then a footer of 64 bytes.

`pickle.load` stops at the pickle's end and never sees the rest; we read the footer, then the index, and map the arrays
where they lie. Arrays are the same bytes in both forms, and both are published by one rename; what is small (texts,
numbers, documents) is written twice, and a checksum in the index covers the pickle's copy.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from nightbeam.calib.pickles import ARRAY_KINDS, PlacedArray
from nightbeam.core.errors import InputError

__all__ = [
    "FOOTER_BYTES",
    "ConstantPlace",
    "DetectorPlace",
    "EntryIndex",
    "decode_value",
    "pack_tail",
    "parse_footer",
    "parse_index",
    "placed_arrays",
]

VERSION = 1
_BEGIN, _END = b"NBCALIB\x01", b"\x01BILACBN"
_FOOTER = struct.Struct("<8sQQ32s8s")
FOOTER_BYTES = _FOOTER.size
_DEEPEST = 80
_MOST_AXES = 32  # what numpy 1 allows


@dataclass(frozen=True)
class ConstantPlace:
    """One constant of one detector: the document it was chosen by and where its data lie.

    Attributes
    ----------
    database
        Where the document lies on the service.
    document
        The service's document, as it came.
    data
        JSON that `decode_value` turns into arrays, text or a dict.
    """

    database: str
    document: Mapping[str, Any]
    data: Mapping[str, Any]

    @property
    def key(self) -> tuple[str, str, str]:
        """What tells this constant from every other one on the service."""
        return self.database, str(self.document.get("_id", "")), str(self.document.get("id_data", ""))

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays."""
        return sum(place.nbytes for place in placed_arrays(self.data))


@dataclass(frozen=True)
class DetectorPlace:
    """All constants of one detector.

    Attributes
    ----------
    constants
        By type of constant; None where the detector was skipped on request.
    reason
        Why there are none, or None.
    gaps
        What the service failed to say although constants were found.
    short_name
        The service's own name for the detector, so that the next poll need not ask; None where it is not known.
    """

    constants: Mapping[str, ConstantPlace] | None
    reason: str | None = None
    gaps: tuple[str, ...] = ()
    short_name: str | None = None


@dataclass(frozen=True)
class EntryIndex:
    """What a cache file says of itself.

    Attributes
    ----------
    det_info
        Unique id by detector name, as in the pickle.
    created
        ISO time (UTC).
    writer
        Program, host and process that wrote it.
    data_bytes
        Where the pickle ends and this index begins.
    pickle_sha256
        Of all bytes of the pickle that are not an array's.
    """

    experiment: str
    det_info: Mapping[str, str]
    detectors: Mapping[str, DetectorPlace]
    created: str
    writer: str
    data_bytes: int
    pickle_sha256: str

    @property
    def skipped(self) -> frozenset[str]:
        """Detectors that were left out on request."""
        return frozenset(name for name, place in self.detectors.items() if place.constants is None)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON that `parse_index` reads."""
        return {
            "format": "nightbeam-calib",
            "version": VERSION,
            "experiment": self.experiment,
            "det_info": dict(self.det_info),
            "detectors": {name: _detector_json(place) for name, place in self.detectors.items()},
            "created": self.created,
            "writer": self.writer,
            "pickle_sha256": self.pickle_sha256,
        }


def pack_tail(index: EntryIndex) -> bytes:
    """Return the index and the footer, which follow the pickle."""
    text = json.dumps(index.to_json(), separators=(",", ":")).encode()
    return text + _FOOTER.pack(_BEGIN, index.data_bytes, len(text), hashlib.sha256(text).digest(), _END)


def parse_footer(footer: bytes, size: int) -> tuple[int, int, bytes] | None:
    """Return offset, length and SHA-256 of the index, or None where the file ends in no footer of ours.

    Raises
    ------
    InputError
        If the footer contradicts the file's size.
    """
    if len(footer) != FOOTER_BYTES:
        return None
    begin, offset, length, digest, end = _FOOTER.unpack(footer)
    if (begin, end) != (_BEGIN, _END):
        return None
    if offset + length + FOOTER_BYTES != size:
        raise InputError(f"its footer speaks of {offset + length + FOOTER_BYTES} bytes, it has {size}")
    return offset, length, digest


def parse_index(text: bytes, digest: bytes, data_bytes: int) -> EntryIndex:
    """Return the index whose bytes these are.

    Raises
    ------
    InputError
        If its checksum is wrong, it is of another version, or it places an array outside the file.
    """
    if hashlib.sha256(text).digest() != digest:
        raise InputError("the checksum of its index is wrong")
    try:
        tree = json.loads(text)
        if tree["format"] != "nightbeam-calib" or tree["version"] != VERSION:
            raise InputError(f"its index is {tree['format']} version {tree['version']}, not version {VERSION}")
        index = EntryIndex(
            experiment=str(tree["experiment"]),
            det_info={str(name): str(uid) for name, uid in tree["det_info"].items()},
            detectors={str(name): _detector(item) for name, item in tree["detectors"].items()},
            created=str(tree["created"]),
            writer=str(tree["writer"]),
            data_bytes=data_bytes,
            pickle_sha256=str(tree["pickle_sha256"]),
        )
        _check(index)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"its index is malformed: {error!r}") from error
    return index


def placed_arrays(node: Mapping[str, Any], depth: int = 0) -> Iterator[PlacedArray]:
    """Yield every array that the JSON of a value speaks of.

    Raises
    ------
    InputError
        If the JSON is not what `Emitter.value` writes.
    """
    kind, body = _only_item(node, depth)
    if kind == "array":
        yield _placed(body)
    elif kind in ("list", "tuple"):
        for item in body:
            yield from placed_arrays(item, depth + 1)
    elif kind == "dict":
        for _, item in body:
            yield from placed_arrays(item, depth + 1)


def decode_value(node: Mapping[str, Any], array_at: Callable[[PlacedArray], Any], depth: int = 0) -> Any:
    """Return the value that the JSON speaks of; ``array_at`` makes an array of its place."""
    kind, body = _only_item(node, depth)
    if kind == "array":
        return array_at(_placed(body))
    if kind == "plain":
        return body
    if kind == "bytes":
        return bytes.fromhex(body)
    if kind == "scalar":
        return np.frombuffer(bytes.fromhex(body[1]), _dtype(body[0]), 1)[0]
    if kind == "dict":
        return {key: decode_value(item, array_at, depth + 1) for key, item in body}
    items = [decode_value(item, array_at, depth + 1) for item in body]
    return items if kind == "list" else tuple(items)


def _detector_json(place: DetectorPlace) -> dict[str, Any]:
    constants = None
    if place.constants is not None:
        constants = {
            ctype: {"database": c.database, "document": dict(c.document), "data": c.data}
            for ctype, c in place.constants.items()
        }
    return {
        "constants": constants,
        "reason": place.reason,
        "gaps": list(place.gaps),
        "short_name": place.short_name,
    }


def _detector(item: Mapping[str, Any]) -> DetectorPlace:
    constants = None
    if item["constants"] is not None:
        constants = {
            str(ctype): ConstantPlace(str(c["database"]), dict(c["document"]), dict(c["data"]))
            for ctype, c in item["constants"].items()
        }
    reason, short_name = (None if item[key] is None else str(item[key]) for key in ("reason", "short_name"))
    return DetectorPlace(constants, reason, tuple(str(gap) for gap in item["gaps"]), short_name)


def _check(index: EntryIndex) -> None:
    if set(index.detectors) != set(index.det_info):
        raise InputError("its index names other detectors than its det_info")
    for place in index.detectors.values():
        for constant in (place.constants or {}).values():
            # All but the arrays is made once here, so that a reader meets no surprise later.
            decode_value(constant.data, lambda array: _check_array(array, index.data_bytes))


def _check_array(place: PlacedArray, limit: int) -> None:
    dtype = _dtype(place.dtype)
    if min(place.shape, default=0) < 0 or place.offset < 0:
        raise InputError(f"its index places an array of shape {place.shape} at {place.offset}")
    if math.prod(place.shape) * dtype.itemsize != place.nbytes or place.offset + place.nbytes > limit:
        raise InputError(f"its index places {place.nbytes} bytes at {place.offset}, outside its {limit}")
    if len(place.shape) > _MOST_AXES or any(n > limit for n in place.shape):
        raise InputError(f"its index places an array of {len(place.shape)} axes, the longest {max(place.shape)}")


def _placed(body: Any) -> PlacedArray:
    try:
        shape = tuple(int(n) for n in body["shape"])
        return PlacedArray(str(body["dtype"]), shape, int(body["offset"]), int(body["nbytes"]), str(body["sha256"]))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"its index describes an array as {body!r}") from error


def _dtype(text: Any) -> np.dtype[Any]:
    try:
        dtype = np.dtype(str(text))
    except (TypeError, ValueError, SyntaxError) as error:
        raise InputError(f"its index names a type {text!r}") from error
    if dtype.kind not in ARRAY_KINDS or dtype.itemsize == 0:
        raise InputError(f"its index names a type {text!r}, which is no plain number")
    return dtype


_KINDS = frozenset({"array", "plain", "bytes", "scalar", "dict", "list", "tuple"})


def _only_item(node: Any, depth: int) -> tuple[str, Any]:
    if depth > _DEEPEST or not isinstance(node, Mapping) or len(node) != 1:
        raise InputError("its index describes a value in an unknown way")
    ((kind, body),) = node.items()
    if kind not in _KINDS:
        raise InputError(f"its index describes a value as {kind!r}")
    return kind, body
