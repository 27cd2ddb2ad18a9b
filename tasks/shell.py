"""Programs of the system, by prefect-shell.

For short questions to tools. Long work goes through the library's own child processes, which die with
their parent and have a time limit.
"""

from __future__ import annotations

import shlex
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from prefect_shell import ShellOperation

from nightbeam.core.errors import ToolError
from tasks._policy import pure

__all__ = ["ask_version", "run_shell", "tool_version"]


_NOTHING: Mapping[str, str] = MappingProxyType({})


def run_shell(
    command: Sequence[str], *, working_dir: str | None = None, hide: Mapping[str, str] = _NOTHING
) -> list[str]:
    """Run one program by prefect-shell and return its lines; its failure is an error.

    Parameters
    ----------
    command
        Program and arguments; they are quoted here, so that nothing in them is taken for shell.
    hide
        Secrets that the program may repeat, and what is said in place of each.

    Raises
    ------
    ToolError
        If it ends with anything but 0; with the last line that it wrote to standard error. Its arguments are not said:
        a secret may be among them.
    """
    with tempfile.TemporaryDirectory(prefix="nightbeam-shell-") as place:
        # A process that is waited for drops what is written to standard error.
        complaints = Path(place) / "stderr"
        said = f"{shlex.join(command)} 2>{shlex.quote(str(complaints))}"
        with ShellOperation(commands=[said], working_dir=working_dir, stream_output=False) as operation:
            process = operation.trigger()
            try:
                process.wait_for_completion()
            except RuntimeError as error:
                last = _last_line(complaints, hide)
                raise ToolError(
                    f"{command[0]} ended with exit code {process.return_code}" + (f": {last}" if last else ""),
                    fix="run it by hand",
                ) from error
            return list(process.fetch_result())


def _last_line(file: Path, hide: Mapping[str, str]) -> str:
    if not file.exists():
        return ""
    lines = [line.strip() for line in file.read_text(errors="replace").splitlines() if line.strip()]
    last = lines[-1] if lines else ""
    for secret, instead in hide.items():
        last = last.replace(secret, instead) if secret else last
    return last


def ask_version(program: str, option: str = "--version") -> str | None:
    """Return the first line that a program says of itself, or None where it is not installed."""
    if shutil.which(program) is None:
        return None
    lines = [line for line in run_shell([program, option]) if line.strip()]
    return lines[0].strip() if lines else "(says nothing)"


tool_version = pure(ask_version, name="tool-version", task_run_name="{program}-version")
