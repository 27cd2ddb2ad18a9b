"""From a calibrated Measurement Set to an image with its measured quality."""

from __future__ import annotations

from nightbeam.imaging.compute import cell_size_arcsec, judge_image, robust_noise
from nightbeam.imaging.files import (
    find_sources,
    measure_sources,
    open_image,
    read_product,
    sidecar_path,
    verify_product,
)
from nightbeam.imaging.model import (
    ImageOptions,
    ImagePlan,
    ImageProduct,
    Imager,
    ImageRequest,
    SourceFit,
    Verdict,
    product_path,
)
from nightbeam.imaging.product import image_ms, plan_image

__all__ = [
    "ImageOptions",
    "ImagePlan",
    "ImageProduct",
    "ImageRequest",
    "Imager",
    "SourceFit",
    "Verdict",
    "cell_size_arcsec",
    "find_sources",
    "image_ms",
    "judge_image",
    "measure_sources",
    "open_image",
    "plan_image",
    "product_path",
    "read_product",
    "robust_noise",
    "sidecar_path",
    "verify_product",
]
