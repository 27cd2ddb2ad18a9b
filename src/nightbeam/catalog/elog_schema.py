"""The tables and views of the logbook's mirror, and how a document of the service lies in a row.

The first columns of each table, up to the comment ``ours``, have the names of the older tool's design. The views
have the names and columns of the tool that was in use, so that queries made for it go on working. A change here
needs a migration in ``migrations/elog``; a test compares the two.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import (
    REAL,
    BigInteger,
    Dialect,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Text,
    TypeDecorator,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from nightbeam.elog import compute

__all__ = [
    "ATTACHMENT_FIELDS",
    "ENTRY_FIELDS",
    "FILE_FIELDS",
    "JOB_FIELDS",
    "NOT_MODELLED",
    "RUN_FIELDS",
    "VIEWS",
    "WORKFLOW_FIELDS",
    "AttachmentTable",
    "DetectorTable",
    "ElogBase",
    "EntryTable",
    "ExperimentTable",
    "Field",
    "FileTable",
    "JobTable",
    "MetadataTable",
    "QuestionnaireFieldTable",
    "QuestionnaireTable",
    "RunTable",
    "SafeJson",
    "SafeText",
    "SyncTable",
    "View",
    "WorkflowDefinitionTable",
    "WorkflowTable",
    "document_of",
    "row_of",
]


# -- types --------------------------------------------------------------------------------------------------------


class SafeText(TypeDecorator[str]):
    """Any text, also with NUL or lone surrogates, which PostgreSQL refuses; compared by code point everywhere."""

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> Any:
        """Return the column's type; PostgreSQL's own order of texts is the language's of the machine."""
        return Text(collation="C") if dialect.name == "postgresql" else Text()

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """Escape what databases refuse."""
        del dialect
        return compute.encode_text(value) if isinstance(value, str) else value

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        """Give the text back as it was."""
        del dialect
        return compute.decode_text(value) if isinstance(value, str) else value


class SafeJson(TypeDecorator[Any]):
    """A JSON value, kept as the same text in every database; None is NULL.

    PostgreSQL's own JSON would lose NaN, NUL and what a float was written like.
    """

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> Any:
        """Return the column's type."""
        return Text(collation="C") if dialect.name == "postgresql" else Text()

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        """Write the value."""
        del dialect
        return None if value is None else compute.dump_json(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        """Read the value."""
        del dialect
        return None if value is None else compute.load_json(value)


def _whole() -> BigInteger:
    """Return the 8-byte whole number, named INTEGER in SQLite."""
    return BigInteger().with_variant(Integer(), "sqlite")


def _real() -> Double[float]:
    return Double().with_variant(REAL(), "sqlite")


# -- tables -------------------------------------------------------------------------------------------------------


class ElogBase(DeclarativeBase):
    """Tables of the logbook's mirror."""

    metadata = MetaData()


def _key() -> Mapped[int]:
    return mapped_column(_whole(), primary_key=True)


def _home() -> Mapped[int]:
    return mapped_column(_whole(), ForeignKey("experiments.id"))


class ExperimentTable(ElogBase):
    """One row per experiment or standing logbook."""

    __tablename__ = "experiments"
    __table_args__ = (UniqueConstraint("name"), UniqueConstraint("experiment_id"))
    id: Mapped[int] = _key()
    name: Mapped[str] = mapped_column(SafeText)
    instrument: Mapped[str | None] = mapped_column(SafeText)
    start_time: Mapped[str | None] = mapped_column(SafeText)
    end_time: Mapped[str | None] = mapped_column(SafeText)
    description: Mapped[str | None] = mapped_column(SafeText)
    updated_at: Mapped[str] = mapped_column(SafeText)
    # ours
    experiment_id: Mapped[str] = mapped_column(SafeText)
    pi: Mapped[str | None] = mapped_column(SafeText)
    pi_email: Mapped[str | None] = mapped_column(SafeText)
    leader_account: Mapped[str | None] = mapped_column(SafeText)
    contact_info: Mapped[str | None] = mapped_column(SafeText)
    posix_group: Mapped[str | None] = mapped_column(SafeText)
    slack_channels: Mapped[str | None] = mapped_column(SafeText)
    analysis_queues: Mapped[str | None] = mapped_column(SafeText)
    urawi_proposal: Mapped[str | None] = mapped_column(SafeText)
    run_period: Mapped[str | None] = mapped_column(SafeText)
    params: Mapped[Any | None] = mapped_column(SafeJson)
    detectors: Mapped[Any | None] = mapped_column(SafeJson)
    status: Mapped[str] = mapped_column(SafeText)
    status_since: Mapped[str] = mapped_column(SafeText)
    run_count: Mapped[int | None] = mapped_column(_whole())
    last_run: Mapped[int | None] = mapped_column(_whole())
    total_files: Mapped[int | None] = mapped_column(_whole())
    total_gib: Mapped[float | None] = mapped_column(_real())
    summary: Mapped[Any | None] = mapped_column(SafeJson)
    info: Mapped[Any | None] = mapped_column(SafeJson)
    summary_digest: Mapped[str | None] = mapped_column(SafeText)
    info_digest: Mapped[str | None] = mapped_column(SafeText)
    first_seen: Mapped[str] = mapped_column(SafeText)


class EntryTable(ElogBase):
    """One row per logbook entry, deleted ones and earlier versions among them."""

    __tablename__ = "logbook_entries"
    __table_args__ = (
        UniqueConstraint("experiment_id", "entry_id"),
        Index("idx_logbook_entries_time", "experiment_id", "created_at", "entry_id"),
        Index(
            "idx_logbook_entries_hint",
            "experiment_id",
            "created_at",
            "entry_id",
            sqlite_where=text("run_hint IS NOT NULL"),
            postgresql_where=text("run_hint IS NOT NULL"),
        ),
    )
    id: Mapped[int] = _key()
    experiment_id: Mapped[int] = _home()
    entry_id: Mapped[str] = mapped_column(SafeText)
    author: Mapped[str | None] = mapped_column(SafeText)
    content: Mapped[str | None] = mapped_column(SafeText)
    created_at: Mapped[str | None] = mapped_column(SafeText)
    tags: Mapped[Any | None] = mapped_column(SafeJson)
    # ours
    relevance_time: Mapped[str | None] = mapped_column(SafeText)
    title: Mapped[str | None] = mapped_column(SafeText)
    content_type: Mapped[str | None] = mapped_column(SafeText)
    run_num: Mapped[int | None] = mapped_column(_whole())
    run_hint: Mapped[int | None] = mapped_column(_whole())
    root: Mapped[str | None] = mapped_column(SafeText)
    parent: Mapped[str | None] = mapped_column(SafeText)
    shift: Mapped[str | None] = mapped_column(SafeText)
    previous_version: Mapped[str | None] = mapped_column(SafeText)
    history_of: Mapped[str | None] = mapped_column(SafeText)
    deleted_by: Mapped[str | None] = mapped_column(SafeText)
    deleted_time: Mapped[str | None] = mapped_column(SafeText)
    email_to: Mapped[Any | None] = mapped_column(SafeJson)
    post_to_elogs: Mapped[Any | None] = mapped_column(SafeJson)
    jira_ticket: Mapped[str | None] = mapped_column(SafeText)
    src_expname: Mapped[str | None] = mapped_column(SafeText)
    src_id: Mapped[str | None] = mapped_column(SafeText)
    search_text: Mapped[str | None] = mapped_column(SafeText)
    extra: Mapped[Any | None] = mapped_column(SafeJson)
    digest: Mapped[str] = mapped_column(SafeText)
    first_seen: Mapped[str] = mapped_column(SafeText)
    changed_at: Mapped[str] = mapped_column(SafeText)
    missing_since: Mapped[str | None] = mapped_column(SafeText)


class AttachmentTable(ElogBase):
    """One row per attachment of an entry; what it holds stays with the service. Ours."""

    __tablename__ = "attachments"
    __table_args__ = (UniqueConstraint("experiment_id", "entry_id", "attachment_id"),)
    id: Mapped[int] = _key()
    experiment_id: Mapped[int] = _home()
    entry_id: Mapped[str] = mapped_column(SafeText)
    attachment_id: Mapped[str] = mapped_column(SafeText)
    name: Mapped[str | None] = mapped_column(SafeText)
    type: Mapped[str | None] = mapped_column(SafeText)
    has_preview: Mapped[int] = mapped_column(Integer)
    missing_since: Mapped[str | None] = mapped_column(SafeText)


class RunTable(ElogBase):
    """One row per run, with all its parameters."""

    __tablename__ = "runs"
    __table_args__ = (UniqueConstraint("experiment_id", "run_number"),)
    id: Mapped[int] = _key()
    experiment_id: Mapped[int] = _home()
    run_number: Mapped[int] = mapped_column(_whole())
    start_time: Mapped[str | None] = mapped_column(SafeText)
    end_time: Mapped[str | None] = mapped_column(SafeText)
    parameters: Mapped[Any | None] = mapped_column(SafeJson)
    # ours
    run_id: Mapped[str | None] = mapped_column(SafeText)
    run_type: Mapped[str | None] = mapped_column(SafeText)
    sample: Mapped[str | None] = mapped_column(SafeText)
    sample_json: Mapped[Any | None] = mapped_column(SafeJson)
    editable: Mapped[Any | None] = mapped_column(SafeJson)
    detectors: Mapped[Any | None] = mapped_column(SafeJson)
    n_events: Mapped[int | None] = mapped_column(_whole())
    n_damaged: Mapped[int | None] = mapped_column(_whole())
    n_dropped: Mapped[int | None] = mapped_column(_whole())
    prod_start: Mapped[str | None] = mapped_column(SafeText)
    prod_end: Mapped[str | None] = mapped_column(SafeText)
    extra: Mapped[Any | None] = mapped_column(SafeJson)
    digest: Mapped[str] = mapped_column(SafeText)
    first_seen: Mapped[str] = mapped_column(SafeText)
    changed_at: Mapped[str] = mapped_column(SafeText)
    missing_since: Mapped[str | None] = mapped_column(SafeText)


class FileTable(ElogBase):
    """One row per file that the file manager knows."""

    __tablename__ = "files"
    __table_args__ = (UniqueConstraint("experiment_id", "run_num", "path"),)
    id: Mapped[int] = _key()
    experiment_id: Mapped[int] = _home()
    path: Mapped[str] = mapped_column(SafeText)
    size: Mapped[int | None] = mapped_column(_whole())
    created_at: Mapped[str | None] = mapped_column(SafeText)
    # ours
    run_num: Mapped[int | None] = mapped_column(_whole())
    file_id: Mapped[str | None] = mapped_column(SafeText)
    absolute_path: Mapped[str | None] = mapped_column(SafeText)
    hostname: Mapped[str | None] = mapped_column(SafeText)
    gen: Mapped[int | None] = mapped_column(_whole())
    checksum: Mapped[str | None] = mapped_column(SafeText)
    modified_at: Mapped[str | None] = mapped_column(SafeText)
    locations: Mapped[Any | None] = mapped_column(SafeJson)
    extra: Mapped[Any | None] = mapped_column(SafeJson)
    digest: Mapped[str] = mapped_column(SafeText)
    first_seen: Mapped[str] = mapped_column(SafeText)
    changed_at: Mapped[str] = mapped_column(SafeText)
    missing_since: Mapped[str | None] = mapped_column(SafeText)


class QuestionnaireTable(ElogBase):
    """One row per experiment with a questionnaire, whole as the service gave it."""

    __tablename__ = "questionnaires"
    __table_args__ = (UniqueConstraint("experiment_id"),)
    id: Mapped[int] = _key()
    experiment_id: Mapped[int] = _home()
    data: Mapped[Any | None] = mapped_column(SafeJson)
    updated_at: Mapped[str | None] = mapped_column(SafeText)
    # ours
    period: Mapped[str | None] = mapped_column(SafeText)
    proposal: Mapped[str | None] = mapped_column(SafeText)
    digest: Mapped[str] = mapped_column(SafeText)


class QuestionnaireFieldTable(ElogBase):
    """One row per answered question. Ours."""

    __tablename__ = "questionnaire_fields"
    __table_args__ = (UniqueConstraint("experiment_id", "field_id"),)
    id: Mapped[int] = _key()
    experiment_id: Mapped[int] = _home()
    field_id: Mapped[str] = mapped_column(SafeText)
    proposal: Mapped[str | None] = mapped_column(SafeText)
    category: Mapped[str] = mapped_column(SafeText)
    field_name: Mapped[str] = mapped_column(SafeText)
    field_value: Mapped[str | None] = mapped_column(SafeText)
    modified_time: Mapped[str | None] = mapped_column(SafeText)
    modified_uid: Mapped[str | None] = mapped_column(SafeText)
    created_time: Mapped[str | None] = mapped_column(SafeText)
    digest: Mapped[str] = mapped_column(SafeText)
    first_seen: Mapped[str] = mapped_column(SafeText)
    changed_at: Mapped[str] = mapped_column(SafeText)
    missing_since: Mapped[str | None] = mapped_column(SafeText)


class WorkflowTable(ElogBase):
    """One row per experiment with workflows: their definitions as the service gave them."""

    __tablename__ = "workflows"
    __table_args__ = (UniqueConstraint("experiment_id"),)
    id: Mapped[int] = _key()
    experiment_id: Mapped[int] = _home()
    data: Mapped[Any | None] = mapped_column(SafeJson)
    updated_at: Mapped[str | None] = mapped_column(SafeText)
    # ours
    digest: Mapped[str] = mapped_column(SafeText)


class WorkflowDefinitionTable(ElogBase):
    """One row per workflow definition. Ours."""

    __tablename__ = "workflow_definitions"
    __table_args__ = (UniqueConstraint("experiment_id", "mongo_id"),)
    id: Mapped[int] = _key()
    experiment_id: Mapped[int] = _home()
    mongo_id: Mapped[str] = mapped_column(SafeText)
    name: Mapped[str | None] = mapped_column(SafeText)
    executable: Mapped[str | None] = mapped_column(SafeText)
    trigger: Mapped[str | None] = mapped_column(SafeText)
    location: Mapped[str | None] = mapped_column(SafeText)
    parameters: Mapped[Any | None] = mapped_column(SafeJson)
    run_param_name: Mapped[str | None] = mapped_column(SafeText)
    run_param_value: Mapped[str | None] = mapped_column(SafeText)
    run_as_user: Mapped[str | None] = mapped_column(SafeText)
    extra: Mapped[Any | None] = mapped_column(SafeJson)
    digest: Mapped[str] = mapped_column(SafeText)
    first_seen: Mapped[str] = mapped_column(SafeText)
    changed_at: Mapped[str] = mapped_column(SafeText)
    missing_since: Mapped[str | None] = mapped_column(SafeText)


class JobTable(ElogBase):
    """One row per job of a workflow. Ours."""

    __tablename__ = "workflow_jobs"
    __table_args__ = (
        UniqueConstraint("experiment_id", "mongo_id"),
        Index("idx_workflow_jobs_run", "experiment_id", "run_num"),
    )
    id: Mapped[int] = _key()
    experiment_id: Mapped[int] = _home()
    mongo_id: Mapped[str] = mapped_column(SafeText)
    run_num: Mapped[int | None] = mapped_column(_whole())
    def_id: Mapped[str | None] = mapped_column(SafeText)
    user: Mapped[str | None] = mapped_column(SafeText)
    status: Mapped[str | None] = mapped_column(SafeText)
    submit_time: Mapped[str | None] = mapped_column(SafeText)
    tool_id: Mapped[Any | None] = mapped_column(SafeJson)
    log_file_path: Mapped[str | None] = mapped_column(SafeText)
    counters: Mapped[Any | None] = mapped_column(SafeJson)
    extra: Mapped[Any | None] = mapped_column(SafeJson)
    digest: Mapped[str] = mapped_column(SafeText)
    first_seen: Mapped[str] = mapped_column(SafeText)
    changed_at: Mapped[str] = mapped_column(SafeText)
    missing_since: Mapped[str | None] = mapped_column(SafeText)


class DetectorTable(ElogBase):
    """One row per detector that any run ever named, by the whole name of the parameter. Ours."""

    __tablename__ = "detectors"
    __table_args__ = (UniqueConstraint("name"),)
    id: Mapped[int] = _key()
    name: Mapped[str] = mapped_column(SafeText)
    description: Mapped[str | None] = mapped_column(SafeText)


class SyncTable(ElogBase):
    """How the last reading of each list of each experiment went. Ours."""

    __tablename__ = "sync_state"
    experiment_id: Mapped[int] = mapped_column(_whole(), ForeignKey("experiments.id"), primary_key=True)
    resource: Mapped[str] = mapped_column(SafeText, primary_key=True)
    status: Mapped[str] = mapped_column(SafeText)
    error: Mapped[str | None] = mapped_column(SafeText)
    attempted_at: Mapped[str] = mapped_column(SafeText)
    synced_at: Mapped[str | None] = mapped_column(SafeText)
    full_at: Mapped[str | None] = mapped_column(SafeText)
    window_end: Mapped[str | None] = mapped_column(SafeText)
    body_sha256: Mapped[str | None] = mapped_column(SafeText)
    rows: Mapped[int] = mapped_column(_whole(), server_default="0", default=0)
    failures: Mapped[int] = mapped_column(Integer, server_default="0", default=0)


class MetadataTable(ElogBase):
    """What is said of the whole mirror; ``last_update`` and ``hours_lookback`` among it."""

    __tablename__ = "metadata"
    key: Mapped[str] = mapped_column(SafeText, primary_key=True)
    value: Mapped[str | None] = mapped_column(SafeText)


#: What the migrations make and the models do not say: PostgreSQL's full-text index. SQLite's is a table of its own.
NOT_MODELLED: Final = frozenset({"search_vector", "idx_logbook_entries_search"})


# -- views --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class View:
    """A view: its columns and its query, in which ``@word@`` stands for what the two dialects say differently."""

    name: str
    columns: tuple[str, ...]
    query: str

    def statement(self, dialect: str) -> str:
        """Return the statement that makes it; its name is not quoted, so PostgreSQL finds it in any case."""
        words = _DIALECTS[dialect]
        query = self.query
        while re.search(r"@\w+@", query):
            query = re.sub(r"@(\w+)@", lambda m: words.get(m[1]) or _SHARED[m[1]], query)
        columns = ", ".join(f'"{column}"' for column in self.columns)
        return f"CREATE VIEW {self.name} ({columns}) AS {' '.join(query.split())}"


_SHARED: Final[Mapping[str, str]] = {
    "special": """('{"$number":"NaN"}', '{"$number":"Infinity"}', '{"$number":"-Infinity"}')""",
    "start": "replace(replace(replace(r.start_time, 'T', ' '), '+00:00', ''), 'Z', '')",
    "end": "replace(replace(replace(r.end_time, 'T', ' '), '+00:00', ''), 'Z', '')",
    "files": "files AS f WHERE f.experiment_id = r.experiment_id AND f.run_num = r.run_number "
    "AND f.missing_since IS NULL",
    "files_known": "EXISTS (SELECT 1 FROM sync_state AS s WHERE s.experiment_id = r.experiment_id "
    "AND s.resource = 'files' AND s.synced_at IS NOT NULL)",
}
_DIALECTS: Final[Mapping[str, Mapping[str, str]]] = {
    "sqlite": {
        "total": "CAST(total(f.size) AS INTEGER)",
        "tags": "SELECT group_concat(t.value, ',') FROM json_each(e.tags) AS t",
        "seen": "json_each(x.detectors) AS k",
        "checked": "SELECT 1 FROM json_each(r.detectors) AS c WHERE c.key = d.name AND c.type = 'true'",
        "run_param_val": "CASE json_type(w.extra, '$.run_param_val') WHEN 'text' "
        "THEN json_extract(w.extra, '$.run_param_val') END",
        "parameters": "json_each(r.parameters) AS p",
        "type": """
            CASE WHEN p.type = 'integer' THEN 'int' WHEN p.type = 'real' THEN 'float'
            WHEN p.type IN ('true', 'false') THEN 'bool' WHEN p.type IN ('text', 'null') THEN p.type
            WHEN p.value IN @special@ THEN 'float' ELSE 'json' END""",
        "number": """
            CASE WHEN p.type IN ('integer', 'real', 'true', 'false') THEN p.value
            WHEN p.type = 'object' AND p.value = '{"$number":"Infinity"}' THEN 9e999
            WHEN p.type = 'object' AND p.value = '{"$number":"-Infinity"}' THEN -9e999 END""",
        "text": """
            CASE WHEN p.type = 'text' THEN p.value
            WHEN p.type = 'object' AND p.value IN @special@ THEN json_extract(p.value, '$."$number"')
            WHEN p.type IN ('object', 'array') THEN p.value END""",
    },
    "postgresql": {
        "total": "CAST(least(coalesce(sum(f.size), 0), 9223372036854775807) AS BIGINT)",
        "tags": "SELECT string_agg(t.value, ',' ORDER BY t.place) "
        "FROM json_array_elements_text(CAST(e.tags AS json)) WITH ORDINALITY AS t(value, place)",
        "seen": "json_array_elements_text(CAST(x.detectors AS json)) AS k(value)",
        "checked": "SELECT 1 FROM json_each_text(CAST(r.detectors AS json)) AS c "
        "WHERE c.key = d.name AND c.value = 'true'",
        "run_param_val": "CASE json_typeof(CAST(w.extra AS json) -> 'run_param_val') WHEN 'string' "
        "THEN CAST(w.extra AS json) ->> 'run_param_val' END",
        "parameters": "json_each(CAST(r.parameters AS json)) AS p",
        "printed": "CAST(p.value AS text)",
        "type": """
            CASE json_typeof(p.value) WHEN 'boolean' THEN 'bool' WHEN 'string' THEN 'text' WHEN 'null' THEN 'null'
            WHEN 'number' THEN CASE WHEN @printed@ ~ '^-?[0-9]+$' THEN 'int' ELSE 'float' END
            ELSE CASE WHEN @printed@ IN @special@ THEN 'float' ELSE 'json' END END""",
        "number": """
            CASE json_typeof(p.value)
            WHEN 'number' THEN CASE WHEN length(@printed@) < 300 THEN CAST(@printed@ AS double precision) END
            WHEN 'boolean' THEN CASE @printed@ WHEN 'true' THEN 1 ELSE 0 END
            WHEN 'object' THEN CASE @printed@
            WHEN '{"$number":"Infinity"}' THEN CAST('Infinity' AS double precision)
            WHEN '{"$number":"-Infinity"}' THEN CAST('-Infinity' AS double precision) END END""",
        "text": """
            CASE json_typeof(p.value) WHEN 'string' THEN p.value #>> '{}' WHEN 'array' THEN @printed@
            WHEN 'object' THEN CASE WHEN @printed@ IN @special@ THEN p.value ->> '$number' ELSE @printed@ END END""",
    },
}

_PRODUCTION = (
    "n_events",
    "n_damaged",
    "n_dropped",
    "prod_start",
    "prod_end",
    "number_of_files",
    "total_size_bytes",
)

#: What the tool in use before had as tables; ``Metadata`` is our own table. In the order in which they are made.
VIEWS: Final = (
    View(
        "Experiment",
        (
            "experiment_id",
            "name",
            "instrument",
            "start_time",
            "end_time",
            "pi",
            "pi_email",
            "leader_account",
            "description",
            "slack_channels",
            "analysis_queues",
            "urawi_proposal",
        ),
        """
        SELECT x.experiment_id, x.name, x.instrument, x.start_time, x.end_time, x.pi, x.pi_email, x.leader_account,
          x.description, x.slack_channels, x.analysis_queues, x.urawi_proposal
        FROM experiments AS x""",
    ),
    View(
        "Run",
        ("run_id", "run_number", "experiment_id", "start_time", "end_time"),
        """
        SELECT r.id, r.run_number, x.experiment_id, @start@, @end@
        FROM runs AS r JOIN experiments AS x ON x.id = r.experiment_id
        WHERE r.missing_since IS NULL""",
    ),
    View(
        "RunProductionData",
        ("run_data_id", "run_id", *_PRODUCTION),
        """
        SELECT r.id, r.id, r.n_events, r.n_damaged, r.n_dropped, r.prod_start, r.prod_end,
          CASE WHEN @files_known@ THEN (SELECT count(*) FROM @files@) END,
          CASE WHEN @files_known@ THEN (SELECT @total@ FROM @files@) END
        FROM runs AS r
        WHERE r.missing_since IS NULL""",
    ),
    View("Detector", ("detector_id", "detector_name", "description"), "SELECT id, name, description FROM detectors"),
    View(
        "RunDetector",
        ("run_id", "detector_id", "status"),
        """
        SELECT r.id, d.id, CASE WHEN EXISTS (@checked@) THEN 'Checked' ELSE 'Unchecked' END
        FROM experiments AS x JOIN runs AS r ON r.experiment_id = x.id CROSS JOIN @seen@
          JOIN detectors AS d ON d.name = k.value
        WHERE r.missing_since IS NULL""",
    ),
    View(
        "Logbook",
        ("log_id", "experiment_id", "run_id", "timestamp", "content", "tags", "author"),
        """
        SELECT e.id, x.experiment_id,
          (SELECT r.id FROM runs AS r
            WHERE r.experiment_id = e.experiment_id AND r.missing_since IS NULL AND r.run_number = coalesce(e.run_hint,
              (SELECT g.run_hint FROM logbook_entries AS g
                WHERE g.experiment_id = e.experiment_id AND g.run_hint IS NOT NULL AND g.missing_since IS NULL
                  AND (g.created_at, g.entry_id) < (e.created_at, e.entry_id)
                ORDER BY g.created_at DESC, g.entry_id DESC LIMIT 1))),
          e.created_at, e.content, coalesce((@tags@), ''), e.author
        FROM logbook_entries AS e JOIN experiments AS x ON x.id = e.experiment_id
        WHERE e.deleted_by IS NULL AND e.deleted_time IS NULL AND e.history_of IS NULL AND e.missing_since IS NULL""",
    ),
    View(
        "Questionnaire",
        (
            "experiment_id",
            "proposal",
            "category",
            "field_id",
            "field_name",
            "field_value",
            "modified_time",
            "modified_uid",
            "created_time",
        ),
        """
        SELECT x.experiment_id, q.proposal, q.category, q.field_id, q.field_name, q.field_value, q.modified_time,
          q.modified_uid, q.created_time
        FROM questionnaire_fields AS q JOIN experiments AS x ON x.id = q.experiment_id
        WHERE q.missing_since IS NULL""",
    ),
    View(
        "Workflow",
        (
            "workflow_id",
            "experiment_id",
            "mongo_id",
            "name",
            "executable",
            "trigger",
            "location",
            "parameters",
            "run_param_name",
            "run_param_value",
            "run_as_user",
        ),
        """
        SELECT w.id, x.experiment_id, w.mongo_id, w.name, w.executable, w."trigger", w.location, w.parameters,
          w.run_param_name, coalesce(w.run_param_value, @run_param_val@), w.run_as_user
        FROM workflow_definitions AS w JOIN experiments AS x ON x.id = w.experiment_id
        WHERE w.missing_since IS NULL""",
    ),
    View(
        "RunCompleteData",
        ("run_id", "run_number", "experiment_id", "start_time", "end_time", *_PRODUCTION),
        f"""
        SELECT r.run_id, r.run_number, r.experiment_id, r.start_time, r.end_time, p.{", p.".join(_PRODUCTION)}
        FROM Run AS r LEFT JOIN RunProductionData AS p ON p.run_id = r.run_id""",
    ),
    View(
        "run_parameters",
        ("experiment_id", "run_number", "name", "type", "number", "text"),
        """
        SELECT x.experiment_id, r.run_number, p.key, @type@, @number@, @text@
        FROM runs AS r JOIN experiments AS x ON x.id = r.experiment_id CROSS JOIN @parameters@
        WHERE r.missing_since IS NULL""",
    ),
)


# -- documents in rows --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Field:
    """A key of a document and the column that keeps it; ``kind`` is text, time, whole, list, object or any."""

    key: str
    column: str
    kind: str = "text"


ENTRY_FIELDS: Final = (
    Field("_id", "entry_id"),
    Field("insert_time", "created_at", "time"),
    Field("relevance_time", "relevance_time", "time"),
    Field("author", "author"),
    Field("content", "content"),
    Field("content_type", "content_type"),
    Field("title", "title"),
    Field("tags", "tags", "list"),
    Field("run_num", "run_num", "whole"),
    Field("root", "root"),
    Field("parent", "parent"),
    Field("shift", "shift"),
    Field("previous_version", "previous_version"),
    Field("deleted_by", "deleted_by"),
    Field("deleted_time", "deleted_time", "time"),
    Field("email_to", "email_to", "list"),
    Field("post_to_elogs", "post_to_elogs", "list"),
    Field("jira_ticket", "jira_ticket"),
    Field("src_expname", "src_expname"),
    Field("src_id", "src_id"),
)
ATTACHMENT_FIELDS: Final = (Field("_id", "attachment_id"), Field("name", "name"), Field("type", "type"))
RUN_FIELDS: Final = (
    Field("_id", "run_id"),
    Field("num", "run_number", "whole"),
    Field("type", "run_type"),
    Field("begin_time", "start_time", "time"),
    Field("end_time", "end_time", "time"),
    Field("sample", "sample_json", "object"),
    Field("editable_params", "editable", "object"),
    Field("params", "parameters", "object"),
)
FILE_FIELDS: Final = (
    Field("_id", "file_id"),
    Field("path", "path"),
    Field("absolute_path", "absolute_path"),
    Field("hostname", "hostname"),
    Field("gen", "gen", "whole"),
    Field("run_num", "run_num", "whole"),
    Field("size", "size", "whole"),
    Field("checksum", "checksum"),
    Field("create_timestamp", "created_at", "time"),
    Field("modify_timestamp", "modified_at", "time"),
    Field("locations", "locations", "object"),
)
WORKFLOW_FIELDS: Final = (
    Field("_id", "mongo_id"),
    Field("name", "name"),
    Field("executable", "executable"),
    Field("trigger", "trigger"),
    Field("location", "location"),
    Field("parameters", "parameters", "any"),
    Field("run_param_name", "run_param_name"),
    Field("run_param_value", "run_param_value"),
    Field("run_as_user", "run_as_user"),
)
JOB_FIELDS: Final = (
    Field("_id", "mongo_id"),
    Field("run_num", "run_num", "whole"),
    Field("def_id", "def_id"),
    Field("user", "user"),
    Field("status", "status"),
    Field("submit_time", "submit_time", "time"),
    Field("tool_id", "tool_id", "any"),
    Field("log_file_path", "log_file_path"),
    Field("counters", "counters", "any"),
)


#: Times are indexed, and PostgreSQL's indexes take nothing long.
_LONGEST_TIME = 64


def row_of(document: Mapping[str, Any], fields: tuple[Field, ...]) -> dict[str, Any]:
    """Return the columns of a document; whatever does not fit its column exactly is kept in ``extra`` too."""
    extra = dict(document)
    row: dict[str, Any] = {}
    for field in fields:
        value = document.get(field.key)
        fitted = row[field.column] = None if value is None else _fitted(value, field.kind)
        if fitted is value and value is not None:
            del extra[field.key]
    row["extra"] = extra or None
    return row


def document_of(row: Mapping[str, Any], fields: tuple[Field, ...]) -> dict[str, Any]:
    """Return the document that a row was made of."""
    document = {field.key: row[field.column] for field in fields if row[field.column] is not None}
    return document | (row["extra"] or {})


_KINDS: Final[Mapping[str, type]] = {"list": list, "object": dict, "any": object}


def _fitted(value: Any, kind: str) -> Any:
    """Return the value as its column takes it: itself where that loses nothing."""
    if kind == "text":
        return value if isinstance(value, str) else _printed(value)
    if kind == "time":
        return value if isinstance(value, str) and len(value) <= _LONGEST_TIME else None
    if kind == "whole":
        whole = compute.whole_number(value)
        return value if type(value) is int and whole == value else whole
    return value if isinstance(value, _KINDS[kind]) else None


def _printed(value: Any) -> str | None:
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value) if isinstance(value, int | float) else None
