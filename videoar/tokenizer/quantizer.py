"""Per-frame multi-scale bits (paper S, Sec. 4.1) as the tokenizer's training sees them.

    u_k = down_k(z) - down_k(S_(k-1)),  bit_k = u_k > 0,  S_k = S_(k-1) + up(±1/sqrt(d))

with S_0 = 0 in every frame. The sum of the first k scales is what the decoder gets; the gradient passes each
quantizer straight through.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from videoar_kernels import flip_bits, pyramid_decode, pyramid_encode, pyramid_resample

Scales = tuple[tuple[int, int], ...]


class Quantized(NamedTuple):
    """What quantization gives the losses and the decoder.

    `total` (B, T, H, W, d) is the sum of the kept scales, with gradient; `full` the sum of all, without;
    `residual` (B, T, N, d) the value whose sign is each bit, with gradient; `labels` (B, T, N, ceil(d / 8)) the bits.
    """

    total: Tensor
    full: Tensor
    residual: Tensor
    labels: Tensor


def quantize(
    z: Tensor, scales: Scales, *, keep: Tensor | None = None, flip: Tensor | None = None, seed: int = 0
) -> Quantized:
    """Quantize latents for training.

    Args:
        z: (B, T, H, W, d) latents.
        scales: heights and widths; the last is (H, W).
        keep: (B,) number of scales that each clip is decoded from; all of them if None (scale dropout).
        flip: (B,) probability that a bit is flipped before the next scale is taken; none if None.
        seed: of the flips.
    """
    frames, dim = z.shape[1], z.shape[-1]
    if flip is not None:
        flip = flip.view(-1, 1, 1).expand(-1, frames, len(scales))
    with torch.no_grad():
        pyramid = pyramid_encode(z, scales, flip_p=flip, seed=seed)
        used = pyramid.labels
        if flip is not None:
            tokens = torch.tensor([height * width for height, width in scales], device=z.device)
            used = flip_bits(used, flip.repeat_interleave(tokens, 2), seed=seed, dim=dim)
        total = pyramid_decode(used, scales, dim=dim, keep=keep, dtype=z.dtype)
        below = pyramid.inputs.clone()
        below[:, :, : scales[0][0] * scales[0][1]] = 0  # the first scale's input is the frame before, not a sum below
    residual = pyramid_resample(z, scales) - below
    soft = _sum_of_scales(z, scales, keep)
    return Quantized(total + (soft - soft.detach()), pyramid.total, residual, pyramid.labels)


def _sum_of_scales(z: Tensor, scales: Scales, keep: Tensor | None) -> Tensor:
    """sum_k up(down_k(z)) over the kept scales: not the reconstruction, but what has its gradient."""
    batch, frames, height, width, _ = z.shape
    flat = z.flatten(0, 1).movedim(-1, 1)  # (B T, d, H, W)
    total = torch.zeros_like(flat)
    for k, scale in enumerate(scales):
        small = flat if scale == (height, width) else F.adaptive_avg_pool2d(flat, scale)
        part = small if scale == (height, width) else F.interpolate(small, (height, width), mode="bilinear")
        if keep is not None:
            part = part * (keep > k).to(z.dtype).repeat_interleave(frames).view(-1, 1, 1, 1)
        total = total + part
    return total.movedim(1, -1).unflatten(0, (batch, frames))
