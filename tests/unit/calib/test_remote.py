"""The client against a service that fails in every way that we know; time is only counted, never waited for."""

from __future__ import annotations

import gc
import logging
import pickle
import socket
import ssl
import sys
import threading
import tracemalloc
from base64 import b64decode, b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import numpy as np
import pytest
import requests
import urllib3
from spnego import ContextReq
from spnego.exceptions import InvalidCredentialError, InvalidTokenError

from blocks import CalibrationService
from nightbeam.calib import remote
from nightbeam.calib.compute import decode
from nightbeam.calib.model import NO_CONSTANTS, UNKNOWN_DETECTOR, Choice
from nightbeam.calib.remote import Anonymous, BearerToken, CalibService, Kerberos, StoppedError
from nightbeam.core.errors import (
    AuthError,
    ConfigError,
    InputError,
    MissingError,
    NightbeamError,
    RejectedError,
    UnavailableError,
)
from nightbeam.testing.calib_service import FakeCalibService

EXP, RUN = "tmoc00118", 50
UID = "epix10ka_3926196238-0175152897_3926196239-0175152898"
PEDESTALS = np.arange(18, dtype="f4").reshape(3, 6)


class Time:
    """A clock that moves only when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.waits: list[float] = []

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds


@pytest.fixture
def fake() -> Iterator[FakeCalibService]:
    with FakeCalibService() as service:
        yield service


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def client(fake: FakeCalibService, time: Time) -> Iterator[CalibService]:
    with CalibService(fake.url, sleep=time.sleep, clock=time.clock, jitter=lambda: 1.0, timeout_s=20) as service:
        yield service


def deploy(fake: FakeCalibService, ctype: str = "pedestals", data: Any = PEDESTALS, **more: Any) -> dict[str, Any]:
    return fake.deploy(EXP, UID, ctype, data, **{"run": 1, **more})


@dataclass
class Place:
    url: str
    asked: list[bytes]


@contextmanager
def canned(answers: list[bytes], host: str = "127.0.0.1", drip_s: float = 0.0) -> Iterator[Place]:
    """A port of this machine that answers so, one connection after another, the last one for ever; or byte by byte."""
    listener = socket.create_server((host, 0))
    place = Place(f"http://{host}:{listener.getsockname()[1]}", [])

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, suppress(OSError):
                connection.settimeout(5)
                place.asked.append(connection.recv(65536))
                answer = answers[min(len(place.asked), len(answers)) - 1]
                for byte in answer if drip_s else b"":
                    connection.sendall(bytes((byte,)))
                    sleep(drip_s)
                connection.sendall(b"" if drip_s else answer)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(65536):
                    pass

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield place
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
        listener.close()


def choice_of(fake: FakeCalibService, client: CalibService, ctype: str = "pedestals") -> Choice:
    choice = client.select(EXP, RUN, "epix", UID).choices[ctype]
    fake.forget()
    return choice


# Selecting


def test_the_documents_of_a_run_come_without_their_data(fake: FakeCalibService, client: CalibService):
    deploy(fake)
    late = deploy(fake, run=40)
    deploy(fake, run=60)
    deploy(fake, "geometry", "# QUAD 0\n")
    found = client.select(EXP, RUN, "epix", UID)
    assert found.short_name == "epix10ka_000001"
    assert list(found.choices) == ["geometry", "pedestals"]
    assert found.choices["pedestals"].document_id == late["_id"]
    assert found.choices["pedestals"].database == "cdb_tmoc00118"
    assert found.complete
    assert found.reason is None
    assert not any(r.is_data for r in fake.requests)


def test_a_poll_costs_two_requests_once_the_name_is_known(fake: FakeCalibService, client: CalibService):
    deploy(fake)
    client.select(EXP, RUN, "epix", UID)
    assert len(fake.requests) == 3
    for _ in range(3):
        fake.forget()
        client.select(EXP, RUN, "epix", UID)
        assert [r.path for r in fake.requests] == [
            "cdb_tmoc00118/epix10ka_000001",
            "cdb_epix10ka_000001/epix10ka_000001",
        ]
    assert client.traffic.requests == 9


def test_the_questions_are_the_filters_of_the_specification(fake: FakeCalibService, client: CalibService):
    deploy(fake)
    client.select(EXP, RUN, "epix", UID)
    assert [r.query for r in fake.requests] == [
        {"long": UID},
        {"detector": "epix10ka_000001", "run": {"$lte": 50}},
        {"detector": "epix10ka_000001", "run": {"$lte": 9999}},
    ]
    assert not any(r.in_body for r in fake.requests)


@pytest.mark.parametrize("run", [0, None])
def test_without_a_run_documents_of_every_run_are_asked_for(
    fake: FakeCalibService, client: CalibService, run: int | None
):
    deploy(fake, run=0)
    found = client.select(EXP, run, "epix", UID)
    assert fake.requests[1].query == {"detector": "epix10ka_000001", "run": {"$lte": 9999}}
    assert found.choices["pedestals"].database == "cdb_tmoc00118"


def test_what_the_experiment_lacks_comes_newest_from_the_detectors_database(
    fake: FakeCalibService, client: CalibService
):
    deploy(fake)
    fake.deploy(None, UID, "pixel_gain", PEDESTALS, run=900, created=1_700_000_000)
    newest = fake.deploy(None, UID, "pixel_gain", PEDESTALS, run=800, created=1_700_000_500)
    fake.deploy(None, UID, "pedestals", PEDESTALS, run=1, created=2_000_000_000)
    found = client.select(EXP, RUN, "epix", UID)
    assert found.choices["pixel_gain"].document_id == newest["_id"]
    assert found.choices["pixel_gain"].database == "cdb_epix10ka_000001"
    assert found.choices["pedestals"].database == "cdb_tmoc00118"
    data = client.fetch(found.choices["pixel_gain"])
    np.testing.assert_array_equal(decode(newest, data), PEDESTALS)


def test_without_an_experiment_the_detectors_database_alone_is_asked(fake: FakeCalibService, client: CalibService):
    deploy(fake)
    assert client.select(None, RUN, "epix", UID).choices["pedestals"].database == "cdb_epix10ka_000001"
    assert {r.path.partition("/")[0] for r in fake.requests} == {"cdb_detnames", "cdb_epix10ka_000001"}


def test_a_private_database_is_asked_in_the_experiments_place(fake: FakeCalibService, client: CalibService):
    deploy(fake)
    client.select(EXP, RUN, "epix", UID, suffix="mine")
    assert fake.requests[1].path == "cdb_epix10ka_000001_mine/epix10ka_000001"
    with pytest.raises(InputError, match="too long"):
        client.select(EXP, RUN, "epix", UID, suffix="m" * 40)


def test_a_failed_second_question_keeps_the_first_answer_and_says_so(
    fake: FakeCalibService, client: CalibService, caplog: pytest.LogCaptureFixture
):
    deploy(fake)
    fake.fail(None, 503, path="^cdb_epix10ka")
    found = client.select(EXP, RUN, "epix", UID)
    assert list(found.choices) == ["pedestals"]
    assert not found.complete
    assert "cdb_epix10ka_000001 could not be asked" in found.gaps[0]
    assert "HTTP status 503" in found.gaps[0]
    assert "may be missing" in caplog.text


def test_a_failed_second_question_after_an_empty_first_is_a_failure(fake: FakeCalibService, client: CalibService):
    # "No constants" would be cached as the truth.
    fake.deploy(None, UID, "pedestals", PEDESTALS, run=1)
    fake.fail(None, 503, path="^cdb_epix10ka")
    with pytest.raises(UnavailableError, match="503"):
        client.select(EXP, RUN, "epix", UID)


def test_a_second_question_that_a_later_try_cannot_mend_is_no_gap(fake: FakeCalibService, client: CalibService):
    deploy(fake)
    fake.fail(None, 401, path="^cdb_epix10ka")
    with pytest.raises(AuthError, match="401"):
        client.select(EXP, RUN, "epix", UID)
    fake.recover()
    fake.fail(None, "html", path="^cdb_epix10ka")
    with pytest.raises(InputError, match="web page"):
        client.select(EXP, RUN, "epix", UID)


def test_being_told_to_stop_at_the_second_question_is_no_gap(fake: FakeCalibService):
    deploy(fake)
    fake.fail(None, 503, path="^cdb_epix10ka")
    with (
        CalibService(fake.url, sleep=lambda seconds: True) as client,
        pytest.raises(StoppedError, match="told to stop"),
    ):
        client.select(EXP, RUN, "epix", UID)


def test_a_detector_without_constants_is_no_failure(fake: FakeCalibService, client: CalibService, time: Time):
    fake.add_detector(UID)
    found = client.select(EXP, RUN, "epix", UID)
    assert (found.choices, found.reason, found.complete) == ({}, NO_CONSTANTS, True)
    assert time.waits == []


def test_a_status_of_404_means_nothing_there(fake: FakeCalibService, client: CalibService, time: Time):
    fake.add_detector(UID)
    fake.fail(None, 404, path="^cdb_(tmo|epix)")
    assert client.select(EXP, RUN, "epix", UID).reason == NO_CONSTANTS
    assert time.waits == []


def test_an_empty_answer_of_a_wrong_address_is_not_taken_for_the_truth(fake: FakeCalibService, time: Time):
    with (
        CalibService(fake.url.replace("calib_ws", "elsewhere"), sleep=time.sleep) as client,
        pytest.raises(
            UnavailableError, match=r"list of databases at .*/elsewhere/calib_ws/ is not there either"
        ) as caught,
    ):
        client.select(EXP, RUN, "epix", UID)
    assert "correct its address" in caught.value.fix
    assert time.waits == []


def test_what_is_missing_while_everything_is_missing_is_an_outage(
    fake: FakeCalibService, client: CalibService, time: Time
):
    deploy(fake)
    choice = client.select(EXP, RUN, "epix", UID).choices["pedestals"]
    fake.fail(None, "gone")
    with pytest.raises(UnavailableError, match="is not there either") as caught:
        client.select(EXP, RUN, "epix", UID)
    assert caught.value.retry
    with pytest.raises(UnavailableError, match="is not there either"):
        client.fetch(choice)
    fake.recover()
    assert client.select(EXP, RUN, "epix", UID).choices["pedestals"] == choice


@pytest.mark.parametrize("listing", ["html", "long-body", "401", "503"])
def test_nothing_there_counts_only_with_a_proper_list_of_databases(
    fake: FakeCalibService, client: CalibService, listing: Any
):
    fake.fail(None, 404, path="^cdb_")
    fake.fail(None, listing, path="^$")
    with pytest.raises(AuthError if listing == "401" else UnavailableError):
        client.select(EXP, RUN, "epix", UID)
    assert fake.requests[1].path == ""


@pytest.mark.parametrize("listing", [[], ["cdb_tmoc00118"], ["cdb_detnames"]])
def test_the_list_of_databases_may_have_the_database_or_not(
    fake: FakeCalibService, client: CalibService, monkeypatch: pytest.MonkeyPatch, listing: list[str]
):
    fake.fail(None, 404, path="^cdb_")
    monkeypatch.setattr(fake, "_documents", lambda *_: listing)
    assert client.find("cdb_tmoc00118", "epix10ka_000001") == []


def test_the_service_is_made_sure_of_once_in_three_seconds_and_only_for_what_is_missing(
    fake: FakeCalibService, client: CalibService, time: Time
):
    deploy(fake)
    client.select(EXP, RUN, "epix", UID)
    assert "" not in [r.path for r in fake.requests]
    fake.fail(None, 404, path="^cdb_(tmo|epix)")
    for seconds, times in ((0.0, 1), (2.9, 1), (0.2, 2), (60.0, 3)):
        time.now += seconds
        assert client.select(EXP, RUN, "epix", UID).reason == NO_CONSTANTS
        assert [r.path for r in fake.requests].count("") == times


def test_what_was_missing_before_the_service_showed_itself_is_asked_for_again(
    fake: FakeCalibService, client: CalibService
):
    # A proxy that finds its service again between two questions.
    deploy(fake)
    fake.fail(1, "gone")
    assert list(client.select(EXP, RUN, "epix", UID).choices) == ["pedestals"]
    assert [r.path for r in fake.requests][:3] == ["cdb_detnames/epix10ka", "", "cdb_detnames/epix10ka"]


def test_an_unknown_detector_is_said_to_be_unknown_and_no_database_none_is_asked(
    fake: FakeCalibService, client: CalibService
):
    found = client.select(EXP, RUN, "epix", UID)
    assert (found.short_name, found.reason) == (None, UNKNOWN_DETECTOR)
    assert {r.path for r in fake.requests} == {"cdb_detnames/epix10ka"}
    fake.add_detector(UID)
    assert client.select(EXP, RUN, "epix", UID).short_name == "epix10ka_000001"


@pytest.mark.parametrize("unique_id", ["hsd_", "hsd_long-enough-to-be-translated_"])
def test_a_detector_with_an_empty_id_does_not_get_the_constants_of_another(
    fake: FakeCalibService, client: CalibService, unique_id: str
):
    fake.deploy(EXP, "hsd_detnum1234-detnum5678", "pedestals", PEDESTALS, run=1)
    found = client.select(EXP, RUN, "hsd", unique_id)
    assert (dict(found.choices), found.reason) == ({}, UNKNOWN_DETECTOR)


def test_a_short_unique_id_is_a_name_unless_the_table_has_another(fake: FakeCalibService, client: CalibService):
    assert client.short_name("cspad_detnum1234") == "cspad_detnum1234"
    fake.add_detector("cspad_detnum5678", "cspad_000007")
    assert client.short_name("cspad_detnum5678") == "cspad_000007"


def test_every_detector_of_the_test_experiment_has_the_same_constants(fake: FakeCalibService, client: CalibService):
    fake.deploy("xpptut15", "cspad_detnum1234", "pedestals", PEDESTALS, run=1)
    found = client.select("xpptut15", 14, "epix", UID)
    assert found.unique_id == UID
    assert found.choices["pedestals"].document["longname"] == "cspad_detnum1234"


@pytest.mark.parametrize(
    ("experiment", "detector", "unique_id"),
    [("../etc", "epix", UID), ("a/b", "epix", UID), (EXP, "../epix", UID)],
)  # fmt: skip
def test_names_that_lead_elsewhere_are_refused_before_anybody_is_asked(
    fake: FakeCalibService, client: CalibService, experiment: str, detector: str, unique_id: str
):
    with pytest.raises(InputError, match="is not a name"):
        client.select(experiment, RUN, detector, unique_id)
    assert fake.requests == []


@pytest.mark.parametrize("unique_id", ["", "_", "../epix_aa", "a/b_1", "..", "$x_1", "ä_1", "x\0y_1"])
def test_a_type_that_can_be_no_collection_is_asked_about_nowhere(
    fake: FakeCalibService, client: CalibService, unique_id: str
):
    found = client.select(EXP, RUN, "epix", unique_id)
    assert (dict(found.choices), found.reason) == ({}, UNKNOWN_DETECTOR)
    assert fake.requests == []


@pytest.mark.parametrize(
    "unique_id",
    [
        "ts_10.0.0.1",
        "ts_SN 4711",
        "ts_fb:ad/1",
        "ts_SN 4711 of the year 2019/b",
        "Opal.1000_3.4",
        "andor 2k_1.2_x",
        "a_",
    ],
)
def test_a_detector_with_an_unusual_serial_or_type_is_unknown_unless_the_table_has_it(
    fake: FakeCalibService, client: CalibService, unique_id: str
):
    found = client.select(EXP, RUN, "other", unique_id)
    assert (dict(found.choices), found.reason) == ({}, UNKNOWN_DETECTOR)
    assert fake.requests[0].path == f"cdb_detnames/{unique_id.partition('_')[0]}"
    assert fake.requests[0].query == {"long": unique_id}
    fake.add_detector(unique_id, "odd_000001")
    fake.deploy(EXP, unique_id, "pedestals", PEDESTALS, run=1)
    assert list(client.select(EXP, RUN, "other", unique_id).choices) == ["pedestals"]


def test_a_short_name_or_ctype_from_the_service_that_leads_elsewhere_is_refused(
    fake: FakeCalibService, client: CalibService
):
    deploy(fake, changes={"ctype": "../../etc/passwd"})
    found = client.select(EXP, RUN, "epix", UID)
    assert (dict(found.choices), found.ignored) == ({}, 2)
    for unique_id, short in (("jungfrau_000-111-222-333", "../../x"), ("epixm_000-111-222-333-444", "e" * 46)):
        fake.add_detector(unique_id, short)
        fake.forget()
        found = client.select(EXP, RUN, "jf", unique_id)
        assert (dict(found.choices), found.reason) == ({}, UNKNOWN_DETECTOR)
        assert {r.path.partition("/")[0] for r in fake.requests} == {"cdb_detnames"}


def test_a_pickle_is_refused_by_name_and_the_rest_is_handed_out(fake: FakeCalibService, client: CalibService):
    deploy(fake, "geometry", "# QUAD 0\n")
    refused = deploy(fake, "pedestals", pickle.dumps({}))
    found = client.select(EXP, RUN, "epix", UID)
    assert list(found.choices) == ["geometry"]
    assert "is a pickle" in found.refused["pedestals"]
    with pytest.raises(RejectedError, match="is a pickle"):
        client.fetch(Choice("pedestals", refused, "cdb_tmoc00118"))


def test_a_detector_with_nothing_but_pickles_says_why_it_has_none(fake: FakeCalibService, client: CalibService):
    deploy(fake, "pedestals", pickle.dumps({}))
    found = client.select(EXP, RUN, "epix", UID)
    assert not found.choices
    assert found.reason is not None
    assert "is a pickle" in found.reason


def test_damaged_documents_are_counted_and_do_not_hide_good_ones(fake: FakeCalibService, client: CalibService):
    good = deploy(fake)
    deploy(fake, run=40, changes={"run_end": "endless"}, detector_too=False)
    found = client.select(EXP, RUN, "epix", UID)
    assert found.choices["pedestals"].document_id == good["_id"]
    assert found.ignored == 1


def test_a_document_without_a_run_serves_nobody_and_is_counted(fake: FakeCalibService, client: CalibService):
    # It would pass the service's filter only where the service does not filter.
    deploy(fake, changes={"run": -1})
    for document in fake._databases["cdb_epix10ka_000001"]["epix10ka_000001"]:
        document["run"] = [0]
    fake._documents = lambda pieces, query, ask=fake._documents: ask(  # type: ignore[method-assign]
        pieces, query if pieces[0] == "cdb_detnames" else None
    )
    found = client.select(EXP, RUN, "epix", UID)
    assert [choice.run_from for choice in found.choices.values()] == [-1]
    fake._databases["cdb_tmoc00118"].clear()
    found = client.select(EXP, RUN, "epix", UID)
    assert (dict(found.choices), found.ignored, found.reason) == ({}, 1, NO_CONSTANTS)


def test_documents_of_more_than_eight_mebibytes_are_not_read(fake: FakeCalibService, client: CalibService):
    deploy(fake, changes={"comment": "x" * 2**23})
    with pytest.raises(InputError, match="at most 8388608 are read"):
        client.select(EXP, RUN, "epix", UID)


# Fetching


@pytest.mark.parametrize("dtype", ["f4", "f8", "u8", "u1", "u2"])
def test_an_array_arrives_as_it_was_deployed(fake: FakeCalibService, client: CalibService, dtype: str):
    array = np.random.default_rng(3).integers(0, 200, (3, 2, 300, 301)).astype(dtype)
    deploy(fake, "mine", array)
    choice = choice_of(fake, client, "mine")
    found = decode(choice.document, client.fetch(choice))
    np.testing.assert_array_equal(found, array)
    assert found.dtype == array.dtype  # type: ignore[union-attr]
    assert client.traffic.data_bytes == array.nbytes
    assert len(fake.requests) == 1


def test_an_array_arrives_past_a_urllib3_of_other_insides(
    fake: FakeCalibService, client: CalibService, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(remote, "HTTPResponse", str)
    array = np.random.default_rng(3).random((3, 700, 701)).astype("f4")
    deploy(fake, "pedestals", array)
    choice = choice_of(fake, client)
    for _ in range(3):
        np.testing.assert_array_equal(decode(choice.document, client.fetch(choice)), array)
    assert fake.connections == 1


def test_texts_and_empty_arrays_arrive(fake: FakeCalibService, client: CalibService):
    text = "# Geometrie ±1 µm\n" * 30_000
    deploy(fake, "geometry", text)
    deploy(fake, "empty", np.zeros((0, 4), "f4"))
    found = client.select(EXP, RUN, "epix", UID)
    geometry, empty = found.choices["geometry"], found.choices["empty"]
    assert decode(geometry.document, client.fetch(geometry)) == text
    assert decode(empty.document, client.fetch(empty)).shape == (0, 4)  # type: ignore[union-attr]


def test_a_float64_pedestal_is_kept_and_warned_about(
    fake: FakeCalibService, client: CalibService, caplog: pytest.LogCaptureFixture
):
    deploy(fake, "pedestals", PEDESTALS.astype("f8"))
    choice = choice_of(fake, client)
    with caplog.at_level(logging.WARNING):
        found = decode(choice.document, client.fetch(choice))
    assert found.dtype == np.float64  # type: ignore[union-attr]
    assert "usually float32; kept" in caplog.text


def test_an_answer_that_does_not_say_how_long_it_is_is_read_to_its_end(fake: FakeCalibService, client: CalibService):
    text = "# QUAD 0 0 1\n" * 50_000
    deploy(fake, "geometry", text)
    deploy(fake)
    found = client.select(EXP, RUN, "epix", UID)
    fake.fail(None, "no-length")
    for ctype, expected in (("geometry", text), ("pedestals", PEDESTALS)):
        choice = found.choices[ctype]
        np.testing.assert_array_equal(decode(choice.document, client.fetch(choice)), expected)  # type: ignore[arg-type]
    assert client.select(EXP, RUN, "epix", UID).keys == found.keys


def test_data_that_were_removed_are_missing_and_not_asked_for_again(
    fake: FakeCalibService, client: CalibService, time: Time
):
    document = deploy(fake)
    choice = choice_of(fake, client)
    fake.remove_data(document)
    with pytest.raises(MissingError, match="is not there"):
        client.fetch(choice)
    assert time.waits == []


@pytest.mark.parametrize("kind", ["short-body", "long-body"])
@pytest.mark.parametrize("ctype", ["pedestals", "geometry"])
def test_another_number_of_bytes_than_the_documents_is_refused(
    fake: FakeCalibService, client: CalibService, kind: Any, ctype: str
):
    deploy(fake, "geometry", "# QUAD 0 and more\n")
    deploy(fake)
    choice = choice_of(fake, client, ctype)
    fake.fail(1, kind)
    with pytest.raises(InputError, match=r"bytes where|characters and has"):
        decode(choice.document, client.fetch(choice))
    decode(choice.document, client.fetch(choice))


@pytest.mark.parametrize("kind", ["cut-body", "connection-reset"])
def test_an_answer_that_breaks_off_is_asked_for_again(
    fake: FakeCalibService, client: CalibService, time: Time, kind: Any
):
    array = np.random.default_rng(3).random((3, 700, 700)).astype("f4")
    deploy(fake, "pedestals", array)
    choice = choice_of(fake, client)
    fake.fail(2, kind)
    np.testing.assert_array_equal(decode(choice.document, client.fetch(choice)), array)
    assert len(fake.requests) == 3
    assert time.waits == [0.5, 1.0]


def test_code_in_the_place_of_a_shape_is_refused_and_never_run(fake: FakeCalibService, client: CalibService):
    deploy(fake)
    fake.fail(None, "bad-shape", path="^cdb_(tmo|epix)")
    choice = choice_of(fake, client)
    with pytest.raises(InputError, match="data_shape"):
        client.fetch(choice)
    assert fake.requests == []
    assert not Path("/tmp/nightbeam-was-here").exists()


def test_an_array_larger_than_allowed_is_not_asked_for(fake: FakeCalibService, time: Time):
    deploy(fake)
    with CalibService(fake.url, max_bytes=71) as client:
        choice = choice_of(fake, client)
        with pytest.raises(InputError, match="has 72 bytes, more than 71"):
            client.fetch(choice)
    assert fake.requests == []


def test_an_endless_text_is_cut_off(fake: FakeCalibService):
    deploy(fake, "geometry", "x" * 1000)
    with CalibService(fake.url, max_bytes=999) as client, pytest.raises(InputError, match="at most 999"):
        client.fetch(choice_of(fake, client, "geometry"))


def test_a_printed_dict_of_more_than_a_mebibyte_is_not_fetched(fake: FakeCalibService, client: CalibService):
    deploy(fake, "lasingoffreference", {"a": "x" * 2**20})
    with pytest.raises(InputError, match="at most 1048576 are read"):
        client.fetch(choice_of(fake, client, "lasingoffreference"))


@pytest.mark.parametrize("data_id", ["../../secret", "", "xyz", "1" * 23])
def test_an_id_that_leads_elsewhere_is_refused(fake: FakeCalibService, client: CalibService, data_id: str):
    deploy(fake, changes={"id_data": data_id})
    with pytest.raises(InputError, match="24 hexadecimal"):
        client.fetch(choice_of(fake, client))
    assert fake.requests == []


# Failing


@pytest.mark.parametrize("status", [500, 502, 503, 429])
def test_a_failure_that_passes_is_waited_out(fake: FakeCalibService, client: CalibService, time: Time, status: Any):
    deploy(fake)
    fake.fail(3, status)
    assert client.select(EXP, RUN, "epix", UID).choices
    assert time.waits == [0.5, 1.0, 2.0]
    assert (client.traffic.requests, client.traffic.retries) == (6, 3)


def test_a_failure_that_stays_ends_at_the_deadline(fake: FakeCalibService, client: CalibService, time: Time):
    fake.fail(None, 503)
    with pytest.raises(UnavailableError, match=r"HTTP status 503; given up at the deadline of 180 s") as caught:
        client.find("cdb_tmoc00118", "epix10ka_000001")
    assert caught.value.retry
    assert time.now - 1000.0 < 180
    assert time.waits == [0.5, 1, 2, 4, 8, 16, 30, 30, 30, 30]
    assert len(fake.requests) == 11


@pytest.mark.parametrize("kind", ["timeout", "connection-reset"])
def test_silence_is_a_failure_that_passes(fake: FakeCalibService, time: Time, kind: Any):
    deploy(fake)
    fake.fail(2, kind)
    with CalibService(fake.url, timeout_s=0.15, sleep=time.sleep, clock=time.clock, jitter=lambda: 0.0) as client:
        assert client.select(EXP, RUN, "epix", UID).choices
    assert time.waits == [0.25, 0.5]


def test_a_service_that_is_not_there_is_unavailable(time: Time):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with (
            CalibService(url, deadline_s=5, sleep=time.sleep, clock=time.clock, jitter=lambda: 1.0) as client,
            pytest.raises(UnavailableError, match=r"failed 4 times: .*refused"),
        ):
            client.find("cdb_tmoc00118", "epix10ka_000001")


def test_the_service_says_when_to_come_back(fake: FakeCalibService, client: CalibService, time: Time):
    deploy(fake)
    fake.fail(2, 429, retry_after=7)
    client.select(EXP, RUN, "epix", UID)
    assert time.waits == [7.0, 7.0]


def test_a_date_to_come_back_is_understood_and_rubbish_is_not(fake: FakeCalibService, client: CalibService, time: Time):
    deploy(fake)
    fake.fail(1, 503, retry_after=format_datetime(datetime.now(UTC) + timedelta(seconds=20), usegmt=True))
    fake.fail(1, 503, retry_after="soon")
    client.select(EXP, RUN, "epix", UID)
    assert time.waits[0] == pytest.approx(20, abs=3)
    assert time.waits[1] == 1.0


def test_a_service_that_wants_us_back_after_the_deadline_is_not_waited_for(
    fake: FakeCalibService, client: CalibService, time: Time
):
    fake.fail(None, 429, retry_after=3600)
    with pytest.raises(UnavailableError, match="429"):
        client.find("cdb_tmoc00118", "epix10ka_000001")
    assert time.waits == []


@pytest.mark.parametrize("at_once", [0, "0", "Thu, 01 Jan 1970 00:00:00 GMT"])
def test_a_service_that_wants_us_back_at_once_is_not_hammered(
    fake: FakeCalibService, client: CalibService, time: Time, at_once: Any
):
    fake.fail(None, 503, retry_after=at_once)
    with pytest.raises(UnavailableError, match="deadline"):
        client.find("cdb_tmoc00118", "epix10ka_000001")
    assert time.waits == [0.5, 1, 2, 4, 8, 16, 30, 30, 30, 30]


@pytest.mark.parametrize(
    "when",
    [
        "Mon, 01 Jan 99999999999999999999 00:00:00 GMT", "Mon, 01 Jan 2024 00:00:00 -99999999999",
        "Mon, 01 Jan 0001 00:00:00 +2359", "Mon, 99 Foo 2024 99:99:99 GMT", ",", "-1", "1e3", "NaN",
    ],
)  # fmt: skip
def test_an_absurd_date_to_come_back_is_ignored(fake: FakeCalibService, client: CalibService, time: Time, when: str):
    fake.fail(1, 503, retry_after=when)
    assert client.find("cdb_tmoc00118", "epix10ka_000001") == []
    assert time.waits == [0.5]


def test_a_pause_of_thousands_of_digits_is_too_long(fake: FakeCalibService, client: CalibService, time: Time):
    fake.fail(None, 503, retry_after="9" * 5000)
    with pytest.raises(UnavailableError, match="deadline"):
        client.find("cdb_tmoc00118", "epix10ka_000001")
    assert time.waits == []


_OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (_OK + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n[]", InputError),
        (_OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n[]", UnavailableError),
        (_OK + b"Content-Length: 200000\r\n\r\n" + b"[" * 200_000, InputError),
        (_OK + b"Content-Length: 5002\r\n\r\n[" + b"9" * 5000 + b"]", InputError),
        (_OK + b"Content-Length: 4\r\n\r\n\xff\xfe\xff\xff", InputError),
        (b"HTTP/1.1 503 x\r\nRetry-After: \xff\xfe\r\nContent-Length: 0\r\n\r\n", UnavailableError),
        (b"HTTP/1.1 20\xff OK\r\n\r\n", UnavailableError),
        (b"HTTP/1.1 999999 OK\r\n\r\n", UnavailableError),
        (_OK + b"A: b\r\n" * 200 + b"\r\n", UnavailableError),
        (b"rubbish\r\n\r\n", UnavailableError),
    ],
    ids=range(10),
)
def test_whatever_is_answered_the_error_is_one_of_ours(time: Time, answer: bytes, error: type[Exception]):
    with (
        canned([answer]) as place,
        CalibService(place.url, sleep=lambda seconds: True) as client,
        pytest.raises(error),
    ):
        client.find("cdb_tmoc00118", "epix10ka_000001")


@pytest.mark.parametrize("alert", [b"", bytes.fromhex("15030300020250")])
def test_a_handshake_that_breaks_off_is_a_failure_that_passes(alert: bytes):
    waits: list[float] = []

    def sleep(seconds: float) -> bool:
        waits.append(seconds)
        return len(waits) == 3

    with (
        canned([alert]) as place,
        CalibService(place.url.replace("http:", "https:"), sleep=sleep) as client,
        pytest.raises(UnavailableError, match=r"failed 3 times: .*SSL.*told to stop"),
    ):
        client.find("cdb_tmoc00118", "epix10ka_000001")


def test_a_certificate_that_nobody_vouches_for_is_a_matter_of_settings(
    fake: FakeCalibService, client: CalibService, time: Time, monkeypatch: pytest.MonkeyPatch
):
    def turn_down(*_: Any, **__: Any) -> None:
        reason = urllib3.exceptions.SSLError(ssl.SSLCertVerificationError(1, "self-signed certificate"))
        raise requests.exceptions.SSLError(urllib3.exceptions.MaxRetryError(None, "/", reason))  # type: ignore[arg-type]

    monkeypatch.setattr(requests.Session, "get", turn_down)
    with pytest.raises(ConfigError, match="self-signed") as caught:
        client.find("cdb_tmoc00118", "epix10ka_000001")
    assert "REQUESTS_CA_BUNDLE" in caught.value.fix
    assert time.waits == []


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_is_not_asked_again_and_says_what_to_show(
    fake: FakeCalibService, client: CalibService, time: Time, status: Any
):
    fake.fail(None, status)
    with pytest.raises(AuthError, match=f"HTTP status {status}") as caught:
        client.select(EXP, RUN, "epix", UID)
    assert "CALIB_JWT" in caught.value.fix
    assert len(fake.requests) == 1


def test_a_web_page_is_no_answer_for_documents_nor_for_data(fake: FakeCalibService, client: CalibService):
    deploy(fake)
    deploy(fake, "geometry", "# QUAD 0\n")
    choice = choice_of(fake, client, "geometry")
    fake.fail(2, "html")
    with pytest.raises(InputError, match="web page"):
        client.select(EXP, RUN, "epix", UID)
    with pytest.raises(InputError, match="web page"):
        client.fetch(choice)


@pytest.mark.parametrize("kind", ["short-body", "long-body"])
def test_documents_that_are_not_json_are_refused(fake: FakeCalibService, client: CalibService, kind: Any):
    deploy(fake)
    fake.fail(1, kind, path="^cdb_tmo")
    with pytest.raises(InputError, match="not JSON"):
        client.select(EXP, RUN, "epix", UID)


def test_an_answer_that_is_no_list_of_documents_is_refused(
    fake: FakeCalibService, client: CalibService, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(fake, "_documents", lambda *_: [1, "two"])
    with pytest.raises(InputError, match="list of documents"):
        client.find("cdb_tmoc00118", "epix10ka_000001")


def test_a_slow_answer_does_not_outlive_the_deadline(fake: FakeCalibService, time: Time):
    deploy(fake, "pedestals", np.zeros((600, 1000), "f4"))
    with CalibService(fake.url, deadline_s=10, sleep=time.sleep, clock=time.clock) as client:
        choice = choice_of(fake, client)
        ticks = iter(range(0, 10**6, 5))
        client._clock = lambda: float(next(ticks))  # every look at the clock takes five seconds
        with pytest.raises(UnavailableError, match="before the deadline"):
            client.fetch(choice)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["trickle", "trickle-head"])
@pytest.mark.parametrize("what", ["documents", "array", "text"])
def test_an_answer_that_trickles_is_cut_off_at_the_deadline(kind: Any, what: str):
    # By the real clock; every byte comes long before the timeout.
    with (
        FakeCalibService(drip_s=0.05) as fake,
        CalibService(fake.url, timeout_s=0.4, deadline_s=0.5) as client,
    ):
        deploy(fake, "geometry", "# QUAD 0 0 1 and so on\n" * 50)
        deploy(fake)
        choices = client.select(EXP, RUN, "epix", UID).choices
        fake.fail(None, kind)
        ask = {
            "documents": lambda: client.find(f"cdb_{EXP}", "epix10ka_000001"),
            "array": lambda: client.fetch(choices["pedestals"]),
            "text": lambda: client.fetch(choices["geometry"]),
        }[what]
        begin = monotonic()
        with pytest.raises(UnavailableError, match="deadline"):
            ask()
        assert 0.4 < monotonic() - begin < 15  # all of it takes longer


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scheme", "answer"),
    [
        ("https", bytes.fromhex("1603034000") + bytes(1000)),  # a handshake of 16 KiB
        ("http", _OK + b"Transfer-Encoding: chunked\r\n\r\n" + b"0" * 1000),  # the length of a chunk
        ("http", b"HTTP/1.1 100 Continue\r\n\r\n" * 90),
        ("http", _OK + b"\r\n[" + b" " * 1000),  # without a length: what was cut off is not the end
    ],
    ids=["handshake", "chunk", "continue", "no-length"],
)
def test_whatever_trickles_is_cut_off_at_the_deadline(scheme: str, answer: bytes):
    with (
        canned([answer], drip_s=0.03) as place,
        CalibService(place.url.replace("http", scheme), timeout_s=0.4, deadline_s=0.5) as client,
    ):
        begin = monotonic()
        with pytest.raises(UnavailableError, match="deadline"):  # a handshake ends by its own, total timeout
            client.find("cdb_tmoc00118", "epix10ka_000001")
        assert 0.3 < monotonic() - begin < 15  # all of it takes 30 s


def test_an_answer_that_is_in_time_is_not_cut_and_leaves_nothing_behind(fake: FakeCalibService, client: CalibService):
    deploy(fake)
    choice = choice_of(fake, client)
    before = (threading.active_count(), len(list(Path("/proc/self/fd").iterdir())))
    for _ in range(20):
        client.fetch(choice)
    deadline = monotonic() + 5
    while threading.active_count() > before[0] and monotonic() < deadline:
        sleep(0.01)
    assert threading.active_count() <= before[0]
    assert len(list(Path("/proc/self/fd").iterdir())) == before[1]
    assert fake.connections == 1


def test_being_told_to_stop_ends_the_waiting(fake: FakeCalibService):
    stop = threading.Event()
    stop.set()
    fake.fail(None, 503)
    with CalibService(fake.url, sleep=stop.wait) as client, pytest.raises(UnavailableError, match="told to stop"):
        client.find("cdb_tmoc00118", "epix10ka_000001")
    assert len(fake.requests) == 1


def test_every_failure_survives_the_way_to_another_process(fake: FakeCalibService, client: CalibService):
    fake.fail(None, 503)
    with pytest.raises(NightbeamError) as caught:
        client.find("cdb_tmoc00118", "epix10ka_000001")
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), again.what) == (UnavailableError, caught.value.what)


def test_connections_are_used_again(fake: FakeCalibService, client: CalibService):
    deploy(fake)
    choice = choice_of(fake, client)
    for _ in range(4):
        client.fetch(choice)
    client.select(EXP, RUN, "epix", UID)
    fake.add_detector("jungfrau_1")
    client.select(EXP, RUN, "jungfrau", "jungfrau_1")
    assert fake.connections == 1


def test_threads_may_share_a_client(fake: FakeCalibService, client: CalibService):
    deploy(fake, "pedestals", np.random.default_rng(1).random((3, 200, 200)).astype("f4"))
    choice = choice_of(fake, client)
    expected = bytes(client.fetch(choice))
    wrong: list[int] = []

    def ask(number: int) -> None:
        if any(bytes(client.fetch(choice)) != expected for _ in range(5)):
            wrong.append(number)

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert client.traffic.data_bytes == 31 * len(expected)


# Who asks


def test_a_token_is_shown_and_the_filter_goes_into_the_body():
    with FakeCalibService(token="abc.def") as fake:
        fake.deploy(EXP, UID, "pedestals", PEDESTALS, run=1)
        with CalibService(fake.url, auth=BearerToken("abc.def")) as client:
            choice = client.select(EXP, RUN, "epix", UID).choices["pedestals"]
            client.fetch(choice)
        assert {r.authorization for r in fake.requests} == {"Bearer abc.def"}
        assert [r.in_body for r in fake.requests] == [True, True, True, False]
        assert fake.requests[1].query == {"detector": "epix10ka_000001", "run": {"$lte": 50}}
        with CalibService(fake.url) as nobody, pytest.raises(AuthError, match="401"):
            nobody.select(EXP, RUN, "epix", UID)


def test_a_token_can_go_with_filters_in_the_address(fake: FakeCalibService):
    deploy(fake)
    with CalibService(fake.url, auth=BearerToken("abc", filter_in_body=False)) as client:
        assert client.select(EXP, RUN, "epix", UID).choices
    assert not any(r.in_body for r in fake.requests)
    assert {r.authorization for r in fake.requests} == {"Bearer abc"}


def test_a_token_is_never_sent_in_the_clear_nor_printed():
    with pytest.raises(ConfigError, match="in the clear") as caught:
        CalibService("http://pswww.slac.stanford.edu/ws", auth=BearerToken("s3cret"))
    assert "s3cret" not in str(caught.value)
    assert "s3cret" not in repr(BearerToken("s3cret"))
    with pytest.raises(ConfigError, match="blanks"):
        BearerToken("two words")


def test_a_ticket_is_shown_over_plain_http_to_this_machine_alone():
    with pytest.raises(ConfigError, match="in the clear"):
        CalibService("http://pswww.slac.stanford.edu/ws-kerb", auth=Kerberos())
    CalibService("http://127.0.0.1:1", auth=Kerberos()).close()


WS = "https://pswww.slac.stanford.edu/ws"


@pytest.mark.parametrize(
    ("environ", "auth", "address", "kind"),
    [
        ({}, None, f"{WS}/calib_ws", Anonymous),
        ({"CALIB_JWT": "t"}, None, f"{WS}-jwt/calib_ws", BearerToken),
        ({"CALIB_JWT": "t"}, "none", f"{WS}/calib_ws", Anonymous),
        ({"CALIB_JWT": "t"}, Anonymous(), f"{WS}/calib_ws", Anonymous),
        ({"CALIB_JWT": "t"}, "token", f"{WS}-jwt/calib_ws", BearerToken),
        ({"CALIB_JWT": "t"}, "kerberos", f"{WS}-kerb/calib_ws", Kerberos),
        ({}, "kerberos", f"{WS}-kerb/calib_ws", Kerberos),
        ({}, Kerberos(), f"{WS}-kerb/calib_ws", Kerberos),
        ({}, BearerToken("x"), f"{WS}-jwt/calib_ws", BearerToken),
        (
            {"LCLS_CALIB_HTTP": "http://localhost:1/x", "CALIB_JWT": "t"},
            None,
            "http://localhost:1/x/calib_ws",
            BearerToken,
        ),
        ({"SIT_PSDM_OFFSITE": "1"}, "none", "https://psextapi.slac.stanford.edu/calib_ws", Anonymous),
    ],
)
def test_who_asks_decides_where_unless_the_environment_does(
    environ: dict[str, str], auth: Any, address: str, kind: type
):
    with CalibService.from_environment(environ, auth=auth, timeout_s=1) as client:
        assert client.base_url == address
        assert type(client._auth) is kind
    with CalibService.from_environment(environ, auth=auth, url="https://h/y") as client:
        assert client.base_url == "https://h/y/calib_ws"
        assert type(client._auth) is kind


@pytest.mark.parametrize("auth", [Anonymous(), BearerToken("t"), Kerberos(), None])
def test_without_an_address_it_is_the_laboratorys_for_who_asks(auth: Any):
    with CalibService(auth=auth) as client:
        assert client.base_url == f"{(auth or Anonymous()).default_url}/calib_ws"


def test_a_token_that_is_asked_for_must_be_there():
    with pytest.raises(ConfigError, match="token is empty"):
        CalibService.from_environment({}, auth="token")


@pytest.mark.parametrize(
    ("block", "token", "address", "kind"),
    [
        ({}, "worker's", f"{WS}/calib_ws", Anonymous),
        ({"auth": "none"}, "worker's", f"{WS}/calib_ws", Anonymous),
        ({"auth": "token"}, "worker's", f"{WS}-jwt/calib_ws", BearerToken),
        ({"auth": "token", "token": "own"}, None, f"{WS}-jwt/calib_ws", BearerToken),
        ({"auth": "kerberos"}, "worker's", f"{WS}-kerb/calib_ws", Kerberos),
        ({"auth": "token", "token": "own", "url": "https://h/x"}, "worker's", "https://h/x/calib_ws", BearerToken),
    ],
)
def test_the_blocks_choice_of_who_asks_is_the_clients(
    monkeypatch: pytest.MonkeyPatch, block: dict[str, str], token: str | None, address: str, kind: type
):
    for name in ("CALIB_JWT", "LCLS_CALIB_HTTP", "SIT_PSDM_OFFSITE"):
        monkeypatch.delenv(name, raising=False)
    if token:
        monkeypatch.setenv("CALIB_JWT", token)
    with CalibrationService(**block).client() as client:  # type: ignore[arg-type]
        assert client.base_url == address
        assert type(client._auth) is kind
        if isinstance(client._auth, BearerToken):
            assert client._auth.token == block.get("token", token)


def test_an_anonymous_client_sends_no_password_of_netrc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.2 login me password s3cret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    # Another address of this machine, for which the client believes in proxies and .netrc.
    monkeypatch.setenv("NO_PROXY", "127.0.0.2")
    with canned([_OK + b"Content-Length: 2\r\n\r\n[]"], host="127.0.0.2") as place, CalibService(place.url) as client:
        assert client.find("cdb_tmoc00118", "epix10ka_000001") == []
    assert b"GET /calib_ws/cdb_tmoc00118" in place.asked[0]
    assert b"Authorization" not in place.asked[0]


# Redirects


def test_redirects_within_the_service_are_followed_with_the_question(fake: FakeCalibService, client: CalibService):
    deploy(fake)
    deploy(fake, run=60)
    fake.fail(3, "redirect", path="^cdb_tmo", to="/calib_ws/cdb_tmoc00118/epix10ka_000001")
    assert client.select(EXP, RUN, "epix", UID).choices["pedestals"].run_from == 1
    asked = [r for r in fake.requests if r.path.startswith("cdb_tmo")]
    assert [r.status for r in asked] == [302, 302, 302, 200]
    assert {str(r.query) for r in asked} == {"{'detector': 'epix10ka_000001', 'run': {'$lte': 50}}"}
    assert client.traffic.requests == len(fake.requests)
    assert client.traffic.retries == 0


def test_a_redirect_of_data_and_of_a_question_in_the_body_is_followed():
    with FakeCalibService(token="abc") as fake:
        fake.deploy(EXP, UID, "pedestals", PEDESTALS, run=1)
        with CalibService(fake.url, auth=BearerToken("abc")) as client:
            fake.fail(1, "redirect", path="^cdb_tmo")
            choice = client.select(EXP, RUN, "epix", UID).choices["pedestals"]
            fake.fail(1, "redirect", path="/gridfs/")
            assert bytes(client.fetch(choice)) == PEDESTALS.tobytes()
        assert {r.authorization for r in fake.requests} == {"Bearer abc"}
        assert all(r.in_body for r in fake.requests if not r.is_data)


def test_redirects_without_end_are_followed_three_times(fake: FakeCalibService, client: CalibService):
    fake.fail(None, "redirect")
    with pytest.raises(InputError, match="redirects more than 3 times"):
        client.find("cdb_tmoc00118", "epix10ka_000001")
    assert len(fake.requests) == 4


@pytest.mark.parametrize(
    ("to", "error"),
    [("https://login.example/sso?back=x", AuthError), ("http://127.0.0.2:9/calib_ws/x", InputError)],
)
def test_who_asks_is_not_told_to_another_server(to: str, error: type[Exception]):
    with FakeCalibService(token="abc") as fake, CalibService(fake.url, auth=BearerToken("abc")) as client:
        fake.fail(None, "redirect", to=to)
        with pytest.raises(error, match=to.partition("?")[0]):
            client.find("cdb_tmoc00118", "epix10ka_000001")
        assert len(fake.requests) == 1


@pytest.mark.parametrize("location", [b"http://[bad/", b"http://\xff\xfe/", b"", b"\xff"])
def test_a_redirect_that_makes_no_sense_is_an_error_of_ours(location: bytes):
    answer = b"HTTP/1.1 302 x\r\nLocation: " + location + b"\r\nContent-Length: 0\r\n\r\n"
    with canned([answer]) as place, CalibService(place.url) as client, pytest.raises(InputError, match="redirects"):
        client.find("cdb_tmoc00118", "epix10ka_000001")


def test_the_body_of_a_redirect_is_not_read():
    rest = 2**34  # announced; whoever waits for it waits for ever
    redirect = f"HTTP/1.1 302 x\r\nLocation: /calib_ws/b\r\nContent-Length: {rest}\r\n\r\n".encode()
    good = _OK + b"Content-Length: 2\r\n\r\n[]"
    with canned([redirect + bytes(2**16), good]) as place, CalibService(place.url, timeout_s=5) as client:
        assert client.find("cdb_tmoc00118", "epix10ka_000001", {"run": 1}) == []
    assert place.asked[1].startswith(b"GET /calib_ws/b?query_string=%7B%22run%22%3A1%7D HTTP")


def test_no_proxy_stands_between_us_and_this_machine(fake: FakeCalibService, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with CalibService(fake.url, deadline_s=1) as client:
        assert client.find("cdb_tmoc00118", "epix10ka_000001") == []


# Kerberos; with a real realm in tests/system/test_calib_kerberos.py


class Proofs:
    """Stands in for Kerberos: who asks shows ``ask-N``, and takes no other proof than ``proof-N``."""

    def __init__(self) -> None:
        self.made: list[dict[str, Any]] = []
        self.refusal: Exception | None = None
        self.lock = threading.Lock()

    def client(self, **options: Any) -> Any:
        with self.lock:
            self.made.append(options)
            return _Context(len(self.made), self)

    @staticmethod
    def gate(shown: str | None) -> dict[str, str] | None:
        """What a right service adds to its answer."""
        if shown is None or not shown.startswith("Negotiate "):
            return None
        number = b64decode(shown.split()[1]).decode().rpartition("-")[2]
        return {"WWW-Authenticate": "Negotiate " + b64encode(f"proof-{number}".encode()).decode()}


class _Context:
    def __init__(self, number: int, proofs: Proofs) -> None:
        self.number, self.proofs, self.complete = number, proofs, False

    def step(self, token: bytes | None = None) -> bytes:
        if token is None:
            if self.proofs.refusal:
                raise self.proofs.refusal
            return f"ask-{self.number}".encode()
        if token != f"proof-{self.number}".encode():
            raise InvalidTokenError(context_msg="no proof of mine")
        self.complete = True
        return b""


@pytest.fixture
def proofs(monkeypatch: pytest.MonkeyPatch) -> Proofs:
    found = Proofs()
    monkeypatch.setattr("spnego.client", found.client)
    return found


def test_kerberos_is_loaded_only_when_asked_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "spnego", None)
    CalibService("https://host/ws").close()
    with pytest.raises(ConfigError, match="Kerberos was asked for"):
        CalibService("https://host/ws", auth=Kerberos())


def test_every_request_has_a_proof_of_its_own_unasked_even_from_threads(proofs: Proofs):
    with FakeCalibService(gate=proofs.gate) as fake, CalibService(fake.url, auth=Kerberos()) as client:
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda _: client.find("cdb_a", "b"), range(40)))
        assert answers == [[]] * 40
        assert {r.status for r in fake.requests} == {200}
        assert len({r.authorization for r in fake.requests}) == 40
        assert client.traffic.requests == 40
    assert {(o["service"], o["hostname"], o["protocol"]) for o in proofs.made} == {
        ("HTTP", "pswww.slac.stanford.edu", "kerberos")
    }
    assert all(o["context_req"] & ContextReq.mutual_auth for o in proofs.made)
    with pytest.raises(ConfigError, match="HTTP@host"):
        Kerberos("pswww").prepare()


@pytest.mark.parametrize("proof", ["", "Negotiate", "Negotiate cHJvb2YtOTk=", "Negotiate =", "Basic realm=x"])
def test_who_answers_without_a_right_proof_is_not_the_service(proofs: Proofs, proof: str):
    with (
        FakeCalibService(gate=lambda _: {"WWW-Authenticate": proof}) as fake,
        CalibService(fake.url, auth=Kerberos()) as client,
        pytest.raises(AuthError, match="does not prove that it is HTTP@pswww") as caught,
    ):
        client.find("cdb_a", "b")
    assert "kinit" not in str(caught.value)


def test_a_failure_or_a_redirect_needs_no_proof(proofs: Proofs, time: Time):
    with (
        FakeCalibService(gate=proofs.gate) as fake,
        CalibService(fake.url, auth=Kerberos(), sleep=time.sleep, clock=time.clock, jitter=lambda: 1.0) as client,
    ):
        fake.fail(2, 503, retry_after=7)
        assert client.find("cdb_a", "b") == []
        assert time.waits == [7.0, 7.0]
        fake.fail(1, "redirect", to="https://login.example/")
        with pytest.raises(AuthError, match="login page"):
            client.find("cdb_a", "b")
        fake.fail(1, "redirect")
        assert client.find("cdb_a", "b") == []


def test_a_ticket_that_the_service_refuses_is_told_from_a_missing_one(proofs: Proofs):
    with FakeCalibService(gate=lambda _: None) as fake, CalibService(fake.url, auth=Kerberos()) as client:
        with pytest.raises(AuthError, match="HTTP status 401"):
            client.find("cdb_a", "b")
        assert len(fake.requests) == 1
        proofs.refusal = InvalidCredentialError(context_msg="Ticket expired")
        with pytest.raises(AuthError, match=r"no Kerberos ticket for HTTP@pswww.*Ticket expired") as caught:
            client.find("cdb_a", "b")
        assert "kinit" in caught.value.fix
        assert len(fake.requests) == 1


def test_a_silent_ticket_server_is_a_failure_that_passes(proofs: Proofs, time: Time):
    proofs.refusal = InvalidCredentialError(context_msg="Cannot contact any KDC for realm 'X'")
    with (
        CalibService("http://127.0.0.1:1", auth=Kerberos(), sleep=time.sleep, clock=time.clock) as client,
        pytest.raises(UnavailableError, match="Cannot contact any KDC"),
    ):
        client.find("cdb_a", "b")
    assert len(time.waits) > 2


def test_memory_is_the_arrays_own_and_hardly_more(fake: FakeCalibService, client: CalibService):
    array = np.zeros((3, 1000, 1000), "f4")
    deploy(fake, "pedestals", array)
    choice = choice_of(fake, client)
    gc.collect()
    tracemalloc.start()
    try:
        data = client.fetch(choice)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(data) == array.nbytes
    assert peak < array.nbytes + 4_000_000
