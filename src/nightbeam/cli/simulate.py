"""``nightbeam simulate``: data whose truth is known."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from nightbeam.cli.output import dry_run_option, json_option, show, talk

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nightbeam.simulate import TruthFault, TruthGroup

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
@click.option(
    "--arrivals",
    type=click.Choice(["regular", "real"]),
    default="regular",
    show_default=True,
    help="How groups follow each other: evenly, or with the telescope's breaks and gaps.",
)
@click.option(
    "--fault", "faults", multiple=True, metavar="KIND[:NUMBER][=VALUE][@GROUP]", help="What goes wrong; repeatable."
)
@click.option("--fault-rate", default=0.0, help="Part of the groups in which anything may go wrong.  [default: 0]")
@click.option("--overwrite", is_flag=True, help="Replace the simulation that is in OUT.")
@dry_run_option
@json_option
def subbands(out: Path, overwrite: bool, dry_run: bool, as_json: bool, **asked: Any) -> None:
    """Write groups of DSA-110 subband files and their truth.json into OUT.

    Faults are missing-subband, late-subband, duplicate-subband, truncated-subband, zero-byte, nan-block,
    restart-gap, clock-jump, dead-antenna, rfi-line, rfi-burst, wrong-pointing and foreign-file, as in
    ``--fault clock-jump:5=82@1`` for the clock of subband 5 in the second group, 82 s ahead.
    """
    from nightbeam.simulate import plan_simulation, simulate_subbands

    spec = _spec(asked)
    if dry_run:
        truth = plan_simulation(spec)
    else:
        truth = simulate_subbands(out, spec, overwrite=overwrite, on_file=lambda path: talk(f"wrote {path.name}"))
    lines = (_line(group, truth.events) for group in truth.groups)
    show(truth.groups if as_json else lines, as_json=as_json, title=str(out))


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


def _line(group: TruthGroup, events: Iterable[TruthFault]) -> dict[str, Any]:
    return {
        "group": group.group_id,
        "files": len(group.files),
        "calibrator": group.calibrator,
        "centre (ICRS)": f"{group.ra_deg:.2f} {group.dec_deg:+.2f}",
        "faults": ", ".join(_short(event) for event in events if event.group_id == group.group_id) or None,
    }


def _short(event: TruthFault) -> str:
    """Return a fault without its group, which the line says, in words that a narrow column can fold."""
    from nightbeam.simulate import Fault

    fault = Fault.parse(event.fault)
    kind = fault.kind.removesuffix("-subband").removesuffix("-antenna")
    return " ".join(str(word) for word in (kind, fault.number, fault.value) if word is not None)
