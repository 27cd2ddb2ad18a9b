"""The stand-in answers as the specification of the service says; asked here without our client."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from typing import Any

import numpy as np
import pytest
import requests

from nightbeam.core.errors import UsageError
from nightbeam.testing.calib_service import FakeCalibService

UID = "epix10ka_3926196238-0175152897"
ARRAY = np.arange(6, dtype="f4").reshape(2, 3)


@pytest.fixture
def fake() -> Iterator[FakeCalibService]:
    with FakeCalibService(hang_s=5) as service:
        yield service


@pytest.fixture
def http() -> Iterator[requests.Session]:
    with requests.Session() as session:
        session.trust_env = False
        yield session


def find(http: requests.Session, fake: FakeCalibService, place: str, query: Any = None) -> Any:
    params = {} if query is None else {"query_string": json.dumps(query)}
    return http.get(f"{fake.url}/{place}", params=params, timeout=5).json()


def test_databases_collections_documents_and_data_are_where_the_specification_says(
    fake: FakeCalibService, http: requests.Session
):
    document = fake.deploy("tmoc00118", UID, "pedestals", ARRAY, run=3)
    short = "epix10ka_000001"
    assert find(http, fake, "") == ["cdb_detnames", "cdb_epix10ka_000001", "cdb_tmoc00118"]
    assert find(http, fake, "cdb_tmoc00118") == [short]
    assert find(http, fake, f"cdb_tmoc00118/{short}") == [document]
    assert find(http, fake, f"cdb_tmoc00118/{short}/{document['_id']}") == document
    assert find(http, fake, "cdb_detnames/epix10ka")[0]["short"] == short
    answer = http.get(f"{fake.url}/cdb_tmoc00118/gridfs/{document['id_data']}", timeout=5)
    assert answer.content == ARRAY.tobytes()
    assert http.get(f"{fake.url}/cdb_tmoc00118/gridfs/{'0' * 24}", timeout=5).status_code == 404


def test_a_deployment_is_stored_twice_and_the_copy_names_the_first(fake: FakeCalibService, http: requests.Session):
    document = fake.deploy("tmoc00118", UID, "pedestals", ARRAY, run=3, created=0x5A7B2B1C)
    copy = find(http, fake, "cdb_epix10ka_000001/epix10ka_000001")[0]
    assert document["_id"].startswith("5a7b2b1c")
    assert document["id_doc_exp"] == 0
    assert (copy["id_doc_exp"], copy["id_data_exp"]) == (document["_id"], document["id_data"])
    assert copy["_id"] != document["_id"]


def test_a_document_has_the_keys_and_the_types_of_the_real_ones(fake: FakeCalibService):
    document = fake.deploy("tmoc00118", UID, "pedestals", ARRAY, run=3)
    assert (document["data_type"], document["data_dtype"], document["data_shape"]) == ("ndarray", "float32", "(2, 3)")
    assert (document["data_size"], document["data_ndim"]) == ("6", "2")
    assert (document["run"], document["run_end"]) == (3, "end")
    text = fake.deploy("tmoc00118", UID, "geometry", "# ±1", run=3)
    assert (text["data_type"], text["data_size"]) == ("str", "4")
    assert fake.deploy("tmoc00118", UID, "odd", b"pickle", run=3)["data_type"] == "any"


@pytest.mark.parametrize(
    ("query", "runs"),
    [
        ({}, [1, 5, 9]),
        ({"run": {"$lte": 5}}, [1, 5]),
        ({"run": {"$gt": 1, "$lt": 9}}, [5]),
        ({"run": 5}, [5]),
        ({"run": {"$in": [1, 9]}}, [1, 9]),
        ({"run": "5"}, []),
        ({"ctype": "pedestals", "run": {"$gte": 5}}, [5, 9]),
        ({"ctype": "nothing"}, []),
        ({"run": {"$ne": 5}}, [1, 9]),
        ({"nokey": {"$exists": True}}, []),
        ({"comment": {"$lte": 5}}, []),
    ],
)
def test_filters_mean_what_they_mean_to_mongodb(
    fake: FakeCalibService, http: requests.Session, query: Any, runs: list[int]
):
    for run in (1, 5, 9):
        fake.deploy("tmoc00118", UID, "pedestals", ARRAY, run=run)
    found = find(http, fake, "cdb_tmoc00118/epix10ka_000001", query)
    assert [d["run"] for d in found] == runs


def test_an_id_is_asked_for_in_its_printed_form_and_a_filter_may_be_in_the_body(
    fake: FakeCalibService, http: requests.Session
):
    document = fake.deploy("tmoc00118", UID, "pedestals", ARRAY, run=1)
    fake.deploy("tmoc00118", UID, "pedestals", ARRAY, run=1)
    query = {"_id": f"ObjectId({document['_id']})"}
    assert find(http, fake, "cdb_tmoc00118/epix10ka_000001", query) == [document]
    answer = http.get(f"{fake.url}/cdb_tmoc00118/epix10ka_000001", json=query, timeout=5)
    assert answer.json() == [document]
    assert [r.in_body for r in fake.requests] == [False, True]


def test_unknown_places_are_empty_and_a_bad_filter_is_a_bad_request(fake: FakeCalibService, http: requests.Session):
    assert find(http, fake, "cdb_nobody/nothing") == []
    answer = http.get(f"{fake.url}/cdb_nobody/nothing", params={"query_string": "{'a'"}, timeout=5)
    assert answer.status_code == 400
    assert http.get(fake.url.replace("calib_ws", "elsewhere"), timeout=5).status_code == 404


@pytest.mark.parametrize(
    ("place", "status"),
    [
        ("", 200), ("/", 200), ("/cdb_x", 200), ("/cdb%5Fx/b", 200),
        ("_anything/cdb_x", 404), ("xyz", 404), ("//cdb_x", 404), ("/cdb_x/", 404), ("/cdb_x//b", 404),
        ("/cdb_x%2Fb", 404), ("/cdb_x/%2e%2e/b", 404), ("/a/b/c/d", 404),
        ("/cdb_x/b?query=%7B%7D", 400), ("/cdb_x/b?query_string=%7B%7D&x=1", 400), ("/cdb_x/b?query_string=[1]", 400),
        ('/cdb_x/b?query_string={"run":{"$foo":1}}', 400), ('/cdb_x/b?query_string={"$or":[]}', 400),
        ('/cdb_x/b?query_string={"run":{"$in":1}}', 400), ('/cdb_x/b?query_string={"run":{"$lte":"x"}}', 200),
    ],
)  # fmt: skip
def test_it_is_as_strict_as_a_service_may_be(fake: FakeCalibService, place: str, status: int):
    # By hand: requests would tidy up some of these.
    connection = HTTPConnection(fake.url.split("/")[2], timeout=5)
    connection.request("GET", "/calib_ws" + place)
    assert connection.getresponse().status == status
    connection.close()


def test_with_a_token_the_filter_belongs_in_the_body(http: requests.Session):
    with FakeCalibService(token="abc") as fake:
        http.headers["Authorization"] = "Bearer abc"
        place = f"{fake.url}/cdb_a/b"
        assert http.get(place, params={"query_string": "{}"}, timeout=5).status_code == 400
        assert http.get(place, json={"run": 1}, timeout=5).json() == []
        assert http.get(place, timeout=5).json() == []


def test_a_gate_decides_by_the_header_and_adds_its_own(http: requests.Session):
    with FakeCalibService(gate=lambda shown: {"X-Proof": "p"} if shown == "let me in" else None) as fake:
        assert http.get(fake.url, timeout=5).headers["WWW-Authenticate"] == "Negotiate"
        assert http.get(fake.url, headers={"Authorization": "let me in"}, timeout=5).headers["X-Proof"] == "p"


def test_redirects_and_a_lost_backend(fake: FakeCalibService, http: requests.Session):
    fake.fail(2, "redirect")
    assert http.get(f"{fake.url}/cdb_a?query_string={{}}", timeout=5).json() == []
    assert [r.status for r in fake.requests] == [302, 302, 200]
    fake.fail(1, "redirect", to="https://login.example/")
    answer = http.get(fake.url, timeout=5, allow_redirects=False)
    assert answer.headers["Location"] == "https://login.example/"
    fake.fail(None, "gone")
    assert {http.get(f"{fake.url}{p}", timeout=5).status_code for p in ("", "/", "/cdb_a", "/a/gridfs/b")} == {404}


@pytest.mark.parametrize("kind", ["trickle", "trickle-head"])
def test_a_trickle_is_the_right_answer_and_no_pause_is_long(http: requests.Session, kind: Any):
    with FakeCalibService(drip_s=0.002) as fake:
        fake.deploy("tmoc00118", UID, "pedestals", ARRAY, run=3)
        fake.fail(1, kind)
        begin = time.monotonic()
        assert http.get(fake.url, timeout=0.5).json() == ["cdb_detnames", "cdb_epix10ka_000001", "cdb_tmoc00118"]
        assert time.monotonic() - begin > 0.1


def test_a_fault_lasts_as_often_as_it_was_told(fake: FakeCalibService, http: requests.Session):
    fake.fail(2, 503, path="^cdb_a")
    place = f"{fake.url}/cdb_a/b"
    assert http.get(f"{fake.url}/cdb_b/b", timeout=5).status_code == 200
    assert [http.get(place, timeout=5).status_code for _ in range(3)] == [503, 503, 200]
    fake.fail(None, "429", retry_after=3)
    assert http.get(place, timeout=5).headers["Retry-After"] == "3"
    fake.recover()
    assert http.get(place, timeout=5).status_code == 200


def test_faults_spoil_bodies_and_connections(fake: FakeCalibService, http: requests.Session):
    document = fake.deploy("tmoc00118", UID, "pedestals", ARRAY, run=1)
    place = f"{fake.url}/cdb_tmoc00118/gridfs/{document['id_data']}"
    for kind, size in (("short-body", 12), ("long-body", 31)):
        fake.fail(1, kind)  # type: ignore[arg-type]
        assert len(http.get(place, timeout=5).content) == size
    for kind in ("cut-body", "connection-reset"):
        fake.fail(1, kind)  # type: ignore[arg-type]
        with pytest.raises(requests.exceptions.RequestException):
            http.get(place, timeout=5)
    fake.fail(1, "timeout")
    with pytest.raises(requests.exceptions.ReadTimeout):
        http.get(place, timeout=0.1)
    assert len(http.get(place, timeout=5).content) == 24
    assert [r.status for r in fake.requests] == [200, 200, 0, 0, 0, 200]


def test_an_unknown_fault_is_refused(fake: FakeCalibService):
    with pytest.raises(UsageError, match="no fault is called"):
        fake.fail(1, "418")  # type: ignore[arg-type]


def test_removed_documents_and_data_are_gone(fake: FakeCalibService, http: requests.Session):
    kept = fake.deploy("tmoc00118", UID, "pedestals", ARRAY, run=1)
    gone = fake.deploy("tmoc00118", UID, "pedestals", ARRAY, run=2)
    fake.remove(gone)
    fake.remove_data(kept)
    assert find(http, fake, "cdb_tmoc00118/epix10ka_000001") == [kept]
    for document in (kept, gone):
        assert http.get(f"{fake.url}/cdb_tmoc00118/gridfs/{document['id_data']}", timeout=5).status_code == 404


def test_it_stops_at_once_with_connections_open_and_answers_hanging():
    session = requests.Session()
    with FakeCalibService(hang_s=60) as fake:
        session.get(f"{fake.url}/cdb_a", timeout=5)
        fake.fail(1, "timeout")
        with pytest.raises(requests.exceptions.ReadTimeout):
            requests.get(f"{fake.url}/cdb_a", timeout=0.1)
    session.close()
    with pytest.raises(UsageError, match="not been started"):
        _ = fake.url
