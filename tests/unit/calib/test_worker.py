import threading
import time

import pytest

from nightbeam.calib import worker
from nightbeam.calib.prefetch import Action, PrefetchReport
from nightbeam.calib.worker import prefetch_loop
from nightbeam.core.errors import InputError, UnavailableError


@pytest.fixture
def passes(monkeypatch):
    """What each pass does, in order; afterwards every pass works."""
    script, calls = [], []

    def prefetch(experiment, **options):
        calls.append(options)
        step = script.pop(0) if script else None
        if isinstance(step, Exception):
            raise step
        return PrefetchReport(experiment, 5, Action.CURRENT, None)

    monkeypatch.setattr(worker, "prefetch", prefetch)
    return script, calls


def loop(stop, **options):
    return prefetch_loop(stop, experiment="x", xtc_dir=None, output_dir=None, service=None, **options)


def test_one_pass_is_one_pass_and_its_failure_is_raised(passes):
    script, calls = passes
    assert loop(threading.Event(), once=True, skip=("a",), keep=3) == 1
    assert (calls[0]["skip"], calls[0]["keep"]) == (("a",), 3)
    script.append(UnavailableError("503"))
    with pytest.raises(UnavailableError):
        loop(threading.Event(), once=True)


def test_failures_are_logged_and_the_next_pass_comes(passes, caplog):
    script, calls = passes
    script += [UnavailableError("the service is down"), ValueError("nobody thought of it")]
    stop, seen = threading.Event(), []

    def note(report):
        seen.append(report)
        stop.set()

    assert loop(stop, interval_s=0.01, on_report=note) == 1
    assert len(calls) == 3
    assert "the service is down" in caplog.text
    assert "nobody thought of it" in caplog.text


def test_the_loop_ends_at_once_while_it_waits(passes):
    stop = threading.Event()
    threading.Timer(0.1, stop.set).start()
    begin = time.monotonic()
    assert loop(stop, interval_s=3600) == 1
    assert time.monotonic() - begin < 60


def test_a_loop_that_is_told_before_it_begins_does_nothing(passes):
    stop = threading.Event()
    stop.set()
    assert loop(stop) == 0
    assert passes[1] == []


def test_an_interval_that_makes_no_sense_is_refused(passes):
    with pytest.raises(InputError, match="interval"):
        loop(threading.Event(), interval_s=0)
