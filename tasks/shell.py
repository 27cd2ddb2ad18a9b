"""Programs of the system, by prefect-shell.

For short questions to tools. Long work goes through the library's own child processes, which die with
their parent and have a time limit.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Sequence

from prefect_shell import ShellOperation

from nightbeam.core.errors import ToolError
from tasks._policy import pure

__all__ = ["ask_version", "run_shell", "tool_version"]


def run_shell(command: Sequence[str], *, working_dir: str | None = None) -> list[str]:
    """Run one program by prefect-shell and return its lines; its failure is an error.

    Parameters
    ----------
    command
        Program and arguments; they are quoted here, so that nothing in them is taken for shell.

    Raises
    ------
    ToolError
        If it ends with anything but 0.
    """
    said = shlex.join(command)
    with ShellOperation(commands=[said], working_dir=working_dir, stream_output=False) as operation:
        process = operation.trigger()
        try:
            process.wait_for_completion()
        except RuntimeError as error:
            raise ToolError(f"{said} ended with exit code {process.return_code}", fix="run it by hand") from error
        return list(process.fetch_result())


def ask_version(program: str, option: str = "--version") -> str | None:
    """Return the first line that a program says of itself, or None where it is not installed."""
    if shutil.which(program) is None:
        return None
    lines = [line for line in run_shell([program, option]) if line.strip()]
    return lines[0].strip() if lines else "(says nothing)"


tool_version = pure(ask_version, name="tool-version", task_run_name="{program}-version")
