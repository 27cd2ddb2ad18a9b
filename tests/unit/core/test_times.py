from datetime import UTC, datetime, timedelta, timezone

from hypothesis import given
from hypothesis import strategies as st

from nightbeam.core.times import datetime_from_mjd, iso_z, jd_from_datetime, mjd_from_datetime


def test_noon_of_j2000_is_the_julian_date_of_the_textbooks():
    assert jd_from_datetime(datetime(2000, 1, 1, 12, tzinfo=UTC)) == 2451545.0


@given(st.datetimes(datetime(1990, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC)))
def test_a_date_survives_the_way_through_mjd_to_a_few_microseconds(when):
    assert abs(datetime_from_mjd(mjd_from_datetime(when)) - when) < timedelta(microseconds=3)


def test_a_time_of_another_zone_is_written_in_utc():
    pacific = timezone(timedelta(hours=-8))
    assert iso_z(datetime(2025, 10, 1, 17, 2, 3, 999, pacific)) == "2025-10-02T01:02:03Z"
