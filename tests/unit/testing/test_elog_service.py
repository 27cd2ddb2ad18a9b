"""The stand-in answers as the specification of the logbook says; asked here without our client."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.client import HTTPConnection
from typing import Any

import pytest
import requests

from nightbeam.core.errors import MissingError, UsageError
from nightbeam.testing.elog_routes import EXPERIMENT_ROUTES, SITE_ROUTES
from nightbeam.testing.elog_service import Attachment, FakeLogbook

NAME = "mfx100012325"
NOON = datetime(2026, 2, 3, 12, tzinfo=UTC)
WRITING = sorted(call for table in (SITE_ROUTES, EXPERIMENT_ROUTES) for call, one in table.items() if one.writes)


@pytest.fixture
def fake() -> Iterator[FakeLogbook]:
    with FakeLogbook() as logbook:
        logbook.set_clock(NOON)
        logbook.add_experiment(NAME, params={"PNR": "L-10001", "run_period": "25"})
        yield logbook


@pytest.fixture
def http() -> Iterator[requests.Session]:
    with requests.Session() as session:
        session.trust_env = False
        yield session


class Asker:
    """Plain requests, with the address put together."""

    def __init__(self, fake: FakeLogbook, http: requests.Session) -> None:
        self.fake, self.http = fake, http

    def get(self, call: str, experiment: str = NAME, *, prefix: str = "ws-kerb", **args: Any) -> requests.Response:
        middle = f"lgbk/lgbk/{experiment}/ws" if experiment else "lgbk/lgbk/ws"
        address = f"{self.fake.url}/{prefix}/{middle}/{call}"
        return self.http.get(address, params=args, timeout=5, allow_redirects=False)

    def value(self, call: str, experiment: str = NAME, **args: Any) -> Any:
        answer = self.get(call, experiment, **args)
        assert answer.status_code == 200, answer.text
        assert answer.json()["success"] is True
        return answer.json()["value"]

    def status(self, call: str, experiment: str = NAME, **args: Any) -> int:
        return self.get(call, experiment, **args).status_code

    def ids(self, call: str, **args: Any) -> list[str]:
        return [one["_id"] for one in self.value(call, **args)]


@pytest.fixture
def ask(fake: FakeLogbook, http: requests.Session) -> Asker:
    return Asker(fake, http)


# Addresses and authentication (1)


@pytest.mark.parametrize(
    ("prefix", "status", "challenge"),
    [("ws", 403, None), ("ws-kerb", 401, "Negotiate"), ("ws-jwt", 401, None), ("ws-auth", 401, 'Basic realm="LCLS"')],
)
def test_each_prefix_has_its_answer_to_who_shows_nothing(
    http: requests.Session, prefix: str, status: int, challenge: str | None
):
    with FakeLogbook(token="abc") as fake:
        fake.add_experiment(NAME)
        answer = Asker(fake, http).get("info", prefix=prefix)
        assert (answer.status_code, answer.headers.get("WWW-Authenticate")) == (status, challenge)
        assert answer.json() == {"error": "Unauthorized"} if prefix == "ws-jwt" else b"<" in answer.content


def test_single_sign_on_redirects_to_a_login_page_on_another_host(fake: FakeLogbook, http: requests.Session):
    for place in ("ws-token/lgbk/lgbk/ws/experiments", "lgbk/lgbk/ws/experiments"):
        answer = http.get(f"{fake.url}/{place}", timeout=5, allow_redirects=False)
        assert answer.status_code == 302
        assert "//localhost:" in answer.headers["Location"]
    followed = http.get(f"{fake.url}/ws-token/lgbk/lgbk/ws/experiments", timeout=5)
    assert "text/html" in followed.headers["Content-Type"]
    assert fake.requests[-1].route == "/login"


def test_open_routes_need_no_credential_and_the_others_do(http: requests.Session):
    with FakeLogbook(gate=lambda shown: None) as fake:
        fake.add_experiment(NAME)
        ask = Asker(fake, http)
        for call in ("experiment_names_updated_within", "get_cached_experiment_names", "experiments_to_proposal"):
            assert ask.status(call, "", prefix="ws") == 200
        for call in ("internalinfo", "current_run", "runs_for_calib", "file_counts_by_extension"):
            assert ask.status(call, prefix="ws") == 200
        for call in ("info", "elog", "runs", "files", "search_elog", "workflow_jobs"):
            assert ask.status(call, prefix="ws") == 403
        for call in ("experiments", "usergroups", "instruments"):
            assert ask.status(call, "", prefix="ws") == 403


def test_a_token_is_good_until_it_expires_and_a_malformed_one_is_told_so(http: requests.Session):
    with FakeLogbook() as fake:
        fake.set_clock(NOON)
        fake.allow_token("a.b.c", "alice", expires=NOON + timedelta(hours=12))
        ask = Asker(fake, http)
        http.headers["Authorization"] = "Bearer a.b.c"
        assert ask.value("usergroups", "", prefix="ws-jwt")["userid"] == "alice"
        assert ask.status("usergroups", "", prefix="ws-kerb") == 401
        fake.advance(12 * 3600)
        assert ask.get("usergroups", "", prefix="ws-jwt").json() == {"error": "Unauthorized"}
        http.headers["Authorization"] = "Bearer nonsense"
        assert ask.get("usergroups", "", prefix="ws-jwt").json() == {"error": "Invalid token"}
        fake.allow_token("nonsense")
        assert ask.status("usergroups", "", prefix="ws-jwt") == 200
        fake.revoke_token("nonsense")
        assert ask.status("usergroups", "", prefix="ws-jwt") == 401
        assert fake.traffic.users == {"alice", "jdoe"}


def test_a_gate_decides_by_the_header_names_the_user_and_adds_its_own(http: requests.Session):
    def gate(shown: str | None) -> Any:
        return {"ok": {"X-Proof": "p", "X-User": "bob@ELOG.TEST"}, "who": {"X-Proof": "q"}}.get(shown or "")

    with FakeLogbook(gate=gate, user="nobody") as fake:
        fake.add_experiment(NAME)
        fake.deny(NAME, "bob")
        ask = Asker(fake, http)
        assert ask.status("info") == 401
        http.headers["Authorization"] = "ok"
        answer = ask.get("info")
        # The user is known and may not: the proof comes with the refusal.
        assert (answer.status_code, answer.headers["X-Proof"]) == (403, "p")
        http.headers["Authorization"] = "who"
        assert ask.status("info") == 200
        assert [one.user for one in fake.requests] == [None, "bob", "nobody"]


def test_what_a_user_may_read_does_not_depend_on_the_prefix(ask: Asker):
    ask.fake.deny(NAME)
    assert {ask.status("info", prefix=prefix) for prefix in ("ws", "ws-kerb", "ws-jwt", "ws-auth")} == {403}
    ask.fake.allow(NAME)
    assert [ask.status("info", prefix=prefix) for prefix in ("ws", "ws-kerb", "ws-jwt", "ws-auth")] == [403, *[200] * 3]


def test_the_prefix_without_identity_can_stand_for_a_user_where_that_is_wanted(http: requests.Session):
    with FakeLogbook(everyone="demo") as fake:
        assert Asker(fake, http).value("usergroups", "", prefix="ws")["userid"] == "demo"


def test_the_session_cookie_grows_with_each_experiment_until_it_is_too_large(fake: FakeLogbook, ask: Asker):
    ask.value("info")
    first = ask.http.cookies["session"]
    ask.value("elog")
    assert ask.http.cookies["session"] == first
    fake.add_experiment("cxilw4021")
    ask.value("info", "cxilw4021")
    assert len(ask.http.cookies["session"]) > len(first)
    ask.http.cookies.clear()
    ask.http.headers["Cookie"] = "session=" + "x" * 8200
    assert ask.status("info") == 400
    assert fake.requests[-1].cookie_bytes > 8190


def test_a_development_instance_has_another_first_name(http: requests.Session):
    with FakeLogbook(application="devlgbk") as fake:
        assert http.get(f"{fake.url}/ws/devlgbk/lgbk/ws/get_cached_experiment_names", timeout=5).json()["value"] == []
        assert Asker(fake, http).status("get_cached_experiment_names", "", prefix="ws") == 404


# Envelope, statuses, types (2)


def test_errors_of_the_application_are_text_labelled_as_json(fake: FakeLogbook, ask: Asker):
    fake.add_experiment("cxilw4021")
    fake.deny("cxilw4021")
    answers = [ask.get("info", "cxilw4021"), ask.get("info", "nobody"), ask.get("runs/77"), ask.get("no_such_call")]
    assert [answer.status_code for answer in answers] == [403, 404, 500, 404]
    for answer in answers:
        assert answer.headers["Content-Type"] == "application/json; charset=utf-8"
        with pytest.raises(ValueError, match="Expecting value"):
            answer.json()


def test_what_the_data_tier_refuses_is_a_success_of_http(ask: Asker):
    answer = ask.get("current_run", prefix="ws")
    assert answer.status_code == 200
    assert answer.json() == {"success": False, "errormsg": f"Cannot find the current run of {NAME}", "value": None}


@pytest.mark.parametrize(
    ("place", "status"),
    [
        ("/", 404), ("/elsewhere", 404), ("/ws", 404), ("/ws/lgbk/ws/get_cached_experiment_names", 404),
        ("/ws-kerb/lgbk/mfx100012325/ws/info", 404), ("/ws-kerb/lgbk/lgbk/mfx100012325/ws/info/", 404),
        ("/ws-kerb/lgbk/lgbk//ws/info", 404), ("/ws-kerb/lgbk/lgbk/mfx100012325/ws/", 404),
        ("/ws-kerb/lgbk/lgbk/mfx100012325/ws/elog/x", 404), ("/ws-kerb/lgbk/lgbk/mfx1%300012325/ws/info", 200),
        ("/ws-kerb/lgbk/lgbk/a%2Fb/ws/info", 404), ("/ws-kerb/lgbk/lgbk/mfx100012325/ws/runs/x", 500),
        ("/ws-kerb/lgbk/lgbk/mfx100012325/ws/x/files", 500),
    ],
)  # fmt: skip
def test_only_the_right_address_is_answered(fake: FakeLogbook, place: str, status: int):
    # By hand: requests would tidy up some of these.
    connection = HTTPConnection(fake.url.split("/")[2], timeout=5)
    connection.request("GET", place)
    assert connection.getresponse().status == status
    connection.close()


def test_other_methods_are_refused_and_remembered(fake: FakeLogbook, http: requests.Session):
    address = f"{fake.url}/ws-kerb/lgbk/lgbk/{NAME}/ws/info"
    assert http.post(address, json={}, timeout=5).status_code == 405
    assert http.head(address, timeout=5).status_code == 200
    assert [one.method for one in fake.traffic.writes] == ["POST"]


def test_json_is_ascii_and_has_nan_nul_and_large_numbers_as_they_are(fake: FakeLogbook, ask: Asker):
    fake.start_run(NAME, 1, params={"a": math.nan, "b": -math.inf, "c": 2**70, "MFX:TT．X": "ｆ"})
    fake.post(NAME, "nul \0, astral 🔬, ångström, half \ud83d")
    runs, entries = ask.get("runs"), ask.get("elog")
    assert runs.content.isascii()
    assert entries.content.isascii()
    for word in (b'"a": NaN', b'"b": -Infinity', b"\\uff0e", str(2**70).encode()):
        assert word in runs.content
    assert b"\\u0000" in entries.content
    assert entries.json()["value"][0]["content"] == "nul \0, astral 🔬, ångström, half \ud83d"


@pytest.mark.parametrize("call", [*WRITING])
def test_a_route_that_writes_is_there_and_remembers_that_it_was_called(fake: FakeLogbook, ask: Asker, call: str):
    experiment = "" if call in SITE_ROUTES else NAME
    fake.start_run(NAME)
    assert ask.status(call, experiment) == 200
    assert [one.route for one in fake.traffic.writes] == [call]
    fake.forget()
    assert ask.status(call, experiment, prefix="ws") == 403
    assert len(fake.traffic.writes) == 1


def test_some_routes_that_write_do_it(fake: FakeLogbook, ask: Asker):
    ask.value("start_run")
    ask.value("end_run")
    assert fake.truth(NAME).runs[1]["end_time"] == "2026-02-03T12:00:00+00:00"
    ask.value("experiments", "", legacy_cutoff="1")
    ask.http.get(f"{fake.url}/ws-kerb/lgbk/run_control/{NAME}/ws/info", timeout=5)
    assert [one.route for one in fake.traffic.writes] == ["start_run", "end_run", "experiments", "info"]


# Times (3)


def test_times_have_a_fraction_only_where_it_is_not_zero_and_ids_begin_with_the_time(fake: FakeLogbook):
    assert fake.post(NAME, "a")["insert_time"] == "2026-02-03T12:00:00+00:00"
    entry = fake.post(NAME, "b", at=NOON + timedelta(microseconds=250_999))
    assert entry["insert_time"] == "2026-02-03T12:00:00.250000+00:00"
    assert int(entry["_id"][:8], 16) == NOON.timestamp()
    assert len(entry["_id"]) == 24


def test_the_clock_goes_stands_and_is_put_forward():
    with FakeLogbook() as fake:
        assert abs(fake.now - datetime.now(UTC)) < timedelta(seconds=5)
        fake.advance(3600)
        assert fake.now - datetime.now(UTC) > timedelta(minutes=59)
        fake.set_clock(NOON)
        assert fake.now == fake.now == NOON


# Finding experiments (4)


def test_recent_are_names_of_those_whose_latest_run_began_within_the_window(fake: FakeLogbook, ask: Asker):
    for name, hours in (("cxilw4021", 1), ("xpplw4021", 10)):
        fake.add_experiment(name)
        fake.start_run(name, at=NOON - timedelta(hours=hours))
    fake.add_experiment("Sample Delivery System", standing=True)
    fake.start_run("Sample Delivery System")
    fake.post(NAME, "entries list nobody")
    fake.deny("cxilw4021")
    recent = "experiment_names_updated_within"
    assert ask.value(recent, "", prefix="ws") == ["cxilw4021"]
    assert ask.value(recent, "", prefix="ws", offset_secs=36000) == ["cxilw4021", "xpplw4021"]
    assert ask.value(recent, "", prefix="ws-kerb", offset_secs=3599) == []
    assert ask.status(recent, "", offset_secs="1.5") == 500
    fake.start_run("xpplw4021", at=NOON - timedelta(minutes=1))
    assert "xpplw4021" in ask.value(recent, "", prefix="ws")


def test_the_window_can_be_longer_than_asked_and_the_list_old(http: requests.Session):
    with FakeLogbook(slack_s=8 * 3600, cache_s=300) as fake:
        fake.set_clock(NOON)
        fake.add_experiment(NAME)
        ask = Asker(fake, http)
        assert ask.value("experiments", "")[0].get("run_count") is None
        fake.start_run(NAME, at=NOON - timedelta(hours=8))
        fake.add_experiment("cxilw4021")
        fake.advance(299)
        assert ask.value("experiment_names_updated_within", "", offset_secs=3600) == []
        assert len(ask.value("experiments", "")) == 1
        fake.advance(1)
        assert ask.value("experiment_names_updated_within", "", offset_secs=3600) == [NAME]
        assert [one.get("run_count") for one in ask.value("experiments", "")] == [1, None]


def test_summaries_tell_the_counts_of_what_the_user_may_read(fake: FakeLogbook, ask: Asker):
    fake.add_experiment("cxilw4021")
    fake.add_experiment("xpplw4021")
    fake.deny("xpplw4021", "jdoe")
    fake.start_run(NAME, 3, at=NOON - timedelta(hours=2))
    fake.start_run(NAME, 7)
    fake.register_file(NAME, "/a.xtc2", 3, 2**33, at=NOON - timedelta(days=4, seconds=5))
    fake.register_file(NAME, "/b.xtc2", 3, None, old_times=True)
    one, other = ask.value("experiments", "")
    assert (one["_id"], other["_id"]) == (NAME, "cxilw4021")
    assert (one["run_count"], one["totalFiles"], one["totalDataSize"]) == (2, 2, 8.0)
    assert one["first_run"]["num"] == 3
    assert one["last_run"] == {"num": 7, "begin_time": "2026-02-03T12:00:00+00:00", "end_time": None}
    # Swapped, as they are.
    assert one["file_timestamps"]["first_file_ts"] == "2026-02-03T12:00:00Z"
    assert one["file_timestamps"]["duration"] == -345605.0
    assert one["file_timestamps"]["hr_duration"] == ["4 days"]
    assert one["params"]["PNR"] == "L-10001"
    assert not {"run_count", "first_run", "last_run", "totalFiles", "totalDataSize", "file_timestamps"} & other.keys()


def test_the_other_lists(fake: FakeLogbook, ask: Asker):
    fake.add_experiment("cxilw4021", changes={"description": "Water jets", "start_time": "2020-01-01T00:00:00+00:00"})
    fake.add_experiment("Sample Delivery System", instrument="OPS", standing=True)
    assert ask.value("get_cached_experiment_names", "", prefix="ws") == [NAME, "cxilw4021", "Sample Delivery System"]
    ids = ask.value("sorted_experiment_ids", "", sort='[["start_time",-1]]')
    assert ids == [NAME, "Sample_Delivery_System", "cxilw4021"]
    assert [one["_id"] for one in ask.value("search_experiment_info", "", search_text="water")] == ["cxilw4021"]
    guess = ask.value("experiments_to_proposal", "", prefix="ws")["cxilw4021"]
    assert guess == {"name": "cxilw4021", "instrument": "CXI", "proposal_id": "LW40"}
    assert ask.value("usergroups", "") == {"userid": "jdoe", "groups": ["ps-users"]}
    assert [one["_id"] for one in ask.value("instruments", "")] == ["CXI", "MFX", "OPS"]
    assert isinstance(ask.get("api_endpoints", "").json(), list)
    for call in ("sorted_experiment_ids", "search_experiment_info"):
        assert ask.status(call, "") == 500
    place = {"instrument_name": "MFX", "station": "0"}
    assert ask.status("activeexperiment_for_instrument_station", "", prefix="ws", **place) == 500
    fake.set_active(NAME)
    assert ask.value("activeexperiment_for_instrument_station", "", prefix="ws", **place)["_id"] == NAME
    assert [one["_id"] for one in ask.value("activeexperiments", "")] == [NAME]


def test_spaces_of_a_name_are_underscores_of_the_id_and_a_name_with_spaces_is_an_error(fake: FakeLogbook, ask: Asker):
    fake.add_experiment("Sample Delivery System", standing=True)
    info = ask.value("info", "Sample_Delivery_System")
    assert (info["_id"], info["name"]) == ("Sample_Delivery_System", "Sample Delivery System")
    assert ask.status("info", "Sample Delivery System") == 500
    assert ask.status("info", "Sample%20Delivery%20System") == 500


# One experiment (5.1)


def test_info_and_internal_info(fake: FakeLogbook, ask: Asker):
    assert ask.value("info") == fake.truth(NAME).info
    fake.change_info(NAME, contact_info="", description=None, is_locked=True)
    info = ask.value("info")
    assert (info["contact_info"], "description" in info, info["is_locked"]) == ("", False, True)
    inner = ask.value("internalinfo", prefix="ws")
    assert sorted(inner) == ["end_time", "instrument", "params", "posix_group", "proposal_id", "start_time"]


def test_a_renamed_experiment_is_gone_under_its_old_name_and_keeps_its_documents(fake: FakeLogbook, ask: Asker):
    entry = fake.post(NAME, "a")
    fake.rename(NAME, "mfx Renamed 25", errors=2)
    assert [ask.status("elog") for _ in range(4)] == [500, 500, 404, 404]
    assert [one["_id"] for one in ask.value("elog", "mfx_Renamed_25")] == [entry["_id"]]
    assert ask.value("info", "mfx_Renamed_25")["name"] == "mfx Renamed 25"
    with pytest.raises(UsageError, match="already"):
        fake.add_experiment("mfx_Renamed_25")


def test_a_deleted_experiment_is_not_found(fake: FakeLogbook, ask: Asker):
    fake.delete_experiment(NAME, errors=1)
    assert [ask.status("info"), ask.status("info")] == [500, 404]
    assert ask.value("experiments", "") == []
    with pytest.raises(MissingError, match="no experiment"):
        fake.truth(NAME)
    fake.add_experiment(NAME)
    assert ask.status("info") == 200


# Entries (5.2)


def test_an_entry_has_only_the_keys_that_are_set(fake: FakeLogbook, ask: Asker):
    bare = fake.post(NAME, "plain")
    assert sorted(bare) == ["_id", "author", "content", "content_type", "insert_time", "relevance_time"]
    snap = Attachment("snap.png", "image/png", b"bytes", b"small")
    full = fake.post(NAME, "<p>x</p>", title="Jet", tags=["jet"], run_num=32, attachments=[snap], email_to=["jdoe"])
    assert {"title", "tags", "run_num", "attachments", "email_to"} < full.keys()
    assert sorted(full["attachments"][0]) == ["_id", "name", "preview_url", "type", "url"]
    assert ask.value("elog") == [bare, full]


def test_entries_come_in_the_order_of_their_insertion_times(fake: FakeLogbook, ask: Asker):
    late = fake.post(NAME, "late")
    early = fake.post(NAME, "early", at=NOON - timedelta(milliseconds=1))
    assert ask.ids("elog") == [early["_id"], late["_id"]]


def test_a_reply_names_what_it_answers_and_where_the_thread_began(fake: FakeLogbook, ask: Asker):
    first = fake.post(NAME, "first")
    second = fake.reply(NAME, first["_id"], "second")
    third = fake.reply(NAME, second["_id"], "third", tags=["t"])
    assert (second["root"], second["parent"]) == (first["_id"], first["_id"])
    assert (third["root"], third["parent"]) == (first["_id"], second["_id"])
    tree = ask.ids(f"elog/{second['_id']}/complete_elog_tree")
    assert tree == [first["_id"], second["_id"], third["_id"]]


def test_an_edit_changes_in_place_and_leaves_a_deleted_copy_of_the_old(fake: FakeLogbook):
    old = fake.post(NAME, "old", title="T", tags=["a"])
    fake.advance(3600)
    copy = fake.edit(NAME, old["_id"], "new", editor="boss", tags=[], attachments=[Attachment("a", "text/plain", b"")])
    entry = fake.truth(NAME).entries[old["_id"]]
    for key in ("_id", "insert_time", "relevance_time", "title"):
        assert entry[key] == old[key]
    assert (entry["content"], entry["author"], entry["tags"]) == ("new", "boss", [])
    assert entry["previous_version"] == copy["_id"]
    assert len(entry["attachments"]) == 1
    moment = "2026-02-03T13:00:00+00:00"
    assert copy == {
        **old, "_id": copy["_id"], "parent": old["_id"], "relevance_time": moment, "deleted_time": moment,
        "deleted_by": "boss",
    }  # fmt: skip
    again = fake.edit(NAME, old["_id"], "newer")
    assert (again["content"], again["previous_version"]) == ("new", copy["_id"])


def test_deletion_is_a_mark(fake: FakeLogbook, ask: Asker):
    entry = fake.post(NAME, "a")
    fake.advance(60)
    fake.delete_entry(NAME, entry["_id"], by="boss")
    assert ask.value("elog") == [{**entry, "deleted_by": "boss", "deleted_time": "2026-02-03T12:01:00+00:00"}]


def test_a_cross_post_is_a_new_entry_with_the_times_of_its_source(fake: FakeLogbook, ask: Asker):
    fake.add_experiment("Sample Delivery System", standing=True)
    entry = fake.post(NAME, "a", tags=["t"], to=["Sample Delivery System"])
    assert entry["post_to_elogs"] == ["Sample_Delivery_System"]
    fake.advance(86400)
    late = fake.cross_post(NAME, entry["_id"], "Sample_Delivery_System")
    copies = ask.value("elog", "Sample_Delivery_System")
    assert len({entry["_id"], *(copy["_id"] for copy in copies)}) == 3
    for copy in copies:
        assert (copy["src_expname"], copy["src_id"], copy["content"]) == (NAME, entry["_id"], "a")
        assert copy["insert_time"] == copy["relevance_time"] == entry["insert_time"]
    assert int(late["_id"][:8], 16) == NOON.timestamp() + 86400


def test_anything_can_be_overwritten(fake: FakeLogbook, ask: Asker):
    entry = fake.post(NAME, "a", changes={"colour": {"deep": [1]}, "author": None})
    assert "author" not in entry
    fake.change_entry(NAME, entry["_id"], content=None, root="f" * 24)
    assert ask.value("elog")[0] == {**{k: v for k, v in entry.items() if k != "content"}, "root": "f" * 24}


def test_entries_of_megabytes_come_whole(fake: FakeLogbook, ask: Asker):
    fake.post(NAME, "A" * (5 << 20))
    assert len(ask.value("elog")[0]["content"]) == 5 << 20


# Searching (5.3)


@pytest.fixture
def thread(fake: FakeLogbook) -> dict[str, str]:
    """Hourly from noon: run 1, run 2 with a tag, an answer to the first, a title."""
    ids: dict[str, str] = {}
    for hour, (name, more) in enumerate(
        {
            "one": {"content": "Jet restarted", "run_num": 1},
            "two": {"content": "hits are (good)", "run_num": 2, "tags": ["DARK"]},
            "answer": {"content": "thanks"},
            "titled": {"content": "<p>x</p>", "title": "Alignment", "author": "zoe"},
        }.items()
    ):
        fake.set_clock(NOON + timedelta(hours=hour))
        post = fake.reply(NAME, ids["one"], **more) if name == "answer" else fake.post(NAME, **more)  # type: ignore[arg-type]
        ids[name] = post["_id"]
    return ids


def window(begin: float, end: float) -> dict[str, str]:
    def text(hours: float) -> str:
        return (NOON + timedelta(hours=hours)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")

    return {"start_date": text(begin), "end_date": text(end)}


@pytest.mark.parametrize(
    ("args", "found"),
    [
        ({"run_num": "2", "search_text": "jet", **window(0, 0)}, "two"),
        ({"start_run_num": "1", "end_run_num": "2", **window(9, 9)}, "one two"),
        ({"start_run_num": "2", "search_text": "thanks"}, "one answer"),
        ({"_id": "TWO", **window(0, 0)}, "two"),
        ({**window(1, 2), "search_text": "alignment"}, "one two answer"),
        ({**window(0, 0.999), "tag": "DARK"}, "one"),
        ({"start_date": window(1, 1)["start_date"], "tag": "DARK"}, "two"),
        ({"start_date": "nonsense"}, "one two answer titled"),
        ({"search_text": "t:DARK", "tag": "none"}, "two"),
        ({"search_text": "t:dark"}, ""),
        ({"search_text": r"x:\(g..d\)"}, "two"),
        ({"tag": "DARK"}, "two"),
        ({"tag": "DARK", "search_text": ""}, "two"),
        ({"tag": "DARK", "search_text": "titles"}, ""),
        ({"search_text": "restarts nothing"}, "one"),
        ({"search_text": "aligning"}, ""),
        ({"search_text": "alignments"}, "titled"),
        ({"search_text": "zoe"}, "titled"),
        ({"search_text": "DARK"}, "two"),
        ({"search_text": "ANK"}, "one answer"),
        ({"search_text": ""}, "one two answer titled"),
        ({}, "one two answer titled"),
    ],
)
def test_the_first_parameter_of_a_search_decides_and_ancestors_come_along(
    ask: Asker, thread: dict[str, str], args: dict[str, str], found: str
):
    args = {key: thread["two"] if value == "TWO" else value for key, value in args.items()}
    assert ask.ids("search_elog", **args) == [thread[name] for name in found.split()]


@pytest.mark.parametrize(
    "date",
    ["2026-02-03T12:00:00Z", "2026-02-03T12:00:00.000Z", "2026-02-03 12:00:00.000000Z", "2026-02-03T12:00:00.000000",
     "2026-02-03T12:00:00.000000+00:00", "2026-02-31T12:00:00.000000Z", "", "1770120000"],
)  # fmt: skip
def test_a_date_in_any_other_form_is_an_error_with_a_sentence(ask: Asker, date: str):
    answer = ask.get("search_elog", start_date=date, end_date=window(0, 0)["end_date"])
    assert answer.status_code == 500
    assert answer.text
    assert ask.status("search_elog", run_num="x") == ask.status("search_elog", search_text="x:(") == 500


def test_a_window_has_what_the_table_of_the_specification_says(fake: FakeLogbook, ask: Asker, thread: dict[str, str]):
    fake.add_experiment("cxilw4021")
    other = fake.post("cxilw4021", "far", at=NOON)
    fake.set_clock(NOON + timedelta(hours=10))
    new, reply = fake.post(NAME, "new"), fake.reply(NAME, thread["two"], "reply")
    copy = fake.edit(NAME, thread["one"], "edited")
    fake.delete_entry(NAME, thread["titled"])
    fake.cross_post("cxilw4021", other["_id"], NAME)
    found = ask.value("search_elog", **window(9.5, 10))
    assert {one["_id"] for one in found} == {new["_id"], reply["_id"], thread["two"], copy["_id"], thread["one"]}
    assert [one["content"] for one in found if one["_id"] == thread["one"]] == ["edited"]
    assert [one["insert_time"] for one in found] == sorted(one["insert_time"] for one in found)


# Attachments (5.4)


def test_attachments_come_with_the_type_they_were_given(fake: FakeLogbook, ask: Asker):
    snap, plain = Attachment("s.jpg", "image/jpeg", b"\xff\xd8", b"small"), Attachment("n.txt", "text/x-y", b"n")
    entry = fake.post(NAME, "a", attachments=[snap, plain])
    first, second = (one["_id"] for one in entry["attachments"])

    def bytes_of(attachment: str, **more: str) -> tuple[int, str, bytes]:
        answer = ask.get("attachment", entry_id=entry["_id"], attachment_id=attachment, **more)
        return answer.status_code, answer.headers["Content-Type"], answer.content

    assert bytes_of(first) == (200, "image/jpeg", b"\xff\xd8")
    assert bytes_of(first, prefer_preview="true")[2] == b"small"
    assert bytes_of(second) == (200, "text/x-y", b"n")
    assert bytes_of(second, prefer_preview="true")[1] == "image/png"
    assert bytes_of("0" * 24)[0] == 404
    assert ask.status("attachment", entry_id=entry["_id"]) == 500


# Runs (5.5, 5.6)


def test_runs_come_with_the_last_first_and_with_parameters_unless_they_are_not_wanted(fake: FakeLogbook, ask: Asker):
    fake.start_run(NAME, 1, params={"DAQ Detectors/a": True, "x": 1}, sample="water")
    fake.end_run(NAME, at=NOON + timedelta(minutes=5))
    fake.start_run(NAME, 4, kind="DARK")
    fake.set_params(NAME, 1, {"ana": "late", "x": None})
    fake.set_editable(NAME, 1, "comment", "good")
    runs = ask.value("runs")
    assert [run["num"] for run in runs] == [4, 1]
    assert runs == ask.value("runs", includeParams="true") == list(reversed(fake.truth(NAME).runs.values()))
    assert runs[1]["params"] == {"DAQ Detectors/a": True, "ana": "late"}
    assert (runs[1]["end_time"], runs[0]["end_time"]) == ("2026-02-03T12:05:00+00:00", None)
    bare = ask.value("runs", includeParams="false")
    assert all("params" not in run and "editable_params" in run for run in bare)
    assert [run["num"] for run in ask.value("runs", sampleName="water")] == [1]
    for wrong in ("True", "FALSE", "1", ""):
        assert ask.status("runs", includeParams=wrong) == 500


def test_one_run_and_what_is_told_of_runs_elsewhere(fake: FakeLogbook, ask: Asker):
    fake.start_run(NAME, 3, params={"DAQ Detectors/a": True, "Calibrations/dark": "1", "x": math.nan})
    fake.post(NAME, "a", run_num=3, tags=["DARK"])
    fake.post(NAME, "b", run_num=3, tags=["DARK"])
    assert ask.value("runs/3")["num"] == 3
    assert ask.status("runs/4") == ask.status("runs/x") == 500
    assert ask.value("current_run", prefix="ws")["num"] == 3
    assert ask.value("runs_for_calib", prefix="ws")[0]["begin_time"] == NOON.timestamp()
    assert ask.value("3/daq_run_params", prefix="ws") == {"DAQ Detectors/a": True, "Calibrations/dark": "1"}
    assert list(ask.value("get_run_params_for_all_runs", param_names="x,y")[0]["params"]) == ["x"]
    assert ask.status("get_run_params_for_all_runs") == 500
    assert ask.value("get_tags_to_runs") == {"DARK": [3, 3]}
    assert ask.value("get_runs_to_tags") == {"3": ["DARK", "DARK"]}
    assert ask.value("get_runs_with_tag", prefix="ws", tag="DARK") == [3]
    assert ask.value("get_elog_tags") == ["DARK"]
    assert [one["param_name"] for one in ask.value("run_param_descriptions")][-1] == "x"
    assert ask.value("samples") == ask.value("shifts") == ask.value("run_tables") == []
    assert ask.status("run_table_data", tableName="none") == 500


# Files (5.7)


def test_files_come_by_run_then_creation_the_last_first_and_are_replaced_when_registered_again(
    fake: FakeLogbook, ask: Asker
):
    for run, path, minute in ((1, "/a", 0), (2, "/a", 0), (2, "/b.h5", 1)):
        fake.register_file(NAME, path, run, 2**40, at=NOON + timedelta(minutes=minute))
    assert [(one["run_num"], one["path"]) for one in ask.value("files")] == [(2, "/b.h5"), (2, "/a"), (1, "/a")]
    before = fake.truth(NAME).files[2, "/a"]
    fake.register_file(NAME, "/a", 2, None, old_times=True)
    fake.locate_file(NAME, "/a", 2, "S3DF")
    after = next(one for one in ask.value("2/files") if one["path"] == "/a")
    assert (before["size"], "size" in after, after["create_timestamp"]) == (2**40, False, "2026-02-03T12:00:00Z")
    assert after["locations"] == {"S3DF": {"asof": "2026-02-03T12:00:00+00:00"}}
    assert len(ask.value("files")) == 3
    assert ask.value("file_counts_by_extension", prefix="ws")["h5"] == 1


# Workflows (5.8)


def test_definitions_come_by_name_and_jobs_with_their_definition(fake: FakeLogbook, ask: Asker):
    values = {"run_param_name": "Calibrations/dark", "run_param_value": "true"}
    smd = fake.define_workflow(NAME, "smd", trigger="RUN_PARAM_IS_VALUE", changes=values)
    fake.define_workflow(NAME, "#first")
    assert [one["name"] for one in ask.value("workflow_definitions")] == ["#first", "smd"]
    for run in (3, 5, 4):
        job = fake.submit_job(NAME, smd["_id"], run)
    fake.alter_job(NAME, job["_id"], status="OUT_OF_MEMORY", counters=[{"key": "<b>n</b>", "value": "1"}])
    fake.alter_workflow(NAME, smd["_id"], parameters="--queue roma")
    jobs = ask.value("workflow_jobs")
    assert [one["run_num"] for one in jobs] == [5, 4, 3]
    assert (jobs[1]["status"], jobs[1]["def"]["parameters"]) == ("OUT_OF_MEMORY", "--queue roma")
    assert fake.truth(NAME).workflow_jobs == {one["_id"]: one for one in jobs}
    with pytest.raises(UsageError, match="has jobs"):
        fake.drop_workflow(NAME, smd["_id"])
    fake.drop_workflow(NAME, smd["_id"], even_with_jobs=True)
    assert ask.value("workflow_jobs") == []
    assert len(ask.value("workflow_triggers")) == 7
    with pytest.raises(UsageError, match="no trigger"):
        fake.define_workflow(NAME, "x", trigger="LATER")


# Questionnaire (5.9)


def questionnaire(ask: Asker, period: str, proposal: str, prefix: str = "ws-kerb") -> requests.Response:
    address = f"{ask.fake.url}/{prefix}/questionnaire/ws/proposal/attribute/run{period}/{proposal}"
    return ask.http.get(address, timeout=5)


def test_a_questionnaire_has_no_envelope_and_is_shared_by_those_with_one_proposal(fake: FakeLogbook, ask: Asker):
    fake.set_field(NAME, "xray-energy-1", "9.5", modified_time="Feb/03/2026 04:05:06")
    fake.set_field(NAME, "personnel-poc", "")
    fake.set_field(NAME, "xray-energy-1", "9.6", by="boss")
    fake.add_experiment("mfxlx10125", params={"PNR": "L-10001"})
    assert questionnaire(ask, "25", "L-10001").json() == {
        "xray": [
            {"id": "xray-energy-1", "val": "9.6", "modified_time": "Feb/03/2026 12:00:00", "modified_uid": "boss"}
        ],
        "personnel": [
            {"id": "personnel-poc", "val": "", "modified_time": "Feb/03/2026 12:00:00", "modified_uid": "jdoe"}
        ],
    }
    assert fake.truth("mfxlx10125").questionnaire == fake.truth(NAME).questionnaire
    assert fake.truth(NAME).questionnaire["xray-energy-1"]["category"] == "xray"
    assert questionnaire(ask, "25", "L-10001", "ws").status_code == 403
    assert questionnaire(ask, "24", "L-10001").status_code == 404
    with pytest.raises(UsageError, match="no proposal"):
        fake.set_field(fake.add_experiment("cxilw4021", params={"PNR": "N/A"})["_id"], "a-b", "")


def test_a_questionnaire_of_ued_is_an_error_and_that_of_nobody_what_was_chosen(ask: Asker):
    ask.fake.add_experiment("ued1013843", params={"PNR": "U-1"})
    ask.fake.set_field("ued1013843", "xray-a", "1")
    assert questionnaire(ask, "43", "U-1").status_code == 500
    assert ask.fake.truth("ued1013843").questionnaire == {}
    assert questionnaire(ask, "25", "L-10001").json() == {}
    for status in (200, 404, 500):
        with FakeLogbook(unknown_proposal=status) as fake:  # type: ignore[arg-type]
            assert questionnaire(Asker(fake, ask.http), "25", "X").status_code == status


# How it fails


@pytest.mark.parametrize("status", [500, 502, 503, 504, 429, 403, 404, 401])
def test_a_status_lasts_as_often_as_it_was_told(fake: FakeLogbook, ask: Asker, status: int):
    fake.fail(2, status, route="/elog$", retry_after=3)
    assert ask.status("info") == 200
    answers = [ask.get("elog") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [status, status, 200]
    if status == 401:
        assert answers[0].headers["WWW-Authenticate"] == "Negotiate"
    else:
        assert answers[0].headers["Retry-After"] == "3"
    assert ("json" in answers[0].headers["Content-Type"]) == (status in (500, 403, 404))


def test_bodies_are_spoilt(fake: FakeLogbook, ask: Asker):
    entries = [fake.post(NAME, f"entry {n}")["_id"] for n in range(4)]
    fake.fail(1, "truncated")
    answer = ask.get("elog")
    assert (answer.status_code, int(answer.headers["Content-Length"])) == (200, len(answer.content))
    with pytest.raises(ValueError, match=r"JSON|Unterminated|Expecting|delimiter"):
        answer.json()
    fake.fail(1, "duplicates")
    assert ask.ids("elog") == [entries[n] for n in (0, 0, 1, 2, 3, 3)]
    fake.fail(1, "html")
    assert ask.get("elog").text.startswith("<!DOCTYPE html>")
    fake.fail(1, "empty")
    assert ask.get("elog").content == b""
    fake.fail(1, "refused")
    assert ask.get("elog").json()["success"] is False
    fake.fail(1, "redirect")
    assert ask.status("elog") == 302
    assert ask.ids("elog") == entries


@pytest.mark.parametrize("kind", ["drop", "reset", "short-body"])
def test_connections_are_broken(fake: FakeLogbook, ask: Asker, kind: Any):
    fake.post(NAME, "x" * 100_000)
    fake.fail(1, kind)
    with pytest.raises(requests.exceptions.RequestException):
        ask.get("elog")
    assert len(ask.ids("elog")) == 1
    assert [one.status for one in fake.requests] == [0, 200]


def test_answers_can_be_slow_or_never_come(fake: FakeLogbook, ask: Asker):
    fake.fail(1, "slow", seconds=0.2)
    begin = time.monotonic()
    assert ask.value("elog") == []
    assert time.monotonic() - begin >= 0.2
    fake.fail(1, "drop", seconds=60)
    with pytest.raises(requests.exceptions.ReadTimeout):
        ask.http.get(f"{fake.url}/ws/lgbk/lgbk/ws/get_cached_experiment_names", timeout=0.1)
    fake.latency_s = 0.1
    begin = time.monotonic()
    ask.value("elog")
    assert time.monotonic() - begin >= 0.1


def test_which_request_is_hit_by_chance_depends_on_the_seed_and_not_on_other_requests(http: requests.Session):
    def pattern(seed: int, *, others: bool) -> list[int]:
        with FakeLogbook(seed=seed) as fake:
            fake.add_experiment(NAME)
            ask = Asker(fake, http)
            fake.fail(None, 503, chance=0.3)
            statuses = []
            for _ in range(30):
                statuses.append(ask.status("elog"))
                _ = others and ask.status("info")
            return statuses

    first = pattern(3, others=False)
    assert first == pattern(3, others=True) != pattern(2, others=False)
    assert 3 < first.count(503) < 16


def test_who_is_not_let_in_meets_no_fault_and_spoiling_needs_an_answer(http: requests.Session):
    with FakeLogbook(token="a.b.c") as fake:
        fake.add_experiment(NAME)
        ask = Asker(fake, http)
        fake.fail(1, 503)
        assert ask.status("info", prefix="ws-jwt") == 401
        http.headers["Authorization"] = "Bearer a.b.c"
        assert [ask.status("info", prefix="ws-jwt") for _ in range(2)] == [503, 200]
        fake.fail(1, "truncated")
        assert ask.status("info", "nobody", prefix="ws-jwt") == 404
        assert len(ask.get("info", prefix="ws-jwt").content) < 300
        fake.fail(None, 503)
        fake.recover()
        assert ask.status("info", prefix="ws-jwt") == 200


def test_an_unknown_fault_is_refused(fake: FakeLogbook):
    with pytest.raises(UsageError, match="no fault is called"):
        fake.fail(1, 418)


# What it was asked


def test_traffic_is_summed_up_and_forgotten(fake: FakeLogbook, ask: Asker):
    fake.latency_s = 0.2
    threads = [threading.Thread(target=Asker(fake, requests.Session()).get, args=("elog",)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    fake.latency_s = 0
    size = len(ask.get("runs/1").content)
    ask.get("experiments", "")
    traffic = fake.traffic
    assert (traffic.requests, traffic.most_in_flight) == (5, 3)
    assert traffic.by_route == {"elog": 3, "runs/{num}": 1, "experiments": 1}
    assert traffic.by_experiment == {NAME: 4}
    assert traffic.by_status == {200: 4, 500: 1}
    assert traffic.users == {"jdoe"}
    assert traffic.sent_bytes > size
    assert traffic.writes == ()
    assert fake.connections == 4
    fake.forget()
    assert (fake.traffic.requests, fake.traffic.most_in_flight) == (0, 0)


def test_what_is_kept_of_an_answer_is_as_new_as_the_experiment(fake: FakeLogbook, ask: Asker):
    for n in range(3):
        fake.post(NAME, f"{n}")
        assert len(ask.value("elog")) == len(ask.value("elog")) == n + 1
    assert ask.value("elog", sampleName="none") == []


# The truth, and much of it


def test_the_truth_is_what_is_answered_and_a_copy(fake: FakeLogbook, ask: Asker):
    fake.populate(3, 30, 6, 12, parameters=30, standing=1, odd=0.5, huge=1, seed=5)
    fake.stir(60, seed=1)
    for experiment in fake.experiments:
        truth = fake.truth(experiment)
        assert {one["_id"]: one for one in ask.value("elog", experiment)} == truth.entries
        served = {one["num"]: one for one in ask.value("runs", experiment)}
        # NaN is not equal to itself.
        assert json.dumps(served, sort_keys=True) == json.dumps(truth.runs, sort_keys=True)
        assert {(one["run_num"], one["path"]): one for one in ask.value("files", experiment)} == truth.files
        assert {one["_id"]: one for one in ask.value("workflow_definitions", experiment)} == truth.workflow_definitions
        assert {one["_id"]: one for one in ask.value("workflow_jobs", experiment)} == truth.workflow_jobs
        truth.entries.clear()
        truth.info["params"].clear()
    assert fake.truth(NAME).info["params"]


def test_a_population_has_the_numbers_asked_for_and_is_the_same_for_one_seed():
    with FakeLogbook() as one, FakeLogbook() as other:
        for fake in (one, other):
            fake.set_clock(NOON)
            fake.populate(12, 40, 5, 20, parameters=50, fields=9, standing=2, seed=3)
            fake.stir(50, seed=4)
        assert len(one.experiments) == len(set(one.experiments)) == 14
        for experiment in one.experiments:
            assert json.dumps(vars_of(one, experiment)) == json.dumps(vars_of(other, experiment))
    with FakeLogbook() as fake:
        assert fake.populate(2, 40, 5, 20, parameters=50, odd=0, standing=1) == fake.experiments
        truth = fake.truth(fake.experiments[0])
        assert (len(truth.entries), len(truth.runs), len(truth.files)) == (40, 5, 20)
        assert {len(run["params"]) for run in truth.runs.values()} == {50}
        assert max(one["size"] for one in truth.files.values()) > 2**32
        assert fake.experiments[-1] == "Sample_Delivery_System"


def vars_of(fake: FakeLogbook, experiment: str) -> Any:
    truth = fake.truth(experiment)
    files = [[list(key), document] for key, document in truth.files.items()]
    return [truth.info, truth.entries, truth.runs, files, truth.workflow_jobs, truth.questionnaire]


def test_what_is_not_there_is_said(fake: FakeLogbook):
    for change in (
        lambda: fake.edit(NAME, "0" * 24, "x"),
        lambda: fake.end_run(NAME, 9),
        lambda: fake.locate_file(NAME, "/x", 1, "S3DF"),
        lambda: fake.submit_job(NAME, "0" * 24, 1),
        lambda: fake.post("nobody", "x"),
    ):
        with pytest.raises(MissingError):
            change()
    fake.start_run(NAME, 1)
    with pytest.raises(UsageError, match="already"):
        fake.start_run(NAME, 1)
    with pytest.raises(UsageError, match="already"):
        fake.rename(fake.add_experiment("cxilw4021")["_id"], NAME)


def test_it_stops_at_once_with_connections_open_and_answers_waiting():
    begin = time.monotonic()
    with requests.Session() as session, FakeLogbook() as fake:
        session.get(f"{fake.url}/ws/lgbk/lgbk/ws/get_cached_experiment_names", timeout=5)
        fake.fail(1, "drop", seconds=60)
        with pytest.raises(requests.exceptions.ReadTimeout):
            requests.get(f"{fake.url}/ws/lgbk/lgbk/ws/get_cached_experiment_names", timeout=0.1)
    assert time.monotonic() - begin < 50
    with pytest.raises(UsageError, match="not been started"):
        _ = fake.url
