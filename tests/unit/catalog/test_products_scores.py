"""Scores and figures of groups and mosaics: replaced as a whole, read the worst first."""

from __future__ import annotations

import math
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from nightbeam.catalog import Products
from nightbeam.core.errors import UsageError


@dataclass
class Said:
    name: str
    verdict: str
    score: float | None
    value: float | None = 1.0
    unit: str | None = ""
    reason: str | None = "because"


@pytest.fixture
def products(database_url: str) -> Products:
    return Products(database_url)


def names(products: Products, *of: str, **which: str) -> list[str]:
    return [row.name for row in products.scores(*of, **which)]


def test_new_scores_take_the_place_of_all_that_a_group_had_and_touch_no_other(products: Products):
    products.put_scores("group", "g", [Said("noise", "good", 0.9), Said("flux", "bad", 0.0)], now=1.0)
    products.put_scores("mosaic", "g", [Said("noise", "warn", 0.3)], now=1.0)
    products.put_scores("group", "h", [Said("noise", "good", 0.8)], now=1.0)
    products.put_scores("group", "g", [Said("noise", "warn", 0.4, 3.0, "mJy/beam", "loud")], now=2.0)
    (row,) = products.scores("group", "g")
    assert (row.kind, row.subject, row.name, row.value, row.unit) == ("group", "g", "noise", 3.0, "mJy/beam")
    assert (row.score, row.verdict, row.reason, row.created_at) == (0.4, "warn", "loud", 2.0)
    assert names(products, "mosaic") == ["noise"]
    assert names(products, "group", "h") == ["noise"]
    products.put_scores("group", "g", [])
    assert products.scores("group", "g") == []


def test_the_worst_comes_first_and_what_is_unknown_before_what_is_good(products: Products):
    said = [
        Said("fine", "good", 0.6), Said("best", "good", 1.0), Said("lost", "unknown", None),
        Said("odd", "warn", 0.4), Said("odder", "warn", 0.1), Said("wrong", "bad", 0.0),
    ]  # fmt: skip
    products.put_scores("group", "g", said)
    assert names(products) == ["wrong", "odder", "odd", "lost", "fine", "best"]
    assert names(products, verdict="warn") == ["odder", "odd"]
    assert len(products.scores(limit=2)) == 2


def test_of_several_what_was_judged_last_comes_first(products: Products):
    products.put_scores("group", "old", [Said("a", "bad", 0.0)], now=1.0)
    products.put_scores("mosaic", "new", [Said("b", "good", 1.0), Said("c", "warn", 0.4)], now=2.0)
    assert names(products) == ["c", "b", "a"]
    assert names(products, "group") == ["a"]


def test_what_is_not_a_number_is_kept_as_nothing(products: Products):
    products.put_scores("group", "g", [Said("noise", "unknown", math.nan, math.inf)])
    (row,) = products.scores()
    assert (row.value, row.score, row.unit) == (None, None, None)


@pytest.mark.parametrize(
    ("kind", "said", "match"),
    [
        ("night", [], "scores of a 'night'"),
        ("group", [Said("a", "good", 1.0), Said("a", "bad", 0.0)], "two scores named a"),
        ("group", [Said("a", "fair", 1.0)], "no verdict fair"),
    ],
)
def test_scores_that_make_no_sense_are_refused_and_the_old_ones_stay(products: Products, kind, said, match):
    products.put_scores("group", "g", [Said("old", "good", 1.0)])
    with pytest.raises(UsageError, match=match):
        products.put_scores(kind, "g", said)
    assert names(products) == ["old"]


def test_if_the_last_of_them_cannot_be_written_none_is_and_the_old_ones_stay(tmp_path: Path):
    products = Products(f"sqlite:///{tmp_path}/p.sqlite3")
    products.put_scores("group", "g", [Said("old", "good", 1.0)])
    assert products.database.file is not None
    with sqlite3.connect(products.database.file) as raw:
        raw.execute(
            "CREATE TRIGGER no BEFORE INSERT ON qa_scores WHEN NEW.name = 'b' BEGIN SELECT RAISE(ABORT, 'no'); END"
        )
    with pytest.raises(Exception, match="no"):
        products.put_scores("group", "g", [Said("a", "good", 1.0), Said("b", "good", 1.0)])
    assert names(products) == ["old"]


def test_of_many_who_judge_one_group_at_once_the_scores_of_one_remain(products: Products):
    def judge(n: int) -> None:
        for k in range(10):
            products.put_scores(
                "group", "g", [Said(f"{n}-{k}-{j}", "good", 1.0) for j in range(3)] + [Said("all", "good", n)]
            )

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(judge, range(4)))
    found = sorted(row.name for row in products.scores("group", "g"))
    assert found in ([f"{n}-9-{j}" for j in range(3)] + ["all"] for n in range(4))


def test_figures_may_be_put_while_others_are_replaced(products: Products):
    def put(n: int) -> None:
        for k in range(10):
            if n % 2:
                products.put_qa_artifact("g", "a.png", Path(f"/qa/{n}/{k}"))
            else:
                products.replace_qa_artifacts("g", {name: Path(f"/qa/{n}/{k}/{name}") for name in ("a.png", "b.png")})

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(put, range(4)))
    assert {row.name for row in products.qa_artifacts("g")} == {"a.png", "b.png"}


def test_figures_are_replaced_as_a_whole_and_what_is_gone_is_named(products: Products):
    old = {"a.png": Path("/qa/g/a.png"), "b.png": Path("/qa/g/b.png")}
    assert products.replace_qa_artifacts("g", old, now=1.0) == []
    products.put_qa_artifact("h", "a.png", Path("/qa/h/a.png"))
    gone = products.replace_qa_artifacts("g", {"a.png": old["a.png"], "c.png": Path("/qa/g/c.png")}, now=2.0)
    assert [row.path for row in gone] == ["/qa/g/b.png"]
    assert {(row.name, row.created_at) for row in products.qa_artifacts("g")} == {("a.png", 2.0), ("c.png", 2.0)}
    assert len(products.qa_artifacts("h")) == 1
