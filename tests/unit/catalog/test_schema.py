"""The tables keep the older pipeline's columns, and the reference names every column."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nightbeam.catalog import schema

TABLES = [
    table
    for base in (schema.QueueBase, schema.RegistryBase, schema.ProductsBase)
    for table in base.metadata.sorted_tables
]

#: As the older pipeline makes them: names in order, and SQLite types.
OLDER = {
    "ingest_queue": "group_id TEXT, state TEXT, received_at REAL, last_update REAL, expected_subbands INTEGER, "
    "retry_count INTEGER, error TEXT, checkpoint_path TEXT, processing_stage TEXT, chunk_minutes REAL, "
    "has_calibrator INTEGER, calibrators TEXT",
    "subband_files": "group_id TEXT, subband_idx INTEGER, path TEXT",
    "performance_metrics": "group_id TEXT, load_time REAL, phase_time REAL, write_time REAL, total_time REAL, "
    "writer_type TEXT, recorded_at REAL",
    "caltables": "id INTEGER, set_name TEXT, path TEXT, table_type TEXT, order_index INTEGER, cal_field TEXT, "
    "refant TEXT, created_at REAL, valid_start_mjd REAL, valid_end_mjd REAL, status TEXT, notes TEXT",
    "ms_index": "path TEXT, start_mjd REAL, end_mjd REAL, mid_mjd REAL, processed_at REAL, status TEXT, stage TEXT, "
    "stage_updated_at REAL, cal_applied INTEGER, imagename TEXT",
    "images": "id INTEGER, path TEXT, ms_path TEXT, created_at REAL, type TEXT, beam_major_arcsec REAL, "
    "noise_jy REAL, pbcor INTEGER",
    "mosaics": "id INTEGER, name TEXT, created_at REAL, status TEXT, method TEXT, tiles TEXT, output_path TEXT",
    "qa_artifacts": "group_id TEXT, name TEXT, path TEXT, created_at REAL",
}


@pytest.mark.parametrize("name", sorted(OLDER))
def test_the_first_columns_are_those_that_people_know(name: str):
    from sqlalchemy.dialects import sqlite

    (table,) = [t for t in TABLES if t.name == name]
    found = [f"{c.name} {c.type.compile(dialect=sqlite.dialect())}" for c in table.columns]
    wanted = OLDER[name].split(", ")
    assert found[: len(wanted)] == wanted


@pytest.mark.parametrize("table", TABLES, ids=lambda t: t.name)
def test_the_reference_names_every_column(table, root: Path):
    page = (root / "docs" / "reference" / "databases.md").read_text()
    assert f"`{table.name}`" in page
    named = set(re.findall(r"`(\w+)`", page))
    assert {c.name for c in table.columns} <= named
