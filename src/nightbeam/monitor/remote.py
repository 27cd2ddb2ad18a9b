"""Having a group done again: the queue is told, and a run of the deployment is asked for, once."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Protocol

from nightbeam.catalog import Queue
from nightbeam.catalog.model import Dispatch, State
from nightbeam.contimg.site import Site
from nightbeam.core.errors import BusyError, InputError, MissingError, NightbeamError, StorageError, UnavailableError
from nightbeam.core.files import write_text
from nightbeam.core.settings import Settings
from nightbeam.monitor.model import Reprocessed
from nightbeam.monitor.read import Reader
from nightbeam.platform import FINAL, PrefectApi

__all__ = ["DEPLOYMENT", "SITE", "Reprocessing"]

_log = logging.getLogger(__name__)

DEPLOYMENT: Final = "group-imaging/default"
#: Name of the block of this site, as `deployments.apply` makes it and ``prefect.yaml`` names it.
SITE: Final = "main"
_ASK_S: Final = 5.0
_WAIT_S: Final = 20.0
#: How long a queue that somebody has locked is waited for; a person waits for the answer.
_BUSY_TIMEOUT_S: Final = 3.0
#: Answers that are remembered by the key of their request.
_REMEMBERED: Final = 1000


class Server(Protocol):
    """What is asked of Prefect; `nightbeam.platform.PrefectApi` is one."""

    def deployment(self, name: str) -> dict[str, Any]:
        """Return a deployment."""

    def run_deployment(
        self, name: str, *, parameters: dict[str, Any], idempotency_key: str, run_name: str
    ) -> dict[str, Any]:
        """Ask for a run."""


class Reprocessing:
    """Has groups done again.

    Parameters
    ----------
    settings
        Of the site.
    reader
        Knows which groups there are, and where Prefect is.
    server
        Makes what speaks to Prefect at an address.
    """

    def __init__(self, settings: Settings, reader: Reader, *, server: Callable[[str], Server] | None = None) -> None:
        self._settings, self._reader = settings.resolved(), reader
        self._site = Site.from_settings(self._settings)
        self._server = server or self._prefect
        self._lock = threading.Lock()
        #: Runs that we were to ask for and could not.
        self._unasked: set[str] = set()
        self._answers = _Answers(self._settings.state_dir / "monitor" / "requests.json")

    def start(self, group_id: str, *, key: str | None = None, partial: bool = False) -> Reprocessed:
        """Make a group pending again and start the run that does it.

        However often it is asked for one group, until that run has taken it one run is started. With a ``key`` the same
        request gets the same answer even after that. With ``partial`` also a group that lacks subbands is begun, with
        those that there are; from whoever works on one it is never taken.

        Raises
        ------
        MissingError
            If there is no such group.
        BusyError
            If somebody works on it.
        InputError
            If it lacks subbands, or the key was used for another group.
        UnavailableError, StorageError
            If there is no queue, it cannot be written, or no Prefect server answers; then nothing has changed, or the
            group is pending and the next look at the queue starts it.
        """
        if not self._lock.acquire(timeout=_WAIT_S):
            raise UnavailableError("other groups are just being started", fix="try again")
        try:
            if key is not None and (before := self._answers.get(key)) is not None:
                return _same(before, group_id)
            found = self._start(group_id, partial)
            if key is not None:
                self._answers.put(key, found)
            return found
        finally:
            self._lock.release()
            self._reader.forget_counts()

    def _start(self, group_id: str, partial: bool) -> Reprocessed:
        if problems := self._reader.problems_of_queue():
            # Opening it for writing would make one, or change the schema of one that others use.
            missing = problems[0].startswith("there is no ")
            raise UnavailableError("queue_db not found" if missing else problems[0], fix="see /api/health")
        if self._reader.queue_row(group_id) is None:
            raise MissingError("group not found", fix="/api/status lists groups")
        server = self._server(self._reader.prefect_api())
        self._must_have_deployment(server)
        with self._writing(group_id):
            queue = Queue(
                self._site.queue_url, max_retries=self._site.ingest.max_retries, busy_timeout_s=_BUSY_TIMEOUT_S
            )
            dispatch, new = queue.reprocess_and_dispatch(group_id, partial=partial)
        run = self._run(server, dispatch)
        if not new and run.get("state_type") in FINAL:
            # That run ended without taking the group: it was cancelled, or died before.
            with self._writing(group_id):
                ended = queue.forget_dispatch(dispatch)
                if ended:
                    dispatch, new = queue.reprocess_and_dispatch(group_id, partial=partial)
            if ended:
                run = self._run(server, dispatch)
        new = new or dispatch.idempotency_key in self._unasked
        self._unasked.discard(dispatch.idempotency_key)
        run_id, page = str(run.get("id", "")), self._reader.prefect_page()
        _log.info("group %s is done again by run %s", group_id, run_id)
        url = f"{page}/runs/flow-run/{run_id}" if page and run_id else None
        return Reprocessed(ok=True, group_id=group_id, run_id=run_id or None, run_url=url, started=new)

    @contextmanager
    def _writing(self, group_id: str) -> Iterator[None]:
        """Tell a queue that is locked from a group that somebody works on."""
        try:
            yield
        except BusyError as error:
            row = self._reader.queue_row(group_id)
            if row is not None and row.state == State.IN_PROGRESS:
                raise
            raise UnavailableError(f"the queue cannot be written now: {error.what}", fix="try again") from error

    def _must_have_deployment(self, server: Server) -> None:
        try:
            server.deployment(DEPLOYMENT)
        except MissingError as error:
            raise UnavailableError(f"Prefect has no deployment {DEPLOYMENT}", fix="run `nightbeam apply`") from error

    def _run(self, server: Server, dispatch: Dispatch) -> dict[str, Any]:
        try:
            return server.run_deployment(
                DEPLOYMENT,
                parameters={"group": dispatch.group_id, "site": SITE},
                # As flows/ingest_subbands.py has it: whichever of the two sends it first, there is one run.
                idempotency_key=f"{SITE}/{dispatch.idempotency_key}",
                run_name=dispatch.group_id,
            )
        except NightbeamError as error:
            self._unasked.add(dispatch.idempotency_key)
            raise UnavailableError(
                f"the group is pending, but its run could not be asked for: {error.what}",
                fix="the platform asks again by itself when it runs",
            ) from error

    def _prefect(self, url: str) -> Server:
        if not url:
            raise UnavailableError("no platform runs, so nothing would do it", fix="start it with `nightbeam up`")
        api: Any = PrefectApi(url, auth_string=self._settings.platform.auth_string, timeout_s=_ASK_S)
        found: Server = api
        return found


def _same(before: Reprocessed, group_id: str) -> Reprocessed:
    if before.group_id != group_id:
        raise InputError(f"this key was used for {before.group_id}", fix="use a new one for each group")
    return before


class _Answers:
    """Answers by the key of their request, which outlive this process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, dict[str, Any]] | None = None

    def get(self, key: str) -> Reprocessed | None:
        found = self._load().get(key)
        try:
            return None if found is None else Reprocessed(**(found | {"started": False}))
        except TypeError:  # of another version
            return None

    def put(self, key: str, answer: Reprocessed) -> None:
        known = self._load()
        known[key] = {
            "ok": answer.ok, "group_id": answer.group_id, "run_id": answer.run_id, "run_url": answer.run_url
        }  # fmt: skip
        for old in list(known)[:-_REMEMBERED]:
            del known[old]
        try:
            write_text(self._path, json.dumps(known) + "\n")
        except StorageError as error:  # the run is started; only its repetition is not known after a restart
            _log.warning("%s", error.what)

    def _load(self) -> dict[str, dict[str, Any]]:
        if self._known is None:
            try:
                found = json.loads(self._path.read_text())
            except (OSError, ValueError):
                found = {}
            self._known = (
                {str(k): v for k, v in found.items() if isinstance(v, dict)} if isinstance(found, dict) else {}
            )
        return self._known
