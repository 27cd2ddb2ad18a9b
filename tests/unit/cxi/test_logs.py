import logging

import pytest

from nightbeam.core.errors import StorageError
from nightbeam.cxi.config import SystemConfig
from nightbeam.cxi.logs import logged
from nightbeam.cxi.worker import run_cpu_postprocessing_pipeline
from nightbeam.testing.cxi_world import World, small_config

LOG = logging.getLogger("nightbeam")


@pytest.fixture(autouse=True)
def as_it_was():
    handlers, level = list(LOG.handlers), LOG.level
    yield
    LOG.handlers[:] = handlers
    LOG.setLevel(level)


def test_the_library_writes_the_log_file_at_its_level_and_leaves_the_callers_log_alone(tmp_path):
    world, path = World(), tmp_path / "log" / "w.log"
    world.send(0)
    world.end()
    before = list(LOG.handlers)
    LOG.setLevel(logging.NOTSET)
    config = small_config(tmp_path, system={"log_file": str(path), "log_level": "INFO"})
    run_cpu_postprocessing_pipeline(config, doors=world.doors())
    assert "producer 'p' has ended" in path.read_text()
    assert (LOG.handlers, LOG.level) == (before, logging.NOTSET)


def test_a_level_that_the_caller_has_chosen_stays(tmp_path):
    LOG.setLevel(logging.ERROR)
    with logged(SystemConfig(log_level="DEBUG"), program=False):
        assert LOG.level == logging.ERROR
    LOG.setLevel(logging.NOTSET)
    with logged(SystemConfig(log_level="WARNING"), program=False):
        assert LOG.level == logging.WARNING


def test_where_nobody_has_set_up_a_log_it_is_set_up(monkeypatch, capsys):
    monkeypatch.setattr(LOG, "propagate", False)
    LOG.handlers[:] = []
    with logged(SystemConfig(), program=False):
        LOG.info("a word")
    assert "a word" in capsys.readouterr().err
    assert LOG.handlers == []


def test_a_program_has_its_log_at_its_level_and_gives_the_file_back(tmp_path):
    with logged(SystemConfig(log_level="WARNING", log_file=tmp_path / "w.log"), program=True):
        LOG.warning("a word")
        LOG.info("nothing")
    LOG.warning("after it")
    assert "a word" in (tmp_path / "w.log").read_text()
    assert len((tmp_path / "w.log").read_text().splitlines()) == 1


@pytest.mark.parametrize("program", [True, False])
def test_a_log_file_that_cannot_be_written_is_a_clear_error(tmp_path, program):
    with pytest.raises(StorageError, match="log"), logged(SystemConfig(log_file=tmp_path), program=program):
        pass
