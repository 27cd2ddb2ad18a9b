"""One process at a time, of all machines that reach a PostgreSQL."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from nightbeam.catalog.serial import one_at_a_time
from nightbeam.core.errors import BusyError

pytestmark = pytest.mark.system


def test_a_lock_is_held_once_and_free_when_its_holder_has_gone(postgresql_url: str):
    with one_at_a_time(postgresql_url, "it", wait_s=1.0):
        with pytest.raises(BusyError, match="it is still held"), one_at_a_time(postgresql_url, "it", wait_s=0.1):
            pytest.fail("two at once")
        with one_at_a_time(postgresql_url, "something else", wait_s=0.1):
            pass
    with one_at_a_time(postgresql_url, "it", wait_s=0.1):
        pass


def test_the_server_is_told_to_ask_for_a_holder_that_is_cut_off_before_it_gets_the_lock(postgresql_url: str):
    said: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        said.append(statement)

    sa.event.listen(sa.Engine, "before_cursor_execute", note)
    try:
        with one_at_a_time(postgresql_url, "it", wait_s=1.0):
            pass
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", note)
    (locks,) = [n for n, statement in enumerate(said) if "pg_try_advisory_lock" in statement]
    seconds = {word[1]: int(word[3]) for word in (statement.split() for statement in said[:locks]) if word[0] == "SET"}
    idle, interval, count = (seconds[f"tcp_keepalives_{name}"] for name in ("idle", "interval", "count"))
    assert 0 < idle + count * interval <= 60
