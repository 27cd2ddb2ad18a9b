"""The application: the API, the page, and what both stand on."""

from __future__ import annotations

import logging
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import anyio
import anyio.to_thread
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from nightbeam import __version__
from nightbeam.core.errors import NightbeamError, StorageError
from nightbeam.core.settings import Settings
from nightbeam.monitor import api, pages
from nightbeam.monitor.auth import Auth
from nightbeam.monitor.files import read_token, token_path
from nightbeam.monitor.manners import Manners
from nightbeam.monitor.metrics import Instruments, Machine
from nightbeam.monitor.read import Reader
from nightbeam.monitor.remote import Reprocessing
from nightbeam.monitor.shared import Shared
from nightbeam.monitor.threads import Lanes

__all__ = ["MOST_BODY_BYTES", "create_app"]

_log = logging.getLogger(__name__)

MOST_BODY_BYTES: Final = 64 << 10
#: Requests that are worked on at a time where some wait for a disk or a server.
_THREADS: Final = 8
#: To listen at one of these is to listen at all that the machine has.
_ANY_ADDRESS: Final = frozenset({"", "0.0.0.0", "::"})
#: Of these besides that speak to Prefect.
_SLOW: Final = 2


def create_app(
    settings: Settings,
    *,
    reader: Reader | None = None,
    auth: Auth | None = None,
    reprocessing: Reprocessing | None = None,
    share_s: float = 1.0,
) -> FastAPI:
    """Return the monitor of a site.

    Parameters
    ----------
    settings
        Of the site, resolved or not.
    reader, auth, reprocessing
        In place of those that the settings name, for tests. Without ``auth`` the token is read from its file, or made.
    share_s
        For how long an answer serves all who ask the same; 0: each gets one of its own.

    Notes
    -----
    ``app.state`` has ``settings``, ``reader``, ``auth``, ``machine``, ``reprocessing`` and ``slow``, which limits how
    many requests speak to Prefect at a time.

    Raises
    ------
    InputError
        If the token is none, or others may read it.
    """
    settings = settings.resolved()
    told = settings.monitor
    reader = reader or Reader(settings)
    machine = Machine(settings.state_dir)
    instruments = Instruments(reader, machine)

    @asynccontextmanager
    async def life(_app: FastAPI) -> AsyncIterator[None]:
        lanes = Lanes(anyio.to_thread.current_default_thread_limiter(), most=_THREADS)
        machine.start()
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(lanes.watch)
                yield
                tasks.cancel_scope.cancel()
        finally:
            machine.stop()
            reader.close()

    app = FastAPI(
        title="nightbeam monitor",
        version=__version__,
        description="The state of everything that nightbeam runs at a site.",
        openapi_url="/api/openapi.json",
        # Both load their scripts from another site.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=life,
    )
    app.state.settings = settings
    app.state.reader = reader
    app.state.machine = machine
    app.state.instruments = instruments
    app.state.slow = anyio.CapacityLimiter(_SLOW)
    app.state.auth = auth or _auth(settings)
    app.state.reprocessing = reprocessing or Reprocessing(settings, reader)
    app.include_router(api.router)
    app.include_router(api.metrics_router)
    app.add_exception_handler(NightbeamError, _translated)
    app.add_exception_handler(RequestValidationError, _not_understood)
    app.add_exception_handler(HTTPException, _plainly)
    pages.install(app)
    ours = {"127.0.0.1", "localhost", "::1", *({told.host} - _ANY_ADDRESS)}
    hosts = {"*"} if "*" in told.allowed_hosts else {*told.allowed_hosts, *ours}
    app.add_middleware(Shared, keep_s=share_s)
    # The last that is added stands first.
    app.add_middleware(Manners, allowed_hosts=hosts, most_bytes=MOST_BODY_BYTES, observe=instruments.observe)
    return app


def _auth(settings: Settings) -> Auth:
    """Return who may change something: nobody, where the disk is full; one must be able to see that it is."""
    try:
        return Auth(read_token(token_path(settings.state_dir, settings.monitor.token_file)))
    except StorageError as error:
        _log.error("%s; until the next start nothing can be changed from here", error.what)
        return Auth(secrets.token_urlsafe(32))


async def _translated(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, NightbeamError)
    status = api.status_of(error)
    headers = {"www-authenticate": "Bearer"} if status == 401 else {}
    return JSONResponse({"detail": error.what, "fix": error.fix}, status_code=status, headers=headers)


async def _not_understood(_request: Request, error: Exception) -> JSONResponse:
    """Say what of a request is wrong, without sending it back."""
    assert isinstance(error, RequestValidationError)
    found: list[dict[str, Any]] = [
        {"loc": [str(part) for part in one["loc"]], "msg": str(one["msg"])[:300], "type": str(one["type"])}
        for one in error.errors()[:20]
    ]
    return JSONResponse({"detail": found}, status_code=422)


async def _plainly(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return JSONResponse({"detail": str(error.detail)}, status_code=error.status_code, headers=dict(error.headers or {}))
