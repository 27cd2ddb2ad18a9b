"""``nightbeam simulate``: data whose truth is known."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from nightbeam.cli.output import dry_run_option, json_option, show, talk

if TYPE_CHECKING:
    from nightbeam.simulate import TruthGroup

__all__ = ["simulate"]


@click.group()
def simulate() -> None:
    """Make data whose truth is known."""


@simulate.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--groups", default=1, show_default=True, help="Observations to write.")
@click.option("--antennas", default=96, show_default=True, help="Stations with data; the header always has 117.")
@click.option("--channels", default=48, show_default=True, help="Per subband; fewer are wider.")
@click.option("--subbands", default=16, show_default=True, help="From sb00 down.")
@click.option("--integrations", default=24, show_default=True, help="Of 12.88 s each.")
@click.option("--dec", "dec_deg", type=float, help="Apparent Dec in degrees.  [default: the calibrator's, or 54.57]")
@click.option("--start", help="First time in the first header (UTC), or the earliest with a calibrator.")
@click.option("--calibrator", metavar="NAME", help="Of the VLA list, like 3C48; it transits in the middle of a group.")
@click.option("--calibrator-group", default=0, show_default=True, help="In which group, counted from 0.")
@click.option("--calibrator-sources", type=int, help="Sources drawn in that group.  [default: as in the others]")
@click.option("--stride", default="1", show_default=True, help="Write every so many-th observation; or 1,3 by group.")
@click.option("--sources", default="10", show_default=True, help="How many to draw per group, or a CSV file.")
@click.option("--noise", default="radiometer", show_default=True, help="Sigma in Jy of a visibility's parts, or none.")
@click.option("--gains/--no-gains", default=True, help="Gains and bandpass, or calibrated data.  [default: gains]")
@click.option("--delay-rms", "delay_rms_ns", default=0.0, help="Scatter of residual delays in ns.  [default: 0]")
@click.option("--beam", default="dsacalib", show_default=True, help="dsacalib, gaussian or airy.")
@click.option("--seed", default=0, show_default=True, help="The same seed gives the same data.")
@click.option("--rate", default=0.0, show_default=True, help="Times faster than at the telescope; 0: at once.")
@click.option("--fault", "faults", multiple=True, metavar="KIND[:NUMBER[@GROUP]]", help="What goes wrong; repeatable.")
@click.option("--overwrite", is_flag=True, help="Replace the simulation that is in OUT.")
@dry_run_option
@json_option
def subbands(out: Path, overwrite: bool, dry_run: bool, as_json: bool, **asked: Any) -> None:
    """Write groups of DSA-110 subband files and their truth.json into OUT.

    Faults are missing-subband, late-subband and dead-antenna, as in ``--fault missing-subband:5@1`` for
    subband 5 of the second group.
    """
    from nightbeam.simulate import plan_simulation, simulate_subbands

    spec = _spec(asked)
    if dry_run:
        truth = plan_simulation(spec)
    else:
        truth = simulate_subbands(out, spec, overwrite=overwrite, on_file=lambda path: talk(f"wrote {path.name}"))
    show(truth.groups if as_json else map(_line, truth.groups), as_json=as_json, title=str(out))


def _spec(asked: dict[str, Any]) -> Any:
    from nightbeam.simulate import Fault, SimulationSpec

    asked["faults"] = tuple(Fault.parse(text) for text in asked["faults"])
    asked["sources"] = _sources(asked["sources"])
    asked["noise"] = _noise(asked["noise"])
    asked["stride"] = _stride(asked["stride"])
    if (start := asked.pop("start")) is not None:
        asked["start"] = _time(start)
    return SimulationSpec(**asked)


def _sources(text: str) -> Any:
    from nightbeam.simulate import read_sources

    return int(text) if text.isdigit() else read_sources(Path(text))


def _stride(text: str) -> int | tuple[int, ...]:
    try:
        numbers = tuple(int(one) for one in text.split(","))
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is no stride: give 3, or 1,3", param_hint="--stride") from error
    return numbers if len(numbers) > 1 else numbers[0]


def _noise(text: str) -> float | Literal["radiometer"] | None:
    if text == "radiometer":
        return "radiometer"
    if text == "none":
        return None
    try:
        return float(text)
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is no noise: give Jy, radiometer or none", param_hint="--noise") from error


def _time(text: str) -> datetime:
    try:
        when = datetime.fromisoformat(text)
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is no time: write 2025-10-03T11:48:57", param_hint="--start") from error
    return when.replace(tzinfo=UTC) if when.tzinfo is None else when.astimezone(UTC)


def _line(group: TruthGroup) -> dict[str, Any]:
    wrong = {"missing": group.missing, "late": group.late, "dead": group.dead_stations}
    return {
        "group": group.group_id,
        "files": len(group.files),
        "calibrator": group.calibrator,
        "centre (ICRS)": f"{group.ra_deg:.2f} {group.dec_deg:+.2f}",
        "faults": ", ".join(f"{word} {' '.join(map(str, n))}" for word, n in wrong.items() if n) or None,
    }
