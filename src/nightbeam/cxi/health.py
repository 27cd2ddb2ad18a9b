"""How the writer does: a status file, and health and metrics over HTTP on the loopback interface."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

from nightbeam.core.errors import BusyError
from nightbeam.core.files import part_path, storage_errors

__all__ = ["Health", "health_server", "metrics_text", "write_status"]

_log = logging.getLogger(__name__)

_JSON: Final = "application/json"
_TEXT: Final = "text/plain; version=0.0.4; charset=utf-8"

#: Counter of the status -> what it counts. Those of events by reason are apart.
_TOTALS: Final[Mapping[str, tuple[str, str]]] = {
    "batches_received": ("cxi_batches_received", "Batches taken out of the queue."),
    "events_received": ("cxi_events_received", "Events of these batches."),
    "total_events_written": ("cxi_events_written", "Events in files."),
    "total_events_filtered": ("cxi_events_filtered", "Events without enough peaks."),
    "events_truncated": ("cxi_events_truncated", "Hits with more peaks than fit."),
    "peaks_written": ("cxi_peaks_written", "Peaks in files."),
    "bytes_written": ("cxi_bytes_written", "Bytes of files."),
    "chunks_written": ("cxi_files_written", "Files."),
    "retried_tasks": ("cxi_tasks_retried", "Tasks that failed and were done again."),
    "pixels_clipped": ("cxi_pixels_clipped", "Pixels beyond what the type of the images holds."),
    "pixels_rounded": ("cxi_pixels_rounded", "Pixels that were rounded to the type of the images."),
    "pixels_not_finite": ("cxi_pixels_not_finite", "Pixels that were no numbers, in a type that has no such value."),
    "write_failures": ("cxi_write_failures", "Attempts to write a file that failed."),
    "nan_pixels": ("cxi_nan_pixels", "Pixels whose logits were not a number."),
}
_REASONS: Final[Mapping[str, tuple[str, str]]] = {
    "events_rejected": ("cxi_events_rejected", "Events turned down, by reason."),
    "events_lost": ("cxi_events_lost", "Events lost, by reason."),
}
_GAUGES: Final[Mapping[str, tuple[str, str]]] = {
    "buffer_size": ("cxi_buffered_events", "Events that wait for their file to be full."),
    "events_in_flight": ("cxi_events_in_flight", "Events in work."),
    "pending_tasks": ("cxi_pending_tasks", "Tasks open."),
    "pending_bytes": ("cxi_pending_bytes", "Bytes of batches in work."),
    "queue_size": ("cxi_queue_batches", "Batches in the queue."),
    "workers": ("cxi_workers", "Tasks that may run at a time."),
    "events_per_s": ("cxi_events_per_second", "Over the last ten seconds."),
    "hit_rate": ("cxi_hit_rate", "Hits among the events that were looked at."),
    "balance": ("cxi_balance", "Received less all that became of it; not 0 is a fault of the program."),
}


@dataclass(frozen=True, slots=True)
class Health:
    """Whether the writer works.

    Attributes
    ----------
    problems
        What is wrong; nothing where it works.
    """

    problems: tuple[str, ...] = ()

    @property
    def works(self) -> bool:
        """Return whether nothing is wrong."""
        return not self.problems


def write_status(path: Path, status: Mapping[str, Any]) -> None:
    """Replace the status file, so that a reader sees the old one or the new one.

    It is not forced to the disk: it has to outlive the program, and waiting for the disk would hold up the loop.

    Raises
    ------
    StorageError
        If the disk does not take it.
    """
    part = part_path(path)
    with storage_errors(path):
        try:
            part.write_text(json.dumps(status, separators=(",", ":")) + "\n", encoding="utf-8")
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


def metrics_text(counters: Mapping[str, Any], health: Health) -> bytes:
    """Return counters as Prometheus reads them."""
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    class Collector:
        def collect(self) -> Iterator[Any]:
            for key, (name, text) in _TOTALS.items():
                yield CounterMetricFamily(name, text, value=counters.get(key) or 0)
            for key, (name, text) in _REASONS.items():
                family = CounterMetricFamily(name, text, labels=["reason"])
                for reason, count in sorted((counters.get(key) or {}).items()):
                    family.add_metric([reason], count)
                yield family
            for key, (name, text) in _GAUGES.items():
                if counters.get(key) is not None:
                    yield GaugeMetricFamily(name, text, value=counters[key])
            yield GaugeMetricFamily("cxi_up", "1 while the loop turns and the disk works.", value=float(health.works))

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Collector())
    return generate_latest(registry)


@contextmanager
def health_server(
    port: int | None, health: Callable[[], Health], counters: Callable[[], Mapping[str, Any]]
) -> Iterator[int | None]:
    """Serve ``/healthz`` and ``/metrics`` on 127.0.0.1 for the block.

    Parameters
    ----------
    port
        None: nothing is served; 0: a free one.
    health, counters
        Asked for each request, in another thread.

    Yields
    ------
    int or None
        The port.

    Raises
    ------
    BusyError
        If somebody else has the port.
    """
    if port is None:
        yield None
        return
    try:
        server = _Server(("127.0.0.1", port), _handler(health, counters))
    except OSError as error:
        raise BusyError(
            f"port {port} cannot be served: {error.strerror}", fix="set `health.port` to another one, or to 0"
        ) from error
    thread = threading.Thread(target=server.serve_forever, args=(0.1,), name="cxi-health", daemon=True)
    thread.start()
    try:
        _log.info("health at http://127.0.0.1:%d/healthz", server.server_port)
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True


def _handler(health: Callable[[], Health], counters: Callable[[], Mapping[str, Any]]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = 5.0  # who does not finish a request keeps a thread no longer
        server_version = "nightbeam"
        sys_version = ""

        def do_GET(self) -> None:
            """Answer."""
            path = self.path.partition("?")[0]
            if path == "/healthz":
                found = health()
                said = {"status": "ok" if found.works else "problems", "problems": list(found.problems)}
                self._answer(200 if found.works else 503, _JSON, json.dumps(said).encode() + b"\n")
            elif path == "/metrics":
                self._answer(200, _TEXT, metrics_text(counters(), health()))
            else:
                self._answer(404, "text/plain; charset=utf-8", b"there are /healthz and /metrics\n")

        def _answer(self, code: int, kind: str, body: bytes) -> None:
            self.send_response(code)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  (the base class's name)
            _log.debug(format, *args)

    return Handler
