from dataclasses import fields
from pathlib import Path

import pytest

from nightbeam.core.errors import UsageError
from nightbeam.core.settings import ImageSettings
from nightbeam.imaging import ImageOptions, product_path


def test_the_corrected_image_is_where_tclean_would_have_put_it():
    stem = Path("images/2025-10-02T01:02:03.img")
    assert product_path(stem, "pbcor").name == "2025-10-02T01:02:03.img.image.pbcor.fits"
    assert product_path(stem, "image", fits=False).name == "2025-10-02T01:02:03.img.image"


def test_a_quick_look_is_at_most_512_pixels_and_300_components():
    quick = ImageOptions(imsize=4096, niter=9).quick()
    assert (quick.imsize, quick.niter) == (512, 9)
    assert (ImageOptions(imsize=256).quick().imsize, ImageOptions().quick().niter) == (256, 300)


def test_every_setting_of_the_site_is_an_option_with_the_same_default():
    assert ImageOptions.from_mapping(ImageSettings().model_dump()) == ImageOptions()
    assert {f.name for f in fields(ImageOptions)} >= set(ImageSettings.model_fields) - {
        "quick", "min_peak_over_noise", "timeout_s", "threads", "memory_gb",
    }  # fmt: skip


def test_settings_can_ask_for_quick():
    assert ImageOptions.from_mapping({"quick": True}).imsize == 512


@pytest.mark.parametrize(
    ("text", "jy"), [("0.0Jy", 0.0), ("0.5mJy", 5e-4), ("2", 2.0), (" 30 uJy ", 3e-5), ("1e-3Jy", 1e-3)]
)
def test_thresholds_are_flux_densities(text, jy):
    assert ImageOptions(threshold=text).threshold_jy == pytest.approx(jy)


@pytest.mark.parametrize(
    "wrong",
    [
        {"threshold": "5sigma"},
        {"threshold": "1.2.3Jy"},
        {"imsize": 1},
        {"cell_arcsec": 0.0},
        {"robust": 3.0},
        {"niter": -1},
        {"weighting": "super"},
        {"gridder": "mosaic"},
        {"pblimit": 0.0},
        {"psfcutoff": 1.0},
        {"chanbin": 0},
        {"beam_model": "cos"},
        {"datacolumn": "model"},
    ],
)
def test_an_option_that_cannot_be_is_refused_by_name(wrong):
    with pytest.raises(UsageError, match=f"(?i){next(iter(wrong)).split('_')[0]}|beam model|data column"):
        ImageOptions(**wrong)


def test_a_misspelt_option_is_refused():
    with pytest.raises(UsageError, match="nitre"):
        ImageOptions.from_mapping({"nitre": 5})
