"""The monitor as a program: a socket, a server, and a file that says where it listens."""

from __future__ import annotations

import logging
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from nightbeam.core.errors import BusyError, InputError, StorageError
from nightbeam.core.settings import Settings
from nightbeam.monitor.files import forget_address, write_address
from nightbeam.platform.compute import page_address

if TYPE_CHECKING:
    import uvicorn

__all__ = ["listen", "serve"]

_log = logging.getLogger(__name__)

_FIRST_PORT: Final = 8000
_TRIES: Final = 200
_BACKLOG: Final = 256
#: Connections beyond this are told to come again.
_MOST_CONNECTIONS: Final = 500
_END_S: Final = 5


def listen(host: str, port: int | None) -> socket.socket:
    """Return a socket that listens at a port, or at the first free one from 8000 on.

    Raises
    ------
    BusyError
        If somebody else has it.
    InputError
        If this machine has no such address.
    """
    ports = range(_FIRST_PORT, _FIRST_PORT + _TRIES) if port is None else (port,)
    try:
        family = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][0]
    except OSError as error:
        raise InputError(f"{host!r} is no address of this machine", fix="set monitor.host") from error
    why = ""
    for one in ports:
        # Told that it is TCP, or asyncio lets the end of each answer wait 40 ms until its head has been seen.
        found = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        try:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.bind((host, one))
            found.listen(_BACKLOG)
        except OSError as error:
            found.close()
            why = str(error.strerror)
        else:
            return found
    said = f"port {port}" if port is not None else f"none of the ports {ports[0]} to {ports[-1]}"
    raise BusyError(f"{said} on {host} cannot be had: {why}", fix="name another with --port, or set monitor.port")


def serve(settings: Settings, *, say: Callable[[str], None] = _log.info) -> None:
    """Serve the page and the API until SIGTERM or SIGINT.

    Parameters
    ----------
    settings
        Of the site; ``monitor.host`` and ``monitor.port`` say where.
    say
        Is told the address.

    Raises
    ------
    BusyError
        If the port is taken.
    InputError
        If there is no such address, or the token is none.
    StorageError
        If the state directory is none.
    """
    import uvicorn

    from nightbeam.monitor.app import create_app

    settings = settings.resolved()
    told = settings.monitor
    if settings.state_dir.exists() and not settings.state_dir.is_dir():
        raise StorageError(f"{settings.state_dir} is a file", fix="name the directory of a site with --state-dir")
    app = create_app(settings)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=_MOST_CONNECTIONS,
        timeout_graceful_shutdown=_END_S,
        h11_max_incomplete_event_size=32 << 10,
    )
    server = uvicorn.Server(config)
    with listen(told.host, told.port) as bound, _ended_by_signals(server):
        address = page_address(told.host, int(bound.getsockname()[1]))
        try:
            write_address(settings.state_dir, address)
        except StorageError as error:  # it is there to say so
            _log.error("%s", error.what)
        try:
            say(address)
            server.run(sockets=[bound])
        finally:
            forget_address(settings.state_dir, address)


@contextmanager
def _ended_by_signals(server: uvicorn.Server) -> Iterator[None]:
    """Let the server end on a signal, also on one that comes before it has begun.

    When it has ended it raises the same signal once more, which is to end nothing else: the address is still to be
    taken back.
    """

    def end(_number: int, _frame: object) -> None:
        server.should_exit = True

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
