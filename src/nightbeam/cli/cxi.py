"""``nightbeam cxi``: files for CrystFEL; what it will make of them, and what is in them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from nightbeam.cli import cxi_write
from nightbeam.cli.output import json_option, show, talk

if TYPE_CHECKING:
    from nightbeam.cxi.check import CheckReport
    from nightbeam.geometry.model import Geometry

__all__ = ["cxi"]

_PATH = click.Path(path_type=Path)


@click.group("cxi")
def cxi() -> None:
    """Write CXI files for CrystFEL, check them, look at them."""


cxi_write.add_to(cxi)


@cxi.command("check")
@click.argument("file", type=_PATH)
@click.argument("geom", type=_PATH, required=False)
@json_option
@click.pass_context
def check(ctx: click.Context, file: Path, geom: Path | None, as_json: bool) -> None:
    """Say what CrystFEL will make of FILE, a CXI file or a list of them, read with the geometry GEOM.

    Without GEOM, that beside FILE is taken if its name is how FILE begins. Ends with 3 if anything was found.
    """
    from nightbeam.cxi.check import check_file, files_of

    files = files_of(file)
    geometry = _geometry(geom or _beside(file))
    if geometry is None:
        talk("without a geometry: places of peaks, energy and camera length as CrystFEL reads them are not looked at")
    reports = [check_file(path, geometry) for path in files]
    _show_reports(reports, as_json=as_json)
    ctx.exit(0 if all(report.good for report in reports) else 3)


@cxi.command("plot")
@click.argument("files", type=_PATH, nargs=-1, required=True)
@click.option("-o", "--out", type=_PATH, help="The figure, PNG.  [default: FILE with .png, where the first FILE is]")
@click.option("-g", "--geom", type=_PATH, help="Geometry: pictures as the detector stands.  [default: that beside]")
@click.option("--slab", is_flag=True, help="Pictures as the data lie in the file, whatever geometry there is.")
@click.option("--event", type=click.IntRange(min=0), help="Which of the first FILE.  [default: that with most peaks]")
@json_option
def plot(files: tuple[Path, ...], out: Path | None, geom: Path | None, slab: bool, event: int | None,
         as_json: bool) -> None:  # fmt: skip
    """Draw a frame of FILES with its peaks, the brightest of all hits, and how many there were."""
    from nightbeam.cxi.check import files_of
    from nightbeam.cxi.plot import plot_files

    paths = [path for file in files for path in files_of(file)]
    geometry = None if slab else _geometry(geom or _beside(files[0]))
    chosen = None if event is None else (paths[0], event)
    done = plot_files(paths, out or files[0].with_suffix(".png"), geometry=geometry, event=chosen)
    if as_json:
        show([{"kind": "figure", "path": str(done)}], as_json=True)
    else:
        click.echo(done)


def _beside(file: Path) -> Path | None:
    """Return the companion of a file: ``p.geom`` of ``p_....cxi`` and of ``p.lst``."""
    if not file.parent.is_dir():
        return None
    found = [one for one in file.parent.glob("*.geom") if file.stem == one.stem or file.stem.startswith(f"{one.stem}_")]
    return max(found, key=lambda one: len(one.stem), default=None)


def _geometry(path: Path | None) -> Geometry | None:
    from nightbeam.geometry.files import read_geometry

    return None if path is None else read_geometry(path)


def _show_reports(reports: list[CheckReport], *, as_json: bool) -> None:
    if as_json:
        show([{"kind": "file", "good": report.good, **_plain(report)} for report in reports], as_json=True)
        return
    rows = [
        {
            "file": report.path,
            "events": report.events,
            "peaks": sum(report.num_peaks),
            "findings": len(report.findings),
        }
        for report in reports
    ]
    show(rows, title="as CrystFEL will read them")
    for report in reports:
        for finding in report.findings:
            at = report.path if finding.event is None else f"{report.path} //{finding.event}"
            talk(f"{at}: {finding.text}")


def _plain(report: CheckReport) -> dict[str, object]:
    return {"path": report.path, "events": report.events, "num_peaks": report.num_peaks, "findings": report.findings}
