import json
import math
from pathlib import Path

import pytest

from nightbeam.core.errors import InputError, UsageError
from nightbeam.core.settings import MosaicSettings
from nightbeam.mosaic import MosaicOptions, Reason, ReasonCode, Strip, Tile, TileVerdict, mosaic_path


def test_files_keep_every_dot_of_the_stem():
    assert mosaic_path(Path("m/night.v1_2025"), "noise") == Path("m/night.v1_2025.noise.fits")


def test_a_section_of_settings_gives_options_and_ignores_what_says_where_and_when():
    options = MosaicOptions.from_mapping(MosaicSettings(pb_cut=0.2, method="mean").model_dump())
    assert (options.pb_cut, options.method) == (0.2, "mean")


def test_the_defaults_of_the_settings_are_the_defaults_of_the_options():
    assert MosaicOptions.from_mapping(MosaicSettings().model_dump()) == MosaicOptions()


def test_an_unknown_option_is_named():
    with pytest.raises(UsageError, match="no mosaic option pb_cutt"):
        MosaicOptions.from_mapping({"pb_cutt": 0.2})


@pytest.mark.parametrize(
    "wrong", [{"pb_cut": 0.0}, {"method": "median"}, {"max_noise_factor": 1.0}, {"min_overlap": 1.0}]
)
def test_an_option_that_cannot_be_is_refused(wrong):
    with pytest.raises(UsageError, match=str(next(iter(wrong.values())))):
        MosaicOptions(**wrong)


def test_a_verdict_survives_json_with_its_tile_and_reasons():
    tile = Tile(path=Path("/d/a.fits"), pb_path=Path("/d/b.fits"), group_id="g", ra_deg=1.0, cal_borrowed=True)
    verdict = TileVerdict(tile, False, (Reason(ReasonCode.NOISE, "too loud"),))
    plain = json.loads(json.dumps(verdict.to_json()))
    assert plain["reasons"] == [{"code": "noise", "text": "too loud"}]
    assert TileVerdict.from_json(plain) == verdict


def test_a_strip_spans_the_times_of_its_tiles():
    tiles = (
        Tile(path=Path("a"), start_mjd=10.0, mid_mjd=10.1, end_mjd=10.2),
        Tile(path=Path("b"), mid_mjd=10.6),
    )
    strip = Strip(tiles)
    assert (strip.start_mjd, strip.end_mjd) == (10.0, 10.6)
    assert math.isclose(strip.mid_mjd, 10.3)


def test_a_strip_across_0_h_has_its_middle_between_its_ends():
    strip = Strip(tuple(Tile(path=Path(str(ra)), ra_deg=ra, dec_deg=5.0) for ra in (358.0, 359.5, 1.0)))
    assert strip.ra_deg == pytest.approx(359.5)
    assert strip.dec_deg == pytest.approx(5.0)


def test_a_strip_whose_tiles_have_no_place_says_so():
    with pytest.raises(InputError, match="right ascension of a"):
        Strip((Tile(path=Path("a")),)).ra_deg  # noqa: B018
