"""Linear layers with packed weights in plain PyTorch: the definition of `videoar_kernels.linear`.

Products and sums in float32, rounded once, to the dtype of x.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

PANEL = 16


def pack_linear_weight(weight: Tensor) -> Tensor:
    """Cut (N, K) into panels of 16 outputs and pairs of inputs, filled up with zeros."""
    outputs, inputs = weight.shape
    panels = pad(weight, (0, inputs % 2, 0, -outputs % PANEL)).unflatten(0, (-1, PANEL)).unflatten(2, (-1, 2))
    order = (0, 2, 1, 3) if weight.dtype == torch.bfloat16 else (0, 2, 3, 1)  # from (panels, 16, pairs, 2)
    return panels.permute(order).contiguous()


def unpack_linear_weight(packed: Tensor, out_features: int, in_features: int) -> Tensor:
    """Return (N, K), what `pack_linear_weight` was given."""
    order = (0, 2, 1, 3) if packed.dtype == torch.bfloat16 else (0, 3, 1, 2)  # to (panels, 16, pairs, 2)
    return packed.permute(order).flatten(0, 1).flatten(1)[:out_features, :in_features]


def packed_linear(x: Tensor, packed: Tensor, bias: Tensor | None, out_features: int) -> Tensor:
    """Return x @ weight^T + bias."""
    y = x.float() @ unpack_linear_weight(packed, out_features, x.shape[-1]).float().T
    return (y if bias is None else y + bias.float()).to(x.dtype)
