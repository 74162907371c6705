"""How attention kernels are launched: padding, strides, order of heads, numerics."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import triton
from torch import Tensor

from videoar_kernels.triton import attention_configs as configs

INTERPRETED = triton.knobs.runtime.interpret
# Numbers that change from call to call and tell the compiler nothing.
UNSPECIALISED = (
    "cuts", "heads", "group", "q_len", "rows", "most_tiles", "section", "flat_heads", "sample_tiles", "lse_batch",
    "lse_head", "out_part", "lse_part",
)  # fmt: skip
# Kernels address a block's rows with 32 bits.
LONGEST_STRIDE = 1 << 23


def dense_rows(x: Tensor) -> Tensor:
    """x itself where its rows are contiguous and not absurdly far apart."""
    return x if x.stride(-1) == 1 and x.stride(-2) <= LONGEST_STRIDE else x.contiguous()


def padded(head_dim: int) -> int:
    """Columns of a tile: a power of two, at least what one tensor-core instruction takes."""
    return max(16, triton.next_power_of_2(head_dim))


def on_device(x: Tensor) -> AbstractContextManager:
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def section(x: Tensor, heads: int, *, sharing: int = 1, reading: int = 1) -> int:
    """How many of a kernel's heads run at a time, so that what they read stays in half of the L2 cache.

    Args:
        x: (batch, heads, length, head_dim), keys (values count too) or queries (gradients count too).
        heads: all heads of the kernel.
        sharing: how many of them read the same head of x.
        reading: how many heads of x each reads.
    """
    head_bytes = 2 * reading * x.shape[2] * x.shape[3] * x.element_size()
    return min(sharing * max(configs.l2_bytes(x.device) // 2 // max(head_bytes, 1), 1), heads)


def precision(element_size: int) -> str:
    """float32 products are three of TF32, which lose about two bits; exact ones would not run on tensor cores."""
    return "tf32x3" if element_size == 4 else "ieee"


def numerics(x: Tensor) -> dict[str, object]:
    """bfloat16 is widened where kernels are interpreted."""
    return {"WIDEN": INTERPRETED and x.dtype == torch.bfloat16, "F32": precision(x.element_size())}


def options(config: configs.Config) -> dict[str, object]:
    return {"num_warps": config.warps, "num_stages": config.stages, "enable_fp_fusion": True}
