"""From an image tokenizer's weights to a video tokenizer's (paper S, Sec. 4.1; MAGVIT-v2).

The image kernel goes into the last temporal tap, the present; the taps of the past start at zero. On a still video
the inflated network is the image network, frame by frame.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def inflate_kernel(weight: Tensor, time: int) -> Tensor:
    """(outputs, inputs, h, w), or the same with a temporal axis of 1, to (outputs, inputs, time, h, w)."""
    if weight.ndim == 5 and weight.shape[2] == 1:
        weight = weight[:, :, 0]
    if weight.ndim != 4 or time < 1:
        raise ValueError(
            f"inflate_kernel: expected weight of shape (outputs, inputs, h, w) and time >= 1, "
            f"got {tuple(weight.shape)} and {time}"
        )
    inflated = weight.new_zeros(*weight.shape[:2], time, *weight.shape[2:])
    inflated[:, :, -1] = weight
    return inflated


@torch.no_grad()
def inflate_2d(model: nn.Module, image: Mapping[str, Tensor]) -> list[str]:
    """Load an image model's weights into a video model with the same parameter names.

    Args:
        model: the video model, changed in place.
        image: state dict of the image model.

    Returns:
        Names of the model's parameters that the image model does not have; they keep their values.

    Raises:
        ValueError: a name that the model lacks, or a shape that does not fit.
    """
    own = model.state_dict()
    if unknown := sorted(set(image) - set(own)):
        raise ValueError(f"inflate_2d: the video model has no {unknown[0]} ({len(unknown)} such names)")
    for name, weight in image.items():
        if own[name].ndim == 5:
            weight = inflate_kernel(weight, own[name].shape[2])
        if weight.shape != own[name].shape:
            expected, got = tuple(own[name].shape), tuple(weight.shape)
            raise ValueError(f"inflate_2d: expected {name} of shape {expected}, got {got}")
        own[name].copy_(weight)
    return sorted(set(own) - set(image))
