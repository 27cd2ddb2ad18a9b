"""How what the service said becomes rows of the mirror, and what of it is written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, Final, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from nightbeam.catalog.elog_model import Change
from nightbeam.catalog.elog_schema import (
    ENTRY_FIELDS,
    FILE_FIELDS,
    JOB_FIELDS,
    RUN_FIELDS,
    WORKFLOW_FIELDS,
    AttachmentTable,
    DetectorTable,
    EntryTable,
    ExperimentTable,
    Field,
    FileTable,
    JobTable,
    QuestionnaireFieldTable,
    RunTable,
    SafeJson,
    SafeText,
    SyncTable,
    WorkflowDefinitionTable,
    row_of,
)
from nightbeam.catalog.remote import insert_once, upsert
from nightbeam.core.errors import InputError
from nightbeam.elog import compute
from nightbeam.elog.model import Document, Resource

__all__ = [
    "CHUNK",
    "LISTS",
    "WHOLE",
    "Answer",
    "Key",
    "ListKind",
    "experiment_columns",
    "fields_of",
    "keep_parameters",
    "name_detectors",
    "put_whole",
    "shallow_enough",
    "short_enough",
    "state_row",
    "write_rows",
]

T = TypeVar("T")
Key = str | int | tuple[int | None, str]

_X = ExperimentTable
_E = EntryTable
_S = SyncTable

#: Rows that are looked up, written or read at a time.
CHUNK: Final = 500
#: The longest text that may identify a row, in bytes: PostgreSQL's indexes take no more than 2.7 kB.
_LONGEST_KEY: Final = 2000
#: Levels of a document. The service's own database has a hundred; writing and reading take two calls for each, and
#: Python ends at a thousand.
_DEEPEST: Final = 200
#: What JSON nests; asked of every value there is, so by its type itself.
_NESTING: Final = frozenset({dict, list, tuple})


# -- the lists ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Answer:
    """What is known of an answer beside its documents."""

    full: bool
    body_sha256: str | None
    stamp: str
    window_end: str | None = None


@dataclass(frozen=True, slots=True)
class ListKind:
    """How the documents of a list become rows.

    Attributes
    ----------
    key
        What identifies a document; raises `InputError` where that is not there.
    stored_key, lookup
        The columns of it, and the one of them by which rows are looked up.
    derived
        Columns that follow from a document.
    """

    table: Any
    fields: tuple[Field, ...]
    key: Callable[[Document], Key]
    stored_key: tuple[Any, ...]
    lookup: Any
    derived: Callable[[Document], dict[str, Any]]

    def row(self, document: Document) -> dict[str, Any]:
        """Return the columns of a document."""
        return row_of(document, self.fields) | self.derived(document)


def short_enough(text: str, what: str) -> str:
    """Return a text that is to identify a row; `InputError` where it is too long for an index."""
    if len(text.encode("utf-8", "surrogatepass")) > _LONGEST_KEY:
        raise InputError(f"a name of {len(text)} characters in {what}: {text[:60]!r}...")
    return text


def shallow_enough(documents: Iterable[Document], what: str) -> None:
    """Raise `InputError` where a document is nested so deeply that it could not be written, or not be read again."""
    for document in documents:
        level: list[Any] = [document]
        for _ in range(_DEEPEST):
            level = [
                item
                for outer in level
                for item in (outer.values() if isinstance(outer, Mapping) else outer)
                if type(item) in _NESTING
            ]
            if not level:
                break
        else:
            raise InputError(
                f"{what}: a document is nested too deeply, more than {_DEEPEST} levels",
                fix="nothing of it was stored; tell whoever wrote it",
            )


def _id_key(what: str) -> Callable[[Document], str]:
    def key(document: Document) -> str:
        found = document.get("_id")
        if not isinstance(found, str) or not found:
            raise InputError(f"{what} without an _id: {str(dict(document))[:200]}")
        return short_enough(found, what)

    return key


def _run_key(document: Document) -> int:
    number = compute.whole_number(document.get("num"))
    if number is None:
        raise InputError(f"a run without a number: {str(dict(document))[:200]}")
    return number


def _file_key(document: Document) -> tuple[int | None, str]:
    path, run = document.get("path"), document.get("run_num")
    number = compute.whole_number(run)
    if not isinstance(path, str) or (run is not None and number is None):
        raise InputError(f"a file without a path or with an odd run: {str(dict(document))[:200]}")
    return number, short_enough(path, "a file")


def _entry_columns(document: Document) -> dict[str, Any]:
    title, tags = document.get("title"), document.get("tags")
    words = [compute.tidy(title)] if isinstance(title, str) else []
    words.append(compute.plain_text(document.get("content"), title))
    words += [compute.tidy(tag) for tag in tags if isinstance(tag, str)] if isinstance(tags, list) else []
    return {
        "run_hint": compute.run_hint(document),
        "history_of": compute.history_of(document),
        "search_text": compute.lines_of(words),
    }


def _run_columns(document: Document) -> dict[str, Any]:
    params, sample = document.get("params"), document.get("sample")
    said = compute.production(params)
    name = sample.get("name") if isinstance(sample, Mapping) else None
    return {
        "sample": name if isinstance(name, str) else None,
        "detectors": _short_names(compute.detectors(params)),
        **{f.name: getattr(said, f.name) for f in fields(said)},
    }


def _short_names(found: Mapping[str, bool]) -> dict[str, bool] | None:
    return {name: seen for name, seen in found.items() if len(name.encode("utf-8", "replace")) <= _LONGEST_KEY} or None


def _field_columns(document: Document) -> dict[str, Any]:
    return {key: value for key, value in document.items() if key != "field"} | {"extra": None}


def _nothing(_document: Document) -> dict[str, Any]:
    return {}


LISTS: Final[Mapping[Resource, ListKind]] = {
    Resource.ENTRIES: ListKind(_E, ENTRY_FIELDS, _id_key("an entry"), (_E.entry_id,), _E.entry_id, _entry_columns),
    Resource.RUNS: ListKind(RunTable, RUN_FIELDS, _run_key, (RunTable.run_number,), RunTable.run_number, _run_columns),
    Resource.FILES: ListKind(
        FileTable, FILE_FIELDS, _file_key, (FileTable.run_num, FileTable.path), FileTable.path, _nothing
    ),
    Resource.WORKFLOWS: ListKind(
        WorkflowDefinitionTable,
        WORKFLOW_FIELDS,
        _id_key("a workflow definition"),
        (WorkflowDefinitionTable.mongo_id,),
        WorkflowDefinitionTable.mongo_id,
        _nothing,
    ),
    Resource.JOBS: ListKind(
        JobTable, JOB_FIELDS, _id_key("a workflow job"), (JobTable.mongo_id,), JobTable.mongo_id, _nothing
    ),
    Resource.QUESTIONNAIRE: ListKind(
        QuestionnaireFieldTable,
        (),
        lambda document: str(document["field_id"]),
        (QuestionnaireFieldTable.field_id,),
        QuestionnaireFieldTable.field_id,
        _field_columns,
    ),
}
#: What is one document.
WHOLE: Final = frozenset({Resource.INFO, Resource.QUESTIONNAIRE})


def fields_of(whole: Document, proposal: str | None) -> list[dict[str, Any]]:
    """Return the fields of a questionnaire as rows; what is no field is in the whole of it alone."""
    found = []
    for category, items in whole.items():
        for item in items if isinstance(items, list) else []:
            name = item.get("id") if isinstance(item, dict) else None
            if not isinstance(name, str) or len(name.encode("utf-8", "surrogatepass")) > _LONGEST_KEY:
                continue
            texts = {key: item.get(key) for key in ("val", "modified_time", "modified_uid", "created_time")}
            texts = {key: value if isinstance(value, str) else None for key, value in texts.items()}
            found.append(
                {
                    "field_id": name,
                    "proposal": proposal,
                    "category": category,
                    "field_name": name.removeprefix(f"{category}-"),
                    "field_value": texts.pop("val"),
                    **texts,
                }
            )
    return found


# -- rows ---------------------------------------------------------------------------------------------------------


def write_rows(
    connection: Connection,
    kind: ListKind,
    home: int,
    found: Mapping[Key, dict[str, Any]],
    marks: Mapping[Key, str],
    answer: Answer,
) -> Change:
    """Write those documents that are new or differ, and mark what a full answer lacks.

    Parameters
    ----------
    found, marks
        The documents and their digests, by what identifies them.
    """
    stored = _stored(connection, kind, home, None if answer.full else list(found))
    new = [key for key in found if key not in stored]
    back = [key for key in found if key in stored and stored[key].missing_since is not None]
    differing = [key for key in found if key in stored and stored[key].digest != marks[key]]
    changed = [key for key in differing if stored[key].missing_since is None]
    gone = (
        [row.id for key, row in stored.items() if key not in found and row.missing_since is None] if answer.full else []
    )
    table = kind.table
    seen = {"experiment_id": home, "first_seen": answer.stamp, "changed_at": answer.stamp, "missing_since": None}
    for keys in _chunks(new):
        rows = [_row(kind, table, found[key]) | seen | {"digest": marks[key]} for key in keys]
        _insert(connection, table, rows)
    change = sa.update(table).where(table.id == sa.bindparam("this"))
    seen = {"changed_at": answer.stamp, "missing_since": None}
    for keys in _chunks(differing):
        rows = [_row(kind, table, found[key]) | seen | {"digest": marks[key], "this": stored[key].id} for key in keys]
        connection.execute(change, rows)
    _mark_missing(connection, table, [stored[key].id for key in back if stored[key].digest == marks[key]], None)
    _mark_missing(connection, table, gone, answer.stamp)
    if table is _E:
        _put_attachments(connection, home, {key: found[key] for key in (*new, *differing)}, differing, answer.stamp)
    same = len(found) - len(new) - len(changed) - len(back)
    return Change(new=len(new), changed=len(changed), same=same, missing=len(gone), back=len(back))


def _insert(connection: Connection, table: Any, rows: list[dict[str, Any]]) -> None:
    """Insert rows, written as their columns want it here: SQLAlchemy would look at each value a few times more."""
    columns = table.__table__.columns
    named = tuple(rows[0])
    for name in named:
        kind = type(columns[name].type)
        if kind in _WRITTEN:
            written = _WRITTEN[kind]
            for row in rows:
                if row[name] is not None:
                    row[name] = written(row[name])
    names = ", ".join(f'"{name}"' for name in named)
    marks = ", ".join(["?" if connection.dialect.name == "sqlite" else "%s"] * len(named))
    into = f'INSERT INTO "{table.__tablename__}" ({names}) VALUES ({marks})'
    connection.exec_driver_sql(into, [tuple(row[name] for name in named) for row in rows])


#: What the types of ours do to a value that is no NULL.
_WRITTEN: Final[Mapping[type, Callable[[Any], Any]]] = {SafeText: compute.encode_text, SafeJson: compute.dump_json}


def _row(kind: ListKind, table: Any, document: Document) -> dict[str, Any]:
    row = kind.row(document)
    return row if "extra" in table.__table__.columns else {key: v for key, v in row.items() if key != "extra"}


@cache
def _what_is_stored(kind: ListKind) -> sa.Select[Any]:
    table = kind.table
    columns = (table.id, table.digest, table.missing_since, *kind.stored_key)
    return sa.select(*columns).where(table.experiment_id == sa.bindparam("home"))


def _stored(connection: Connection, kind: ListKind, home: int, keys: Sequence[Key] | None) -> dict[Key, Any]:
    """Return what is stored of an experiment, all of it or what these keys name."""
    query = _what_is_stored(kind)
    if keys is None:
        rows = list(connection.execute(query, {"home": home}))
    else:
        wanted = [key[-1] if isinstance(key, tuple) else key for key in keys]
        some_of = query.where(kind.lookup.in_(sa.bindparam("some", expanding=True)))
        rows = [
            row for some in _chunks(wanted) for row in connection.execute(some_of, {"home": home, "some": list(some)})
        ]
    return {(row[3] if len(kind.stored_key) == 1 else tuple(row[3:])): row for row in rows}


def _mark_missing(connection: Connection, table: Any, ids: Sequence[int], since: str | None) -> None:
    for some in _chunks(ids):
        connection.execute(sa.update(table).where(table.id.in_(some)).values(missing_since=since))


def _put_attachments(
    connection: Connection, home: int, entries: Mapping[Any, Document], known: Sequence[Any], stamp: str
) -> None:
    """Write what is attached to entries; those that are ``known`` can have something stored already."""
    table = AttachmentTable
    wanted = {}
    for key, document in entries.items():
        items = document.get("attachments")
        for item in items if isinstance(items, list) else []:
            name = item.get("_id") if isinstance(item, dict) else None
            if isinstance(name, str) and len(name.encode("utf-8", "surrogatepass")) <= _LONGEST_KEY:
                texts = {k: item[k] if isinstance(item.get(k), str) else None for k in ("name", "type")}
                wanted[key, name] = {**texts, "has_preview": int(bool(item.get("preview_url"))), "missing_since": None}
    columns = sa.select(
        table.entry_id, table.attachment_id, table.id, table.name, table.type, table.has_preview, table.missing_since
    ).where(table.experiment_id == home)
    stored = {
        (row.entry_id, row.attachment_id): row
        for some in _chunks(known)
        for row in connection.execute(columns.where(table.entry_id.in_(some)))
    }
    new = [
        {"experiment_id": home, "entry_id": entry, "attachment_id": name, **values}
        for (entry, name), values in wanted.items()
        if (entry, name) not in stored
    ]
    if new:
        connection.execute(sa.insert(table), new)
    changed = [
        {"this": stored[key].id, **values}
        for key, values in wanted.items()
        if key in stored and any(getattr(stored[key], name) != value for name, value in values.items())
    ]
    if changed:
        connection.execute(sa.update(table).where(table.id == sa.bindparam("this")), changed)
    gone = [row.id for key, row in stored.items() if key not in wanted and row.missing_since is None]
    _mark_missing(connection, table, gone, stamp)


def keep_parameters(connection: Connection, home: int, found: dict[Key, dict[str, Any]], marks: dict[Key, str]) -> None:
    """Give runs that came without their parameters those that are stored."""
    bare = [key for key, document in found.items() if "params" not in document]
    columns = sa.select(RunTable.run_number, RunTable.parameters).where(RunTable.experiment_id == home)
    for some in _chunks(bare):
        for number, params in connection.execute(columns.where(RunTable.run_number.in_(some))):
            if params is not None:
                found[number]["params"] = params
                marks[number] = compute.digest(found[number])


def name_detectors(connection: Connection, home: int) -> None:
    """Give every detector of an experiment a number that stays, and note which of them the experiment has."""
    query = sa.select(RunTable.detectors).where(RunTable.experiment_id == home, RunTable.missing_since.is_(None))
    found = connection.execute(query.where(RunTable.detectors.is_not(None))).scalars()
    names = sorted({name for row in found for name in row})
    known: set[str] = set()
    for some in _chunks(names):
        known |= set(connection.execute(sa.select(DetectorTable.name).where(DetectorTable.name.in_(some))).scalars())
    # In one order, so that two who add the same names do not wait for each other in a circle.
    for name in names:
        if name not in known:
            insert_once(connection, DetectorTable, {"name": name}, {})
    before = connection.execute(sa.select(_X.detectors).where(_X.id == home)).scalar()
    if (names or None) != before:
        connection.execute(sa.update(_X).where(_X.id == home).values(detectors=names or None))


def put_whole(
    connection: Connection, table: Any, home: int, data: Any, more: Mapping[str, str | None], stamp: str, *, empty: Any
) -> bool:
    """Store an answer whole where it differs from the last; returns whether it does.

    Where there was none, an empty one is no difference.
    """
    mark = compute.digest([data, dict(more)])
    known = connection.execute(sa.select(table.digest).where(table.experiment_id == home)).scalar()
    if known == mark or (known is None and data == empty):
        return False
    upsert(connection, table, {"experiment_id": home}, {"data": data, "updated_at": stamp, "digest": mark, **more})
    return True


def experiment_columns(document: Document) -> dict[str, Any]:
    """Return the columns that follow from what is known of an experiment."""
    found = compute.summary_of(document)
    pi, pi_email = compute.split_contact(found.contact_info)
    texts = {name: found.params.get(name) for name in ("slack_channels", "analysis_queues", "PNR")}
    texts = {name: value if isinstance(value, str) else None for name, value in texts.items()}
    proposal = compute.proposal_of(found)
    return {
        "instrument": found.instrument,
        "start_time": found.start_time,
        "end_time": found.end_time,
        "description": found.description,
        "pi": pi,
        "pi_email": pi_email,
        "leader_account": found.leader_account,
        "contact_info": found.contact_info,
        "posix_group": found.posix_group,
        "slack_channels": texts["slack_channels"],
        "analysis_queues": texts["analysis_queues"],
        "urawi_proposal": texts["PNR"],
        "run_period": proposal[0] if proposal else None,
        "params": dict(found.params) or None,
        "run_count": found.run_count,
        "last_run": found.last_run,
        "total_files": found.total_files,
        "total_gib": found.total_gib,
    }


def state_row(connection: Connection, home: int, resource: Resource) -> sa.RowMapping | None:
    """Return the state of one list of an experiment, if it was ever asked for."""
    query = sa.select(_S).where(_S.experiment_id == home, _S.resource == resource.value)
    return connection.execute(query).mappings().first()


# -- small things ------------------------------------------------------------------------------------------------


def _chunks(items: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), CHUNK):
        yield items[start : start + CHUNK]
