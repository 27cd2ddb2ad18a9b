"""The quality of a group: recorded as a whole, made again from what is on disk, shown by a command."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nightbeam.catalog import FileFact, GroupFact, Owner, SetSpec, TableSpec
from nightbeam.cli import main
from nightbeam.contimg import TOOLS, Site, Tools, make_quality, quality_of
from nightbeam.contimg.model import CalibrateReceipt
from nightbeam.contimg.quality import calibration_use, record_quality, tables_or_reason
from nightbeam.contimg.tools import _catalogue
from nightbeam.core.errors import BusyError, MissingError
from nightbeam.core.settings import Settings
from nightbeam.qa import CalibrationUse, Grade, QaArtifact, QaReport, Score, Unread

G = "2025-10-02T01:02:03"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NIGHTBEAM_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setattr("nightbeam.catalog.registry.check_table", lambda path: None)
    return Site.from_settings(Settings(state_dir=tmp_path / "state"))


def report_of(site: Site, *names: str, verdict: Grade = Grade.GOOD) -> QaReport:
    folder = site.qa_dir() / G
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text("x")
    score = Score("noise", 5.0, "mJy/beam", 1.0 if verdict is Grade.GOOD else 0.0, verdict, "the noise is 5 mJy/beam")
    return QaReport(tuple(QaArtifact(G, name, folder / name) for name in names), (score,))


def register(site: Site, **said: Any) -> tuple[str, ...]:
    path = site.output_dir / "caltables" / "x_bpcal"
    path.mkdir(parents=True)
    spec = SetSpec("calset_a", (TableSpec(path, "BP", 30),), 1.0, 2.0, mid_mjd=1.5, dec_deg=33.0, **said)
    site.registry().register_set(spec)
    return (str(path),)


def run(*argv: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(argv))
    return int(ended.value.code or 0)


def test_what_an_earlier_report_had_and_this_one_has_not_is_gone(site: Site):
    record_quality(site, G, report_of(site, "old.png", "metrics.json"))
    site.products().put_qa_artifact(G, "other", site.state_dir / "other.txt")
    (site.state_dir / "other.txt").write_text("not ours to remove")
    record_quality(site, G, report_of(site, "new.png", "metrics.json", verdict=Grade.BAD))
    assert sorted(p.name for p in (site.qa_dir() / G).iterdir()) == ["metrics.json", "new.png"]
    assert {row.name for row in site.products().qa_artifacts(G)} == {"metrics.json", "new.png"}
    assert [score.verdict for score in site.products().scores("group", G)] == ["bad"]
    assert (site.state_dir / "other.txt").exists()


def test_tables_that_a_set_no_longer_has_are_a_reason_and_retired_ones_still_serve(site: Site):
    paths = register(site)
    site.registry().retire("calset_a", "old")
    rows = tables_or_reason(site, "calset_a", paths)
    assert [row.path for row in rows] == list(paths)
    gone = tables_or_reason(site, "calset_a", ("/x_gacal",))
    assert isinstance(gone, Unread)
    assert "no longer has /x_gacal" in gone.reason
    assert isinstance(tables_or_reason(site, None, ()), Unread)


def test_the_use_of_a_calibration_knows_what_its_solution_said(site: Site):
    register(site, report={"corrected_over_model": 1.02, "coherence": 0.99})
    used = CalibrateReceipt(G, "calset_a", age_days=-0.25, borrowed=True)
    assert calibration_use(site, used) == CalibrationUse("calset_a", 6.0, borrowed=True, ratio=1.02)
    assert isinstance(calibration_use(site, CalibrateReceipt(G, None)), Unread)


@dataclasses.dataclass
class Asked:
    """Plays the tools that quality is made with, and remembers what it was told."""

    site: Site
    image: bool = True
    told: dict[str, Any] = dataclasses.field(default_factory=dict)

    def finished_image(self, stem: Path) -> Any:
        if not self.image:
            raise MissingError(f"no image {stem}")
        return SimpleNamespace(stem=stem)

    def write_qa(self, site: Site, group_id: str, **told: Any) -> QaReport:
        self.told = told
        return report_of(site, "image.png")

    def tools(self) -> Tools:
        return dataclasses.replace(TOOLS, finished_image=self.finished_image, write_qa=self.write_qa)


def test_a_group_whose_receipts_are_gone_is_judged_by_the_row_of_its_image(site: Site):
    paths = register(site)
    site.products().upsert_image(
        Path("/i/a.fits"), ms_path=site.ms_path(G), group_id=G, calibration_set="calset_a", cal_age_days=0.1,
        cal_borrowed=1,
    )  # fmt: skip
    asked = Asked(site)
    make_quality(site, G, tools=asked.tools())
    assert [row.path for row in asked.told["tables"]] == list(paths)
    assert asked.told["calibration"] == CalibrationUse("calset_a", pytest.approx(2.4), borrowed=True)
    assert asked.told["subbands"] is None
    assert asked.told["ms"] == site.ms_path(G)
    assert quality_of(site, G)["verdict"] == "good"


def test_a_group_with_a_measurement_set_alone_is_judged_without_its_image(site: Site):
    site.ms_path(G).mkdir(parents=True)
    asked = Asked(site, image=False)
    make_quality(site, G, tools=asked.tools())
    assert isinstance(asked.told["product"], Unread)
    assert isinstance(asked.told["tables"], Unread)


def test_a_group_of_which_nothing_is_left_cannot_be_judged(site: Site):
    with pytest.raises(MissingError, match="neither an image nor a Measurement Set"):
        make_quality(site, G, tools=Asked(site, image=False).tools())
    assert run("qa", "make", G) == 66
    assert run("qa", "make", "yesterday") == 65


def test_a_group_that_is_being_worked_on_is_left_alone(site: Site):
    queue = site.queue()
    queue.record(GroupFact(G, 60950.043, dec_deg=33.0), [FileFact(sb, Path(f"/in/{sb}")) for sb in range(16)])
    queue.claim(G, Owner("somebody"))
    with pytest.raises(BusyError):
        make_quality(site, G, tools=Asked(site).tools())


def test_the_command_shows_the_worst_first_with_the_reason(site: Site, capsys: pytest.CaptureFixture[str]):
    scores = [
        Score("flagged", 0.0, "", 1.0, Grade.GOOD, "nothing is flagged"),
        Score("flux_ratio", None, "", None, Grade.UNKNOWN, "no source of [the list] is there"),
        Score("noise", 120.0, "mJy/beam", 0.0, Grade.BAD, "the noise is 120 mJy/beam"),
    ]
    site.products().put_scores("mosaic", "night_2025_10_02", scores)
    site.products().put_qa_artifact("night_2025_10_02", "mosaic.png", site.qa_dir() / "night_2025_10_02" / "mosaic.png")
    assert run("qa", "show", "night_2025_10_02", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["kind"], said["verdict"]) == ("mosaic", "bad")
    assert [score["name"] for score in said["scores"]] == ["noise", "flux_ratio", "flagged"]
    assert said["artifacts"][0]["name"] == "mosaic.png"
    assert run("qa", "show", "night_2025_10_02") == 0
    shown = capsys.readouterr()
    assert shown.out.index("the noise is 120") < shown.out.index("[the list]") < shown.out.index("nothing is flagged")
    assert "mosaic.png" in shown.err
    assert run("qa", "show", "nobody") == 66


def test_sources_come_from_the_site_then_from_the_simulation_then_from_the_list(site: Site, tmp_path: Path):
    from nightbeam.simulate import SimulationSpec, simulate_subbands

    listed, name = _catalogue(site, G, 1.4e9)
    assert name == "the calibrator list"
    assert not isinstance(listed, Unread)
    assert len(listed) > 1000
    spec = SimulationSpec(antennas=2, channels=1, subbands=1, integrations=1, sources=3, noise=None)
    simulate_subbands(site.input_dir, spec)
    truth = json.loads((site.input_dir / "truth.json").read_text())
    group, source = truth["groups"][0]["group_id"], truth["sources"][0]
    listed, name = _catalogue(site, group, 2 * truth["reference_freq_hz"])
    assert name == "the truth of the simulation"
    assert not isinstance(listed, Unread)
    assert len(listed) == 3
    assert listed[0].flux_jy == pytest.approx(source["flux_jy"] * 2 ** source["spectral_index"])
    assert _catalogue(site, G, 1.4e9)[1] == "the calibrator list"  # not a group of that simulation
    own = tmp_path / "own.csv"
    own.write_text("name,ra_deg,dec_deg,flux_jy\na,10.0,20.0,1.5\n")
    told = dataclasses.replace(site, mosaic=site.mosaic.model_copy(update={"catalogue": own}))
    listed, name = _catalogue(told, group, 1.4e9)
    assert (name, [s.name for s in listed]) == ("own.csv", ["a"])  # type: ignore[union-attr]
    own.write_text("nonsense")
    assert isinstance(_catalogue(told, group, 1.4e9)[0], Unread)
