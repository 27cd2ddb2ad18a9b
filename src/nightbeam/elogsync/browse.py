"""The mirror in a browser, read-only, by datasette."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NoReturn

from nightbeam.core.errors import BusyError, MissingError, UsageError
from nightbeam.core.files import storage_errors

__all__ = ["arguments", "metadata", "serve"]

_HOST: Final = "127.0.0.1"
#: With rich there, datasette prints every local variable of a stack trace for each page that it does not have.
_PROGRAM: Final = "import sys; sys.modules['rich'] = None; from datasette.cli import cli; cli(prog_name='datasette')"
_SETTINGS: Final[Mapping[str, str]] = {
    "allow_download": "off",
    "allow_csv_stream": "on",
    "sql_time_limit_ms": "5000",
}


def metadata(file: Path) -> dict[str, Any]:
    """Return what datasette tells of the tables, and that nobody sees them but who has the link that it prints.

    Other users of this machine reach its loopback as well, and they may not be allowed to read what the mirror has.
    """
    newest_first = {"sort_desc": "created_at", "size": 50}
    entries = "Entries, with deleted ones and earlier versions; the view Logbook has neither."
    state = "How the last reading of each list went: nothing is deleted where one failed."
    return {
        "title": "Electronic logbook",
        "description": "A mirror of the logbook; nothing can be changed here.",
        "allow": {"id": "root"},
        "databases": {
            file.stem: {
                "tables": {
                    "logbook_entries": {
                        "description": entries,
                        "fts_table": "logbook_fts",
                        "fts_pk": "id",
                        "label_column": "title",
                        **newest_first,
                    },
                    "experiments": {"label_column": "name", "sort_desc": "start_time"},
                    "runs": {"label_column": "run_number", "sort_desc": "start_time"},
                    "files": newest_first,
                    "sync_state": {"description": state},
                }
            }
        },
    }


def arguments(file: Path, *, port: int) -> list[str]:
    """Return the command that serves a file of the working directory, described by standard input, on the loopback.

    Raises
    ------
    UsageError
        If the name would mean something else in the address by which SQLite is told not to write.
    """
    if set(file.name) & set("?#%"):
        raise UsageError(f"datasette cannot open {file.name}", fix="give the file a name without ?, # and %")
    return [
        *(sys.executable, "-P", "-c", _PROGRAM, "serve", f"./{file.name}", "--host", _HOST, "--port", str(port)),
        *("--metadata", "-", "--root"),
        *(part for name, value in _SETTINGS.items() for part in ("--setting", name, value)),
    ]


def serve(file: Path, *, port: int) -> NoReturn:
    """Become datasette, which serves the file until a signal ends it: no process is left behind, whatever ends this.

    Raises
    ------
    MissingError
        If datasette is not installed.
    BusyError
        If the port is taken.
    """
    if importlib.util.find_spec("datasette") is None:
        raise MissingError("datasette is not installed", fix="pip install 'nightbeam[browse]'")
    command = arguments(file, port=port)
    _must_be_free(port)
    environ = {name: value for name, value in os.environ.items() if not name.startswith("DATASETTE_")}
    described = tempfile.TemporaryFile()  # noqa: SIM115 - it is standard input from here on
    described.write(json.dumps(metadata(file)).encode())
    described.seek(0)
    os.dup2(described.fileno(), 0)
    os.set_inheritable(0, True)  # where standard input was closed, the file is it already
    with storage_errors(file):
        os.chdir(file.parent)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(command[0], command, environ)


def _must_be_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError as error:
            raise BusyError(f"port {port} cannot be had: {error.strerror}", fix="choose another with --port") from error
