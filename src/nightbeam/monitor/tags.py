"""Pieces of HTML that stand dozens of times on one page: states and times.

Made here and not in a template, because a macro costs ten times as much, and a page of a group has sixty of them.
"""

from __future__ import annotations

import functools
from datetime import datetime
from typing import Final

from markupsafe import Markup, escape

from nightbeam.monitor import show
from nightbeam.monitor.show import Tone

__all__ = ["icon", "since", "state", "when"]

#: A shape for each tone, so that nobody has to tell colours apart.
_SHAPES: Final = {
    Tone.BAD: (
        '<path class="body" d="M4.2.5h5.6l3.7 3.7v5.6l-3.7 3.7H4.2L.5 9.8V4.2z"/>'
        '<path class="sign" d="M4.5 4.5l5 5m0-5l-5 5"/>'
    ),
    Tone.WARN: '<path class="body" d="M7 .8l6.6 12H.4z"/><path class="sign" d="M7 5v3.6M7 11v.1"/>',
    Tone.WORK: '<path class="body" d="M1.5.8l12 6.2-12 6.2z"/>',
    Tone.WAIT: '<circle class="body" cx="7" cy="7" r="5.6"/><path class="sign" d="M7 3.8V7l2.2 1.6"/>',
    Tone.GOOD: '<circle class="body" cx="7" cy="7" r="6.3"/><path class="sign" d="M3.8 7.3l2.2 2.2 4.2-4.6"/>',
    Tone.OFF: '<rect class="body" x="1.2" y="1.2" width="11.6" height="11.6" rx="1"/><path class="sign" d="M4.5 7h5"/>',
}
_NOTHING: Final = Markup('<span class="soft">–</span>')


@functools.cache
def icon(tone: Tone | str) -> Markup:
    """Return the shape of a tone."""
    head = f'<svg class="mark tone-{tone}" viewBox="0 0 14 14" aria-hidden="true" focusable="false">'
    return Markup(f"{head}{_SHAPES[Tone(tone)]}</svg>")


@functools.lru_cache(maxsize=1024)
def state(value: object, word: str | None = None) -> Markup:
    """Return a state as shape, colour and word.

    Parameters
    ----------
    value
        The state, in the words of the databases.
    word
        To be shown in its place.
    """
    found = show.mark(value, word=word)
    return Markup('<span class="state">{}<span>{}</span></span>').format(icon(found.tone), found.word)


def when(moment: datetime | None, now: datetime | None = None) -> Markup:
    """Return a time in UTC; where the present is given, also how long ago it was."""
    if moment is None:
        return _NOTHING
    written = show.iso(moment)
    tag = f'<time class="nowrap" datetime="{written}">{written.replace("T", " ")}</time>'
    if now is not None:
        tag += f' <span class="soft nowrap">{escape(show.ago(moment, now))}</span>'
    return Markup(tag)


def since(moment: datetime | None, now: datetime) -> Markup:
    """Return how long ago a time was, with the time itself at hand."""
    if moment is None:
        return _NOTHING
    written = show.iso(moment)
    head = f'<time class="nowrap" datetime="{written}" title="{written.replace("T", " ")}">'
    return Markup(f"{head}{escape(show.ago(moment, now))}</time>")
