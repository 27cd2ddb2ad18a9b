"""The demo has directories and databases of its own, whatever the site's settings say."""

from __future__ import annotations

from pathlib import Path

from nightbeam.core.settings import ContimgSettings, load_settings
from nightbeam.demo import demo_settings

OWN = ("state_dir", "input_dir", "output_dir", "scratch_dir", "queue_db", "registry_db", "products_db")


def test_nothing_of_continuum_imaging_is_the_sites(tmp_path: Path):
    site, told = tmp_path / "site", {"contimg.state_dir": tmp_path / "site" / "shared", "state_dir": tmp_path / "site"}
    # As flows and containers have them: with every path filled in.
    base = load_settings(config=Path("/dev/null"), overrides=told, environ={}).resolved()
    assert all(str(site) in str(getattr(base.contimg, name)) for name in OWN)
    found = demo_settings(tmp_path / "demo", base).contimg
    assert str(site) not in found.model_dump_json()
    assert all(str(tmp_path / "demo") in str(getattr(found, name)) for name in OWN)
    assert set(OWN) <= set(ContimgSettings.model_fields)
