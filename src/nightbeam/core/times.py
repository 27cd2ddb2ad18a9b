"""Times between the forms that files, databases and people use. All are UTC."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

__all__ = [
    "JD_OF_MJD_ZERO",
    "SECONDS_PER_DAY",
    "datetime_from_jd",
    "datetime_from_mjd",
    "iso_z",
    "jd_from_datetime",
    "mjd_from_datetime",
    "utc_now",
]

SECONDS_PER_DAY = 86400.0
JD_OF_MJD_ZERO = 2400000.5
_MJD_ZERO = datetime(1858, 11, 17, tzinfo=UTC)


def utc_now() -> datetime:
    """Return the present, aware and in UTC."""
    return datetime.now(UTC)


def datetime_from_mjd(mjd: float) -> datetime:
    """Return the UTC time of a Modified Julian Date in days.

    A double holds an MJD to about 0.6 microseconds; leap seconds are not counted, as in UTC days.
    """
    return _MJD_ZERO + timedelta(days=mjd)


def mjd_from_datetime(when: datetime) -> float:
    """Return the Modified Julian Date in days of an aware time."""
    return (when - _MJD_ZERO) / timedelta(days=1)


def datetime_from_jd(jd: float) -> datetime:
    """Return the UTC time of a Julian Date in days; a double holds one to about 40 microseconds."""
    return datetime_from_mjd(jd - JD_OF_MJD_ZERO)


def jd_from_datetime(when: datetime) -> float:
    """Return the Julian Date in days of an aware time."""
    return mjd_from_datetime(when) + JD_OF_MJD_ZERO


def iso_z(when: datetime) -> str:
    """Return the time as ISO 8601 to the second with Z, e.g. ``2025-10-02T01:02:03Z``."""
    return when.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
