"""The mirror of the logbook: what the service said, row by row, and nothing ever lost.

No row is ever deleted. A list of an experiment is written in one transaction with the state of its
synchronisation; an answer that holds everything marks the rows that it lacks as missing, a part of one
says nothing about them.
"""

from __future__ import annotations

import os
import socket
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection

from nightbeam.catalog.elog_model import LAST_CHANGE, Access, Change, ExperimentRow, Hit, SyncState
from nightbeam.catalog.elog_rows import (
    CHUNK,
    LISTS,
    WHOLE,
    Answer,
    Key,
    ListKind,
    experiment_columns,
    fields_of,
    keep_parameters,
    name_detectors,
    put_whole,
    shallow_enough,
    short_enough,
    state_row,
    write_rows,
)
from nightbeam.catalog.elog_schema import (
    NOT_MODELLED,
    VIEWS,
    ElogBase,
    EntryTable,
    ExperimentTable,
    MetadataTable,
    QuestionnaireTable,
    SafeText,
    SyncTable,
    WorkflowTable,
    document_of,
)
from nightbeam.catalog.remote import Database, insert_once, sqlite_errors, upsert
from nightbeam.core.errors import BusyError, InputError, MissingError, StorageError, UsageError
from nightbeam.core.files import part_path, storage_errors
from nightbeam.core.locks import remove_free_lock, sole_owner
from nightbeam.core.times import iso_z, utc_now
from nightbeam.elog import compute
from nightbeam.elog.model import Document, Resource, Summary

__all__ = ["Logbook"]

T = TypeVar("T")

_X = ExperimentTable
_E = EntryTable
_S = SyncTable

#: Held on the server while a mirror in PostgreSQL is synchronised; any number that nobody else uses.
_SYNC_LOCK: Final = {"key": 0x6E62_0002}
_WHO_HOLDS: Final = (
    "SELECT a.application_name, a.backend_start FROM pg_locks AS l JOIN pg_stat_activity AS a ON a.pid = l.pid "
    "WHERE l.locktype = 'advisory' AND l.granted AND l.objid = :key AND a.datname = current_database()"
)
#: All words of the full text, of this connection alone.
_WORDS: Final = "CREATE VIRTUAL TABLE temp.words USING fts5vocab('main', 'logbook_fts', 'row')"
#: A server from 14 on can be told to end sessions that say nothing for long.
_IDLE_AS_LONG_AS_IT_TAKES: Final = (
    "SELECT set_config(name, '0', false) FROM pg_settings WHERE name = 'idle_session_timeout'"
)
_STILL_HELD: Final = (
    "SELECT count(DISTINCT l.pid) FROM pg_locks AS l JOIN pg_database AS d ON d.oid = l.database "
    "WHERE l.locktype = 'advisory' AND l.granted AND l.classid = 0 AND l.objid = :key AND l.objsubid = 1 "
    "AND d.datname = current_database() AND l.pid = ANY(:pids)"
)
#: The server's processes that hold the lock for syncs of this process, by database; none for files. Whoever writes
#: to the same database belongs to such a sync, though with a `Logbook` of its own.
_HELD: Final[dict[URL, tuple[int, ...]]] = {}
#: The experiment's row number; others are kept from writing to it until the end of the transaction.
_HOME: Final = sa.select(_X.id).where(_X.experiment_id == sa.bindparam("key")).with_for_update()
#: The same, with what is known of one of its lists.
_HOME_AND_STATE: Final = (
    sa.select(_X.id.label("home"), _S.resource, _S.rows, _S.body_sha256)
    .select_from(_X)
    .outerjoin(_S, sa.and_(_S.experiment_id == _X.id, _S.resource == sa.bindparam("resource", type_=SafeText())))
    .where(_X.experiment_id == sa.bindparam("key"))
    .with_for_update(of=_X)
)
#: Keys that an experiment has both in the list of experiments and in its own ``info``: what was said last holds.
_SHARED: Final = frozenset(
    {
        "_id",
        "name",
        "instrument",
        "description",
        "start_time",
        "end_time",
        "leader_account",
        "contact_info",
        "posix_group",
        "params",
    }
)


class Logbook:
    """The mirror of the logbooks of one site, or of those experiments that one user may read.

    Parameters
    ----------
    url
        SQLAlchemy URL, e.g. ``sqlite:////data/elog.db`` or ``postgresql+psycopg://...``.
    create
        Whether a SQLite file that is not there is made.
    read_only
        Whether it is to stay as it is, as a snapshot: not made, not migrated, not written to.
    busy_timeout_s
        How long a locked SQLite file is waited for.

    Notes
    -----
    ``experiment_id`` is always the service's ``_id``. Times ``now`` are aware; the present where they are not given.
    """

    def __init__(self, url: str, *, create: bool = True, read_only: bool = False, busy_timeout_s: float = 30.0) -> None:
        self.database = Database(url, "elog", create=create, read_only=read_only, busy_timeout_s=busy_timeout_s)

    # -- experiments --------------------------------------------------------------------------------------------

    def put_experiment(
        self, experiment: Summary | Document, *, body_sha256: str | None = None, now: datetime | None = None
    ) -> Change:
        """Store an experiment as the list of experiments has it (a `Summary`), or as its own ``info`` has it.

        Each of the two is compared with the last of its kind; where it differs, it is believed in what both say.
        Passwords in ``params`` are not stored. An experiment that was gone or not to be read is there again.

        Raises
        ------
        InputError
            If it has no ``_id`` or no name, or is nested too deeply.
        """
        kind = "summary" if isinstance(experiment, Summary) else "info"
        document = dict(experiment.document if isinstance(experiment, Summary) else experiment)
        shallow_enough([document], kind)
        found = compute.summary_of(document)
        short_enough(found.experiment_id, "experiment")
        short_enough(found.name, "experiment")
        if "params" in document:
            document["params"] = compute.without_secrets(document["params"])
        mark, stamp = compute.digest(document), _stamp(now)
        with self._writing() as connection:
            change = self._put_experiment(connection, kind, document, mark, stamp)
            if kind == "info":
                home = self._home(connection, found.experiment_id)
                known = state_row(connection, home, Resource.INFO) is not None
                answer = Answer(True, body_sha256, stamp)
                self._succeeded(connection, home, Resource.INFO, answer, rows=1, known=known)
            if change.written:
                self._changed(connection, stamp)
        return change

    def _put_experiment(
        self, connection: Connection, kind: str, document: dict[str, Any], mark: str, stamp: str
    ) -> Change:
        key = str(document["_id"])
        query = sa.select(_X).where(_X.experiment_id == key).with_for_update()
        row = connection.execute(query).mappings().first()
        if row is not None and row[f"{kind}_digest"] == mark and row["status"] == Access.OK.value:
            return Change(same=1)
        told = _SHARED | document.keys()
        other = (row["info" if kind == "summary" else "summary"] or {}) if row is not None else {}
        whole = document | {name: value for name, value in other.items() if name not in told}
        values = experiment_columns(whole) | {kind: document, f"{kind}_digest": mark, "updated_at": stamp}
        values["name"] = self._free_name(connection, str(document["name"]), key)
        if row is None:
            since = {"status": Access.OK.value, "status_since": stamp, "first_seen": stamp}
            insert_once(connection, _X, {"experiment_id": key}, values | since)
            return Change(new=1)
        back = row["status"] != Access.OK.value
        if back:
            values |= {"status": Access.OK.value, "status_since": stamp}
        connection.execute(sa.update(_X).where(_X.id == row["id"]).values(**values))
        return Change(back=1) if back else Change(changed=1)

    def _changed(self, connection: Connection, stamp: str) -> None:
        """Note that the mirror is another one now; what is published tells by it whether it is still the same."""
        upsert(connection, MetadataTable, {"key": LAST_CHANGE}, {"value": stamp})

    def _free_name(self, connection: Connection, name: str, key: str) -> str:
        """Return the name, or the name with the id where another experiment has it that is not gone."""
        query = sa.select(_X.id, _X.experiment_id, _X.status).where(_X.name == name, _X.experiment_id != key)
        holder = connection.execute(query).first()
        if holder is None:
            return name
        if holder.status != Access.GONE.value:
            return f"{name} ({key})"
        renamed = sa.update(_X).where(_X.id == holder.id).values(name=f"{name} ({holder.experiment_id})")
        connection.execute(renamed)
        return name

    def mark(self, experiment_id: str, status: Access | str, *, now: datetime | None = None) -> bool:
        """Note that an experiment is gone, or not to be read any more; its data stay. Returns whether that is new.

        Raises
        ------
        MissingError
            If the mirror has no such experiment.
        """
        wanted = Access(status).value
        stamp = _stamp(now)
        values = {"status": wanted, "status_since": stamp, "updated_at": stamp}
        with self._writing() as connection:
            home = self._home(connection, experiment_id)
            change = sa.update(_X).where(_X.id == home, _X.status != wanted).values(**values)
            if not connection.execute(change).rowcount:
                return False
            self._changed(connection, stamp)
            return True

    def experiments(self, *, status: Access | str | None = None) -> list[ExperimentRow]:
        """Return the experiments by their ids."""
        query = sa.select(_X).order_by(_X.experiment_id)
        return self._rows(ExperimentRow, query if status is None else query.where(_X.status == str(status)))

    def experiment(self, name: str) -> ExperimentRow:
        """Return the experiment of this id or name.

        Raises
        ------
        MissingError
            If the mirror has none.
        """
        query = sa.select(_X).where(sa.or_(_X.experiment_id == name, _X.name == name))
        found = self._rows(ExperimentRow, query.order_by(sa.desc(_X.experiment_id == name)))
        if not found:
            raise self._unknown(name)
        return found[0]

    # -- what an experiment has ---------------------------------------------------------------------------------

    def put_entries(
        self,
        experiment_id: str,
        documents: Iterable[Document],
        *,
        full: bool,
        window_end: datetime | None = None,
        body_sha256: str | None = None,
        now: datetime | None = None,
    ) -> Change:
        """Store logbook entries: all of them (``full``), or those of a window.

        Parameters
        ----------
        window_end
            Up to where all changes that a window can show are known now.
        body_sha256
            Of the answer. Where a full one is the same as the last, nothing is compared and nothing written but the
            time.

        Raises
        ------
        InputError
            If an entry has no ``_id``, or is nested too deeply; nothing of the answer is stored then.
        MissingError
            If the mirror has no such experiment.
        """
        answer = Answer(full, body_sha256, _stamp(now), None if window_end is None else _stamp(window_end))
        return self._put(experiment_id, Resource.ENTRIES, documents, answer)

    def put_runs(
        self,
        experiment_id: str,
        documents: Iterable[Document],
        *,
        full: bool = True,
        body_sha256: str | None = None,
        now: datetime | None = None,
    ) -> Change:
        """Store runs, as `put_entries` does; a run that comes without ``params`` keeps those that it has."""
        return self._put(experiment_id, Resource.RUNS, documents, Answer(full, body_sha256, _stamp(now)))

    def put_files(
        self,
        experiment_id: str,
        documents: Iterable[Document],
        *,
        full: bool = True,
        body_sha256: str | None = None,
        now: datetime | None = None,
    ) -> Change:
        """Store what the file manager knows, as `put_entries` does."""
        return self._put(experiment_id, Resource.FILES, documents, Answer(full, body_sha256, _stamp(now)))

    def put_workflows(
        self,
        experiment_id: str,
        documents: Iterable[Document],
        *,
        full: bool = True,
        body_sha256: str | None = None,
        now: datetime | None = None,
    ) -> Change:
        """Store workflow definitions, as `put_entries` does."""
        found = [dict(document) for document in documents]
        whole = {"definitions": found}
        answer = Answer(full, body_sha256, _stamp(now))

        def keep(connection: Connection, home: int) -> bool:
            return full and put_whole(
                connection, WorkflowTable, home, whole, {}, answer.stamp, empty={"definitions": []}
            )

        return self._put(experiment_id, Resource.WORKFLOWS, found, answer, keep)

    def put_jobs(
        self,
        experiment_id: str,
        documents: Iterable[Document],
        *,
        full: bool = True,
        body_sha256: str | None = None,
        now: datetime | None = None,
    ) -> Change:
        """Store jobs of workflows, as `put_entries` does."""
        return self._put(experiment_id, Resource.JOBS, documents, Answer(full, body_sha256, _stamp(now)))

    def put_questionnaire(
        self,
        experiment_id: str,
        document: Document,
        *,
        period: str | None = None,
        proposal: str | None = None,
        body_sha256: str | None = None,
        now: datetime | None = None,
    ) -> Change:
        """Store a questionnaire whole, and each of its fields; the counts are of fields. An empty one is none."""
        answer = Answer(True, body_sha256, _stamp(now))
        whole, more = dict(document), {"period": period, "proposal": proposal}
        shallow_enough([whole], f"{Resource.QUESTIONNAIRE.value} of {experiment_id}")

        def keep(connection: Connection, home: int) -> bool:
            return put_whole(connection, QuestionnaireTable, home, whole, more, answer.stamp, empty={})

        def asked_so(connection: Connection, home: int) -> bool:
            table = QuestionnaireTable
            query = sa.select(table.period, table.proposal).where(table.experiment_id == home)
            row = connection.execute(query).first()
            return row is None or tuple(row) == (period, proposal)

        items = fields_of(whole, proposal)
        return self._put(experiment_id, Resource.QUESTIONNAIRE, items, answer, keep, asked_so)

    def failed(
        self,
        experiment_id: str,
        resource: Resource | str,
        error: str,
        *,
        times: int = 1,
        now: datetime | None = None,
    ) -> SyncState:
        """Note that a list could not be read; what is stored of it stays as it is.

        Parameters
        ----------
        times
            For how many failures it counts.
        """
        resource = Resource(resource)
        with self._writing() as connection:
            home = self._home(connection, experiment_id)
            before = state_row(connection, home, resource)
            values = {
                "status": "failed",
                "error": error,
                "attempted_at": _stamp(now),
                "failures": (before["failures"] if before else 0) + times,
            }
            upsert(connection, _S, {"experiment_id": home, "resource": resource.value}, values)
        return self.state(experiment_id)[resource]

    def state(self, experiment_id: str) -> dict[Resource, SyncState]:
        """Return how the last reading of each list of an experiment went; nothing for an experiment not known."""
        found = self._states(_X.experiment_id == experiment_id)
        return {state.resource: state for state in found}

    def states(self, *, status: str | None = None) -> list[SyncState]:
        """Return the states of all lists of all experiments, or those that are ``ok`` or ``failed``."""
        return self._states(sa.true() if status is None else _S.status == status)

    def _states(self, where: Any) -> list[SyncState]:
        query = sa.select(*[c for c in _S.__table__.columns if c.name != "experiment_id"], _X.experiment_id)
        query = query.join(_X, _X.id == _S.experiment_id).where(where).order_by(_X.experiment_id, _S.resource)
        with self.database.read() as connection:
            rows = [dict(row) for row in connection.execute(query).mappings()]
        for row in rows:
            row["resource"] = Resource(row["resource"])
            for name in ("attempted_at", "synced_at", "full_at", "window_end"):
                row[name] = compute.parse_time(row[name])
        return [SyncState(**row) for row in rows]

    # -- reading ------------------------------------------------------------------------------------------------

    def document(self, resource: Resource | str, experiment_id: str, key: Key | None = None) -> dict[str, Any]:
        """Return one document as the service gave it.

        Parameters
        ----------
        key
            The ``_id`` of an entry, workflow or job; the number of a run; run and path of a file; nothing for an
            experiment (what its ``info`` and the list of experiments said) or a questionnaire.

        Raises
        ------
        MissingError
            If the mirror has none.
        """
        resource = Resource(resource)
        if resource in WHOLE:
            found = next(self._whole(resource, experiment_id), None)
        else:
            kind = LISTS[resource]
            path = key[1] if isinstance(key, tuple) else key
            rows = self._documents(kind, experiment_id, kind.lookup == path)
            found = next((document for document in rows if kind.key(document) == key), None)
        if found is None:
            raise MissingError(f"the mirror has no {resource.value} {'' if key is None else key} of {experiment_id}")
        return found

    def documents(
        self, resource: Resource | str, experiment_id: str, *, missing: bool = False
    ) -> Iterator[dict[str, Any]]:
        """Yield the documents of one list in the order in which they first came, without those that are missing."""
        resource = Resource(resource)
        if resource in WHOLE:
            return self._whole(resource, experiment_id)
        kind = LISTS[resource]
        return self._documents(kind, experiment_id, sa.true() if missing else kind.table.missing_since.is_(None))

    def _documents(self, kind: ListKind, experiment_id: str, where: Any) -> Iterator[dict[str, Any]]:
        query = sa.select(kind.table).join(_X, _X.id == kind.table.experiment_id).order_by(kind.table.id)
        for row in self._stream(query.where(_X.experiment_id == experiment_id, where)):
            yield document_of(row, kind.fields)

    def _whole(self, resource: Resource, experiment_id: str) -> Iterator[dict[str, Any]]:
        if resource is Resource.INFO:
            for row in self._stream(sa.select(_X.summary, _X.info).where(_X.experiment_id == experiment_id)):
                yield (row["summary"] or {}) | (row["info"] or {})
        else:
            query = sa.select(QuestionnaireTable.data).join(_X, _X.id == QuestionnaireTable.experiment_id)
            for row in self._stream(query.where(_X.experiment_id == experiment_id)):
                yield row["data"]

    def rows(self, table: str, *, experiment: str | None = None) -> Iterator[dict[str, Any]]:
        """Yield the rows of a table or view, of one experiment (its id or name) or of all, as they are read.

        Rows of a table that belongs to an experiment begin with its id as ``experiment``.

        Raises
        ------
        UsageError
            If there is no such table, or it has nothing to do with experiments.
        MissingError
            If the mirror has no such experiment.
        """
        return self._stream(_table_query(table, self._id_of(experiment)))

    def counts(self, *, present: bool = False) -> dict[str, int]:
        """Return how many rows each table has; with ``present`` without those that the service has no more."""
        with self.database.read() as connection:
            return {
                table.name: int(connection.execute(_count(table, present)).scalar_one())
                for table in ElogBase.metadata.sorted_tables
            }

    def search(
        self,
        text: str,
        *,
        experiment: str | None = None,
        since: datetime | None = None,
        include_deleted: bool = False,
        limit: int = 100,
    ) -> list[Hit]:
        """Return the entries in which all of the words stand, in content, title or tags, newest first.

        Parameters
        ----------
        text
            Words in any case; ``"several words"`` in quotation marks follow each other; ``word*`` is every word that
            begins so. No other sign has a meaning, and no text is wrong; one without a word finds nothing.
        experiment
            Id or name.
        since
            Only entries of this time or later.
        include_deleted
            Whether deleted entries, earlier versions of edited ones and those that the service has no more are
            found too.

        Raises
        ------
        UsageError
            If it asks for more than a hundred words.
        MissingError
            If the mirror has no such experiment.
        """
        terms = compute.search_terms(text)
        if sum(len(words) for words, _ in terms) > 100:
            raise UsageError("a search for more than a hundred words", fix="leave some out")
        key = self._id_of(experiment)
        if not terms:
            return []
        hidden = sa.or_(
            _E.deleted_by.is_not(None),
            _E.deleted_time.is_not(None),
            _E.history_of.is_not(None),
            _E.missing_since.is_not(None),
        )
        query = (
            sa.select(_X.experiment_id, _X.name, _E.entry_id, _E.created_at, _E.author, _E.title, _E.run_num, _E.tags)
            .add_columns(_E.search_text, hidden.label("hidden"))
            .join(_X, _X.id == _E.experiment_id)
            .where(self._matching(terms))
            .order_by(_E.created_at.desc().nulls_last(), _E.entry_id.desc())
            .limit(limit)
        )
        if not include_deleted:
            query = query.where(sa.not_(hidden))
        if key is not None:
            query = query.where(_X.experiment_id == key)
        if since is not None:
            query = query.where(_E.created_at >= _stamp(since))
        with self.database.read() as connection:
            return [_hit(row, terms) for row in connection.execute(query).mappings()]

    def _matching(self, terms: Sequence[tuple[tuple[str, ...], bool]]) -> Any:
        # Words are letters and digits alone, so nothing in them can be taken for syntax.
        if self.database.engine.dialect.name == "sqlite":
            query = " AND ".join(f'"{" ".join(words)}"' + (" *" if prefix else "") for words, prefix in terms)
            found = "logbook_entries.id IN (SELECT rowid FROM logbook_fts WHERE logbook_fts MATCH :asked)"
        else:
            query = " & ".join(
                "(" + " <-> ".join(f"'{word}'" for word in words) + (":*" if prefix else "") + ")"
                for words, prefix in terms
            )
            found = "logbook_entries.search_vector @@ to_tsquery('simple', :asked)"
        return sa.text(found).bindparams(asked=query)

    # -- the mirror as a whole ----------------------------------------------------------------------------------

    def set_metadata(self, **values: str) -> None:
        """Store what is to be said of the whole mirror, e.g. ``last_update``."""
        with self._writing() as connection:
            for key, value in values.items():
                upsert(connection, MetadataTable, {"key": key}, {"value": value})

    def metadata(self) -> dict[str, str | None]:
        """Return what is said of the whole mirror."""
        with self.database.read() as connection:
            found = connection.execute(sa.select(MetadataTable.key, MetadataTable.value).order_by(MetadataTable.key))
            return {row.key: row.value for row in found}

    @contextmanager
    def sole_writer(self, *, wait_s: float = 0.0) -> Iterator[None]:
        """Be the only one who synchronises this mirror; the lock goes with its holder, however that ends.

        For a file it is on the file's machine, for PostgreSQL on the server, for all machines. It does not keep others
        from reading, nor from writing without it. On the server it goes also with its connection: where that ends
        before the block, whatever this process would write to the database is refused with a `BusyError`.

        Raises
        ------
        BusyError
            Naming who holds it.
        """
        file = self.database.file
        if file is None:
            with self._advisory_lock(wait_s):
                yield
        else:
            lock = self.database.beside(".sync.lock")
            with storage_errors(file), sole_owner(lock, wait_s=wait_s, what=f"the sync of {file}"):
                yield

    @contextmanager
    def _advisory_lock(self, wait_s: float) -> Iterator[None]:
        me = f"process {os.getpid()} on {socket.gethostname()}"[:63]
        with ExitStack() as stack:
            with self.database.errors():
                # Of a session and not of a transaction, which would stay open as long as the sync takes.
                bare = self.database.engine.execution_options(isolation_level="AUTOCOMMIT").connect()
                connection = stack.enter_context(bare)
                connection.execute(sa.text("SELECT set_config('application_name', :me, false)"), {"me": me})
                connection.execute(sa.text(_IDLE_AS_LONG_AS_IT_TAKES))
                until = time.monotonic() + wait_s
                while not connection.execute(sa.text("SELECT pg_try_advisory_lock(:key)"), _SYNC_LOCK).scalar():
                    if time.monotonic() >= until:
                        row = connection.execute(sa.text(_WHO_HOLDS), _SYNC_LOCK).first()
                        who = f"{row[0] or 'somebody'} since {iso_z(row[1])}" if row else "somebody"
                        raise BusyError(
                            f"the sync of {self.database.shown} is held by {who}", fix="wait for it to end, or stop it"
                        )
                    time.sleep(0.05)
                backend = int(connection.execute(sa.text("SELECT pg_backend_pid()")).scalar_one())
            url = self.database.url
            _HELD[url] = (*_HELD.get(url, ()), backend)
            try:
                yield
            finally:
                _HELD[url] = tuple(pid for pid in _HELD[url] if pid != backend)

    def problems(self) -> list[str]:
        """Return what is wrong with the database itself: damaged pages, dangling rows, tables unlike the models."""
        found = [f"schema: {line}" for line in self.database.differences(ElogBase.metadata, ignore=NOT_MODELLED)]
        if self.database.file is not None:
            with self.database.read() as connection:
                lines = connection.exec_driver_sql("PRAGMA integrity_check(20)").scalars().all()
                found += [f"integrity: {line}" for line in lines if line != "ok"]
                dangling = connection.exec_driver_sql("PRAGMA foreign_key_check").all()
                found += [f"{row[0]} row {row[1]} has no {row[2]}" for row in dangling[:20]]
            found += self._problems_of_full_text()
        return found

    def _problems_of_full_text(self) -> list[str]:
        if self.database.read_only:
            # The index's own check is a command to write; that all of it can be read is the most that is left.
            opened, check = self.database.read(), [_WORDS, "SELECT count(*), sum(cnt) FROM temp.words"]
        else:
            opened = self.database.write()
            check = ["INSERT INTO logbook_fts(logbook_fts) VALUES('integrity-check')"]
        with suppress(StorageError), opened as connection:  # a file that may not be written to cannot be asked
            try:
                for statement in check:
                    connection.exec_driver_sql(statement)
            except sa.exc.DatabaseError as error:
                if "malformed" in str(error.orig):
                    return [f"full text: {error.orig}"]
                raise
        return []

    def backup(self, path: Path) -> Path:
        """Write a snapshot of one moment as one SQLite file that needs no other beside it; returns its path.

        The file takes its name when it is whole and checked; what had the name before is replaced. A mirror in
        PostgreSQL is copied row by row into a file of the same schema. Others can read and write meanwhile.

        Raises
        ------
        StorageError
            If there is no space for it, or its directory cannot be written.
        InputError
            If the copy is damaged.
        """
        part = part_path(path)
        with storage_errors(path), sqlite_errors(path, busy_timeout_s=self.database.busy_timeout_s):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                if self.database.file is not None:
                    with closing(sqlite3.connect(self.database.file)) as source, closing(sqlite3.connect(part)) as copy:
                        source.backup(copy)
                else:
                    self._copy_rows(part)
                _finish(part)
                part.replace(path)
            finally:
                for leftover in ("", "-wal", "-shm", "-journal"):
                    part.with_name(part.name + leftover).unlink(missing_ok=True)
                remove_free_lock(part.with_name(f".{part.name}.lock"))
        return path

    def _copy_rows(self, part: Path) -> None:
        Database(f"sqlite:///{part}", "elog")
        with self.database.read() as source, closing(sqlite3.connect(part, isolation_level=None)) as copy:
            copy.execute("BEGIN")
            for table in ElogBase.metadata.sorted_tables:
                # Both hold the same text, so it is copied as it lies there.
                names = ", ".join(f'"{column.name}"' for column in table.columns)
                marks = ", ".join("?" * len(table.columns))
                # A few entries at a time: each can have megabytes.
                size = 20 if table is EntryTable.__table__ else CHUNK
                put, query = (
                    f'INSERT INTO "{table.name}" ({names}) VALUES ({marks})',
                    f'SELECT {names} FROM "{table.name}"',
                )
                with source.exec_driver_sql(query, execution_options={"yield_per": size}) as found:
                    for rows in found.partitions():
                        copy.executemany(put, [tuple(row) for row in rows])
            copy.execute("COMMIT")

    # -- inside -------------------------------------------------------------------------------------------------

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        """Write, unless a sync of this process has lost what makes it the only one."""
        with self.database.write() as connection:
            if held := _HELD.get(self.database.url):
                backends = {"key": _SYNC_LOCK["key"], "pids": list(held)}
                if connection.execute(sa.text(_STILL_HELD), backends).scalar_one() < len(held):
                    raise BusyError(
                        f"the sync of {self.database.shown} lost its lock: the connection that held it has ended, and "
                        "another sync may have begun",
                        fix="run it again, what was stored stays; if this comes again, see what ends idle connections "
                        "to the server",
                    )
            yield connection

    def _put(
        self,
        experiment_id: str,
        resource: Resource,
        documents: Iterable[Document],
        answer: Answer,
        keep: Callable[[Connection, int], bool] | None = None,
        asked_so: Callable[[Connection, int], bool] | None = None,
    ) -> Change:
        """Store a list.

        Parameters
        ----------
        keep
            Stores what has no row of its own; returns whether that is new.
        asked_so
            Whether what is stored answers the same question; where not, an equal body is not the same answer.
        """
        kind = LISTS[resource]
        with self._writing() as connection:
            before = connection.execute(_HOME_AND_STATE, {"key": experiment_id, "resource": resource.value}).first()
            if before is None:
                raise self._unknown(experiment_id)
            home, known = int(before.home), before.resource is not None
            same = answer.full and answer.body_sha256 and known and before.body_sha256 == answer.body_sha256
            if same and (asked_so is None or asked_so(connection, home)):
                self._succeeded(connection, home, resource, answer, rows=before.rows, known=True)
                return Change(same=before.rows)
            came = [dict(document) for document in documents]
            shallow_enough(came, f"{resource.value} of {experiment_id}")
            found = {kind.key(document): document for document in came}
            marks = {key: compute.digest(document) for key, document in found.items()}
            if resource is Resource.RUNS:
                keep_parameters(connection, home, found, marks)
            change = write_rows(connection, kind, home, found, marks, answer)
            if keep is not None and keep(connection, home) and not change.written:
                change += Change(changed=1)  # nothing of it that has a row of its own
            if change.written and resource is Resource.RUNS:
                name_detectors(connection, home)
            rows, written = len(found) if answer.full else self._present(connection, kind, home), bool(change.written)
            self._succeeded(connection, home, resource, answer, rows=rows, known=known, written=written)
            if written:
                self._changed(connection, answer.stamp)  # last: all writers wait for each other here
        return change

    def _present(self, connection: Connection, kind: ListKind, home: int) -> int:
        table = kind.table.__table__
        there = sa.and_(table.c.experiment_id == home, table.c.missing_since.is_(None))
        return int(connection.execute(sa.select(sa.func.count()).select_from(table).where(there)).scalar_one())

    def _succeeded(
        self,
        connection: Connection,
        home: int,
        resource: Resource,
        answer: Answer,
        *,
        rows: int,
        known: bool,
        written: bool = False,
    ) -> None:
        stamp = answer.stamp
        values: dict[str, Any] = {
            "status": "ok",
            "error": None,
            "attempted_at": stamp,
            "synced_at": stamp,
            "rows": rows,
            "failures": 0,
        }
        if answer.full:
            values |= {"full_at": stamp, "body_sha256": answer.body_sha256}
        elif written:  # the rows are no longer those of the last full answer
            values["body_sha256"] = None
        if answer.window_end is not None:
            values["window_end"] = answer.window_end
        key = {"experiment_id": home, "resource": resource.value}
        if known or not insert_once(connection, _S, key, values):
            upsert(connection, _S, key, values)

    def _home(self, connection: Connection, experiment_id: str) -> int:
        """Return the experiment's row number, and keep others from writing to it until the end."""
        home = connection.execute(_HOME, {"key": experiment_id}).scalar()
        if home is None:
            raise self._unknown(experiment_id)
        return int(home)

    def _id_of(self, name: str | None) -> str | None:
        return None if name is None else self.experiment(name).experiment_id

    def _unknown(self, name: str) -> MissingError:
        return MissingError(
            f"the mirror {self.database.shown} has no experiment {name}", fix=f"nightbeam elog fetch {name}"
        )

    def _rows(self, kind: type[T], query: sa.Select[Any]) -> list[T]:
        names = [f.name for f in fields(kind)]  # type: ignore[arg-type]
        with self.database.read() as connection:
            return [kind(**{n: row[n] for n in names}) for row in connection.execute(query).mappings()]

    def _stream(self, query: sa.Select[Any]) -> Iterator[dict[str, Any]]:
        query = query.execution_options(yield_per=100)
        with self.database.read() as connection, connection.execute(query) as found:
            for rows in found.mappings().partitions():
                yield from (dict(row) for row in rows)


# -- small things -------------------------------------------------------------------------------------------------


def _stamp(now: datetime | None) -> str:
    when = utc_now() if now is None else now
    if when.tzinfo is None:
        raise UsageError(f"{when} has no time zone")
    return when.astimezone(UTC).isoformat()


def _hit(row: sa.RowMapping, terms: Sequence[tuple[tuple[str, ...], bool]]) -> Hit:
    tags = row["tags"] or []
    return Hit(
        experiment_id=row["experiment_id"],
        name=row["name"],
        entry_id=row["entry_id"],
        created_at=row["created_at"],
        author=row["author"],
        title=row["title"],
        run_num=row["run_num"],
        tags=tuple(tag for tag in tags if isinstance(tag, str)),
        snippet=compute.snippet(row["search_text"] or "", terms),
        hidden=bool(row["hidden"]),
    )


def _count(table: sa.Table, present: bool) -> sa.Select[Any]:
    query = sa.select(sa.func.count()).select_from(table)
    return query.where(table.c.missing_since.is_(None)) if present and "missing_since" in table.c else query


def _table_query(name: str, experiment: str | None) -> sa.Select[Any]:
    table = ElogBase.metadata.tables.get(name)
    if table is not None:
        return _rows_of_table(table, experiment)
    view = next((view for view in VIEWS if view.name.lower() == name.lower()), None)
    if view is None:
        known = ", ".join([*sorted(ElogBase.metadata.tables), *(view.name for view in VIEWS)])
        raise UsageError(f"the mirror has no table {name}", fix=f"one of {known}")
    columns = [sa.column(column, SafeText()) for column in view.columns]
    query = sa.select(*columns).select_from(sa.table(sa.sql.quoted_name(view.name, quote=False), *columns))
    if experiment is None:
        return query
    if "experiment_id" not in view.columns:
        raise UsageError(f"{view.name} does not say of which experiment a row is", fix="leave the experiment out")
    return query.where(sa.column("experiment_id", SafeText()) == experiment)


def _rows_of_table(table: sa.Table, experiment: str | None) -> sa.Select[Any]:
    if table is _X.__table__:
        query = sa.select(table).order_by(table.c.id)
        return query if experiment is None else query.where(table.c.experiment_id == experiment)
    if "experiment_id" in table.c:
        query = sa.select(_X.experiment_id.label("experiment"), table).join(_X, _X.id == table.c.experiment_id)
        query = query.order_by(*table.primary_key.columns)
        return query if experiment is None else query.where(_X.experiment_id == experiment)
    if experiment is not None:
        raise UsageError(f"{table.name} does not belong to experiments", fix="leave the experiment out")
    return sa.select(table).order_by(*table.primary_key.columns)


def _finish(part: Path) -> None:
    """Make a copied database one file, look through it, and have it on the disk."""
    with closing(sqlite3.connect(part, isolation_level=None)) as copy:
        copy.execute("PRAGMA journal_mode=DELETE")
        (found,) = copy.execute("PRAGMA integrity_check(1)").fetchone()
    if found != "ok":
        raise InputError(f"the copy of the mirror is damaged: {found}", fix="nightbeam elog verify")
    with part.open("rb+") as whole:
        os.fsync(whole.fileno())
