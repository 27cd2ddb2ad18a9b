"""Constants of a detector: the documents that describe them, and which of them serve a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from numpy.typing import NDArray

__all__ = [
    "FIXED_IDS",
    "LAST_RUN",
    "MAX_ARRAY_BYTES",
    "NO_CONSTANTS",
    "OFFSITE_URL",
    "SHORT_ENOUGH",
    "SITE_URL",
    "TICKET_URL",
    "TOKEN_URL",
    "UNKNOWN_DETECTOR",
    "Choice",
    "Constant",
    "Document",
    "Selection",
    "Traffic",
]

#: One calibration document as the service answers it: JSON values only.
Document = Mapping[str, Any]

#: What a document's data decode to: an array, a text (geometry), or a dict (lasing-off reference).
Constant = NDArray[Any] | str | dict[str, Any]

#: The last run that a document can name; a ``run_end`` of ``"end"`` means it.
LAST_RUN: Final = 9999

#: The largest array that is asked for, unless told otherwise (a Jungfrau 16M in uint64 has 0.4 GB).
MAX_ARRAY_BYTES: Final = 2**31

#: Where the services are when neither the caller nor the environment says.
SITE_URL: Final = "https://pswww.slac.stanford.edu/ws"
#: The same for those who show a token, or a Kerberos ticket.
TOKEN_URL: Final = "https://pswww.slac.stanford.edu/ws-jwt"
TICKET_URL: Final = "https://pswww.slac.stanford.edu/ws-kerb"
#: The first, from outside the laboratory (``SIT_PSDM_OFFSITE``).
OFFSITE_URL: Final = "https://psextapi.slac.stanford.edu/calib_ws"

#: Experiments whose detectors all stand for one: the constants of this unique id are used.
FIXED_IDS: Final[Mapping[str, str]] = MappingProxyType({"xpptut15": "cspad_detnum1234"})

#: A unique id of fewer characters is the service's own name of the detector where its table has no other.
SHORT_ENOUGH: Final = 20

#: Reasons of a `Selection` without constants.
UNKNOWN_DETECTOR: Final = "unknown detector"
NO_CONSTANTS: Final = "no constants"


@dataclass(frozen=True, slots=True)
class Choice:
    """The document that serves one kind of constants, and the database that its data lie in.

    Attributes
    ----------
    ctype
        The kind: ``pedestals``, ``pixel_gain``, ``geometry`` ...
    document
        As the service gave it.
    database
        ``cdb_{experiment}``, or ``cdb_{short name}`` where the experiment has none of this kind.
    """

    ctype: str
    document: Document
    database: str

    @property
    def document_id(self) -> str:
        """The document's id: other constants always have another."""
        return str(self.document["_id"])

    @property
    def data_id(self) -> str:
        """The id of the data, in the same database."""
        return str(self.document.get("id_data", ""))

    @property
    def run_from(self) -> int:
        """The first run that the document says it holds for."""
        return int(self.document["run"])

    @property
    def key(self) -> tuple[str, str, str]:
        """Database, document and data: constants with the same key are the same constants."""
        return self.database, self.document_id, self.data_id


@dataclass(frozen=True, slots=True)
class Selection:
    """What the service has for one detector in one run: documents, no data yet.

    Attributes
    ----------
    detector, unique_id
        As asked.
    short_name
        The service's own name for the detector; None where it has none.
    choices
        By ctype, in alphabetic order.
    gaps
        Questions that were not answered: what is in ``choices`` is right, and more may exist. Ask again later.
    reason
        Why ``choices`` is empty; None where it is not. Nothing there is normal, and is not a failure.
    refused
        By ctype, why a document that serves the run is not handed out (a pickle runs code).
    ignored
        How many documents were passed over because their id, ctype or run range cannot be understood.
    name_is_exact
        Whether the service's table has the short name for exactly this unique id; another may be a guess.
    """

    detector: str
    unique_id: str
    short_name: str | None
    choices: Mapping[str, Choice]
    gaps: tuple[str, ...] = ()
    reason: str | None = None
    refused: Mapping[str, str] = field(default_factory=dict)
    ignored: int = 0
    name_is_exact: bool = False

    @property
    def complete(self) -> bool:
        """Whether every question was answered."""
        return not self.gaps

    @property
    def keys(self) -> dict[str, tuple[str, str, str]]:
        """By ctype what identifies the constants; equal keys mean that nothing has changed."""
        return {ctype: choice.key for ctype, choice in self.choices.items()}


@dataclass(frozen=True, slots=True)
class Traffic:
    """What a client has asked so far.

    Attributes
    ----------
    requests
        Requests sent, those that failed among them.
    retries
        How many of them were repeats.
    data_bytes
        Bytes of constants received in full.
    """

    requests: int = 0
    retries: int = 0
    data_bytes: int = 0

    def since(self, earlier: Traffic) -> Traffic:
        """Return what was added after ``earlier``."""
        return Traffic(
            self.requests - earlier.requests, self.retries - earlier.retries, self.data_bytes - earlier.data_bytes
        )
