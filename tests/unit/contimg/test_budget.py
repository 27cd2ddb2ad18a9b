"""The ledger of a machine's memory: who may begin, who waits, and that the dead hold nothing."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightbeam.contimg.budget import Budget, Ledger, Place, why_not, why_waiting
from nightbeam.core.errors import BusyError, ConfigError, ResourceError
from nightbeam.core.files import write_text
from nightbeam.core.memory import Memory

GB = 1_000_000_000
OLD, NEW, NEWEST = "2025-10-02T01:02:03", "2025-10-02T01:07:12", "2025-10-02T01:12:21"


class World:
    """A machine with a clock that moves only while somebody waits, and what happens in the meantime."""

    def __init__(self, total_gb: float = 24.0, available_gb: float = 22.0) -> None:
        self.now = 0.0
        self.memory = Memory(int(total_gb * GB), int(available_gb * GB))
        self.then = lambda: None

    def read(self) -> Memory:
        return self.memory

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        assert self.now < 1000, "it would wait for ever"
        self.then()

    def ledger(self, directory: Path) -> Ledger:
        return Ledger(directory, read=self.read, clock=lambda: self.now, sleep=self.sleep)


@pytest.fixture
def world() -> World:
    return World()


def place(order: str, step: str, gb: float, *, works: bool = False) -> Place:
    return Place(f"{order}{step}", order, step, int(gb * GB), 1, None, works)


def refused(mine: Place, *others: Place, budget_gb: float = 18.0, same_step: int = 1, free_gb: float = 22.0):
    found = why_not(
        mine, others, budget_bytes=int(budget_gb * GB), same_step=same_step, available_bytes=int(free_gb * GB)
    )
    return found and found.kind


# -- who may begin ----------------------------------------------------------------------------------------------


def test_the_next_group_is_converted_while_the_last_is_imaged():
    assert refused(place(NEW, "convert", 1), place(OLD, "image", 2, works=True)) is None


def test_two_of_a_kind_wait_for_each_other_and_let_others_pass():
    imaging, waits = place(OLD, "image", 2, works=True), place(NEW, "image", 2)
    assert refused(waits, imaging) == "step"
    assert refused(place(NEWEST, "convert", 1), imaging, waits) is None
    assert refused(waits, imaging, same_step=2) is None


def test_nobody_passes_older_data_that_wait_for_memory():
    imaging, waits = place(OLD, "image", 10, works=True), place(NEW, "apply", 10)
    assert refused(waits, imaging) == "budget"
    assert refused(place(NEWEST, "convert", 1), imaging, waits) == "order"
    assert refused(place(OLD, "qa", 1), imaging, waits) is None  # the older may


def test_an_older_step_that_waits_only_for_its_kind_is_passed_whatever_number_of_its_own_kind_the_asker_bears():
    waits = replace(place(OLD, "image", 5), same_step=1)
    assert refused(place(NEWEST, "convert", 5), waits, place(NEW, "image", 5, works=True), same_step=3) is None
    several = replace(waits, same_step=3)
    assert refused(place(NEWEST, "convert", 5), several, place(NEW, "image", 5, works=True), same_step=1) == "order"


def test_what_is_larger_than_the_budget_works_alone():
    giant = place(OLD, "image", 20)
    assert refused(giant) is None
    assert refused(giant, place(NEW, "convert", 1, works=True)) == "budget"
    assert refused(place(NEW, "convert", 1), place(OLD, "image", 20, works=True)) == "budget"


def test_memory_that_others_took_is_not_there():
    assert refused(place(OLD, "image", 2), free_gb=1.9) == "machine"


STEPS = st.sampled_from(["convert", "calibrate", "apply", "image", "qa"])


@given(
    demands=st.lists(st.tuples(STEPS, st.integers(1, 30)), min_size=1, max_size=12),
    choices=st.lists(st.integers(0, 10**6), min_size=100, max_size=100),
    budget=st.integers(1, 20),
    most=st.integers(1, 3),
)
def test_whatever_is_wanted_in_whatever_order_the_budget_holds_and_everything_ends(demands, choices, budget, most):
    coming = [Place(str(n), f"{n:02d}", step, gb, 1) for n, (step, gb) in enumerate(demands)]
    there: dict[str, Place] = {}
    ended = 0
    for choice in choices:
        working = [p for p in there.values() if p.works]
        waiting = [p for p in there.values() if not p.works]
        may = [p for p in waiting if not why_not(
            p, [o for o in there.values() if o.ident != p.ident], budget_bytes=budget, same_step=most,
            available_bytes=1000,
        )]  # fmt: skip
        assert working or may or not waiting  # never do all wait for each other
        moves = [("come", p) for p in coming] + [("begin", p) for p in may] + [("end", p) for p in working]
        if not moves:
            break
        what, one = moves[choice % len(moves)]
        if what == "come":
            coming.remove(one)
            there[one.ident] = one
        elif what == "begin":
            there[one.ident] = Place(one.ident, one.order, one.step, one.memory_bytes, 1, None, True)
        else:
            del there[one.ident]
            ended += 1
        working = [p for p in there.values() if p.works]
        assert sum(p.memory_bytes for p in working) <= budget or len(working) == 1
        assert all(sum(p.step == step for p in working) <= most for step in {p.step for p in working})
    assert ended == len(demands)


# -- waiting ----------------------------------------------------------------------------------------------------


@contextmanager
def at_work(ledger: Ledger, order: str, step: str, gb: float, budget: Budget | None = None):
    with ledger.turn(order, step, int(gb * GB), budget=budget or Budget(), lower="contimg.image.imsize"):
        yield


def test_a_step_that_works_is_in_the_ledger_and_gone_when_it_ends(world, tmp_path):
    ledger = world.ledger(tmp_path)
    with at_work(ledger, OLD, "image", 2):
        (found,) = ledger.places()
        assert (found.order, found.step, found.memory_bytes, found.works) == (OLD, "image", 2 * GB, True)
    assert ledger.places() == []
    assert world.now == 0.0


def test_a_step_begins_when_the_one_before_it_has_ended_and_says_meanwhile_what_it_waits_for(world, tmp_path):
    ledger = world.ledger(tmp_path)
    said = []
    first = at_work(ledger, OLD, "image", 15)
    first.__enter__()

    def then():
        said.append(why_waiting(tmp_path, NEW))
        if len(said) == 3:
            first.__exit__(None, None, None)

    world.then = then
    with at_work(ledger, NEW, "convert", 5):
        assert [p.order for p in ledger.places()] == [NEW]
    waits = f"convert waits: 5.00 GB of memory wanted, 15.00 GB of 18.00 GB are taken by image of {OLD}"
    assert said == [waits] * 3
    assert why_waiting(tmp_path, NEW) is None


def test_a_step_that_is_interrupted_while_it_waits_leaves_nothing(world, tmp_path):
    ledger = world.ledger(tmp_path)

    def stop():
        raise KeyboardInterrupt

    world.then = stop
    with at_work(ledger, OLD, "image", 15):
        with pytest.raises(KeyboardInterrupt), at_work(ledger, NEW, "image", 15):
            pass
        assert [p.order for p in ledger.places()] == [OLD]


def test_a_step_that_waits_asks_every_half_minute_whether_it_is_to(world, tmp_path):
    ledger, asked = world.ledger(tmp_path), []

    def still():
        asked.append(world.now)
        if len(asked) == 3:
            raise BusyError("it is somebody else's")

    with at_work(ledger, OLD, "image", 15):
        with pytest.raises(BusyError), ledger.turn(NEW, "image", 15 * GB, budget=Budget(), still=still):
            pass
        assert [p.order for p in ledger.places()] == [OLD]
    assert asked == [30.0, 60.0, 90.0]


def test_what_no_memory_of_the_machine_can_hold_is_refused_with_what_to_lower(world, tmp_path):
    with pytest.raises(ConfigError, match=r"takes 25.00 GB of memory, this machine has 24.00 GB") as refusal:
        at_work(world.ledger(tmp_path), OLD, "image", 25).__enter__()
    assert "lower contimg.image.imsize" in refusal.value.fix
    assert not list(tmp_path.rglob("*.waits"))


def test_what_is_larger_than_the_budget_is_warned_of(world, tmp_path, caplog):
    with at_work(world.ledger(tmp_path), OLD, "image", 20):
        assert "more than the budget of 18.00 GB: alone" in caplog.text


def test_a_budget_that_is_set_counts_instead_of_three_quarters_of_the_machine(world, tmp_path):
    assert Budget().bytes_of(world.memory) == 18 * GB
    assert Budget(memory_gb=3.0).bytes_of(world.memory) == 3 * GB


def test_memory_that_others_have_is_waited_for_as_long_as_patience_lasts(tmp_path):
    world = World(available_gb=1.0)
    with pytest.raises(ResourceError, match=r"2.00 GB of memory wanted, 1.00 GB are free on the machine") as error:
        at_work(world.ledger(tmp_path), OLD, "image", 2, Budget(patience_s=30.0)).__enter__()
    assert world.now == pytest.approx(30.0, abs=1.5)
    assert error.value.retry
    assert world.ledger(tmp_path).places() == []


def test_memory_that_comes_free_in_time_is_taken(tmp_path):
    world = World(available_gb=1.0)

    def then():
        if world.now > 20:
            world.memory = Memory(24 * GB, 5 * GB)

    world.then = then
    with at_work(world.ledger(tmp_path), OLD, "image", 2, Budget(patience_s=30.0)):
        assert 20 < world.now < 23


def test_patience_does_not_run_out_while_our_own_steps_have_the_memory(world, tmp_path):
    ledger = world.ledger(tmp_path)
    first = at_work(ledger, OLD, "image", 5)
    first.__enter__()
    world.memory = Memory(24 * GB, 1 * GB)

    def then():
        if world.now == 100:
            first.__exit__(None, None, None)
        if world.now == 120:  # what else runs
            world.memory = Memory(24 * GB, 20 * GB)

    world.then = then
    with at_work(ledger, NEW, "convert", 2, Budget(patience_s=30.0)):
        assert world.now == 120


def test_a_waiter_that_has_been_silent_for_a_minute_is_not_waited_for(world, tmp_path):
    # Its process lives (it is ours to the test) and was stopped: it does not look any more.
    directory = tmp_path / socket.gethostname()
    other = {"ident": "x", "order": OLD, "step": "apply", "memory_bytes": 1, "pid": os.getppid()}
    write_text(directory / "x.waits", json.dumps(other))
    (entry,) = directory.glob("*.waits")
    touched = entry.stat().st_mtime
    ledger, looks = world.ledger(tmp_path), []

    def then():
        looks.append(why_waiting(tmp_path, NEW))
        os.utime(entry, (touched - 61, touched - 61))

    world.then = then
    with at_work(ledger, NEW, "apply", 1):
        assert looks == [f"apply waits: apply of {OLD} is before it"]


def test_an_entry_that_cannot_be_read_is_nobodys(world, tmp_path):
    directory = tmp_path / socket.gethostname()
    for text in ("", "[]", '{"ident": 3}', '{"ident": "a", "order": "b", "step": "c", "memory_bytes": "d", "pid": 1}'):
        write_text(directory / "x.works", text)
        with at_work(world.ledger(tmp_path), NEW, "apply", 18):
            assert not (directory / "x.works").exists()


def test_an_end_that_was_cut_short_holds_nothing_in_the_same_process(world, tmp_path, monkeypatch):
    ledger, unlink = world.ledger(tmp_path), Path.unlink

    def stuck(path: Path, missing_ok: bool = False) -> None:
        if path.suffix == ".works":
            raise OSError("read-only file system")
        unlink(path, missing_ok=missing_ok)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", stuck)
        with at_work(ledger, OLD, "image", 18):
            pass
    assert list(tmp_path.rglob("*.works"))
    with at_work(ledger, NEW, "image", 18):
        assert world.now == 0.0


# -- processes --------------------------------------------------------------------------------------------------

HOLD = """
import sys
from pathlib import Path
from nightbeam.contimg.budget import Budget, Ledger
from nightbeam.core.memory import Memory
ledger = Ledger(Path(sys.argv[1]), read=lambda: Memory(24 * 10**9, 22 * 10**9))
with ledger.turn(sys.argv[2], "image", 15 * 10**9, budget=Budget()):
    print("works", flush=True)
    sys.stdin.read()
print("ended", flush=True)
"""


def hold(directory: Path, order: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, directory, order], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def test_a_killed_process_gives_its_memory_back_and_the_oldest_data_go_on(world, tmp_path):
    ledger, waits = world.ledger(tmp_path), threading.Event()
    killed = hold(tmp_path, NEW)
    assert killed.stdout.readline() == "works\n"
    second = hold(tmp_path, OLD)

    def then():
        # Nothing is slept: the other process is what is waited for.
        if why_waiting(tmp_path, OLD) and not waits.is_set():
            waits.set()
            killed.send_signal(signal.SIGKILL)
            killed.wait()
            assert second.stdout.readline() == "works\n"  # before us, who came first, for its data are older
            second.stdin.close()

    world.then = then
    with at_work(ledger, NEWEST, "image", 15):
        assert waits.is_set()
        assert [p.order for p in ledger.places()] == [NEWEST]
    assert second.wait() == 0
    for child in (killed, second):
        child.stdout.close()
    killed.stdin.close()
