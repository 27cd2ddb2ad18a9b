"""The child process: reads one JSON job, runs its CASA tasks in order, writes one JSON answer.

Run as ``python -P -m nightbeam.casa.child JOB.json``. CASA is not thread-safe, keeps process-wide state
and may hang or crash; here it can do no harm.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

__all__ = ["main", "to_plain"]


def main(job_file: str) -> int:
    """Run the job; 0 when every task returned, 3 when one raised (its traceback is on stdout)."""
    job_path = Path(job_file).absolute()
    job = json.loads(job_path.read_text())
    del sys.argv[1:]  # casaconfig parses the command line and would execute what --config names
    import casatasks

    from nightbeam.casa.model import BEGIN, TASKS

    results: list[dict[str, Any]] = []
    calls = job["calls"]
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
