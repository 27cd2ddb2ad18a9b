from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightbeam.core.errors import InputError
from nightbeam.core.keys import GroupId, RunKey, SubbandName
from nightbeam.core.times import jd_from_datetime

seconds = st.datetimes(datetime(2000, 1, 1), datetime(2099, 1, 1)).map(lambda t: t.replace(microsecond=0, tzinfo=UTC))


def test_a_group_is_the_second_in_which_its_data_start():
    # the first time of a real observation: 11:48:57.4 UTC
    assert str(GroupId.from_jd(2460951.992331498)) == "2025-10-03T11:48:57"


@given(seconds)
def test_a_group_that_starts_on_a_full_second_keeps_it_in_spite_of_rounding(start):
    assert GroupId.from_jd(jd_from_datetime(start)).start == start


@given(seconds)
def test_a_group_reads_as_it_prints(start):
    assert GroupId.parse(str(GroupId(start))) == GroupId(start)


@given(st.from_regex(r"[a-z][a-z0-9]{2,19}", fullmatch=True), st.integers(0, 999_999))
def test_a_run_reads_as_it_prints(experiment, run):
    assert RunKey.parse(str(RunKey(experiment, run))) == RunKey(experiment, run)


def test_a_run_prints_with_four_digits():
    assert str(RunKey("mfxl1033223", 42)) == "mfxl1033223:r0042"


@pytest.mark.parametrize("text", ["", "2025-10-02", "2025-13-02T01:02:03", "2025-10-02 01:02:03", "../../etc/passwd"])
def test_what_is_no_group_is_refused_with_an_example(text):
    with pytest.raises(InputError, match=r"2025-10-02T01:02:03|real date"):
        GroupId.parse(text)


@pytest.mark.parametrize("text", ["mfxl1033223", "mfxl1033223:42", "MFX:r1", "mfxl1033223:r0042;rm"])
def test_what_is_no_run_is_refused(text):
    with pytest.raises(InputError, match="mfxl1033223:r0042"):
        RunKey.parse(text)


def test_a_finished_subband_is_known_by_its_name():
    name = SubbandName.parse("2025-10-02T01:02:03_sb07.hdf5")
    assert name == SubbandName(datetime(2025, 10, 2, 1, 2, 3, tzinfo=UTC), 7)
    assert str(name) == "2025-10-02T01:02:03_sb07.hdf5"
    assert name.later(1.6).stamp - name.stamp == timedelta(seconds=2)


@pytest.mark.parametrize(
    "name",
    [
        "2025-10-02T01:02:03_sb07_incomplete.hdf5",
        ".2025-10-02T01:02:03_sb07.hdf5.Xy12Zz",
        "2025-10-02T01:02:03_sb07_spl.hdf5",
        "2025-10-32T01:02:03_sb07.hdf5",
        "notes.txt",
    ],
)
def test_other_files_are_not_finished_subbands(name):
    assert SubbandName.parse(name) is None
