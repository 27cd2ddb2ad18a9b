"""Addresses, names, choice by hand, and bytes that are what their document says."""

from __future__ import annotations

import logging
import pickle
import traceback
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest

from nightbeam.calib import compute
from nightbeam.calib.compute import (
    array_layout,
    base_url,
    base_url_from,
    check_collection,
    choose_document,
    creation_time,
    decode,
    detector_type,
    dtype_remark,
    expected_bytes,
    is_understood,
    needs_update,
    newest_of_each,
    redirect_target,
    service_id,
    short_name_from,
    text_limit,
)
from nightbeam.core.errors import AuthError, ConfigError, InputError, RejectedError

PREFIX, BASE = "https://pswww.slac.stanford.edu/ws", "https://pswww.slac.stanford.edu/ws/calib_ws"
OTHER = "https://h/x/calib_ws"
PSDMINT = "https://psdmint.sdf.slac.stanford.edu/calib_ws"


def array_document(array: np.ndarray[Any, Any], **changes: Any) -> dict[str, Any]:
    facts = {"data_type": "ndarray", "data_dtype": str(array.dtype), "data_shape": str(array.shape)}
    return {"_id": "65541b00" + "0" * 16, "ctype": "pedestals", **facts, **changes}


def text_document(ctype: str = "geometry", **changes: Any) -> dict[str, Any]:
    return {"_id": "65541b00" + "0" * 16, "ctype": ctype, "data_type": "str", **changes}


def made(seconds: int, number: int = 0) -> str:
    return f"{seconds:08x}{number:016x}"


# Addresses: the table of spec 3.1


@pytest.mark.parametrize(
    ("text", "address"),
    [
        (PSDMINT, PSDMINT),  # May 2025: the full base
        (PSDMINT + "/", PSDMINT),  # 2025-09: the same with a slash
        (PREFIX, BASE),  # 2026-09: a prefix
        (PREFIX + "/", BASE),
        ("https://psdm.slac.stanford.edu/ws", "https://psdm.slac.stanford.edu/ws/calib_ws"),
        ("https://psextapi.slac.stanford.edu/calib_ws/", "https://psextapi.slac.stanford.edu/calib_ws"),
        ("https://pswww.slac.stanford.edu/ws-kerb/calib_ws/", "https://pswww.slac.stanford.edu/ws-kerb/calib_ws"),
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080/calib_ws"),
        ("http://[::1]:8080//x//calib_ws//", "http://[::1]:8080/x/calib_ws"),
        ("http://127.0.0.1/old_calib_ws", "http://127.0.0.1/old_calib_ws/calib_ws"),
    ],
)
def test_both_meanings_of_the_address_lead_to_the_same_place(text: str, address: str):
    assert base_url(text) == address
    assert base_url(address) == address


@pytest.mark.parametrize(
    ("environ", "address"),
    [
        ({}, BASE),
        ({"LCLS_CALIB_HTTP": PSDMINT}, PSDMINT),
        ({"LCLS_CALIB_HTTP": PREFIX}, BASE),
        ({"SIT_PSDM_OFFSITE": "1"}, "https://psextapi.slac.stanford.edu/calib_ws"),
        ({"SIT_PSDM_OFFSITE": "1", "LCLS_CALIB_HTTP": PREFIX}, "https://psextapi.slac.stanford.edu/calib_ws"),
        ({"CALIB_JWT": "t", "LCLS_CALIB_HTTP": "http://localhost:1"}, "http://localhost:1/calib_ws"),
        ({"LCLS_CALIB_HTTP": "", "SIT_PSDM_OFFSITE": ""}, BASE),
    ],
)
def test_the_variables_of_the_original_name_the_address(environ: dict[str, str], address: str):
    assert base_url_from(environ) == address
    assert base_url_from(environ, "https://h/x") == (
        address if address != BASE or PREFIX in environ.values() else OTHER
    )


HERE = "http://host:80/ws/calib_ws"


@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("http://host/ws/calib_ws/b", f"{HERE}/b?query_string=1".replace(":80", "")),
        ("/ws/calib_ws/b/", f"{HERE}/b/?query_string=1"),
        ("b?query_string=2&x=3#part", f"{HERE}/b?query_string=1"),
        ("http:///x", "http://host:80/x?query_string=1"),
        ("//host:80/elsewhere", "http://host:80/elsewhere?query_string=1"),
        ("HTTP://HOST/ws/calib_ws/login", "http://HOST/ws/calib_ws/login?query_string=1"),
    ],
)
def test_a_redirect_within_the_service_keeps_the_question(location: str, target: str):
    assert redirect_target(HERE, f"{HERE}/a?query_string=1", location) == target


def test_a_redirect_of_a_place_that_was_asked_without_a_filter_may_bring_its_own_query():
    assert redirect_target(HERE, f"{HERE}/a", "b?page=1") == f"{HERE}/b?page=1"


@pytest.mark.parametrize(
    ("location", "error", "words"),
    [
        ("https://host/ws/calib_ws/b", InputError, "another server, 'https://host/ws/calib_ws/b'"),
        ("http://host:81/ws/calib_ws/b?token=s3cret", InputError, "another server, 'http://host:81/ws/calib_ws/b'\n"),
        ("//elsewhere", InputError, "another server, 'http://elsewhere'"),
        ("https://login.example/x?back=1", AuthError, "login page, 'https://login.example/x'"),
        ("https://cas.example/", AuthError, "login page"),
        ("https://idp.example/saml2/start", AuthError, "login page"),
        ("/oauth2/start?rd=x", AuthError, "login page, 'http://host:80/oauth2/start'"),
        ("http://forecast.example/authors/", InputError, "another server"),
        ("", InputError, "cannot be understood"),
        ("http://[bad/", InputError, "cannot be understood"),
        ("http://h:99999999/", InputError, "cannot be understood"),
        ("http://h:x/", InputError, "cannot be understood"),
        ("ftp://host/x", InputError, "cannot be understood"),
        ("file:///etc/passwd", InputError, "cannot be understood"),
        ("http://\xff\xfe/", InputError, "cannot be understood"),
        ("http://me:s3cret@host/", InputError, "cannot be understood"),
        ("http://host:80\\@elsewhere/", InputError, "cannot be understood"),
    ],
)
def test_a_redirect_to_anywhere_else_is_not_followed_and_says_where_it_led(
    location: str, error: type[Exception], words: str
):
    with pytest.raises(error, match=words) as caught:
        redirect_target(HERE, f"{HERE}/a?query_string=1", location)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["", "pswww.slac.stanford.edu/ws", "ftp://host/ws", "https://", "http://[", "https://h/ws?x=1", "file:///x"]
)
def test_what_is_no_address_is_refused(text: str):
    with pytest.raises(ConfigError, match="address"):
        base_url(text)


@pytest.mark.parametrize(
    "text",
    [
        "https://me:secret@host/ws", "me:secret@host/ws", "http:/me:secret@host/ws", "https:me:secret@host/ws",
        "https://me:secret/x@host/ws", "https://me:se?cret#secret@host/ws", "https://me:secret\uff0f@host/ws",
        "host/ws?token=secret", "https://[host/?token=secret", "https://host:port/?secret",
    ],
)  # fmt: skip
def test_a_password_in_an_address_is_refused_and_not_repeated(text: str):
    with pytest.raises(ConfigError, match="address") as caught:
        base_url(text)
    shown = "".join(traceback.format_exception(caught.value))
    assert "secret" not in shown.replace(text, "")
    assert "secret" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


# Names


def names(*pairs: tuple[str, str]) -> list[dict[str, Any]]:
    return [{"long": long, "short": short} for long, short in pairs]


def test_the_exact_long_name_decides():
    table = names(("epix_aa_bb_cc", "epix_000001"), ("epix_aa_bb", "epix_000002"))
    assert short_name_from(table, "epix_aa_bb") == "epix_000002"


def test_without_an_exact_hit_the_first_detector_that_has_every_segment_is_it(caplog: pytest.LogCaptureFixture):
    table = names(("epix_aa", "epix_000001"), ("epix_aa_bb_cc", "epix_000002"), ("epix_bb_cc_dd", "epix_000003"))
    assert short_name_from(table, "epix_cc_bb") == "epix_000002"
    assert "2 detectors" in caplog.text


def test_a_piece_is_a_whole_piece_and_not_a_part_of_one():
    assert short_name_from(names(("epix_0123", "epix_000001")), "epix_12") is None


@pytest.mark.parametrize("unique_id", ["hsd_", "hsd", "hsd__", "hsd_aa_"])
def test_an_empty_id_matches_no_detector(unique_id: str):
    # The original looked for substrings; an empty one is in everything.
    assert short_name_from(names(("hsd_aa_bb", "hsd_000001")), unique_id) is None


def test_two_exact_hits_are_no_exact_hit():
    assert short_name_from(names(("e_a", "e_1"), ("e_a", "e_2")), "e_a") == "e_1"


@pytest.mark.parametrize("name", ["epix10ka", "Opal.1000", "a b", "a:b", "a%2Fb", "~", "x" * 127])
def test_a_collection_may_have_an_unusual_name(name: str):
    assert check_collection(name) == name
    assert detector_type(f"{name}_1_2") == name


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\\b", "$cmd", "system.users", "ä", "a\n", "a\0", "x" * 128])
def test_what_cannot_be_a_collection_is_refused(name: str):
    with pytest.raises(InputError, match="is not a name"):
        check_collection(name)


def test_entries_without_a_short_name_are_passed_over():
    table: list[dict[str, Any]] = [{"long": "epix_aa"}, {"long": "epix_aa", "short": None}, {"short": "epix_9"}]
    assert short_name_from(table, "epix_aa") is None


def test_a_short_name_that_leads_elsewhere_is_refused():
    with pytest.raises(InputError, match=r"'\.\./x'"):
        short_name_from(names(("epix_aa", "../x")), "epix_aa")


def test_the_test_experiment_always_stands_for_one_detector():
    assert service_id("xpptut15", "epix_aa") == "cspad_detnum1234"
    assert service_id("tmoc00118", "epix_aa") == "epix_aa"
    assert service_id(None, "epix_aa") == "epix_aa"


@pytest.mark.parametrize("name", ["", "../etc", "a/b", "a b", "a%2f", "a\n", "é", "x" * 128])
def test_names_that_could_leave_their_place_are_refused(name: str):
    with pytest.raises(InputError, match="is not a name"):
        compute.check_name("experiment", name)


# Choosing, by hand


def document(run: int, run_end: Any, seconds: int = 1, **more: Any) -> dict[str, Any]:
    return {"_id": made(seconds), "run": run, "run_end": run_end, "ctype": "pedestals", **more}


def test_a_later_range_beats_an_earlier_one_even_if_it_was_made_before():
    early, late = document(1, "end", seconds=9), document(5, "end", seconds=1)
    assert choose_document([late, early], 7) is late
    assert choose_document([late, early], 4) is early


def test_a_range_that_has_ended_does_not_serve():
    # The original of May 2025 ignored run_end; users had wrong pedestals.
    ended, open_one = document(5, 6, seconds=9), document(1, "end", seconds=1)
    assert choose_document([ended, open_one], 7) is open_one
    assert choose_document([ended, open_one], 6) is ended


def test_a_narrow_range_beats_an_open_one_and_a_new_one_its_predecessor():
    narrow, wide = document(5, "8", seconds=1), document(5, "end", seconds=9)
    assert choose_document([narrow, wide], 7) is narrow
    old, new = document(5, "end", seconds=1), document(5, "end", seconds=9)
    assert choose_document([new, old], 7) is new


def test_of_equals_the_later_in_the_answer_is_taken():
    first, second = document(5, "end"), document(5, 9999)
    assert choose_document([first, second], 7) is second


def test_run_zero_is_served_by_ranges_that_include_it_and_no_run_by_open_ones():
    assert choose_document([document(1, "end")], 0) is None
    assert choose_document([only := document(0, 3)], 0) is only
    assert choose_document([document(1, 7), open_one := document(0, "end")], None) is open_one


@pytest.mark.parametrize(
    "changes",
    [{"_id": "short"}, {"_id": None}, {"run": "1"}, {"run": True}, {"run_end": "endless"}, {"run_end": 10000},
     {"ctype": 7}, {"ctype": "../x"}, {"run": None}],
)  # fmt: skip
def test_a_document_that_makes_no_sense_is_not_understood(changes: dict[str, Any]):
    assert is_understood(document(1, "end"))
    assert not is_understood({**document(1, "end"), **changes})


def test_the_id_of_a_document_holds_the_time_it_was_made():
    # 0x5a7b2b1c = 1518021404; `date -u -d @1518021404`
    assert creation_time("5a7b2b1c0123456789abcdef") == datetime(2018, 2, 7, 16, 36, 44, tzinfo=UTC)
    with pytest.raises(InputError, match="24 hexadecimal"):
        creation_time("5a7b2b1c")


@pytest.mark.parametrize(
    ("latest", "existing", "update"),
    [
        ({"a": "1"}, {"a": "1"}, False),
        ({"a": "1"}, {"a": "1", "b": "2"}, False),
        ({"a": "1", "b": "2"}, {"a": "1"}, True),
        ({"a": "2"}, {"a": "1"}, True),
        ({}, {"a": "1"}, False),
        ({}, {}, False),
    ],
)
def test_other_ids_need_an_update_and_more_cached_detectors_do_not(
    latest: dict[str, str], existing: dict[str, str], update: bool
):
    assert needs_update(latest, existing) is update


# Data


@pytest.mark.parametrize("dtype", ["float32", "float64", "uint8", "uint16", "uint64", "int32", "bool", "complex64"])
def test_an_array_comes_back_as_it_was(dtype: str):
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    found = decode(array_document(array, ctype="mine"), array.tobytes())
    assert isinstance(found, np.ndarray)
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


def test_an_array_is_a_read_only_view_and_not_a_copy():
    array = np.arange(6, dtype="f4")
    data = bytearray(array.tobytes())
    found = decode(array_document(array), data)
    assert isinstance(found, np.ndarray)
    assert np.shares_memory(found, np.frombuffer(data, "u1"))
    with pytest.raises(ValueError, match="read-only"):
        found[0] = 1


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2)])
def test_arrays_of_odd_shapes_are_arrays_too(shape: tuple[int, ...]):
    array = np.zeros(shape, "f4")
    found = decode(array_document(array), array.tobytes())
    assert isinstance(found, np.ndarray)
    assert found.shape == shape


@pytest.mark.parametrize("extra", [-1, 1, 4])
def test_a_wrong_number_of_bytes_is_refused(extra: int):
    array = np.zeros(6, "f4")
    with pytest.raises(InputError, match=f"should have 24 bytes and has {24 + extra}"):
        decode(array_document(array), bytes(24 + extra))


@pytest.mark.parametrize(
    "shape",
    [
        "__import__('os').system('true')", "(3, -6)", "(3, 6", "3, 6)", "(3, 6.0)", "[3, 6]", "", None, 18, (3, 6),
        "(1e9,)", "(" + "1, " * 33 + ")", "(3, 6)" + " " * 300, "(٣, 6)",
        "((3, 6))", "(3,, 6)", "('3', 6)", "(3 6)", "(9" * 100,
    ],
)  # fmt: skip
def test_a_shape_that_is_not_a_plain_tuple_is_refused(shape: Any):
    with pytest.raises(InputError, match="data_shape"):
        array_layout({"data_type": "ndarray", "data_dtype": "float32", "data_shape": shape})


@pytest.mark.parametrize(
    "dtype", ["object", "O", "f4,O", "float999", "U8", "V16", "datetime64", ">f4", "", None, "void"]
)
def test_a_type_that_is_not_of_numbers_is_refused(dtype: Any):
    with pytest.raises(InputError, match="data_dtype"):
        array_layout({"data_type": "ndarray", "data_dtype": dtype, "data_shape": "(3, 6)"})


def test_an_absurd_shape_is_refused_before_memory_is_asked_for():
    document = {"data_type": "ndarray", "data_dtype": "float64", "data_shape": "(999999999999, 999999999999)"}
    with pytest.raises(InputError, match="more than 2147483648"):
        expected_bytes(document)


@pytest.mark.parametrize("kind", ["pickle", None, 7, "x" * 500])
def test_an_unknown_kind_of_data_is_refused(kind: Any):
    with pytest.raises(InputError, match="data_type"):
        decode({"data_type": kind}, b"")


def test_a_float64_pedestal_is_kept_and_warned_about(caplog: pytest.LogCaptureFixture):
    array = np.zeros(3, "f8")
    with caplog.at_level(logging.WARNING):
        found = decode(array_document(array), array.tobytes())
    assert isinstance(found, np.ndarray)
    assert found.dtype == np.float64
    assert "pedestals of document" in caplog.text
    assert "is float64, usually float32; kept as it is" in caplog.text


@pytest.mark.parametrize(
    ("ctype", "dtype", "odd"),
    [("pedestals", "float32", False), ("pedestals", "<f4", False), ("pixel_status", "uint64", False),
     ("pixel_status", "float32", True), ("pixel_mask", "uint8", False), ("pixel_datast", "uint8", True),
     ("my_own", "float64", False), ("pedestals", "rubbish!", False)],
)  # fmt: skip
def test_only_ctypes_with_a_usual_type_can_have_an_odd_one(ctype: str, dtype: str, odd: bool):
    document = {"_id": made(1), "ctype": ctype, "data_type": "ndarray", "data_dtype": dtype}
    assert (dtype_remark(document) is not None) is odd


def test_a_geometry_is_text():
    text = "# TITLE Geometrie für cspad\nQUAD 0 ±1\n"
    assert decode(text_document(data_size=str(len(text))), text.encode()) == text
    assert decode(text_document(data_size=str(len(text.encode()))), text.encode()) == text
    assert decode(text_document(), text.encode()) == text


def test_a_text_that_was_cut_is_refused():
    with pytest.raises(InputError, match="should have 10 characters and has 5"):
        decode(text_document(data_size="10"), b"01234")


def test_a_text_that_is_not_utf8_is_refused():
    with pytest.raises(InputError, match="UTF-8"):
        decode(text_document(), b"\xff\xfe")


def test_a_printed_dict_becomes_arrays_and_numbers():
    array = np.arange(6, dtype="f8").reshape(2, 3)
    stored = {
        "power": {"type": "nd", "shape": array.shape, "size": 6, "dtype": "float64", "data": array.tobytes()},
        "deep": [{"gain": {"type": "sc", "dtype": "float32", "data": np.float32(1.5).tobytes()}}],
        "printed": {"type": "sc", "dtype": "int64", "data": "7"},
        "pair": (1, "two", None, True),
    }
    found = decode(text_document("lasingoffreference"), repr(stored).encode())
    assert isinstance(found, dict)
    np.testing.assert_array_equal(found["power"], array)
    assert found["deep"][0]["gain"] == 1.5
    assert found["printed"] == 7
    assert found["pair"] == (1, "two", None, True)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')", "{'a': open('/etc/passwd')}", "[1, 2]", "", "{", "(" * 5000, "{'a': " * 500,
        "{'a': {'type': 'nd', 'shape': (2,), 'dtype': 'float64', 'data': b'short'}}",
        "{'a': {'type': 'nd', 'shape': (2,), 'dtype': 'object', 'data': b''}}",
        "{'a': {'type': 'nd', 'shape': (2,), 'dtype': 'float64', 'data': 'text'}}",
        "{'a': {'type': 'sc', 'dtype': 'float64', 'data': b'1'}}",
        "{'a': {'type': 'sc', 'dtype': 'uint8', 'data': 300}}",
        "{'a': {'type': 'sc', 'dtype': 'float64', 'data': 'much'}}",
        "{[]: 1}",
    ],
)  # fmt: skip
def test_a_printed_dict_that_is_none_is_refused_and_never_run(text: str):
    with pytest.raises(InputError, match="lasingoffreference of document"):
        decode(text_document("lasingoffreference"), text.encode())


def test_a_printed_dict_of_more_than_a_mebibyte_is_not_read():
    # 64 MiB of "0," took 30 GiB.
    large = b"{'a':[" + b"0," * 2**19 + b"]}"
    with pytest.raises(InputError, match="at most 1048576 are read"):
        decode(text_document("lasingoffreference"), large)
    with pytest.raises(InputError, match="at most 1048576 are read"):
        decode(text_document("xtcav_pedestals"), b" " * (2**20 + 1))
    assert text_limit({"ctype": "xtcav_lasingoff"}) == 2**20
    assert text_limit({"ctype": "xtcav_lasingoff"}, 99) == 99
    assert decode(text_document("geometry"), large) == large.decode()


@pytest.mark.parametrize("run", [None, "3", 2.5, True, "missing"])
def test_a_document_without_a_run_is_never_the_newest_of_its_kind(run: Any):
    good = {"_id": made(1), "ctype": "pedestals", "run": 20_000}
    odd = {"_id": made(2), "ctype": "pedestals", "run": run}
    if run == "missing":
        del odd["run"]
    assert newest_of_each([good, odd]) == {"pedestals": good}
    assert newest_of_each([odd]) == {}


class Armed:
    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("a pickle was loaded",)


def test_a_pickle_is_refused_without_being_loaded():
    document = {"_id": made(1), "ctype": "pedestals", "data_type": "any"}
    with pytest.raises(RejectedError, match="is a pickle"):
        decode(document, pickle.dumps(Armed()))
    assert decode(document, b"abc", unpickle=bytes) == b"abc"
