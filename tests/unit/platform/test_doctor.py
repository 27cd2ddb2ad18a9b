import importlib.metadata

import pytest

from nightbeam.platform import doctor
from nightbeam.platform.doctor import Health, examine


def of(findings, check):
    return next(f for f in findings if f.check == check)


def test_a_package_that_breaks_prefect_is_a_failure_with_the_cure(monkeypatch, tmp_path):
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.1.9" if name == "sqlalchemy" else real(name))
    finding = of(examine(state_dir=tmp_path, directories=[]), "sqlalchemy")
    assert finding.health is Health.FAIL
    assert "wanted >=2.0,<2.1" in finding.found
    assert finding.fix == "pip install 'sqlalchemy>=2.0,<2.1'"


def test_a_directory_that_cannot_be_made_is_a_failure(tmp_path):
    (tmp_path / "file").touch()
    finding = of(
        examine(state_dir=tmp_path, directories=[tmp_path / "file" / "below"]), f"directory {tmp_path}/file/below"
    )
    assert finding.health is Health.FAIL


def test_looking_leaves_nothing_behind(tmp_path):
    examine(state_dir=tmp_path / "new", directories=[tmp_path / "other"])
    assert [p.name for p in tmp_path.iterdir()] == ["cwd"]


@pytest.mark.parametrize(("free", "health"), [(9e9, Health.OK), (1e9, Health.WARN)])
def test_room_for_one_group_is_enough(free, health):
    assert doctor._room("directory", free).health is health


def test_missing_measures_are_a_finding_and_not_a_crash(monkeypatch, tmp_path):
    monkeypatch.setattr("nightbeam.casa.config.find_spec", lambda name: None)
    finding = of(examine(state_dir=tmp_path, directories=[]), "measures tables")
    assert finding.health is Health.FAIL
    assert finding.fix


@pytest.mark.parametrize(("needed", "health"), [((), Health.WARN), (("wsclean",), Health.FAIL)])
def test_a_program_that_the_settings_ask_for_must_be_there(monkeypatch, tmp_path, needed, health):
    monkeypatch.setenv("PATH", str(tmp_path))
    finding = of(examine(state_dir=tmp_path, directories=[], needed=needed), "wsclean")
    assert (finding.health, finding.fix) == (health, "apt-get install wsclean")
