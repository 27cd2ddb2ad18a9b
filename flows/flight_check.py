"""Whether the machine and the site are ready for the night, as a table that a person reads."""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.artifacts import create_table_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed

from nightbeam.core.errors import RejectedError
from nightbeam.platform.findings import Finding, Health, worst
from tasks.platform import look_around
from tasks.shell import tool_version


@flow(name="flight-check")
def flight_check(
    programs: tuple[str, ...] = ("wsclean", "rsync"), look: bool = True, thorough: bool = False
) -> dict[str, str | None] | State[Any]:
    """Show everything that `nightbeam doctor` finds, and the version of each program, as a table at the run.

    A run with a failing finding fails; one with warnings alone completes under the name ``Warnings``.

    Parameters
    ----------
    programs
        Whose versions are shown; absent ones are no error.
    look
        False shows the programs alone.
    thorough
        Whether the databases are read through for damage, which takes minutes where they are large.

    Returns
    -------
    dict
        The version of each program.
    """
    found = {program: tool_version(program) for program in programs}
    findings = look_around(thorough=thorough) if look else []
    rows = [_row(finding) for finding in sorted(findings, key=lambda one: -list(Health).index(one.health))]
    rows += [
        {"check": program, "health": "", "found": version or "not installed", "fix": ""}
        for program, version in found.items()
    ]
    create_table_artifact(rows, key="flight-check", description="What the machine and the site are ready for")
    odd = [one for one in findings if one.health is not Health.OK]
    if not odd:
        return found
    said = "; ".join(f"{one.check}: {one.found}" for one in odd if one.health is worst(findings))
    if worst(findings) is Health.FAIL:
        raise RejectedError(f"not ready: {said}", fix="the table at the run says how to mend each")
    return Completed(name="Warnings", message=said, data=found)


def _row(finding: Finding) -> dict[str, str]:
    return {"check": finding.check, "health": finding.health, "found": finding.found, "fix": finding.fix}
