"""Softmax attention under a RangeMask, as its definition reads: a dense mask, one softmax, two products."""

from __future__ import annotations

import torch
from torch import Tensor

from ..masks import RangeMask


def range_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: RangeMask | None = None,
    *,
    scale: float | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """softmax(scale * q k^T) v over the keys that each query may see; quadratic memory.

    Args:
        q: (batch, heads, q_len, head_dim), any floating dtype.
        k: (batch, kv_heads, k_len, head_dim); heads is a multiple of kv_heads, and query head h reads key head
            h // (heads / kv_heads).
        v: like k.
        mask: which keys a query sees; None: every key.
        scale: factor of the scores; None: 1 / sqrt(head_dim).
        return_lse: also return the log of each query's softmax denominator.

    Returns:
        out, shaped and typed like q; a query that sees no key gets zeros. With return_lse also lse
        (batch, heads, q_len), float32 (float64 for float64), natural logarithm, -inf where no key is seen.
    """
    group = q.shape[1] // k.shape[1]
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    k, v = (x.to(wide).repeat_interleave(group, dim=1) for x in (k, v))  # (B, H, Lk, D)
    scores = q.to(wide) @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)  # (B, H, Lq, Lk)
    all_keys = scores.new_ones(scores.shape[-2:], dtype=torch.bool)
    visible = all_keys if mask is None else mask.to_dense(q.device)
    if visible.dim() == 3:
        visible = visible.unsqueeze(1)  # (B, 1, Lq, Lk)
    some = visible.any(-1, keepdim=True)  # (..., Lq, 1)
    # Finite scores in rows without keys keep their gradient zero instead of NaN.
    scores = scores.masked_fill(~visible & some, float("-inf")).masked_fill(~some, 0.0)
    out = (scores.softmax(-1).masked_fill(~visible, 0.0) @ v).to(q.dtype)
    if not return_lse:
        return out
    return out, scores.logsumexp(-1).masked_fill(~some.squeeze(-1), float("-inf"))
