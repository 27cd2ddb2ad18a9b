"""From values to the bytes of a page: templates, files that come with them, and the same as JSON."""

from __future__ import annotations

import functools
import hashlib
from importlib import resources
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from pydantic import TypeAdapter

from nightbeam import __version__
from nightbeam.monitor import show, tags
from nightbeam.monitor.compute import are_blind
from nightbeam.monitor.views import address, group_state, is_silent

__all__ = ["STATIC", "as_json", "static_file", "templates"]

_ANY: Final[TypeAdapter[Any]] = TypeAdapter(Any)
_LIMITS: Final = (20, 50, 100, 200)
#: Files that come with the pages.
STATIC: Final = {
    "style.css": "text/css; charset=utf-8",
    "htmx.min.js": "text/javascript; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}


def anchor(name: str) -> str:
    """Return a name that can stand behind a ``#``, another one for each name."""
    return "set-" + "".join(c if c.isascii() and (c.isalnum() or c in "-.") else f"_{ord(c):x}_" for c in name)


@functools.cache
def static_file(name: str) -> tuple[bytes, str]:
    """Return a file that comes with the pages, and a word that changes with its content."""
    data = (resources.files("nightbeam.monitor") / "static" / name).read_bytes()
    return data, hashlib.sha256(data).hexdigest()[:12]


def static(name: str) -> str:
    """Return the address of a file that comes with the pages."""
    return f"/static/{name}?v={static_file(name)[1]}"


@functools.cache
def templates() -> Environment:
    """Return the templates; everything that is put into them is escaped."""
    found = Environment(
        loader=PackageLoader("nightbeam.monitor", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {
        "ago": show.ago, "anchor": anchor, "byte_size": show.byte_size, "degrees": show.degrees, "dms": show.dms,
        "duration": show.duration, "fact": show.fact, "hms": show.hms, "instant": show.instant, "iso": show.iso,
        "jansky": show.jansky, "moment_in": show.moment_in, "number": show.number,
        "per_cent": show.per_cent, "utc": show.utc, "words": show.words,
        "beam": lambda one: show.beam(one.beam_major_arcsec, one.beam_minor_arcsec, one.beam_pa_deg),
    }  # fmt: skip
    found.globals |= {
        "icon": tags.icon, "state": tags.state, "when": tags.when, "since": tags.since,
        "mark": show.mark, "are_blind": are_blind,
        "address": address, "static": static, "version": __version__, "limits": _LIMITS,
        "group_state": group_state, "is_silent": is_silent, "group_mark": lambda group: show.mark(group_state(group)),
        "between": lambda a, b: None if a is None or b is None else (b - a).total_seconds(),
        "boosted": Markup('hx-boost="true"'),
    }  # fmt: skip
    return found


def as_json(answer: Any) -> bytes:
    """Return an answer as JSON: times as text with Z, null for numbers that JSON has not."""
    return _ANY.dump_json(answer)
