"""The mirror of the logbook: the tables of the older tool's design, ours beside them, full text, views.

Revision ID: 0001
"""

import string

import sqlalchemy as sa
from alembic import op

from nightbeam.catalog.elog_schema import VIEWS  # a later revision that changes a view keeps today's text here
from nightbeam.catalog.ensure import real, text, whole

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def _key() -> sa.Column[int]:
    return sa.Column("id", whole(), primary_key=True)


def _home() -> sa.Column[int]:
    return sa.Column("experiment_id", whole(), sa.ForeignKey("experiments.id"), nullable=False)


def _texts(*names: str, nullable: bool = True) -> list[sa.Column[str]]:
    return [sa.Column(name, text(), nullable=nullable) for name in names]


def _wholes(*names: str) -> list[sa.Column[int]]:
    return [sa.Column(name, whole()) for name in names]


def _tracked() -> list[sa.Column[str]]:
    return [*_texts("digest", "first_seen", "changed_at", nullable=False), *_texts("missing_since")]


def upgrade() -> None:
    """Create everything."""
    _create_experiments()
    _create_entries()
    _create_runs_and_files()
    _create_questionnaires()
    _create_workflows()
    _create_state()
    dialect = op.get_bind().dialect.name
    for statement in _FULL_TEXT[dialect]:
        _execute(statement)
    for view in VIEWS:
        _execute(view.statement(dialect))


def downgrade() -> None:
    """Remove everything."""
    for view in reversed(VIEWS):
        _execute(f"DROP VIEW {view.name}")
    if op.get_bind().dialect.name == "sqlite":
        for trigger in ("insert", "delete", "update"):
            _execute(f"DROP TRIGGER logbook_fts_{trigger}")
        _execute("DROP TABLE logbook_fts")
    for table in (
        "metadata",
        "sync_state",
        "detectors",
        "workflow_jobs",
        "workflow_definitions",
        "workflows",
        "questionnaire_fields",
        "questionnaires",
        "files",
        "runs",
        "attachments",
        "logbook_entries",
        "experiments",
    ):
        op.drop_table(table)


def _execute(statement: str) -> None:
    # As it stands: neither : nor % of it is a parameter.
    op.get_bind().exec_driver_sql(statement, execution_options={"no_parameters": True})


def _create_experiments() -> None:
    op.create_table(
        "experiments",
        _key(),
        *_texts("name", nullable=False),
        *_texts("instrument", "start_time", "end_time", "description"),
        *_texts("updated_at", "experiment_id", nullable=False),
        *_texts("pi", "pi_email", "leader_account", "contact_info", "posix_group", "slack_channels"),
        *_texts("analysis_queues", "urawi_proposal", "run_period", "params", "detectors"),
        *_texts("status", "status_since", nullable=False),
        *_wholes("run_count", "last_run", "total_files"),
        sa.Column("total_gib", real()),
        *_texts("summary", "info", "summary_digest", "info_digest"),
        *_texts("first_seen", nullable=False),
        sa.UniqueConstraint("name"),
        sa.UniqueConstraint("experiment_id"),
    )


def _create_entries() -> None:
    op.create_table(
        "logbook_entries",
        _key(),
        _home(),
        *_texts("entry_id", nullable=False),
        *_texts("author", "content", "created_at", "tags", "relevance_time", "title", "content_type"),
        *_wholes("run_num", "run_hint"),
        *_texts("root", "parent", "shift", "previous_version", "history_of", "deleted_by", "deleted_time"),
        *_texts("email_to", "post_to_elogs", "jira_ticket", "src_expname", "src_id", "search_text", "extra"),
        *_tracked(),
        sa.UniqueConstraint("experiment_id", "entry_id"),
    )
    in_time = ["experiment_id", "created_at", "entry_id"]
    hints = sa.text("run_hint IS NOT NULL")
    op.create_index("idx_logbook_entries_time", "logbook_entries", in_time)
    op.create_index("idx_logbook_entries_hint", "logbook_entries", in_time, sqlite_where=hints, postgresql_where=hints)
    op.create_table(
        "attachments",
        _key(),
        _home(),
        *_texts("entry_id", "attachment_id", nullable=False),
        *_texts("name", "type"),
        sa.Column("has_preview", sa.Integer, nullable=False),
        *_texts("missing_since"),
        sa.UniqueConstraint("experiment_id", "entry_id", "attachment_id"),
    )


def _create_runs_and_files() -> None:
    op.create_table(
        "runs",
        _key(),
        _home(),
        sa.Column("run_number", whole(), nullable=False),
        *_texts("start_time", "end_time", "parameters"),
        *_texts("run_id", "run_type", "sample", "sample_json", "editable", "detectors"),
        *_wholes("n_events", "n_damaged", "n_dropped"),
        *_texts("prod_start", "prod_end", "extra"),
        *_tracked(),
        sa.UniqueConstraint("experiment_id", "run_number"),
    )
    op.create_table(
        "files",
        _key(),
        _home(),
        *_texts("path", nullable=False),
        *_wholes("size"),
        *_texts("created_at"),
        *_wholes("run_num"),
        *_texts("file_id", "absolute_path", "hostname"),
        *_wholes("gen"),
        *_texts("checksum", "modified_at", "locations", "extra"),
        *_tracked(),
        sa.UniqueConstraint("experiment_id", "run_num", "path"),
    )


def _create_questionnaires() -> None:
    op.create_table(
        "questionnaires",
        _key(),
        _home(),
        *_texts("data", "updated_at", "period", "proposal"),
        *_texts("digest", nullable=False),
        sa.UniqueConstraint("experiment_id"),
    )
    op.create_table(
        "questionnaire_fields",
        _key(),
        _home(),
        *_texts("field_id", nullable=False),
        *_texts("proposal"),
        *_texts("category", "field_name", nullable=False),
        *_texts("field_value", "modified_time", "modified_uid", "created_time"),
        *_tracked(),
        sa.UniqueConstraint("experiment_id", "field_id"),
    )


def _create_workflows() -> None:
    op.create_table(
        "workflows",
        _key(),
        _home(),
        *_texts("data", "updated_at"),
        *_texts("digest", nullable=False),
        sa.UniqueConstraint("experiment_id"),
    )
    op.create_table(
        "workflow_definitions",
        _key(),
        _home(),
        *_texts("mongo_id", nullable=False),
        *_texts("name", "executable", "trigger", "location", "parameters", "run_param_name", "run_param_value"),
        *_texts("run_as_user", "extra"),
        *_tracked(),
        sa.UniqueConstraint("experiment_id", "mongo_id"),
    )
    op.create_table(
        "workflow_jobs",
        _key(),
        _home(),
        *_texts("mongo_id", nullable=False),
        *_wholes("run_num"),
        *_texts("def_id", "user", "status", "submit_time", "tool_id", "log_file_path", "counters", "extra"),
        *_tracked(),
        sa.UniqueConstraint("experiment_id", "mongo_id"),
    )
    op.create_index("idx_workflow_jobs_run", "workflow_jobs", ["experiment_id", "run_num"])


def _create_state() -> None:
    op.create_table(
        "detectors", _key(), *_texts("name", nullable=False), *_texts("description"), sa.UniqueConstraint("name")
    )
    op.create_table(
        "sync_state",
        sa.Column("experiment_id", whole(), sa.ForeignKey("experiments.id"), primary_key=True),
        sa.Column("resource", text(), primary_key=True),
        *_texts("status", nullable=False),
        *_texts("error"),
        *_texts("attempted_at", nullable=False),
        *_texts("synced_at", "full_at", "window_end", "body_sha256"),
        sa.Column("rows", whole(), nullable=False, server_default="0"),
        sa.Column("failures", sa.Integer, nullable=False, server_default="0"),
    )
    op.create_table("metadata", sa.Column("key", text(), primary_key=True), *_texts("value"))


# PostgreSQL's parser takes a path, an address or a word with a hyphen for one word; without punctuation it finds the
# words that SQLite finds. Neither has stop words or stems, so that a beginning (word*) is what was written.
_PUNCTUATION = (
    string.punctuation
    + "\u00a0\u00ab\u00b0\u00b1\u00b7\u00bb\u00d7\u2013\u2014\u2018\u2019\u201c\u201d\u2022\u2026\u2192\uff04\uff0e"
)
_QUOTED = _PUNCTUATION.replace("'", "''")

_FULL_TEXT = {
    "sqlite": (
        "CREATE VIRTUAL TABLE logbook_fts USING fts5(search_text, content='logbook_entries', content_rowid='id', "
        "tokenize='unicode61 remove_diacritics 0')",
        "CREATE TRIGGER logbook_fts_insert AFTER INSERT ON logbook_entries BEGIN "
        "INSERT INTO logbook_fts(rowid, search_text) VALUES (new.id, new.search_text); END",
        "CREATE TRIGGER logbook_fts_delete AFTER DELETE ON logbook_entries BEGIN "
        "INSERT INTO logbook_fts(logbook_fts, rowid, search_text) "
        "VALUES ('delete', old.id, old.search_text); END",
        "CREATE TRIGGER logbook_fts_update AFTER UPDATE OF search_text ON logbook_entries "
        "WHEN new.search_text IS NOT old.search_text BEGIN "
        "INSERT INTO logbook_fts(logbook_fts, rowid, search_text) "
        "VALUES ('delete', old.id, old.search_text); "
        "INSERT INTO logbook_fts(rowid, search_text) VALUES (new.id, new.search_text); END",
    ),
    "postgresql": (
        "ALTER TABLE logbook_entries ADD COLUMN search_vector tsvector GENERATED ALWAYS AS (to_tsvector('simple', "
        f"translate(coalesce(search_text, ''), '{_QUOTED}', '{' ' * len(_PUNCTUATION)}'))) STORED",
        "CREATE INDEX idx_logbook_entries_search ON logbook_entries USING gin (search_vector)",
    ),
}
