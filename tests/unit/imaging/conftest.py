import runpy
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

write_analytic_ms = runpy.run_path(str(Path(__file__).resolve().parents[2] / "analytic_ms.py"))["write_analytic_ms"]

CENTRE = (70.9, 54.52)  # ICRS, within 0.005 deg of the meridian at the times of the file


@pytest.fixture(scope="session")
def tiny_ms(tmp_path_factory):
    """One source of 1 Jy at the centre, five antennas, four channels, two times."""
    path = tmp_path_factory.mktemp("tiny") / "tiny.ms"
    return write_analytic_ms(path, centre=CENTRE, sources=[(*CENTRE, 1.0)], antennas=5, channels=4, integrations=2)


@pytest.fixture
def header():
    """Of an image of 200 x 200 pixels of 3 arcsec with a beam of 18 x 12 arcsec at 30 degrees."""

    def make(n=200, cell=3.0, beam=(18.0, 12.0, 30.0)):
        card = fits.Header()
        card["CTYPE1"], card["CRVAL1"], card["CDELT1"], card["CRPIX1"] = "RA---SIN", CENTRE[0], -cell / 3600, n // 2 + 1
        card["CTYPE2"], card["CRVAL2"], card["CDELT2"], card["CRPIX2"] = "DEC--SIN", CENTRE[1], cell / 3600, n // 2 + 1
        card["CTYPE3"], card["CRVAL3"], card["CDELT3"], card["CRPIX3"] = "FREQ", 1.405e9, 187.5e6, 1.0
        card["CTYPE4"], card["CRVAL4"], card["CDELT4"], card["CRPIX4"] = "STOKES", 1.0, 1.0, 1.0
        card["CUNIT1"] = card["CUNIT2"] = "deg"
        card["CUNIT3"] = "Hz"
        card["RADESYS"] = "ICRS"
        card["BUNIT"] = "Jy/beam"
        card["BMAJ"], card["BMIN"], card["BPA"] = beam[0] / 3600, beam[1] / 3600, beam[2]
        return card

    return make


@pytest.fixture
def write_fits(tmp_path, header):
    def write(data, name="x.fits", **of):
        path = tmp_path / name
        card = header(data.shape[-1], **of)
        fits.writeto(path, np.asarray(data, np.float32)[None, None], card, overwrite=True)
        return path

    return write


@pytest.fixture
def gaussian():
    """A point source of 1 seen with a beam: full widths and place in pixels, angle from +y towards -x."""

    def draw(n, x, y, major, minor, pa_deg):
        gy, gx = np.mgrid[:n, :n]
        pa = np.radians(pa_deg)
        along = -(gx - x) * np.sin(pa) + (gy - y) * np.cos(pa)
        across = (gx - x) * np.cos(pa) + (gy - y) * np.sin(pa)
        return np.exp(-4 * np.log(2) * ((along / major) ** 2 + (across / minor) ** 2))

    return draw
