"""What follows from the logbook's documents; no network, no disk, no database."""

from __future__ import annotations

import hashlib
import html
import json
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from nightbeam.core.errors import InputError
from nightbeam.elog.model import Document, Production, Summary

__all__ = [
    "LONGEST_TEXT",
    "canonical",
    "decode_text",
    "detectors",
    "digest",
    "display_name",
    "dump_json",
    "encode_text",
    "experiment_id_of",
    "history_of",
    "lines_of",
    "load_json",
    "loads",
    "parse_time",
    "plain_text",
    "production",
    "proposal_of",
    "run_hint",
    "search_terms",
    "snippet",
    "split_contact",
    "summary_of",
    "tidy",
    "whole_number",
    "window_time",
    "without_secrets",
]

#: The most that is searchable of one entry, in bytes of UTF-8: PostgreSQL's index of a text has 1 MB at most,
#: which in the worst case is four times the text.
LONGEST_TEXT: Final = 200_000

_ESCAPE = "\U000f0000"
_SPECIAL = re.compile("[\0\ud800-\udfff\U000f0000]")
_ESCAPED = re.compile("\U000f0000(\U000f0000|[0-9a-f]{4})")
_NUMBER_KEY = re.compile(r"\$+number")
#: What a JSON text can hold that needs a closer look before it goes to a database.
_SUSPECT = re.compile(r"\\u0000|[\ud800-\udfff\U000f0000]|NaN|Infinity|\$number")
_NOT_FINITE: Final[Mapping[str, float]] = {
    "NaN": float("nan"),
    "Infinity": float("inf"),
    "-Infinity": float("-inf"),
}

_SECRET = re.compile(r"pwd|passw|secret|token", re.IGNORECASE)
_SECRET_IN_ADDRESS = re.compile(r"([?&#][\w.-]{0,60}(?:pwd|passw|secret|token)[\w.-]{0,60}=)[^&#\s]*", re.IGNORECASE)

_CONTACT = re.compile(r"(?P<name>.*?)\s*[(<]\s*(?P<mail>[^\s()<>]+@[^\s()<>]+?)\s*[)>]", re.DOTALL)
_MAIL = re.compile(r"([^\s()<>]+@[^\s()<>]+)")

_RUN_STARTED = re.compile(r"Run number\s+(\d{1,18}): Running")
_LONG = 2**63


# -- names and times ----------------------------------------------------------------------------------------------


def experiment_id_of(name: str) -> str:
    """Return the id that an experiment of this name has: a space becomes an underscore."""
    return name.replace(" ", "_")


def display_name(name: str) -> str:
    """Return a parameter's name as people write it; the service keeps ``.`` and ``$`` as full-width characters."""
    return name.replace("\uff0e", ".").replace("\uff04", "$")


def parse_time(text: object) -> datetime | None:
    """Return the service's time, aware and in UTC; None for what is none.

    A time without a zone is taken as UTC.
    """
    if not isinstance(text, str):
        return None
    try:
        when = datetime.fromisoformat(text)
        return when.replace(tzinfo=UTC) if when.tzinfo is None else when.astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def window_time(when: datetime) -> str:
    """Return the time as the service wants it in a question, ``2026-02-03T04:05:06.250000Z``."""
    return when.astimezone(UTC).isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"


# -- JSON ---------------------------------------------------------------------------------------------------------


def loads(body: bytes | str) -> Any:
    """Return the value of a JSON text; bare ``NaN``, ``Infinity`` and ``-Infinity`` are numbers.

    Raises
    ------
    InputError
        If it is no JSON.
    """
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        start = body[:60] if isinstance(body, str) else body[:60].decode("utf-8", "replace")
        raise InputError(f"no JSON: {error}; it begins with {start!r}") from error


_CANONICAL: Final = json.JSONEncoder(sort_keys=True, ensure_ascii=False, separators=(",", ":"))
_COMPACT: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


def canonical(value: Any) -> bytes:
    """Return one JSON text for all equal documents: sorted keys, NaN kept, lone surrogates kept apart."""
    return _CANONICAL.encode(value).encode("utf-8", "surrogatepass")


def digest(value: Any) -> str:
    """Return 32 hexadecimal digits that tell whether a document has changed."""
    return hashlib.blake2b(canonical(value), digest_size=16).hexdigest()


def encode_text(text: str) -> str:
    r"""Return the text as every database bears it; `decode_text` gives the same text back.

    NUL and lone surrogates become U+F0000 and four hexadecimal digits, and U+F0000 itself is doubled. All
    other text stays as it is.
    """
    if text.isascii() and "\0" not in text:
        return text
    return _SPECIAL.sub(lambda m: _ESCAPE * 2 if m[0] == _ESCAPE else f"{_ESCAPE}{ord(m[0]):04x}", text)


def decode_text(text: str) -> str:
    """Return the text that `encode_text` was given."""
    if _ESCAPE not in text:
        return text
    return _ESCAPED.sub(lambda m: _ESCAPE if m[1] == _ESCAPE else chr(int(m[1], 16)), text)


def dump_json(value: Any) -> str:
    """Return JSON that every database reads; `load_json` gives an equal value back.

    Text is as of `encode_text`. What is no number in strict JSON becomes ``{"$number": "NaN"}``, and a key that
    looks so gets one more ``$``.
    """
    text = _COMPACT.encode(value)
    if not _SUSPECT.search(text):
        return text
    return json.dumps(_guarded(value), ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def load_json(text: str) -> Any:
    """Return the value that `dump_json` was given."""
    value = json.loads(text)
    return _unguarded(value) if _ESCAPE in text or "$number" in text else value


def _guarded(value: Any) -> Any:
    if isinstance(value, str):
        return encode_text(value)
    if isinstance(value, float) and not math.isfinite(value):
        return {"$number": "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"}
    if isinstance(value, Mapping):
        return {_guarded_key(key): _guarded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_guarded(item) for item in value]
    return value


def _guarded_key(key: str) -> str:
    return "$" + key if _NUMBER_KEY.fullmatch(key) else encode_text(key)


def _unguarded(value: Any) -> Any:
    if isinstance(value, str):
        return decode_text(value)
    if isinstance(value, dict):
        if len(value) == 1 and "$number" in value:
            return _NOT_FINITE[value["$number"]]
        return {key[1:] if _NUMBER_KEY.fullmatch(key) else decode_text(key): _unguarded(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_unguarded(item) for item in value]
    return value


def whole_number(value: object) -> int | None:
    """Return what is a whole number of 64 bits, also printed or with a zero fraction; None for the rest."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        text = value.strip()
        if not re.fullmatch(r"[+-]?\d{1,19}(?:\.0*)?", text, re.ASCII):
            return None
        value = int(text.partition(".")[0])
    if isinstance(value, float):
        if not value.is_integer():
            return None
        value = int(value)
    return value if isinstance(value, int) and -_LONG <= value < _LONG else None


# -- experiments --------------------------------------------------------------------------------------------------


def summary_of(document: Document) -> Summary:
    """Return an experiment of the list of those that the user may read.

    Raises
    ------
    InputError
        If it has no ``_id`` or no name.
    """
    key, name = document.get("_id"), document.get("name")
    if not isinstance(key, str) or not isinstance(name, str) or not key or not name:
        raise InputError(f"an experiment without _id or name: {str(document)[:200]}")
    last, params = _mapping(document.get("last_run")), _mapping(document.get("params"))
    size = document.get("totalDataSize")
    return Summary(
        experiment_id=key,
        name=name,
        instrument=_text(document.get("instrument")),
        description=_text(document.get("description")),
        start_time=_text(document.get("start_time")),
        end_time=_text(document.get("end_time")),
        leader_account=_text(document.get("leader_account")),
        contact_info=_text(document.get("contact_info")),
        posix_group=_text(document.get("posix_group")),
        params=params,
        run_count=whole_number(document.get("run_count")),
        last_run=whole_number(last.get("num")),
        total_files=whole_number(document.get("totalFiles")),
        total_gib=float(size) if isinstance(size, int | float) and not isinstance(size, bool) else None,
        last_run_begin=_text(last.get("begin_time")),
        document=document,
    )


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def proposal_of(experiment: Summary | Document) -> tuple[str, str] | None:
    """Return the run period and the proposal that the questionnaire is asked for; None where there is none.

    The proposal is ``params.PNR``; the period ``params.run_period``, or the two digits that the name ends in.
    """
    if isinstance(experiment, Summary):
        name, params = experiment.name, experiment.params
    else:
        name, params = str(experiment.get("name", "")), _mapping(experiment.get("params"))
    proposal = _text(params.get("PNR")) or ""
    period = (_text(params.get("run_period")) or "").strip() or name[-2:]
    if proposal.strip() in ("", "N/A") or not re.fullmatch(r"\d+", period, re.ASCII):
        return None
    return period, proposal.strip()


def split_contact(contact_info: object) -> tuple[str | None, str | None]:
    """Return the principal investigator's name and mail address from ``Name (mail)``; None for what is not said."""
    text = contact_info.strip() if isinstance(contact_info, str) else ""
    if len(text) <= 500:
        # Only the last parentheses can be the mail: names have some too.
        if found := _CONTACT.fullmatch(text):
            return found["name"] or None, found["mail"]
        if found := _MAIL.fullmatch(text):
            return None, found[1]
    return text or None, None


def without_secrets(params: Any) -> Any:
    """Return an experiment's parameters without those that hold passwords or tokens, and without them in addresses."""
    if isinstance(params, Mapping):
        return {key: without_secrets(value) for key, value in params.items() if not _SECRET.search(key)}
    if isinstance(params, list):
        return [without_secrets(value) for value in params]
    return _SECRET_IN_ADDRESS.sub(r"\1", params) if isinstance(params, str) else params


# -- runs ---------------------------------------------------------------------------------------------------------


def production(params: object) -> Production:
    """Return what a run's parameters say of its events and of the time its data were produced."""
    if not isinstance(params, Mapping):
        return Production()

    def total(name: str) -> int | None:
        spaced = whole_number(params.get(f"DAQ Detector Totals/{name}"))
        return whole_number(params.get(f"DAQ_Detector_Totals/{name}")) if spaced is None else spaced

    return Production(
        n_events=total("Events"),
        n_damaged=total("Damaged"),
        n_dropped=whole_number(params.get("N dropped Shots")),
        prod_start=_text(params.get("Prod_start")),
        prod_end=_text(params.get("Prod_end")),
    )


def detectors(params: object) -> dict[str, bool]:
    """Return the detectors that a run's parameters name, by the parameter's whole name; True where it took part."""
    if not isinstance(params, Mapping):
        return {}
    return {
        name: value is True for name, value in params.items() if name.startswith(("DAQ Detectors/", "DAQ_Detectors/"))
    }


# -- entries ------------------------------------------------------------------------------------------------------


def history_of(document: Document) -> str | None:
    """Return the id of the entry that this one is an earlier version of; None for an entry of its own.

    An edit leaves a copy of what was there before: a reply to the edited entry that was deleted at the moment
    that it speaks of. A reply that somebody deleted speaks of an earlier moment.
    """
    parent, when, deleted = (document.get(key) for key in ("parent", "relevance_time", "deleted_time"))
    if not isinstance(parent, str) or not document.get("deleted_by") or not isinstance(when, str):
        return None
    if when == deleted:
        return parent
    first, second = parse_time(when), parse_time(deleted)
    return parent if first is not None and first == second else None


def run_hint(document: Document) -> int | None:
    """Return the run that an entry names, or whose start its text reports."""
    number = whole_number(document.get("run_num"))
    content = document.get("content")
    if number is None and isinstance(content, str) and (found := _RUN_STARTED.search(content)):
        number = int(found[1])
    return number


#: Possessive, so that a "<" which nothing closes is looked at once.
_TAG = re.compile(r"<(?:(!--)|(/?[a-zA-Z][a-zA-Z0-9]*+)[^<>]*+>|[!?][^<>]*+>)")
_DATA = re.compile(r"data:[\w.+-]{1,60}/[\w.+-]{1,60}(?:;[\w=-]{1,60}){0,4},[\w+/=%-]*", re.ASCII)
#: What tells HTML from a text in which < is "less than": an end of an element, or one that stands alone.
_IS_HTML = re.compile(
    r"</(?:a|b|i|u|p|em|li|ol|ul|td|th|tr|h[1-6]|pre|div|font|span|code|table|tbody|strong|center|blockquote)\s*>"
    r"|<(?:br|hr|p)\s*/?>|<img\s",
    re.IGNORECASE,
)
#: What is not read, up to its end.
_HIDING: Final[Mapping[str, str]] = {"script": r"</script[^<>]*>", "style": r"</style[^<>]*>", "!--": "-->"}
_INLINE = frozenset({"a", "abbr", "b", "code", "em", "font", "i", "s", "small", "span", "strong", "sub", "sup", "u"})
_NO_CHARACTER = re.compile(r"&#\d{8,};?", re.ASCII)
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\U000f0000]")
#: The most of an entry's source that is looked at, images left out.
_LONGEST_SOURCE = 4_000_000


def plain_text(content: object, title: object = None) -> str:
    """Return an entry's content as people read it: no markup, no pictures, no control characters.

    Parameters
    ----------
    content
        As the service gave it, whatever it is.
    title
        An entry with a title is HTML; one without is so where it has elements that nobody writes by hand.

    Returns
    -------
    str
        At most `LONGEST_TEXT` bytes of UTF-8, composed (NFC), lines kept.

    Notes
    -----
    The time it takes grows with the length alone, whatever is open or unbalanced in the markup.
    """
    if not isinstance(content, str):
        return ""
    text = (_DATA.sub(" ", content) if "data:" in content else content)[:_LONGEST_SOURCE]
    if title or _IS_HTML.search(text):
        # html.unescape falls over a number of more than 4300 digits; no character has more than seven.
        text = html.unescape(_NO_CHARACTER.sub(" ", _without_markup(text)))
    return tidy(text)


def _without_markup(text: str) -> str:
    pieces: list[str] = []
    ends = {name: (re.compile(end, re.IGNORECASE), -1) for name, end in _HIDING.items()}
    here = 0
    while found := _TAG.search(text, here):
        pieces.append(text[here : found.start()])
        name, here = (found[1] or found[2] or "").lower(), found.end()
        if name in ends:
            # Where the next end is remains known, so that a thousand openings look through the text once.
            pattern, stop = ends[name]
            if stop <= found.end():
                closing = pattern.search(text, found.end())
                stop = closing.end() if closing else len(text) + 1
                ends[name] = pattern, stop
            # One that is never closed hides nothing: a stray "<!--" would hide the rest of an entry.
            here = stop if stop <= len(text) else here
        pieces.append("" if name.lstrip("/") in _INLINE else "\n")
    pieces.append(text[here:])
    return "".join(pieces)


def tidy(text: str) -> str:
    """Return a text composed (NFC), without control characters, with single spaces, and not too long."""
    text = unicodedata.normalize("NFC", _CONTROL.sub(" ", text))
    lines = (" ".join(line.split()) for line in text.split("\n"))
    return lines_of(lines)


def lines_of(texts: Iterable[str]) -> str:
    """Return texts that are tidy, each in its line, the empty ones left out; not too long."""
    whole = "\n".join(text for text in texts if text)
    return whole if 4 * len(whole) <= LONGEST_TEXT else whole.encode()[:LONGEST_TEXT].decode("utf-8", "ignore")


# -- searching ----------------------------------------------------------------------------------------------------

_PIECE = re.compile(r'"([^"]*)("?)(\*?)|([^\s"]+)')
_WORD = re.compile(r"[^\W_]+")


def search_terms(text: str) -> list[tuple[tuple[str, ...], bool]]:
    """Return what a search asks for: the words of each term, and whether the last of them is but a beginning.

    ``"two words"`` in quotation marks follow each other; ``word*`` is every word that begins so; all terms must be
    found. Whatever else is written is a separator, so no text is wrong.
    """
    terms = []
    for found in _PIECE.finditer(unicodedata.normalize("NFC", _CONTROL.sub(" ", text))):
        bare = found[4]
        words = tuple(_WORD.findall(bare if bare is not None else found[1]))
        prefix = bare.endswith("*") if bare is not None else bool(found[3])
        if words:
            terms.append((words, prefix))
    return terms


def snippet(text: str, terms: Iterable[tuple[tuple[str, ...], bool]], *, length: int = 160) -> str:
    """Return the part of a plain text around the first word that is looked for, in one line.

    It is text and not markup: ``<`` in it is "less than", and who shows it in a page escapes it.
    """
    flat = " ".join(text.split())
    places = []
    for words, prefix in terms:
        pattern = r"[\W_]+".join(re.escape(word) for word in words)
        found = re.search(rf"(?<![^\W_]){pattern}" + ("" if prefix else r"(?![^\W_])"), flat, re.IGNORECASE)
        if found:
            places.append(found.start())
    start = max(0, min(places, default=0) - length // 4)
    start = 0 if start == 0 else flat.find(" ", start) + 1 or start
    part = flat[start : start + length]
    if start + length < len(flat):
        part = part[: part.rfind(" ") if " " in part else None].rstrip() + " …"
    return ("… " if start else "") + part
