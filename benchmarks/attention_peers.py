"""What else computes attention under a RangeMask: peers for the attention benchmarks, and what they need beforehand."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable

import torch
import torch.nn.functional as F
from limits import emulated
from registry import Absent, Call
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import flex_attention

from videoar_kernels import RangeMask

# Emulated products run at about a hundredth of the float32 rate; a masked row would take minutes.
_MOST_EMULATED = 2e9


def pairs(mask: RangeMask | None, q: Tensor, k: Tensor) -> float:
    """Visible (query, key) pairs over all samples and heads."""
    return q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2] * (1.0 if mask is None else mask.density)


def forward_flops(mask: RangeMask | None, q: Tensor, k: Tensor) -> float:
    """Useful operations: two products over the visible pairs."""
    return 4 * q.shape[-1] * pairs(mask, q, k)


def sdpa(q: Tensor, k: Tensor, v: Tensor, mask: RangeMask | None = None) -> Call | Absent:
    """scaled_dot_product_attention, with the dense mask made beforehand."""
    if emulated(q.dtype, q.device.type) and 4 * q.shape[-1] * pairs(None, q, k) > _MOST_EMULATED:
        return Absent("PyTorch emulates this dtype here: minutes")
    dense = dense_mask(mask, q)
    grouped = q.shape[1] != k.shape[1]
    return lambda: F.scaled_dot_product_attention(q, k, v, attn_mask=dense, enable_gqa=grouped)


def dense_mask(mask: RangeMask | None, q: Tensor) -> Tensor | None:
    """bool (q_len, k_len) or (batch, 1, q_len, k_len), as SDPA takes it."""
    if mask is None or mask.density == 1:
        return None
    dense = mask.to_dense().to(q.device)
    return dense[:, None] if dense.dim() == 3 else dense


def flex(q: Tensor, k: Tensor, v: Tensor, mask: RangeMask | None = None) -> Call | Absent:
    """Compiled FlexAttention, with its BlockMask made beforehand. On CPU it has no backward."""
    block_mask = None if mask is None else mask.to_flex(q.device)
    compiled = torch.compile(flex_attention, dynamic=False)
    grouped = q.shape[1] != k.shape[1]
    return lambda: compiled(q, k, v, block_mask=block_mask, enable_gqa=grouped)


def cudnn(q: Tensor, k: Tensor, v: Tensor, mask: RangeMask | None = None) -> Call | Absent:
    """scaled_dot_product_attention by cuDNN, with the dense mask made beforehand."""
    call = sdpa(q, k, v, mask)
    if isinstance(call, Absent):
        return call

    def cudnn_alone() -> Tensor:
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            return call()

    return cudnn_alone


def flash_attention(q: Tensor, k: Tensor, v: Tensor) -> Call | Absent:
    """FlashAttention 3, or 2, without a mask; it takes (batch, length, heads, head_dim)."""
    for module in ("flash_attn_interface", "flash_attn"):
        if importlib.util.find_spec(module):
            attention = importlib.import_module(module).flash_attn_func
            return lambda: attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return Absent("FlashAttention is not installed")


def mask_making(mask: RangeMask | None, device: torch.device) -> dict[str, Callable[[], object]]:
    """How the peers' masks are made, to be timed apart."""
    if mask is None or mask.density == 1:
        return {}
    return {"SDPA's dense mask": lambda: mask.to_dense().to(device), "Flex's BlockMask": lambda: mask.to_flex(device)}
