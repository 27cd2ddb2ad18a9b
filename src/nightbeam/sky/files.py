"""Calibrator lists: NRAO's text, the parsed table of the DSA-110 pipeline, or plain decimal degrees."""

from __future__ import annotations

import csv
import difflib
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

from nightbeam.core.errors import InputError, MissingError
from nightbeam.sky.model import Calibrator

__all__ = ["NraoSource", "find_calibrator", "nrao_sources", "read_calibrators"]

SHIPPED = "vla_calibrators_20cm.csv"

_SOURCE = re.compile(r"^(?P<name>\S+)\s+J2000\s+(?P<pc>\S)\s+(?P<ra>\S+)\s+(?P<dec>\S+)(?P<rest>.*)$")
_BAND = re.compile(r"^\s*(?P<band>[\d.]+cm)\s+(?P<letter>\S)\s+(?P<codes>\S \S \S \S)\s+(?P<flux>\S+)(?P<rest>.*)$")
_RA = re.compile(r"(\d+)h(\d+)m([\d.]+)s?")
_DEC = re.compile(r"([-+]?)(\d+)d(\d+)['m]([\d.]+)[\"s]?")
_POSITION_REFERENCE = re.compile(r"^[A-Z][a-z]{2}\d\d$")

_RowReader = Callable[[Mapping[str, str], Path, int], Calibrator | None]

# A lone number in a band line is UVMIN or UVMAX by its column only. Lines are indented in different
# ways, so count from the end of the flux: UVMIN ends 13 or 14 characters on, UVMAX 24 to 26.
_UVMIN_UVMAX_BORDER = 19


@dataclass(frozen=True, slots=True)
class NraoBand:
    """One line of NRAO's list: a wavelength at which a source was observed."""

    codes: str
    flux_jy: float | None
    uvmin_klambda: float | None
    uvmax_klambda: float | None


@dataclass(frozen=True, slots=True)
class NraoSource:
    """One source of NRAO's list with all its bands, keyed by wavelength (``"20cm"``)."""

    name: str
    ra_deg: float
    dec_deg: float
    position_code: str
    alt: str
    bands: dict[str, NraoBand] = field(default_factory=dict)


def read_calibrators(path: Path | None = None) -> list[Calibrator]:
    """Return the sources of a list that have a flux at 20 cm.

    Parameters
    ----------
    path
        NRAO's VLA calibrator list as text, the parsed table that DSA-110 uses (``J2000_NAME`` ...
        ``UVMAX_kL``), or a table with the columns ``name``, ``ra_deg``, ``dec_deg``, ``flux_jy``. None: the
        list that is shipped, 1,041 sources.

    Returns
    -------
    list of Calibrator
        In the order of the file, J2000 (taken as ICRS, as the VLA does).

    Raises
    ------
    MissingError
        If there is no such file.
    InputError
        If it is none of the three forms, a line cannot be read, or it holds no usable source.
    """
    text = (files("nightbeam.sky") / "data" / SHIPPED).read_text() if path is None else _read(path)
    where = path or Path(SHIPPED)
    head = next((line for line in text.splitlines() if line.strip()), "")
    if head.startswith("IAU NAME"):
        found = list(_from_nrao(text, where))
    elif "J2000_NAME" in head:
        found = list(_from_rows(text, where, _parsed_row))
    elif "ra_deg" in head and "flux_jy" in head:
        found = list(_from_rows(text, where, _plain_row))
    else:
        raise InputError(
            f"{where} is no calibrator list that we know; it begins {head[:60]!r}",
            fix="give NRAO's text, a table with J2000_NAME and FLUX_JY, or one with name,ra_deg,dec_deg,flux_jy",
        )
    if not found:
        raise InputError(f"{where} holds no source with a flux at 20 cm", fix="give a list with 20 cm lines")
    return found


def find_calibrator(calibrators: Sequence[Calibrator], name: str) -> Calibrator:
    """Return the source that has ``name`` as its name or other name, whatever the case and blanks.

    Raises
    ------
    MissingError
        Naming those whose names are near.
    """
    wanted = _fold(name)
    for calibrator in calibrators:
        if wanted and wanted in (_fold(calibrator.name), _fold(calibrator.alt)):
            return calibrator
    known = [n for c in calibrators for n in (c.name, c.alt) if n]
    near = difflib.get_close_matches(name.upper(), known, n=3, cutoff=0.5)
    raise MissingError(
        f"no calibrator {name!r} among {len(calibrators)}",
        fix=f"did you mean {', '.join(near)}?" if near else "use a name of the list, like 0137+331 or 3C48",
    )


def nrao_sources(text: str, *, where: Path = Path("list")) -> Iterator[NraoSource]:
    """Yield every source of NRAO's text with all its bands, also those without a usable flux.

    Raises
    ------
    InputError
        Naming the line that cannot be read.
    """
    source: NraoSource | None = None
    for number, line in enumerate(text.splitlines(), 1):
        if " J2000 " in line:
            if source:
                yield source
            source = _source_line(line, where, number)
        elif source and (found := _BAND.match(line)):
            source.bands[found["band"]] = _band_line(found)
    if source:
        yield source


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise MissingError(f"no calibrator list {path}", fix="correct the path or leave it out") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the calibrator list {path}: {error}", fix="give a text file") from error


def _from_nrao(text: str, where: Path) -> Iterator[Calibrator]:
    for source in nrao_sources(text, where=where):
        band = source.bands.get("20cm")
        if band and band.flux_jy is not None:
            yield Calibrator(
                source.name, source.ra_deg, source.dec_deg, band.flux_jy, source.alt,
                source.position_code, band.uvmin_klambda, band.uvmax_klambda,
            )  # fmt: skip


def _source_line(line: str, where: Path, number: int) -> NraoSource:
    found = _SOURCE.match(line)
    if not found:
        raise InputError(f"{where} line {number} is no source: {line.strip()!r}", fix="correct the line")
    alt = [word for word in found["rest"].split() if not _POSITION_REFERENCE.match(word)]
    ra, dec = _ra_deg(found["ra"], where, number), _dec_deg(found["dec"], where, number)
    return NraoSource(found["name"], ra, dec, found["pc"], " ".join(alt))


def _band_line(found: re.Match[str]) -> NraoBand:
    flux_end = found.end("flux")
    low = high = None
    for number in re.finditer(r"[\d.]+", found["rest"].replace("visplot", "")):
        value = float(number.group())
        if found.start("rest") + number.end() - flux_end < _UVMIN_UVMAX_BORDER:
            low = value
        else:
            high = value
    return NraoBand(found["codes"], _number(found["flux"]), low, high)


def _from_rows(text: str, where: Path, read: _RowReader) -> Iterator[Calibrator]:
    # A quote inside an unquoted Dec (19d14'33.8") is an arcsecond; csv leaves it alone.
    for number, row in enumerate(csv.DictReader(io.StringIO(text), skipinitialspace=True), 2):
        try:
            calibrator = read(row, where, number)
        except KeyError as error:
            raise InputError(f"{where} has no column {error.args[0]}", fix="add it to the first line") from error
        except (ValueError, TypeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{where} line {number} cannot be read: {error}", fix="correct the line") from error
        if calibrator:
            yield calibrator


def _parsed_row(row: Mapping[str, str], where: Path, number: int) -> Calibrator | None:
    if row["BAND"].strip().lower() != "20cm" or (flux := _number(row["FLUX_JY"])) is None:
        return None
    return Calibrator(
        row["J2000_NAME"].strip(),
        _ra_deg(row["RA_J2000"], where, number),
        _dec_deg(row["DEC_J2000"], where, number),
        flux,
        (row.get("ALT_NAME") or "").strip(),
        (row.get("PC_J2000") or "").strip(),
        _number(row.get("UVMIN_kL")),
        _number(row.get("UVMAX_kL")),
    )


def _plain_row(row: Mapping[str, str], where: Path, number: int) -> Calibrator | None:
    ra, dec = float(row["ra_deg"]), float(row["dec_deg"])
    if not (0.0 <= ra < 360.0 and -90.0 <= dec <= 90.0):
        raise InputError(f"{where} line {number}: ({ra}, {dec}) is no direction", fix="give degrees, RA 0 to 360")
    if (flux := _number(row["flux_jy"])) is None:
        return None
    return Calibrator(
        row["name"].strip(),
        ra,
        dec,
        flux,
        (row.get("alt") or "").strip(),
        (row.get("pc") or "").strip(),
        _number(row.get("uvmin_klambda")),
        _number(row.get("uvmax_klambda")),
    )


def _number(text: str | None) -> float | None:
    text = (text or "").strip()
    return None if text in ("", "?", "nan", "NaN") else float(text)


def _ra_deg(text: str, where: Path, number: int) -> float:
    found = _RA.fullmatch(text.strip().strip('"'))
    if not found:
        raise InputError(f"{where} line {number}: {text!r} is no right ascension", fix="write it like 01h37m41.3s")
    hours, minutes, seconds = (float(part) for part in found.groups())
    return 15.0 * (hours + minutes / 60.0 + seconds / 3600.0)


def _dec_deg(text: str, where: Path, number: int) -> float:
    # A Dec in quotes may have lost its own closing quote: 19d14'33.8" is written "19d14'33.8""".
    found = _DEC.fullmatch(text.strip().lstrip('"').replace('""', '"'))
    if not found:
        raise InputError(f"{where} line {number}: {text!r} is no declination", fix="write it like 33d09'35.1\"")
    degrees, minutes, seconds = (float(part) for part in found.groups()[1:])
    value = degrees + minutes / 60.0 + seconds / 3600.0
    return -value if found[1] == "-" else value


def _fold(name: str) -> str:
    return re.sub(r"[\s_]", "", name).upper().removeprefix("J")
