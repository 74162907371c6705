"""What the transformer sees at its input: paper S's Eq. 6, and the predecessor's feature if asked.

In the paper's literal design the last residual of a frame is nobody's input: scale k sees the sum of the scales
below k, and the next frame starts from the mean. `context="resampled"` adds the predecessor's accumulated feature,
resampled to every scale, to the input of that scale (as its relatives let a clip see the largest scale before it).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from videoar.next_scale.config import TransformerConfig
from videoar_kernels import pyramid_encode, pyramid_resample


class TeacherInputs(NamedTuple):
    """A clip for training: `labels` (B, T, N, ceil(d / 8)) uint8, `inputs` (B, T, N, d), `context` alike or None."""

    labels: Tensor
    inputs: Tensor
    context: Tensor | None


def teacher_inputs(
    z: Tensor,
    config: TransformerConfig,
    *,
    flip_p: Tensor | None = None,
    seed: int | None = None,
    offset: int = 0,
) -> TeacherInputs:
    """Labels and inputs of clips, with Cross-Frame Error Correction if `flip_p` is given.

    Args:
        z: latents (B, T, H, W, d).
        config: gives scales and context.
        flip_p: probability of a bit flip, broadcastable to (B, T, K) (Eq. 8).
        seed, offset: of the flips.
    """
    pyramid = pyramid_encode(z, list(config.scales), flip_p=flip_p, seed=seed, offset=offset)
    return TeacherInputs(pyramid.labels, pyramid.inputs, frame_context(pyramid.total, config))


def frame_context(total: Tensor, config: TransformerConfig) -> Tensor | None:
    """The context of every token (B, T, N, d) from the frames' accumulated features (B, T, H, W, d).

    Frame 0 has no predecessor: zeros. None where the configuration wants none.
    """
    if config.context == "paper":
        return None
    previous = torch.cat([torch.zeros_like(total[:, :1]), total[:, :-1].detach()], dim=1)
    return pyramid_resample(previous, list(config.scales))
