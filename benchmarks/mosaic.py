"""Mosaics of drift tiles: ours, `reproject_and_coadd` on one full grid, and CASA's linearmosaic.

Each runs in a fresh process on the same tiles, which lie in the page cache, and writes its image and weight to disk.
Ours also inspects and judges every tile, writes a noise map and a picture, and makes its checks. The pixels of "per
megapixel and tile" are the tiles' own, the seconds those of the processor, which a busy machine changes less. CASA gets
CASA images, made beforehand; the time of that is told in the JSON, not counted.

    python benchmarks/mosaic.py [--quick] [--json] [--pixels N] [--tiles 3,6,12,24,48] [--data DIR]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

OURS, ONE, RIVAL, CASA = "ours", "ours, one thread", "reproject_and_coadd", "casatools.linearmosaic"
DEC, FIRST_RA, FIELD_DEG = 54.6, 350.0, 2.84
#: CASA's grid is one plane: beyond this many tiles it has no place for them.
CASA_MOST = 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiles of 256 pixels, 3 and 6 of them")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--pixels", type=int, default=1024, help="side of a tile")
    parser.add_argument("--tiles", default="3,6,12,24,48", help="how many, several counts")
    parser.add_argument("--data", type=Path, help="directory to keep the tiles in, or that has them")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        which, data, out, count = options.child
        print(json.dumps(_measure(which, Path(data), Path(out), int(count))))
        return
    pixels = 256 if options.quick else options.pixels
    counts = [3, 6] if options.quick else [int(n) for n in options.tiles.split(",")]
    with tempfile.TemporaryDirectory(prefix="nightbeam-bench-", dir=options.data and options.data.parent) as work:
        report = _run(options.data or Path(work) / "tiles", Path(work), counts, pixels)
    print(json.dumps(report) if options.json else _table(report))


def _run(data: Path, work: Path, counts: list[int], pixels: int) -> dict:
    sky = _sky(max(counts))
    if len(list(data.glob("*.img.json"))) < max(counts):
        from nightbeam.testing.sky_tiles import SkyTile, drift_night

        cell = FIELD_DEG * 3600.0 / pixels
        like = SkyTile(
            ra_deg=0.0, dec_deg=DEC, mid_mjd=0.0, imsize=pixels, cell_arcsec=cell,
            beam_major_arcsec=6.25 * cell, beam_minor_arcsec=5.0 * cell,
        )  # fmt: skip
        drift_night(data, sky, tiles=max(counts), first_ra_deg=FIRST_RA, dec_deg=DEC, like=like)
    _check_pixels(data, pixels)
    rows = []
    for count in counts:
        for path in sorted(data.glob("*.fits")):
            path.read_bytes()
        for name in (OURS, ONE, RIVAL, *([CASA] if count <= CASA_MOST else [])):
            found = _child(name, data, work / "out", count, _within(sky, count))
            found["cpu_s_per_mpix_tile"] = round(found["cpu_s"] / (count * pixels**2 / 1e6), 3)
            rows.append({"tiles": count, "what": name, **found})
    for name in (OURS, ONE, RIVAL, CASA):
        own = [r for r in rows if r["what"] == name]
        mpix = (own[-1]["tiles"] - own[0]["tiles"]) * pixels**2 / 1e6
        if mpix:  # what one more tile costs, without what every run costs
            growth = (own[-1]["cpu_s"] - own[0]["cpu_s"]) / mpix
            own[-1]["cpu_s_per_more_mpix_tile"] = round(growth, 3)
    return {"pixels": pixels, "rows": rows, "load_average": os.getloadavg()[0], "cores": os.cpu_count()}


def _check_pixels(data: Path, pixels: int) -> None:
    from astropy.io import fits

    for path in sorted(data.glob("*.image.fits")):
        if (found := fits.getheader(path)["NAXIS1"]) != pixels:
            sys.exit(f"{path} has {found} pixels and --pixels is {pixels}: give that, or another --data")


def _sky(tiles: int) -> list:
    from nightbeam.testing.sky_tiles import TILE_STEP_DEG, random_sky

    end = FIRST_RA + (tiles - 1) * TILE_STEP_DEG
    return random_sky(
        min(12 * tiles, 300), ra_deg=(FIRST_RA - 0.8, end + 0.8), dec_deg=(DEC - 0.8, DEC + 0.8), flux_jy=(0.3, 1.0),
        apart_deg=0.2, seed=5,
    )  # fmt: skip


def _within(sky: list, count: int) -> list:
    from nightbeam.testing.sky_tiles import TILE_STEP_DEG

    return [s for s in sky if (s.ra_deg - FIRST_RA + 1.0) % 360.0 < (count - 1) * TILE_STEP_DEG + 2.0]


def _child(name: str, data: Path, out: Path, count: int, sky: list) -> dict:
    import shutil

    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    env = dict(os.environ, OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
    if name == CASA:
        from nightbeam.casa.config import child_environment

        env |= child_environment(out, log=out / "casa.log", threads=2)
    argv = [sys.executable, "-W", "ignore", __file__, "--child", name, str(data), str(out), str(count)]
    done = subprocess.run(argv, env=env, check=True, stdout=subprocess.PIPE, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    found |= _fluxes(Path(found.pop("image")), sky)
    shutil.rmtree(out)
    return found


def _fluxes(image: Path, sky: list) -> dict:
    """Measure what came out against the truth, in a process that has nothing to do with how it was made."""
    import numpy as np

    from nightbeam.imaging import measure_sources

    some = sky[:: max(1, len(sky) // 40)]
    fits = measure_sources(image, [(s.ra_deg, s.dec_deg) for s in some], min_snr=30.0)
    ratios = [f.peak_jy / s.flux_jy for f, s in zip(fits, some, strict=True) if f.found]
    return {"flux_ratio": round(float(np.median(ratios)), 4), "flux_spread": round(float(np.std(ratios)), 4)}


def _measure(which: str, data: Path, out: Path, count: int) -> dict:
    run = {OURS: _ours, ONE: _ours_alone, RIVAL: _coadd, CASA: _linearmosaic}[which]
    stems = [Path(p.as_posix().removesuffix(".json")) for p in sorted(data.glob("*.img.json"))[:count]]
    return run(stems, out)


def _timed(work) -> dict:
    begin, cpu = time.perf_counter(), os.times()
    told = work()
    wall, end = time.perf_counter() - begin, os.times()
    status = Path("/proc/self/status").read_text()
    return {
        "wall_s": round(wall, 2),
        "cpu_s": round(end.user + end.system - cpu.user - cpu.system, 2),
        "peak_mb": round(int(status.split("VmHWM:")[1].split()[0]) / 1024),
        **told,
    }


def _tiles(stems: list[Path]) -> list:
    from nightbeam.imaging import read_product
    from nightbeam.mosaic import Tile

    return [Tile.from_image(read_product(stem), group_id=stem.name) for stem in stems]


def _ours(stems: list[Path], out: Path, workers: int = 2) -> dict:
    def work() -> dict:
        from nightbeam.mosaic import build_mosaic

        mosaic = build_mosaic(_tiles(stems), out / "m", scratch=out / "scratch", name="bench", workers=workers)
        return {"image": str(mosaic.path), "grid_mpix": round(mosaic.width * mosaic.height / 1e6, 2)}

    return _timed(work)


def _ours_alone(stems: list[Path], out: Path) -> dict:
    return _ours(stems, out, workers=1)


def _coadd(stems: list[Path], out: Path) -> dict:
    """The plain use of the library: corrected images weighted by (pb / noise)^2, one grid, bicubic."""

    def work() -> dict:
        import numpy as np
        from astropy.io import fits
        from astropy.wcs import WCS
        from reproject import reproject_interp
        from reproject.mosaicking import reproject_and_coadd

        from nightbeam.mosaic import common_grid

        tiles = _tiles(stems)
        grid = common_grid(tiles)
        header = fits.Header({**grid.cards, "NAXIS": 2, "NAXIS1": grid.width, "NAXIS2": grid.height})
        data, weights = [], []
        for tile in tiles:
            head = fits.getheader(tile.path)
            image, pb = (fits.getdata(p)[0, 0].astype(float) for p in (tile.path, tile.pb_path))
            good = np.isfinite(image) & (pb > 0.15)
            data.append((np.where(good, image, 0.0), WCS(head).celestial))
            weights.append(np.where(good, (pb / tile.noise_jy) ** 2, 0.0))
        mosaic, weight = reproject_and_coadd(
            data, WCS(header), shape_out=(grid.height, grid.width), input_weights=weights,
            reproject_function=reproject_interp, combine_function="mean", order="bicubic",
        )  # fmt: skip
        beam = {card: head[card] for card in ("BMAJ", "BMIN", "BPA")}
        header = fits.Header({**grid.cards, **beam, "BUNIT": "Jy/beam"})
        fits.writeto(out / "m.fits", mosaic.astype(np.float32), header)
        fits.writeto(out / "w.fits", weight.astype(np.float32), header)
        return {"image": str(out / "m.fits"), "grid_mpix": round(grid.width * grid.height / 1e6, 2)}

    return _timed(work)


def _linearmosaic(stems: list[Path], out: Path) -> dict:
    tiles = _tiles(stems)
    del sys.argv[1:]  # casaconfig reads the command line
    os.chdir(out)
    begin = time.perf_counter()
    import casatasks
    import casatools

    images, beams = [], []
    for stem in stems:
        for kind, into in ((".image", images), (".pb", beams)):
            casatasks.importfits(fitsimage=f"{stem}{kind}.fits", imagename=f"{stem.name}{kind}")
            into.append(str(out / f"{stem.name}{kind}"))
    prepared = time.perf_counter() - begin

    def work() -> dict:
        cell = tiles[0].cell_arcsec
        middle = (tiles[0].ra_deg + 0.5 * ((tiles[-1].ra_deg - tiles[0].ra_deg) % 360.0)) % 360.0
        span = ((tiles[-1].ra_deg - tiles[0].ra_deg) % 360.0) * math.cos(math.radians(DEC))
        nx, ny = (math.ceil(deg * 1.04 * 3600.0 / cell) for deg in (span + FIELD_DEG, FIELD_DEG + 0.02 * span))
        tool = casatools.linearmosaic()
        tool.defineoutputimage(
            nx=nx, ny=ny, cellx=f"{cell}arcsec", celly=f"{cell}arcsec", imagecenter=f"J2000 {middle}deg {DEC}deg",
            outputimage=str(out / "m.image"), outputweight=str(out / "m.weight"),
        )  # fmt: skip
        tool.makemosaic(images=images, weightimages=beams, imageweighttype=1, weighttype=1)
        return {"image": str(out / "m.fits"), "grid_mpix": round(nx * ny / 1e6, 2)}

    found = _timed(work)
    casatasks.exportfits(imagename=str(out / "m.image"), fitsimage=str(out / "m.fits"), dropdeg=True)
    _give_beam(out / "m.fits", tiles[0])
    return found | {"import_and_convert_s": round(prepared, 2)}


def _give_beam(path: Path, tile) -> None:
    from astropy.io import fits

    for card, value in (("BMAJ", tile.beam_major_arcsec), ("BMIN", tile.beam_minor_arcsec)):
        fits.setval(path, card, value=value / 3600.0)
    fits.setval(path, "BPA", value=tile.beam_pa_deg)


def _table(report: dict) -> str:
    lines = [
        f"tiles of {report['pixels']} x {report['pixels']}, {report['cores']} cores, load {report['load_average']:.1f}",
        f"{'tiles':>5} {'':24} {'wall s':>7} {'cpu s':>7} {'peak MB':>7} {'grid Mpx':>8} {'cpu s/Mpx/tile':>14}  flux",
    ]
    for r in report["rows"]:
        lines.append(
            f"{r['tiles']:>5} {r['what']:24} {r['wall_s']:7.2f} {r['cpu_s']:7.2f} {r['peak_mb']:7d} "
            f"{r['grid_mpix']:8.2f} {r['cpu_s_per_mpix_tile']:14.3f}  {r['flux_ratio']:.4f} +- {r['flux_spread']:.4f}"
        )
    for r in report["rows"]:
        if "cpu_s_per_more_mpix_tile" in r:
            lines.append(
                f"{r['what']}: {r['cpu_s_per_more_mpix_tile']} s of the processor for one more megapixel of tile"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
