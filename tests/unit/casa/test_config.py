"""CASA's configuration names what is on this machine and nothing else."""

from pathlib import Path

import pytest

from nightbeam.casa.config import child_environment, measures_directory, site_config
from nightbeam.core.errors import MissingError


def test_the_measures_tables_are_found_in_the_wheel_and_are_complete():
    folder = measures_directory()
    assert folder.is_absolute()
    for table in ("geodetic/Observatories", "geodetic/IERSeop97", "geodetic/TAI_UTC"):
        assert (folder / table / "table.dat").is_file()


def test_the_configuration_switches_every_update_off():
    settings: dict[str, object] = {}
    exec(site_config(measures=Path("/data")), settings)
    assert settings["measurespath"] == "/data"
    assert settings["datapath"] == ["/data"]
    assert settings["measures_auto_update"] is settings["data_auto_update"] is False
    assert settings["skipnetworkcheck"] is True
    assert settings["logfile"] == "/dev/null"


def test_flux_standards_join_the_data_path(tmp_path):
    (tmp_path / "nrao/VLA/standards").mkdir(parents=True)
    settings: dict[str, object] = {}
    exec(site_config(measures=Path("/data"), flux_standards=tmp_path), settings)
    assert settings["datapath"] == ["/data", str(tmp_path)]


def test_a_folder_without_flux_standards_is_refused(tmp_path):
    with pytest.raises(MissingError, match="no nrao/VLA/standards"):
        site_config(measures=Path("/data"), flux_standards=tmp_path)


def test_the_environment_has_a_home_of_its_own_and_an_absolute_configuration(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    env = child_environment(Path("scratch"), threads=3, inherit={"HOME": "/home/somebody", "PATH": "/bin"})
    assert env["HOME"] == str(tmp_path / "scratch/home")
    assert env["CASASITECONFIG"] == str(tmp_path / "scratch/casasiteconfig.py")
    assert Path(env["CASASITECONFIG"]).is_file()
    assert env["OMP_NUM_THREADS"] == "3"
    assert env["PATH"] == "/bin"
