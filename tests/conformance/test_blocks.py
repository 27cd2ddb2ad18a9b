"""Every block passes what Prefect asks of its own collections, and ours says what the settings say."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from prefect.blocks.core import Block
from prefect.testing.standard_test_suites import BlockStandardTestSuite
from pydantic import BaseModel

import blocks
from blocks import KINDS, ContimgSite, RayCluster
from nightbeam.contimg import Site
from nightbeam.core.settings import load_settings


def test_every_block_of_the_package_is_listed_once():
    found = {v for v in vars(blocks).values() if isinstance(v, type) and issubclass(v, Block) and v is not Block}
    assert found == set(KINDS)


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.__name__)
class TestEveryBlock(BlockStandardTestSuite):
    @pytest.fixture
    def block(self, kind):
        return kind

    def test_has_a_valid_image(self, block):
        """Ours have no picture: it would be fetched from an outside address."""
        assert block._logo_url is None

    def test_has_a_documentation_url(self, block):
        """Our pages come with the package and have no address of their own; the block describes itself."""
        assert block.get_description()


def _settings(tmp_path: Path):
    overrides = {
        "state_dir": tmp_path / "state",
        "contimg.image.niter": 77,
        "contimg.threads": 3,
        "contimg.queue_db": "postgresql://u:pw@h/q",
    }
    return load_settings(config=Path(os.devnull), overrides=overrides, environ={}).resolved()


def test_the_block_gives_the_very_site_that_the_settings_describe(tmp_path):
    settings = _settings(tmp_path)
    assert ContimgSite.of(settings).site() == Site.from_settings(settings)


def test_passwords_of_databases_are_masked_and_come_through(tmp_path):
    block = ContimgSite.of(_settings(tmp_path))
    assert "pw@h" not in repr(block)
    assert block.settings().contimg.queue_db == "postgresql://u:pw@h/q"


def test_a_cluster_is_where_an_operator_says_or_where_the_settings_do():
    own = {"address": "127.0.0.1:6379", "token_file": "/state/ray.token"}
    settings = load_settings(
        config=Path(os.devnull), overrides={f"stream.{name}": value for name, value in own.items()}, environ={}
    )
    assert RayCluster().stream(settings.stream) == settings.stream
    told = RayCluster(address="head.site:6379", namespace="live").stream(settings.stream)
    assert (told.address, told.namespace, told.token_file) == ("head.site:6379", "live", None)
    told = RayCluster(address="head.site:6379", token_file="/site/word").stream(settings.stream)
    assert str(told.token_file) == "/site/word"


def test_prefect_finds_the_blocks_by_our_entry_point():
    from importlib.metadata import entry_points

    assert {e.value for e in entry_points(group="prefect.collections") if e.name == "nightbeam"} == {"blocks"}


def test_no_setting_is_lost_on_its_way_to_the_flows(tmp_path):
    """Each is set to another value than its default; a new one that the block does not carry is found here."""
    base = _settings(tmp_path)
    for name, value in base.contimg:
        other = value
        if isinstance(value, BaseModel):
            for field, had in value:
                if changed := next((new for new in _others(had) if _is_valid(value, field, new)), None):
                    other = value.model_copy(update={field: changed})
                    break
            assert other != value, f"contimg.{name}"
        elif isinstance(value, bool):
            other = not value
        elif isinstance(value, int):
            other = value + 1
        settings = base.model_copy(update={"contimg": base.contimg.model_copy(update={name: other})})
        assert ContimgSite.of(settings).site() == Site.from_settings(settings), f"contimg.{name}"


def _others(value):
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, tuple) and value and isinstance(value[0], float):
        return [tuple(0.9 * one for one in value)]
    if isinstance(value, (int, float)):
        return [value + 1, value * 0.9, value + 0.01]
    return ["wsclean", "aoflagger", "auto", "mean"] if isinstance(value, str) else []


def _is_valid(model, field, value):
    try:
        type(model).model_validate({**model.model_dump(), field: value})
    except ValueError:
        return False
    return True


def test_what_machines_share_is_not_the_state_of_the_one_that_saved_the_block(tmp_path):
    told = {"state_dir": tmp_path / "mine", "contimg.state_dir": tmp_path / "shared"}
    settings = load_settings(config=Path(os.devnull), overrides=told, environ={}).resolved()
    site = ContimgSite.of(settings).site()
    assert site == Site.from_settings(settings)
    assert site.state_dir == tmp_path / "shared"
    assert site.input_dir == tmp_path / "shared" / "incoming"
