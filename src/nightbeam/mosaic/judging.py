"""Which tiles are good, and whether a mosaic is: verdicts with their reasons. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from statistics import median, median_low

import numpy as np

from nightbeam.mosaic.compute import (
    NEGATIVE_SIGMA,
    BlockFigures,
    CatalogueFigures,
    place_of,
    sampled_noise,
    split_strips,
)
from nightbeam.mosaic.model import (
    Check,
    MosaicOptions,
    Reason,
    ReasonCode,
    Strip,
    Tile,
    TileFacts,
    TileVerdict,
)

__all__ = ["judge_mosaic", "judge_tiles"]


def judge_tiles(facts: Sequence[TileFacts], options: MosaicOptions) -> list[TileVerdict]:
    """Judge every tile by what its files say and by how it compares with the others.

    Medians are those of the tiles whose files have no problem. A calibration set is compatible if the tile names one
    (or no tile does), and if it was applied within its validity or not longer than ``max_cal_age_days`` outside it;
    tiles of different sets may meet in a mosaic, because every calibrator's transit makes a new set.

    Returns
    -------
    list of TileVerdict
        In the order of ``facts``; each reason says what was found and what is wanted.
    """
    sound = [f.tile for f in facts if not f.problems]
    tests: list[Callable[[TileFacts], Iterable[Reason]]] = [
        lambda f: f.problems,
        lambda f: _correction(f.tile, options),
        lambda f: _dynamic_range(f.tile, options),
        _noise_test(sound, options),
        _beam_test(sound, options),
        _frequency_test(sound, options),
        _calibration_test(sound, options),
        lambda f: _astrometry(f, options),
        _strip_test(facts, options),
        _duplicate_test(facts),
    ]
    tests.append(_alignment_test(sound) if options.method == "mean" else _pixel_test(sound, options))
    verdicts = []
    for found in facts:
        reasons = tuple(reason for test in tests for reason in test(found))
        verdicts.append(TileVerdict(found.tile, not reasons, reasons))
    return verdicts


def _correction(tile: Tile, options: MosaicOptions) -> Iterator[Reason]:
    if not tile.pbcor and not options.include_unpbcor:
        yield Reason(ReasonCode.NOT_PBCOR, "it is not corrected for the primary beam")


def _dynamic_range(tile: Tile, options: MosaicOptions) -> Iterator[Reason]:
    found, least = tile.dynamic_range, options.min_dynamic_range
    if found is not None and not found >= least:
        yield Reason(ReasonCode.DYNAMIC_RANGE, f"its peak is {found:.2f} times its noise, at least {least:g} is wanted")


def _noise_test(sound: Sequence[Tile], options: MosaicOptions) -> Callable[[TileFacts], Iterator[Reason]]:
    noises = [t.noise_jy for t in sound if t.noise_jy is not None and t.noise_jy > 0]
    middle = median_low(noises) if noises else 0.0  # of two the lesser: else neither could be too noisy

    def test(facts: TileFacts) -> Iterator[Reason]:
        noise, most = facts.tile.noise_jy, options.max_noise_factor
        if facts.problems:
            return
        if noise is None or not (math.isfinite(noise) and noise > 0):
            yield Reason(ReasonCode.NOISE, f"its noise is {noise}: it cannot be weighed")
        elif noise > most * middle:
            yield Reason(
                ReasonCode.NOISE,
                f"its noise of {1e3 * noise:.3g} mJy/beam is {noise / middle:.1f} times the median of {len(noises)} "
                f"tiles ({1e3 * middle:.3g} mJy/beam), at most {most:g} times is wanted",
            )

    return test


def _beam_test(sound: Sequence[Tile], options: MosaicOptions) -> Callable[[TileFacts], Iterator[Reason]]:
    beams = [(t.beam_major_arcsec, t.beam_minor_arcsec) for t in sound if t.beam_major_arcsec and t.beam_minor_arcsec]
    major, minor = (median([b[k] or 0.0 for b in beams]) if beams else 0.0 for k in (0, 1))

    def test(facts: TileFacts) -> Iterator[Reason]:
        tile = facts.tile
        if facts.problems or not (tile.beam_major_arcsec and tile.beam_minor_arcsec):
            return
        off = max(abs(tile.beam_major_arcsec / major - 1.0), abs(tile.beam_minor_arcsec / minor - 1.0))
        if off > options.beam_tolerance:
            yield Reason(
                ReasonCode.BEAM,
                f"its beam of {tile.beam_major_arcsec:.1f} x {tile.beam_minor_arcsec:.1f} arcsec is {100 * off:.0f} % "
                f"from the median of {len(beams)} tiles ({major:.1f} x {minor:.1f}), at most "
                f"{100 * options.beam_tolerance:g} % is wanted",
            )

    return test


def _pixel_test(sound: Sequence[Tile], options: MosaicOptions) -> Callable[[TileFacts], Iterator[Reason]]:
    cells = [t.cell_arcsec for t in sound if t.cell_arcsec]
    middle = median(cells) if cells else 0.0

    def test(facts: TileFacts) -> Iterator[Reason]:
        cell = facts.tile.cell_arcsec
        if facts.problems or not cell or abs(cell / middle - 1.0) <= options.beam_tolerance:
            return
        yield Reason(
            ReasonCode.PIXEL_SIZE,
            f"its pixels of {cell:.4g} arcsec are {100 * abs(cell / middle - 1.0):.0f} % from the median of "
            f"{len(cells)} tiles ({middle:.4g} arcsec), at most {100 * options.beam_tolerance:g} % is wanted",
        )

    return test


def _frequency_test(sound: Sequence[Tile], options: MosaicOptions) -> Callable[[TileFacts], Iterator[Reason]]:
    known = [t.freq_hz for t in sound if t.freq_hz]
    middle = median(known) if known else 0.0

    def test(facts: TileFacts) -> Iterator[Reason]:
        freq = facts.tile.freq_hz
        if facts.problems or not known:
            return
        if not freq:
            yield Reason(ReasonCode.FREQUENCY, "its frequency is not known, that of others is")
        elif abs(freq - middle) > 1e6 * options.freq_tolerance_mhz:
            yield Reason(
                ReasonCode.FREQUENCY,
                f"its frequency of {freq / 1e6:.1f} MHz is {abs(freq - middle) / 1e6:.1f} MHz from the median of "
                f"{len(known)} tiles ({middle / 1e6:.1f} MHz), at most {options.freq_tolerance_mhz:g} MHz is wanted",
            )

    return test


def _calibration_test(sound: Sequence[Tile], options: MosaicOptions) -> Callable[[TileFacts], Iterator[Reason]]:
    sets = Counter(t.calibration_set for t in sound if t.calibration_set)
    commonest = sets.most_common(1)[0][0] if sets else None

    def test(facts: TileFacts) -> Iterator[Reason]:
        tile, most = facts.tile, options.max_cal_age_days
        if facts.problems or commonest is None:
            return
        if not tile.calibration_set:
            yield Reason(
                ReasonCode.CALIBRATION,
                f"it names no calibration set, {sets.total()} other tiles name one ({commonest})",
            )
        elif tile.cal_borrowed and not (tile.cal_age_days is not None and tile.cal_age_days <= most):
            age = "of unknown age" if tile.cal_age_days is None else f"{tile.cal_age_days:.2f} days old"
            yield Reason(
                ReasonCode.CALIBRATION,
                f"its calibration set {tile.calibration_set} was used outside its validity and is {age}, at most "
                f"{most:g} days is wanted",
            )
        elif options.same_calibration and tile.calibration_set != commonest:
            yield Reason(
                ReasonCode.CALIBRATION,
                f"its calibration set is {tile.calibration_set}, that of {sets[commonest]} tiles is {commonest}, and "
                "one set is wanted",
            )

    return test


def _astrometry(facts: TileFacts, options: MosaicOptions) -> Iterator[Reason]:
    if facts.problems or facts.astrometry_arcsec is None or facts.sources < options.min_sources:
        return
    error = facts.astrometry_error_arcsec or 0.0
    if facts.astrometry_arcsec - 3.0 * error > options.max_astrometry_arcsec:
        yield Reason(
            ReasonCode.ASTROMETRY,
            f"its {facts.sources} sources of the catalogue are {facts.astrometry_arcsec:.2f} +- {error:.2f} arcsec "
            f"from their places, at most {options.max_astrometry_arcsec:g} arcsec is wanted",
        )


def _strip_test(facts: Sequence[TileFacts], options: MosaicOptions) -> Callable[[TileFacts], Iterator[Reason]]:
    placed = [f.tile for f in facts if _is_placed(f.tile)]
    strips = split_strips(placed, dec_tolerance_deg=options.dec_tolerance_deg, min_overlap=options.min_overlap)
    main = max(strips, key=lambda s: len(s.tiles), default=Strip(()))

    def test(found: TileFacts) -> Iterator[Reason]:
        tile = found.tile
        if _is_placed(tile) and not any(tile is other for other in main.tiles):
            yield Reason(
                ReasonCode.STRIP,
                f"at RA {tile.ra_deg:.3f}, Dec {tile.dec_deg:+.3f} deg it does not lie in the strip of the "
                f"{len(main.tiles)} others about RA {main.ra_deg:.3f}, Dec {main.dec_deg:+.3f} deg",
            )

    return test


def _is_placed(tile: Tile) -> bool:
    numbers = tile.ra_deg, tile.dec_deg, tile.width, tile.height, tile.cell_arcsec
    return all(n is not None and math.isfinite(n) for n in numbers)


def _duplicate_test(facts: Sequence[TileFacts]) -> Callable[[TileFacts], Iterator[Reason]]:
    def test(found: TileFacts) -> Iterator[Reason]:
        for other in facts:
            if other is found:
                return
            if other.problems:  # it is no use, and hides no other
                continue
            if other.tile.path == found.tile.path:
                yield Reason(ReasonCode.DUPLICATE, "it is named twice")
                return
            if other.tile.group_id and other.tile.group_id == found.tile.group_id:
                yield Reason(
                    ReasonCode.DUPLICATE, f"{other.tile.path.name} is of the same observation {other.tile.group_id}"
                )
                return

    return test


def _alignment_test(sound: Sequence[Tile]) -> Callable[[TileFacts], Iterator[Reason]]:
    shapes = Counter((t.width, t.height) for t in sound)
    common = shapes.most_common(1)[0][0] if shapes else (None, None)
    first = next((t for t in sound if (t.width, t.height) == common), None)

    def test(facts: TileFacts) -> Iterator[Reason]:
        tile = facts.tile
        if facts.problems or first is None or not (_is_placed(tile) and _is_placed(first)):
            return
        here, there = place_of(tile), place_of(first)
        cell = float(first.cell_arcsec or 1.0) / 3600.0
        apart = math.hypot(
            ((here.ra - there.ra + 180.0) % 360.0 - 180.0) * math.cos(math.radians(there.dec)), here.dec - there.dec
        )
        same_cell = (
            abs(float(tile.cell_arcsec or 0.0) / 3600.0 / cell - 1.0) * max(common[0] or 1, common[1] or 1) < 0.1
        )
        if (tile.width, tile.height) != common or not same_cell or apart > 0.05 * cell:
            yield Reason(
                ReasonCode.NOT_ALIGNED,
                f"it has {tile.width} x {tile.height} pixels of {tile.cell_arcsec:.4g} arcsec about RA {here.ra:.5f}, "
                f"Dec {here.dec:+.5f} deg, and {first.name} {common[0]} x {common[1]} of {first.cell_arcsec:.4g} about "
                f"RA {there.ra:.5f}, Dec {there.dec:+.5f} deg; a plain mean needs the same pixels",
            )

    return test


def judge_mosaic(
    figures: Sequence[BlockFigures], pixels: int, against: CatalogueFigures | None, options: MosaicOptions
) -> tuple[Check, ...]:
    """Return what a finished mosaic must show, each with what was found and what is wanted.

    Coverage, spread of the noise between parts, the noise map against the measured noise, negative pixels, and, where
    there is a catalogue, flux ratio, astrometry and completeness.
    """
    covered = sum(f.covered for f in figures)
    ratios = [r for f in figures for r in f.ratios]
    noises = sampled_noise(figures)
    checks = [
        _least("coverage", covered / max(pixels, 1), options.min_coverage, "of the grid is covered"),
        _most("negative_pixels", sum(f.negative for f in figures) / max(covered, 1), options.max_negative_fraction,
              f"of the covered pixels lie below {NEGATIVE_SIGMA:g} sigma"),
        _rms_variation(ratios, options.max_rms_variation),
        _most("noise_jy", float(np.median(noises)) if noises.size else None, options.max_noise_jy,
              "Jy/beam is the median of the noise map"),
    ]  # fmt: skip
    if against is None:
        return (*checks, *(Check(n, None, None, None, "no catalogue was given") for n in _CATALOGUE_CHECKS))
    return (*checks, *_catalogue_checks(against, options))


_CATALOGUE_CHECKS = ("flux_ratio", "astrometry_arcsec", "completeness")


def _least(name: str, value: float, limit: float, words: str) -> Check:
    text = f"{value:.4g} {words}, at least {limit:g} is wanted"
    return Check(name, value, limit, value >= limit, text, ideal=1.0)


def _most(name: str, value: float | None, limit: float, words: str) -> Check:
    if value is None:
        return Check(name, None, limit, None, "there is nothing to measure it on")
    text = f"{value:.4g} {words}, at most {limit:g} is wanted"
    return Check(name, value, limit, value <= limit, text, ideal=0.0)


#: The largest of ever more parts is ever larger by chance alone: of so many, a twentieth is left out at either end.
_MANY_PARTS = 20


def _rms_variation(ratios: Sequence[float], most: float) -> Check:
    usable = [r for r in ratios if r > 0]
    if len(usable) < 2:
        return Check("rms_variation", None, most, None, "there are fewer than two parts to compare")
    few = len(usable) < _MANY_PARTS
    low, high = (float(v) for v in np.percentile(usable, (0, 100) if few else (5, 95)))
    value = high / low
    text = (
        f"measured over expected noise is {low:.3f} to {high:.3f} in {'' if few else 'nine tenths of '}{len(usable)} "
        f"parts (median {median(usable):.3f}), a factor of {value:.3g}; at most {most:g} is wanted"
    )
    return Check("rms_variation", value, most, value <= most, text, ideal=1.0)


def _catalogue_checks(against: CatalogueFigures, options: MosaicOptions) -> Iterator[Check]:
    if against.looked_for < options.min_sources:
        for name in _CATALOGUE_CHECKS:
            text = f"{against.looked_for} sources of the catalogue should show here, {options.min_sources} judge"
            yield Check(name, None, None, None, text)
        return
    low, high = options.flux_ratio
    ratio, offset, error = against.flux_ratio, against.offset_arcsec, against.offset_error_arcsec
    if ratio is None or offset is None or error is None or against.found < options.min_sources:
        text = f"{against.found} sources of the catalogue were found, {options.min_sources} judge"
        yield from (Check(name, None, None, None, text) for name in _CATALOGUE_CHECKS[:2])
    else:
        limit = low if ratio < 1 else high
        words = f"median of measured over catalogued flux of {against.found} sources"
        yield Check(
            "flux_ratio",
            ratio,
            limit,
            low <= ratio <= high,
            f"{ratio:.3f} is the {words}, {low:g} to {high:g} is wanted",
            ideal=1.0,
        )
        most = options.max_astrometry_arcsec
        words = f"arcsec is the median offset of {against.found} sources"
        text = f"{offset:.2f} +- {error:.2f} {words}, at most {most:g} is wanted"
        yield Check("astrometry_arcsec", offset, most, offset - 3.0 * error <= most, text, ideal=0.0)
    share, least = against.found / against.looked_for, options.min_completeness
    words = f"{against.found} of {against.looked_for} sources that should show at 10 sigma were found"
    text = f"{words}, at least {100.0 * least:g} % is wanted"
    yield Check("completeness", share, least, share >= least, text, ideal=1.0)
