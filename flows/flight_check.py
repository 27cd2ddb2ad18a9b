"""Says which programs of the system the flows can use."""

from __future__ import annotations

from prefect import flow
from prefect.artifacts import create_table_artifact

from tasks.shell import tool_version


@flow(name="flight-check")
def flight_check(programs: tuple[str, ...] = ("wsclean", "rsync")) -> dict[str, str | None]:
    """Show the version of each program as a table at the run; absent ones are no error."""
    found = {program: tool_version(program) for program in programs}
    rows = [{"program": program, "version": version or "not installed"} for program, version in found.items()]
    create_table_artifact(rows, key="flight-check", description="Programs of the system that flows can use")
    return found
