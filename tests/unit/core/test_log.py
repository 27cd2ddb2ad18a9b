"""Where the log goes."""

from __future__ import annotations

import logging

import pytest

from nightbeam.core.errors import StorageError
from nightbeam.core.log import log_also_to, set_up_logging


@pytest.fixture(autouse=True)
def _as_before():
    logger = logging.getLogger("nightbeam")
    handlers, level = list(logger.handlers), logger.level
    yield
    set_up_logging()
    logger.handlers[:], logger.level = handlers, level


def test_a_file_has_what_standard_error_does_not_want(tmp_path, capsys):
    file = tmp_path / "logs" / "elog.log"
    set_up_logging("ERROR")
    log_also_to(file)
    logging.getLogger("nightbeam.elog").info("GET é")
    assert "GET" not in capsys.readouterr().err
    assert file.read_text(encoding="utf-8").endswith("INFO    nightbeam.elog: GET é\n")


def test_a_new_beginning_closes_the_file(tmp_path):
    set_up_logging("ERROR")
    log_also_to(tmp_path / "a.log")
    set_up_logging("ERROR")
    logging.getLogger("nightbeam").error("later")
    assert (tmp_path / "a.log").read_text() == ""


def test_a_file_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "a.log").mkdir()
    with pytest.raises(StorageError, match=r"a\.log"):
        log_also_to(tmp_path / "a.log")
