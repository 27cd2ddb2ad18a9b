"""What the supervisor makes of a Prefect server's answers, played by a small HTTP server."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from nightbeam.core.errors import AuthError, InputError, MissingError, UnavailableError
from nightbeam.platform import remote
from nightbeam.platform.control import ask_server
from nightbeam.platform.processes import free_port
from nightbeam.platform.remote import PrefectApi


class Server(HTTPServer):
    """Answers with the next of a list of (status, content), and remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: list[tuple[int, Any]] = []
        self.asked: list[tuple[str, Any]] = []


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.asked.append((self.path, json.loads(body or b"null")))
        status, content = self.server.answers.pop(0)
        self.send_response(status)
        self.end_headers()
        self.wfile.write(content if isinstance(content, bytes) else json.dumps(content).encode())

    do_GET = do_PATCH = do_POST  # noqa: N815 (http.server's names)

    def log_message(self, *args: Any) -> None:
        return


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(remote, "_RETRY_AFTER_S", (0.0, 0.0))
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def api(server: Server) -> PrefectApi:
    return PrefectApi(f"http://127.0.0.1:{server.server_port}/api/")


def test_a_locked_database_is_asked_again(server, api):
    server.answers = [(503, None), (503, None), (200, "3.8.8")]
    assert api.version() == "3.8.8"


@pytest.mark.parametrize(
    ("status", "kind"),
    [(401, AuthError), (403, AuthError), (404, MissingError), (422, InputError), (409, InputError)],
)
def test_each_refusal_is_its_own_error_and_is_not_asked_again(server, api, status, kind):
    server.answers = [(status, {"detail": "no"})]
    with pytest.raises(kind):
        api.version()
    assert len(server.asked) == 1


def test_a_server_that_stays_overloaded_is_unavailable(server, api):
    server.answers = [(503, None)] * 3
    with pytest.raises(UnavailableError, match="503"):
        api.version()


def test_what_answers_and_is_no_prefect_is_unavailable_and_said(server, api):
    server.answers = [(200, b"<html>log in</html>")]
    with pytest.raises(UnavailableError, match="no JSON"):
        api.version()
    for content in (b"<html>log in</html>", [{"id": 1}], {"detail": "x"}, 3):
        server.answers = [(200, content)]
        said, pools = ask_server(api.url, None)
        assert (said.startswith("answers nonsense"), pools) == (True, ()), said


def test_nobody_there_says_how_to_start_one():
    nobody = PrefectApi(f"http://127.0.0.1:{free_port('127.0.0.1', 45000)}/api")
    assert not nobody.healthy()
    with pytest.raises(UnavailableError, match="nightbeam up"):
        nobody.version()


def test_long_lists_are_read_page_by_page(server, api, monkeypatch):
    monkeypatch.setattr(remote, "_PAGE", 2)
    server.answers = [(200, [{"name": "a"}, {"name": "b"}]), (200, [{"name": "c"}])]
    assert [pool["name"] for pool in api.pools()] == ["a", "b", "c"]
    assert [body["offset"] for _, body in server.asked] == [0, 2]


def test_a_run_asked_for_twice_by_a_lost_answer_is_one_run(server, api):
    server.answers = [(200, {"id": "d"}), (503, None), (200, {"id": "r"})]
    assert api.run_deployment("a/default") == {"id": "r"}
    (first, second) = [body["idempotency_key"] for path, body in server.asked if path.endswith("create_flow_run")]
    assert first == second


def test_runs_are_filtered_by_type_name_and_pool(server, api):
    server.answers = [(200, 3)]
    assert api.count_runs(types=("RUNNING",), names=("Late",), pools=("casa",)) == 3
    ((_, body),) = server.asked
    assert body == {
        "flow_runs": {"state": {"type": {"any_": ["RUNNING"]}, "name": {"any_": ["Late"]}}},
        "work_pools": {"name": {"any_": ["casa"]}},
    }
