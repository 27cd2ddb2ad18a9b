"""The long loop: batches out of the queue, through the peak finder, into files; every event accounted for."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from nightbeam.core.errors import ConfigError, NightbeamError
from nightbeam.core.times import iso_z, utc_now
from nightbeam.cxi.books import Books
from nightbeam.cxi.config import WriterConfig, check_files, load_config, peak_settings, writer_config
from nightbeam.cxi.counts import Counts
from nightbeam.cxi.delivery import Delivery
from nightbeam.cxi.doors import Cluster, Doors, Source, the_world
from nightbeam.cxi.execution import LoadFollower
from nightbeam.cxi.health import Health, health_server
from nightbeam.cxi.jobs import Jobs
from nightbeam.cxi.ledger import StreamLedger
from nightbeam.cxi.limits import find_limits, make_pool
from nightbeam.cxi.logs import logged
from nightbeam.cxi.outlet import Outlet
from nightbeam.cxi.reception import Reception
from nightbeam.cxi.report import Parts, Report, Standing
from nightbeam.cxi.start import (
    compile_kernels,
    earlier_account,
    earlier_runs,
    own_directory,
    say_abandoned,
    usable_geometry,
)
from nightbeam.geometry.model import Geometry

__all__ = ["CxiService", "run_cpu_postprocessing_pipeline"]

_log = logging.getLogger(__name__)

_IDLE_SAID_EVERY_S: Final = 30.0
_IDLE_SAID_AFTER_S: Final = 1.0
_BUSY_WAIT_S: Final = 0.02
_CHUNKS_WAITING: Final = 2
#: Where so many batches do not fit what is configured and no other has come, the rest stays in the queue.
_MOST_UNFIT: Final = 8


class CxiService:
    """Take batches out of the queue, find their peaks, write the hits.

    Parameters
    ----------
    config
        What is wanted.
    config_path
        Where that was read, for the status.
    clock
        Seconds, of a clock that does not jump.
    doors
        The world; None: Ray and the disk.
    on_status
        Is told the counters whenever the status is written.

    Examples
    --------
    ``CxiService(load_config("cxi_writer.yaml")).loop(threading.Event())`` runs until an end condition is met.
    """

    def __init__(
        self,
        config: WriterConfig,
        *,
        config_path: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
        doors: Doors | None = None,
        on_status: Callable[[Mapping[str, Any]], None] | None = None,
    ) -> None:
        self.config, self.config_path = config, config_path
        self._clock, self._doors = clock, doors or the_world()
        self._books, self._standing = Books(), Standing()
        self._report = Report(
            config,
            self._books,
            self._standing,
            ask_queue=lambda: self._source.size(),
            clock=clock,
            config_path=config_path,
            on_status=on_status,
        )
        self._stack = ExitStack()
        self._queue_empty = False
        self._heard = self._idle_said = 0.0
        self._heard_once = False

    # -- from beginning to end ----------------------------------------------------------------------------------

    def loop(self, stop: threading.Event) -> dict[str, Any]:
        """Run until an end condition is met or ``stop`` is set; then write everything that was taken.

        Returns
        -------
        dict
            The counters.

        Raises
        ------
        NightbeamError
            If it cannot begin, the cluster is gone, the disk would not take the rest (which says how many events are
            lost), or nothing that came fits what is configured (then most of the stream is still in the queue).
        """
        self.open()
        try:
            while not stop.is_set() and self.step():
                pass
        finally:
            self.close()
        self._require_fit()
        return self.counters()

    def open(self) -> None:
        """Look at everything that could be wrong, before anything is taken, and connect.

        Raises
        ------
        MissingError, InputError
            If the geometry or the directory is not there or not usable.
        StorageError
            If the directory cannot be written.
        BusyError
            If another writer has this directory and prefix.
        UnavailableError, ConfigError
            If there is no cluster or queue, or the queue is not as announced.
        """
        with ExitStack() as undo:
            undo.callback(self._stack.close)
            self._open(undo)
            undo.pop_all()

    def _open(self, undo: ExitStack) -> None:
        check_files(self.config)
        geometry = usable_geometry(self.config)
        self._stack.enter_context(own_directory(self.config.output))
        compile_kernels()
        cluster = self._doors.connect(self.config)
        self._stack.callback(self._doors.disconnect)
        self._source: Source = self._doors.source(self.config)
        self._go_on()  # it may take a while, and says what was lost: not each time that nobody is there
        self._compose(geometry, cluster)
        undo.callback(self._outlet.close)
        undo.callback(self.pool.close)
        port, standing = self.config.health.port, self._standing
        standing.port = self._stack.enter_context(health_server(port, self.health, self.counters))
        standing.started = iso_z(utc_now())
        self._heard = standing.turned_s = self._clock()
        standing.state = "running"
        self._report.write(force=True)

    def _go_on(self) -> None:
        """Go on with the account of an earlier writer, and say what it had taken and not written."""
        found = earlier_account(self.config.output)
        self._books.counts.runs = earlier_runs(self.config.output)
        if found is not None:
            self._books.ledger, abandoned = found
            self._report.write(force=True)  # what is said now is not said again
            say_abandoned(abandoned)

    def _compose(self, geometry: Geometry | None, cluster: Cluster) -> None:
        """Make the parts, from the last to the first: each hands on to the one made before it."""
        config, doors, books = self.config, self._doors, self._books
        settings, limits = peak_settings(config), find_limits(config.processing, cluster)
        self._most_bytes = limits.most_bytes
        self.pool = pool = make_pool(config.processing, limits, doors.remote)
        self._follower = LoadFollower(pool, limits.cores, self._clock) if limits.adaptive else None
        self._outlet = Outlet(
            doors.files(config, geometry),
            books.counts,
            clock=self._clock,
            most_view_bytes=limits.most_bytes // 2,
            on_settled=books.settle,
            on_file=self._report.file_written.set,
        )
        self._delivery = delivery = Delivery(self._outlet, ordered=config.output.ordered, clock=self._clock)
        self._jobs = Jobs(config, settings, limits, doors=doors, pool=pool, books=books, delivery=delivery)
        self._reception = Reception(
            config, geometry, fetch=doors.fetch, books=books, delivery=delivery, start=self._jobs.start
        )
        self._report.attend(Parts(self._outlet, pool, delivery, self._reception))

    def step(self) -> bool:
        """Take at most one message, collect what is done, and look around; False when the run is over.

        Raises
        ------
        UnavailableError
            If the cluster or the queue has gone.
        RuntimeError
            If the thread that writes files has ended.
        """
        self._standing.turned_s = self._clock()
        self._outlet.require_alive()
        if self._may_take():
            self._take_one()
        else:
            self._heard = self._standing.turned_s  # nobody was asked, so nobody was silent
            if self.pool.open:
                self._jobs.collect(_BUSY_WAIT_S)
            else:
                self._let_go()
                self._outlet.wait(_BUSY_WAIT_S)
        self._jobs.collect(0.0)
        self._delivery.expire()
        if self._follower is not None:
            self._follower.look(self._report.queue_size)
        self._report.write()
        return not self._over()

    def close(self) -> None:
        """Take in what has already left the queue, write everything, and leave.

        Raises
        ------
        StorageError
            If the disk does not take it; says how many events are lost.
        """
        if self._standing.state in {"starting", "ended"}:
            return
        self._standing.state = "stopping"
        try:
            self._finish()
        finally:
            self._standing.state = "ended"
            try:
                self._report.write(force=True)
            finally:  # whatever fails, the next writer must find no lock
                self._stack.close()

    def _finish(self) -> None:
        with ExitStack() as last:  # from the last to the first, each whatever has failed before it
            last.callback(self._outlet.close)
            last.callback(self.pool.close)
            last.callback(self._pass_on_all)
            for message in self._drained():
                self._receive(message)
            self._work_off()
        by = self._standing.ended_by
        _log.info("ended%s: %s", f" ({by})" if by else "", self._report.progress())

    def _drained(self) -> list[Any]:
        """Return what has already left the queue, as far as the cluster still brings it."""
        try:
            self._source.stop_asking()
            return self._source.drain()
        except NightbeamError as error:
            _log.error("what has already left the queue does not come: %s", error)
            return []

    def _work_off(self) -> None:
        """Wait for what is in work; where Ray does not answer any more, its tasks are given up."""
        while self._jobs and self.pool.open:
            self._standing.turned_s = self._clock()
            try:
                self._jobs.collect(0.2)
            except NightbeamError as error:
                if not self.pool.give_up_remote(error):
                    raise
                _log.error("Ray's tasks are given up: %s", error)
            self._report.write()

    def _pass_on_all(self) -> None:
        """Lose the batches that nobody will finish, and pass on those that have waited for them."""
        self._jobs.lose_all()
        self._delivery.flush()

    # -- taking -------------------------------------------------------------------------------------------------

    def _may_take(self) -> bool:
        return (
            self._outlet.blocked is None
            and self.pool.open < self.config.processing.max_pending_tasks
            and self._outlet.waiting_events < _CHUNKS_WAITING * self.config.output.buffer_size
            and self._delivery.pending_bytes < self._most_bytes
        )

    def _take_one(self) -> None:
        message = self._source.take(0.0 if self._jobs else self.config.queue.poll_timeout)
        self._queue_empty = message is None
        if message is not None:
            self._receive(message)
        elif self._jobs:
            self._jobs.collect(self.config.queue.poll_timeout)
        else:
            self._say_idle()

    def _say_idle(self) -> None:
        now = self._clock()
        often = _IDLE_SAID_EVERY_S if self._idle_said else _IDLE_SAID_AFTER_S
        if now - max(self._heard, self._idle_said) >= often:
            self._idle_said = now
            _log.info(
                "Queue empty, waiting... (normal if the pipeline has not started; otherwise check that it puts on Q2)"
            )

    def _receive(self, message: Any) -> None:
        self._heard, self._heard_once = self._clock(), True
        begun = self._reception.take_in(message)
        if begun and self.counts.batches_received % self.config.system.progress_interval == 0:
            _log.info("%s", self._report.progress())

    def _let_go(self) -> None:
        """Do not wait for a batch that cannot come, because what waits for it fills the memory."""
        if self._delivery.held_bytes >= self._most_bytes and not self._jobs and self._delivery.waiting:
            _log.warning("batches that wait for one that has not come fill the memory; they go on without it")
            self._delivery.flush()

    def _over(self) -> bool:
        """Return whether an end condition is met, and remember which."""
        if self._reception.ends.all and self._queue_empty and self._nothing_left():
            self._standing.ended_by = "all producers have ended"
            return True
        run, silent = self.config.run, self._clock() - self._heard
        if run.total_events is not None and self.counts.events_received >= run.total_events:
            self._standing.ended_by = f"{run.total_events} events were received"
        elif run.total_batches is not None and self.counts.batches_received >= run.total_batches:
            self._standing.ended_by = f"{run.total_batches} batches were received"
        elif self._heard_once and run.idle_timeout is not None and silent >= run.idle_timeout:
            self._standing.ended_by = f"nothing came for {run.idle_timeout:g} s"
        elif not self._heard_once and run.startup_timeout is not None and silent >= run.startup_timeout:
            self._standing.ended_by = f"nothing came in the first {run.startup_timeout:g} s"
        elif self.counts.unfit() >= _MOST_UNFIT:
            self._standing.ended_by = "nothing that came fits what is configured"
        return bool(self._standing.ended_by)

    def _require_fit(self) -> None:
        found = self.counts.unfit()
        if found:
            why = self._books.turned_down or self._outlet.turned_down
            raise ConfigError(
                f"none of the {self.counts.batches_received} batches that came could be written; {found} do not fit "
                f"what is configured: {'the log says why' if why is None else why.what}",
                fix=(None if why is None else why.fix) or "is geometry.geom_file that of this detector?",
            )

    def _nothing_left(self) -> bool:
        """Ask all shards once more; what one of them still has is taken in."""
        message = self._source.look_once()
        if message is not None:
            self._receive(message)
        return message is None

    # -- what others ask ----------------------------------------------------------------------------------------

    @property
    def counts(self) -> Counts:
        """What became of every event."""
        return self._books.counts

    @property
    def ledger(self) -> StreamLedger:
        """What became of every batch of the producers that count."""
        return self._books.ledger

    @property
    def port(self) -> int | None:
        """Where the health is served, if anywhere."""
        return self._standing.port

    def health(self) -> Health:
        """Return whether the loop turns and the disk works; from any thread."""
        return self._report.health()

    def counters(self) -> dict[str, Any]:
        """Return all totals; from any thread."""
        return self._report.counters()

    def require_balance(self) -> None:
        """Check that received = written + filtered + rejected + lost + buffered + in flight; true at every moment.

        Raises
        ------
        RuntimeError
            If it is not, which is a mistake in this program.
        """
        found = self.counts.to_json()
        if found["balance"] != 0:
            raise RuntimeError(f"the events do not add up: {found}")


def run_cpu_postprocessing_pipeline(
    config: WriterConfig | Mapping[str, Any] | str | Path,
    *,
    stop: threading.Event | None = None,
    doors: Doors | None = None,
) -> dict[str, Any]:
    """Run the writer until an end condition is met; the log is as ``system`` wants it meanwhile.

    Parameters
    ----------
    config
        Read already, the tree of a file, or a file.
    stop
        Ends the run when it is set; what was taken is written.
    doors
        The world; None: Ray and the disk.

    Returns
    -------
    dict
        The counters.

    Raises
    ------
    NightbeamError
        As `CxiService.loop`, or if the configuration is wrong.
    """
    path = Path(config) if isinstance(config, str | Path) else None
    if path is not None:
        config = load_config(path)
    elif not isinstance(config, WriterConfig):
        config = writer_config(config)
    service = CxiService(config, config_path=path, doors=doors)
    with logged(config.system, program=False):
        return service.loop(stop or threading.Event())
