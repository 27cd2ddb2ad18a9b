"""Memory as the kernel tells it, of the machine and of the cgroups that we are in."""

from pathlib import Path

import pytest

from nightbeam.core.errors import UnavailableError
from nightbeam.core.memory import Memory, read_memory

GIB = 1 << 30


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    (tmp_path / "self").mkdir()
    (tmp_path / "meminfo").write_text(
        f"MemTotal:       {24 * GIB // 1024} kB\nMemFree:           1000 kB\nMemAvailable:   {20 * GIB // 1024} kB\n"
    )
    return tmp_path


def test_without_a_limit_it_is_the_machines(proc: Path, tmp_path: Path):
    (proc / "self" / "cgroup").write_text("0::/user.slice\n")
    place = tmp_path / "cgroup" / "user.slice"
    place.mkdir(parents=True)
    (place / "memory.max").write_text("max\n")
    (place / "memory.current").write_text(f"{3 * GIB}\n")
    assert read_memory(proc, tmp_path / "cgroup") == Memory(24 * GIB, 20 * GIB)


def test_the_tightest_cgroup_above_us_counts_and_cached_files_are_free(proc: Path, tmp_path: Path):
    (proc / "self" / "cgroup").write_text("0::/pod/worker\n")
    pod = tmp_path / "cgroup" / "pod"
    (pod / "worker").mkdir(parents=True)
    (pod / "worker" / "memory.max").write_text("max\n")
    (pod / "memory.max").write_text(f"{8 * GIB}\n")
    (pod / "memory.current").write_text(f"{5 * GIB}\n")
    (pod / "memory.stat").write_text(f"anon {GIB}\ninactive_file {2 * GIB}\nactive_file {GIB}\n")
    assert read_memory(proc, tmp_path / "cgroup") == Memory(8 * GIB, 5 * GIB)


def test_cgroups_of_the_older_kind_are_asked_too(proc: Path, tmp_path: Path):
    (proc / "self" / "cgroup").write_text("4:memory:/job\n0::/\n")
    job = tmp_path / "cgroup" / "memory" / "job"
    job.mkdir(parents=True)
    (job / "memory.limit_in_bytes").write_text(f"{4 * GIB}\n")
    (job / "memory.usage_in_bytes").write_text(f"{3 * GIB}\n")
    (job / "memory.stat").write_text(f"total_inactive_file {GIB}\n")
    assert read_memory(proc, tmp_path / "cgroup") == Memory(4 * GIB, 2 * GIB)


def test_a_limit_that_is_overdrawn_leaves_nothing(proc: Path, tmp_path: Path):
    (proc / "self" / "cgroup").write_text("0::/\n")
    (tmp_path / "cgroup").mkdir()
    (tmp_path / "cgroup" / "memory.max").write_text(f"{GIB}\n")
    (tmp_path / "cgroup" / "memory.current").write_text(f"{2 * GIB}\n")
    assert read_memory(proc, tmp_path / "cgroup") == Memory(GIB, 0)


def test_a_kernel_that_does_not_tell_is_an_error(tmp_path: Path):
    with pytest.raises(UnavailableError, match="does not say"):
        read_memory(tmp_path, tmp_path)


def test_this_machine_tells():
    memory = read_memory()
    assert 0 < memory.available_bytes <= memory.total_bytes
