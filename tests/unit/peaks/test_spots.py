"""Simulated Bragg spots at known places, found again."""

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial import cKDTree

from nightbeam.peaks.model import PeakSettings

SHAPE, PANELS, SPOTS = (185, 194), 8, 40


def frame(seed=0):
    """Poisson light of 5 photons a pixel, falling off, with Gaussian spots of 60 to 2000 photons at places that differ.

    Returns images (PANELS, *SHAPE), and row, y, x of each spot.
    """
    dice = np.random.default_rng(seed)
    grid_y, grid_x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    images, truth = np.empty((PANELS, *SHAPE)), []
    for row in range(PANELS):
        mean = 5.0 + 10.0 * np.exp(-(grid_y**2 + grid_x**2) / 2e4)
        cells = dice.choice(9 * 9, SPOTS, replace=False)
        for cell in cells:
            y, x = 20 * (cell // 9) + dice.uniform(6, 14), 20 * (cell % 9) + dice.uniform(6, 14)
            photons, width = dice.uniform(60, 2000), dice.uniform(0.9, 1.3)
            mean += photons / (2 * np.pi * width**2) * np.exp(-((grid_y - y) ** 2 + (grid_x - x) ** 2) / (2 * width**2))
            truth.append((row, y, x))
        images[row] = dice.poisson(mean)
    return images, np.array(truth)


def matched_filter(images):
    """Logits: how far a pixel's smoothed light exceeds its surroundings, against six times the noise."""
    near = ndimage.gaussian_filter(images, (0, 1.0, 1.0))
    around = ndimage.median_filter(images, (1, 13, 13))
    # A Gaussian of width 1 px has an effective area of 4 pi px.
    noise = np.sqrt(np.maximum(around, 1.0) / (4 * np.pi))
    return np.stack([6.0 * noise, near - around], axis=1).astype(np.float32)


def figures(table, truth):
    """Recall, precision, and root mean square and median of the distance of what was matched."""
    found = np.column_stack([1e4 * table.row, table.y, table.x])
    known = truth * [1e4, 1, 1]
    distance, which = cKDTree(found).query(known, distance_upper_bound=2.0)
    hit = np.isfinite(distance)
    return hit.mean(), len(set(which[hit])) / len(found), np.sqrt(np.mean(distance[hit] ** 2)), np.median(distance[hit])


@pytest.mark.slow
@pytest.mark.parametrize(("centroid", "rms_px", "median_px"), [("mass", 0.25, 0.18), ("intensity", 0.16, 0.08)])
def test_spots_are_found_where_they_are(engine, centroid, rms_px, median_px):
    images, truth = frame()
    settings = PeakSettings(centroid=centroid, min_pixels=2)
    table = engine.find_peaks(matched_filter(images), images.astype(np.float32), settings=settings)
    recall, precision, rms, middle = figures(table, truth)
    assert recall >= 0.98
    assert precision >= 0.99
    assert rms <= rms_px
    assert middle <= median_px


def test_light_of_a_spot_without_noise_is_summed_and_centred(engine):
    grid_y, grid_x = np.mgrid[:41, :45]
    y, x, photons = 20.3, 22.8, 5000.0
    image = 7.0 + photons / (2 * np.pi * 1.2**2) * np.exp(-((grid_y - y) ** 2 + (grid_x - x) ** 2) / (2 * 1.2**2))
    square = (grid_y - y) ** 2 + (grid_x - x) ** 2
    logits = np.stack([square, np.full(image.shape, 4.5**2)])[None].astype(np.float32)
    table = engine.find_peaks(logits, image[None], settings=PeakSettings(centroid="intensity"))
    assert table.background[0] == pytest.approx(7.0, abs=0.01)
    # Within 4.5 px = 3.75 sigma there are 1 - exp(-3.75**2 / 2) = 99.91 % of the light.
    assert table.total[0] == pytest.approx(photons, rel=2e-3)
    assert (table.y[0], table.x[0]) == (pytest.approx(y, abs=2e-3), pytest.approx(x, abs=2e-3))
