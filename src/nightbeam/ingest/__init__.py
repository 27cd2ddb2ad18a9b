"""From files to groups: which subbands are ready, and which belong together."""

from __future__ import annotations

from nightbeam.ingest.compute import chain, group_arrivals
from nightbeam.ingest.files import Looks, group_files, list_names, scan_directory
from nightbeam.ingest.model import Arrival, BadFile, Scan, SubbandGroup, Unready

__all__ = [
    "Arrival",
    "BadFile",
    "Looks",
    "Scan",
    "SubbandGroup",
    "Unready",
    "chain",
    "group_arrivals",
    "group_files",
    "list_names",
    "scan_directory",
]
