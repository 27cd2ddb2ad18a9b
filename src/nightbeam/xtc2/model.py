"""The nouns of LCLS-II data files: transitions, fields, detectors, and what was found out about files and runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from pathlib import Path

from nightbeam.core.errors import InputError

__all__ = [
    "PSEUDO_DETECTORS",
    "Algorithm",
    "BlockKind",
    "ChunkInfo",
    "Configuration",
    "Detector",
    "Field",
    "FieldType",
    "FileReport",
    "Names",
    "RunInfo",
    "RunVerdict",
    "Segment",
    "StreamHead",
    "StreamStatus",
    "StreamVerdict",
    "Transition",
    "Xtc2Error",
]

#: Names in a Configure that describe the run, its steps or the slow controls; they never have constants.
PSEUDO_DETECTORS = frozenset(
    {"runinfo", "chunkinfo", "smdinfo", "epics", "epicsinfo", "scan", "step", "stepinfo", "triginfo"}
)
_PSEUDO_PREFIX = "pvdetinfo"


class Xtc2Error(InputError):
    """The bytes are no XTC2, end too early, or contradict themselves."""


class Transition(IntEnum):
    """The service of a datagram: which step of the data acquisition it stands for."""

    ClearReadout = 0
    Reset = 1
    Configure = 2
    Unconfigure = 3
    BeginRun = 4
    EndRun = 5
    BeginStep = 6
    EndStep = 7
    Enable = 8
    Disable = 9
    SlowUpdate = 10
    Unused = 11
    L1Accept = 12


class BlockKind(IntEnum):
    """What the payload of an Xtc block is."""

    PARENT = 0
    SHAPES_DATA = 1
    SHAPES = 2
    DATA = 3
    NAMES = 4


class FieldType(IntEnum):
    """How the values of a field are stored."""

    UINT8 = 0
    UINT16 = 1
    UINT32 = 2
    UINT64 = 3
    INT8 = 4
    INT16 = 5
    INT32 = 6
    INT64 = 7
    FLOAT = 8
    DOUBLE = 9
    CHARSTR = 10
    ENUMVAL = 11
    ENUMDICT = 12

    @property
    def dtype(self) -> str:
        """The little-endian numpy dtype of one element."""
        return _DTYPES[self]


_DTYPES = ("<u1", "<u2", "<u4", "<u8", "<i1", "<i2", "<i4", "<i8", "<f4", "<f8", "S1", "<i4", "<i4")


class StreamStatus(StrEnum):
    """How far a file of a stream has come."""

    NO_FILE = "no file"
    UNREADABLE = "unreadable"
    EMPTY = "empty"
    NOT_XTC2 = "not xtc2"
    PARTIAL_CONFIGURE = "partial configure"
    CONTINUATION = "continuation"
    CONFIGURED = "configured"
    BEGUN = "begun"
    HAS_EVENTS = "has events"


@dataclass(frozen=True, slots=True)
class Field:
    """One field of an algorithm; ``rank`` is 0 for a scalar, else the number of dimensions."""

    name: str
    type: FieldType
    rank: int


@dataclass(frozen=True, slots=True)
class Names:
    """One Names block: an algorithm of a segment of a detector, and the fields that it writes.

    Attributes
    ----------
    names_id
        Bits 0 to 27 of the block's source; a ShapesData with the same number holds the values.
    detector_id
        The segment's serial text; may be empty.
    """

    names_id: int
    detector_type: str
    detector_name: str
    detector_id: str
    segment: int
    algorithm: str
    version: tuple[int, int, int]
    fields: tuple[Field, ...]


@dataclass(frozen=True, slots=True, order=True)
class Algorithm:
    """What wrote some of a detector's data, printed like ``raw_2_3_42``."""

    name: str
    version: tuple[int, int, int] = (0, 0, 0)

    def __str__(self) -> str:
        return "_".join((self.name, *map(str, self.version)))


@dataclass(frozen=True, slots=True)
class Segment:
    """One independently read part of a detector."""

    number: int
    detector_id: str
    algorithms: tuple[Algorithm, ...]


@dataclass(frozen=True, slots=True)
class Detector:
    """One detector of a run, its segments by rising number."""

    name: str
    type: str
    segments: tuple[Segment, ...]

    @property
    def unique_id(self) -> str:
        """The type and, segment by segment, the id: the key under which constants are kept."""
        return "_".join((self.type, *(segment.detector_id for segment in self.segments)))

    @property
    def is_pseudo(self) -> bool:
        """Whether it describes the run rather than measuring, so that it has no constants."""
        return self.name in PSEUDO_DETECTORS or self.name.startswith(_PSEUDO_PREFIX)

    @property
    def has_data_algorithm(self) -> bool:
        """Whether it writes anything but its configuration."""
        return any("config" not in a.name.lower() for segment in self.segments for a in segment.algorithms)

    @property
    def is_real(self) -> bool:
        """Whether constants are wanted for it."""
        return self.has_data_algorithm and not self.is_pseudo


@dataclass(frozen=True, slots=True)
class RunInfo:
    """What the data say of their run; the number can differ from the one in the file's name."""

    experiment: str
    run: int


@dataclass(frozen=True, slots=True)
class ChunkInfo:
    """The announcement that a stream goes on in another file."""

    chunk: int
    filename: str


@dataclass(frozen=True, slots=True)
class Configuration:
    """The detectors that one Configure announces; ``offset`` is its place in the file in bytes."""

    offset: int
    detectors: tuple[Detector, ...]


@dataclass(frozen=True, slots=True)
class StreamHead:
    """How far the first chunk of a stream has come, and the Names of its first Configure."""

    status: StreamStatus
    reason: str
    names: tuple[Names, ...] = ()


@dataclass(frozen=True, slots=True)
class StreamVerdict:
    """One stream of a run; ``chunk`` is the first one that is there, ``reason`` what is wrong with it, or empty."""

    path: Path
    stream: int
    chunk: int
    status: StreamStatus
    reason: str


@dataclass(frozen=True, slots=True)
class RunVerdict:
    """Whether a run can be used, and why not.

    Attributes
    ----------
    reasons
        Everything that stands against it; empty for a usable run.
    detectors
        Those of all streams, also the pseudo-detectors.
    """

    experiment: str
    run: int
    usable: bool
    reasons: tuple[str, ...]
    streams: tuple[StreamVerdict, ...]
    detectors: tuple[Detector, ...]

    @property
    def det_info(self) -> dict[str, str]:
        """Name -> unique id of the detectors for which constants are wanted."""
        return {detector.name: detector.unique_id for detector in self.detectors if detector.is_real}


@dataclass(frozen=True, slots=True)
class FileReport:
    """What one file holds.

    Attributes
    ----------
    detectors
        Those of the first Configure, which is what a run's constants go by.
    datagrams
        Complete datagrams by the name of their transition.
    runs, chunks
        In the order in which the file names them, each once; of those that make no sense ``reason`` tells.
    reason
        What is wrong or odd, or empty.
    truncated
        The last datagram is cut; normal for a file that is still being written.
    damaged
        Reading stopped before the end because the bytes make no sense.
    configurations
        Every Configure of the file; more than one where detectors were changed between runs.
    """

    path: Path
    status: StreamStatus
    detectors: tuple[Detector, ...]
    datagrams: Mapping[str, int]
    runs: tuple[RunInfo, ...]
    chunks: tuple[ChunkInfo, ...]
    reason: str
    size_bytes: int
    truncated: bool
    damaged: bool = False
    configurations: tuple[Configuration, ...] = field(default=())

    @property
    def readable(self) -> bool:
        """Whether everything up to the last complete datagram could be read."""
        return not self.damaged and self.status in _READABLE


_READABLE = frozenset({StreamStatus.CONTINUATION, StreamStatus.CONFIGURED, StreamStatus.BEGUN, StreamStatus.HAS_EVENTS})
