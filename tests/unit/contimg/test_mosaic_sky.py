"""Plans and mosaics of drift tiles of a known sky: strips across 0 h, and what a catalogue tells of a tile."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from nightbeam.contimg import Site
from nightbeam.contimg.mosaic_plan import Window, plan_mosaic
from nightbeam.contimg.mosaics import build_mosaics, store_plan
from nightbeam.contimg.nights import make_night
from nightbeam.core.settings import MosaicSettings, load_settings
from nightbeam.imaging import ImageProduct, measure_sources
from nightbeam.mosaic.model import ReasonCode
from nightbeam.sky.model import Calibrator
from nightbeam.testing.sky_tiles import TILE_STEP_DEG, SkyTile, drift_night, random_sky, write_tile

pytestmark = pytest.mark.slow
DEC_DEG, FIRST_RA_DEG, TILES = 33.0, 357.9, 4
START_MJD = 60951.25
NIGHT = "2025-10-03"


@dataclass(frozen=True)
class Sky:
    """A site with four tiles across 0 h, and what shines there."""

    site: Site
    sources: list[Calibrator]
    tiles: list[ImageProduct]


def record(site: Site, products: Sequence[ImageProduct]) -> None:
    for product in products:
        names = ("mid_mjd", "ra_deg", "dec_deg", "imsize", "cell_arcsec", "freq_hz", "noise_jy", "dynamic_range")
        columns = {name: getattr(product, name) for name in names}
        files = {kind: str(path) for kind, path in product.fits.items()}
        group = product.stem.name
        site.products().upsert_image(product.path, ms_path=Path(f"/ms/{group}.ms"), group_id=group, pbcor=1,
                                     files=files, sha256=product.sha256[product.path.name], **columns)  # fmt: skip


@pytest.fixture
def sky(tmp_path: Path) -> Sky:
    sources = random_sky(24, ra_deg=(FIRST_RA_DEG - 0.6, FIRST_RA_DEG + 4.6), dec_deg=(32.5, 33.5), seed=3)
    catalogue = tmp_path / "sky.csv"
    with catalogue.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(("name", "ra_deg", "dec_deg", "flux_jy"))
        writer.writerows((s.name, s.ra_deg, s.dec_deg, s.flux_jy) for s in sources)
    site = Site.from_settings(load_settings(environ={"NIGHTBEAM_STATE_DIR": str(tmp_path / "state")}))
    # Beams of 180 arcsec: a source is known to its place no better than some arcsec.
    site = dataclasses.replace(site, mosaic=MosaicSettings(catalogue=catalogue, max_astrometry_arcsec=10.0))
    directory = site.output_dir / "images"
    tiles = drift_night(
        directory, sources, tiles=TILES, first_ra_deg=FIRST_RA_DEG, dec_deg=DEC_DEG, start_mjd=START_MJD,
        like=SkyTile(ra_deg=0.0, dec_deg=DEC_DEG, mid_mjd=0.0, imsize=200),
    )  # fmt: skip
    record(site, tiles)
    return Sky(site, sources, tiles)


def test_a_strip_across_zero_hours_is_one_mosaic_with_every_source_in_its_place(sky: Sky):
    outcome = make_night(sky.site, NIGHT)
    assert outcome.mosaics == ("night_2025_10_03",)
    row = sky.site.products().mosaic("night_2025_10_03")
    assert (row.tiles_used, row.tiles_rejected, row.status) == (TILES, 0, "built")
    assert row.ra_deg == pytest.approx((FIRST_RA_DEG + 1.5 * TILE_STEP_DEG) % 360.0, abs=0.1)
    checks = {check["name"]: check for check in json.loads(row.checks)}
    assert {name: checks[name]["passed"] for name in ("flux_ratio", "astrometry_arcsec", "completeness")} == {
        "flux_ratio": True, "astrometry_arcsec": True, "completeness": True
    }  # fmt: skip
    assert checks["flux_ratio"]["value"] == pytest.approx(1.0, abs=0.03)
    bright = [s for s in sky.sources if s.flux_jy > 0.5]
    fitted = measure_sources(Path(row.output_path), [(s.ra_deg, s.dec_deg) for s in bright], min_snr=5.0)
    found = [(fit, source) for fit, source in zip(fitted, bright, strict=True) if fit.found]
    assert len(found) >= 5
    assert np.median([fit.peak_jy / source.flux_jy for fit, source in found]) == pytest.approx(1.0, abs=0.02)
    assert max(fit.offset_beams for fit, _ in found) < 0.1


def test_a_tile_whose_sources_are_beside_their_places_is_turned_down_for_that(sky: Sky):
    last = sky.tiles[-1]
    for path in last.stem.parent.glob(f"{last.stem.name}.*"):
        path.unlink()
    tile = SkyTile(ra_deg=last.ra_deg, dec_deg=DEC_DEG, mid_mjd=last.mid_mjd, imsize=200, shift_arcsec=(40.0, 0.0))
    record(sky.site, [write_tile(last.stem, tile, sky.sources)])
    plan = plan_mosaic(sky.site, "night", Window.of_night(NIGHT))
    assert [len(one.strip.tiles) for one in plan.strips] == [TILES - 1]
    (verdict,) = plan.rejected
    assert [reason.code for reason in verdict.reasons] == [ReasonCode.ASTROMETRY]
    assert "10 arcsec is wanted" in verdict.reasons[0].text
    store_plan(sky.site, plan)
    (row,) = build_mosaics(sky.site, "night")
    header = fits.getheader(row.output_path)
    assert (header["NTILES"], header["NREJECT"]) == (TILES - 1, 1)
    assert f"not used: {verdict.tile.path.name}: astrometry" in "".join(header["HISTORY"])


def test_the_order_in_which_tiles_were_recorded_changes_nothing(sky: Sky):
    first = plan_mosaic(sky.site, "night", Window.of_night(NIGHT))
    with sky.site.products().database.write() as connection:
        connection.exec_driver_sql("DELETE FROM images")
    record(sky.site, sky.tiles[::-1])
    again = plan_mosaic(sky.site, "night", Window.of_night(NIGHT))
    assert [one.inputs for one in again.strips] == [one.inputs for one in first.strips]
    assert [tile.mid_mjd for tile in again.strips[0].strip.tiles] == sorted(t.mid_mjd for t in sky.tiles)


def test_a_mosaic_that_is_found_finished_is_not_made_again_when_only_its_row_was_lost(sky: Sky):
    store_plan(sky.site, plan_mosaic(sky.site, "night", Window.of_night(NIGHT)))
    (row,) = build_mosaics(sky.site, "night")
    sky.site.products().put_plan("night", [])
    store_plan(sky.site, plan_mosaic(sky.site, "night", Window.of_night(NIGHT)))
    (again,) = build_mosaics(sky.site, "night")
    assert again.sha256 == row.sha256
    wide = replace(sky.site, mosaic=sky.site.mosaic.model_copy(update={"pb_cut": 0.3}))
    store_plan(wide, plan_mosaic(wide, "night", Window.of_night(NIGHT)))
    (other,) = build_mosaics(wide, "night")
    assert other.sha256 != row.sha256
