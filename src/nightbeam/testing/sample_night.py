"""A night that is well under way in the databases of all five systems, made up: for pages and lists to be looked at.

Nothing of it was observed, and nothing is calibrated or imaged for it; rows are written as the steps write them.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from nightbeam.calib.files import Payload, entry_path, write_entry
from nightbeam.catalog import FileFact, GroupFact, Logbook, Owner, Products, Queue, Registry, SetSpec, TableSpec
from nightbeam.catalog.remote import upsert
from nightbeam.catalog.schema import MosaicTable, NightTable, QaScoreTable, QuarantineTable
from nightbeam.core.settings import Settings
from nightbeam.core.times import datetime_from_mjd, iso_z, mjd_from_datetime
from nightbeam.cxi.health import write_status
from nightbeam.cxi.ledger import status_path
from nightbeam.elog.model import Resource
from nightbeam.scans.model import PipelineResult, RejectedCalibration, ScanFailure
from nightbeam.scans.report import failures_path, write_failures

__all__ = ["HOSTILE", "SampleNight", "sample_night", "sample_settings"]

#: A page that lets this through as it is has a hole.
HOSTILE: Final = "<script>alert('x')</script>\"'&<img src=x onerror=alert(1)>"
#: Seconds from one group to the next.
_CADENCE_S: Final = 309.24
_FLOW_RUN: Final = "0f3cf3a1-5d0a-4d3e-9a43-{:012d}"
_EXPERIMENT: Final = "mfxl1033223"


@dataclass(frozen=True, slots=True)
class SampleNight:
    """What was made: the settings that find it, and who is in which state."""

    settings: Settings
    now: datetime
    groups: dict[str, str]
    mosaic: str

    def group(self, what: str) -> str:
        """Return the group that shows something: ``failed``, ``waiting``, ``in_progress``, ``late`` and so on."""
        return next(group for group, kind in self.groups.items() if kind == what)


def sample_settings(state_dir: Path) -> Settings:
    """Return settings under which nothing outside ``state_dir`` is looked at."""
    state = state_dir.absolute()
    return Settings.model_validate(
        {
            "state_dir": state,
            "calib": {"experiment": _EXPERIMENT, "output_dir": state / "constants"},
            "cxi": {"config": state / "writer.yaml", "output_dir": state / "cxi"},
        }
    ).resolved()


def sample_night(
    state_dir: Path, *, now: datetime | None = None, groups: int = 24, hostile: bool = False
) -> SampleNight:
    """Fill the databases below ``state_dir`` with a night, and lay small pictures and logs beside them.

    Parameters
    ----------
    state_dir
        A directory of nobody else.
    now
        The present of the night; the last group is half an hour old.
    groups
        How many; 16 at least, for each state has one.
    hostile
        Whether errors, names and logs are such that a page which does not escape them runs them; more is broken, too.
    """
    now = datetime.now(UTC).replace(microsecond=0) if now is None else now
    settings = sample_settings(state_dir)
    maker = _Maker(settings, now, max(groups, 16), hostile)
    with maker.queue.database.kept_open(), maker.products.database.kept_open(), maker.sets.database.kept_open():
        kinds = maker.queue_and_products()
        maker.registry()
        mosaic = maker.mosaics()
    maker.logbook()
    maker.constants()
    maker.scans()
    maker.frames()
    return SampleNight(settings, now, kinds, mosaic)


class _Maker:
    def __init__(self, settings: Settings, now: datetime, groups: int, hostile: bool) -> None:
        c = settings.contimg
        assert c.queue_db
        assert c.registry_db
        assert c.products_db
        assert c.output_dir
        self.settings, self.now, self.count = settings, now, groups
        self.state, self.out, self.incoming = settings.state_dir, c.output_dir, settings.state_dir / "incoming"
        self.words = f" {HOSTILE}" if hostile else ""
        for directory in (self.state, self.out, self.incoming):
            directory.mkdir(parents=True, exist_ok=True)
        self.queue, self.products = Queue(c.queue_db), Products(c.products_db)
        self.sets = Registry(c.registry_db, check=lambda _path: None)
        self.last = now - timedelta(minutes=6)

    # -- groups -------------------------------------------------------------------------------------------------

    def begins(self, n: int) -> datetime:
        """Return when group ``n`` begins; the last one is just coming in."""
        return self.last - timedelta(seconds=_CADENCE_S * (self.count - 1 - n))

    def queue_and_products(self) -> dict[str, str]:
        """Make the groups, oldest first, and return which is of which kind."""
        ends = {
            self.count - 1: "collecting", self.count - 2: "pending", self.count - 3: "waiting",
            self.count - 4: "in_progress", 2: "failed", 4: "late", 5: "retried", 6: "partial", 7: "lost",
            8: "timed out", 9: "borrowed", 10: "duplicate", 3: "calibrator",
        }  # fmt: skip
        kinds = {}
        for n in range(self.count):
            begin = self.begins(n)
            group_id = begin.strftime("%Y-%m-%dT%H:%M:%S")
            kinds[group_id] = kind = ends.get(n, "completed")
            self._group(n, group_id, kind, begin)
        bad = self.incoming / f"{next(iter(kinds))}_sb03.hdf5"
        self.queue.record_bad_file(bad, f"the file has 0 bytes{self.words}", size_bytes=0, now=self.seconds(-7200))
        return kinds

    def seconds(self, offset_s: float) -> float:
        return self.now.timestamp() + offset_s

    def _group(self, n: int, group_id: str, kind: str, begin: datetime) -> None:
        fact = GroupFact(
            group_id,
            mjd_from_datetime(begin),
            mid_mjd=mjd_from_datetime(begin + timedelta(seconds=154)),
            dec_deg=self.dec(n),
        )
        came = begin.timestamp() + 318.0
        missing = {"collecting": 5, "partial": 2, "timed out": 9}.get(kind, 0) + (kind == "late")
        for subband in range(16 - missing):
            after = 0.8 * subband + (37.0 if subband == 11 else 0.0)
            self._file(fact, subband, came + after)
        if kind == "duplicate":
            again = self.incoming / "again" / f"{group_id}_sb04.hdf5"
            self.queue.record(fact, [FileFact(4, again, 145_348_600)], now=came + 60)
        if kind in ("collecting", "pending"):
            return
        if kind == "timed out":
            self.queue.expire_collecting(600.0, now=came + 900.0)
            return
        if missing:
            self.queue.reprocess(group_id, force=True, now=came + 640)
        calibrated = [
            {"name": "0137+331", "ra_deg": 24.4221, "dec_deg": 33.1597, "sep_deg": 0.31, "weighted_flux": 14.2}
        ]
        self.queue.set_calibrators(group_id, calibrated if n % 8 == 3 else [])
        self._work(n, group_id, kind, came + 30.0)
        if kind == "late":
            self._file(fact, 15, came + 4000.0)

    def _file(self, fact: GroupFact, subband: int, when: float) -> None:
        path = self.incoming / f"{fact.group_id}_sb{subband:02d}.hdf5"
        self.queue.record(fact, [FileFact(subband, path, 145_348_600 + 1000 * subband, when)], now=when)

    def _owner(self, n: int, attempt: int = 1) -> Owner:
        return Owner(_FLOW_RUN.format(100 * n + attempt), "sky1.example.org", 41000 + n, 1.0)

    def _work(self, n: int, group_id: str, kind: str, at: float) -> None:
        owner = self._owner(n)
        self.queue.claim(group_id, owner, now=at)
        self._log(group_id, "convert", ["reading 16 subbands", "rows 111744, channels 768"])
        if kind == "waiting":
            self.queue.heartbeat(group_id, owner, step="calibrate", now=at + 41)
            reason = "no calibration for Dec +16.1 holds at the time of these data"
            self.queue.wait_for_gains(group_id, owner, reason, now=at + 42)
            return
        if kind == "in_progress":
            for step, seconds in (("convert", 41.2), ("calibrate", 0.4), ("apply", 22.8)):
                at += seconds
                self.queue.put_receipt(group_id, owner, step, {"group_id": group_id}, seconds=seconds, now=at)
            self._log(group_id, "image", [f"cycle {k}: {100 * k} components" for k in range(1, 260)])
            self.queue.heartbeat(group_id, owner, step="image", now=self.seconds(-12))
            return
        if kind == "failed":
            for attempt in (1, 2, 3):
                self._fail(n, group_id, attempt, at + 70.0 * attempt)
            return
        if kind in ("retried", "lost"):
            self._fail(n, group_id, 1, at + 70.0, lost=kind == "lost")
            owner, at = self._owner(n, 2), at + 80
            self.queue.claim(group_id, owner, now=at)
        self._finish(n, group_id, kind, owner, at)

    def _fail(self, n: int, group_id: str, attempt: int, at: float, *, lost: bool = False) -> None:
        owner = self._owner(n, attempt)
        self.queue.claim(group_id, owner, now=at - 60.0)
        self.queue.heartbeat(group_id, owner, step="image", now=at)
        if lost:
            self.queue.recover(lambda row: row.group_id == group_id, now=at)
            return
        error = f"the imager ended with 137: out of memory at cycle {attempt} (asked for 6.2 GB){self.words}"
        self._log(group_id, "image", ["tclean begins", f"ERROR {error}"])
        self.queue.fail(group_id, owner, error, now=at)

    def _log(self, group_id: str, step: str, lines: list[str]) -> None:
        text = "\n".join(f"2026-11-21 03:15:{k % 60:02d} INFO {line}{self.words}" for k, line in enumerate(lines))
        _put(self.state / "logs" / "groups" / group_id / f"{step}.log", text + "\n")

    def _finish(self, n: int, group_id: str, kind: str, owner: Owner, at: float) -> None:
        stages = {
            "convert": 41.0 + n % 7, "calibrate": 88.0 if kind == "calibrator" else 0.4, "apply": 23.0,
            "image": 61.0 + 3 * (n % 5), "record": 0.3, "qa": 9.5,
        }  # fmt: skip
        for step, seconds in stages.items():
            at += seconds
            self.queue.put_receipt(
                group_id, owner, step, self._receipt(n, group_id, step, kind), seconds=seconds, now=at
            )
            self._log(group_id, step, [f"{step} of {group_id}", "done"])
        self.queue.put_performance(
            group_id, load_time=18.2, phase_time=9.1, write_time=13.0, total_time=stages["convert"],
            writer_type="direct", calibrate_time=stages["calibrate"], apply_time=stages["apply"],
            image_time=stages["image"], group_time=sum(stages.values()), now=at,
        )  # fmt: skip
        self.queue.complete(group_id, owner, now=at)
        self._products(n, group_id, kind, at)

    def _receipt(self, n: int, group_id: str, step: str, kind: str) -> dict[str, Any]:
        if step != "calibrate":
            return {"group_id": group_id}
        name, age = self.set_of(n, kind)
        suffixes = ("kcal", "bpcal", "gpcal", "2gcal")
        return {
            "group_id": group_id, "set_name": name, "kinds": ["K", "BP", "GP", "2G"], "age_days": age,
            "tables": [str(self.out / "caltables" / f"{name}_{suffix}") for suffix in suffixes],
            "mid_mjd": self.mjd(n) - age, "borrowed": kind == "borrowed", "solved": kind == "calibrator",
            "calibrator": "0137+331", "rejected": None, "seconds": 0.4,
        }  # fmt: skip

    def dec(self, n: int) -> float:
        return 33.2 if n < self.count - 6 else 16.1

    def mjd(self, n: int) -> float:
        return mjd_from_datetime(self.begins(n) + timedelta(seconds=154))

    def set_of(self, n: int, kind: str) -> tuple[str, float]:
        """Return the set that a group was calibrated with, and how many days older it is."""
        if kind == "borrowed":
            return "2026_yesterday_0137+331", 1.02
        if self.dec(n) < 20.0:
            return "2026_tonight_2253+161", round(self.mjd(n) - self.mjd(3) + 0.45, 4)
        return "2026_tonight_0137+331", round(self.mjd(n) - self.mjd(3), 4)

    def _products(self, n: int, group_id: str, kind: str, at: float) -> None:
        ms, stem = self.out / f"{group_id}.ms", self.out / "images" / f"{group_id}.img"
        name, age = self.set_of(n, kind)
        borrowed, partial = int(kind == "borrowed"), int(kind == "partial")
        noise = 0.0131 * (4.2 if n == 13 else 1.0 + 0.05 * (n % 5))
        peak = 2.0 + (n * 0.37) % 3.0
        used = {"calibration_set": name, "cal_age_days": age, "cal_borrowed": borrowed, "partial": partial}
        ra = (15.0 + n * 1.288) % 360.0
        self.products.upsert_ms(
            ms, start_mjd=self.mjd(n) - 0.0018, mid_mjd=self.mjd(n), end_mjd=self.mjd(n) + 0.0018, processed_at=at,
            status="done", stage="imaged", cal_applied=1, imagename=str(stem), group_id=group_id, ra_deg=ra,
            dec_deg=self.dec(n), flagged_fraction=0.08 + 0.01 * (n % 4), n_rows=111_744, n_spw=16,
            writer_type="direct", version="0.1.0", now=at, **used,
        )  # fmt: skip
        fits = stem.with_name(f"{stem.name}.image.pbcor.fits")
        _put(fits, b"SIMPLE  =                    T" + b" " * 2850)
        png = stem.with_name(f"{stem.name}.png")
        _put(png, _sky(n))
        self.products.upsert_image(
            fits, ms_path=ms, now=at, beam_major_arcsec=31.4 + n % 3, beam_minor_arcsec=27.9, beam_pa_deg=12.0 + n,
            noise_jy=noise, noise_centre_jy=noise * 1.04, pbcor=1, group_id=group_id, mid_mjd=self.mjd(n), peak_jy=peak,
            dynamic_range=peak / noise, ra_deg=ra, dec_deg=self.dec(n), imsize=1024, cell_arcsec=5.0, freq_hz=1.405e9,
            bandwidth_hz=1.875e8, integration_s=309.2, version="0.1.0", sha256="0" * 64,
            files={"pbcor": str(fits), "png": str(png)}, parameters={"niter": 1000, "robust": 0.0}, **used,
        )  # fmt: skip
        directory = self.state / "qa" / group_id
        for number, figure in enumerate(
            ("image.png", "flags.png", "uv.png", "amplitudes.png", "bpcal.png", "gpcal.png")
        ):
            _put(directory / figure, _sky(n * 10 + number) if figure == "image.png" else _curve(n + number))
            self.products.put_qa_artifact(group_id, figure, directory / figure, now=at)
        _put(directory / "metrics.json", json.dumps({"noise_jy": noise}) + "\n")
        self.products.put_qa_artifact(group_id, "metrics.json", directory / "metrics.json", now=at)
        self._scores("group", group_id, noise, peak / noise, at)

    def _scores(self, kind: str, subject: str, noise: float, dynamic_range: float, at: float) -> None:
        loud = noise > 0.04
        rows = (
            ("noise", noise * 1e3, "mJy", 0.35 if loud else 0.9, "warn" if loud else "good",
             f"{noise * 1e3:.1f} mJy, above 40 mJy{self.words}" if loud else "below 40 mJy"),
            ("dynamic range", dynamic_range, None, 0.95, "good", "above 20"),
            ("flagged fraction", 0.09, None, 0.98, "good", "below 0.2"),
            ("flux scale", 1.6 if loud else 1.04, None, 0.1 if loud else 0.93, "bad" if loud else "good",
             "3 sources are 1.6 times brighter than in the catalogue"
             if loud else "7 sources agree with the catalogue"),
            ("astrometry", None, "arcsec", None, "unknown", "2 sources in common with the catalogue, 3 are needed"),
        )  # fmt: skip
        with self.products.database.write() as connection:
            for name, value, unit, score, verdict, reason in rows:
                values = {"value": value, "unit": unit, "score": score, "verdict": verdict, "reason": reason}
                key = {"kind": kind, "subject": subject, "name": name}
                upsert(connection, QaScoreTable, key, {**values, "created_at": at})

    # -- calibration --------------------------------------------------------------------------------------------

    def registry(self) -> None:
        """Register sets that hold now, held yesterday, were retired, and were turned down."""
        solved = self.mjd(3)
        plan = (
            ("2026_yesterday_0137+331", solved - 1.02, 33.2, "0137+331", None),
            ("2026_tonight_0137+331", solved, 33.2, "0137+331", None),
            ("2026_tonight_3C48_first", solved - 0.02, 33.2, "0137+331", f"antenna 24 was off source{self.words}"),
            ("2026_two_nights_ago_1459+716", solved - 1.9, 71.6, "1459+716", None),
            ("2026_tonight_2253+161", solved - 0.45, 16.1, "2253+161", None),
        )
        for name, mid, dec, calibrator, retired in plan:
            tables = []
            for order, (suffix, kind) in enumerate((("kcal", "K"), ("bpcal", "BP"), ("gpcal", "GP"), ("2gcal", "2G"))):
                path = self.out / "caltables" / f"{name}_{suffix}"
                _put(path / "table.dat", f"{name} {kind}")
                tables.append(TableSpec(path, kind, order, "0", "103"))
            spec = SetSpec(
                name, tuple(tables), mid - 0.5, mid + 0.5, mid_mjd=mid, dec_deg=dec, calibrator=calibrator,
                group_id=f"{datetime_from_mjd(mid):%Y-%m-%dT%H:%M:%S}", report={"snr": 41.0},
            )  # fmt: skip
            self.sets.register_set(spec, now=datetime_from_mjd(mid).timestamp() + 600)
            if retired is not None:
                self.sets.retire(name, retired)
        self.sets.register_failure(
            "2026_tonight_0521+166",
            f"phases of 31 of 96 antennas do not hold still: 44° rms, 30° is allowed{self.words}",
            calibrator="0521+166", mid_mjd=solved - 0.2, dec_deg=16.6, now=datetime_from_mjd(solved - 0.2).timestamp(),
        )  # fmt: skip

    # -- mosaics ------------------------------------------------------------------------------------------------

    def mosaics(self) -> str:
        """Make a mosaic that was built, one that failed and one that is planned, and the nights that led to them."""
        images = [image for image in self.products.images() if image.group_id]
        yesterday = self.now - timedelta(days=1)
        night = f"{yesterday:%Y-%m-%d}"
        name = f"night_{yesterday:%Y_%m_%d}_s0"
        directory = self.out / "mosaics"
        output = directory / f"{name}.fits"
        _put(output, b"SIMPLE  =                    T" + b" " * 2850)
        preview = directory / f"{name}.png"
        _put(preview, _sky(7, width=1200, height=300, sources=160))
        at = self.seconds(-6 * 3600)
        self._scores("mosaic", name, 0.0088, 1850.0, at)
        tiles = [image.path for image in images]
        faults = {
            2: {"code": "noise", "text": "noise 55.0 mJy is more than 5 times the median of the tiles"},
            5: {"code": "beam", "text": f"the beam is 40 % off the median{self.words}"},
        }
        verdicts: list[dict[str, Any]] = [
            {
                "path": path, "name": image.group_id, "accepted": k not in faults,
                "reasons": [faults[k]] if k in faults else [], "tile": {},
            }
            for k, (path, image) in enumerate(zip(tiles, images, strict=True))
        ]  # fmt: skip
        checks = [
            {"name": "coverage", "value": 0.81, "limit": 0.1, "passed": True, "text": "81 %", "ideal": 1.0},
            {
                "name": "noise_between_blocks", "value": 1.7, "limit": 2.0, "passed": True,
                "text": "at most 2", "ideal": 1.0,
            },
            {
                "name": "negative_pixels", "value": 0.012, "limit": 0.01, "passed": False,
                "text": "1.2 % of the pixels are below -5 sigma, 1 % is allowed", "ideal": 0.0,
            },
            {"name": "flux_ratio", "value": None, "limit": None, "passed": None, "text": "no catalogue was given"},
        ]  # fmt: skip
        built: dict[str, Any] = {
            "created_at": at, "built_at": at + 244, "status": "built", "method": "weighted",
            "tiles": "\n".join(tiles), "output_path": str(output), "plan": f"night_{yesterday:%Y_%m_%d}", "strip": 0,
            "start_mjd": mjd_from_datetime(yesterday) - 0.1, "mid_mjd": mjd_from_datetime(yesterday),
            "end_mjd": mjd_from_datetime(yesterday) + 0.1, "ra_deg": 29.5, "dec_deg": 33.2, "width": 11552,
            "height": 2706, "cell_arcsec": 5.0, "freq_hz": 1.405e9, "beam_major_arcsec": 33.4,
            "beam_minor_arcsec": 28.8, "beam_pa_deg": 14.0, "noise_jy": 0.00878, "peak_jy": 16.28,
            "tiles_used": len(tiles) - 2, "tiles_rejected": 2, "verdicts": json.dumps(verdicts),
            "checks": json.dumps(checks), "files": json.dumps({"image": str(output), "png": str(preview)}),
            "validation_issues": "negative pixels: 1.2 % of the pixels are below -5 sigma, 1 % is allowed",
            "version": "0.1.0",
        }  # fmt: skip
        failed = {
            "created_at": at - 86400, "status": "failed", "method": "weighted", "tiles": "", "plan": "night_before",
            "strip": 0,
            "mid_mjd": mjd_from_datetime(yesterday) - 1.0,
            "error": f"the disk was full: 0.3 GB a tile are needed{self.words}",
        }  # fmt: skip
        planned = {
            "created_at": self.seconds(-300), "status": "planned", "method": "weighted", "tiles": "\n".join(tiles[:4]),
            "plan": "by_hand", "strip": 0, "mid_mjd": self.mjd(12), "dec_deg": 33.2,
        }  # fmt: skip
        aside = self.out / "quarantine" / "old.ms"
        with self.products.database.write() as connection:
            for key, row in ((name, built), ("night_before_s0", failed), ("by_hand_s0", planned)):
                upsert(connection, MosaicTable, {"name": key}, row)
            for day, state, error in ((1, "done", None), (2, "failed", failed["error"]), (3, "empty", None)):
                key = f"{self.now - timedelta(days=day):%Y-%m-%d}"
                values = {"state": state, "tiles": 14 if state == "done" else 0, "attempts": 1 + (state == "failed")}
                upsert(connection, NightTable, {"night": key}, {**values, "updated_at": at, "error": error})
            upsert(
                connection, QuarantineTable, {"path": str(aside)},
                {"original_path": str(self.out / "old.ms"), "kind": "ms", "reason": "older than 30 days",
                 "size_bytes": 2_100_000_000, "moved_at": at, "state": "held", "ended_at": None},
            )  # fmt: skip
        assert night in name.replace("_", "-")
        return name

    # -- the other systems --------------------------------------------------------------------------------------

    def logbook(self) -> None:
        """Mirror two experiments, one list of which could not be read."""
        assert self.settings.elog.database
        file = Path(self.settings.elog.database.removeprefix("sqlite:///"))
        file.parent.mkdir(parents=True, exist_ok=True)
        book = Logbook(self.settings.elog.database)
        at = self.now - timedelta(minutes=24)
        begin = f"{self.now - timedelta(days=3):%Y-%m-%dT%H:%M:%S}+00:00"
        for key, name in ((_EXPERIMENT, _EXPERIMENT), ("cxilx0001", "cxilx0001")):
            book.put_experiment(
                {"_id": key, "name": name, "instrument": name[:3].upper(), "start_time": begin, "end_time": None,
                 "description": f"Serial crystallography{self.words}"},
                now=at,
            )  # fmt: skip
            entries = [
                {"_id": f"{key}-{k}", "content": f"run {k}: jet restarted, hits good{self.words}", "author": "observer",
                 "insert_time": f"{at - timedelta(minutes=7 * k):%Y-%m-%dT%H:%M:%S}+00:00", "run_num": 40 + k}
                for k in range(9)
            ]  # fmt: skip
            book.put_entries(key, entries, full=True, now=at)
            book.put_runs(key, [{"_id": f"{key}-r{k}", "num": 40 + k, "begin_time": begin} for k in range(6)], now=at)
        book.failed(
            "cxilx0001", Resource.FILES, f"the service answered 503{self.words}", now=self.now - timedelta(minutes=4)
        )

    def constants(self) -> None:
        """Lay the constants of two runs; where all is hostile also a file that cannot be used."""
        directory = self.settings.calib.output_dir
        directory.mkdir(parents=True, exist_ok=True)
        for run in (41, 42):
            document = {"_id": f"64{run:022d}", "ctype": "pedestals", "run": 30, "run_end": "end", "run_orig": 30}
            array = Payload("pedestals", f"cdb_{_EXPERIMENT}", document, np.zeros((3, 8, 8), np.float32))
            write_entry(
                entry_path(directory, _EXPERIMENT, run), {"epix10k2M": "epix10k2M_000001"}, {"epix10k2M": [array]}
            )
        if self.words:
            _put(entry_path(directory, _EXPERIMENT, 40), b"half a file")

    def scans(self) -> None:
        """Say what the scan calibrator would: eleven scans done, one damaged, loads that cannot be used."""
        output = self.settings.scans.output_dir
        assert output is not None
        assert self.settings.scans.input_dir is not None
        self.settings.scans.input_dir.mkdir(parents=True, exist_ok=True)
        l1 = output / "2026-11-20.zarr"
        l1.mkdir(parents=True, exist_ok=True)
        failure = ScanFailure(
            7, "InputError", "read", "load", f"chunk 0.3 of counts has 812 of 4096 bytes{self.words}", elapsed_s=0.4
        )
        rejected = RejectedCalibration(3, "CalibrationError", "resolve", "the hot load is colder than the cold one")
        write_failures(
            failures_path(l1), PipelineResult(failures=(failure,), rejected=(rejected,)), run_id="r1",
            store=self.settings.scans.input_dir / l1.name, output=l1, started=iso_z(self.now - timedelta(hours=3)),
            finished=iso_z(self.now - timedelta(minutes=2)),
        )  # fmt: skip
        water = [
            {
                "at": iso_z(self.now - timedelta(minutes=14 * (11 - k))), "store": "2026-11-20", "scan": k,
                "pwv_mm": 1.1 + 0.05 * math.sin(k), "source": "cal",
            }
            for k in range(11)
        ]  # fmt: skip
        beat = {
            "at": iso_z(self.now - timedelta(seconds=20)), "pid": 1, "stores": 1, "done": 11, "skipped": 2, "failed": 1,
            "backlog": 1, "writing": 1, "seconds": {"load": 0.8, "calibrate": 1.9, "write": 0.6}, "water": water,
            "last_scan": "2026-11-20.zarr/12",
            "last_error": f"scan 7: chunk 0.3 of counts is cut{self.words}", "problems": [],
        }  # fmt: skip
        _put(output / "scan-calibrator.json", json.dumps(beat, indent=1) + "\n")

    def frames(self) -> None:
        """Say what the CXI writer would, and lay a few of its files."""
        output = self.settings.cxi.output_dir
        assert output is not None
        output.mkdir(parents=True, exist_ok=True)
        counters = {
            "batches_received": 812, "events_received": 25984, "total_events_written": 3120,
            "total_events_filtered": 22800, "buffer_size": 64, "events_in_flight": 0, "chunks_written": 4,
            "peaks_written": 84_240, "bytes_written": 3_400_000_000, "events_per_s": 118.2, "queue_size": 3,
            "hit_rate": 0.1225, "events_rejected": {"wrong shape": 4}, "events_lost": {}, "workers": 2,
            "started": iso_z(self.now - timedelta(minutes=31)),
            "last_file": f"peaknet_cxi_{_EXPERIMENT}_r0042_0003.cxi",
        }  # fmt: skip
        runs = [
            {"experiment": _EXPERIMENT, "run": run, "events": events, "hits": hits, "peaks": 27 * hits,
             "since": iso_z(self.now - timedelta(minutes=ago)), "until": iso_z(self.now - timedelta(minutes=ago - 12))}
            for run, events, hits, ago in ((42, 12984, 1900, 12), (41, 13000, 1220, 31))
        ]  # fmt: skip
        status = {
            "runs": runs,
            "state": "running", "ended_by": None, "problems": [f"one batch had no photon energy{self.words}"], "pid": 1,
            "host": "daq-mfx-mon02", "version": "0.1.0", "updated": iso_z(self.now - timedelta(seconds=3)),
            "config": str(self.settings.cxi.config), "config_sha256": "0" * 64,
            "queue": {"name": "peaknet", "namespace": "peaknet-pipeline"}, "health_port": None, "counters": counters,
            "name_template": None, "producers": {}, "producers_forgotten": {},
        }  # fmt: skip
        write_status(status_path(output, "peaknet_cxi"), status)
        for k in range(4):
            _put(output / f"peaknet_cxi_{_EXPERIMENT}_r0042_{k:04d}.cxi", b"\x89HDF\r\n\x1a\n")


def _put(path: Path, content: bytes | str) -> None:
    """Write a file, without waiting for the disk: it is all made up anyway."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def _sky(seed: int, *, width: int = 160, height: int = 160, sources: int = 9) -> bytes:
    """Return a small picture of noise and a few sources."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    sky = random.normal(26.0, 9.0, (height, width))
    for _ in range(sources):
        y0, x0, flux = random.uniform(4, height - 4), random.uniform(4, width - 4), random.exponential(120.0)
        sky += flux * np.exp(-((y - y0) ** 2 + (x - x0) ** 2) / 6.0)
    return _png(np.clip(sky, 0, 255).astype(np.uint8))


def _curve(seed: int, *, width: int = 200, height: int = 120) -> bytes:
    """Return a small picture of a curve."""
    picture = np.full((height, width), 250, np.uint8)
    x = np.arange(width)
    y = (height / 2 + height / 3 * np.sin(x / (6.0 + seed % 7))).astype(int)
    picture[y, x] = picture[np.minimum(y + 1, height - 1), x] = 40
    return _png(picture)


def _png(grey: NDArray[np.uint8]) -> bytes:
    """Return a grey picture (ny, nx) as PNG (W3C, PNG specification, third edition)."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = grey.shape
    lines = b"".join(b"\0" + row.tobytes() for row in grey)
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
