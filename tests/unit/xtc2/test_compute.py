"""Single datagrams, by hand: what is read, and what is turned down."""

from __future__ import annotations

import struct
from dataclasses import replace

import numpy as np
import pytest

from nightbeam.testing.xtc2_files import block, datagram, names_block, shapes_data
from nightbeam.xtc2 import Detector, Names, Segment, Transition, Xtc2Error, detectors_of
from nightbeam.xtc2.compute import (
    MOST_BLOCKS,
    Block,
    chunk_info,
    parse_header,
    parse_names,
    parse_shapes_data,
    run_info,
    walk,
)
from nightbeam.xtc2.model import Algorithm, BlockKind, Field, FieldType

RAW = Names(
    0x102,
    "jungfrau",
    "jf",
    "ab-1-cd",
    3,
    "raw",
    (2, 3, 42),
    (Field("array", FieldType.UINT16, 2), Field("gain:Gain", FieldType.ENUMVAL, 0), Field("fw", FieldType.CHARSTR, 1)),
)


def only(data: bytes) -> Block:
    (found,) = walk(data)
    return found


def names(name: str, segment: int = 0, serial: str = "a", kind: str = "hsd", algorithm: str = "raw") -> Names:
    return Names(0, kind, name, serial, segment, algorithm, (0, 0, 0), ())


def test_a_header_says_when_and_what():
    raw = datagram(Transition.BeginRun, b"\0" * 8, seconds=5, nanoseconds=7, damage=0x11)
    header = parse_header(raw)
    assert (header.seconds, header.nanoseconds, header.transition) == (5, 7, Transition.BeginRun)
    assert (header.extent, header.size, header.damage, header.corrupted) == (20, 32, 0x11, False)
    assert parse_header(datagram(Transition.BeginRun, damage=0x8)).corrupted


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (datagram(Transition.Configure)[:23], "23 are there"),
        (datagram(Transition.Configure, extent=0), "extent is 0"),
        (datagram(Transition.Configure, extent=1), "extent is 1"),
        (datagram(Transition.Configure, extent=11), "extent is 11"),
        (datagram(Transition.Configure, extent=0xFFFF_FFFF), "it claims 4294967307 bytes"),
        (datagram(Transition.Configure, extent=(1 << 30) - 11), "it claims 1073741825 bytes"),
        (datagram(13), "no transition 13"),
        (datagram(15), "no transition 15"),
        (struct.pack("<III", 0, 0, 1 << 28 | 2 << 24) + block(0), "its kind is 1"),
        (struct.pack("<III", 0, 0, 2 << 24) + block(BlockKind.NAMES), "of kind 4, not a Parent"),
    ],
)
def test_what_cannot_be_a_header_is_turned_down(raw, words):
    with pytest.raises(Xtc2Error, match=words):
        parse_header(raw)


def test_the_longest_datagram_that_is_believed_can_be_chosen():
    raw = datagram(Transition.L1Accept, extent=1000)
    assert parse_header(raw, most_bytes=1012).size == 1012
    with pytest.raises(Xtc2Error, match="more than 1011"):
        parse_header(raw, most_bytes=1011)


def test_blocks_are_found_in_file_order_within_parents():
    inner = block(BlockKind.SHAPES_DATA, source=2) + block(BlockKind.NAMES, source=3)
    data = block(BlockKind.NAMES, source=1) + block(BlockKind.PARENT, inner) + block(BlockKind.NAMES, source=4)
    assert [b.names_id for b in walk(data)] == [1, 2, 3, 4]
    assert list(walk(b"")) == []
    assert list(walk(block(BlockKind.PARENT))) == []


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\0" * 11, "11 bytes are left over at byte 0"),
        (block(BlockKind.NAMES) + b"\0", "1 bytes are left over at byte 12"),
        (block(BlockKind.NAMES, extent=0), "extent of 0"),
        (block(BlockKind.NAMES, extent=11), "extent of 11"),
        (block(BlockKind.NAMES, extent=13), "claims 13 bytes, 12 are there"),
        (block(BlockKind.PARENT, block(BlockKind.NAMES, extent=24)) + block(BlockKind.NAMES), "claims 24 bytes"),
        (block(BlockKind.DATA), "of kind 3 cannot be where"),
        (block(5), "of kind 5 cannot be where"),
    ],
)
def test_blocks_that_do_not_fit_are_turned_down(data, words):
    with pytest.raises(Xtc2Error, match=words):
        list(walk(data))


def test_nesting_has_an_end():
    data = block(BlockKind.NAMES)
    for _ in range(16):
        data = block(BlockKind.PARENT, data)
    assert len(list(walk(data))) == 1
    with pytest.raises(Xtc2Error, match="nested more than 16 deep"):
        list(walk(block(BlockKind.PARENT, data)))
    deep = b"".join(struct.pack("<IHHI", 0, 0, 0, 12 * n) for n in range(100_000, 0, -1))
    with pytest.raises(Xtc2Error, match="nested"):
        list(walk(deep))


def test_blocks_without_end_are_turned_down():
    with pytest.raises(Xtc2Error, match="more than 131072 blocks"):
        list(walk(block(BlockKind.PARENT) * (MOST_BLOCKS + 1)))


def test_a_corrupted_block_is_shown_and_not_entered():
    data = block(BlockKind.PARENT, b"nonsense", damage=1 << 3) + block(BlockKind.NAMES, damage=1)
    assert [(b.kind, b.corrupted) for b in walk(data)] == [(BlockKind.PARENT, True), (BlockKind.NAMES, False)]


def test_names_are_read_as_written():
    data = names_block(RAW)
    assert len(data) == 1048 + 3 * 524
    assert parse_names(data, only(data)) == RAW
    empty = replace(RAW, fields=(), detector_id="")
    data = names_block(empty)
    assert parse_names(data, only(data)) == empty


def test_bytes_after_the_end_of_a_name_do_not_matter():
    data = bytearray(names_block(RAW))
    data[272 + 3 : 272 + 256] = b"\xff" * 253
    assert parse_names(bytes(data), only(bytes(data))).detector_name == "jf"


@pytest.mark.parametrize(
    ("at", "put", "words"),
    [
        (12, b"\x03", "announces 3 array fields and describes 2"),
        (12, b"\x01", "announces 1 array fields and describes 2"),
        (272, b"a/b\0", "'a/b' is not made of"),
        (272, b"..\0", "is not made of"),
        (272, b"\0", "'' is not made of"),
        (272, b"x" * 256, "no NUL-terminated"),
        (16, b"\xe9\0", "no NUL-terminated ASCII"),
        (528, b"a\nb\0", "no NUL-terminated ASCII"),
        (1048 + 516, b"\x0d", "no field type 13"),
        (1048 + 520, b"\x06", "6 dimensions"),
        (1048 + 260, b"\x07\0", "field name"),
    ],
)
def test_names_that_contradict_themselves_are_turned_down(at, put, words):
    data = bytearray(names_block(RAW))
    data[at : at + len(put)] = put
    with pytest.raises(Xtc2Error, match=words):
        parse_names(bytes(data), only(bytes(data)))


@pytest.mark.parametrize("cut", [1, 523, 3 * 524 + 1])
def test_names_without_a_whole_number_of_fields_are_turned_down(cut):
    payload = names_block(RAW)[12:-cut]
    data = block(BlockKind.NAMES, payload)
    with pytest.raises(Xtc2Error, match="no whole fields"):
        parse_names(data, only(data))


def test_values_are_read_as_written():
    values = {"array": np.arange(6, dtype="u2").reshape(2, 3), "gain:Gain": -2, "fw": "v1.2"}
    data = shapes_data(RAW, values)
    found = parse_shapes_data(data, only(data), RAW)
    assert list(found) == ["array", "gain:Gain", "fw"]
    np.testing.assert_array_equal(found["array"], values["array"])
    assert (found["gain:Gain"], found["fw"]) == (-2, "v1.2")


def test_shapes_may_follow_the_data_or_be_there_in_vain():
    one = replace(RAW, fields=(Field("a", FieldType.FLOAT, 1),))
    shapes, values = block(BlockKind.SHAPES, struct.pack("<5I", 2, 9, 9, 9, 9)), struct.pack("<2f", 1.5, -2.0)
    data = block(BlockKind.SHAPES_DATA, block(BlockKind.DATA, values) + shapes)
    np.testing.assert_array_equal(parse_shapes_data(data, only(data), one)["a"], [1.5, -2.0])
    none = replace(RAW, fields=(Field("n", FieldType.INT64, 0),))
    data = block(BlockKind.SHAPES_DATA, block(BlockKind.SHAPES) + block(BlockKind.DATA, struct.pack("<q", -(1 << 40))))
    assert parse_shapes_data(data, only(data), none) == {"n": -(1 << 40)}


ARRAY = replace(RAW, fields=(Field("a", FieldType.DOUBLE, 4),))


def with_shape(*shape: int, data: bytes = b"") -> bytes:
    shapes = block(BlockKind.SHAPES, struct.pack("<5I", *shape, *[0] * (5 - len(shape))))
    return block(BlockKind.SHAPES_DATA, shapes + block(BlockKind.DATA, data))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (with_shape(*[0xFFFF_FFFF] * 4), "does not fit"),
        (with_shape(1, 1, 1, 2, data=b"\0" * 8), "does not fit"),
        (with_shape(1, 1, 1, 1, data=b"\0" * 9), "1 bytes of data belong to no field"),
        (with_shape(0, *[0xFFFF_FFFF] * 3), "impossible shape"),
        (block(BlockKind.SHAPES_DATA, block(BlockKind.DATA)), "0 bytes of shapes for 1 array"),
        (block(BlockKind.SHAPES_DATA, block(BlockKind.SHAPES)), "has no Data"),
        (block(BlockKind.SHAPES_DATA), "has no Data"),
        (block(BlockKind.SHAPES_DATA, block(BlockKind.DATA) * 2), r"cannot be \(again\)"),
        (block(BlockKind.SHAPES_DATA, block(BlockKind.PARENT)), r"kind 0 cannot be \(again\)"),
        (block(BlockKind.SHAPES_DATA, block(BlockKind.DATA, extent=13)), "claims 13 bytes"),
        (block(BlockKind.SHAPES_DATA, b"\0\0\0"), "3 bytes are left over"),
        (block(BlockKind.SHAPES_DATA, block(BlockKind.DATA, damage=8)), "kind 3 at byte 12 is marked as corrupted"),
    ],
)
def test_values_that_do_not_make_up_their_shapes_are_turned_down(data, words):
    with pytest.raises(Xtc2Error, match=words):
        parse_shapes_data(data, only(data), ARRAY)


def test_run_and_chunk_information_must_be_of_the_right_kind():
    assert run_info({"expt": "mfx1", "runnum": 3}).run == 3
    with pytest.raises(Xtc2Error, match="runnum is float, not int"):
        run_info({"expt": "mfx1", "runnum": 3.0})
    with pytest.raises(Xtc2Error, match="filename is NoneType, not str"):
        chunk_info({"chunkid": 1})


@pytest.mark.parametrize("text", ["\x1b[2J", "a\nb", "mfx\xe9", "\x7f", "\x9b2J"])
def test_run_and_chunk_information_must_be_printable(text):
    with pytest.raises(Xtc2Error, match="no printable ASCII text"):
        run_info({"expt": text, "runnum": 3})
    with pytest.raises(Xtc2Error, match="no printable ASCII text"):
        chunk_info({"filename": text, "chunkid": 3})


def test_run_and_chunk_information_must_be_short():
    assert run_info({"expt": "x" * 127, "runnum": 3}).experiment == "x" * 127
    assert chunk_info({"filename": "x" * 255, "chunkid": 3}).filename == "x" * 255
    with pytest.raises(Xtc2Error, match="expt has more than 127 characters"):
        run_info({"expt": "x" * 128, "runnum": 3})
    with pytest.raises(Xtc2Error, match="filename has more than 255 characters"):
        chunk_info({"filename": "x" * 256, "chunkid": 3})


def test_texts_take_a_character_a_byte_and_can_be_cut():
    one = replace(RAW, fields=(Field("a", FieldType.CHARSTR, 1), Field("b", FieldType.UINT8, 0)))
    data = shapes_data(one, {"a": "\xe9\xff" * 50, "b": 7})
    assert parse_shapes_data(data, only(data), one) == {"a": "\xe9\xff" * 50, "b": 7}
    assert parse_shapes_data(data, only(data), one, longest_text=3) == {"a": "\xe9\xff\xe9", "b": 7}


def test_a_unique_id_is_the_type_and_the_ids_by_rising_segment():
    # The four cases of shared/spec/calib_prefetch.md, 2.5
    four = detectors_of([names("xpphsd", n, "detnum1234") for n in (2, 0, 3, 1)])
    assert four[0].unique_id == "hsd_detnum1234_detnum1234_detnum1234_detnum1234"
    assert detectors_of([names("xpphsd", serial="")])[0].unique_id == "hsd_"
    twice = [names("xpphsd", 0, "a"), names("xpphsd", 1, "b"), names("xpphsd", 0, "a")]
    assert detectors_of(twice)[0].unique_id == "hsd_a_b"
    assert detectors_of([names("d", 10, "ten"), names("d", 9, "nine")])[0].unique_id == "hsd_nine_ten"


def test_the_first_id_and_type_that_are_not_empty_hold():
    found = detectors_of([names("d", serial="", kind=""), names("d", serial="x", kind="ts"), names("d", serial="y")])
    assert found == (Detector("d", "ts", (Segment(0, "x", (Algorithm("raw"),)),)),)


def test_what_describes_the_run_is_no_detector_that_measures():
    pseudo = ["runinfo", "chunkinfo", "smdinfo", "epics", "epicsinfo", "scan", "step", "stepinfo"]
    for name in (*pseudo, "triginfo", "pvdetinfo", "pvdetinfo_7"):
        assert detectors_of([names(name)])[0].is_pseudo
    only_config = [names("d", algorithm=a) for a in ("config", "epixConfig")]
    assert not detectors_of(only_config)[0].is_real
    assert detectors_of([*only_config, names("d", 1)])[0].is_real
