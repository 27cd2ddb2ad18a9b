"""The Prefect server's API, by plain HTTP: the library has never heard of Prefect."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, cast

import requests

from nightbeam.core.errors import AuthError, InputError, MissingError, UnavailableError

__all__ = ["ACTIVE", "FINAL", "NonsenseError", "PrefectApi"]

#: Types of state of a run that has, or may have, a process.
ACTIVE = ("PENDING", "RUNNING", "CANCELLING")
#: Types of state of a run that is over.
FINAL = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")

_PAGE = 200
#: SQLite answers "locked" at once where a transaction that has read finds that another has written.
_OVERLOADED = (429, 500, 502, 503, 504)
_RETRY_AFTER_S = (0.2, 0.5, 1.0, 2.0)


class NonsenseError(UnavailableError):
    """Something answers where the Prefect server should, and it is another one."""


class PrefectApi:
    """What a supervisor, a command or a test asks of a Prefect server.

    Parameters
    ----------
    url
        Address of the API, e.g. ``http://127.0.0.1:4200/api``.
    auth_string
        ``user:password`` if the server wants one.
    timeout_s
        For each request.

    Notes
    -----
    Every method raises `UnavailableError` if the server cannot be reached or is overloaded,
    `AuthError` if it refuses us, `MissingError` for what it does not have and `InputError` for
    a request that it does not understand.
    """

    def __init__(self, url: str, *, auth_string: str | None = None, timeout_s: float = 15.0) -> None:
        self.url = url.rstrip("/")
        self._timeout_s = timeout_s
        self._session = requests.Session()
        self._session.trust_env = False  # a proxy of the shell has no say in what is on this machine
        if auth_string:
            user, _, password = auth_string.partition(":")
            self._session.auth = (user, password)

    def healthy(self) -> bool:
        """Say whether the server answers."""
        try:
            return bool(self._session.get(f"{self.url}/health", timeout=5.0).ok)
        except requests.RequestException:
            return False

    def version(self) -> str:
        """Return the server's version of Prefect."""
        return str(self._call("GET", "/admin/version"))

    def pools(self) -> list[dict[str, Any]]:
        """Return all work pools."""
        return self._list("/work_pools/filter", {})

    def workers(self, pool: str) -> list[dict[str, Any]]:
        """Return the workers that a pool has seen, with their ``status``."""
        return self._list(f"/work_pools/{pool}/workers/filter", {})

    def pause_pool(self, pool: str, paused: bool) -> None:
        """Pause or resume a pool."""
        self._call("PATCH", f"/work_pools/{pool}", {"is_paused": paused})

    def flow_runs(
        self, *, types: tuple[str, ...] = (), names: tuple[str, ...] = (), pools: tuple[str, ...] = (), **more: Any
    ) -> list[dict[str, Any]]:
        """Return the flow runs, newest first, with these types or names of state, in these pools."""
        return self._list("/flow_runs/filter", _filter(types, names, pools) | {"sort": "START_TIME_DESC"} | more)

    def flow_names(self, names: Sequence[str]) -> dict[str, str]:
        """Return the names of flows by their ids."""
        found = self._list("/flows/filter", {"flows": {"name": {"any_": list(names)}}})
        return {flow["id"]: flow["name"] for flow in found}

    def runs_of(
        self,
        flows: Sequence[str],
        *,
        types: tuple[str, ...] = (),
        names: tuple[str, ...] = (),
        ended_after: str | None = None,
        started_after: str | None = None,
        started: bool | None = None,
    ) -> list[dict[str, Any]]:
        """Return the runs of flows with these types or names of state, those that ended last first; times ISO 8601.

        With ``started`` only those that have begun: of the others the server takes the time at which they are due.
        """
        body = _filter(types, names, ())
        wanted: dict[str, Any] = body.setdefault("flow_runs", {})
        if ended_after:
            wanted["end_time"] = {"after_": ended_after}
        if started_after:
            wanted["start_time"] = {"after_": started_after}
        found = self._list(
            "/flow_runs/filter", body | {"flows": {"name": {"any_": list(flows)}}, "sort": "END_TIME_DESC"}
        )
        return [run for run in found if run.get("start_time")] if started else found

    def count_runs(
        self, *, types: tuple[str, ...] = (), names: tuple[str, ...] = (), pools: tuple[str, ...] = ()
    ) -> int:
        """Return how many flow runs there are of a kind."""
        return int(self._call("POST", "/flow_runs/count", _filter(types, names, pools)))

    def flow_run(self, run_id: str) -> dict[str, Any]:
        """Return one flow run."""
        return cast(dict[str, Any], self._call("GET", f"/flow_runs/{run_id}"))

    def cancel(self, run_id: str) -> None:
        """Ask for a flow run to be cancelled; it goes on until its process has drained."""
        state = {"type": "CANCELLING", "name": "Cancelling", "message": "asked by nightbeam"}
        self._call("POST", f"/flow_runs/{run_id}/set_state", {"state": state})

    def set_state(self, run_id: str, kind: str, name: str, message: str) -> None:
        """Put a flow run into a state, whatever the one that it is in."""
        state = {"type": kind, "name": name, "message": message}
        self._call("POST", f"/flow_runs/{run_id}/set_state", {"state": state, "force": True})

    def run_again(self, run: Mapping[str, Any]) -> None:
        """Ask for another run of a run's deployment with the same parameters; twice for one run gives one."""
        body = {"state": {"type": "SCHEDULED"}, "parameters": run["parameters"], "name": run["name"]}
        key = f"after {run['id']}"
        self._call("POST", f"/deployments/{run['deployment_id']}/create_flow_run", body | {"idempotency_key": key})

    def deployments(self) -> list[dict[str, Any]]:
        """Return all deployments."""
        return self._list("/deployments/filter", {})

    def deployment(self, name: str) -> dict[str, Any]:
        """Return the deployment called ``flow/name``."""
        return cast(dict[str, Any], self._call("GET", f"/deployments/name/{name}"))

    def run_deployment(
        self,
        name: str,
        *,
        parameters: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
        run_name: str | None = None,
    ) -> dict[str, Any]:
        """Ask for a run of the deployment ``flow/name``; the same key gives the same run."""
        body: dict[str, Any] = {
            "state": {"type": "SCHEDULED"},
            "parameters": dict(parameters or {}),
            "idempotency_key": idempotency_key or str(uuid.uuid4()),
        }
        if run_name:
            body["name"] = run_name
        made = self._call("POST", f"/deployments/{self.deployment(name)['id']}/create_flow_run", body)
        return cast(dict[str, Any], made)

    def automations(self) -> list[dict[str, Any]]:
        """Return all automations."""
        return self._list("/automations/filter", {})

    def artifacts(self, run_id: str) -> list[dict[str, Any]]:
        """Return the artifacts of a flow run that people see (results of tasks have no type)."""
        found = self._list("/artifacts/filter", {"flow_runs": {"id": {"any_": [run_id]}}})
        return [a for a in found if a.get("type") not in (None, "result")]

    def logs(self, run_id: str) -> list[dict[str, Any]]:
        """Return the log records of a flow run, oldest first."""
        wanted = {"logs": {"flow_run_id": {"any_": [run_id]}}, "sort": "TIMESTAMP_ASC"}
        return self._list("/logs/filter", wanted)

    def _list(self, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        while True:
            page = self._call("POST", path, body | {"limit": _PAGE, "offset": len(found)})
            found += page
            if len(page) < _PAGE:
                return found

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        answer = self._ask(method, path, body)
        if answer.status_code in (401, 403):
            raise AuthError(
                f"the Prefect server at {self.url} refuses us ({answer.status_code})",
                fix="set platform.auth_string (NIGHTBEAM_PLATFORM__AUTH_STRING) to its user:password",
            )
        if answer.status_code == 404:
            raise MissingError(f"the Prefect server at {self.url} has no {path}", fix="apply the deployments first")
        if answer.status_code in _OVERLOADED:
            raise UnavailableError(f"the Prefect server answers {answer.status_code} to {path}", fix="read its log")
        if not answer.ok:
            raise InputError(f"the Prefect server does not take {method} {path}: {answer.text[:300]}")
        try:
            return answer.json() if answer.content else None
        except ValueError as error:
            raise NonsenseError(
                f"what answers at {self.url} gives no JSON to {path}", fix="see whether it is Prefect's API"
            ) from error

    def _ask(self, method: str, path: str, body: Any) -> requests.Response:
        """Ask once, and again where a server on SQLite found its database locked.

        Everything we ask for may be asked twice: runs carry a key by which a second request is known.
        """
        for wait_s in (*_RETRY_AFTER_S, None):
            try:
                answer = self._session.request(method, self.url + path, json=body, timeout=self._timeout_s)
            except requests.RequestException as error:
                if wait_s is None or _refused(error):
                    raise UnavailableError(
                        f"no Prefect server answers at {self.url}: {_short(error)}", fix="start it with `nightbeam up`"
                    ) from error
            else:
                if wait_s is None or answer.status_code not in _OVERLOADED:
                    return answer
            time.sleep(wait_s)
        raise AssertionError("the last round returns or raises")


def _filter(types: tuple[str, ...], names: tuple[str, ...], pools: tuple[str, ...]) -> dict[str, Any]:
    body: dict[str, Any] = {}
    state: dict[str, Any] = {}
    if types:
        state["type"] = {"any_": list(types)}
    if names:
        state["name"] = {"any_": list(names)}
    if state:
        body["flow_runs"] = {"state": state}
    if pools:
        body["work_pools"] = {"name": {"any_": list(pools)}}
    return body


def _short(error: Exception) -> str:
    inner = error.args[0] if error.args else error
    return str(getattr(inner, "reason", inner))


def _refused(error: requests.RequestException) -> bool:
    """Say whether nobody listens there at all, so that asking again at once is idle."""
    return isinstance(error, requests.ConnectionError) and "refused" in str(error)
