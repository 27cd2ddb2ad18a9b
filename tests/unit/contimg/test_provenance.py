"""Where products come from: what is written down, what is shown of it, and what is found changed."""

from __future__ import annotations

import hashlib
import json
import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nightbeam.catalog import MosaicRow, Owner, Registry, SetSpec, TableSpec
from nightbeam.catalog.model import ProvenanceInput
from nightbeam.contimg import Site
from nightbeam.contimg.checksums import InputSums, ends_digest
from nightbeam.contimg.lineage import Standing, configurations_in, nodes_of, trace, verify
from nightbeam.contimg.provenance import (
    configuration_of,
    note_image,
    note_mosaic,
    note_ms,
    note_ms_state,
    note_step,
    note_tables,
    working_as,
)
from nightbeam.core.errors import BusyError, MissingError
from nightbeam.core.settings import Settings
from nightbeam.rfi import FlagReport

G, CAL = "2025-10-02T01:02:03", "2025-10-02T00:40:00"
ME = Owner("flow-run-1")
#: SHA-256 of "abc" (FIPS 180-2, example B.1).
ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.fixture
def site(tmp_path: Path, contimg_databases: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setattr("nightbeam.catalog.registry.check_table", lambda path: None)
    settings = {"state_dir": tmp_path / "state", "contimg": contimg_databases}
    return Site.from_settings(Settings.model_validate(settings))


def written(path: Path, text: str = "abc") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def convert(site: Site, group: str) -> Path:
    """Leave a Measurement Set of two subbands, as the step does."""
    files = [written(site.input_dir / f"{group}_sb{n:02d}.hdf5", "abc") for n in range(2)]
    with InputSums(files) as sums:
        ms = written(site.ms_path(group) / "table.dat", f"ms of {group}").parent
    note_ms(site, group, ms, sums.result(), owner=ME, writer="direct-subband")
    site.products().upsert_ms(ms, group_id=group, stage="concatenated")
    return ms


def image(site: Site, group: str) -> Path:
    """Leave an image of a group, calibrated by a set that was solved on another."""
    ms, cal = convert(site, group), convert(site, CAL)
    table = written(site.output_dir / "caltables" / f"{CAL}_bpcal" / "table.dat", "gains").parent
    spec = SetSpec(f"calset_{CAL}", (TableSpec(table, "BP", 30),), 1.0, 2.0, group_id=CAL)
    tables = Registry(site.registry_url, check=lambda path: None).register_set(spec)
    note_tables(site, cal, tables, owner=ME)
    stem = site.image_stem(group)
    fits = written(stem.with_name(stem.name + ".image.pbcor.fits"))
    plain = written(stem.with_name(stem.name + ".image.fits"))
    product = SimpleNamespace(path=fits, sha256={fits.name: ABC, plain.name: ABC}, versions={"wsclean": "3.6"})
    note_ms_state(site, ms)
    note_image(site, group, ms, product, tables, owner=ME)
    note_step(site, group, "image", owner=ME, seconds=1.5)
    site.products().upsert_image(
        fits, ms_path=ms, group_id=group, calibration_set=spec.name, files={"pbcor": str(fits), "image": str(plain)}
    )
    return fits


def by_kind(node: Any) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for one in nodes_of(node):
        found.setdefault(one.kind, []).append(one)
    return found


def test_an_image_is_traced_to_the_bytes_of_its_subbands_and_of_those_of_its_calibrator(site: Site):
    fits = image(site, G)
    tree = trace(site, G)
    assert (tree.kind, tree.path, tree.digest, tree.run) == ("image", str(fits), ABC, "flow-run-1")
    ms, table = tree.inputs
    assert (ms.kind, ms.subject, table.kind, table.subject) == ("ms", G, "caltable", f"calset_{CAL}")
    assert [one.subject for one in table.inputs] == [CAL]
    subbands = by_kind(tree)["subband"]
    assert [Path(s.path).name for s in subbands] == [f"{g}_sb{n:02d}.hdf5" for g in (G, CAL) for n in range(2)]
    assert {(s.size_bytes, s.digest) for s in subbands} == {(3, ABC)}
    assert tree.programs["wsclean"] == "3.6"
    assert [(s["step"], s["seconds"], s["run"]) for s in tree.steps] == [("image", 1.5, "flow-run-1")]


@pytest.mark.parametrize("kind", ["a file beside it", "ms", "table"])
def test_every_product_is_known_by_its_path(site: Site, kind: str):
    fits = image(site, G)
    paths = {
        "a file beside it": fits.with_name(f"{G}.img.image.fits"),
        "ms": site.ms_path(G),
        "table": site.output_dir / "caltables" / f"{CAL}_bpcal",
    }
    wanted = {"a file beside it": "image", "ms": "ms", "table": "caltable"}
    assert trace(site, str(paths[kind])).kind == wanted[kind]


def test_what_nobody_knows_is_said(site: Site):
    with pytest.raises(MissingError, match="no product nothing"):
        trace(site, "nothing")


def test_all_is_the_same_until_a_file_changes_or_goes(site: Site):
    fits = image(site, G)
    assert {one.standing for one in nodes_of(verify(site, trace(site, G)))} == {Standing.SAME}
    written(site.input_dir / f"{G}_sb01.hdf5", "abd")
    (site.input_dir / f"{CAL}_sb00.hdf5").unlink()
    written(fits.with_name(f"{G}.img.image.fits"), "other")
    written(site.ms_path(CAL) / "table.dat", "another")
    odd = {
        Path(one.path).name: (one.standing, one.found)
        for one in nodes_of(verify(site, trace(site, G)))
        if one.standing is not Standing.SAME
    }
    assert odd == {
        f"{G}_sb01.hdf5": (Standing.CHANGED, f"{G}_sb01.hdf5 differs"),
        f"{CAL}_sb00.hdf5": (Standing.GONE, "no longer there"),
        fits.name: (Standing.CHANGED, f"{G}.img.image.fits differs"),
        f"{CAL}.ms": (Standing.CHANGED, f"{CAL}.ms differs"),
    }


def test_what_housekeeping_put_aside_is_gone_to_somewhere(site: Site, tmp_path: Path):
    fits = image(site, G)
    aside = tmp_path / "aside.fits"
    quarantine = site.products().quarantine
    quarantine.begin(aside, original=fits, kind="image", reason="old", size_bytes=3)
    fits.rename(aside)
    quarantine.become(aside, "held")
    tree = verify(site, trace(site, G))
    assert (tree.standing, tree.found) == (Standing.GONE, f"put aside to {aside}")


def test_an_old_image_does_not_show_the_history_of_a_newer_set_of_its_path(site: Site):
    image(site, G)
    ms = site.ms_path(G)
    written(site.input_dir / f"{G}_sb07.hdf5", "other data")
    with InputSums([site.input_dir / f"{G}_sb07.hdf5"]) as sums:
        written(ms / "table.dat", "another set")
    os.utime(ms / "table.dat", (time.time() - 5, time.time() - 5))  # after the image, which is made old for that
    site.products().origins.change(Path(trace(site, G).path), made_at=time.time() - 60)
    note_ms(site, G, ms, sums.result(), owner=Owner("a later run"), writer="direct-subband")
    below = trace(site, G).inputs[0]
    assert (below.path, below.inputs, below.run) == (str(ms), (), None)
    assert "made again since it was used here" in below.note
    assert [Path(one.path).name for one in trace(site, str(ms)).inputs] == [f"{G}_sb07.hdf5"]


def test_what_is_found_finished_keeps_its_maker_and_its_time(site: Site):
    fits = image(site, G)
    ms = site.ms_path(G)
    before = {path: site.products().origins.of(path) for path in (fits, ms)}
    product = SimpleNamespace(path=fits, sha256={fits.name: ABC}, versions={})
    inputs = site.products().origins.inputs(ms)
    tables = [table for table in site.registry().tables() if table.set_name == f"calset_{CAL}"]
    note_ms(site, G, ms, inputs, owner=Owner("another run"), writer="direct-subband")
    note_image(site, G, ms, product, tables, owner=Owner("another run"))
    assert {path: site.products().origins.of(path) for path in (fits, ms)} == before


def test_a_set_is_dated_by_when_it_was_written(site: Site):
    ms = convert(site, G)
    os.utime(ms / "table.dat", (1.7e9, 1.7e9))
    site.products().origins.change(ms, made_at=1.6e9)  # of an earlier set
    note_ms(site, G, ms, site.products().origins.inputs(ms), owner=ME, writer="direct-subband")
    found = site.products().origins.of(ms)
    assert found is not None
    assert found.made_at == 1.7e9


def test_the_maker_of_an_image_is_who_imaged_and_not_who_recorded(site: Site):
    fits = written(site.image_stem(G).with_suffix(".fits"))
    ms = convert(site, G)
    note_step(site, G, "image", owner=Owner("the run that imaged"), seconds=1.0)
    product = SimpleNamespace(path=fits, sha256={fits.name: ABC}, made_at=datetime.now(UTC) - timedelta(seconds=30))
    with working_as("the run that recorded"):
        note_image(site, G, ms, product, (), owner=Owner("the run that recorded"))
    found = site.products().origins.of(fits)
    assert found is not None
    assert found.run == "the run that imaged"
    assert found.made_at == pytest.approx(product.made_at.timestamp())
    assert found.configuration


def test_flags_are_said_though_the_settings_name_no_flagger_any_more(site: Site, monkeypatch: pytest.MonkeyPatch):
    report = FlagReport(
        engine="aoflagger", version="3.1", strategy="own.lua", strategy_sha256="x", before=0.1, after=0.2, seconds=1.0
    )
    monkeypatch.setattr("nightbeam.contimg.provenance.read_report", lambda ms: report)
    assert site.flag.engine == "none"
    (site.ms_path(G) / "FIELD").mkdir(parents=True)
    convert(site, G)
    assert trace(site, G).programs["aoflagger"] == "3.1, strategy own.lua"


def mosaic_of(site: Site, fits: Path) -> Path:
    path = written(site.mosaic_dir() / "night.image.fits")
    site.products().put_plan("night", [{"name": "night", "tiles": str(fits)}])
    row = site.products().mosaic("night")
    assert isinstance(row, MosaicRow)
    tile = SimpleNamespace(path=fits, sha256=ABC)
    product: Any = SimpleNamespace(path=path, tiles=[tile], sha256={path.name: ABC}, versions={})
    with working_as("flow-run-2"):
        note_mosaic(site, row, product, run="a process")
    site.products().mosaic_built("night", output_path=str(path))
    return path


def test_a_mosaic_says_of_which_tiles_it_is_and_whether_one_was_made_again(site: Site):
    fits = image(site, G)
    path = mosaic_of(site, fits)
    tree = trace(site, "night")
    assert (tree.path, tree.run, [tile.path for tile in tree.inputs]) == (str(path), "flow-run-2", [str(fits)])
    assert len(by_kind(tree)["subband"]) == 4
    assert verify(site, tree).inputs[0].standing is Standing.SAME
    other = written(fits, "another image")
    again = SimpleNamespace(path=other, sha256={other.name: hashlib.sha256(b"another image").hexdigest()})
    note_image(site, G, site.ms_path(G), again, (), owner=ME)
    tile = verify(site, trace(site, str(path))).inputs[0]
    assert (tile.standing, tile.found) == (Standing.CHANGED, "it was made again since it was used here")


def test_an_older_image_says_that_nothing_is_known_and_shows_what_its_row_tells(site: Site):
    fits = written(site.image_stem(G).with_suffix(".fits"))
    ms = written(site.ms_path(G) / "table.dat").parent
    site.products().upsert_ms(ms, group_id=G)
    site.products().upsert_image(fits, ms_path=ms, group_id=G, sha256=ABC)
    tree = verify(site, trace(site, G))
    assert "before provenance was kept" in tree.note
    assert tree.standing is Standing.SAME
    (below,) = tree.inputs
    assert (below.path, below.standing) == (str(ms), Standing.UNKNOWN)


def test_doing_it_again_replaces_what_was_written_down(site: Site):
    image(site, G)
    before = trace(site, G)
    image(site, G)
    again = trace(site, G)
    assert [one.path for one in nodes_of(again)] == [one.path for one in nodes_of(before)]
    assert len(configurations_in(site, again)) == 1


def test_settings_are_kept_once_for_each_content_and_without_passwords(site: Site):
    import dataclasses

    secret = dataclasses.replace(site, queue_url="postgresql://me:hunter2@db/queue")
    content = configuration_of(secret)
    assert "hunter2" not in json.dumps(content)
    assert content["image"]["niter"] == site.image.niter
    origins = site.products().origins
    digest = origins.put_configuration(content)
    assert (origins.put_configuration(content), origins.configuration(digest)) == (digest, content)
    assert origins.put_configuration({**content, "threads": 7}) != digest


# -- checksums ----------------------------------------------------------------------------------------------------


def test_a_subband_that_changes_while_it_is_read_is_refused_and_may_be_tried_again(tmp_path: Path):
    file = written(tmp_path / "a.hdf5")
    with InputSums([file]) as sums:
        written(file, "abcd")
    with pytest.raises(BusyError, match="changed while it was read"):
        sums.result()


def test_also_one_of_the_same_length(tmp_path: Path):
    file = written(tmp_path / "a.hdf5")
    os.utime(file, (1e9, 1e9))
    with InputSums([file]) as sums:
        written(file, "xyz")
    with pytest.raises(BusyError, match="changed while it was read"):
        sums.result()


def test_a_subband_that_goes_while_it_is_read_is_missing(tmp_path: Path):
    file = written(tmp_path / "a.hdf5")
    with InputSums([file]) as sums:
        file.unlink()
    with pytest.raises(MissingError):
        sums.result()


def test_an_error_of_the_reader_ends_the_thread(tmp_path: Path):
    file = written(tmp_path / "a.hdf5")
    sums = InputSums([file])
    with pytest.raises(ZeroDivisionError), sums:
        raise ZeroDivisionError
    assert not sums._thread.is_alive()


def test_the_digest_of_a_measurement_set_is_what_its_description_says(tmp_path: Path):
    big = b"a" * (1 << 16) + b"b" * (1 << 20) + b"c" * (1 << 16)
    (tmp_path / "ms" / "SUB").mkdir(parents=True)
    (tmp_path / "ms" / "table.f1").write_bytes(big)
    (tmp_path / "ms" / "SUB" / "table.dat").write_text("small")
    (tmp_path / "ms" / "table.lock").write_text("anything")
    ends = b"a" * (1 << 16) + b"c" * (1 << 16)
    wanted = hashlib.sha256(b"SUB/table.dat\x005\x00small" + f"table.f1\0{len(big)}\0".encode() + ends).hexdigest()
    assert ends_digest(tmp_path / "ms") == wanted


def test_of_two_inputs_of_one_path_the_first_counts(site: Site):
    twice = [ProvenanceInput("/a", "ms"), ProvenanceInput("/a", "caltable")]
    site.products().origins.put(Path("/p"), kind="image", inputs=twice, made_at=1.0)
    assert [one.role for one in site.products().origins.inputs(Path("/p"))] == ["ms"]


@pytest.mark.slow
def test_the_steps_write_down_what_a_measurement_set_became_of_calibration(site: Site, monkeypatch: pytest.MonkeyPatch):
    """A solver writes its model into the set: what is then held against it is the set with the model."""
    import dataclasses

    from nightbeam.catalog.model import FileFact, GroupFact
    from nightbeam.contimg import Tools, calibrate_or_find, claim_group, convert_group_step

    monkeypatch.setattr(Site, "registry", lambda self: Registry(self.registry_url, check=lambda path: None))
    file = written(site.input_dir / "a_sb00.hdf5")
    site.queue().record(GroupFact(G, 60950.0), [FileFact(0, file)], expected_subbands=1)

    def make(site: Site, files: Any, ms: Path, **_: Any) -> Any:
        written(ms / "table.dat", "data")
        return SimpleNamespace(
            ms=ms, writer_type="w", rows=1, n_spw=1, missing_subbands=(), start_mjd=1.0, mid_mjd=1.0, end_mjd=1.0,
            ra_deg=1.0, dec_deg=1.0, flagged_fraction=0.0, load_s=None, phase_s=None, write_s=None, total_s=1.0,
        )  # fmt: skip

    def solve(site: Site, ms: Path, calibrator: Any, prefix: Path, **_: Any) -> Any:
        written(ms / "table.dat", "data and model")
        table = written(prefix.with_name(f"{prefix.name}_bpcal") / "table.dat").parent
        known = SimpleNamespace(path=table, kind="BP", order_index=30, cal_field="0", refant="1")
        return SimpleNamespace(tables=[known], report=None)

    found = SimpleNamespace(name="3C48", weighted_flux=9.0, stored=lambda: {"name": "3C48"})
    tools = dataclasses.replace(Tools(), convert=make, solve=solve, match=lambda *_: [found])
    claim_group(site, G, owner=ME)
    convert_group_step(site, G, owner=ME, tools=tools)
    assert calibrate_or_find(site, G, owner=ME, tools=tools).solved
    tree = verify(site, trace(site, str(site.output_dir / "caltables" / f"{G}_0_bpcal")))
    assert [(one.kind, one.standing) for one in nodes_of(tree)] == [
        ("caltable", Standing.SAME), ("ms", Standing.SAME), ("subband", Standing.SAME),
    ]  # fmt: skip
    assert [step["step"] for step in tree.inputs[0].steps] == ["convert"]
