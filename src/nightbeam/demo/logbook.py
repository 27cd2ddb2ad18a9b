"""The logbook's mirror in the demo: a logbook on loopback whose truth is known, and what the mirror then has."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from nightbeam.catalog import Access, Logbook
from nightbeam.core.errors import NightbeamError
from nightbeam.core.settings import ElogSettings
from nightbeam.demo.model import RealCheck
from nightbeam.demo.remote import run_to_end
from nightbeam.elog.model import Resource
from nightbeam.platform import PrefectApi
from nightbeam.testing.elog_service import FakeLogbook

__all__ = ["LogbookDemo", "logbook_demo"]

DEPLOYMENT: Final = "elog-sync/default"
#: Of every experiment, in this order; the questionnaire is compared field by field.
_LISTS: Final = (
    Resource.ENTRIES,
    Resource.RUNS,
    Resource.FILES,
    Resource.WORKFLOWS,
    Resource.JOBS,
    Resource.QUESTIONNAIRE,
)
#: Documents as text, by experiment and by what identifies one: NaN is not equal to itself, but its text is.
_Documents = dict[tuple[str, str], str]


@dataclass
class LogbookDemo:
    """A logbook with some experiments and one standing logbook, and the settings that mirror it."""

    service: FakeLogbook
    standing: tuple[str, ...]

    def settings(self, base: ElogSettings) -> ElogSettings:
        """Return the settings of the mirror: of the site's own, neither the service nor a file is touched."""
        return base.model_copy(
            update={
                "base_url": self.service.url,
                "application": "lgbk",
                "auth": "none",
                "token_file": None,
                "database": None,
                "database_dir": None,
                "names": self.standing,
                "exclude_patterns": (),
                "workflow_jobs": True,
            }
        )

    def check(self, api: PrefectApi, settings: ElogSettings, *, timeout_s: float = 120.0) -> tuple[RealCheck, ...]:
        """Let the deployment mirror the logbook, change it, mirror it again; compare row by row each time."""
        try:
            return tuple(self._looks(api, str(settings.database), timeout_s))
        except NightbeamError as error:
            return (RealCheck("the mirror of the logbook", "a database", str(error), False),)

    def _looks(self, api: PrefectApi, url: str, timeout_s: float) -> Iterator[RealCheck]:
        first = run_to_end(api, DEPLOYMENT, timeout_s=timeout_s)
        if not first.completed:
            yield RealCheck(f"the run of {DEPLOYMENT}", "COMPLETED", first.told, False)
            return
        book = Logbook(url, create=False)
        yield from self._compare("first sync", book, self.service.experiments)

        denied = self.service.experiments[0]
        self.service.stir(60, seed=1)
        before = _held(book, [denied], Resource.ENTRIES)
        self.service.deny(denied)
        second = run_to_end(api, DEPLOYMENT, parameters={"full": True}, timeout_s=timeout_s)
        yield RealCheck("after 60 changes: the run", "COMPLETED", second.told, second.completed)
        left = [name for name in self.service.experiments if name != denied]
        yield from self._compare("after 60 changes", book, left)
        yield _withdrawn(book, denied, before)

        self.service.forget()
        third = run_to_end(api, DEPLOYMENT, timeout_s=timeout_s)
        yield self._quiet(api, third.run_id, third.told, len(left))

    def _compare(self, when: str, book: Logbook, experiments: Iterable[str]) -> Iterator[RealCheck]:
        names = list(experiments)
        for resource in _LISTS:
            true, held = _true(self.service, names, resource), _held(book, names, resource)
            what = "fields" if resource is Resource.QUESTIONNAIRE else "documents"
            wrong = sum(held.get(key) != true.get(key) for key in true.keys() | held.keys())
            found = f"{len(held)} {what}, {f'{wrong} not as there' if wrong else 'each as there'}"
            expected = f"{len(true)} {what}, each as there"
            yield RealCheck(f"{when}: {resource.value}", expected, found, found == expected and bool(true))

    def _quiet(self, api: PrefectApi, run_id: str, told: str, experiments: int) -> RealCheck:
        """Judge a sync that found nothing new, by the table that the run shows and by what it asked."""
        tables = [a for a in api.artifacts(run_id) if a.get("key") == "elog-table"]
        rows = [row for table in tables for row in _rows(table)]
        written = sum(int(row.get("rows new", 0)) + int(row.get("rows changed", 0)) for row in rows)
        # Two lists of experiments, entries and runs of each; none for the one that may not be read.
        asked, most = self.service.traffic, 2 + 2 * experiments
        expected = f"{most} requests or fewer, 0 rows, COMPLETED"
        found = f"{asked.requests} requests, {written} rows, {told}"
        right = 0 < asked.requests <= most and bool(rows) and not written and not asked.writes
        return RealCheck("nothing new: a third sync", expected, found, right and told.startswith("COMPLETED"))


@contextmanager
def logbook_demo() -> Iterator[LogbookDemo]:
    """Start a logbook with three experiments and a standing logbook, odd documents among theirs."""
    with FakeLogbook(everyone="demo") as service:
        made = service.populate(3, 40, 10, 20, parameters=40, standing=1, odd=0.1, seed=3)
        yield LogbookDemo(service, tuple(made[3:]))


def _true(service: FakeLogbook, experiments: Iterable[str], resource: Resource) -> _Documents:
    found: _Documents = {}
    for experiment in experiments:
        truth = service.truth(experiment)
        documents: Mapping[Resource, Mapping[Any, Any]] = {
            Resource.ENTRIES: truth.entries,
            Resource.RUNS: truth.runs,
            Resource.FILES: truth.files,
            Resource.WORKFLOWS: truth.workflow_definitions,
            Resource.JOBS: truth.workflow_jobs,
            Resource.QUESTIONNAIRE: truth.questionnaire,
        }
        found |= {(experiment, str(key)): _text(one) for key, one in documents[resource].items()}
    return found


def _held(book: Logbook, experiments: Iterable[str], resource: Resource) -> _Documents:
    found: _Documents = {}
    for experiment in experiments:
        for document in book.documents(resource, experiment):
            if resource is Resource.QUESTIONNAIRE:
                fields = ({"category": category} | one for category, some in document.items() for one in some)
                found |= {(experiment, str(one["id"])): _text(one) for one in fields}
            else:
                found[experiment, _key(resource, document)] = _text(document)
    return found


def _key(resource: Resource, document: Mapping[str, Any]) -> str:
    if resource is Resource.RUNS:
        return str(document["num"])
    return str((document["run_num"], document["path"])) if resource is Resource.FILES else str(document["_id"])


def _text(document: Mapping[str, Any]) -> str:
    return json.dumps(document, sort_keys=True)


def _withdrawn(book: Logbook, experiment: str, before: _Documents) -> RealCheck:
    """Judge what became of an experiment that may not be read any more."""
    status, held = book.experiment(experiment).status, _held(book, [experiment], Resource.ENTRIES)
    same = "the same" if held == before else "not the same"
    found = f"{status}, {len(held)} entries, {same}"
    expected = f"{Access.NO_ACCESS.value}, {len(before)} entries, the same"
    return RealCheck(f"{experiment}: its permission withdrawn", expected, found, found == expected)


def _rows(artifact: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    data = artifact.get("data")
    rows = json.loads(data) if isinstance(data, str) else data
    return rows if isinstance(rows, list) else []
