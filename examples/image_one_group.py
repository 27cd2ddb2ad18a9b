"""One group of subbands to an image with the library alone: no server, no database.

    python examples/image_one_group.py [DIRECTORY]

Simulates an observation of 3C48 with three other sources by twenty real stations, converts it, solves for the gains
on 3C48, applies them, images, and measures the sources where they must be.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from nightbeam.gains import SolveOptions, apply_gains, match_calibrators, solve_gains
from nightbeam.imaging import ImageOptions, image_ms, measure_sources
from nightbeam.simulate import SimulationSpec, simulate_subbands
from nightbeam.sky import read_calibrators
from nightbeam.uvh5 import convert_group


def main(directory: Path) -> None:
    truth = simulate_subbands(
        directory / "incoming",
        SimulationSpec(antennas=20, channels=4, calibrator="3C48", sources=3, source_radius_deg=0.4),
    )
    files = sorted((directory / "incoming").glob("*_sb??.hdf5"))
    group = truth.groups[0].group_id
    casa = {"work_dir": directory / "scratch", "log": directory / "casa.log"}

    report = convert_group(files, directory / f"{group}.ms")
    print(f"{group}: {report.rows} rows in {report.n_spw} windows, {report.total_s:.1f} s")

    match = match_calibrators(
        read_calibrators(None), mid_mjd=report.mid_mjd, ra_deg=report.ra_deg, dec_deg=report.dec_deg, radius_deg=1.0
    )[0]
    solved = solve_gains(report.ms, match, directory / f"{group}_0", options=SolveOptions(), **casa)
    apply_gains(report.ms, [table.path for table in solved.tables], **casa)
    print(f"calibrated on {match.name}: {', '.join(table.path.name for table in solved.tables)}")

    product = image_ms(
        report.ms,
        directory / f"{group}.img",
        options=ImageOptions(imsize=1024, datacolumn="corrected"),
        work_dir=casa["work_dir"],
    )
    print(f"beam {product.beam_major_arcsec:.0f} x {product.beam_minor_arcsec:.0f} arcsec, ", end="")
    print(f"noise {1e3 * product.noise_jy:.1f} mJy, dynamic range {product.dynamic_range:.0f}")
    places = [(source.ra_deg, source.dec_deg) for source in truth.sources]
    names = [source.name for source in truth.sources]
    found = measure_sources(product.fits["image"], places, pb=product.fits["pb"], names=names)
    for source, fit in zip(truth.sources, found, strict=True):
        told = f"{fit.peak_jy:6.2f} Jy, {fit.offset_arcsec:5.1f} arcsec away" if fit.found else fit.reason
        print(f"{source.name:10} {source.flux_jy:6.2f} Jy: {told}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))
