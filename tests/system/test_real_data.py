"""Real measured data: NRAO's NGC 5921 comes out as published, dirty ATA data do not come through."""

import io
import tarfile

import pytest

from nightbeam.contimg.real_data import calibrate_ngc5921, image_ngc5921, reject_ata_pair, unpack_safely
from nightbeam.core.errors import InputError, MissingError

pytestmark = pytest.mark.system


def test_ngc5921_gives_the_published_fluxes_positions_and_noise(shared_data, tmp_path):
    observation = calibrate_ngc5921(shared_data / "radio", tmp_path / "ngc", log=tmp_path / "log")
    checks = {c.what: c for c in (*observation.checks, *image_ngc5921(observation, tmp_path / "ngc"))}
    assert [c for c in checks.values() if not c.ok] == []
    # the data's README: 2.5262 +- 0.0022 Jy; 14.997 Jy; 87.5 mJy
    assert checks["1445+099 flux from fluxscale"].found == pytest.approx(2.5262, abs=0.0022)
    assert checks["3C286 peak"].found == pytest.approx(14.997, rel=0.01)
    assert checks["target, brightest source"].found == pytest.approx(87.5, rel=0.05)


def test_the_ata_pair_is_turned_down_with_the_reason(shared_data, tmp_path):
    as_is, mended = reject_ata_pair(shared_data / "radio", tmp_path / "ata", log=tmp_path / "log")
    assert "weight that is not positive (-1.23e+12)" in as_is.reason
    assert "ten thousand times" in as_is.reason
    assert "of working receptors flagged" in mended.reason
    assert not list((tmp_path / "ata").glob("*cal"))
    assert (tmp_path / "ata" / "ata_mended_solutions.json").is_file()


def test_data_that_are_not_there_are_named(tmp_path):
    with pytest.raises(MissingError, match="ATA"):
        reject_ata_pair(tmp_path, tmp_path / "out", log=tmp_path / "log")
    with pytest.raises(MissingError, match="vla_flux_standards"):
        calibrate_ngc5921(tmp_path, tmp_path / "out", log=tmp_path / "log")


def _tar(path, name, *, link=""):
    with tarfile.open(path, "w:gz") as tar:
        member = tarfile.TarInfo(name)
        if link:
            member.type, member.linkname = tarfile.SYMTYPE, link
        tar.addfile(member, io.BytesIO(b""))
    return path


def test_an_archive_that_leads_out_is_refused_and_leaves_nothing(tmp_path):
    for archive in (_tar(tmp_path / "a.tar.gz", "../evil"), _tar(tmp_path / "b.tar.gz", "x", link="/etc")):
        with pytest.raises(InputError):
            unpack_safely(archive, tmp_path / "target")
    (tmp_path / "c.tar.gz").write_bytes(b"garbage")
    with pytest.raises(InputError, match="cannot be unpacked"):
        unpack_safely(tmp_path / "c.tar.gz", tmp_path / "target")
    assert not (tmp_path / "target").exists()
    assert not (tmp_path / "evil").exists()
