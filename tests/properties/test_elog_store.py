"""Whatever the service says, the mirror says it again; however it was said, the rows are the same."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from nightbeam.catalog import Change, Logbook
from nightbeam.elog import compute
from nightbeam.elog.model import Resource

pytestmark = pytest.mark.slow

# Also NUL, lone surrogates, and what the store escapes with.
TEXT = st.text(st.characters(exclude_categories=()) | st.sampled_from("\0\ud83d\ude00\U000f0000$<&\"'0d"), max_size=12)
KEYS = TEXT | st.sampled_from(["$number", "$$number", "extra", "id", "digest"])
NUMBERS = st.integers(-(2**70), 2**70) | st.floats(allow_nan=True, allow_infinity=True)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)
PUTS: dict[Resource, tuple[str, ...]] = {
    Resource.ENTRIES: (
        "content",
        "title",
        "tags",
        "run_num",
        "insert_time",
        "relevance_time",
        "parent",
        "attachments",
        "deleted_by",
        "deleted_time",
        "author",
        "email_to",
        "previous_version",
        "src_id",
    ),
    Resource.RUNS: ("_id", "type", "begin_time", "end_time", "params", "sample", "editable_params"),
    Resource.FILES: ("_id", "size", "gen", "checksum", "create_timestamp", "locations", "absolute_path"),
    Resource.WORKFLOWS: ("name", "trigger", "parameters", "run_param_value", "run_param_val"),
    Resource.JOBS: ("run_num", "def_id", "status", "counters", "tool_id", "submit_time"),
}
#: One mirror for all examples: each has an experiment of its own.
NAMES = map("x{}".format, itertools.count())
LAW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def documents(draw: st.DrawFn, resource: Resource) -> dict[str, Any]:
    likely = {
        "params": st.dictionaries(KEYS | st.just("DAQ Detectors/A"), VALUES, max_size=4),
        "tags": st.lists(TEXT, max_size=3),
        "run_num": st.integers(0, 5),
        "attachments": st.lists(st.fixed_dictionaries({"_id": st.sampled_from("ab"), "name": VALUES}), max_size=3),
        "size": st.integers(0, 2**64),
    }
    known = {name: likely.get(name, TEXT) | VALUES for name in PUTS[resource]}
    document = draw(st.fixed_dictionaries({}, optional=known)) | draw(st.dictionaries(KEYS, VALUES, max_size=2))
    if resource is Resource.RUNS:
        return document | {"num": draw(st.integers(0, 6)), "params": draw(known["params"])}
    if resource is Resource.FILES:
        run = draw(st.sampled_from([{}, {"run_num": None}, {"run_num": 1}, {"run_num": "1"}, {"run_num": 2}]))
        return {k: v for k, v in document.items() if k != "run_num"} | run | {"path": draw(TEXT)}
    return document | {"_id": draw(TEXT.filter(bool) | st.sampled_from("abcd"))}


def put(logbook: Logbook, resource: Resource, key: str, found: list[dict[str, Any]], *, full: bool = True) -> Change:
    if resource is Resource.ENTRIES:
        return logbook.put_entries(key, found, full=full)
    if resource in (Resource.RUNS, Resource.FILES):
        return (logbook.put_runs if resource is Resource.RUNS else logbook.put_files)(key, found, full=full)
    return (logbook.put_workflows if resource is Resource.WORKFLOWS else logbook.put_jobs)(key, found)


def identity(resource: Resource, document: dict[str, Any]) -> Any:
    if resource is Resource.RUNS:
        return document["num"]
    if resource is Resource.FILES:
        run = document.get("run_num")
        return (None if run is None else int(run)), document["path"]
    return document["_id"]


def said(found: Any) -> Any:
    """What tells NaN from None, 1 from True and 1.0, and lone surrogates from a character."""
    return sorted(json.dumps(document, sort_keys=True, ensure_ascii=False) for document in found)


@pytest.fixture
def logbook(logbook_url: str) -> Logbook:
    return Logbook(logbook_url)


def new_experiment(logbook: Logbook) -> str:
    key = next(NAMES)
    logbook.put_experiment({"_id": key, "name": key})
    return key


@LAW
@given(st.data())
def test_every_document_comes_back_as_it_was(logbook: Logbook, data: st.DataObject):
    resource = data.draw(st.sampled_from(list(PUTS)))
    found = data.draw(st.lists(documents(resource), max_size=4))
    last = {identity(resource, document): document for document in found}
    key = new_experiment(logbook)
    assert put(logbook, resource, key, found) == Change(new=len(last))
    assert said(logbook.documents(resource, key)) == said(last.values())
    for name, document in last.items():
        assert said([logbook.document(resource, key, name)]) == said([document])
    assert put(logbook, resource, key, found) == Change(same=len(last))


@LAW
@given(st.dictionaries(KEYS, VALUES, max_size=4))
def test_a_questionnaire_comes_back_as_it_was(logbook: Logbook, document: dict[str, Any]):
    key = new_experiment(logbook)
    logbook.put_questionnaire(key, document)
    assert said(logbook.documents(Resource.QUESTIONNAIRE, key)) == said([document] if document else [])
    assert logbook.put_questionnaire(key, document).written == 0


@LAW
@given(st.dictionaries(KEYS, VALUES, max_size=4), st.booleans())
def test_an_experiment_comes_back_as_it_was(logbook: Logbook, more: dict[str, Any], in_list: bool):
    key = next(NAMES)
    document = {**more, "_id": key, "name": key}
    assume("params" not in document)
    given_as = compute.summary_of(document) if in_list else document
    assert logbook.put_experiment(given_as) == Change(new=1)
    assert said([logbook.document(Resource.INFO, key)]) == said([document])
    assert logbook.put_experiment(given_as) == Change(same=1)


@settings(LAW, max_examples=25)
@given(st.data())
def test_any_order_and_repetition_of_parts_gives_the_same_rows(logbook: Logbook, data: st.DataObject):
    resource = data.draw(st.sampled_from([Resource.ENTRIES, Resource.RUNS, Resource.FILES]))
    found = data.draw(st.lists(documents(resource), max_size=6, unique_by=lambda d: repr(identity(resource, d))))
    one, other = new_experiment(logbook), new_experiment(logbook)
    put(logbook, resource, one, found)
    parts = data.draw(st.lists(st.sampled_from(found), max_size=12)) if found else []
    parts += data.draw(st.permutations(found))
    while parts:
        size = data.draw(st.integers(1, len(parts)))
        put(logbook, resource, other, parts[:size], full=False)
        parts = parts[size:]
    assert rows(logbook, resource, one) == rows(logbook, resource, other)
    assert put(logbook, resource, other, found) == Change(same=len(found))


def rows(logbook: Logbook, resource: Resource, key: str) -> list[str]:
    table = "logbook_entries" if resource is Resource.ENTRIES else resource.value
    own = ("id", "experiment", "experiment_id", "first_seen", "changed_at")
    found = [{k: v for k, v in row.items() if k not in own} for row in logbook.rows(table, experiment=key)]
    return sorted(json.dumps(row, sort_keys=True, ensure_ascii=False) for row in found)


@LAW
@given(st.data())
def test_after_any_history_the_mirror_is_the_last_answer_and_has_lost_nothing(logbook: Logbook, data: st.DataObject):
    number = st.integers(0, 5)
    answers = data.draw(st.lists(st.dictionaries(number, st.sampled_from("abc"), max_size=5), min_size=1, max_size=5))
    key = new_experiment(logbook)
    ever: dict[int, str] = {}
    there: set[int] = set()
    for answer in answers:
        full = data.draw(st.booleans())
        found = [{"_id": str(n), "content": content} for n, content in answer.items()]
        change = put(logbook, Resource.ENTRIES, key, found, full=full)
        changed = {n for n in answer if n in there and ever[n] != answer[n]}
        assert change == Change(
            new=len(answer.keys() - ever.keys()),
            changed=len(changed),
            same=len((answer.keys() & there) - changed),
            missing=len(there - answer.keys()) if full else 0,
            back=len((answer.keys() & ever.keys()) - there),
        )
        ever |= answer
        there = set(answer) if full else there | set(answer)
    assert {int(d["_id"]) for d in logbook.documents("elog", key)} == there
    assert {int(d["_id"]): d["content"] for d in logbook.documents("elog", key, missing=True)} == ever


WORDS = st.sampled_from(["jet", "jets", "nozzle", "r0032", "9", "größe"])


@LAW
@given(
    st.lists(st.lists(WORDS, max_size=5), max_size=4), st.lists(WORDS, min_size=1, max_size=3), st.sampled_from("pbw")
)
def test_a_search_finds_just_the_entries_that_have_the_words(
    logbook: Logbook, texts: list[list[str]], asked: list[str], kind: str
):
    key = new_experiment(logbook)
    put(logbook, Resource.ENTRIES, key, [{"_id": str(n), "content": " - ".join(t)} for n, t in enumerate(texts)])
    line = "".join(f"/{word}" for word in asked)
    truth = {
        "p": (f'"{" ".join(asked)}"', [n for n, t in enumerate(texts) if line + "/" in "/" + "/".join(t) + "/"]),
        "b": (f"{asked[0]}*", [n for n, t in enumerate(texts) if any(word.startswith(asked[0]) for word in t)]),
        "w": (" ".join(asked), [n for n, t in enumerate(texts) if set(asked) <= set(t)]),
    }
    text, wanted = truth[kind]
    assert sorted(int(hit.entry_id) for hit in logbook.search(text, experiment=key)) == wanted


@LAW
@given(TEXT | st.text("\"'*()-:^+{}&|!<>\\ ANDORNEARjet", max_size=30), TEXT)
def test_no_text_is_a_wrong_question(logbook: Logbook, asked: str, content: str):
    key = new_experiment(logbook)
    put(logbook, Resource.ENTRIES, key, [{"_id": "a", "content": content}])
    assert len(logbook.search(asked, experiment=key)) <= 1


# -- without a database -------------------------------------------------------------------------------------------


@given(TEXT)
def test_text_is_borne_by_every_database_and_comes_back(text: str):
    stored = compute.encode_text(text)
    stored.encode()  # no lone surrogate
    assert "\0" not in stored
    assert compute.decode_text(stored) == text


@given(VALUES)
def test_json_is_strict_and_comes_back(value: Any):
    stored = compute.dump_json(value)
    stored.encode()
    assert not re.search(r"\\u0000", stored.replace("\\\\", ""))
    json.loads(stored, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert said([compute.load_json(stored)]) == said([value])
    assert compute.loads(compute.canonical(value).decode("utf-8", "surrogatepass")) is not Ellipsis


@given(st.text(st.sampled_from("<>/!-&#;pbscriptx \n\"'=0"), max_size=60), TEXT)
def test_no_content_is_too_odd_to_be_read(content: str, more: str):
    for title in ("T", None):
        text = compute.plain_text(content + more, title)
        text.encode()
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]|  |\n\n", text)
        assert compute.tidy(text) == text


def test_the_file_of_a_mirror_is_whole_after_all_of_it(tmp_path: Path):
    logbook = Logbook(f"sqlite:///{tmp_path}/elog.db")
    key = new_experiment(logbook)
    put(logbook, Resource.ENTRIES, key, [{"_id": str(n), "content": f"word{n}"} for n in range(50)])
    put(logbook, Resource.ENTRIES, key, [{"_id": str(n), "content": f"other{n}"} for n in range(25)])
    assert logbook.problems() == []
