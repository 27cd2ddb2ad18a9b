"""Which document serves a run, and what its bytes mean; no network, no disk."""

from __future__ import annotations

import ast
import logging
import math
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import SplitResult, urljoin, urlsplit

import numpy as np
from numpy.typing import NDArray

from nightbeam.calib.model import (
    FIXED_IDS,
    LAST_RUN,
    MAX_ARRAY_BYTES,
    OFFSITE_URL,
    SITE_URL,
    Constant,
    Document,
)
from nightbeam.core.errors import AuthError, ConfigError, InputError, RejectedError

__all__ = [
    "array_layout",
    "base_url",
    "base_url_from",
    "check_collection",
    "check_document_id",
    "check_name",
    "choose_all",
    "choose_document",
    "creation_time",
    "decode",
    "detector_type",
    "dtype_remark",
    "expected_bytes",
    "is_name",
    "is_pickle",
    "is_understood",
    "needs_update",
    "newest_of_each",
    "redirect_target",
    "service_id",
    "short_name_from",
    "text_bytes",
    "text_limit",
]

_log = logging.getLogger(__name__)

_NAME = re.compile(r"[A-Za-z0-9_-]{1,127}")
#: What MongoDB bears as a collection and an address as a piece: printable ASCII without $, / and \\.
_COLLECTION = re.compile(r"(?!\.|system\.)[ -#%-.0-\[\]-~]{1,127}")
#: Words of a host or a path by which pages are known that ask for a name and a password.
_LOGIN = re.compile(
    r"(?<![a-z])(log-?[io]n|sign-?in|sso|auth[nz]?|authenticate|oauth2?|oidc|openid|saml2?|shibboleth|idp|cas|adfs)"
    r"(?![a-z])"
)
_OBJECT_ID = re.compile(r"[0-9a-fA-F]{24}")
_NUMBERS = r"\s*\d{1,12}\s*(?:,\s*\d{1,12}\s*)*,?\s*"
_SHAPE = re.compile(rf"\(({_NUMBERS}|\s*)\)|({_NUMBERS})", re.ASCII)
_DTYPE = re.compile(r"[<=|]?[a-z]{1,10}[0-9]{0,3}")
_DECIMAL = re.compile(r"[0-9]{1,9}", re.ASCII)

#: Texts are geometry (tens of kB).
_MAX_TEXT_BYTES: Final = 64 * 1024**2
#: To read a printed dict takes up to 500 times its size in memory.
_MAX_PRINTED_BYTES: Final = 1024**2
_MAX_DIMENSIONS: Final = 32

_PRINTED_DICTS: Final = frozenset({"xtcav_lasingoff", "xtcav_pedestals", "lasingoffreference"})

_NOMINAL: Final[Mapping[str, str]] = {
    **dict.fromkeys(("pedestals", "pixel_rms", "pixel_gain", "pixel_offset", "pixel_bkgd"), "float32"),
    **dict.fromkeys(("pixel_status", "status_extra", "pixel_max", "pixel_min"), "uint64"),
    **dict.fromkeys(("pixel_mask", "users_mask"), "uint8"),
    "pixel_datast": "uint16",
}

Buffer = bytes | bytearray | memoryview


# Names and addresses


def base_url(text: str) -> str:
    """Return the address below which the service's databases are, without a slash at the end.

    Parameters
    ----------
    text
        Either the address itself (its path ends in ``calib_ws``) or what comes before it: the original changed the
        meaning of ``LCLS_CALIB_HTTP`` from the one to the other, and both are in use.

    Raises
    ------
    ConfigError
        If it is no http or https address, or carries a password, a query or a fragment.
    """
    fix = "give the service's address, e.g. https://host/ws or https://host/calib_ws"
    shown = _showable(text)
    try:
        parts = urlsplit(text.strip())
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        # Without its words and without it: it quotes the piece that it stumbled over, which may be a password.
        raise ConfigError(f"the calibration service's address cannot be understood: {shown}", fix=fix) from None
    if not usable or "@" in text or parts.query or parts.fragment:
        raise ConfigError(f"the calibration service's address is not a plain http(s) address: {shown}", fix=fix)
    path = re.sub(r"/+", "/", parts.path).rstrip("/")
    if path.rpartition("/")[2] != "calib_ws":
        path += "/calib_ws"
    return f"{parts.scheme}://{parts.netloc}{path}"


def _showable(address: str) -> str:
    """Return what may be shown of an address that somebody mistyped: nothing that can be a password or a token."""
    if "@" in address:  # wherever it stands, what comes before it may be a user and a password
        return "one with an @ in it"
    return repr(re.split(r"[?#]", address.strip())[0][:80])


def base_url_from(environ: Mapping[str, str], default: str = SITE_URL) -> str:
    """Return the address that the variables of the original name.

    ``SIT_PSDM_OFFSITE`` (any text) means the address for users outside and wins; then ``LCLS_CALIB_HTTP``, either an
    address or what comes before it; then ``default``, which goes with how the client says who it is.
    """
    if environ.get("SIT_PSDM_OFFSITE"):
        return base_url(OFFSITE_URL)
    return base_url(environ.get("LCLS_CALIB_HTTP") or default)


def redirect_target(base: str, url: str, location: str) -> str:
    """Return the address that a redirect leads to, with the question that was asked.

    Parameters
    ----------
    base
        The service's address.
    url
        What was asked, with its filter.
    location
        Where the answer points.

    Raises
    ------
    AuthError
        If that is a login page.
    InputError
        If it is another server, or cannot be understood. Who asks is told to this one only, and an answer of another
        is not this one's.
    """
    place = url.partition("?")[0]
    try:
        old, new = urlsplit(url), urlsplit(urljoin(url, location))
        plain = location.isascii() and location.isprintable() and not set(" \\@") & set(new.netloc)
        if not location or not plain or new.scheme not in ("http", "https") or not new.hostname:
            raise ValueError
        same = _origin(old) == _origin(new)
    except ValueError:
        raise InputError(
            f"{place} redirects to an address that cannot be understood", fix="check the address"
        ) from None
    shown = repr(f"{new.scheme}://{new.netloc}{new.path}"[:160])
    below = same and f"{new.path}/".startswith(f"{urlsplit(base).path}/")
    if not below and _LOGIN.search(f"{new.hostname}{new.path}".lower()):
        raise AuthError(
            f"{place} redirects to a login page, {shown}",
            fix="give a valid token (CALIB_JWT) or Kerberos ticket (kinit), and the address that goes with it",
        )
    if not same:
        raise InputError(
            f"{place} redirects to another server, {shown}", fix="give that address if it is the service's"
        )
    return new._replace(query=old.query or new.query, fragment="").geturl()


def _origin(parts: SplitResult) -> tuple[str, str | None, int]:
    return parts.scheme, parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)


def check_name(what: str, name: str) -> str:
    """Return ``name`` if it can be part of an address and of a file's name.

    Raises
    ------
    InputError
        If it is empty, longer than 127 characters, or has anything but letters, digits, ``_`` and ``-``.
    """
    if not _NAME.fullmatch(name):
        raise InputError(
            f"{what} {name[:80]!r} is not a name", fix="only letters, digits, _ and - are allowed, at most 127"
        )
    return name


def is_name(text: str) -> bool:
    """Whether a text can be part of an address and of a file's name, as `check_name` wants it."""
    return _NAME.fullmatch(text) is not None


def check_collection(name: str) -> str:
    """Return ``name`` if the service can have a collection of that name; it may have to be percent-encoded.

    Raises
    ------
    InputError
        If it is empty, longer than 127 characters, begins with a dot or ``system.``, or has ``$``, a slash, a
        backslash or anything that is not printable ASCII in it.
    """
    if not _COLLECTION.fullmatch(name):
        raise InputError(
            f"collection {name[:80]!r} is not a name", fix="printable ASCII without $, / and \\ is allowed"
        )
    return name


def check_document_id(what: str, text: object) -> str:
    """Return an id of the service, 24 hexadecimal digits.

    Raises
    ------
    InputError
        If it is anything else.
    """
    if not isinstance(text, str) or not _OBJECT_ID.fullmatch(text):
        raise InputError(f"{what} {str(text)[:80]!r} is not 24 hexadecimal digits", fix="the document is damaged")
    return text


def service_id(experiment: str | None, unique_id: str, fixed: Mapping[str, str] = FIXED_IDS) -> str:
    """Return the unique id that the service is asked about: for a few experiments always the same one."""
    return fixed.get(experiment, unique_id) if experiment is not None else unique_id


def detector_type(unique_id: str) -> str:
    """Return the type of a detector, its unique id up to the first ``_``: the service's collection of its names.

    Raises
    ------
    InputError
        If no collection can have that name.
    """
    return check_collection(unique_id.partition("_")[0])


def short_name_from(documents: Iterable[Document], unique_id: str) -> str | None:
    """Return the service's short name of a detector.

    Exactly one document whose ``long`` is the unique id decides. Otherwise it is the first one whose ``long`` has every
    piece of the unique id (between ``_``) as a piece of its own. The original looked for *substrings*, of which an
    empty id (``hsd_``) has one that is in everything; here an id with an empty piece matches nothing.

    Parameters
    ----------
    documents
        Of the service's table of names, for the detector's type.
    unique_id
        Type and the ids of the segments, joined by ``_``.

    Returns
    -------
    str or None
        None: the service does not know this detector.

    Raises
    ------
    InputError
        If the short name that was found is not a name.
    """
    named = [d for d in documents if isinstance(d.get("short"), str) and isinstance(d.get("long"), str)]
    hits = [d for d in named if d["long"] == unique_id]
    if len(hits) != 1:
        pieces = unique_id.split("_")[1:]
        wanted = set(pieces)
        hits = [d for d in named if wanted <= set(d["long"].split("_")[1:])] if pieces and all(pieces) else []
        if len({d["short"] for d in hits}) > 1:
            _log.warning(
                "%d detectors answer to %.80s; the first, %s, is taken", len(hits), unique_id, hits[0]["short"]
            )
    return check_name("short name", hits[0]["short"]) if hits else None


# Choosing


def creation_time(document_id: str) -> datetime:
    """Return when a document was made: the first eight hexadecimal digits of its id are seconds since 1970.

    Raises
    ------
    InputError
        If it is no id.
    """
    return datetime.fromtimestamp(int(check_document_id("document id", document_id)[:8], 16), UTC)


def _number(value: object) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    return int(value) if isinstance(value, str) and _DECIMAL.fullmatch(value) else None


def _range(document: Document) -> tuple[int, int] | None:
    """Return the first and the last run of a document; None where they make no sense."""
    first = document.get("run")
    if isinstance(first, bool) or not isinstance(first, int) or first > LAST_RUN:
        return None
    end = document.get("run_end")
    last = LAST_RUN if end == "end" else _number(end)
    return None if last is None or last > LAST_RUN else (first, last)


def _made(document: Document) -> int:
    return int(document["_id"][:8], 16)


def _identified(document: Document) -> bool:
    name = document.get("_id")
    return isinstance(name, str) and _OBJECT_ID.fullmatch(name) is not None


def is_understood(document: Document) -> bool:
    """Whether a document has an id, a ctype that is a name, and a range of runs."""
    ctype = document.get("ctype")
    return _identified(document) and isinstance(ctype, str) and bool(_NAME.fullmatch(ctype)) and bool(_range(document))


def choose_document(documents: Iterable[Document], run: int | None) -> Document | None:
    """Return the document, of one ctype, that serves a run.

    Candidates are those whose range includes the run. Of them the one that starts last; of those the one that ends
    first; of those the newest, and of equally new ones the one that comes later in the answer. So a later range beats
    an earlier one, a narrow one beats an open one, and what was deployed again beats what it replaces.

    Parameters
    ----------
    documents
        In the order of the service's answer. Documents whose id or range cannot be understood serve no run.
    run
        The run; None means the last one there can be.

    Returns
    -------
    Document or None
        None where no range includes the run.
    """
    number = LAST_RUN if run is None else run
    best: Document | None = None
    best_rank: tuple[int, int, int] | None = None
    for document in documents:
        span = _range(document)
        if span is None or not _identified(document) or not span[0] <= number <= span[1]:
            continue
        rank = (span[0], -span[1], _made(document))
        if best_rank is None or rank >= best_rank:
            best, best_rank = document, rank
    return best


def _by_ctype(documents: Iterable[Document]) -> dict[str, list[Document]]:
    groups: dict[str, list[Document]] = {}
    for document in documents:
        ctype = document.get("ctype")
        if isinstance(ctype, str) and _NAME.fullmatch(ctype):
            groups.setdefault(ctype, []).append(document)
    return dict(sorted(groups.items()))


def choose_all(documents: Iterable[Document], run: int | None) -> dict[str, Document]:
    """Return by ctype the document that serves a run, in alphabetic order; ctypes without one are left out."""
    chosen = {ctype: choose_document(group, run) for ctype, group in _by_ctype(documents).items()}
    return {ctype: document for ctype, document in chosen.items() if document is not None}


def newest_of_each(documents: Iterable[Document]) -> dict[str, Document]:
    """Return by ctype the document that was made last, whatever its range; the later one of equally new ones.

    Documents without an id, or whose ``run`` is no whole number, are passed over: nobody could say since when they
    hold.
    """
    newest: dict[str, Document] = {}
    for ctype, group in _by_ctype(documents).items():
        for document in group:
            if not _identified(document) or type(document.get("run")) is not int:
                continue
            if ctype not in newest or _made(document) >= _made(newest[ctype]):
                newest[ctype] = document
    return newest


def needs_update(latest: Mapping[str, str], existing: Mapping[str, str]) -> bool:
    """Whether some detector of ``latest`` is not in ``existing``, or is there with another unique id.

    More detectors in ``existing`` do not matter, and an empty ``latest`` never needs an update.
    """
    return any(existing.get(name) != unique_id for name, unique_id in latest.items())


# Data


def is_pickle(document: Document) -> bool:
    """Whether a document's data are a pickle, which runs code when it is loaded."""
    return document.get("data_type") == "any"


def _dtype(text: object) -> np.dtype[Any]:
    fix = "the document is damaged or hostile; deploy the constants again"
    if not isinstance(text, str) or not _DTYPE.fullmatch(text):
        raise InputError(f"data_dtype {str(text)[:80]!r} is not the name of a type of numbers", fix=fix)
    try:
        dtype = np.dtype(text)
    except (TypeError, ValueError, SyntaxError) as error:
        raise InputError(f"data_dtype {text!r} is not the name of a type of numbers", fix=fix) from error
    if dtype.kind not in "biufc" or dtype.hasobject:
        raise InputError(f"data_dtype {text!r} is not a type of numbers", fix=fix)
    return dtype.newbyteorder("<")


def _shape(text: object) -> tuple[int, ...]:
    match = _SHAPE.fullmatch(text) if isinstance(text, str) and len(text) <= 256 else None
    if match is None:
        raise InputError(
            f"data_shape {str(text)[:80]!r} is not a printed tuple of whole numbers",
            fix="the document is damaged or hostile; deploy the constants again",
        )
    shape = tuple(int(piece) for piece in (match[1] or match[2] or "").split(",") if piece.strip())
    if len(shape) > _MAX_DIMENSIONS:
        raise InputError(f"data_shape has {len(shape)} dimensions", fix=f"at most {_MAX_DIMENSIONS} are possible")
    return shape


def array_layout(document: Document, *, max_bytes: int = MAX_ARRAY_BYTES) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """Return the type and the shape of a document's array, checked before anything is allocated.

    Raises
    ------
    InputError
        If type or shape are not plain names and numbers, or the array is larger than ``max_bytes``.
    """
    dtype, shape = _dtype(document.get("data_dtype")), _shape(document.get("data_shape"))
    size = math.prod(shape) * dtype.itemsize
    if size > max_bytes:
        raise InputError(
            f"the array {shape} of {dtype} has {size} bytes, more than {max_bytes}",
            fix="raise max_bytes if a detector really is that large",
        )
    return dtype, shape


def expected_bytes(document: Document, *, max_bytes: int = MAX_ARRAY_BYTES) -> int | None:
    """Return how many bytes a document's data have; None for texts, whose documents count characters.

    Raises
    ------
    InputError
        If the document does not describe an array or a text, or describes an impossible one.
    """
    kind = document.get("data_type")
    if kind == "ndarray":
        dtype, shape = array_layout(document, max_bytes=max_bytes)
        return math.prod(shape) * dtype.itemsize
    if kind in ("str", "any"):
        return None
    raise InputError(
        f"data_type {str(kind)[:80]!r} is neither 'ndarray' nor 'str' nor 'any'", fix="deploy the constants again"
    )


def text_bytes(document: Document) -> int:
    """Return about how many bytes a text has: its document counts characters, few of which take more than one."""
    counted = str(document.get("data_size", ""))
    return int(counted) if counted.isascii() and counted.isdigit() and len(counted) < 10 else 0


def text_limit(document: Document, max_bytes: int = MAX_ARRAY_BYTES) -> int:
    """Return the most bytes that are read of data whose document does not say how many there are."""
    printed = document.get("ctype") in _PRINTED_DICTS
    return min(_MAX_PRINTED_BYTES if printed else _MAX_TEXT_BYTES, max_bytes)


def dtype_remark(document: Document) -> str | None:
    """Return a sentence if an array's type is not the usual one of its ctype, otherwise None.

    The array is handed out as it was deployed in any case: to convert would hide who deployed what.
    """
    ctype = document.get("ctype")
    usual = _NOMINAL.get(ctype) if isinstance(ctype, str) else None
    found = document.get("data_dtype")
    if usual is None or document.get("data_type") != "ndarray" or not isinstance(found, str):
        return None
    if not _DTYPE.fullmatch(found) or _dtype(found) == np.dtype(usual).newbyteorder("<"):
        return None
    return f"{ctype} of document {document.get('_id')} is {found}, usually {usual}; kept as it is"


def decode(
    document: Document,
    data: Buffer,
    *,
    unpickle: Callable[[Buffer], Any] | None = None,
    max_bytes: int = MAX_ARRAY_BYTES,
) -> Constant:
    """Return what the bytes of a document's data mean.

    Parameters
    ----------
    document
        Its ``data_type`` decides; ``data_dtype`` and ``data_shape`` describe an array.
    data
        The bytes as stored: an array in C order, little-endian, or a text in UTF-8.
    unpickle
        What may load a document of type ``any``; without it such documents are refused. Give one that lets no code
        run.
    max_bytes
        The largest array that is accepted.

    Returns
    -------
    array, str or dict
        An array is a read-only view of ``data``; a dict where the ctype holds a printed one.

    Raises
    ------
    InputError
        If document and bytes contradict each other, or the document is damaged or hostile.
    RejectedError
        If the data are a pickle and ``unpickle`` is not given.

    Notes
    -----
    A type that is unusual for its ctype is kept and warned about (a float64 pedestal was once deployed by mistake
    and broke readers).
    """
    size = expected_bytes(document, max_bytes=max_bytes)
    if is_pickle(document):
        if unpickle is None:
            raise RejectedError(
                f"{document.get('ctype')} of document {document.get('_id')} is a pickle, and loading one runs its code",
                fix="deploy it as an array or a text",
            )
        return unpickle(data)  # type: ignore[no-any-return]
    if size is None:
        return _decode_text(document, data)
    if size != len(data):
        raise InputError(
            f"{document.get('ctype')} of document {document.get('_id')} should have {size} bytes and has {len(data)}",
            fix="the data and the document do not belong together; deploy the constants again",
        )
    remark = dtype_remark(document)
    if remark:
        _log.warning("%s", remark)
    dtype, shape = array_layout(document, max_bytes=max_bytes)
    return _read_only(data, dtype, shape)


def _read_only(data: Buffer, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    array = np.frombuffer(data, dtype).reshape(shape) if len(data) else np.empty(shape, dtype)
    array.flags.writeable = False
    return array


def _decode_text(document: Document, data: Buffer) -> str | dict[str, Any]:
    name = f"{document.get('ctype')} of document {document.get('_id')}"
    if len(data) > text_limit(document):
        raise InputError(
            f"{name} has {len(data)} bytes, and at most {text_limit(document)} are read",
            fix="deploy what is that large as an array",
        )
    try:
        text = bytes(data).decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{name} is not a text in UTF-8 ({error.reason} at byte {error.start})") from error
    if document.get("ctype") in _PRINTED_DICTS:
        return _decode_printed(name, text)
    count = _number(document.get("data_size"))
    # Writers count characters; one that counts bytes is believed too.
    if count is not None and count not in (len(text), len(data)):
        raise InputError(
            f"{name} should have {count} characters and has {len(text)}",
            fix="the data and the document do not belong together; deploy the constants again",
        )
    return text


def _decode_printed(name: str, text: str) -> dict[str, Any]:
    try:
        found = ast.literal_eval(text.strip())
        values = {key: _revive(value) for key, value in found.items()} if isinstance(found, dict) else None
    except InputError as error:
        raise InputError(f"{name}: {error.what}", fix=error.fix) from error
    except (ArithmeticError, MemoryError, RecursionError, SyntaxError, TypeError, ValueError) as error:
        raise InputError(f"{name} is not a printed dict of plain values ({type(error).__name__})") from error
    if values is None:
        raise InputError(f"{name} is a printed {type(found).__name__}, not a dict")
    return values


def _revive(value: Any) -> Any:
    """Turn ``{type: 'nd'}`` into an array and ``{type: 'sc'}`` into a scalar, at any depth."""
    if isinstance(value, list):
        return [_revive(item) for item in value]
    if isinstance(value, tuple):
        return tuple(_revive(item) for item in value)
    if not isinstance(value, dict):
        return value
    kind = value.get("type")
    if kind == "nd" and "data" in value:
        return _revive_array(value)
    if kind == "sc" and "data" in value:
        return _revive_scalar(value)
    return {key: _revive(item) for key, item in value.items()}


def _revive_array(value: Mapping[str, Any]) -> NDArray[Any]:
    dtype, shape, data = _dtype(value.get("dtype")), _shape(str(value.get("shape"))), value["data"]
    if not isinstance(data, bytes) or len(data) != math.prod(shape) * dtype.itemsize:
        raise InputError(f"an array {shape} of {dtype} in it does not have the bytes that its shape asks for")
    return _read_only(data, dtype, shape)


def _revive_scalar(value: Mapping[str, Any]) -> Any:
    data = value["data"]
    if value.get("dtype") in ("str", "bytes"):
        return data
    dtype = _dtype(value.get("dtype"))
    if isinstance(data, bytes):
        if len(data) != dtype.itemsize:
            raise InputError(f"a {dtype} in it has {len(data)} bytes")
        return np.frombuffer(data, dtype)[0]
    return dtype.type(data)
