"""Which of CASA's SEVERE lines are failures."""

import pytest

from nightbeam.casa.model import BEGIN
from nightbeam.casa.remote import run_casa, severe_lines
from nightbeam.core.errors import UsageError

LOG = f"""{BEGIN} 1/1: setjy {{"standard": "\tSEVERE\t"}}
2026-11-21 11:04:03\tINFO\tsetjy::::casa\t##### Begin Task: setjy
2026-11-21 11:04:03\tSEVERE\tsetjy::FluxStandard\tNo table of coefficients
2026-11-21 11:04:03\tSEVERE\tMeasTable::dUTC(Double) (file x.cc)\tLeap second table TAI_UTC seems out-of-date.
2026-11-21 11:04:03\tWARN\tsetjy::\tnothing
"""


def test_a_severe_line_is_found_and_an_old_leap_second_table_is_not():
    assert severe_lines(LOG) == ["SEVERE\tsetjy::FluxStandard\tNo table of coefficients"]


def test_a_caller_may_say_which_severe_lines_are_no_failure():
    assert severe_lines(LOG, tolerate=["No table of"]) == []


def test_an_empty_job_is_refused(tmp_path):
    with pytest.raises(UsageError, match="nothing for CASA"):
        run_casa([], work_dir=tmp_path, log=tmp_path / "log", timeout_s=1)
