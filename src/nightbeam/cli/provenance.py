"""``nightbeam provenance``: what a product was made of, and whether that is still what it was."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from nightbeam.cli.output import json_option, plain, printable, settings_of, talk

if TYPE_CHECKING:
    from nightbeam.contimg.lineage import Node

__all__ = ["provenance"]


@click.command()
@click.argument("product")
@click.option("--verify", is_flag=True, help="Read what is still there and say what changed and what is gone.")
@click.option("--config", "with_config", is_flag=True, help="Also the settings that were in force, in full.")
@json_option
@click.pass_context
def provenance(ctx: click.Context, product: str, verify: bool, with_config: bool, as_json: bool) -> None:
    """Show what PRODUCT was made of, down to the files of the telescope.

    PRODUCT is the path of an image, a Measurement Set, a calibration table or a mosaic; the id of a group; or the name
    of a mosaic. With --verify the exit code is 2 if something changed or is gone.
    """
    from nightbeam.contimg import Site
    from nightbeam.contimg.lineage import configurations_in, nodes_of, trace
    from nightbeam.contimg.lineage import verify as looked_at
    from nightbeam.core.errors import PartialError

    site = Site.from_settings(settings_of(ctx))
    tree = trace(site, product)
    if verify:
        tree = looked_at(site, tree)
    configurations = configurations_in(site, tree) if with_config else {}
    if as_json:
        click.echo(json.dumps({**plain(tree), **({"configurations": configurations} if with_config else {})}))
    else:
        _tell(tree)
        for digest, content in configurations.items():
            click.echo(f"\nconfiguration {digest}")
            click.echo(printable(json.dumps(content, indent=2, sort_keys=True)))
    if not verify:
        return
    odd = [node for node in nodes_of(tree) if node.standing in ("changed", "gone")]
    blind = [node for node in nodes_of(tree) if node.standing == "unknown"]
    if blind:
        talk(f"{len(blind)} have no checksum to be held against")
    if odd:
        total = sum(1 for _ in nodes_of(tree))
        raise PartialError(f"{len(odd)} of {total} are not what they were; the first is {odd[0].path}: {odd[0].found}")
    talk("everything that has a checksum is what it was")


def _tell(node: Node, depth: int = 0, known: tuple[dict[str, str], ...] = ()) -> None:
    pad = "  " * depth
    standing = f"[{node.standing}{': ' + node.found if node.found else ''}] " if node.standing else ""
    click.echo(printable(f"{pad}{standing}{node.kind} {node.path}"))
    programs = {name: version for name, version in node.programs.items() if name not in ("nightbeam", "writer")}
    for line in _lines(node, {} if programs in known else programs):
        click.echo(printable(f"{pad}    {line}"))
    for below in node.inputs:
        _tell(below, depth + 1, (*known, programs))


def _lines(node: Node, programs: dict[str, str]) -> list[str]:
    if node.kind == "subband":
        return [f"{node.size_bytes} bytes, {node.mtime}, {node.digest_kind} {node.digest}"]
    lines = [f"of {node.subject}"] if node.subject else []
    if node.made_at:
        lines.append(f"made {node.made_at} by {node.run}, nightbeam {node.version}, configuration {_short(node)}")
    if node.digest:
        size = "" if node.size_bytes is None else f"{node.size_bytes} bytes, "
        lines.append(f"{size}{node.digest_kind or 'sha256'} {node.digest}")
    if programs:
        lines.append(", ".join(f"{name} {version}" for name, version in sorted(programs.items())))
    if "writer" in node.programs:
        lines.append(f"written by {node.programs['writer']}")
    lines += [
        f"{s['step']}: {s['finished_at']}, {s['seconds'] or 0.0:.1f} s, by {s['run']}, configuration "
        f"{(s['configuration'] or '')[:12]}"
        for s in node.steps
    ]
    return [*lines, *([f"({node.note})"] if node.note else [])]


def _short(node: Node) -> str:
    return (node.configuration or "unknown")[:12]
