import json
import socket
import urllib.error
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from nightbeam.core.errors import BusyError
from nightbeam.cxi.health import Health, health_server, metrics_text, write_status

COUNTERS = {
    "events_received": 24,
    "total_events_written": 18,
    "events_rejected": {"bad shape": 2, "duplicate": 1},
    "events_lost": {},
    "queue_size": None,
    "buffer_size": 3,
}


def ask(port, path):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def test_a_writer_that_works_says_so():
    with health_server(0, Health, lambda: COUNTERS) as port:
        code, body = ask(port, "/healthz")
    assert (code, json.loads(body)) == (200, {"status": "ok", "problems": []})


def test_a_writer_that_does_not_work_says_why():
    with health_server(0, lambda: Health(("the disk is full",)), lambda: COUNTERS) as port:
        code, body = ask(port, "/healthz?x=1")
    assert (code, json.loads(body)["problems"]) == (503, ["the disk is full"])


def test_metrics_are_what_prometheus_reads():
    with health_server(0, Health, lambda: COUNTERS) as port:
        code, body = ask(port, "/metrics")
    values = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }
    assert code == 200
    assert values["cxi_events_received_total",] == 24
    assert values["cxi_events_rejected_total", "bad shape"] == 2
    assert values["cxi_buffered_events",] == 3
    assert values["cxi_up",] == 1
    assert ("cxi_queue_batches",) not in values


def test_metrics_say_that_it_is_down():
    assert b"cxi_up 0.0" in metrics_text(COUNTERS, Health(("x",)))


def test_another_page_is_not_there():
    with health_server(0, Health, lambda: COUNTERS) as port:
        assert ask(port, "/etc/passwd")[0] == 404


def test_without_a_port_nothing_is_served():
    with health_server(None, Health, lambda: COUNTERS) as port:
        assert port is None


def test_a_port_that_is_taken_is_a_clear_error():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with (
            pytest.raises(BusyError, match=r"health\.port"),
            health_server(other.getsockname()[1], Health, lambda: COUNTERS),
        ):
            pass


def test_a_status_is_replaced_whole_and_leaves_nothing_behind(tmp_path):
    path = tmp_path / "own" / "status.json"
    path.parent.mkdir()
    for k in range(2):
        write_status(path, {"k": k})
    assert json.loads(path.read_text()) == {"k": 1}
    assert list(path.parent.iterdir()) == [path]
