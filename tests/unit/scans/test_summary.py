"""Stores of results in a few lines: what is there, what is not known, what is no such store."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import zarr

from nightbeam.core.errors import InputError, MissingError
from nightbeam.core.locks import sole_owner
from nightbeam.scans.files import create_raw_store, scan_name
from nightbeam.scans.model import ScanFailure
from nightbeam.scans.report import failures_path
from nightbeam.scans.results import ResultStore
from nightbeam.scans.summary import ScanSummary, failure_report, running, summarize_scan, summarize_store


@pytest.fixture
def own(results: Path, tmp_path: Path) -> Path:
    """A copy that may be spoilt."""
    return Path(shutil.copytree(results, tmp_path / "night.zarr"))


def test_a_scan_is_a_line_of_what_its_store_says(results: Path):
    first, second = summarize_store(results)
    assert (first.scan, second.scan) == (2, 3)
    assert (first.status, first.source, first.obs_type) == ("complete", "OMC1", "otf")
    assert first.calibration_scans == (1,)
    assert first.pwv_mm == pytest.approx(0.62, abs=0.05)
    assert (first.pwv_source, first.t_rec_k, first.flagged, first.seconds) == ("fit", 180.0, 0.125, 0.25)
    assert first.warnings == ("it was late",)
    # MJD 61000 is 2025-11-21; the scan begins 200 s later with a reference of 4 s, and ends with one.
    assert first.begin == datetime(2025, 11, 21, 0, 3, 24, tzinfo=UTC)
    assert first.end == first.begin + timedelta(seconds=3 * 10 + 2 * 4)
    assert first.middle == first.begin + timedelta(seconds=19)


def test_begin_and_end_are_those_that_are_said(tmp_path: Path):
    store = ResultStore(tmp_path / "l1.zarr")
    store.write(4, {"tau_s": np.zeros(3)}, {"begin": "2025-11-21T00:03:20Z", "end": "2025-11-21T00:04:20"})
    assert summarize_scan(store.path, 4).middle == datetime(2025, 11, 21, 0, 3, 50, tzinfo=UTC)


def test_what_a_store_does_not_say_is_not_known(tmp_path: Path):
    store = ResultStore(tmp_path / "l1.zarr")
    store.write(4, {"tau_s": np.zeros(3)}, {"quality": "good", "pwv_mm": "much", "warnings": None})
    assert summarize_store(store.path) == [ScanSummary(4, "complete")]
    assert ScanSummary(4, "complete").middle is None


@pytest.mark.parametrize("text", ["{", "[]", '{"attributes": 3}', '{"attributes": {}}', None])
def test_a_damaged_scan_is_called_so_and_the_others_are_listed(own: Path, text: str | None):
    place = own / "scans" / scan_name(2) / "zarr.json"
    if text is None:
        place.unlink()
    else:
        place.write_text(text)
    assert [one.status for one in summarize_store(own)] == ["damaged", "complete"]


def test_what_is_no_store_of_results_is_refused_and_left_alone(tmp_path: Path):
    with pytest.raises(MissingError, match="there is no store"):
        summarize_store(tmp_path / "none.zarr")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="is no Zarr store"):
        summarize_store(tmp_path / "empty")
    assert not list((tmp_path / "empty").iterdir())
    create_raw_store(tmp_path / "l0.zarr", telescope="FYST", altitude_m=5612.0)
    with pytest.raises(InputError, match="scal-l0"):
        summarize_store(tmp_path / "l0.zarr")
    zarr.create_group(tmp_path / "two.zarr", zarr_format=2)
    with pytest.raises(InputError):
        summarize_store(tmp_path / "two.zarr")


def test_a_copy_that_somebody_put_beside_the_scans_is_named(own: Path):
    shutil.copytree(own / "scans" / scan_name(2), own / "scans" / "scan_000002_old")
    with pytest.raises(InputError, match="000002_old"):
        summarize_store(own)


def test_a_scan_that_is_not_there_is_missing(results: Path):
    with pytest.raises(MissingError, match="no result of scan 9"):
        summarize_scan(results, 9)


def test_failures_come_back_and_none_is_none(tmp_path: Path):
    l1 = tmp_path / "l1.zarr"
    assert failure_report(l1) is None
    with pytest.raises(MissingError, match=r"other\.json"):
        failure_report(l1, tmp_path / "other.json")
    failure = ScanFailure(3, "StoreReadError", "read", "load", "a chunk is missing", None, (100001,), 0.5)
    text = {"schema": 1, "run_id": "abc", "n_scans": 4, "failures": [asdict(failure) | {"of_a_later_version": 1}]}
    failures_path(l1).write_text(json.dumps(text))
    report = failure_report(l1)
    assert report is not None
    assert report.path.name == "l1.failures.json"
    assert (report.failures, report.run_id, report.n_scans, report.n_ok) == ((failure,), "abc", 4, None)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 2, "failures": []}', '{"schema": 1, "failures": [{}]}'])
def test_what_is_no_list_of_failures_is_refused(tmp_path: Path, text: str):
    failures_path(tmp_path / "l1.zarr").write_text(text)
    with pytest.raises(InputError, match=r"l1\.failures\.json"):
        failure_report(tmp_path / "l1.zarr")


def test_a_run_is_seen_while_it_goes_on(tmp_path: Path):
    l1 = tmp_path / "l1.zarr"
    assert running(l1) is None
    with sole_owner(tmp_path / "l1.zarr.lock"):
        who = running(l1)
        assert who is not None
        assert "pid" in who
    assert running(l1) is None
