"""What the products were made of: their inputs, who made them, and the settings that were in force."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa

from nightbeam.catalog.model import GroupStepRow, ProvenanceInput, ProvenanceRow
from nightbeam.catalog.remote import Database, insert_once, upsert
from nightbeam.catalog.schema import ConfigurationTable, GroupStepTable, ProvenanceInputTable, ProvenanceTable

__all__ = ["Origins"]

R = TypeVar("R")
_I = ProvenanceInputTable


class Origins:
    """The tables ``provenance``, ``provenance_inputs``, ``configurations`` and ``group_steps`` of the products.

    Parameters
    ----------
    database
        The products.
    """

    def __init__(self, database: Database) -> None:
        self.database = database

    def put_configuration(self, content: Mapping[str, Any], *, now: float | None = None) -> str:
        """Store settings unless they are there already, and return their SHA-256.

        Parameters
        ----------
        content
            JSON types, without secrets. The digest is of its JSON with sorted keys and no blanks.
        """
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        digest = hashlib.sha256(text.encode()).hexdigest()
        if self.configuration(digest) is None:
            with self.database.write() as connection:
                values = {"content": text, "first_used_at": time.time() if now is None else now}
                insert_once(connection, ConfigurationTable, {"sha256": digest}, values)
        return digest

    def configuration(self, digest: str) -> dict[str, Any] | None:
        """Return the settings of this SHA-256, or None."""
        query = sa.select(ConfigurationTable.content).where(ConfigurationTable.sha256 == digest)
        with self.database.read() as connection:
            text = connection.execute(query).scalar()
        return None if text is None else dict(json.loads(text))

    def put(self, path: Path, *, kind: str, inputs: Sequence[ProvenanceInput], made_at: float, **values: Any) -> None:
        """Make the history of a product what is given; the one of an earlier product of that path is gone.

        Parameters
        ----------
        path, kind
            What it is: ``ms``, ``caltable``, ``image`` or ``mosaic``.
        inputs
            What it was made of, in order; of two with one path the first counts.
        made_at
            Epoch seconds.
        values
            Further columns of ``provenance``; mappings are stored as JSON.
        """
        columns = {f.name: None for f in dataclasses.fields(ProvenanceRow) if f.name != "path"}
        given = {name: json.dumps(v, sort_keys=True) if isinstance(v, Mapping) else v for name, v in values.items()}
        row = {**columns, **given, "kind": kind, "made_at": made_at}
        once = {one.path: one for one in reversed(inputs)}
        with self.database.write() as connection:
            upsert(connection, ProvenanceTable, {"path": str(path)}, row)  # and whoever else does that waits
            connection.execute(sa.delete(_I).where(_I.product == str(path)))
            rows = [
                {"product": str(path), "place": place, **dataclasses.asdict(one)}
                for place, one in enumerate(inputs)
                if once[one.path] is one
            ]
            if rows:
                connection.execute(sa.insert(_I), rows)

    def change(self, path: Path, **values: Any) -> bool:
        """Change columns of a product's history; returns whether there is one."""
        query = sa.update(ProvenanceTable).where(ProvenanceTable.path == str(path)).values(**values)
        with self.database.write() as connection:
            return connection.execute(query).rowcount > 0

    def of(self, path: Path) -> ProvenanceRow | None:
        """Return the history of a product, or None for one that has none."""
        found = self._rows(ProvenanceRow, sa.select(ProvenanceTable).where(ProvenanceTable.path == str(path)))
        return found[0] if found else None

    def inputs(self, path: Path) -> list[ProvenanceInput]:
        """Return what a product was made of, in order."""
        return self._rows(ProvenanceInput, sa.select(_I).where(_I.product == str(path)).order_by(_I.place))

    def put_step(
        self,
        group_id: str,
        step: str,
        *,
        run: str,
        version: str,
        configuration: str,
        seconds: float,
        now: float | None = None,
    ) -> None:
        """Note who has done a step of a group, and with which settings."""
        values = {"run": run, "version": version, "configuration": configuration, "seconds": seconds}
        values["finished_at"] = time.time() if now is None else now
        with self.database.write() as connection:
            upsert(connection, GroupStepTable, {"group_id": group_id, "step": step}, values)

    def steps(self, group_id: str) -> list[GroupStepRow]:
        """Return the steps of a group in the order in which they were done."""
        query = sa.select(GroupStepTable).where(GroupStepTable.group_id == group_id)
        return self._rows(GroupStepRow, query.order_by(GroupStepTable.finished_at, GroupStepTable.step))

    def _rows(self, kind: type[R], query: sa.Select[Any]) -> list[R]:
        names = [f.name for f in dataclasses.fields(kind)]  # type: ignore[arg-type]
        with self.database.read() as connection:
            return [kind(**{n: row[n] for n in names}) for row in connection.execute(query).mappings()]
