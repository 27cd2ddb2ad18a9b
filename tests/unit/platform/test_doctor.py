import importlib.metadata

import pytest

from nightbeam.core.settings import Settings
from nightbeam.platform import doctor
from nightbeam.platform.doctor import Health, examine


def of(findings, check):
    return next(f for f in findings if f.check == check)


def test_a_package_that_breaks_prefect_is_a_failure_with_the_cure(monkeypatch):
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.1.9" if name == "sqlalchemy" else real(name))
    finding = of(examine(), "sqlalchemy")
    assert finding.health is Health.FAIL
    assert "wanted >=2.0,<2.1" in finding.found
    assert finding.fix == "pip install 'sqlalchemy>=2.0,<2.1'"


def test_missing_measures_are_a_finding_and_not_a_crash(monkeypatch):
    monkeypatch.setattr("nightbeam.casa.config.find_spec", lambda name: None)
    finding = of(examine(), "measures tables")
    assert finding.health is Health.FAIL
    assert finding.fix


@pytest.mark.parametrize(
    ("needed", "health", "fix"), [((), Health.OK, ""), (("wsclean",), Health.FAIL, "apt-get install wsclean")]
)
def test_a_program_must_be_there_only_if_the_settings_ask_for_it(monkeypatch, tmp_path, needed, health, fix):
    monkeypatch.setenv("PATH", str(tmp_path))
    finding = of(examine(needed=needed), "wsclean")
    assert (finding.health, finding.fix) == (health, fix)


def test_the_programs_that_are_needed_are_those_of_the_engines():
    told = {"contimg": {"image": {"engine": "wsclean"}, "flag": {"engine": "aoflagger"}}}
    assert doctor.needed_programs(Settings.model_validate(told)) == ["wsclean", "aoflagger"]
    assert doctor.needed_programs(Settings()) == []
