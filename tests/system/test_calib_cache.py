"""Many processes on one cache: writers that race, readers that never stop, killed writers, a disk that is full."""

import json
import os
import pickle
import random
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pytest

from nightbeam.calib import open_constants, prefetch
from nightbeam.calib.files import entry_path, list_entries, verify_entry
from nightbeam.calib.remote import CalibService
from nightbeam.core.errors import StorageError
from nightbeam.testing.calib_service import FakeCalibService

pytestmark = pytest.mark.system

EXP, UID = "mfxl1033223", "jungfrau_0123456-789_abc"
CTYPES = ("pedestals", "pixel_gain", "pixel_rms")
SHAPE = (3, 4, 128, 128)

PREFETCHER = """
import json, pathlib, sys, time
from nightbeam.calib.prefetch import prefetch
from nightbeam.calib.remote import CalibService
url, cache, uid, until = sys.argv[1], pathlib.Path(sys.argv[2]), sys.argv[3], float(sys.argv[4])
actions, run = {}, 0
with CalibService(url) as service:
    while time.time() < until:
        run = run % 3 + 1
        report = prefetch("mfxl1033223", output_dir=cache, service=service, run=run, det_info={"jf": uid}, keep=3)
        actions[report.action] = actions.get(report.action, 0) + 1
print(json.dumps(actions))
"""

READER = """
import json, pathlib, pickle, sys, time
import numpy as np
from nightbeam.calib import open_constants
cache, until, plain = pathlib.Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
loads, mixed, run = 0, 0, 0
while time.time() < until:
    run = run % 3 + 1
    if plain:
        with open(cache / f"calibconst_mfxl1033223_r{run:04d}.pkl", "rb") as file:
            found = pickle.load(file)["calib_const"]
    else:
        found = open_constants("mfxl1033223", run, cache)
    for data, document in found["jf"].values():
        mixed += bool((data != float(document["version"])).any())
    loads += 1
print(json.dumps({"loads": loads, "mixed": mixed}))
"""


def deploy(fake, generation):
    for ctype in CTYPES:
        data = np.full(SHAPE, generation, np.float32)
        fake.deploy(EXP, UID, ctype, data, run=1, changes={"version": str(generation)}, detector_too=False)


@pytest.fixture
def fake():
    with FakeCalibService() as service:
        service.add_detector(UID)
        deploy(service, 1)
        yield service


@pytest.fixture
def cache(tmp_path):
    directory = tmp_path / "cache"
    directory.mkdir()
    return directory


def fetch_once(fake, cache, run=1):
    with CalibService(fake.url) as service:
        return prefetch.prefetch(EXP, output_dir=cache, service=service, run=run, det_info={"jf": UID})


def check(cache, run=1):
    path = entry_path(cache, EXP, run)
    verify_entry(path)
    found = open_constants(EXP, run, cache)["jf"]
    with path.open("rb") as file:
        plain = pickle.load(file)["calib_const"]["jf"]
    assert set(found) == set(plain) == set(CTYPES)
    for ctype in CTYPES:
        data, document = found[ctype]
        assert (data == float(document["version"])).all()
        np.testing.assert_array_equal(data, plain[ctype][0])


def only_entries(cache):
    return [p.name for p in cache.iterdir() if not p.name.endswith(".pkl") and not p.name.startswith(".calibconst.")]


def test_two_prefetchers_and_four_readers_for_ten_seconds(fake, cache):
    for run in (1, 2, 3):
        fetch_once(fake, cache, run)
    until = time.time() + 10
    children = [[PREFETCHER, fake.url, str(cache), UID, str(until)] for _ in range(2)]
    children += [[READER, str(cache), str(until), str(plain)] for plain in (0, 0, 0, 1)]
    running = [
        subprocess.Popen([sys.executable, "-c", *argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for argv in children
    ]
    generation = 1
    while time.time() < until:
        time.sleep(0.5)
        generation += 1
        deploy(fake, generation)
    said = []
    for process in running:
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        said.append(json.loads(out))
    assert all(reader["mixed"] == 0 and reader["loads"] > 10 for reader in said[2:])
    actions = Counter(said[0]) + Counter(said[1])
    assert actions["fetched"] > 3
    assert actions["linked"] > 3
    fetched = Counter(r.path for r in fake.requests if r.is_data)
    assert fetched
    assert max(fetched.values()) == 1
    assert only_entries(cache) == []
    assert [line.reason for line in list_entries(cache)] == [None] * 3


KILLED = """
import os, pathlib, random, signal, sys, time
from nightbeam.calib.prefetch import prefetch
from nightbeam.calib.remote import CalibService
url, cache, uid = sys.argv[1], pathlib.Path(sys.argv[2]), sys.argv[3]
def half_written():
    return any(not name.endswith(".pkl") and not name.startswith(".calibconst.") for name in os.listdir(cache))
for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        with CalibService(url) as service:
            prefetch("mfxl1033223", output_dir=cache, service=service, run=1, det_info={"jf": uid})
        os._exit(0)
    if line.strip() == "half":
        while not half_written() and os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
            pass
    else:
        time.sleep(float(line))
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    print("killed" if os.WIFSIGNALED(status) else "done", flush=True)
"""


KILLS, HALVES, ROUNDS = 50, 3, 300


def test_a_writer_killed_at_fifty_random_moments_harms_nobody_and_leaves_nothing(fake, cache):
    begin = time.perf_counter()
    fetch_once(fake, cache)
    deploy(fake, 2)
    fetch_once(fake, cache)
    takes_s = (time.perf_counter() - begin) / 2
    rng, outcomes, halves = random.Random(3), Counter(), 0
    argv = [sys.executable, "-c", KILLED, fake.url, str(cache), UID]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
        for generation in range(3, 3 + ROUNDS):
            if outcomes["killed"] >= KILLS and halves >= HALVES:
                break
            deploy(fake, generation)
            # Moments by chance, and then such as fall into a write for certain.
            writer.stdin.write(f"{rng.uniform(0, 1.5 * takes_s)}\n" if outcomes["killed"] < KILLS else "half\n")
            writer.stdin.flush()
            outcomes[writer.stdout.readline().strip()] += 1
            halves += bool(only_entries(cache))
            check(cache)
        writer.stdin.close()
    assert outcomes["killed"] >= KILLS, "too many writes ended before their signal"
    assert halves >= HALVES, "no kill fell into a write"
    deploy(fake, 999)
    assert fetch_once(fake, cache).action == "fetched"
    check(cache)
    assert open_constants(EXP, 1, cache)["jf"]["pedestals"][1]["version"] == "999"
    assert only_entries(cache) == []
    assert [list(d.iterdir()) for d in cache.glob(".calibconst.*")] == [[]]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MB, enough for one set of constants and not for two."""
    where = tmp_path / "small"
    where.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(where)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting is not allowed here; tests/unit/calib/test_prefetch.py fills a disk by injection")
    yield where
    subprocess.run(["umount", str(where)], check=True)


def test_a_disk_that_is_really_full_keeps_the_last_good_file(fake, small_disk, monkeypatch):
    fetch_once(fake, small_disk)  # 2.4 MB
    deploy(fake, 2)
    with pytest.raises(StorageError, match="are free"):
        fetch_once(fake, small_disk)
    monkeypatch.setattr("nightbeam.calib.files.require_space", lambda *a, **k: None)
    with pytest.raises(StorageError, match="no space left"):
        fetch_once(fake, small_disk)
    check(small_disk)
    assert only_entries(small_disk) == []
    assert os.statvfs(small_disk).f_bavail > 0
