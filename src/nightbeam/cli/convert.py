"""``nightbeam convert``: subbands to Measurement Sets."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nightbeam.cli.output import dry_run_option, json_option, settings_of, show, talk
from nightbeam.core.errors import InputError, MissingError, NightbeamError, PartialError

if TYPE_CHECKING:
    from nightbeam.ingest import SubbandGroup

__all__ = ["convert"]


@click.command()
@click.argument("inputs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FILES_OR_DIR...")
@click.option("--output", type=click.Path(path_type=Path), help="Directory, or NAME.ms for one group.  [settings]")
@click.option("--start", help="Leave out groups that begin before this (UTC).")
@click.option("--end", help="Leave out groups that begin at or after this (UTC).")
@click.option("--writer", type=click.Choice(["direct-subband", "pyuvdata", "auto"]), help="Strategy.  [settings]")
@click.option("--max-workers", type=int, help="Subbands at the same time.  [settings]")
@click.option("--partial", is_flag=True, help="In a directory, convert incomplete groups too.")
@click.option("--stage-to-tmpfs/--no-stage-to-tmpfs", default=None, help="Write in memory first.  [settings]")
@dry_run_option
@json_option
@click.pass_context
def convert(
    ctx: click.Context,
    inputs: tuple[Path, ...],
    output: Path | None,
    start: str | None,
    end: str | None,
    writer: str | None,
    max_workers: int | None,
    partial: bool,
    stage_to_tmpfs: bool | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Write each group of subbands as one Measurement Set.

    FILES_OR_DIR are subband files, whose groups are all converted, or directories, whose complete groups are.
    """
    settings = settings_of(
        ctx,
        contimg__convert__writer=writer,
        contimg__convert__max_workers=max_workers,
        contimg__convert__stage_to_tmpfs=stage_to_tmpfs,
    ).contimg
    output = output or settings.output_dir or Path()
    groups = _groups(inputs, settings.ingest, _time(start, "--start"), _time(end, "--end"), partial=partial)
    jobs = [(group, _target(output, str(group.group_id), len(groups))) for group in groups]
    if dry_run:
        show([_plan(group, ms, settings.ingest.expected_subbands) for group, ms in jobs], as_json=as_json)
        return
    reports, errors = [], []
    for group, ms in jobs:
        try:
            reports.append(_convert(group, ms, settings))
        except NightbeamError as error:
            errors.append(error)
            talk(f"{group.group_id}: {error}")
    show(reports if as_json else map(_line, reports), as_json=as_json)
    if errors and reports:
        raise PartialError(f"{len(errors)} of {len(jobs)} groups were not converted", fix="see the errors above")
    if errors:
        raise errors[0]


def _convert(group: SubbandGroup, ms: Path, settings: Any) -> Any:
    from nightbeam.uvh5 import convert_group

    options = settings.convert
    report = convert_group(
        group.paths,
        ms,
        writer=options.writer,
        max_workers=options.max_workers,
        expected_subbands=settings.ingest.expected_subbands,
        stage_to_tmpfs=options.stage_to_tmpfs,
        tmpfs_path=options.tmpfs_path,
        max_flagged_fraction=options.max_flagged_fraction,
    )
    talk(f"WRITER_TYPE: {report.writer_type}")
    return report


def _groups(
    inputs: tuple[Path, ...], ingest: Any, start: datetime | None, end: datetime | None, *, partial: bool
) -> list[SubbandGroup]:
    """Return the groups to convert; whatever is left out is talked of."""
    from nightbeam.core.keys import SubbandName
    from nightbeam.ingest import group_files

    named = [p for p in inputs if not p.is_dir()]
    listed = [
        p for d in inputs if d.is_dir() for p in sorted(d.iterdir()) if SubbandName.parse(p.name) and p not in named
    ]
    found = group_files(named, gap_s=ingest.name_gap_s) if named else []
    whole = []
    for group in group_files(listed, gap_s=ingest.name_gap_s, strict=False) if listed else []:
        missing = group.missing(ingest.expected_subbands)
        if missing and not partial:
            talk(f"{group.group_id}: left out, subbands {' '.join(f'{m:02d}' for m in missing)} are missing")
        else:
            whole.append(group)
    chosen = [
        g for g in (*found, *whole)
        if (start is None or g.group_id.start >= start) and (end is None or g.group_id.start < end)
    ]  # fmt: skip
    if not chosen:
        raise MissingError(
            f"no group to convert among {len(named) + len(listed)} subband files",
            fix="check the directory and the window; --partial converts incomplete groups",
        )
    return chosen


def _target(output: Path, name: str, groups: int) -> Path:
    if output.suffix != ".ms":
        return output / f"{name}.ms"
    if groups > 1:
        raise InputError(f"{groups} groups cannot all become {output}", fix="give a directory as --output")
    return output


def _time(text: str | None, option: str) -> datetime | None:
    if text is None:
        return None
    try:
        when = datetime.fromisoformat(text)
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is no time: write 2025-10-03T11:48:57", param_hint=option) from error
    return when.replace(tzinfo=UTC) if when.tzinfo is None else when.astimezone(UTC)


def _plan(group: SubbandGroup, ms: Path, expected: int) -> dict[str, Any]:
    return {"group": str(group.group_id), "files": len(group.paths), "missing": group.missing(expected), "ms": ms}


def _line(report: Any) -> dict[str, Any]:
    return {
        "ms": report.ms.name,
        "rows": report.rows,
        "windows": report.n_spw,
        "missing": " ".join(f"{s:02d}" for s in report.missing_subbands) or None,
        "centre (ICRS)": f"{report.ra_deg:.4f} {report.dec_deg:+.4f}",
        "flagged %": round(100 * report.flagged_fraction, 2),
        "writer": report.writer_type,
        "seconds": "reused" if report.reused else round(report.total_s, 1),
    }
