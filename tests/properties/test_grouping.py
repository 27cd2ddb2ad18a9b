"""The real inventory of 14 dates: every arrival order gives the same 2,231 groups, none mixed."""

from __future__ import annotations

import csv
import itertools
import random
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightbeam.contimg import Site, Tools, scan_arrivals
from nightbeam.core.errors import StorageError
from nightbeam.core.settings import Settings
from nightbeam.core.times import jd_from_datetime
from nightbeam.ingest import Arrival, SubbandGroup, group_arrivals


def inventory(shared_data: Path) -> list[Arrival]:
    found = []
    with (shared_data / "dsa110" / "subband_name_inventory_2026.csv").open() as lines:
        for row in csv.DictReader(lines):
            if row["source"] != "fs" or int(row["bytes"]) == 0:
                continue
            stamp = datetime.fromisoformat(row["name_timestamp"]).replace(tzinfo=UTC)
            # The inventory counts the files of a second without naming their subbands.
            found += [Arrival(Path(f"/in/{stamp}/{n}"), stamp, n) for n in range(int(row["n_files"]))]
    return found


@pytest.fixture(scope="module")
def arrivals(shared_data: Path) -> list[Arrival]:
    return inventory(shared_data)


@pytest.mark.parametrize("gap_s", [30.0, 90.0, 200.0])
def test_the_real_names_form_2231_groups_of_which_2208_are_whole(arrivals: list[Arrival], gap_s: float):
    groups = group_arrivals(arrivals, gap_s=gap_s)
    sizes = Counter(len(g.arrivals) for g in groups)
    assert len(groups) == 2231
    assert sizes.pop(16) == 2208
    assert sizes == {1: 10, 2: 3, 3: 1, 6: 1, 8: 2, 9: 2, 10: 2, 13: 1, 15: 1}


def test_no_group_is_mixed_and_none_is_near_another(arrivals: list[Arrival]):
    groups = group_arrivals(arrivals)
    spans = [sorted(a.stamp for a in g.arrivals if a.stamp) for g in groups]
    assert max(s[-1] - s[0] for s in spans) <= timedelta(seconds=82)
    assert min(b[0] - a[-1] for a, b in itertools.pairwise(spans)) >= timedelta(seconds=234)
    assert len({str(g.group_id) for g in groups}) == 2231


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_any_arrival_order_gives_the_same_groups(arrivals: list[Arrival], seed: int):
    shuffled = arrivals.copy()
    random.Random(seed).shuffle(shuffled)
    assert group_arrivals(shuffled) == group_arrivals(arrivals)


@pytest.mark.parametrize("seed", [1, 2])
def test_a_header_confirms_what_the_names_say(arrivals: list[Arrival], seed: int):
    # As at the telescope: the data start some seconds after the last of the names; a part of the headers is read.
    dice = random.Random(seed)
    by_names = group_arrivals(arrivals)
    mixed = []
    for group in by_names:
        last = max(a.stamp for a in group.arrivals if a.stamp)
        jd = jd_from_datetime(last + timedelta(seconds=11.123))
        read = dice.random()
        mixed += [Arrival(a.path, a.stamp, a.subband, jd if dice.random() < read else None) for a in group.arrivals]
    dice.shuffle(mixed)
    assert [{a.path for a in g.arrivals} for g in group_arrivals(mixed)] == [
        {a.path for a in g.arrivals} for g in by_names
    ]


@pytest.mark.parametrize("jump_s", [120, 3000, -90000])
def test_a_file_whose_clock_jumped_belongs_to_whom_its_header_says(jump_s: int):
    t0, jd = datetime(2026, 1, 25, 12, tzinfo=UTC), 2461066.0001
    files = [Arrival(Path(f"/in/{n}"), t0 + timedelta(seconds=jump_s if n == 7 else 0), n, jd) for n in range(16)]
    (group,) = group_arrivals(files)
    assert group.subbands == tuple(range(16))


@given(
    st.lists(
        st.tuples(st.integers(0, 2000), st.integers(0, 15), st.sampled_from([None, 0.0, 309.24, 618.48])), max_size=40
    ),
    st.randoms(use_true_random=False),
)
def test_grouping_never_depends_on_the_order_and_loses_nothing(
    items: list[tuple[int, int, float | None]], dice: random.Random
):
    t0 = datetime(2026, 1, 25, tzinfo=UTC)
    files = [
        Arrival(Path(f"/in/{s}_{sb}_{d}"), t0 + timedelta(seconds=s), sb, None if d is None else 2461065.5 + d / 86400)
        for s, sb, d in items
    ]
    groups = group_arrivals(files)
    shuffled = files.copy()
    dice.shuffle(shuffled)
    assert group_arrivals(shuffled) == groups
    assert {a for g in groups for a in g.arrivals} == set(files)
    assert sum(len(g.arrivals) for g in groups) == len(set(files))


@pytest.mark.slow
def test_files_that_come_in_any_order_over_many_scans_end_in_the_same_groups(arrivals: list[Arrival], tmp_path: Path):
    """Every incomplete observation, those whose names lie furthest apart, and their neighbours, through the queue."""
    dice = random.Random(1)
    groups = group_arrivals(arrivals)
    odd = [n for n, g in enumerate(groups) if len(g.arrivals) < 16 or _spread_s(g) > 12.0]
    some = sorted({near for n in dice.sample(odd, 15) for near in (n - 1, n, n + 1) if 0 <= near < len(groups)})
    site = Site.from_settings(
        Settings.model_validate({"state_dir": tmp_path / "state", "contimg": {"ingest": {"settle_s": 0}}})
    )
    site.input_dir.mkdir(parents=True)
    starts: dict[str, float] = {}
    wanted: dict[str, list[int]] = {}
    for n in some:
        stamps = sorted(a.stamp for a in groups[n].arrivals if a.stamp)
        begin = stamps[-1] + timedelta(seconds=11.123)
        wanted[begin.strftime("%Y-%m-%dT%H:%M:%S")] = list(range(len(stamps)))
        for sb, stamp in enumerate(stamps):
            starts[f"{stamp:%Y-%m-%dT%H:%M:%S}_sb{sb:02d}.hdf5"] = jd_from_datetime(begin)
    unreadable = set(dice.sample(sorted(starts), len(starts) // 5))

    def read(path: Path) -> Any:
        if path.name in unreadable:
            raise StorageError("not now")
        start = starts[path.name]
        return SimpleNamespace(subband=None, start_jd=start, mid_jd=start + 0.0018, dec_rad=0.5)

    names = sorted(starts)
    dice.shuffle(names)
    for part in range(5):
        for name in names[part::5]:
            (site.input_dir / name).write_text("x")
        scan_arrivals(site, tools=Tools(read_header=read))
        unreadable -= set(dice.sample(sorted(unreadable), len(unreadable) // 3))
    unreadable.clear()
    scan_arrivals(site, tools=Tools(read_header=read))
    queue = site.queue()
    assert {row.group_id: [s.subband_idx for s in queue.subbands(row.group_id)] for row in queue.groups()} == wanted
    assert {row.group_id: row.state for row in queue.groups()} == {
        group: "pending" if len(subbands) == 16 else "collecting" for group, subbands in wanted.items()
    }
    assert (queue.duplicates(), queue.bad_files()) == ([], [])


def _spread_s(group: SubbandGroup) -> float:
    stamps = [a.stamp for a in group.arrivals if a.stamp]
    return (max(stamps) - min(stamps)).total_seconds()
