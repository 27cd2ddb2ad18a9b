"""Which document serves a run, against a tournament of all documents against all."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nightbeam.calib.compute import choose_all, choose_document, newest_of_each

pytestmark = pytest.mark.slow

# Few values, so that ties of every kind are common.
RUNS = st.integers(0, 12) | st.sampled_from([9998, 9999])
ENDS = RUNS | RUNS.map(str) | st.just("end") | st.sampled_from([10000, "10000", "", None, "later", -1, 5.5, True])
SECONDS = st.integers(1_700_000_000, 1_700_000_003)


@st.composite
def documents(draw: st.DrawFn) -> list[dict[str, Any]]:
    found = draw(
        st.lists(
            st.tuples(RUNS | st.sampled_from([10000, "3", None]), ENDS, SECONDS, st.sampled_from("abc")), max_size=9
        )
    )
    return [
        {"_id": f"{made:08x}{number:016x}", "run": run, "run_end": end, "ctype": ctype}
        for number, (run, end, made, ctype) in enumerate(found)
    ]


def last_run(document: dict[str, Any]) -> int | None:
    """The spec's sentence, word by word: a number up to 9999 (also printed) or 'end'."""
    end = document["run_end"]
    if end == "end":
        return 9999
    if isinstance(end, str):
        return int(end) if end.isdecimal() and int(end) <= 9999 else None
    return end if type(end) is int and end <= 9999 else None


def beats(a: tuple[int, dict[str, Any]], b: tuple[int, dict[str, Any]]) -> bool:
    """Whether a is to be preferred; both are candidates, numbered as in the answer."""
    (place_a, left), (place_b, right) = a, b
    if left["run"] != right["run"]:
        return bool(left["run"] > right["run"])
    if last_run(left) != last_run(right):
        return bool(last_run(left) < last_run(right))  # type: ignore[operator]
    made_a, made_b = int(left["_id"][:8], 16), int(right["_id"][:8], 16)
    if made_a != made_b:
        return made_a > made_b
    return place_a > place_b


def oracle(found: list[dict[str, Any]], run: int) -> dict[str, Any] | None:
    numbered = []
    for place, document in enumerate(found):
        end = last_run(document)
        if type(document["run"]) is int and document["run"] <= 9999 and end is not None:  # noqa: SIM102
            if document["run"] <= run <= end:
                numbered.append((place, document))
    winners = [a for a in numbered if all(a is b or beats(a, b) for b in numbered)]
    assert len(winners) <= 1
    return winners[0][1] if winners else None


@settings(max_examples=300)
@given(documents(), st.integers(0, 13) | st.sampled_from([9999, 10000]))
def test_the_document_of_a_run_is_the_one_that_no_other_beats(found: list[dict[str, Any]], run: int):
    assert choose_document(found, run) is oracle(found, run)


@given(documents(), st.integers(0, 13))
def test_kinds_do_not_mix_and_kinds_without_a_document_are_left_out(found: list[dict[str, Any]], run: int):
    wanted = {ctype: oracle([d for d in found if d["ctype"] == ctype], run) for ctype in "abc"}
    assert choose_all(found, run) == {ctype: document for ctype, document in wanted.items() if document}


@given(documents(), st.integers(0, 13))
def test_documents_that_serve_other_runs_change_nothing(found: list[dict[str, Any]], run: int):
    others = [{"_id": "f" * 24, "run": run + 1, "run_end": "end", "ctype": "a"}]
    if run:
        others.append({"_id": "f" * 24, "run": 0, "run_end": run - 1, "ctype": "a"})
    assert choose_document([*found, *others], run) is choose_document(found, run)


@given(documents())
def test_the_newest_of_each_kind_is_older_than_none_of_its_kind(found: list[dict[str, Any]]):
    newest = newest_of_each(found)
    whole = [d for d in found if type(d["run"]) is int]
    assert set(newest) == {d["ctype"] for d in whole}
    for document in whole:
        assert newest[document["ctype"]]["_id"][:8] >= document["_id"][:8]
