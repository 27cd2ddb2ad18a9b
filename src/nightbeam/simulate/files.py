"""Subband files in the layout of the correlator's writer, station and source tables, and ``truth.json``."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nightbeam.core.errors import InputError, MissingError
from nightbeam.core.files import storage_errors, write_text
from nightbeam.simulate.model import (
    Bandpass,
    Gain,
    SkySource,
    StationTable,
    SubbandBlock,
    Truth,
    TruthArray,
    TruthArrival,
    TruthFault,
    TruthGroup,
)

if TYPE_CHECKING:
    import h5py

__all__ = [
    "TRUTH_NAME",
    "SubbandImages",
    "headless_image",
    "hidden_path",
    "incomplete_path",
    "misshapen_image",
    "read_sources",
    "read_stations",
    "read_truth",
    "subband_image",
    "write_incomplete",
    "write_part",
    "write_subband",
    "write_truth",
]

TRUTH_NAME = "truth.json"
TRUTH_VERSION = 1
_STATIONS = "dsa110_stations.csv"

#: Samples of 0.134217728 s that the correlator averages into one integration; what ``nsamples`` counts.
SAMPLES_PER_INTEGRATION = 96.0
# What is larger is made anew: then the data take the time, and a pattern would take memory.
_SMALL_BYTES = 1 << 22
_MOST_PATTERNS = 8


def read_stations() -> StationTable:
    """Return the 117 stations of DSA-110 with their surveyed positions; 96 of them produce data."""
    text = (files("nightbeam.simulate") / "data" / _STATIONS).read_text()
    rows = list(csv.DictReader(io.StringIO(text)))
    return StationTable(
        number=np.array([int(r["station"]) for r in rows]),
        arm=tuple(r["arm"] for r in rows),
        active=np.array([r["active"] == "1" for r in rows]),
        positions_m=np.array([[float(r[f"{axis}_m"]) for axis in "xyz"] for r in rows]),
    )


def read_sources(path: Path) -> tuple[SkySource, ...]:
    """Return the sources of a CSV file with columns name, ra_deg, dec_deg, flux_jy and maybe spectral_index.

    Raises
    ------
    MissingError
        If there is no such file.
    InputError
        Naming the column or line that is wrong.
    """
    try:
        rows = list(csv.DictReader(path.read_text().splitlines(), skipinitialspace=True))
    except FileNotFoundError as error:
        raise MissingError(f"no source list {path}", fix="correct the path, or give a number of sources") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the source list {path}: {error}", fix="give a CSV file") from error
    return tuple(_source(row, path, number) for number, row in enumerate(rows, 2))


def _source(row: Mapping[str, str], path: Path, number: int) -> SkySource:
    try:
        source = SkySource(
            row["name"].strip(),
            float(row["ra_deg"]),
            float(row["dec_deg"]),
            float(row["flux_jy"]),
            float(row.get("spectral_index") or 0.0),
        )
    except KeyError as error:
        raise InputError(
            f"{path} has no column {error.args[0]}", fix="begin it with name,ra_deg,dec_deg,flux_jy,spectral_index"
        ) from error
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path} line {number} cannot be read: {error}", fix="correct the line") from error
    if not (0.0 <= source.ra_deg < 360.0 and -90.0 <= source.dec_deg <= 90.0 and np.isfinite(source.flux_jy)):
        raise InputError(f"{path} line {number} is no source: {source}", fix="give RA 0 to 360 and Dec -90 to 90")
    return source


def incomplete_path(path: Path) -> Path:
    """Return the name that a subband file has while it is being written."""
    return path.with_name(f"{path.stem}_incomplete{path.suffix}")


def write_subband(path: Path, block: SubbandBlock) -> None:
    """Write one subband file as the correlator does: under its ``_incomplete`` name, then renamed.

    Raises
    ------
    StorageError
        If the disk is full or unwritable; no file is left.
    """
    with storage_errors(path):
        write_incomplete(path, block).replace(path)


def write_incomplete(path: Path, block: SubbandBlock) -> Path:
    """Write one subband file under the ``_incomplete`` name of ``path``; return that name.

    The layout is that of ``dsamfs.uvh5_utils`` (old UVH5: a spectral-window axis, single-precision uvw,
    resizable arrays with the chunks that h5py chooses for them when they are empty).
    """
    part = incomplete_path(path)
    write_part(part, subband_image(block))
    return part


def hidden_path(path: Path) -> Path:
    """Return the name that any other file has while it is being copied, as rsync gives it."""
    return path.with_name(f".{path.name}.part")


def write_part(part: Path, image: bytes) -> None:
    """Write a file under a name that is not its final one; what is not whole is removed.

    Raises
    ------
    StorageError
        If the disk is full or unwritable.
    MissingError
        If there is no such directory.
    """
    with storage_errors(part):
        try:
            part.write_bytes(image)
        except FileNotFoundError as error:
            raise MissingError(f"no directory {part.parent}", fix="create it or correct the path") from error
        except BaseException:
            part.unlink(missing_ok=True)
            raise


def headless_image() -> bytes:
    """Return the bytes of an HDF5 file that has data and no header."""
    import h5py

    with h5py.File("headless", "w", driver="core", backing_store=False, block_size=1 << 16) as out:
        out["Data/visdata"] = np.zeros((4, 1, 2, 2), np.complex64)
        out.flush()
        return bytes(out.id.get_file_image())


def misshapen_image(block: SubbandBlock) -> bytes:
    """Return the bytes of a subband file whose data lack one of the polarizations that the header promises."""
    return subband_image(block, pols=1)


class SubbandImages:
    """Makes the bytes of subband files; of small ones that are alike, much faster than one by one.

    The files of a night differ in their times, frequencies and data. Making an HDF5 file of forty small datasets takes
    8 ms, changing four of them in an image of another file 1.4 ms, and the bytes are the same.
    """

    def __init__(self) -> None:
        self._patterns: dict[object, bytes] = {}

    def image(self, block: SubbandBlock) -> bytes:
        """Return what `subband_image` returns."""
        if block.vis.nbytes > _SMALL_BYTES:
            return subband_image(block)
        alike = _all_but_data(block)
        if alike in self._patterns:
            return _changed_image(self._patterns[alike], block)
        if len(self._patterns) >= _MOST_PATTERNS:
            self._patterns.clear()
        return self._patterns.setdefault(alike, subband_image(block))


def _all_but_data(block: SubbandBlock) -> tuple[object, ...]:
    """Return all that is in a file beside its data, times, frequencies and the text of its history."""
    arrays = (block.ant1, block.ant2, block.uvw_m, block.positions_m, block.applied_delays_ns)
    numbers = (block.channel_width_hz, block.integration_s, block.dec_rad, block.site, block.diameter_m)
    return (block.vis.shape, len(block.history), *numbers, *(array.tobytes() for array in arrays))


def _changed_image(image: bytes, block: SubbandBlock) -> bytes:
    import h5py

    with h5py.File(h5py.h5f.open_file_image(image, h5py.h5f.FILE_IMAGE_OPEN_RW)) as out:
        header, vis = out["Header"], out["Data/visdata"]
        header["history"][()] = np.bytes_(block.history)
        header["time_array"][...] = np.repeat(block.times_jd, block.vis.shape[1])
        header["freq_array"][...] = block.freqs_hz[np.newaxis, :]
        vis[...] = block.vis.reshape(vis.shape)
        out.flush()
        return bytes(out.id.get_file_image())


def subband_image(block: SubbandBlock, *, pols: int | None = None) -> bytes:
    """Return the bytes of a subband file; ``pols``: of how many there are data, whatever the header says.

    HDF5 makes them in memory: on a full disk its own writing fails late, with no usable error, and may
    take the process down when it exits.
    """
    import h5py

    with h5py.File("subband", "w", driver="core", backing_store=False, block_size=1 << 24) as out:
        _write_header(out.create_group("Header"), block)
        _write_data(out.create_group("Data"), block.vis[..., :pols])
        out.flush()
        return bytes(out.id.get_file_image())


def _write_header(header: h5py.Group, block: SubbandBlock) -> None:
    n_times, n_bls, n_freqs, n_pols = block.vis.shape
    n_stations = len(block.positions_m)
    n_ants = round((np.sqrt(8 * n_bls + 1) - 1) / 2)
    header["latitude"] = block.site.latitude_deg
    header["longitude"] = block.site.longitude_deg
    header["altitude"] = block.site.height_m
    for name, text in (
        ("telescope_name", "OVRO_MMA"),
        ("instrument", "DSA"),
        ("object_name", "search"),
        ("history", block.history),
        ("phase_type", "drift"),
    ):
        header[name] = np.bytes_(text)
    header["phase_center_app_dec"] = block.dec_rad
    header["Nants_data"] = n_ants
    header["Nants_telescope"] = n_stations
    header["antenna_diameters"] = np.full(n_stations, block.diameter_m)
    header["antenna_names"] = np.array([str(k + 1) for k in range(n_stations)], "S4")
    header["antenna_numbers"] = np.arange(n_stations)
    header["antenna_positions"] = block.positions_m
    header["Nbls"] = n_bls
    header["Nblts"] = n_times * n_bls
    header["Nfreqs"] = n_freqs
    header["Npols"] = n_pols
    header["Ntimes"] = n_times
    header["Nspws"] = 1
    _growing(header, "ant_1_array", np.tile(block.ant1, n_times))
    _growing(header, "ant_2_array", np.tile(block.ant2, n_times))
    _growing(header, "uvw_array", np.tile(block.uvw_m.astype(np.float32), (n_times, 1)))
    _growing(header, "time_array", np.repeat(block.times_jd, n_bls))
    # The real writer passes the length through a single-precision array: 12.884902000427246.
    _growing(header, "integration_time", np.full(n_times * n_bls, np.float32(block.integration_s), float))
    header["freq_array"] = block.freqs_hz[np.newaxis, :]
    header["channel_width"] = block.channel_width_hz
    header["spw_array"] = np.array([1])
    header["polarization_array"] = np.array([-5, -6])
    extra = header.create_group("extra_keywords")
    extra["phase_center_dec"] = block.dec_rad
    extra["ha_phase_center"] = 0.0
    extra["phase_center_epoch"] = "HADEC"
    extra["fs_table"] = np.bytes_("fringestopping_table.npz")
    extra["applied_delays_ns"] = np.bytes_(" ".join(f"{d:.1f}" for d in block.applied_delays_ns))


def _write_data(data: h5py.Group, vis: np.ndarray[Any, np.dtype[np.complex64]]) -> None:
    n_times, n_bls, n_freqs, n_pols = vis.shape
    shape = (n_times * n_bls, 1, n_freqs, n_pols)
    _growing(data, "visdata", vis.reshape(shape))
    _growing(data, "flags", np.zeros(shape, bool))
    _growing(data, "nsamples", np.full(shape, SAMPLES_PER_INTEGRATION, np.float32))


def _growing(group: h5py.Group, name: str, values: np.ndarray[Any, Any]) -> None:
    # Made empty and then grown, as an instrument does that does not know when it will stop: the size of
    # the chunks, and with it the size of the file, follows from this.
    rest = values.shape[1:]
    dataset = group.create_dataset(name, (0, *rest), maxshape=(None, *rest), dtype=values.dtype, chunks=True)
    dataset.resize(len(values), axis=0)
    dataset[...] = values


def write_truth(directory: Path, truth: Truth) -> Path:
    """Write ``truth.json`` into a directory; return its path."""
    path = directory / TRUTH_NAME
    write_text(path, json.dumps(dataclasses.asdict(truth), indent=1, allow_nan=False) + "\n")
    return path


def read_truth(path: Path) -> Truth:
    """Return the truth in a file, or in the ``truth.json`` of a directory.

    Raises
    ------
    MissingError
        If there is none.
    InputError
        If it is no such file or of another version.
    """
    path = path / TRUTH_NAME if path.is_dir() else path
    try:
        tree = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise MissingError(f"no {path}", fix="simulate first, or give the directory with truth.json") from error
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}", fix="give the truth.json of a simulation") from error
    if not isinstance(tree, dict) or tree.get("version") != TRUTH_VERSION:
        found = tree.get("version") if isinstance(tree, dict) else type(tree).__name__
        raise InputError(f"{path} is version {found}, not {TRUTH_VERSION}", fix="simulate again with this nightbeam")
    try:
        return _truth(tree)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is no truth of a simulation: {error}", fix="simulate again") from error


def _truth(tree: dict[str, Any]) -> Truth:
    array = TruthArray(**_tuples(tree["array"]))
    gains = {s: {p: Gain(**g) for p, g in pols.items()} for s, pols in tree["gains"].items()}
    bands = {
        s: {p: Bandpass(tuple(b["amp"]), tuple(b["phase_deg"])) for p, b in pols.items()}
        for s, pols in tree["bandpass"].items()
    }
    low, high = tree["band_hz"]
    changed = {
        "array": array,
        "groups": tuple(_group(group, array) for group in tree["groups"]),
        "sources": tuple(SkySource(**s) for s in tree["sources"]),
        "gains": gains,
        "bandpass": bands,
        "band_hz": (low, high),
        "faults": tuple(tree["faults"]),
        "events": tuple(TruthFault(**_tuples(event)) for event in tree.get("events", ())),
        "arrivals": tuple(TruthArrival(**_tuples(arrival)) for arrival in tree.get("arrivals", ())),
    }
    return Truth(**{**tree, **changed})


def _group(tree: Mapping[str, Any], array: TruthArray) -> TruthGroup:
    # Earlier versions knew three faults, and did not say what they lead to.
    missing = tuple(tree["missing"])
    known = {
        "integrations": array.integrations,
        "usable": tuple(sb for sb in range(array.subbands) if sb not in missing),
        "header_dec_deg": array.dec_apparent_deg,
        "outcome": "incomplete" if missing else "completed",
    }
    return TruthGroup(**{**known, **_tuples(tree)})


def _tuples(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in tree.items()}
