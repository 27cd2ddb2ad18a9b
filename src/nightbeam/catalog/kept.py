"""A database that somebody looks at again and again: opened read-only, kept open, and opened anew when it is another.

Opening one costs milliseconds, and each transaction of a `Database` has a connection of its own; a page that is asked
for often can afford neither. Nothing here makes, migrates or changes a database.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from nightbeam.catalog.remote import Database, DatabaseName, shown_url
from nightbeam.core.errors import InputError, MissingError, NightbeamError, StorageError

__all__ = ["KeptDatabase"]

#: What could not be opened is not tried again for so long, so that a server that is away does not hold up every page.
_TRY_AGAIN_S = 2.0
#: Its schema may become a newer one while it is open.
_CHECK_S = 10.0
_BUSY_TIMEOUT_S = 2.0
_CONNECT_TIMEOUT_S = "3"
_File = tuple[int, int]


class KeptDatabase:
    """A database to be read, whatever becomes of it.

    Parameters
    ----------
    url
        SQLAlchemy URL.
    name
        Which of the four it is.
    clock
        Seconds that go on, for tests.

    Attributes
    ----------
    shown
        Its address without a password.

    Notes
    -----
    Safe to be used by many threads. A file that was moved away or replaced is noticed by its inode. A server that does
    not answer is waited for once; then it is tried in the background, and meanwhile its last error is raised at once.
    """

    def __init__(self, url: str, name: DatabaseName, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.name: DatabaseName = name
        self.shown = shown_url(url)
        self._url, self._clock = _patient(url), clock
        self._lock = threading.Lock()
        self._open: Database | None = None
        self._kept = ExitStack()
        self._file: _File | None = None
        self._failure: NightbeamError | None = None
        self._failed_s = self._checked_s = -float("inf")
        self._is_server = self._url.startswith("postgresql")
        self._trying: threading.Thread | None = None

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Yield a connection that sees one consistent state.

        Raises
        ------
        MissingError
            If there is no such file.
        InputError
            If it is no database, or its schema is a newer or an older one.
        StorageError, UnavailableError, BusyError
            If it cannot be read now.
        """
        database = self._database()
        try:
            with database.read() as connection:
                yield connection
        except NightbeamError:
            self._forget(database)
            raise
        except (sa.exc.SQLAlchemyError, TypeError, ValueError, OverflowError) as error:
            # SQLite keeps anything in any column, and this is not what ours hold.
            said = str(error).splitlines()[0][:200]
            raise InputError(f"{self.shown} holds something else than it should: {said}") from error

    def must_answer(self) -> None:
        """Ask for nothing, and have it answered: a server is not spoken to before the first statement.

        Raises
        ------
        NightbeamError
            As `read` does.
        """
        with self.read() as connection:
            connection.execute(sa.text("SELECT 1"))

    def close(self) -> None:
        """Close its connections; it is opened again when it is read."""
        with self._lock:
            self._failure = None
            self._drop()

    # -- opening ------------------------------------------------------------------------------------------------

    def _database(self) -> Database:
        found = self._open
        if found is not None and self._clock() < self._checked_s + _CHECK_S and _file_of(found) == self._file:
            return found
        failure = self._failure
        # While somebody tries what has failed before, the others do not wait for it to fail again.
        if not self._lock.acquire(blocking=failure is None):
            assert failure is not None
            raise failure
        try:
            return self._checked()
        finally:
            self._lock.release()

    def _checked(self) -> Database:
        now = self._clock()
        if self._open is not None and _file_of(self._open) != self._file:
            self._drop()
        if self._open is not None and now >= self._checked_s + _CHECK_S:
            try:
                self._open.check_current()
            except NightbeamError as error:
                self._drop()
                self._failure, self._failed_s = error, self._clock()
            self._checked_s = self._clock()
        if self._open is not None:
            return self._open
        if self._failure is not None:
            if now < self._failed_s + _TRY_AGAIN_S:
                raise self._failure
            if self._is_server and threading.current_thread() is not self._trying:
                self._try_meanwhile()
                raise self._failure
        return self._tried()

    def _tried(self) -> Database:
        try:
            self._open = self._opened()
        except NightbeamError as error:
            # From now on: to find out may have taken longer than it is to be remembered.
            self._failure, self._failed_s = error, self._clock()
            raise
        self._failure, self._checked_s = None, self._clock()
        return self._open

    def _try_meanwhile(self) -> None:
        """Try a server that was away once more, while everybody goes on without it."""
        if self._trying is None or not self._trying.is_alive():
            self._trying = threading.Thread(target=self._try, name=f"try-{self.name}", daemon=True)
            self._trying.start()

    def _try(self) -> None:
        with self._lock, suppress(NightbeamError):
            if self._failure is not None:  # nobody has closed it since
                self._checked()

    def _opened(self) -> Database:
        try:
            database = Database(self._url, self.name, read_only=True, busy_timeout_s=_BUSY_TIMEOUT_S)
            file = _file_of(database)
        except OSError as error:
            if isinstance(error, NightbeamError):
                raise
            raise StorageError(
                f"the {self.name} database cannot be looked at: {error.strerror}", fix="check its owner and the mount"
            ) from error
        if database.file is not None and file is None:
            raise MissingError(f"there is no {self.name} database {database.file}")
        self._kept = ExitStack()
        self._kept.enter_context(database.kept_open())
        self._file = file
        return database

    def _forget(self, database: Database) -> None:
        """Open it anew next time, since reading it went wrong."""
        with self._lock:
            if self._open is database:
                self._drop()

    def _drop(self) -> None:
        self._open, self._file = None, None
        self._kept.close()


def _file_of(database: Database) -> _File | None:
    """Return which file a database is; None for a server, and for a file that is gone or cannot be seen."""
    if database.file is None:
        return None
    try:
        found = os.stat(database.file)  # noqa: PTH116 (asked with every request)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _patient(url: str) -> str:
    """Return a server's address with a limit to how long a connection may take."""
    try:
        parsed = sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError):
        return url  # whose fault it is, `Database` says
    if not parsed.drivername.startswith("postgresql") or "connect_timeout" in parsed.query:
        return url
    patient = parsed.update_query_dict({"connect_timeout": _CONNECT_TIMEOUT_S})
    return patient.render_as_string(hide_password=False)
