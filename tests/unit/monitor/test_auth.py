"""Who may change something."""

from __future__ import annotations

import pytest

from nightbeam.core.errors import AuthError
from nightbeam.monitor.auth import Auth, ForbiddenError, local_path

TOKEN = "a-token-for-the-tests-alone"
HOST = {"host": "127.0.0.1:8000"}


class Clock:
    def __init__(self) -> None:
        self.now = 1_759_363_200.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def auth(clock: Clock) -> Auth:
    return Auth(TOKEN, clock=clock)


def test_who_shows_the_token_may(auth: Auth):
    auth.demand({**HOST, "authorization": f"Bearer {TOKEN}"}, None, scheme="http")
    auth.demand({**HOST, "authorization": f"bearer  {TOKEN} "}, None, scheme="http")


@pytest.mark.parametrize("said", ["Bearer other", "Bearer", f"bearer {TOKEN}x", "Bearer \u00e9"])
def test_another_word_is_refused_even_with_a_good_cookie(auth: Auth, said: str):
    session = auth.new_session()
    with pytest.raises(ForbiddenError):
        auth.demand({**HOST, "authorization": said}, session.value, scheme="http", csrf=session.csrf)


def test_who_shows_nothing_is_asked_for_the_token(auth: Auth):
    for cookie in (None, "", "x", "1.2.3", "." * 5000):
        with pytest.raises(AuthError, match="needs the token") as caught:
            auth.demand(HOST, cookie, scheme="http")
        assert not isinstance(caught.value, ForbiddenError)


def test_a_form_of_the_page_itself_may(auth: Auth):
    session = auth.new_session()
    for more in ({}, {"origin": "http://127.0.0.1:8000"}, {"sec-fetch-site": "same-origin"}):
        auth.demand({**HOST, **more}, session.value, scheme="http", csrf=session.csrf)
    auth.demand({**HOST, "x-csrf-token": session.csrf}, session.value, scheme="http")


@pytest.mark.parametrize(
    "more",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "https://127.0.0.1:8000"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_a_page_of_another_site_may_not_whatever_it_knows(auth: Auth, more: dict[str, str]):
    session = auth.new_session()
    with pytest.raises(ForbiddenError, match="another site"):
        auth.demand({**HOST, **more}, session.value, scheme="http", csrf=session.csrf)


@pytest.mark.parametrize("said", ["Basic dXNlcjpwYXNz", f"Basic {TOKEN}", TOKEN, "Negotiate x"])
def test_what_is_said_to_a_server_before_us_is_nothing_to_us(auth: Auth, said: str):
    session, headers = auth.new_session(), {**HOST, "authorization": said}
    auth.demand(headers, session.value, scheme="http", csrf=session.csrf)
    with pytest.raises(ForbiddenError, match="another site"):
        auth.demand(headers | {"origin": "http://evil"}, session.value, scheme="http", csrf=session.csrf)
    with pytest.raises(AuthError, match="needs the token") as refused:
        auth.demand(headers, None, scheme="http")
    assert not isinstance(refused.value, ForbiddenError)


def test_the_cookie_alone_is_worth_nothing(auth: Auth):
    session, other = auth.new_session(), auth.new_session()
    for word in ("", other.csrf, session.value, "\u00e9"):
        with pytest.raises(ForbiddenError, match="not of this session"):
            auth.demand(HOST, session.value, scheme="http", csrf=word)


def test_a_session_ends_after_half_a_day_and_does_not_come_back_with_the_clock(auth: Auth, clock: Clock):
    session = auth.new_session()
    assert auth.session(session.value) == session
    clock.now += 12 * 3600 + 1
    assert auth.session(session.value) is None
    clock.now -= 48 * 3600
    assert auth.session(session.value) is None, "a clock that was set back makes no session that lasts for days"


def test_another_token_ends_every_session_and_a_changed_cookie_is_none(auth: Auth, clock: Clock):
    value = auth.new_session().value
    assert Auth(TOKEN + "2", clock=clock).session(value) is None
    later = str(int(value.split(".")[0]) + 1000) + value[value.index(".") :]
    assert auth.session(later) is None
    assert auth.session(value[:-1]) is None


@pytest.mark.parametrize(
    ("told", "found"),
    [
        ("/groups/x?limit=5", "/groups/x?limit=5"),
        ("//evil.example/", "/"),
        ("/\\evil.example", "/"),
        ("https://evil.example", "/"),
        ("javascript:alert(1)", "/"),
        ("/a\r\nset-cookie: x", "/"),
        ("", "/"),
        (None, "/"),
        ("/" + "x" * 3000, "/"),
    ],
)
def test_after_a_log_in_one_stays_on_this_site(told: str | None, found: str):
    assert local_path(told) == found
