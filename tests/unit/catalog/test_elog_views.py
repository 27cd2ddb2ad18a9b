"""The views give what the tool in use before would have stored; the truth is worked out here, not by our code."""

from __future__ import annotations

import math
import random
import re
from datetime import datetime
from typing import Any

import pytest

from nightbeam.catalog import Logbook
from nightbeam.catalog.elog_schema import VIEWS

X = "mfx100012325"

#: Names and columns of the tool in use before; those with a star were keys there.
COLUMNS = {
    "Experiment": "experiment_id name instrument start_time end_time pi pi_email leader_account description "
    "slack_channels analysis_queues urawi_proposal",
    "Run": "run_id run_number experiment_id start_time end_time",
    "RunProductionData": "run_data_id run_id n_events n_damaged n_dropped prod_start prod_end number_of_files "
    "total_size_bytes",
    "Detector": "detector_id detector_name description",
    "RunDetector": "run_id detector_id status",
    "Logbook": "log_id experiment_id run_id timestamp content tags author",
    "Questionnaire": "experiment_id proposal category field_id field_name field_value modified_time modified_uid "
    "created_time",
    "Workflow": "workflow_id experiment_id mongo_id name executable trigger location parameters run_param_name "
    "run_param_value run_as_user",
    "RunCompleteData": "run_id run_number experiment_id start_time end_time n_events n_damaged n_dropped prod_start "
    "prod_end number_of_files total_size_bytes",
    "run_parameters": "experiment_id run_number name type number text",
}


@pytest.fixture
def logbook(logbook_url: str) -> Logbook:
    made = Logbook(logbook_url)
    for key in (X, "cxilw4021"):
        made.put_experiment(
            {
                "_id": key,
                "name": key,
                "instrument": key[:3].upper(),
                "description": "Time-resolved study",
                "start_time": "2026-02-01T17:00:00+00:00",
                "end_time": "2026-02-06T17:00:00+00:00",
                "leader_account": "jdoe",
                "contact_info": "Jane Doe (jane@example.org)",
                "params": {"PNR": "L-10001", "slack_channels": "#mfx", "analysis_queues": "milano"},
            }
        )
    return made


def query(logbook: Logbook, text: str) -> list[tuple[Any, ...]]:
    """As people type it, in whatever case."""
    with logbook.database.read() as connection:
        return [tuple(row) for row in connection.exec_driver_sql(text)]


def test_names_and_columns_are_those_that_queries_use(logbook: Logbook):
    assert {view.name: " ".join(view.columns) for view in VIEWS} == COLUMNS
    for name, columns in COLUMNS.items():
        with logbook.database.read() as connection:
            found = connection.exec_driver_sql(f"SELECT * FROM {name}")
            assert " ".join(found.keys()) == columns


def test_an_experiment_is_as_it_was(logbook: Logbook):
    assert query(logbook, f"SELECT * FROM Experiment WHERE experiment_id = '{X}'") == [
        (
            X,
            X,
            "MFX",
            "2026-02-01T17:00:00+00:00",
            "2026-02-06T17:00:00+00:00",
            "Jane Doe",
            "jane@example.org",
            "jdoe",
            "Time-resolved study",
            "#mfx",
            "milano",
            "L-10001",
        )
    ]


RUNS = [
    {
        "num": 1,
        "begin_time": "2026-02-03T04:00:00.120000+00:00",
        "end_time": "2026-02-03T04:05:00+00:00",
        "params": {
            "DAQ Detectors/A": True,
            "DAQ Detectors/B": False,
            "DAQ Detector Totals/Events": 36210,
            "DAQ Detector Totals/Damaged": 3,
            "N dropped Shots": 12,
            "Prod_start": "2026-02-03 04:20:00",
            "Prod_end": "2026-02-03 04:31:00",
        },
    },
    {"num": 2, "begin_time": "2026-02-03T05:00:00+00:00", "end_time": None, "params": {"DAQ Detectors/C": True}},
    {"num": 7, "begin_time": "2026-02-03T06:00:00Z"},
]


def test_runs_have_their_times_numbers_and_files(logbook: Logbook):
    logbook.put_runs(X, RUNS)
    logbook.put_runs("cxilw4021", RUNS[1:])
    files = [
        {"path": f"/{n}", "run_num": run, "size": size}
        for n, (run, size) in enumerate([(1, 5), (1, 2**40), (2, None), (9, 1)])
    ]
    logbook.put_files(X, files)
    complete = query(logbook, f"SELECT * FROM RunCompleteData WHERE experiment_id = '{X}' ORDER BY run_number")
    assert [row[1:] for row in complete] == [
        (
            1,
            X,
            "2026-02-03 04:00:00.120000",
            "2026-02-03 04:05:00",
            36210,
            3,
            12,
            "2026-02-03 04:20:00",
            "2026-02-03 04:31:00",
            2,
            2**40 + 5,
        ),
        (2, X, "2026-02-03 05:00:00", None, None, None, None, None, None, 1, 0),
        (7, X, "2026-02-03 06:00:00", None, None, None, None, None, None, 0, 0),
    ]
    # Where the files were never read, it is not known that there are none.
    joined = (
        "SELECT r.run_number, p.number_of_files, p.total_size_bytes FROM Run r JOIN RunProductionData p "
        "ON p.run_id = r.run_id WHERE r.experiment_id = 'cxilw4021' ORDER BY r.run_number"
    )
    assert query(logbook, joined) == [(2, None, None), (7, None, None)]
    assert query(logbook, "SELECT count(*), count(DISTINCT run_data_id) FROM RunProductionData") == [(5, 5)]
    datetime.strptime(complete[0][3], "%Y-%m-%d %H:%M:%S.%f")  # as people parse it


def test_every_detector_of_an_experiment_is_checked_or_unchecked_in_each_run(logbook: Logbook):
    logbook.put_runs(X, RUNS)
    logbook.put_runs("cxilw4021", [RUNS[1]])
    names = "SELECT r.experiment_id, r.run_number, d.detector_name, s.status FROM RunDetector s JOIN Run r ON "
    names += "r.run_id = s.run_id JOIN Detector d ON d.detector_id = s.detector_id"
    truth = {
        (X, number, f"DAQ Detectors/{name}", "Checked" if (number, name) in {(1, "A"), (2, "C")} else "Unchecked")
        for number in (1, 2, 7)
        for name in "ABC"
    }
    truth.add(("cxilw4021", 2, "DAQ Detectors/C", "Checked"))
    found = query(logbook, names)
    assert len(found) == len(truth)
    assert set(found) == truth
    # A run that the service has no more takes its detectors with it; their numbers stay.
    before = query(logbook, "SELECT * FROM Detector ORDER BY detector_id")
    logbook.put_runs(X, RUNS[1:])
    assert {row[2] for row in query(logbook, names)} == {"DAQ Detectors/C"}
    assert query(logbook, "SELECT * FROM Detector ORDER BY detector_id") == before


def as_the_tool_did(documents: list[dict[str, Any]], numbers: set[int]) -> dict[str, int | None]:
    """Its guess of each entry's run: the latest that was named or reported to have started."""
    latest, guesses = None, {}
    for document in sorted(documents, key=lambda d: (d["insert_time"], d["_id"])):
        started = re.search(r"Run number (\d+): Running", document["content"])
        if document.get("run_num") is not None:
            latest = document["run_num"]
        elif started:
            latest = int(started[1])
        guesses[document["_id"]] = latest if latest in numbers else None
    return guesses


@pytest.mark.parametrize("seed", range(5))
def test_entries_get_the_run_that_was_guessed_for_them(logbook: Logbook, seed: int):
    dice = random.Random(seed)
    numbers = dice.sample(range(1, 12), 6)
    logbook.put_runs(X, [{"num": number} for number in numbers])
    documents = []
    for n in range(60):
        document: dict[str, Any] = {
            "_id": f"{n:024x}",
            "insert_time": f"2026-02-03T04:{dice.randrange(60):02d}:00" + dice.choice(["", ".250000"]) + "+00:00",
            "content": dice.choice(["jet", f"Run number {dice.randrange(12)}: Running DARK"]),
            "author": f"user{n}",
        }
        if dice.random() < 0.2:
            document["run_num"] = dice.randrange(12)
        if dice.random() < 0.2:
            document |= {"deleted_by": "x", "deleted_time": "2026-02-03T05:00:00+00:00"}
        if dice.random() < 0.5:
            document["tags"] = dice.sample(["DARK", "jet", "LCLS,odd"], dice.randrange(3))
        documents.append(document)
    dice.shuffle(documents)
    logbook.put_entries(X, documents, full=True)
    logbook.put_entries("cxilw4021", documents[:5], full=True)
    guesses = as_the_tool_did(documents, set(numbers))
    truth = {
        (d["author"], guesses[d["_id"]], d["insert_time"], d["content"], ",".join(d.get("tags", [])))
        for d in documents
        if "deleted_by" not in d
    }
    found = query(
        logbook,
        f"""SELECT l.author, r.run_number, l."timestamp", l.content, l.tags FROM Logbook l
        LEFT JOIN Run r ON r.run_id = l.run_id AND r.experiment_id = l.experiment_id WHERE l.experiment_id = '{X}'""",
    )
    assert len(found) == len(truth)
    assert set(found) == truth
    elsewhere = query(logbook, "SELECT run_id FROM Logbook WHERE experiment_id = 'cxilw4021'")
    assert set(elsewhere) <= {(None,)}  # it has no runs


def test_questionnaires_and_workflows_are_as_they_were(logbook: Logbook):
    field = {"id": "xray-energy-1", "val": "9.5", "modified_time": "Feb/03/2026 04:05:06", "modified_uid": "jdoe"}
    logbook.put_questionnaire(X, {"xray": [field], "odd": [{"id": "other-name", "val": ""}]}, proposal="L-10001")
    assert query(logbook, "SELECT * FROM questionnaire ORDER BY field_id") == [
        (X, "L-10001", "odd", "other-name", "other-name", "", None, None, None),
        (X, "L-10001", "xray", "xray-energy-1", "energy-1", "9.5", "Feb/03/2026 04:05:06", "jdoe", None),
    ]
    definition = {
        "_id": "67a0",
        "name": "#smd",
        "executable": "/sdf/submit.sh",
        "parameters": '--queue "milano"',
        "trigger": "RUN_PARAM_IS_VALUE",
        "location": "S3DF",
        "run_as_user": "jdoe",
        "run_param_name": "Calibrations/dark",
    }
    spelt = [{"run_param_value": "true"}, {"run_param_val": "false"}, {"run_param_val": 5}]
    logbook.put_workflows(X, [definition | more | {"_id": f"67a{n}"} for n, more in enumerate(spelt)])
    found = query(logbook, "SELECT * FROM Workflow ORDER BY mongo_id")
    assert found[0][1:] == (
        X,
        "67a0",
        "#smd",
        "/sdf/submit.sh",
        "RUN_PARAM_IS_VALUE",
        "S3DF",
        '"--queue \\"milano\\""',
        "Calibrations/dark",
        "true",
        "jdoe",
    )
    assert [row[9] for row in found] == ["true", "false", None]


def test_parameters_of_runs_have_types(logbook: Logbook):
    params = {
        "text": "1.5000",
        "int": 36210,
        "large": 2**62,
        "float": 0.25,
        "whole": 3.0,
        "exponent": 1e300,
        "yes": True,
        "no": False,
        "nan": math.nan,
        "inf": math.inf,
        "minus": -math.inf,
        "none": None,
        "list": [1, {"$number": "NaN"}],
        "object": {"$number": "NaN"},
        "MFX:GON:TT\uff0eFLTPOS": "NaN",
        "quote \"'": "é",
        "huge": 10**400,
    }
    logbook.put_runs(X, [{"num": 32, "params": params}, {"num": 33, "params": {}}, {"num": 34}])
    found = {row[2]: row[3:] for row in query(logbook, f"SELECT * FROM run_parameters WHERE experiment_id = '{X}'")}
    huge = found.pop("huge")
    assert huge[0] == "int"  # too large for a number of either database
    assert huge[1] in (None, math.inf)
    assert found == {
        "text": ("text", None, "1.5000"),
        "int": ("int", 36210, None),
        "large": ("int", 2**62, None),
        "float": ("float", 0.25, None),
        "whole": ("float", 3.0, None),
        "exponent": ("float", 1e300, None),
        "yes": ("bool", 1, None),
        "no": ("bool", 0, None),
        "nan": ("float", None, "NaN"),
        "inf": ("float", math.inf, "Infinity"),
        "minus": ("float", -math.inf, "-Infinity"),
        "none": ("null", None, None),
        "list": ("json", None, '[1,{"$$number":"NaN"}]'),
        "object": ("json", None, '{"$$number":"NaN"}'),
        "MFX:GON:TT\uff0eFLTPOS": ("text", None, "NaN"),
        "quote \"'": ("text", None, "é"),
    }


def test_what_the_service_has_no_more_is_not_shown(logbook: Logbook):
    logbook.put_runs(X, RUNS)
    logbook.put_workflows(X, [{"_id": "a"}])
    logbook.put_questionnaire(X, {"xray": [{"id": "xray-a", "val": "1"}]})
    logbook.put_entries(X, [{"_id": "e", "content": "x"}], full=True)
    names = ("Run", "RunProductionData", "RunDetector", "RunCompleteData", "run_parameters", "Workflow")
    names += ("Questionnaire", "Logbook")
    assert all(query(logbook, f"SELECT 1 FROM {name}") for name in names)
    logbook.put_runs(X, [])
    logbook.put_workflows(X, [])
    logbook.put_questionnaire(X, {})
    logbook.put_entries(X, [], full=True)
    assert [name for name in names if query(logbook, f"SELECT 1 FROM {name}")] == []
    logbook.mark(X, "gone")
    assert len(query(logbook, "SELECT * FROM Experiment")) == 2


def test_odd_values_do_not_break_a_view(logbook: Logbook):
    odd = [
        {"num": n, "params": p, "begin_time": b}
        for n, (p, b) in enumerate([(None, 5), ("x", None), ([1], ""), ({}, "T")])
    ]
    logbook.put_runs(X, odd)
    logbook.put_entries(X, [{"_id": "a", "tags": "x", "insert_time": None}, {"_id": "b", "tags": [1, None]}], full=True)
    logbook.put_files(X, [{"path": str(n), "run_num": 1, "size": 2**63 - 1} for n in range(3)])
    logbook.put_workflows(X, [{"_id": "w", "parameters": {"a": math.nan}, "run_param_val": ["x"]}])
    for name in COLUMNS:
        assert isinstance(query(logbook, f"SELECT * FROM {name}"), list)
    assert [row[0] for row in query(logbook, "SELECT tags FROM Logbook ORDER BY log_id")] == ["", "1"]


def test_views_of_many_experiments_keep_them_apart(logbook: Logbook):
    for n in range(20):
        key = f"xpp{n:05d}"
        logbook.put_experiment({"_id": key, "name": key})
        logbook.put_runs(
            key, [{"num": k, "params": {f"DAQ Detectors/{d}": True for d in range(9)}} for k in range(1, 51)]
        )
        entries = [
            {"_id": f"{k}", "insert_time": f"2026-02-03T04:{k // 60:02d}:{k % 60:02d}+00:00"} for k in range(200)
        ]
        entries[0]["run_num"] = 1  # type: ignore[assignment]
        logbook.put_entries(key, entries, full=True)
    assert query(logbook, "SELECT count(*) FROM RunDetector WHERE status = 'Checked'") == [(9000,)]
    assert query(logbook, "SELECT count(*), count(run_id) FROM Logbook") == [(4000, 4000)]
    for name in ("Run", "RunCompleteData", "run_parameters"):
        assert query(logbook, f"SELECT count(*) FROM {name} WHERE experiment_id = 'xpp00003'")[0][0] in (50, 450)
