"""Which of CASA's SEVERE lines are failures."""

import pytest

from nightbeam.casa import remote
from nightbeam.casa.model import BEGIN, CasaCall
from nightbeam.casa.remote import run_casa, severe_lines
from nightbeam.core.errors import StorageError, ToolError, UsageError

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


@pytest.mark.parametrize(
    ("said", "full", "error"),
    [
        ("FilebufIO: write error for file x: No space left on device\n", "", StorageError),
        ("nothing of it\n", "0.00 GB free in there", StorageError),
        ("nothing of it\n", "", ToolError),
    ],
)
def test_casa_that_dies_of_a_full_disk_is_told_from_casa_that_fails(tmp_path, monkeypatch, said, full, error):
    log = tmp_path / "log"
    log.write_text("of an earlier run: No space left on device\n")

    def die(_job, _name, _scratch, log, *_):
        with log.open("a") as out:
            out.write(said)
        raise ToolError("CASA applycal was killed by signal 6")

    monkeypatch.setattr(remote, "_run", die)
    monkeypatch.setattr("nightbeam.core.children.full_place", lambda *_: full)
    call = CasaCall("applycal", {"vis": tmp_path / "a.ms"})
    with pytest.raises(error, match=r"CASA applycal was killed by signal 6") as caught:
        run_casa([call], work_dir=tmp_path / "work", log=log, timeout_s=1)
    assert str(caught.value).startswith("no space left for ") == (error is StorageError)
    assert list((tmp_path / "work").iterdir()) == []
