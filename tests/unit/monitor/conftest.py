"""A small site whose databases hold something of everything, and a way to ask its monitor without a socket."""

from __future__ import annotations

import runpy
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from nightbeam.catalog import FileFact, GroupFact, Owner, Products, Queue, Registry, SetSpec, TableSpec
from nightbeam.core.settings import Settings, load_settings
from nightbeam.monitor.app import create_app
from nightbeam.monitor.auth import Auth
from nightbeam.monitor.metrics import Machine
from nightbeam.monitor.read import Reader
from nightbeam.monitor.remote import Reprocessing

#: 2025-10-02T00:00:00Z, and what follows it.
T0 = 1_759_363_200.0
MJD0 = T0 / 86400.0 + 40587.0
TOKEN = "a-token-for-the-tests-alone"
ME = Owner("me", "here", 1, 1.0)


_ask = runpy.run_path(str(Path(__file__).resolve().parents[2] / "asgi.py"))["ask"]


@pytest.fixture
def ask() -> Callable[..., Any]:
    """Ask an application without a socket."""
    return _ask


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A site where nothing has happened yet."""
    told = {"state_dir": tmp_path / "state", "calib.output_dir": tmp_path / "constants"}
    return load_settings(overrides=told, environ={}).resolved()


@pytest.fixture(scope="session")
def once_filled(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Five groups: completed with calibrator, failed, in progress, pending, collecting; products of the first."""
    told = {"state_dir": tmp_path_factory.mktemp("filled") / "state"}
    settings = load_settings(overrides=told, environ={}).resolved()
    contimg = settings.contimg
    queue = Queue(str(contimg.queue_db))
    for number, subbands in enumerate((16, 16, 16, 16, 3)):
        name, at = group_id(number), T0 + 309.0 * number
        files = [FileFact(k, Path(f"/in/{name}_sb{k:02d}.hdf5"), 145_348_600, at + k) for k in range(subbands)]
        queue.record(GroupFact(name, MJD0 + 309.0 * number / 86400.0, dec_deg=33.0), files, now=at + 20)
    first = group_id(0)
    queue.claim(first, ME, now=T0 + 400)
    queue.set_calibrators(
        first, [{"name": "3C48 <b>", "ra_deg": 24.4, "dec_deg": 33.2, "sep_deg": 0.3, "weighted_flux": 12.5}]
    )
    queue.put_receipt(first, ME, "convert", {"ms": "x"}, seconds=60.0, now=T0 + 460)
    queue.put_performance(first, total_time=61.5, writer_type="direct-subband", now=T0 + 460)
    queue.complete(first, ME, now=T0 + 600)
    queue.claim(group_id(1), ME, now=T0 + 700)
    queue.fail(group_id(1), ME, "the imager failed", final=True, now=T0 + 800)
    queue.claim(group_id(2), Owner("0f0f0f0f-1111-4222-8333-444444444444", "here", 1, 1.0), now=T0 + 900)
    queue.heartbeat(group_id(2), Owner("0f0f0f0f-1111-4222-8333-444444444444"), step="image", now=T0 + 950)
    registry = Registry(str(contimg.registry_db), check=lambda _path: None)
    table = settings.state_dir / "ms" / "caltables" / "a_bpcal"
    table.mkdir(parents=True)
    (table / "table.dat").write_text("rows")
    registry.register_set(
        SetSpec("a", (TableSpec(table, "BP", 30),), MJD0 - 0.02, MJD0 + 0.02, calibrator="3C48", group_id=first),
        now=T0 + 500,
    )
    products = Products(str(contimg.products_db))
    images = settings.state_dir / "ms" / "images"
    images.mkdir(parents=True)
    (images / f"{first}.png").write_bytes(b"\x89PNG image")
    products.upsert_ms(Path("/ms/a.ms"), stage="imaged", status="done", group_id=first, cal_applied=1, now=T0 + 590)
    products.upsert_image(
        images / f"{first}.fits", ms_path=Path("/ms/a.ms"), group_id=first, noise_jy=0.012, pbcor=1,
        mid_mjd=MJD0, beam_major_arcsec=12.5, files={"png": str(images / f"{first}.png")}, now=T0 + 590,
    )  # fmt: skip
    qa = settings.state_dir / "qa" / first
    qa.mkdir(parents=True)
    for name, data in (("image.png", b"\x89PNG qa"), ("metrics.json", b"{}"), ("plot.svg", b"<svg/>")):
        (qa / name).write_bytes(data)
        products.put_qa_artifact(first, name, qa / name, now=T0 + 595)
    return settings


@pytest.fixture
def filled(once_filled: Settings, settings: Settings) -> Settings:
    """A copy of the filled site, of each test its own."""
    shutil.copytree(once_filled.state_dir, settings.state_dir)
    there, here = str(once_filled.state_dir), str(settings.state_dir)
    for name, table, columns in (
        ("products", "images", ("path", "files")),
        ("products", "qa_artifacts", ("path",)),
        ("cal_registry", "caltables", ("path",)),
    ):
        with closing(sqlite3.connect(settings.state_dir / f"{name}.sqlite3")) as raw:
            changes = ", ".join(f"{column} = replace({column}, ?1, ?2)" for column in columns)
            raw.execute(f"UPDATE {table} SET {changes}", (there, here))
            raw.commit()
    return settings


def group_id(number: int) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(T0 + 309.0 * number, UTC).strftime("%Y-%m-%dT%H:%M:%S")


@pytest.fixture
def reader(filled: Settings) -> Iterator[Reader]:
    found = Reader(filled, clock=lambda: T0 + 1000.0)
    yield found
    found.close()


@pytest.fixture(scope="session")
def once_made(once_filled: Settings) -> Any:
    """An application, which takes longer to make than a test."""
    return create_app(once_filled, auth=Auth(TOKEN), share_s=0.0)


@pytest.fixture
def app(once_made: Any, filled: Settings, reader: Reader) -> Any:
    """The application of this test's site."""
    told = {
        "settings": filled, "reader": reader, "auth": Auth(TOKEN), "machine": Machine(filled.state_dir),
        "reprocessing": Reprocessing(filled, reader),
    }  # fmt: skip
    for name, value in told.items():
        setattr(once_made.state, name, value)
    once_made.state.instruments.watch(reader, told["machine"])
    return once_made


@pytest.fixture
def get(app: Any) -> Callable[..., Any]:
    def asked(target: str, **told: Any) -> Any:
        return _ask(app, target, **told)

    return asked
