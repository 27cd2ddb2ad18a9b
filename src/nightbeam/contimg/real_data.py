"""Real measured data through our own calibration and imaging: NGC 5921 (VLA) and a pair of ATA subbands.

The first has a published procedure and known answers; the second must be turned down.
"""

from __future__ import annotations

import lzma
import shutil
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nightbeam.casa import CasaCall, run_casa
from nightbeam.casa.tables import open_table
from nightbeam.core.errors import InputError, MissingError, RejectedError, ToolError
from nightbeam.core.files import new_directory, remove, storage_errors
from nightbeam.gains.compute import accept, table_stats
from nightbeam.gains.files import read_caltable
from nightbeam.gains.model import Acceptance, CalibratorMatch, CalTable, SolveOptions, TableKind
from nightbeam.gains.remote import apply_gains, solve_gains
from nightbeam.imaging import ImageOptions, ImageProduct, image_ms
from nightbeam.sky import separation

__all__ = ["NGC5921", "Check", "Rejection", "calibrate_ngc5921", "image_ngc5921", "reject_ata_pair", "unpack_safely"]

NGC5921 = "NGC5921.fits.xz"
_STANDARDS = "vla_flux_standards.tar.gz"
_REFANT = "15"
_INNER = "0:6~56"

#: 3C286, 1445+099 and the target's brightest source as NRAO's procedure finds them: ICRS degrees.
_PEAKS = {
    "3C286": (202.784529, 30.509156),
    "1445+099": (221.318608, 9.976694),
    "target": (230.479083, 4.974722),
}


@dataclass(frozen=True, slots=True)
class Check:
    """One figure: what was expected, what was found, and whether it is near enough (``tolerance``, absolute)."""

    what: str
    unit: str
    expected: float
    found: float
    tolerance: float

    @property
    def ok(self) -> bool:
        """Whether it is near enough."""
        return bool(abs(self.found - self.expected) <= self.tolerance)


@dataclass(frozen=True, slots=True)
class Rejection:
    """One try of bad data, and why it was turned down."""

    what: str
    reason: str


@dataclass(frozen=True, slots=True)
class Ngc5921:
    """The calibrated observation: field 0 is 3C286, 1 is 1445+099, 2 the target."""

    ms: Path
    checks: tuple[Check, ...]


def unpack_safely(archive: Path, target: Path) -> Path:
    """Unpack a tar archive of plain files below ``target``, whole or not at all.

    Raises
    ------
    MissingError
        If there is no archive.
    InputError
        If it is damaged, or holds a link, a device or a path that leads out.
    """
    if not archive.is_file():
        raise MissingError(f"no {archive}", fix="lay the data folder beside the checkout")
    with new_directory(target) as part, storage_errors(target):
        try:
            with tarfile.open(archive) as tar:
                for member in tar:
                    _unpack(tar, member, part, archive)
        except (tarfile.TarError, EOFError, lzma.LZMAError) as error:
            raise InputError(f"{archive} cannot be unpacked: {error}", fix="fetch it again") from error
    return target


def _unpack(tar: tarfile.TarFile, member: tarfile.TarInfo, part: Path, archive: Path) -> None:
    # By hand: tarfile's own filters came with 3.11.4, and Debian 12 has 3.11.2.
    place = part / member.name
    data = tar.extractfile(member) if member.isfile() else None
    if not (member.isdir() or data):
        raise InputError(f"{archive} holds {member.name}, which is no plain file", fix="fetch it again")
    if not place.resolve().is_relative_to(part.resolve()):
        raise InputError(f"{archive} holds {member.name}, which leads out of it", fix="fetch it again")
    if data is None:
        place.mkdir(parents=True, exist_ok=True)
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    with data, place.open("xb") as out:
        shutil.copyfileobj(data, out)


def calibrate_ngc5921(radio: Path, out: Path, *, log: Path, timeout_s: float = 600.0) -> Ngc5921:
    """Import and calibrate the NGC 5921 observation by NRAO's procedure.

    Import, flag autocorrelations, flux standard (Perley-Butler 2017 for 3C286), phases, bandpass, gains, flux
    scale, apply; the tables are judged and applied by the functions that serve DSA-110.

    Parameters
    ----------
    radio
        Folder with ``NGC5921.fits.xz`` and ``vla_flux_standards.tar.gz``.
    out
        Working directory; what an earlier call left there is made anew.

    Raises
    ------
    MissingError, InputError
        If the data are not there or damaged.
    RejectedError
        If the solutions are not good.
    ToolError
        If CASA fails.
    """
    out = out.absolute()
    with storage_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    standards = unpack_safely(radio / _STANDARDS, out / "standards")
    fits = _unpack_xz(radio / NGC5921, out / "ngc5921.fits")
    ms, phases = out / "ngc5921.ms", out / "ngc5921_prebp"
    band, gain, scaled = out / "ngc5921_bpcal", out / "ngc5921_raw_gacal", out / "ngc5921_gacal"
    for old in (ms, phases, band, gain, scaled, ms.with_name(ms.name + ".flagversions")):
        remove(old)
    values = run_casa(
        _procedure(fits, ms, phases, band, gain, scaled),
        work_dir=out, log=log, timeout_s=timeout_s, threads=1, flux_standards=standards,
    )  # fmt: skip
    remove(fits)
    standard, scale = values[2], values[-1]
    tables = [
        CalTable(band, TableKind.BANDPASS, 30, "0", _REFANT),
        CalTable(scaled, TableKind.GAIN, 40, "0,1", _REFANT),
    ]
    stats = [table_stats(read_caltable(t.path), name=t.path.name, kind=t.kind) for t in tables]
    reasons, _ = accept(stats, Acceptance())
    if reasons:
        raise RejectedError(f"the solutions of {ms.name} are not accepted: {'; '.join(reasons)}", fix=f"read {log}")
    apply_gains(ms, tables, work_dir=out, log=log, timeout_s=timeout_s, gainfield="nearest")
    checks = (
        Check("3C286 flux, Perley-Butler 2017", "Jy", 15.0159, _flux(standard, "0"), 0.001),
        Check("1445+099 flux from fluxscale", "Jy", 2.5262, _scaled(scale), 0.0044),
    )
    return Ngc5921(ms, checks)


def _unpack_xz(source: Path, target: Path) -> Path:
    if not source.is_file():
        raise MissingError(f"no {source}", fix="lay the data folder beside the checkout")
    try:
        with storage_errors(target), lzma.open(source) as packed, target.open("wb") as plain:
            shutil.copyfileobj(packed, plain, 1 << 20)
    except (lzma.LZMAError, EOFError) as error:
        remove(target)
        raise InputError(f"{source} cannot be unpacked: {error}", fix="fetch it again") from error
    return target


def _procedure(fits: Path, ms: Path, phases: Path, band: Path, gain: Path, scaled: Path) -> list[CasaCall]:
    solve: dict[str, Any] = {"vis": ms, "refant": _REFANT, "parang": False}
    first = {"caltable": phases, "field": "0", "spw": _INNER, "calmode": "p", "solint": "int"}
    return [
        CasaCall("importuvfits", {"fitsfile": fits, "vis": ms}),
        CasaCall("flagdata", {"vis": ms, "autocorr": True, "flagbackup": False}),
        CasaCall("setjy", {"vis": ms, "field": "0", "standard": "Perley-Butler 2017", "usescratch": True}),
        CasaCall(
            "setjy",
            {"vis": ms, "field": "1", "standard": "manual", "fluxdensity": [1.0, 0, 0, 0], "usescratch": True},
        ),
        CasaCall("gaincal", {**solve, **first}),
        CasaCall(
            "bandpass",
            {**solve, "caltable": band, "field": "0", "solint": "inf", "combine": "scan", "gaintable": [phases]},
        ),
        CasaCall(
            "gaincal",
            {**solve, "caltable": gain, "field": "0,1", "spw": _INNER, "solint": "inf", "gaintable": [band]},
        ),
        CasaCall("fluxscale", {"vis": ms, "caltable": gain, "fluxtable": scaled, "reference": "0", "transfer": "1"}),
    ]


def _flux(answer: Any, field: str) -> float:
    try:
        return float(answer[field]["0"]["fluxd"][0])
    except (KeyError, TypeError, IndexError) as error:
        raise ToolError(f"setjy answered {answer!r}, which names no flux of field {field}") from error


def _scaled(answer: Any) -> float:
    try:
        return float(answer["1"]["fitFluxd"])
    except (KeyError, TypeError) as error:
        raise ToolError(f"fluxscale answered {answer!r}, which names no flux of field 1") from error


def image_ngc5921(observation: Ngc5921, out: Path, *, timeout_s: float = 600.0) -> tuple[Check, ...]:
    """Image the two calibrators and the target with the imaging that serves DSA-110, and compare.

    The expected figures come from the same data by CASA's own tasks (256 pixels of 15 arcsec, Briggs 0.5).
    """
    shared = {"imsize": 256, "cell_arcsec": 15.0, "robust": 0.5, "gridder": "standard", "chanbin": 1, "pbcor": False}
    fields: Sequence[tuple[str, str, str, int]] = (
        ("3C286", "0", "", 200),
        ("1445+099", "1", "", 200),
        ("target", "2", "0:4~6;50~59", 1000),
    )
    made: dict[str, ImageProduct] = {}
    for name, field, spw, niter in fields:
        options = ImageOptions.from_mapping({**shared, "field": field, "spw": spw, "niter": niter})
        stem = out.absolute() / f"ngc5921_{name.replace('+', 'p')}.img"
        made[name] = image_ms(observation.ms, stem, options=options, work_dir=out.absolute(), timeout_s=timeout_s)
    return (
        Check("3C286 peak", "Jy/beam", 14.997, made["3C286"].peak_jy, 0.15),
        _offset("3C286", made),
        Check("1445+099 peak", "Jy/beam", 2.5265, made["1445+099"].peak_jy, 0.025),
        _offset("1445+099", made),
        Check("target, brightest source", "mJy/beam", 87.5, 1e3 * made["target"].peak_jy, 4.4),
        _offset("target", made),
        Check("target, noise of the residual", "mJy/beam", 0.69, 1e3 * made["target"].noise_jy, 0.2),
    )


def _offset(name: str, made: dict[str, ImageProduct]) -> Check:
    product = made[name]
    off = float(separation(*_PEAKS[name], product.peak_ra_deg, product.peak_dec_deg)) * 3600.0
    # the brightest pixel is within half a diagonal of 15 arcsec pixels
    return Check(f"{name}, offset of the brightest pixel", "arcsec", 0.0, off, 15.0)


def reject_ata_pair(radio: Path, out: Path, *, log: Path, timeout_s: float = 600.0) -> tuple[Rejection, ...]:
    """Try to calibrate two dirty ATA subbands on 3C286, as they are and with their weights mended.

    Returns
    -------
    tuple of Rejection
        Why each try was turned down.

    Raises
    ------
    MissingError
        If the files are not there.
    ToolError
        If they were *not* turned down: then the quality gate is broken.
    """
    files = sorted(radio.glob("ata.*.uvh5*"))
    if len(files) < 2:
        raise MissingError(f"{radio} has {len(files)} of the 2 ATA subbands", fix="lay the data folder beside it")
    out = out.absolute()
    with storage_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    ms = out / "ata.ms"
    remove(ms)
    _write_ata(files, ms)
    as_is = _refused(ms, out / "ata_asis", "as it is", None, log, timeout_s)
    with open_table(ms, write=True) as table:
        for column in ("WEIGHT", "SIGMA", "WEIGHT_SPECTRUM"):
            table.putcol(column, np.ones_like(table.getcol(column)))
    mended = "weights set to 1, amplitudes above 50 clipped"
    return (as_is, _refused(ms, out / "ata_mended", mended, 50.0, log, timeout_s))


def _write_ata(files: Sequence[Path], ms: Path) -> None:
    import warnings

    from astropy.utils import iers
    from pyuvdata import UVData

    with iers.conf.set_temp("auto_download", False), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of conjugated baselines, units and what -1.2e12 does to a square root
        data = UVData()
        data.read([str(f) for f in files], axis="freq", file_type="uvh5")
        data.write_ms(str(ms))


def _refused(ms: Path, prefix: Path, what: str, clip: float | None, log: Path, timeout_s: float) -> Rejection:
    options = SolveOptions(
        refants=("1c",),
        drift=False,
        dish_diameter_m=6.1,
        pre_bandpass_interval="int",
        bp_minsnr=3.0,
        clip_above=clip,
        timeout_s=timeout_s,
    )
    calibrator = CalibratorMatch("3C286", *_PEAKS["3C286"], 15.0)
    try:
        solve_gains(ms, calibrator, prefix, options=options, work_dir=prefix.parent, log=log)
    except RejectedError as error:
        return Rejection(what, error.what)
    raise ToolError(f"the quality gate let the ATA pair pass ({what})", fix="look at the limits of acceptance")
