"""CrystFEL itself reads our files: as many peaks, at the same places, in the same panels.

It is built from its public source (gitlab.desy.de/thomas.white/crystfel, version 0.12.0, meson); without an indexamajig
on the path there is nothing to do.
"""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from nightbeam.cxi.check import check_file
from nightbeam.cxi.files import read_chunk
from nightbeam.cxi.model import Event, OutputPlan, ProcessedBatch
from nightbeam.cxi.writing import CxiWriter
from nightbeam.geometry.compute import bad_pixels, panel_index, tile_origins
from nightbeam.geometry.files import parse_geometry, read_geometry
from nightbeam.peaks.model import PeakTable, Window
from nightbeam.stream.model import BatchHeader

pytestmark = pytest.mark.system

#: Geometry file -> (modules, rows, columns) of the data.
DETECTORS = {
    "epix10k2M-mfx.geom": (16, 352, 384),
    "jungfrau4M-extra-geom.geom": (8, 512, 1024),
    "cspad-cxiformat.geom": (32, 185, 388),
    "agipd": (16, 512, 128),
}
EVENTS = 3


def geometry_of(name, shared_data):
    """A real file, or the AGIPD: 16 modules of 8 panels, more than CrystFEL puts into one group."""
    if name != "agipd":
        return read_geometry(shared_data / "geom" / name)
    lines = ["photon_energy = 9500", "clen = 0.12", "res = 5000", "adu_per_photon = 1", "dim0 = %", "dim1 = ss",
             "dim2 = fs", "data = /data"]  # fmt: skip
    for module, asic in itertools.product(range(16), range(8)):
        first = 512 * module + 64 * asic
        place = {"min_ss": first, "max_ss": first + 63, "min_fs": 0, "max_fs": 127, "fs": "-1.0y", "ss": "+1.0x",
                 "corner_x": -500 + 66 * asic, "corner_y": 1100 - 140 * module}  # fmt: skip
        lines += [f"p{module}a{asic}/{key} = {value}" for key, value in place.items()]
    return parse_geometry("\n".join(lines) + "\n", source="agipd.geom")


def batch_of(geometry, shape, rng) -> ProcessedBatch:
    """Events with 20, 30 and 40 peaks at places of good pixels."""
    header = BatchHeader(
        "b0", "gpu0", 0, 0, 7, "mfxl1033223", EVENTS, shape[0], shape[1:], shape[1:], Window(0, 0, *shape[1:]),
        "logits", "calibrated", (np.arange(EVENTS, dtype=np.uint64) + np.uint64(1_700_000_000)) << np.uint64(32), None,
        np.full(EVENTS, 9500.0), np.full(EVENTS, 120.0),
    )  # fmt: skip
    origins, bad = tile_origins(geometry, shape), bad_pixels(geometry)
    events = []
    for n in range(EVENTS):
        image = rng.normal(0.0, 1.0, shape).astype(np.float32)
        panel, y, x = _places(rng, origins, bad, shape, 20 + 10 * n)
        ones = np.ones(len(panel))
        row = n * shape[0] + panel
        corner = np.stack([y, y, x, x], axis=1).astype(np.int64)
        table = PeakTable(row, y, x, ones.astype(np.int64), 1000.0 * ones, 500.0 * ones, 0 * ones, ones, ones, corner)
        events.append(Event(header, n, table, image))
    return ProcessedBatch(header, tuple(events), 0)


def _places(rng, origins, bad, shape, number):
    """Places with fractions of 0.01, so that a stream's two decimals hold them."""
    found = []
    while len(found) < number:
        panel = int(rng.integers(shape[0]))
        y, x = (round(float(rng.uniform(0, n - 1)), 2) for n in shape[1:])
        ss, fs = (round(at + begin) for at, begin in zip((y, x), origins[panel], strict=True))
        # At the middle between two pixels rounding of float32 decides which panel it is.
        if not bad[ss, fs] and all(abs(v % 1 - 0.5) > 0.02 for v in (y, x)):
            found.append((panel, y, x))
    found.sort()
    panel, y, x = zip(*found, strict=True)
    return np.array(panel), np.array(y), np.array(x)


def peaks_of_stream(text: str) -> list[list[tuple[float, float, str]]]:
    """Return (fs, ss, panel) of the peaks of each event of a stream."""
    chunks = text.split("----- Begin chunk -----")[1:]
    found = []
    for chunk in sorted(chunks, key=lambda c: int(re.search(r"^Event: //(\d+)", c, re.MULTILINE)[1])):
        body = re.search(r"Peaks from peak search\n[^\n]*\n(.*?)End of peak list", chunk, re.DOTALL)
        lines = [line.split() for line in body[1].splitlines()] if body else []
        assert int(re.search(r"^num_peaks = (\d+)", chunk, re.MULTILINE)[1]) == len(lines)
        found.append([(float(w[0]), float(w[1]), w[-1]) for w in lines])
    return found


def write(name, shared_data, tmp_path):
    geometry = geometry_of(name, shared_data)
    writer = CxiWriter(OutputPlan(output_dir=tmp_path, file_prefix="p"), geometry=geometry)
    writer.submit(batch_of(geometry, DETECTORS[name], np.random.default_rng(5)))
    writer.flush_final()
    return writer.files[0], geometry


@pytest.mark.parametrize("name", DETECTORS)
def test_the_check_finds_nothing_wrong_with_files_of_real_detectors(name, shared_data, tmp_path):
    path, _ = write(name, shared_data, tmp_path)
    report = check_file(path, read_geometry(tmp_path / "p.geom"))
    assert report.findings == ()
    assert report.num_peaks == (20, 30, 40)


@pytest.mark.skipif(not shutil.which("indexamajig"), reason="no indexamajig on the path: build CrystFEL 0.12")
@pytest.mark.parametrize("name", DETECTORS)
def test_crystfel_finds_every_peak_where_we_put_it(name, shared_data, tmp_path):
    path, geometry = write(name, shared_data, tmp_path)
    stream = tmp_path / "p.stream"
    command = ["indexamajig", "-i", "p.lst", "-g", "p.geom", "-o", stream, "--peaks=cxi", "--indexing=none",
               "--no-revalidate", "-j", "1"]  # fmt: skip
    subprocess.run([str(word) for word in command], cwd=tmp_path, check=True, timeout=250)
    read = peaks_of_stream(stream.read_text())
    assert [len(peaks) for peaks in read] == [20, 30, 40]
    _compare(read, path, geometry)


def _compare(read, path: Path, geometry) -> None:
    written, owner = read_chunk(path), panel_index(geometry)
    for n, peaks in enumerate(read):
        fs, ss = (np.array([peak[i] for peak in peaks]) for i in range(2))
        x, y = written.table("peakXPosRaw", n), written.table("peakYPosRaw", n)
        assert np.abs(fs - (x + 0.5)).max() <= 0.0051
        assert np.abs(ss - (y + 0.5)).max() <= 0.0051
        owners = owner[np.rint(y).astype(int), np.rint(x).astype(int)]
        assert [peak[2] for peak in peaks] == [geometry.panels[index].name for index in owners]
