"""Pickles, safe on both sides: written opcode by opcode so that each array's place is known; read by an allow-list.

The emitter writes protocol 4, and remembers only what it is asked to. An array becomes what
`numpy.ndarray.__reduce__` describes, but its bytes begin at a multiple of `ALIGNMENT` in the file, so that the same
bytes can be mapped. It names ``numpy.core.multiarray``, which numpy 1 and numpy 2 both keep for old pickles (numpy 1
does not know the ``numpy._core`` that numpy 2 writes).
"""

from __future__ import annotations

import hashlib
import math
import os
import pickle
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from nightbeam.core.errors import InputError, RejectedError

__all__ = ["ALIGNMENT", "ARRAY_KINDS", "Emitter", "PlacedArray", "raw_bytes", "read_restricted"]

ALIGNMENT = 4096
#: Kinds of numpy types whose bytes mean the same in every process: no objects, no records.
ARRAY_KINDS = frozenset("biufcSU")
_DEEPEST = 64  # levels of nesting; constants have three or four
_HEADER = struct.Struct("<cQ")  # BINBYTES8 and its length


@dataclass(frozen=True)
class PlacedArray:
    """Where the bytes of an array lie in the file, and what they are."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int
    sha256: str


def raw_bytes(array: NDArray[Any]) -> memoryview:
    """Return the bytes of a C-contiguous array without copying them."""
    return array.reshape(-1).view(np.uint8).data


@dataclass
class Emitter:
    """Writes one pickle piece by piece.

    Parameters
    ----------
    file
        Where it goes, at its beginning.
    write_body
        Writes the bytes of an array at the file's place and returns their SHA-256 in hexadecimal.
    """

    file: BinaryIO
    write_body: Callable[[BinaryIO, memoryview], str]
    _at: int = field(default=0, init=False)
    _remembered: int = field(default=0, init=False)
    _digest: Any = field(default_factory=hashlib.sha256, init=False)

    @property
    def sha256(self) -> str:
        """SHA-256, in hexadecimal, of all that was written but the bytes of arrays."""
        return str(self._digest.hexdigest())

    def begin(self) -> None:
        """Write the protocol."""
        self.put(pickle.PROTO + b"\x04")

    def end(self) -> int:
        """Write the end; returns the pickle's length in bytes."""
        self.put(pickle.STOP)
        return self._at

    def put(self, opcodes: bytes) -> None:
        """Write opcodes as they are."""
        self.file.write(opcodes)
        self._digest.update(opcodes)
        self._at += len(opcodes)

    def remember(self) -> int:
        """Keep what was written last; returns a number for `recall`."""
        self.put(pickle.MEMOIZE)
        self._remembered += 1
        return self._remembered - 1

    def recall(self, number: int) -> None:
        """Write once more what was remembered under a number, without its bytes."""
        self.put(pickle.LONG_BINGET + struct.pack("<I", number))

    def value(self, value: Any, depth: int = 0) -> Any:
        """Write a value and return the JSON that describes it in the index.

        Raises
        ------
        InputError
            If it is neither JSON, bytes, a tuple, a numpy scalar nor an array of plain numbers.
        """
        if depth > _DEEPEST:
            raise InputError(f"a constant is nested more than {_DEEPEST} levels deep")
        if isinstance(value, np.ndarray):
            return {"array": self._array(value)}
        if isinstance(value, np.generic):
            return self._scalar(value)
        if value is None or isinstance(value, bool | int | float | str | bytes):
            self.put(_plain(value))
            return {"bytes": value.hex()} if isinstance(value, bytes) else {"plain": value}
        if isinstance(value, list | tuple):
            return self._sequence(value, depth)
        if isinstance(value, Mapping):
            return self._mapping(value, depth)
        raise InputError(f"a {type(value).__name__} cannot be kept with constants", fix="keep arrays, text and numbers")

    def _sequence(self, value: list[Any] | tuple[Any, ...], depth: int) -> Any:
        listed = isinstance(value, list)
        self.put(pickle.EMPTY_LIST + pickle.MARK if listed else pickle.MARK)
        items = [self.value(item, depth + 1) for item in value]
        self.put(pickle.APPENDS if listed else pickle.TUPLE)
        return {"list" if listed else "tuple": items}

    def _mapping(self, value: Mapping[Any, Any], depth: int) -> Any:
        self.put(pickle.EMPTY_DICT + pickle.MARK)
        items = []
        for key, item in value.items():
            if not isinstance(key, str | int):
                raise InputError(f"a key of a constant is a {type(key).__name__}, not text")
            self.put(_plain(key))
            items.append([key, self.value(item, depth + 1)])
        self.put(pickle.SETITEMS)
        return {"dict": items}

    def _scalar(self, value: np.generic) -> Any:
        dtype = _allowed(value.dtype)
        self.put(b"cnumpy.core.multiarray\nscalar\n")
        self._dtype(dtype)
        self.put(_plain(value.tobytes()) + pickle.TUPLE2 + pickle.REDUCE)
        return {"scalar": [dtype.str, value.tobytes().hex()]}

    def _array(self, array: NDArray[Any]) -> dict[str, Any]:
        dtype = _allowed(array.dtype)
        array = np.asarray(array, order="C")
        self.put(b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n")
        self.put(_plain(0) + pickle.TUPLE1 + _plain(b"b") + pickle.TUPLE3 + pickle.REDUCE)
        self.put(pickle.MARK + _plain(1))
        self.value(tuple(int(n) for n in array.shape))
        self._dtype(dtype)
        self.put(pickle.NEWFALSE)
        placed = self._body(array, dtype)
        self.put(pickle.TUPLE + pickle.BUILD)
        return {
            "dtype": placed.dtype,
            "shape": list(placed.shape),
            "offset": placed.offset,
            "nbytes": placed.nbytes,
            "sha256": placed.sha256,
        }

    def _body(self, array: NDArray[Any], dtype: np.dtype[Any]) -> PlacedArray:
        body = raw_bytes(array)
        self.put(_padding(-(self._at + _HEADER.size) % ALIGNMENT))
        self.put(_HEADER.pack(pickle.BINBYTES8, len(body)))
        placed = PlacedArray(dtype.str, array.shape, self._at, len(body), self.write_body(self.file, body))
        self._at += len(body)
        return placed

    def _dtype(self, dtype: np.dtype[Any]) -> None:
        self.put(b"cnumpy\ndtype\n" + pickle.MARK + _plain(dtype.str[1:]) + pickle.NEWFALSE + pickle.NEWTRUE)
        self.put(pickle.TUPLE + pickle.REDUCE)
        if dtype.kind in "SU":
            size, alignment = dtype.itemsize, dtype.alignment
        else:
            size, alignment = -1, -1
        self.value((3, dtype.str[0], None, None, None, size, alignment, 0))
        self.put(pickle.BUILD)


def _allowed(dtype: np.dtype[Any]) -> np.dtype[Any]:
    if dtype.kind not in ARRAY_KINDS:
        raise InputError(f"an array of {dtype} cannot be kept with constants", fix="keep plain numbers")
    return dtype


def _padding(need: int) -> bytes:
    """Return ``need`` bytes of opcodes (give or take whole pages) that push something and drop it again."""
    if need == 0:
        return b""
    if need < 3:  # an opcode, a length and the drop: three bytes at least
        need += ALIGNMENT
    if need - 3 < 256:
        return pickle.SHORT_BINBYTES + bytes([need - 3]) + bytes(need - 3) + pickle.POP
    return pickle.BINBYTES + struct.pack("<I", need - 6) + bytes(need - 6) + pickle.POP


def _plain(value: Any) -> bytes:
    if value is None:
        return pickle.NONE
    if isinstance(value, bool):
        return pickle.NEWTRUE if value else pickle.NEWFALSE
    if isinstance(value, int):
        return _integer(value)
    if isinstance(value, float):
        return pickle.BINFLOAT + struct.pack(">d", value)
    if isinstance(value, str):
        data = value.encode("utf-8", "surrogatepass")
        return _sized(data, pickle.SHORT_BINUNICODE, pickle.BINUNICODE, pickle.BINUNICODE8)
    return _sized(value, pickle.SHORT_BINBYTES, pickle.BINBYTES, pickle.BINBYTES8)


def _integer(value: int) -> bytes:
    if -(1 << 31) <= value < 1 << 31:
        return pickle.BININT + struct.pack("<i", value)
    data = pickle.encode_long(value)
    if len(data) > 255:
        raise InputError("a number of more than 2040 bits cannot be kept with constants")
    return pickle.LONG1 + bytes([len(data)]) + data


def _sized(data: bytes, short: bytes, middle: bytes, long: bytes) -> bytes:
    if len(data) < 256:
        return short + bytes([len(data)]) + data
    if len(data) < 1 << 32:
        return middle + struct.pack("<I", len(data)) + data
    return long + struct.pack("<Q", len(data)) + data


class _Bounded:
    """A file that is never asked for more than it has: a damaged length must not cost memory."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        here = file.tell()
        self.left = file.seek(0, os.SEEK_END) - here
        file.seek(here)

    def read(self, size: int) -> bytes:
        found = self._file.read(min(size, self.left)) if size > 0 else b""
        self.left -= len(found)
        return found

    def readline(self) -> bytes:
        found = self._file.readline(1 << 16)
        self.left -= len(found)
        return found


class _Restricted(pickle._Unpickler):
    """The unpickler of the standard library that is written in Python.

    A damaged number makes the one in C allocate gigabytes for its memo. Constants are few and large: it costs nothing.
    """

    dispatch: ClassVar[dict[int, Callable[..., None]]] = dict(pickle._Unpickler.dispatch)
    read: Callable[[int], bytes]
    append: Callable[[Any], None]

    def __init__(self, file: BinaryIO) -> None:
        self._bounded = _Bounded(file)
        super().__init__(self._bounded)

    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in for one of the few things that a pickle of constants names."""
        found = _STAND_INS.get((module.replace("numpy._core.", "numpy.core."), name))
        if found is None:
            raise RejectedError(f"a pickle of constants names {module}.{name}, which has no business there")
        return found

    def _load_bytearray8(self) -> None:
        # The original allocates before it reads.
        (size,) = struct.unpack("<Q", self.read(8))
        data = self.read(size)
        if len(data) < size:
            raise EOFError("pickle data was truncated")
        self.append(data)

    dispatch[pickle.BYTEARRAY8[0]] = _load_bytearray8


class _Dtype:
    """Stands for `numpy.dtype`.

    The real one may not be built by a pickle: its state is believed without a check, and a damaged one spoils the type
    for the whole process.
    """

    def __init__(self, code: str, align: bool = False, copy: bool = True) -> None:
        del align, copy
        self.dtype = np.dtype(code)
        if self.dtype.kind not in ARRAY_KINDS:
            raise InputError(f"an array of {self.dtype} has no business among constants")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, order, subarray, names, fields, *_ = state
        if (subarray, names, fields) != (None, None, None):
            raise InputError("an array of records has no business among constants")
        self.dtype = self.dtype.newbyteorder(order)


class _Array:
    """Stands for `numpy.ndarray` until its bytes are there."""

    array: NDArray[Any] | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, data = state
        self.array = _of_bytes(data, dtype, shape, "F" if fortran else "C")


def _reconstruct(kind: object, shape: object, code: object) -> _Array:
    del kind, shape, code  # always an empty ndarray, to be filled by its state
    return _Array()


def _frombuffer(buffer: Any, dtype: _Dtype, shape: Any, order: Literal["C", "F"]) -> _Array:
    made = _Array()
    made.array = _of_bytes(buffer, dtype, shape, order)
    return made


def _scalar(dtype: _Dtype, data: bytes) -> Any:
    return _of_bytes(data, dtype, (), "C")[()]


def _encode(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise InputError(f"bytes as {encoding} have no business among constants")
    return text.encode("latin-1")


def _of_bytes(data: Any, dtype: Any, shape: Any, order: Literal["C", "F"]) -> NDArray[Any]:
    if not isinstance(dtype, _Dtype) or not isinstance(data, bytes | bytearray | memoryview):
        raise InputError("an array of objects has no business among constants")
    if math.prod(shape) * dtype.dtype.itemsize != len(data) or min(shape, default=0) < 0:
        raise InputError(f"{len(data)} bytes are no array of {dtype.dtype} of shape {shape}")
    array = np.frombuffer(data, dtype.dtype) if len(data) else np.empty(shape, dtype.dtype)
    array = array.reshape(shape, order=order)
    array.setflags(write=False)
    return array


#: All that a pickle of constants ever names (numpy 1 and 2, protocols 0 to 5), and what we use in its place.
_STAND_INS: Mapping[tuple[str, str], Any] = {
    ("numpy", "ndarray"): object(),  # an argument of _reconstruct, never called
    ("numpy", "dtype"): _Dtype,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy.core.numeric", "_frombuffer"): _frombuffer,
    ("_codecs", "encode"): _encode,
}


def read_restricted(file: BinaryIO) -> Any:
    """Return what a pickle holds, if it holds nothing but plain values and arrays of numbers or text.

    Arrays are read-only. No class or function that the pickle names is ever called: each of the few that constants need
    has a stand-in that checks what it is given.

    Raises
    ------
    RejectedError
        If it names anything else.
    InputError
        If it is truncated, damaged or no pickle.
    """
    try:
        return _resolved(_Restricted(file).load(), {}, 0)
    except RejectedError:
        raise
    except MemoryError as error:
        raise InputError("the pickle asks for more memory than there is", fix="remove the file") from error
    # A damaged pickle can raise nearly anything: EOFError, KeyError, UnicodeDecodeError, TypeError of a stand-in.
    except Exception as error:
        said = error.what if isinstance(error, InputError) else str(error)
        raise InputError(f"not a whole pickle of constants: {said}", fix="remove it; it is fetched anew") from error


def _resolved(value: Any, seen: dict[int, Any], depth: int) -> Any:
    """Return the value with every stand-in replaced by its array; ``seen`` keeps shared parts shared."""
    if depth > _DEEPEST:
        raise InputError(f"it is nested more than {_DEEPEST} levels deep")
    if isinstance(value, _Array):
        if value.array is None:
            raise InputError("an array has no bytes")
        return value.array
    if value is None or isinstance(value, bool | int | float | str | bytes | np.generic):
        return value
    if id(value) not in seen:
        seen[id(value)] = _rebuilt(value, seen, depth + 1)
    return seen[id(value)]


def _rebuilt(value: Any, seen: dict[int, Any], depth: int) -> Any:
    if isinstance(value, dict):
        return {_key(key): _resolved(item, seen, depth) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_resolved(item, seen, depth) for item in value)
    raise InputError(f"a {type(value).__name__} has no business among constants")


def _key(key: Any) -> Any:
    if not isinstance(key, str | int | float | bytes):
        raise InputError(f"a key is a {type(key).__name__}")
    return key
