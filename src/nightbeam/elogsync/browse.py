"""The mirror in a browser, read-only, by datasette."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from nightbeam.core.errors import MissingError

__all__ = ["arguments", "metadata", "serve"]


def metadata(file: Path) -> dict[str, Any]:
    """Return what datasette tells of the tables: what they are, how they are sorted, what a search looks into."""
    newest_first = {"sort_desc": "created_at", "size": 50}
    return {
        "title": "Electronic logbook",
        "description": "A mirror of the logbook; nothing can be changed here.",
        "databases": {
            file.stem: {
                "tables": {
                    "logbook_entries": {
                        "description": "Entries, with deleted ones and earlier versions: see Logbook for the rest.",
                        "fts_table": "logbook_fts",
                        "fts_pk": "rowid",
                        "label_column": "title",
                        **newest_first,
                    },
                    "experiments": {"label_column": "name", "sort_desc": "start_time"},
                    "runs": {"label_column": "run_number", "sort_desc": "start_time"},
                    "files": newest_first,
                    "sync_state": {"description": "How the last reading of each list went.", "hidden": False},
                }
            }
        },
    }


def arguments(file: Path, described: Path, *, port: int) -> list[str]:
    """Return the command that serves a file on this machine's loopback, with nothing that writes."""
    settings = {"allow_download": "off", "allow_csv_stream": "on", "sql_time_limit_ms": "5000"}
    return [
        *(sys.executable, "-m", "datasette", "serve", str(file), "--host", "127.0.0.1", "--port", str(port)),
        *("--metadata", str(described)),
        *(part for name, value in settings.items() for part in ("--setting", name, value)),
    ]


def serve(file: Path, *, port: int) -> int:
    """Serve until told to stop; returns datasette's exit code.

    Raises
    ------
    MissingError
        If datasette is not installed.
    """
    if importlib.util.find_spec("datasette") is None:
        raise MissingError("datasette is not installed", fix="pip install 'nightbeam[browse]'")
    with tempfile.TemporaryDirectory(prefix="nightbeam-browse-") as directory:
        described = Path(directory) / "metadata.json"
        described.write_text(json.dumps(metadata(file)))
        environ = {name: value for name, value in os.environ.items() if not name.startswith("DATASETTE_")}
        child = subprocess.Popen(arguments(file, described, port=port), env=environ)
        try:
            return child.wait()
        except KeyboardInterrupt:
            return child.wait()  # it has had the signal too
        finally:
            if child.poll() is None:
                child.terminate()
                child.wait()
