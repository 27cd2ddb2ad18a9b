"""From settings to the calibration they ask for."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from nightbeam.core.errors import ConfigError, UsageError
from nightbeam.core.settings import ScanLimitsSettings, ScansSettings, Settings, load_settings
from nightbeam.scans.config import pipeline_config
from nightbeam.scans.model import CalibrationOptions, PipelineConfig, ScanLimits


def test_without_a_word_scans_are_calibrated_as_the_library_does():
    assert pipeline_config(Settings()) == PipelineConfig()


def test_every_option_and_limit_of_a_calibration_is_a_setting():
    options = {one.name for one in fields(CalibrationOptions)} - {"force_calibration"}
    assert options <= ScansSettings.model_fields.keys()
    assert {one.name for one in fields(ScanLimits)} == ScanLimitsSettings.model_fields.keys()


def test_settings_reach_the_options_and_overrides_win():
    environ = {
        "NIGHTBEAM_SCANS__SKY": "off",
        "NIGHTBEAM_SCANS__EXCLUDE_GHZ": "[[809.1, 809.2]]",
        "NIGHTBEAM_SCANS__LIMITS__T_COLD_K": "[60, 90]",
        "NIGHTBEAM_SCANS__MEMORY_BUDGET_GB": "0.5",
        "NIGHTBEAM_SCANS__PWV_FALLBACK": "[configured]",
        "NIGHTBEAM_SCANS__PWV_MM": "0.7",
        "NIGHTBEAM_SCANS__CACHE_DIR": "/air",
    }
    settings = load_settings(environ=environ)
    config = pipeline_config(settings, scale="load", retries=0, force_calibration=((3, 9),), scans=None)
    assert (config.options.sky, config.options.scale) == ("off", "load")
    assert config.options.exclude_ghz == ((809.1, 809.2),)
    assert config.options.limits.t_cold_k == (60.0, 90.0)
    assert config.options.force_calibration == ((3, 9),)
    assert (config.memory_budget_bytes, config.retries, config.cache_dir) == (500_000_000, 0, Path("/air"))
    assert pipeline_config(settings, memory_budget_bytes=7, sky="cal").memory_budget_bytes == 7


def test_directories_left_open_are_under_the_state_directory(tmp_path: Path):
    scans = Settings(state_dir=tmp_path).resolved().scans
    assert (scans.input_dir, scans.output_dir) == (tmp_path / "scans" / "l0", tmp_path / "scans" / "l1")
    assert scans.cache_dir is None


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("NIGHTBEAM_SCANS__LIMITS__T_HOT_K", "[400, 200]", "the lowest, then the highest"),
        ("NIGHTBEAM_SCANS__ATMOSPHERE", "am", "casa"),
        ("NIGHTBEAM_SCANS__HOT_COUPLING", "0.2", "0.5"),
        ("NIGHTBEAM_SCANS__SKYY", "off", "NIGHTBEAM_SCANS__SKY"),
    ],
)
def test_what_cannot_be_is_refused_by_name(variable: str, value: str, said: str):
    with pytest.raises(ConfigError, match=said):
        load_settings(environ={variable: value})


def test_water_that_may_serve_and_is_not_told_is_refused():
    with pytest.raises(ConfigError, match=r"set scans\.pwv_mm"):
        pipeline_config(load_settings(environ={"NIGHTBEAM_SCANS__PWV_FALLBACK": "[configured]"}))


def test_an_override_of_nothing_is_refused():
    with pytest.raises(UsageError, match="skyy"):
        pipeline_config(Settings(), skyy="off")
