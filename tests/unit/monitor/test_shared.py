"""One answer for all who ask the same, and what every answer has."""

from __future__ import annotations

import asyncio
import runpy
import threading
from pathlib import Path
from typing import Any

import pytest

from nightbeam.monitor.fresh import Fresh
from nightbeam.monitor.manners import SVG_POLICY, Manners
from nightbeam.monitor.shared import Shared

_asgi = runpy.run_path(str(Path(__file__).resolve().parents[2] / "asgi.py"))
ask, ask_now = _asgi["ask"], _asgi["ask_now"]


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Counting:
    """Answers with how often it was asked, after all who are to ask have asked."""

    def __init__(self, *, status: int = 200, size: int = 0, headers: tuple[tuple[bytes, bytes], ...] = ()) -> None:
        self.asked, self.status, self.size, self.headers = 0, status, size, headers
        self.gate: asyncio.Event | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.asked += 1
        body = str(self.asked).encode() + b"x" * self.size
        if self.gate is not None:
            await self.gate.wait()
        scope["route"] = "the route"
        await send({"type": "http.response.start", "status": self.status, "headers": list(self.headers)})
        await send({"type": "http.response.body", "body": body[:1], "more_body": True})
        await send({"type": "http.response.body", "body": body[1:]})


def test_fifty_who_ask_at_once_have_it_made_once():
    app = Counting()
    shared = Shared(app)

    async def all_of_them() -> list[Any]:
        app.gate = asyncio.Event()
        asking = [asyncio.create_task(ask_now(shared, "/page?a=1")) for _ in range(50)]
        for _ in range(5):
            await asyncio.sleep(0)
        app.gate.set()
        return await asyncio.gather(*asking)

    assert {one.body for one in asyncio.run(all_of_them())} == {b"1"}
    assert app.asked == 1


def test_an_answer_is_made_anew_after_its_second_and_after_a_change():
    app, clock = Counting(), Clock()
    shared = Shared(app, clock=clock)
    assert [ask(shared, "/a").body, ask(shared, "/a").body] == [b"1", b"1"]
    clock.now = 1.0
    assert ask(shared, "/a").body == b"2"
    assert ask(shared, "/b", method="POST").body == b"3"
    assert ask(shared, "/a").body == b"4"


def test_who_asks_for_something_else_or_is_somebody_else_gets_another():
    app = Counting()
    shared = Shared(app)
    asked = [
        ("/a", {}),
        ("/a?x", {}),
        ("/b", {}),
        ("/a", {"cookie": "one"}),
        ("/a", {"cookie": "two"}),
        ("/a", {"x": "y"}),
    ]
    assert [ask(shared, path, headers=told).body for path, told in asked] == [b"1", b"2", b"3", b"4", b"5", b"1"]


@pytest.mark.parametrize(
    "app", [Counting(status=404), Counting(size=2 << 20), Counting(headers=((b"Set-Cookie", b"a=b"),))]
)
def test_errors_large_answers_and_cookies_are_not_shared(app: Counting):
    shared = Shared(app)
    assert ask(shared, "/a").body[:1] + ask(shared, "/a").body[:1] == b"12"


def test_those_who_wait_for_an_answer_that_fails_get_their_own():
    app = Counting(status=500)
    shared = Shared(app)

    async def two() -> list[Any]:
        app.gate = asyncio.Event()
        asking = [asyncio.create_task(ask_now(shared, "/a")) for _ in range(2)]
        for _ in range(5):
            await asyncio.sleep(0)
        app.gate.set()
        return await asyncio.gather(*asking)

    assert sorted(one.body for one in asyncio.run(two())) == [b"1", b"2"]


@pytest.mark.slow
def test_no_more_answers_are_kept_than_fit():
    app = Counting(size=1 << 19)
    shared = Shared(app)
    for number in range(300):
        ask(shared, f"/{number}")
    assert shared._bytes <= 64 << 20
    assert shared._bytes == sum(len(one.body) for one in shared._answers.values())


# -- manners ------------------------------------------------------------------------------------------------------


def _manners(app: Any, told: list[Any] | None = None) -> Manners:
    seen = told if told is not None else []
    return Manners(
        app, allowed_hosts=["site.example", "::1"], most_bytes=100, observe=lambda *one: seen.append(one[:3])
    )


@pytest.mark.parametrize("host", ["site.example", "SITE.example:8000", "[::1]:8000", "[::1]"])
def test_a_host_that_we_are_is_answered_with_every_header(host: str):
    seen: list[Any] = []
    found = ask(_manners(Counting(), seen), "/a", headers={"host": host})
    assert (found.status, found.body) == (200, b"1")
    assert "frame-ancestors 'none'" in found.headers["content-security-policy"]
    assert found.headers["x-content-type-options"] == "nosniff"
    assert found.headers["referrer-policy"] == "same-origin", "a form of ours must be able to say where it is from"
    assert seen == [("GET", "none", 200)]


@pytest.mark.parametrize("host", ["evil.example", "site.example.evil", "", "127.0.0.1", "[::2]"])
def test_another_name_for_this_machine_is_refused(host: str):
    app = Counting()
    found = ask(_manners(app), "/a", headers={"host": host})
    assert (found.status, app.asked) == (400, 0)
    assert found.headers["x-content-type-options"] == "nosniff"


def test_what_is_too_large_is_refused_before_it_is_read_and_while_it_is():
    async def reads(_scope: Any, receive: Any, _send: Any) -> None:
        while (await receive()).get("more_body"):
            pass

    here = {"host": "site.example"}
    assert ask(_manners(reads), "/a", method="POST", headers={**here, "content-length": "101"}).status == 413
    assert ask(_manners(reads), "/a", method="POST", headers={**here, "content-length": "-1"}).status == 413
    assert (
        ask(_manners(reads), "/a", method="POST", headers={**here, "content-length": "1"}, body=b"x" * 101).status
        == 413
    )
    assert ask(_manners(reads), "/" + "a" * 9000, headers=here).status == 414


def test_a_fault_of_ours_is_an_answer_without_a_trace(caplog: pytest.LogCaptureFixture):
    async def broken(_scope: Any, _receive: Any, _send: Any) -> None:
        raise RuntimeError("secret")

    found = ask(_manners(broken), "/a", headers={"host": "site.example"})
    assert (found.status, b"secret" in found.body) == (500, False)
    assert "secret" in caplog.text
    assert found.headers["x-frame-options"] == "DENY"


def test_an_answer_keeps_its_own_policy():
    app = Counting(headers=((b"content-security-policy", SVG_POLICY.encode()),))
    assert ask(_manners(app), "/a", headers={"host": "site.example"}).headers["content-security-policy"] == SVG_POLICY


# -- values -------------------------------------------------------------------------------------------------------


def test_a_value_is_made_anew_when_it_is_old_and_when_it_was_forgotten():
    clock, made = Clock(), []
    fresh = Fresh(lambda: made.append(1) or len(made), keep_s=2.0, clock=clock)
    assert [fresh.get(), fresh.get()] == [1, 1]
    clock.now = 2.0
    assert fresh.get() == 2
    fresh.forget()
    assert fresh.get() == 3


def test_while_one_makes_it_the_others_get_the_last_one():
    clock = Clock()
    making, go_on = threading.Event(), threading.Event()

    def make() -> float:
        if clock.now:
            making.set()
            assert go_on.wait(10.0)
        return clock.now

    fresh = Fresh(make, keep_s=1.0, clock=clock)
    assert fresh.get() == 0.0
    clock.now = 5.0
    found: list[float] = []
    slow = threading.Thread(target=lambda: found.append(fresh.get()))
    slow.start()
    assert making.wait(10.0)
    assert fresh.get() == 0.0
    go_on.set()
    slow.join(10.0)
    assert (found, fresh.get()) == ([5.0], 5.0)


def test_what_goes_wrong_is_raised_and_not_kept():
    answers = iter([ValueError("no"), 7])

    def make() -> int:
        found = next(answers)
        if isinstance(found, Exception):
            raise found
        return found

    fresh = Fresh(make, keep_s=60.0)
    with pytest.raises(ValueError, match="no"):
        fresh.get()
    assert fresh.get() == 7


def test_what_was_made_long_ago_is_not_given_to_those_who_come_while_it_is_made_anew():
    clock = Clock()
    making, waiting, go_on = threading.Event(), threading.Event(), threading.Event()

    def make() -> float:
        if clock.now:
            making.set()
            assert go_on.wait(10.0)
        return clock.now

    class Lock:
        """A lock that says when somebody waits for it."""

        def __init__(self, real: Any) -> None:
            self.real, self.release = real, real.release

        def acquire(self, *, blocking: bool) -> bool:
            if making.is_set() and blocking:
                waiting.set()
            return bool(self.real.acquire(blocking=blocking))

    fresh = Fresh(make, keep_s=1.0, clock=clock)
    fresh._lock = Lock(fresh._lock)  # type: ignore[assignment]
    assert fresh.get() == 0.0
    clock.now = 3600.0
    found: list[float] = []
    both = [threading.Thread(target=lambda: found.append(fresh.get())) for _ in range(2)]
    for one in both:
        one.start()
    assert making.wait(10.0)
    assert waiting.wait(10.0)
    go_on.set()
    for one in both:
        one.join(10.0)
    assert found == [3600.0, 3600.0]


@pytest.mark.parametrize(("method", "status", "asked"), [
    ("POST", 303, 3), ("POST", 200, 3), ("POST", 403, 2), ("POST", 500, 2), ("HEAD", 200, 2), ("OPTIONS", 405, 2),
])  # fmt: skip
def test_only_what_changed_something_has_all_answers_made_anew(method: str, status: int, asked: int):
    app = Counting()
    shared = Shared(app)
    ask(shared, "/page")
    app.status = status
    ask(shared, "/do", method=method)
    app.status = 200
    ask(shared, "/page")
    assert app.asked == asked
