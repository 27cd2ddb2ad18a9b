"""The night's mosaics in the demo: made by the platform of the groups' images, beside the simulated sky."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from nightbeam.catalog import MosaicRow, Products
from nightbeam.core.errors import NightbeamError
from nightbeam.core.settings import Settings
from nightbeam.core.times import datetime_from_jd
from nightbeam.demo.compute import CERTAIN_SNR, flux_at, judge_sources
from nightbeam.demo.model import MosaicSource, RealCheck, SourceCheck
from nightbeam.demo.remote import run_to_end
from nightbeam.imaging import measure_sources
from nightbeam.imaging.files import open_image
from nightbeam.platform import PrefectApi
from nightbeam.simulate import SkySource, Truth

__all__ = ["MosaicDemo", "noise_at"]

DEPLOYMENT: Final = "nightly-mosaic/default"
#: Beside a calibrator of 16 Jy its sidelobes are what limits an image: there, sources must be so much brighter to be
#: certain, and the noise need not be the same everywhere.
_BESIDE_CALIBRATOR: Final = 2.0
_NOT_BESIDE_CALIBRATOR: Final = ("rms_variation",)


@dataclass(frozen=True, slots=True)
class MosaicDemo:
    """Where the rows are, what is true, and how many tiles the mosaics of the night must have."""

    products_url: str
    truth: Truth
    strips: tuple[int, ...]
    prefix: str = "night"

    @classmethod
    def of(cls, settings: Settings, truth: Truth, *, strips: tuple[int, ...]) -> MosaicDemo:
        """Return the demo of some settings, which are resolved."""
        return cls(str(settings.contimg.products_db), truth, strips, settings.contimg.mosaic.name_prefix)

    @property
    def night(self) -> str:
        """The UTC day of the first group."""
        return str(datetime_from_jd(self.truth.groups[0].mid_jd).date())

    @property
    def plan(self) -> str:
        """What its mosaics are planned as."""
        return f"{self.prefix}_{self.night.replace('-', '_')}"

    def check(
        self, api: PrefectApi, *, timeout_s: float = 240.0, say: Callable[[str], None] = lambda _: None
    ) -> tuple[tuple[RealCheck, ...], tuple[MosaicSource, ...]]:
        """Have the platform make the night, twice; compare what the mosaics show with what was simulated."""
        rows: list[RealCheck] = []
        sources: list[MosaicSource] = []
        try:
            rows.append(self._run(api, "the night is made", timeout_s))
            made = self._rows()
            rows += self._night(made)
            for row in made:
                say(f"mosaic: {row.output_path or row.error}")
                more, found = self._beside_the_truth(row)
                rows += more
                sources += found
            rows.append(self._run(api, "the night is made again", timeout_s))
            rows.append(self._unchanged(made))
        except NightbeamError as error:
            rows.append(RealCheck("the night's mosaics", "mosaics", str(error), False))
        return tuple(rows), tuple(sources)

    def _run(self, api: PrefectApi, what: str, timeout_s: float) -> RealCheck:
        ended = run_to_end(api, DEPLOYMENT, parameters={"night": self.night}, timeout_s=timeout_s)
        return RealCheck(what, "COMPLETED", ended.told, ended.completed)

    def _rows(self) -> list[MosaicRow]:
        return Products(self.products_url).mosaics(plan=self.plan)

    def _night(self, rows: Sequence[MosaicRow]) -> Iterator[RealCheck]:
        expected = ", ".join(f"{n} built" for n in self.strips)
        found = ", ".join(f"{row.tiles_used} {row.status}" for row in rows) or "none"
        yield RealCheck(f"tiles of the mosaics of {self.night}", expected, found, expected == found)
        for row in rows:
            verdicts = json.loads(row.verdicts or "[]")
            why = [f"{v['name']}: {r['text']}" for v in verdicts if not v["accepted"] for r in v["reasons"]]
            yield RealCheck(f"{row.name}: tiles that were rejected", "none", "; ".join(why) or "none", not why)

    def _beside_the_truth(self, row: MosaicRow) -> tuple[list[RealCheck], list[MosaicSource]]:
        if row.status != "built" or row.output_path is None:
            return [RealCheck(row.name, "built", row.error or row.status, False)], []
        calibrator = self._calibrator(row)
        asked = [
            check
            for check in json.loads(row.checks or "[]")
            if calibrator is None or check["name"] not in _NOT_BESIDE_CALIBRATOR
        ]
        failed = "; ".join(f"{check['name']}: {check['text']}" for check in asked if check["passed"] is not True)
        checks = [
            RealCheck(f"{row.name}: checks", f"{len(asked)} passed", failed or f"{len(asked)} passed", not failed)
        ]
        files = json.loads(row.files or "{}")
        gone = [path for path in files.values() if not Path(path).is_file()]
        checks.append(RealCheck(f"{row.name}: files", "there", f"{gone} are not there" if gone else "there", not gone))
        measured = self._measured(row, Path(files["noise"]), calibrator)
        problems = judge_sources([one.check for one in measured], calibrator=calibrator)
        found = "; ".join(problems) or f"{len(measured)} as they were"
        checks.append(RealCheck(f"{row.name}: the simulated sources", "as they were", found, not problems))
        return checks, measured

    def _calibrator(self, row: MosaicRow) -> str | None:
        """Return the calibrator on which the gains of one of a mosaic's tiles were solved, if there is one."""
        names = {v["name"] for v in json.loads(row.verdicts or "[]") if v["accepted"]}
        return next((g.calibrator for g in self.truth.groups if g.calibrator and g.group_id in names), None)

    def _measured(self, row: MosaicRow, noise_map: Path, calibrator: str | None) -> list[MosaicSource]:
        """Return every source that is certain to be seen where it lies, the brightest first."""
        certain_snr = CERTAIN_SNR * (1.0 if calibrator is None else _BESIDE_CALIBRATOR)
        freq_hz, reference_hz = float(row.freq_hz or 0.0), self.truth.reference_freq_hz
        noises = noise_at(noise_map, self.truth.sources)
        certain = [
            (source, true)
            for source, noise in zip(self.truth.sources, noises, strict=True)
            if (true := flux_at(source, freq_hz, reference_hz=reference_hz)) >= certain_snr * noise
        ]
        certain.sort(key=lambda pair: -pair[1])
        fits = measure_sources(
            Path(str(row.output_path)), [(s.ra_deg, s.dec_deg) for s, _ in certain], names=[s.name for s, _ in certain]
        )
        made = []
        for fit, (source, true) in zip(fits, certain, strict=True):
            check = SourceCheck(source.name, true, fit.found, math.nan, math.nan)
            if fit.found:
                check = replace(check, flux_ratio=fit.peak_jy / true, offset_beams=fit.offset_beams)
            made.append(MosaicSource(row.name, check))
        return made

    def _unchanged(self, before: Sequence[MosaicRow]) -> RealCheck:
        after = self._rows()
        same = [(row.id, row.name, row.built_at, row.sha256) for row in after] == [
            (row.id, row.name, row.built_at, row.sha256) for row in before
        ]
        found = "the same rows" if same else ", ".join(f"{row.name} {row.status}" for row in after)
        return RealCheck("made again, it costs nothing and doubles nothing", "the same rows", found, same)


def noise_at(noise_map: Path, sources: Sequence[SkySource]) -> list[float]:
    """Return the noise at the place of each source, Jy/beam; infinite where the mosaic shows nothing."""
    sky = open_image(noise_map)
    ny, nx = sky.data.shape
    found = []
    for source in sources:
        x, y = sky.to_pixel(source.ra_deg, source.dec_deg)
        inside = math.isfinite(x) and math.isfinite(y) and 0 <= round(x) < nx and 0 <= round(y) < ny
        noise = float(sky.data[round(y), round(x)]) if inside else math.nan
        found.append(noise if math.isfinite(noise) else math.inf)
    return found
