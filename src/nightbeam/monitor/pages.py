"""The addresses that people look at, each also as JSON: from what `nightbeam.monitor.views` says to an answer.

A page works without JavaScript; what is filtered by stands in its address. What the reader could not read is said on
the page in its words.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode

import anyio.to_thread
from fastapi import APIRouter, FastAPI, Request
from markupsafe import Markup
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response

from nightbeam.core.errors import AuthError, BusyError, InputError, MissingError, NightbeamError
from nightbeam.monitor.auth import COOKIE, CSRF_FIELD, Auth, Session, local_path
from nightbeam.monitor.read import Reader
from nightbeam.monitor.render import STATIC, as_json, static_file, templates
from nightbeam.monitor.views import ONCE, VIEWS, Ask, View, address

__all__ = ["install", "router"]

router = APIRouter(include_in_schema=False)

#: Seconds between two looks of a page at itself.
_REFRESH_S: Final = 10
#: What is brought up to date besides.
_BESIDE: Final = "#made, #log-panel"
_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True, slots=True)
class Message:
    """Something that a page says at its top, once."""

    tone: str
    words: str
    link: str = ""
    link_words: str = ""


def _wants_still(request: Request) -> bool:
    return request.query_params.get("refresh") == "0"


def _common(request: Request, reader: Reader, now: datetime) -> dict[str, Any]:
    """Return what every page needs."""
    here = Ask(request, reader, now).address()
    return {
        "now": now,
        "prefect_url": reader.prefect_page(),
        "logged_in": (session := session_of(request)) is not None,
        "csrf": "" if session is None else session.csrf,
        "login_url": f"/login?{urlencode({'next': here})}",
        "place": None,
        "json_url": None,
        "refreshes": None,
        "polling": "",
        "message": None,
    }


def _as_html(ask: Ask, view: View) -> Response:
    context = {**_common(ask.request, ask.reader, ask.now), **view.context, "place": view.place}
    path, _, query = ask.address(refresh=None).partition("?")
    context["json_url"] = ("/tonight.json" if path == "/" else f"{path}.json") + (f"?{query}" if query else "")
    if view.refreshes:
        still = _wants_still(ask.request)
        context |= {
            "refreshes": 0 if still else _REFRESH_S,
            "still_url": ask.address(refresh=0),
            "fresh_url": ask.address(refresh=None),
            "polling": "" if still else _polling(ask.address()),
        }
    context["message"] = _said(ask.request, context["prefect_url"])
    return HTMLResponse(templates().get_template(view.template).render(context))


def _polling(url: str) -> Markup:
    text = ' hx-get="{}" hx-trigger="every {}s, seen" hx-select="#fresh" hx-swap="outerHTML" hx-select-oob="{}"'
    return Markup(text).format(url, _REFRESH_S, _BESIDE)


#: What a page says after something was done, by the word in its address.
_MESSAGES: Final = {
    "reprocessing": Message("good", "The group is pending again, and a run was started."),
    "again": Message("good", "The group is pending again; the run that was started for it already is on its way."),
    "pending": Message("warn", "The group is pending again. The next look at the queue starts a run."),
    "in": Message("good", "You are logged in."),
    "out": Message("good", "You are logged out."),
}  # fmt: skip


def _said(request: Request, prefect_url: str | None) -> Message | None:
    found = _MESSAGES.get(request.query_params.get("said", ""))
    run = request.query_params.get("run", "")
    if found is not None and prefect_url and _UUID.fullmatch(run):
        return dataclasses.replace(found, link=f"{prefect_url}/runs/flow-run/{run}", link_words="See it in Prefect")
    return found


def problem(request: Request, reader: Reader, *, status: int, title: str, what: str, fix: str = "") -> Response:
    """Return the page that says what is wrong, and what helps."""
    context = _common(request, reader, reader.now())
    context |= {"title": title, "what": what, "fix": fix, "tone": "bad" if status >= 500 else "warn"}
    context["near"] = [{"href": href, "name": href} for href in _near(request.url.path)] if status == 404 else []
    return HTMLResponse(templates().get_template("problem.html").render(context), status_code=status)


def _near(path: str) -> list[str]:
    """Return addresses that may have been meant."""
    known = [one for one in VIEWS if "{" not in one]
    first = "/" + path.strip("/").split("/")[0]
    return list(
        dict.fromkeys(
            [
                *(one for one in known if one == first and one != "/"),
                *difflib.get_close_matches(path, known, n=3, cutoff=0.5),
            ]
        )
    )


def _html(build: Callable[[Ask], View]) -> Callable[[Request], Response]:
    def page(request: Request) -> Response:
        ask = _ask(request)
        try:
            view = build(ask)
        except NightbeamError as error:
            status, title = _status_of(error)
            return problem(request, ask.reader, status=status, title=title, what=error.what, fix=error.fix)
        return _as_html(ask, view)

    return page


def _json(build: Callable[[Ask], View]) -> Callable[[Request], Response]:
    def page(request: Request) -> Response:
        ask = _ask(request)
        try:
            view = build(ask)
        except NightbeamError as error:
            status, _ = _status_of(error)
            return JSONResponse({"error": error.what, "fix": error.fix}, status_code=status)
        return Response(as_json(view.answer), media_type="application/json")

    return page


def _ask(request: Request) -> Ask:
    reader: Reader = request.app.state.reader
    return Ask(request, reader, reader.now())


def _status_of(error: NightbeamError) -> tuple[int, str]:
    if isinstance(error, MissingError):
        return 404, "It is not here"
    if isinstance(error, InputError):
        return 400, "That cannot be done"
    if isinstance(error, BusyError):
        return 409, "Somebody else is at it"
    return 503, "It cannot be read now"


for _path, _build in VIEWS.items():
    _plain_path = "/tonight" if _path == "/" else _path
    router.add_route(f"{_plain_path}.json", _json(_build), methods=["GET"], include_in_schema=False)
    router.add_route(_path, _html(_build), methods=["GET"], include_in_schema=False)
router.add_route("/index.json", _json(VIEWS["/"]), methods=["GET"], include_in_schema=False)


@router.get("/tonight")
@router.get("/ui")
def _home() -> Response:
    return RedirectResponse("/", 307)


@router.get("/static/{name}")
def _static(name: str, request: Request) -> Response:
    kind = STATIC.get(name)
    if kind is None:
        raise HTTPException(404)
    data, word = static_file(name)
    # Whoever asks with the word of this very content never has to ask again.
    keep = "public, max-age=31536000, immutable" if request.query_params.get("v") == word else "no-cache"
    return Response(data, media_type=kind, headers={"Cache-Control": keep, "ETag": f'"{word}"'})


# -- what changes something -----------------------------------------------------------------------------------------


def session_of(request: Request) -> Session | None:
    """Return the session of who asks, or None."""
    auth: Auth = request.app.state.auth
    return auth.session(request.cookies.get(COOKIE))


async def _form(request: Request) -> dict[str, str]:
    """Return the fields of a form; the size of a body is bounded before it comes here."""
    body = await request.body()
    try:
        return dict(parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=20))
    except ValueError:
        return {}


@router.get("/login")
def _login_page(request: Request, next: str = "/") -> Response:  # noqa: A002
    return _login(request, next)


def _login(request: Request, to: str, message: Message | None = None, status: int = 200) -> Response:
    reader: Reader = request.app.state.reader
    own = {"message": message, "next": local_path(to), "login_url": "/login"}
    context = _common(request, reader, reader.now()) | own
    return HTMLResponse(templates().get_template("login.html").render(context), status_code=status)


@router.post("/login")
async def _log_in(request: Request) -> Response:
    form, auth = await _form(request), request.app.state.auth
    to = local_path(form.get("next"))
    try:
        auth.demand_origin(request.headers, scheme=request.url.scheme)
    except AuthError as error:
        return await run_in_threadpool(_login, request, to, Message("bad", error.what), 403)
    if not auth.knows(form.get("token", "").strip()):
        return await run_in_threadpool(_login, request, to, Message("bad", "That is not the token of this site."), 403)
    answer = RedirectResponse(_saying(to, "in"), 303)
    answer.set_cookie(
        COOKIE, auth.new_session().value, max_age=12 * 3600, httponly=True, samesite="strict",
        secure=request.url.scheme == "https",
    )  # fmt: skip
    return answer


@router.post("/logout")
async def _log_out(request: Request) -> Response:
    state = request.app.state
    try:
        state.auth.demand_origin(request.headers, scheme=request.url.scheme)
    except AuthError as error:
        refused = partial(problem, status=403, title="You are still logged in", what=error.what, fix=error.fix)
        return await run_in_threadpool(refused, request, state.reader)
    answer = RedirectResponse(_saying("/", "out"), 303)
    answer.delete_cookie(COOKIE, httponly=True, samesite="strict", secure=request.url.scheme == "https")
    return answer


def _saying(to: str, word: str, **more: str | None) -> str:
    """Return an address with what its page is to say once."""
    path, _, query = to.partition("?")
    kept = [(k, v) for k, v in parse_qsl(query, keep_blank_values=True) if k not in ONCE]
    said = [("said", word), *((k, v) for k, v in more.items() if v)]
    return f"{path}?{urlencode([*kept, *said])}"


@router.post("/groups/{group_id}/reprocess")
async def _reprocess(request: Request, group_id: str) -> Response:
    form, state = await _form(request), request.app.state
    here = address("/groups", group_id)
    if session_of(request) is None:
        return RedirectResponse(f"/login?{urlencode({'next': here})}", 303)

    def work() -> Response:
        try:
            state.auth.demand(
                request.headers, request.cookies.get(COOKIE), scheme=request.url.scheme, csrf=form.get(CSRF_FIELD, "")
            )
            done = state.reprocessing.start(group_id, partial=form.get("partial") == "1")
        except NightbeamError as error:
            status = 403 if isinstance(error, AuthError) else _status_of(error)[0]
            return problem(
                request, state.reader, status=status, title="It was not reprocessed", what=error.what, fix=error.fix
            )
        word = "pending" if done.run_id is None else "reprocessing" if done.started else "again"
        return RedirectResponse(_saying(here, word, run=done.run_id), 303)

    # Prefect may take its time; those who only look do not wait for it.
    return await anyio.to_thread.run_sync(work, limiter=state.slow)


# -- addresses that are none ----------------------------------------------------------------------------------------


def _is_for_people(request: Request) -> bool:
    path = request.url.path
    return (
        not path.startswith(("/api/", "/static/"))
        and not path.endswith(".json")
        and "html" in request.headers.get("accept", "")
    )


def _no_page(request: Request, error: HTTPException) -> Response:
    path, status, reader = request.url.path, error.status_code, request.app.state.reader
    if status == 404:
        fix = "the menu above leads to all there is"
        return problem(
            request, reader, status=404, title="There is no such page", what=f"Nothing is at {path}.", fix=fix
        )
    what = f"{request.method} {path}: {error.detail}."
    return problem(request, reader, status=status, title=f"{status} {error.detail}", what=what)


def install(app: FastAPI) -> None:
    """Put the pages into an application, also the one for an address that is none."""
    app.include_router(router)
    for name in templates().list_templates():
        templates().get_template(name)  # compiled now, so that the first look at a page is as quick as all others
    otherwise: Any = app.exception_handlers.get(HTTPException)

    async def handle(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if otherwise is not None and not _is_for_people(request):
            answer: Response = await otherwise(request, error)
            return answer
        return await run_in_threadpool(_no_page, request, error)

    app.add_exception_handler(HTTPException, handle)
