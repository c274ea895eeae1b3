"""Columns of `--profile` that are computed from pixels, on the device, for a batch at once.

All are of the whole image, stretched to a square of P pixels a side (`layout.PROFILE_SIDE`).
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

_AT_A_TIME = 256
"""Images whose float32 planes are alive at a time: 67 MB each of 256 pixels a side."""
_EDGE = 8
"""Pixels of an edge strip."""
_COLOUR_STEP = 2
"""Every second pixel of every second row counts for the colours."""
_HISTOGRAM_STEP = 4
"""Every fourth pixel of every fourth row counts: a GPU adds up histograms slowly."""
_HASH_SIDE, _HASH_BITS = 32, 8


def pixel_profile(images_NPPC: Tensor) -> tuple[Tensor, Tensor]:
    """The float columns in the order of `layout.PROFILE`, float32 [N, 7], and the hashes, int64 [N].

    `images_NPPC` is uint8 RGB [N, P, P, 3]. Nothing waits for the device.
    """
    starts = range(0, len(images_NPPC), _AT_A_TIME)
    parts = [_profile(images_NPPC[start : start + _AT_A_TIME]) for start in starts]
    values, hashes = zip(*parts, strict=True)
    return torch.cat(values), torch.cat(hashes)


def _profile(images_NPPC: Tensor) -> tuple[Tensor, Tensor]:
    # In place and without float copies of the colours: what counts here are the bytes that are moved.
    luma_NPP = images_NPPC[..., 0] * 0.299
    luma_NPP.add_(images_NPPC[..., 1], alpha=0.587).add_(images_NPPC[..., 2], alpha=0.114)
    variance_N, mean_N = torch.var_mean(luma_NPP.flatten(1), 1, correction=0)
    colours = images_NPPC[:, ::_COLOUR_STEP, ::_COLOUR_STEP].float()
    red, green, blue = colours.unbind(3)
    most, least = colours.amax(3), colours.amin(3)
    values_N7 = torch.stack(
        [
            mean_N / 255,
            variance_N.sqrt() / 255,
            ((most - least) / most.clamp(min=1)).mean((1, 2)),
            _colorfulness(red - green, 0.5 * (red + green) - blue),
            _entropy(luma_NPP[:, ::_HISTOGRAM_STEP, ::_HISTOGRAM_STEP]),
            _variance(_laplacian(luma_NPP)),
            _border_variance(luma_NPP),
        ],
        dim=1,
    )
    return values_N7, _phash(luma_NPP)


def _variance(plane_NPP: Tensor) -> Tensor:
    return plane_NPP.flatten(1).var(1, correction=0)


def _colorfulness(red_green_NPP: Tensor, yellow_blue_NPP: Tensor) -> Tensor:
    """Hasler and Suesstrunk 2003, "Measuring colourfulness in natural images", M3."""
    planes = (red_green_NPP, yellow_blue_NPP)
    deviation_N = sum(map(_variance, planes), torch.zeros(())).sqrt()
    mean_N = sum((plane.mean((1, 2)).square() for plane in planes), torch.zeros(())).sqrt()
    return deviation_N + 0.3 * mean_N


def _entropy(luma_NQQ: Tensor) -> Tensor:
    """Shannon's entropy of the luma, rounded to 256 levels, in bits."""
    levels_NQ = luma_NQQ.flatten(1).round().long()
    counts_NL = levels_NQ.new_zeros((len(levels_NQ), 256))
    counts_NL.scatter_add_(1, levels_NQ, torch.ones_like(levels_NQ))
    share_NL = counts_NL.float() / levels_NQ.shape[1]
    bits_N: Tensor = torch.special.xlogy(share_NL, share_NL).sum(1) / -math.log(2)
    return bits_N


def _laplacian(luma_NPP: Tensor) -> Tensor:
    """Of the four neighbours, without the outermost pixels."""
    edges_NPP = luma_NPP[:, :-2, 1:-1] + luma_NPP[:, 2:, 1:-1]
    edges_NPP.add_(luma_NPP[:, 1:-1, :-2]).add_(luma_NPP[:, 1:-1, 2:])
    return edges_NPP.sub_(luma_NPP[:, 1:-1, 1:-1], alpha=4)


def _border_variance(luma_NPP: Tensor) -> Tensor:
    """The smaller variance of the luma of two opposite edges together: 0 for a frame and for bars."""
    level = torch.cat([luma_NPP[:, :_EDGE], luma_NPP[:, -_EDGE:]], dim=1)
    upright = torch.cat([luma_NPP[:, :, :_EDGE], luma_NPP[:, :, -_EDGE:]], dim=2)
    return torch.minimum(_variance(level), _variance(upright))


def _phash(luma_NPP: Tensor) -> Tensor:
    """The perceptual hash of the library ImageHash, its first bit the highest, as int64 [N].

    The lowest 8 x 8 coefficients of the DCT of the image at 32 x 32, compared with their median.
    """
    basis_KP = _hash_basis(luma_NPP.shape[1], luma_NPP.device)
    low_NK = (basis_KP @ luma_NPP @ basis_KP.T).flatten(1)
    middle = low_NK.shape[1] // 2
    ordered_NK = low_NK.sort(1).values
    median_N1 = (ordered_NK[:, middle - 1 : middle] + ordered_NK[:, middle : middle + 1]) / 2
    places_K = torch.arange(low_NK.shape[1] - 1, -1, -1, device=low_NK.device)
    return ((low_NK > median_N1).long() << places_K).sum(1)


@cache
def _hash_basis(side: int, device: torch.device) -> Tensor:
    """Lanczos to 32 pixels, as Pillow has it, then the lowest 8 of its DCT-II: float32 [8, side]."""
    scale = side / _HASH_SIDE
    to = (torch.arange(_HASH_SIDE, dtype=torch.float64)[:, None] + 0.5) * scale
    distance = (torch.arange(side, dtype=torch.float64)[None] + 0.5 - to) / scale
    weights = torch.where(distance.abs() < 3, torch.sinc(distance) * torch.sinc(distance / 3), 0.0)
    lanczos = weights / weights.sum(1, keepdim=True)
    frequency = torch.arange(_HASH_BITS, dtype=torch.float64)[:, None]
    place = torch.arange(_HASH_SIDE, dtype=torch.float64)[None]
    dct = 2 * torch.cos(math.pi * frequency * (2 * place + 1) / (2 * _HASH_SIDE))
    return (dct @ lanczos).float().to(device)
