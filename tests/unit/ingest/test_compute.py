"""Which files belong together."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from nightbeam.core.errors import InputError
from nightbeam.core.times import jd_from_datetime
from nightbeam.ingest import Arrival, group_arrivals

START = datetime(2025, 10, 2, 1, 2, 3, 250000, tzinfo=UTC)
JD = jd_from_datetime(START)


def arrival(sb: int, late_s: float = 0.0, *, jd: float | None = JD) -> Arrival:
    stamp = (START - timedelta(seconds=20) + timedelta(seconds=late_s)).replace(microsecond=0)
    return Arrival(Path(f"/in/{stamp:%Y-%m-%dT%H:%M:%S}_sb{sb:02d}.hdf5"), stamp, sb, jd)


def test_names_that_differ_by_a_minute_are_one_group_by_their_header():
    (group,) = group_arrivals([arrival(sb, 5.0 * sb) for sb in range(16)])
    assert str(group.group_id) == "2025-10-02T01:02:03"
    assert group.subbands == tuple(range(16))
    assert group.confirmed
    assert group.missing() == ()


def test_two_starts_are_two_groups_however_close_their_names():
    groups = group_arrivals([arrival(0), arrival(1, 3.0, jd=JD + 309 / 86400)])
    assert [str(g.group_id) for g in groups] == ["2025-10-02T01:02:03", "2025-10-02T01:07:12"]


def test_the_noise_of_a_double_does_not_split_a_group():
    (group,) = group_arrivals([arrival(0), arrival(1, jd=JD + 2e-10)])  # 17 microseconds
    assert group.subbands == (0, 1)


def test_a_file_without_a_header_joins_the_nearest_start_of_its_chain():
    later = JD + 309.24 / 86400
    files = [arrival(0), arrival(1, 309.0, jd=later), arrival(2, 40.0, jd=None), arrival(3, 290.0, jd=None)]
    first, second = group_arrivals(files)
    assert (first.subbands, second.subbands) == ((0, 2), (1, 3))
    assert not first.confirmed


def test_names_alone_are_chained_with_a_gap():
    files = [arrival(sb, 80.0 * sb, jd=None) for sb in range(3)] + [arrival(3, 160 + 91.0, jd=None)]
    first, second = group_arrivals(files)
    assert (first.subbands, second.subbands) == ((0, 1, 2), (3,))
    assert str(first.group_id) == "2025-10-02T01:01:43"  # the earliest name
    assert first.start_jd is None


def test_a_second_file_of_a_subband_is_kept_behind_the_first():
    (group,) = group_arrivals([arrival(4, 9.0), arrival(4), arrival(5)])
    assert len(group.arrivals) == 3
    assert [p.name[-9:-5] for p in group.paths] == ["sb04", "sb05"]
    assert group.paths[0] == arrival(4).path


def test_a_file_that_says_no_time_at_all_is_refused():
    with pytest.raises(InputError, match="neither a header nor a name with a time"):
        group_arrivals([Arrival(Path("/in/x.hdf5"), None, 0)])
