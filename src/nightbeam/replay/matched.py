"""The network that is shipped: a matched filter, as a torch module.

TorchScript reads the types of a module's functions while it compiles them, and cannot if they are kept as text: this
module does without ``from __future__ import annotations``.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

__all__ = ["matched_filter_class"]


@cache
def matched_filter_class() -> Callable[[list[float], float, float], Any]:
    """Make the class when torch is wanted: importing this module must not load it."""
    import torch
    from torch.nn import functional

    class MatchedFilterNetwork(torch.nn.Module):
        """Signal-to-noise ratio of a Gaussian peak at each pixel, against background and noise around it.

        Background and noise are the medians over 3 x 3 blocks of 8 x 8 px of the blocks' means and variances: a peak
        spoils four blocks at most. Lines that are 0 throughout are the pad, and belong to no block.
        """

        def __init__(self, taps: list[float], threshold: float, slope: float) -> None:
            super().__init__()
            self.taps, self.threshold, self.slope = taps, threshold, slope

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            x = torch.nan_to_num(images, 0.0, 0.0, 0.0)
            size = x.abs()
            valid = (size.amax(3, keepdim=True) > 0).to(x.dtype) * (size.amax(2, keepdim=True) > 0).to(x.dtype)
            count = self.block_sum(valid)
            # About the mean of the panel, or squares would lose the digits that matter.
            shift = x.sum((2, 3), keepdim=True) / valid.sum((2, 3), keepdim=True).clamp(min=1.0)
            x = (x - shift) * valid
            mean = self.block_sum(x) / count
            # A block of one pixel has no variance: 0/0, and then is not looked at.
            variance = (self.block_sum(x * x) / count - mean * mean).clamp(min=0.0) * (count / (count - 1.0))
            weight = (self.around(variance) + 1e-12).rsqrt()
            x = (x - self.spread(self.around(mean), x)) * valid * self.spread(weight, x)
            x = self.smooth(self.smooth(x, 2), 3)
            half = (x - self.threshold) * (0.5 * self.slope)
            return torch.cat((-half, half), 1)

        def block_sum(self, x: torch.Tensor) -> torch.Tensor:
            return functional.avg_pool2d(functional.pad(x, (0, 7, 0, 7)), 8, divisor_override=1)

        def spread(self, blocks: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
            """Return what holds at each pixel, of what holds for blocks."""
            down = self.between(like.shape[2], blocks.shape[2], like)
            across = self.between(like.shape[3], blocks.shape[3], like)
            return torch.einsum("yi,rcij,xj->rcyx", down, blocks, across)

        def between(self, pixels: int, blocks: int, like: torch.Tensor) -> torch.Tensor:
            """Return what interpolates linearly from the blocks' centres to the pixels along one axis."""
            place = (torch.arange(pixels, device=like.device, dtype=like.dtype) + 0.5) / 8.0 - 0.5
            place = place.clamp(min=0.0).minimum(torch.full_like(place, 1.0) * (blocks - 1))
            block = torch.arange(blocks, device=like.device, dtype=like.dtype)
            return (1.0 - (place[:, None] - block).abs()).clamp(min=0.0)

        def around(self, x: torch.Tensor) -> torch.Tensor:
            """Return the median of 3 x 3 blocks, of those that are any."""
            near = functional.pad(x, (1, 1, 1, 1), value=float("nan")).unfold(2, 3, 1).unfold(3, 3, 1)
            return torch.nan_to_num(near.flatten(4).nanmedian(4)[0], 0.0)

        def smooth(self, x: torch.Tensor, axis: int) -> torch.Tensor:
            n, reach = x.shape[axis], len(self.taps) - 1
            border = (0, 0, reach, reach) if axis == 2 else (reach, reach, 0, 0)
            x = functional.pad(x, border)
            total = x.narrow(axis, reach, n) * self.taps[reach]
            for k in range(reach):
                total.add_(x.narrow(axis, k, n) + x.narrow(axis, 2 * reach - k, n), alpha=self.taps[k])
            return total

    return MatchedFilterNetwork
