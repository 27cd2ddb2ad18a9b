"""What a choice and a selection say about themselves."""

from __future__ import annotations

import pickle

from nightbeam.calib.model import Choice, Selection, Traffic

DOCUMENT = {"_id": "65541b00" + "0" * 16, "id_data": "65541b00" + "1" * 16, "run": 4, "ctype": "pedestals"}


def test_constants_are_the_same_where_database_document_and_data_are():
    choice = Choice("pedestals", DOCUMENT, "cdb_exp")
    assert choice.key == ("cdb_exp", "65541b000000000000000000", "65541b001111111111111111")
    assert choice.run_from == 4
    assert choice.key != Choice("pedestals", DOCUMENT, "cdb_epix_000001").key
    assert choice.key != Choice("pedestals", {**DOCUMENT, "id_data": "2" * 24}, "cdb_exp").key


def test_a_selection_with_an_unanswered_question_is_not_complete():
    choices = {"pedestals": Choice("pedestals", DOCUMENT, "cdb_exp")}
    whole = Selection("epix", "epix_1", "epix_000001", choices)
    assert whole.complete
    assert whole.keys == {"pedestals": choices["pedestals"].key}
    assert not Selection("epix", "epix_1", "epix_000001", choices, gaps=("cdb_epix_000001 was silent",)).complete


def test_a_selection_travels_to_another_process():
    selection = Selection("epix", "epix_1", None, {}, reason="unknown detector")
    assert pickle.loads(pickle.dumps(selection)) == selection


def test_traffic_is_counted_from_a_moment_on():
    assert Traffic(5, 2, 700).since(Traffic(3, 2, 100)) == Traffic(2, 0, 600)
