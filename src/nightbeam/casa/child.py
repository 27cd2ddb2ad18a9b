"""The child process: reads one JSON job, runs its CASA tasks in order, writes one JSON answer.

Run as ``python -P -m nightbeam.casa.child JOB.json``. CASA is not thread-safe, keeps process-wide state
and may hang or crash; here it can do no harm.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import LazyLoader, spec_from_loader
from pathlib import Path
from types import ModuleType
from typing import Any

__all__ = ["PutOff", "main", "to_plain"]


def main(job_file: str) -> int:
    """Run the job; 0 when every task returned, 3 when one raised (its traceback is on stdout)."""
    job_path = Path(job_file).absolute()
    job = json.loads(job_path.read_text())
    del sys.argv[1:]  # casaconfig parses the command line and would execute what --config names
    from nightbeam.casa.model import BEGIN, TASKS

    results: list[dict[str, Any]] = []
    calls = job["calls"]
    sys.meta_path.insert(0, PutOff(call["task"] for call in calls))
    import casatasks

    for number, call in enumerate(calls, start=1):
        name, kwargs = call["task"], call["kwargs"]
        if name not in TASKS:
            _say(f"{name!r} is not on the list of tasks")
            return 3
        _say(f"{BEGIN} {number}/{len(calls)}: {name} {json.dumps(kwargs)}")
        begin = time.perf_counter()
        try:
            value = getattr(casatasks, name)(**kwargs)
        except Exception:
            _say(f"{name} raised:\n{_told_briefly(traceback.format_exc())}")
            return 3
        results.append({"task": name, "seconds": time.perf_counter() - begin, "value": to_plain(value)})
    answer = Path(job["answer"])
    part = answer.with_suffix(".part")
    part.write_text(json.dumps(results))
    part.replace(answer)
    return 0


class PutOff(MetaPathFinder, Loader):
    """Keep ``import casatasks`` from loading a hundred tasks, and what they draw with, where a job calls one or two.

    Three quarters of a child's start went there. A task of another name is a function that loads the real one when it
    is called, for some tasks call others; pyplot is loaded when something of it is asked for.

    Parameters
    ----------
    tasks
        The tasks that are loaded at once.
    """

    def __init__(self, tasks: Iterable[str]) -> None:
        self._tasks = set(tasks)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, _target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Claim tasks that no call names, and pyplot; leave all else to those who find it otherwise."""
        parent, _, name = fullname.rpartition(".")
        if parent == "casatasks" and name != "private" and name not in self._tasks:
            return spec_from_loader(fullname, self)
        if fullname == "matplotlib.pyplot" and (spec := PathFinder.find_spec(fullname, path)) and spec.loader:
            spec.loader = LazyLoader(spec.loader)
            return spec
        return None

    def exec_module(self, module: ModuleType) -> None:
        """Put the function of a task into its module: ``from .ft import ft`` is all that CASA does with it."""
        name = module.__name__.rpartition(".")[2]
        setattr(module, name, self._later(name))

    def _later(self, name: str) -> Callable[..., Any]:
        fullname = f"casatasks.{name}"

        def task(*args: Any, **kwargs: Any) -> Any:
            if name not in self._tasks:
                self._tasks.add(name)
                del sys.modules[fullname]
            real = getattr(importlib.import_module(fullname), name)
            setattr(sys.modules["casatasks"], name, real)  # importing has put the module there
            return real(*args, **kwargs)

        return task


def to_plain(value: Any) -> Any:
    """Return what a task returned as JSON types: arrays as nested lists, complex as {"re", "im"}, else text."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, complex):
        return {"re": value.real, "im": value.imag}
    if isinstance(value, dict):
        return {str(k): to_plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [to_plain(v) for v in value]
    if hasattr(value, "tolist"):  # numpy arrays and scalars
        return to_plain(value.tolist())
    return str(value)


def _told_briefly(text: str) -> str:
    """Return a traceback without the lines of carets, which CASA's one-line calls make a thousand columns wide."""
    return "\n".join(line[:240] for line in text.splitlines() if line.strip(" ^~"))


def _say(text: str) -> None:
    os.write(1, (text + "\n").encode())


if __name__ == "__main__":
    code = main(sys.argv[1])
    sys.stdout.flush()
    os._exit(code)  # CASA's own exit handlers have crashed after the work was done
