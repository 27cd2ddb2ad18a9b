"""The monitor's page in the demo: it must show what the other parts have made."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import quote

import requests

from nightbeam.demo.model import GroupCheck, MosaicSource, RealCheck

__all__ = ["PageDemo"]

_TIMEOUT_S = 20.0
#: The five, and the platform itself.
_SYSTEMS = ("constants", "contimg", "cxi", "elog", "platform", "scans")
#: Words for what cannot be of a system that has just done its work.
_WRONG = ("trouble", "unknown", "off")


@dataclass(frozen=True, slots=True)
class PageDemo:
    """Where the page is."""

    address: str

    def check(self, groups: Sequence[GroupCheck], sources: Sequence[MosaicSource]) -> tuple[RealCheck, ...]:
        """Look at the page as a browser does: tonight, each group with its image, each mosaic."""
        ran = {"platform"} | ({"contimg"} if all(group.state != "failed" for group in groups) else set())
        rows = [self._row("the page: tonight at a glance", ", ".join(_SYSTEMS), partial(self._systems, ran))]
        for group in groups:
            rows.append(self._row(f"the page: {group.group_id}", group.state, partial(self._state, group.group_id)))
        for name in sorted({source.mosaic for source in sources}):
            rows.append(self._row(f"the page: {name}", "built, image/png", partial(self._mosaic, name)))
        return tuple(rows)

    def _row(self, what: str, expected: str, look: Callable[[], str]) -> RealCheck:
        try:
            found = look()
        except (requests.RequestException, KeyError, ValueError) as error:
            found = f"{type(error).__name__}: {error}"
        return RealCheck(what, expected, found, found == expected)

    def _systems(self, ran: Set[str]) -> str:
        self._get("/")
        shown = {one["key"]: one for one in self._json("/api/tonight")["systems"]}
        wrong = [
            f"{key} is {one['standing']}: {one['reason']}"
            for key, one in sorted(shown.items())
            if key in ran and one["standing"] in _WRONG
        ]
        return "; ".join([", ".join(sorted(shown)), *wrong])

    def _state(self, group_id: str) -> str:
        self._get(f"/groups/{quote(group_id, safe=':')}")
        return str(self._json(f"/api/groups/{quote(group_id, safe=':')}")["state"])

    def _mosaic(self, name: str) -> str:
        self._get(f"/mosaics/{quote(name)}")
        picture = self._get(f"/api/mosaics/{quote(name)}/png").headers["content-type"]
        return f"{self._json(f'/api/mosaics/{quote(name)}')['mosaic']['status']}, {picture}"

    def _json(self, path: str) -> Any:
        return self._get(path).json()

    def _get(self, path: str) -> requests.Response:
        answer = requests.get(self.address.rstrip("/") + path, timeout=_TIMEOUT_S)
        answer.raise_for_status()
        return answer
