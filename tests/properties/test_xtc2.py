"""What is written is read back, however it is dealt out to streams and wherever the file is cut."""

from __future__ import annotations

import string
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nightbeam.testing.xtc2_files import names_block, shapes_data, write_run, xtc2_bytes
from nightbeam.xtc2 import Detector, FieldType, Names, RunInfo, Segment, inspect_file, judge_run
from nightbeam.xtc2.compute import parse_names, parse_shapes_data, walk
from nightbeam.xtc2.model import Algorithm, Field

pytestmark = pytest.mark.slow

NAME = st.text(string.ascii_letters + string.digits + "_", min_size=1, max_size=40)
TEXT = st.text(string.ascii_letters + string.digits + "_-:. ", max_size=200)
ALGORITHM = st.builds(
    Algorithm,
    st.sampled_from(["raw", "fex", "config", "pixelConfig"]),
    st.tuples(st.integers(0, 0xFFFF), st.integers(0, 255), st.integers(0, 255)),
)
SEGMENT = st.builds(
    Segment,
    st.integers(0, 0xFFFF_FFFF),
    TEXT,
    st.lists(ALGORITHM, min_size=1, max_size=3, unique=True).map(tuple),
)
SEGMENTS = st.lists(SEGMENT, min_size=1, max_size=5, unique_by=lambda s: s.number)
DETECTOR = st.builds(
    Detector,
    NAME.filter(lambda name: name not in ("runinfo", "chunkinfo")),
    NAME,
    SEGMENTS.map(lambda segments: tuple(sorted(segments, key=lambda s: s.number))),
)
DETECTORS = st.lists(DETECTOR, min_size=1, max_size=4, unique_by=lambda d: d.name)


@settings(max_examples=60)
@given(DETECTORS, st.integers(1, 3), st.integers(0, 999_999), st.integers(0, 3))
def test_a_written_run_is_read_back_over_all_its_streams(detectors, streams, run, events):
    with tempfile.TemporaryDirectory() as folder:
        paths = write_run(Path(folder), detectors, experiment="mfx1", run=run, streams=streams, events=events)
        reports = [inspect_file(path) for path in paths]
        verdict = judge_run(Path(folder), "mfx1", run)
    assert all(report.readable and not report.reason for report in reports)
    assert {report.runs for report in reports} == {(RunInfo("mfx1", run),)}
    assert all(report.datagrams.get("L1Accept", 0) == events for report in reports)
    found = {d.name: d for d in verdict.detectors if d.name != "runinfo"}
    assert found == {d.name: d for d in detectors}
    assert verdict.det_info == {d.name: d.unique_id for d in detectors if d.is_real}
    assert verdict.usable == any(d.is_real for d in detectors)


@given(DETECTORS, st.data())
def test_a_cut_file_holds_what_was_complete_before_the_cut(detectors, data):
    whole = xtc2_bytes(detectors)
    size = data.draw(st.integers(0, len(whole)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "whole.xtc2")
        path.write_bytes(whole)
        full = inspect_file(path)
        path.write_bytes(whole[:size])
        cut = inspect_file(path)
    assert sum(cut.datagrams.values()) <= sum(full.datagrams.values())
    assert cut.detectors in ((), full.detectors)
    assert (size == len(whole)) == (cut == full)
    assert bool(cut.datagrams) == (cut.detectors == full.detectors)


@st.composite
def fields_and_values(draw):
    fields, values = [], {}
    for n, kind in enumerate(draw(st.lists(st.sampled_from(FieldType), max_size=6))):
        name = f"f{n}"
        if kind is FieldType.CHARSTR:
            rank, values[name] = 1, draw(st.text(st.characters(min_codepoint=1, max_codepoint=255), max_size=12))
        elif draw(st.booleans()):
            values[name] = draw(hnp.arrays(kind.dtype, hnp.array_shapes(max_dims=4, min_side=0, max_side=3)))
            rank = values[name].ndim
        else:
            rank, values[name] = 0, draw(hnp.from_dtype(np.dtype(kind.dtype), allow_nan=False)).item()
        fields.append(Field(name, kind, rank))
    return tuple(fields), values


@given(fields_and_values(), NAME, TEXT, st.integers(0, 0x0FFF_FFFF))
def test_values_of_every_type_and_shape_are_read_back(made, name, serial, identity):
    fields, values = made
    names = Names(identity, "any", name, serial, 0, "raw", (1, 2, 3), fields)
    block = names_block(names)
    assert parse_names(block, next(walk(block))) == names
    block = shapes_data(names, values)
    found = parse_shapes_data(block, next(walk(block)), names)
    assert list(found) == list(values)
    for key, value in values.items():
        np.testing.assert_array_equal(found[key], value)
