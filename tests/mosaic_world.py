"""A site with tiles that are words in a file, and tools that read them: for what is decided, not what is computed."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS

from nightbeam.catalog import Products
from nightbeam.contimg import Site
from nightbeam.contimg.mosaic_plan import MosaicTools
from nightbeam.core.settings import MosaicSettings
from nightbeam.core.times import mjd_from_datetime
from nightbeam.mosaic.files import mosaic_sidecar_path
from nightbeam.mosaic.model import (
    MOSAIC_KINDS,
    Check,
    MosaicOptions,
    MosaicProduct,
    Reason,
    ReasonCode,
    Strip,
    Tile,
    TileFacts,
    TileUse,
    TileVerdict,
    mosaic_path,
)

#: Tiles are this far apart along the strip, and this wide.
STEP_DEG, WIDTH_DEG = 1.0, 1.2


def mjd(text: str) -> float:
    """Return the MJD of an ISO time in UTC."""
    return mjd_from_datetime(datetime.fromisoformat(text).replace(tzinfo=UTC))


class MosaicWorld:
    """A site, its tiles, and what its tools were asked to do."""

    def __init__(self, root: Path, databases: dict[str, str] | None = None, **settings: Any) -> None:
        told = databases or {}
        self.site = Site(
            state_dir=root / "state",
            input_dir=root / "incoming",
            output_dir=root / "out",
            scratch_dir=root / "scratch",
            queue_url=told.get("queue_db", f"sqlite:///{root}/q.sqlite3"),
            registry_url=told.get("registry_db", f"sqlite:///{root}/r.sqlite3"),
            products_url=told.get("products_db", f"sqlite:///{root}/p.sqlite3"),
            mosaic=MosaicSettings(**settings),
        )
        self.site.output_dir.mkdir(parents=True)
        self.built: list[tuple[str, tuple[str, ...]]] = []
        self.inspected: list[str] = []
        self.errors: dict[str, Exception] = {}
        self.checks: tuple[Check, ...] = (Check("coverage", 0.9, 0.1, True, "90 % are covered"),)
        self.tools = MosaicTools(self._inspect, _judge, _split, self._build, lambda _site, _row, _verdicts: [])

    @property
    def products(self) -> Products:
        """Its products database."""
        return self.site.products()

    def add(self, when: str, *, dec: float = 33.0, word: str = "good", **values: Any) -> Path:
        """Observe a tile at an ISO time: its right ascension follows from it, 1 degree every five minutes."""
        mid = mjd(when)
        path = self.site.output_dir / "images" / f"{when}.fits"
        path.parent.mkdir(exist_ok=True)
        path.write_text(word)
        told = {
            "group_id": when,
            "mid_mjd": mid,
            "ra_deg": mid * 288.0 * STEP_DEG % 360.0,
            "dec_deg": dec,
            "imsize": 100,
            "cell_arcsec": WIDTH_DEG * 36.0,
            "pbcor": 1,
            "noise_jy": 0.01,
            "freq_hz": 1.4e9,
            **values,
        }
        self.products.upsert_image(path, ms_path=Path(f"/ms/{when}.ms"), **told)
        return path

    def _inspect(self, _site: Site, tile: Tile, _options: MosaicOptions, _sources: Any) -> TileFacts:
        self.inspected.append(tile.name)
        try:
            word = tile.path.read_text()
        except FileNotFoundError:
            return TileFacts(tile=tile, problems=(Reason(ReasonCode.MISSING, f"there is no {tile.path.name}"),))
        problems = () if word.startswith("good") else (Reason(ReasonCode.UNREADABLE, word),)
        return TileFacts(tile=tile, problems=problems)

    def _build(
        self,
        _site: Site,
        tiles: Sequence[Tile],
        stem: Path,
        options: MosaicOptions,
        *,
        scratch: Path,
        name: str,
        provenance: dict[str, str],
        catalogue: Any,
        rejected: Sequence[TileVerdict],
        force: bool,
    ) -> MosaicProduct:
        assert scratch.is_dir()
        self.built.append((name, tuple(tile.name for tile in tiles)))
        if name in self.errors:
            raise self.errors[name]
        for kind in MOSAIC_KINDS:
            mosaic_path(stem, kind).write_text(f"{kind} of {' '.join(t.name for t in tiles)}")
        png = stem.with_name(f"{stem.name}.png")
        png.write_bytes(b"\x89PNG")
        mosaic_sidecar_path(stem).write_text("{}")
        return product_of(stem, name, tiles, options, provenance, self.checks)


def _judge(facts: Sequence[TileFacts], _options: MosaicOptions) -> list[TileVerdict]:
    quiet = min((f.tile.noise_jy or 0.0 for f in facts), default=0.0)
    verdicts = []
    for fact in facts:
        loud = () if (fact.tile.noise_jy or 0.0) <= 5 * quiet else (Reason(ReasonCode.NOISE, "it is too noisy"),)
        reasons = fact.problems or loud
        verdicts.append(TileVerdict(fact.tile, not reasons, reasons))
    return verdicts


def _split(tiles: Sequence[Tile], _options: MosaicOptions) -> list[Strip]:
    strips: list[list[Tile]] = []
    for tile in sorted(tiles, key=lambda t: (t.dec_deg or 0.0, t.mid_mjd or 0.0)):
        last = strips[-1][-1] if strips else None
        apart = last is None or last.dec_deg != tile.dec_deg or (tile.ra_deg - last.ra_deg) % 360.0 > WIDTH_DEG
        strips[len(strips) - (not apart) :] = [[*([] if apart else strips[-1]), tile]]
    return [Strip(tuple(strip)) for strip in strips]


def product_of(
    stem: Path,
    name: str,
    tiles: Sequence[Tile],
    options: MosaicOptions,
    provenance: dict[str, str],
    checks: tuple[Check, ...],
) -> MosaicProduct:
    """Return what would be told of a mosaic of these tiles."""
    strip = Strip(tuple(tiles))
    uses = tuple(
        TileUse(
            path=t.path,
            name=t.name,
            noise_jy=0.01,
            interpolation_factor=0.9,
            beam_major_arcsec=30.0,
            beam_minor_arcsec=25.0,
            beam_pa_deg=0.0,
            share=1.0 / len(tiles),
            sha256="0" * 64,
        )
        for t in tiles
    )
    return MosaicProduct(
        stem=stem,
        name=name,
        method=options.method,
        fits={kind: mosaic_path(stem, kind) for kind in MOSAIC_KINDS},
        png=stem.with_name(f"{stem.name}.png"),
        width=300,
        height=100,
        projection="ZEA",
        ra_deg=strip.ra_deg,
        dec_deg=strip.dec_deg,
        cell_arcsec=43.2,
        beam_major_arcsec=30.0,
        beam_minor_arcsec=25.0,
        beam_pa_deg=0.0,
        freq_hz=1.4e9,
        start_mjd=strip.start_mjd,
        mid_mjd=strip.mid_mjd,
        end_mjd=strip.end_mjd,
        noise_least_jy=0.005,
        noise_median_jy=0.007,
        peak_jy=1.5,
        peak_ra_deg=strip.ra_deg,
        peak_dec_deg=strip.dec_deg,
        covered_fraction=0.9,
        tiles=uses,
        verdicts=tuple(TileVerdict(tile, True) for tile in tiles),
        checks=checks,
        made_at=datetime(2026, 1, 1, tzinfo=UTC),
        seconds=1.0,
        version="0",
        versions={},
        parameters={"projection": "ZEA"},
        provenance=provenance,
        options=options,
        input_fingerprint="f",
        sha256={mosaic_path(stem, "image").name: "1" * 64},
    )


def everything(products: Products) -> list[dict[str, Any]]:
    """Return all that the rows of the mosaics say, without when it was written."""
    rows = [dataclasses.asdict(row) for row in products.mosaics()]
    return [{name: value for name, value in row.items() if name not in ("created_at", "built_at")} for row in rows]


def reasons(row: Any) -> dict[str, list[str]]:
    """Return the reasons against each rejected tile of a row, by its name."""
    judged = json.loads(row.verdicts)
    return {v["name"]: [r["text"] for r in v["reasons"]] for v in judged if not v["accepted"]}


#: Of the tiles that are images: beam and pixel, and the sky about the strip, which is at 33 degrees.
CELL_ARCSEC, BEAM_ARCSEC, PIXELS, DEC_DEG, NOISE_JY = 60.0, 240.0, 96, 33.0, 0.01


def write_tile(stem: Path, *, ra_deg: float, sources: Sequence[tuple[float, float, float]], seed: int) -> Path:
    """Write a tile as the imager does: flat image, primary beam, and the image corrected for it, of which the path.

    Parameters
    ----------
    stem
        What the names begin with.
    ra_deg
        Of its middle.
    sources
        Right ascension and declination (degrees) and flux (Jy) of each.
    seed
        Of its noise.
    """
    stem.parent.mkdir(parents=True, exist_ok=True)
    middle = 0.5 * (PIXELS + 1)
    header = fits.Header(
        {
            **{"CTYPE1": "RA---SIN", "CRVAL1": ra_deg, "CRPIX1": middle, "CDELT1": -CELL_ARCSEC / 3600.0},
            **{"CTYPE2": "DEC--SIN", "CRVAL2": DEC_DEG, "CRPIX2": middle, "CDELT2": CELL_ARCSEC / 3600.0},
            **{"CUNIT1": "deg", "CUNIT2": "deg", "RADESYS": "ICRS", "BUNIT": "Jy/beam", "RESTFRQ": 1.4e9},
            **{"BMAJ": BEAM_ARCSEC / 3600.0, "BMIN": BEAM_ARCSEC / 3600.0, "BPA": 0.0, "NOISE": NOISE_JY},
        }
    )
    y, x = np.mgrid[:PIXELS, :PIXELS]
    per_sigma = 2.3548 * CELL_ARCSEC
    pb = np.exp(-0.5 * ((x - middle + 1) ** 2 + (y - middle + 1) ** 2) * (per_sigma / (1.86 * 3600.0)) ** 2)
    sky = np.zeros_like(pb)
    for ra, dec, flux in sources:
        sx, sy = WCS(header).wcs_world2pix(ra, dec, 0)
        sky += flux * np.exp(-0.5 * ((x - sx) ** 2 + (y - sy) ** 2) * (per_sigma / BEAM_ARCSEC) ** 2)
    flat = sky * pb + np.random.default_rng(seed).normal(0.0, NOISE_JY, pb.shape)
    for kind, data in (("image", flat), ("pb", pb), ("image.pbcor", flat / pb)):
        fits.writeto(stem.with_name(f"{stem.name}.{kind}.fits"), data.astype(">f4"), header)
    return stem.with_name(f"{stem.name}.image.pbcor.fits")


def observe_sky(site: Site, whens: Sequence[str]) -> list[tuple[float, float, float]]:
    """Put real tiles at ISO times into a site, neighbours overlapping; return the sources of their sky."""
    first = mjd(whens[0])
    ras = [(10.0 + (mjd(when) - first) * 288.0 * 1.1) % 360.0 for when in whens]
    sources = [((ra + 0.25) % 360.0, DEC_DEG + 0.2, 1.0 + 0.1 * k) for k, ra in enumerate(ras)]
    for k, (when, ra) in enumerate(zip(whens, ras, strict=True)):
        path = write_tile(site.image_stem(when), ra_deg=ra, sources=sources, seed=k)
        columns = {"mid_mjd": mjd(when), "pbcor": 1, "ra_deg": ra, "dec_deg": DEC_DEG, "group_id": when}
        pb = path.with_name(path.name.replace("image.pbcor", "pb"))
        files = {"pbcor": str(path), "pb": str(pb)}
        site.products().upsert_image(path, ms_path=site.ms_path(when), files=files, freq_hz=1.4e9, **columns)
    return sources


__all__ = ["MosaicWorld", "everything", "mjd", "observe_sky", "product_of", "reasons", "write_tile"]
