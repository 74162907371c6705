"""Packed bits in numpy, and tensors of every layout to try operators on."""

from __future__ import annotations

import numpy as np
import philox_numpy
import torch


def numpy_pack(ones: torch.Tensor) -> torch.Tensor:
    return torch.as_tensor(np.packbits(ones.cpu().numpy(), axis=-1, bitorder="little"))


def numpy_unpack(bits: torch.Tensor, dim: int) -> torch.Tensor:
    return torch.as_tensor(np.unpackbits(bits.cpu().numpy(), axis=-1, count=dim, bitorder="little").astype(bool))


def views(shape: tuple[int, ...], dtype: torch.dtype):
    """Yield tensors of one shape (..., d): dense, sliced, transposed, expanded, with a strided last dimension."""
    yield torch.randn(shape).to(dtype)
    yield torch.randn(*shape[:-2], shape[-2] + 5, shape[-1] + 3).to(dtype)[..., 2:-3, 1:-2]
    yield torch.randn(shape[1], shape[0], *shape[2:]).to(dtype).transpose(0, 1)
    yield torch.randn(1, *shape[1:]).to(dtype).expand(shape)
    yield torch.randn(*shape[:-1], 2 * shape[-1]).to(dtype)[..., ::2]


def numpy_sample(logits, uncond, guidance, temperature, seed, offset):
    x = logits.double().cpu().numpy()
    if uncond is not None:
        u = uncond.double().cpu().numpy()
        x = u + guidance * (x - u)
    if temperature == 0:
        return torch.as_tensor(x > 0)
    with np.errstate(over="ignore"):
        return torch.as_tensor(philox_numpy.uniform(x.shape, seed, offset) < 1 / (1 + np.exp(-(x / temperature))))
