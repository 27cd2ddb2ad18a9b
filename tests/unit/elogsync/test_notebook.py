"""The example notebook: its cells run, one after the other, on a mirror and on a snapshot of it."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest

from nightbeam.elogsync.files import publish

NOTEBOOK = Path(__file__).resolve().parents[3] / "examples" / "logbook_mirror.ipynb"
CELLS = json.loads(NOTEBOOK.read_text())["cells"]


def test_it_is_a_notebook_without_outputs():
    whole = json.loads(NOTEBOOK.read_text())
    assert (whole["nbformat"], whole["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in CELLS}) == len(CELLS)
    for cell in CELLS:
        assert cell["cell_type"] in ("markdown", "code")
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None


@pytest.mark.slow
@pytest.mark.parametrize("of", ["mirror", "snapshot"])
def test_its_cells_run_and_show_what_is_there(of, run, fake, book, tmp_path, monkeypatch, capsys):
    fake.populate(2, 15, 6, 12, parameters=30, seed=3, odd=0.3)
    busiest = fake.experiments[0]
    fake.start_run(busiest, params={"MFX:DIA:MMS:001": 1.5})
    fake.post(busiest, "<p>the jet <b>restarted</b></p>", author="zoë", title="Jet")
    hidden = fake.post(busiest, "jet restarted, no it did not")
    fake.delete_entry(busiest, hidden["_id"])
    assert run().failed == ()
    file = book.database.file if of == "mirror" else publish(book, tmp_path / "published").path
    monkeypatch.setenv("ELOG_MIRROR", str(file))
    names: dict[str, object] = {}
    for cell in CELLS:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
    shown = capsys.readouterr().out
    assert all(experiment in shown for experiment in fake.experiments)
    assert names["experiment"] == busiest
    assert len(names["entries"]) == len(names_of_visible(fake, busiest))
    assert "| Jet / the jet restarted" in shown
    assert "it did not" not in shown
    assert [row["run_number"] for row in names["produced"]] == sorted(fake.truth(busiest).runs)
    assert "questionnaire  ok" in shown


def names_of_visible(fake, experiment):
    found = fake.truth(experiment).entries.values()
    return [entry["_id"] for entry in found if "deleted_by" not in entry]


def test_it_cannot_write(run, fake, book, monkeypatch):
    fake.populate(1, 2, 1, 1, seed=1)
    run()
    monkeypatch.setenv("ELOG_MIRROR", str(book.database.file))
    names: dict[str, object] = {}
    exec("".join(next(cell["source"] for cell in CELLS if cell["id"] == "open")), names)
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        names["mirror"].execute("DELETE FROM runs")
    names["mirror"].close()
