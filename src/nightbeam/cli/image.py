"""``nightbeam image``: an image of a Measurement Set, and whether it is good."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nightbeam.cli.output import dry_run_option, json_option, plain, settings_of, show, talk

if TYPE_CHECKING:
    from nightbeam.imaging import ImageProduct, Verdict

__all__ = ["image"]

_CHOICES = {
    "engine": click.Choice(["tclean", "wsclean"]),
    "weighting": click.Choice(["briggs", "natural", "uniform"]),
    "gridder": click.Choice(["standard", "wproject"]),
    "beam": click.Choice(["auto", "engine", "dsacalib", "gaussian", "airy"]),
    "column": click.Choice(["auto", "corrected", "data"]),
}


@click.command()
@click.argument("ms", type=click.Path(path_type=Path))
@click.option(
    "--imagename", type=click.Path(path_type=Path), help="What the products' names begin with.  [MS stem.img]"
)
@click.option("--engine", type=_CHOICES["engine"], help="Which imager.")
@click.option("--imsize", type=int, help="Pixels on a side.")
@click.option("--cell-arcsec", type=float, help="Pixel size; what shows the primary beam, well sampled, if not given.")
@click.option("--weighting", "--weighttype", "--weight", type=_CHOICES["weighting"], help="uv weighting.")
@click.option("--robust", type=float, help="Briggs robustness, -2 to 2.")
@click.option("--niter", type=int, help="Clean components at most.")
@click.option("--threshold", help="Where cleaning stops, e.g. 0.5mJy.")
@click.option("--deconvolver", help="CASA's name of the minor cycle.")
@click.option("--gridder", type=_CHOICES["gridder"], help="standard displaces sources far from the centre.")
@click.option("--wprojplanes", type=int, help="-1: chosen by CASA.")
@click.option("--specmode", type=click.Choice(["mfs"]), expose_value=False, help="One image of the whole band.")
@click.option("--pblimit", type=float, help="Beam level where the corrected image ends.")
@click.option("--psfcutoff", type=float, help="The restoring beam is fitted to the dirty beam above this level.")
@click.option("--no-pbcor", is_flag=True, help="Make no beam-corrected image.")
@click.option("--beam-model", type=_CHOICES["beam"], help="Primary beam.")
@click.option("--datacolumn", type=_CHOICES["column"], help="Which column; auto: CORRECTED_DATA if it holds anything.")
@click.option("--chanbin", type=int, help="Channels averaged first, at most.")
@click.option("--field", help="CASA selection.")
@click.option("--spw", help="CASA selection.")
@click.option("--uvrange", help="CASA selection, e.g. '>1klambda'.")
@click.option("--phasecenter", help="CASA direction, e.g. 'J2000 01h37m41.3 +33d09m35.1'.")
@click.option("--quick", is_flag=True, help="At most 512 pixels and 300 components.")
@click.option("--skip-fits", is_flag=True, help="Leave CASA images instead of FITS.")
@click.option("--keep-casa-images", is_flag=True, help="Leave CASA images besides FITS.")
@click.option("--force", is_flag=True, help="Make it again though it is finished.")
@dry_run_option
@json_option
@click.pass_context
def image(
    ctx: click.Context,
    /,
    ms: Path,
    imagename: Path | None,
    no_pbcor: bool,
    quick: bool,
    force: bool,
    dry_run: bool,
    as_json: bool,
    **asked: Any,
) -> None:
    """Make an image of MS, measure it and judge it.

    Options that are not given come from the settings (contimg.image). A finished image of the same data
    and options is not made again. Exit code 3: there is an image, and it is not good.
    """
    from nightbeam.core.errors import RejectedError
    from nightbeam.imaging import ImageOptions, image_ms, judge_image, plan_image

    settings = settings_of(ctx)
    section = settings.contimg.image
    values = section.model_dump() | {name: value for name, value in asked.items() if value not in (None, False)}
    values |= {"pbcor": not no_pbcor, "quick": quick or section.quick}
    options = ImageOptions.from_mapping(values)
    stem = imagename or ms.with_name(f"{ms.name.removesuffix('.ms')}.img")
    if dry_run:
        plan = plain(plan_image(ms, stem, options=options))
        show([plan] if as_json else [{"what": name, "value": value} for name, value in plan.items()], as_json=as_json)
        return
    scratch = settings.contimg.scratch_dir
    product = image_ms(
        ms,
        stem,
        options=options,
        work_dir=scratch if scratch is not None else stem.absolute().parent,
        timeout_s=section.timeout_s,
        threads=settings.contimg.threads,
        memory_gb=section.memory_gb,
        force=force,
    )
    verdict = judge_image(product, min_peak_over_noise=section.min_peak_over_noise)
    row = _row(product, verdict)
    show([row] if as_json else [{"what": name, "value": value} for name, value in row.items()], as_json=as_json)
    for path in (*product.fits.values(), *product.native.values(), product.png):
        talk(f"wrote {path}")
    if not verdict.good:
        raise RejectedError(f"{product.path.name} is not good: {'; '.join(verdict.reasons)}")


def _row(product: ImageProduct, verdict: Verdict) -> dict[str, Any]:
    beam = f"{product.beam_major_arcsec:.2f} x {product.beam_minor_arcsec:.2f}, {product.beam_pa_deg:.1f} deg"
    return {
        "image": product.path,
        "beam_arcsec": beam,
        "noise_jy": product.noise_jy,
        "noise_centre_jy": product.noise_centre_jy,
        "peak_jy": product.peak_jy,
        "dynamic_range": product.dynamic_range,
        "datacolumn": product.datacolumn,
        "flagged": product.flagged_fraction,
        "cell_arcsec": product.cell_arcsec,
        "imsize": product.imsize,
        "seconds": product.seconds,
        "good": verdict.good,
        "reasons": list(verdict.reasons),
    }
