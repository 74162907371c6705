"""range_attention's definition in float64, what eager PyTorch makes of it, and the judgement between them."""

from __future__ import annotations

import torch
from closeness import assert_close

from videoar_kernels import range_attention

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def exact_attention(q, k, v, dense=None, scale=None):
    """The definition in float64: (out, lse), differentiable; dense (q_len, k_len) or (batch, q_len, k_len)."""
    q, k, v = (x.double() for x in (q, k, v))
    group = q.shape[1] // k.shape[1]
    q = q.unflatten(1, (-1, group))
    scores = torch.einsum("bhgqd,bhkd->bhgqk", q, k) * (scale or q.shape[-1] ** -0.5)
    if dense is not None:
        dense = dense[:, None, None] if dense.dim() == 3 else dense
        scores = torch.where(dense, scores, -torch.inf)
    lse = scores.logsumexp(-1)
    weights = torch.where(lse.isfinite()[..., None], scores - lse[..., None], -torch.inf).exp()
    return torch.einsum("bhgqk,bhkd->bhgqd", weights, v).flatten(1, 2), lse.flatten(1, 2)


def inputs(dtype, batch, heads, kv_heads, q_len, k_len, head_dim, peak=1.0):
    q = torch.randn(batch, heads, q_len, head_dim).mul(peak).to(dtype)
    k, v = torch.randn(2, batch, kv_heads, k_len, head_dim).to(dtype)
    return q, k, v


def eager_attention(q, k, v, dense=None, scale=None):
    """What eager PyTorch computes in the inputs' own dtype: (out, lse)."""
    group = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(group, 1) for x in (k, v))
    scores = q @ k.mT * (scale or q.shape[-1] ** -0.5)
    if dense is None:
        return scores.softmax(-1) @ v, scores.logsumexp(-1)
    dense = dense[:, None] if dense.dim() == 3 else dense
    none = ~dense.any(-1, keepdim=True)
    scores = scores.masked_fill(~dense & ~none, -torch.inf)
    return scores.softmax(-1).masked_fill(none, 0) @ v, scores.logsumexp(-1).masked_fill(none.squeeze(-1), -torch.inf)


def factor(x):
    """How many times eager PyTorch's error attention may err: float32 on a GPU is three products of TF32."""
    return 8.0 if x.is_cuda and x.dtype == torch.float32 else 2.0


def check(q, k, v, mask, *, scale=None):
    """Outputs and gradients, through out and lse, may err a small multiple of what eager errs in the same dtype."""
    dense = None if mask is None else mask.to_dense(q.device)
    grad, grad_lse = torch.randn_like(q), torch.randn(q.shape[:3]).to(q.dtype)

    def run(attention, dtype, *options):
        leaves = [x.detach().to(dtype, copy=True).requires_grad_() for x in (q, k, v)]
        out, lse = attention(*leaves, *options)
        seen = lse.isfinite()
        outputs, weights = (out, lse[seen]), (grad.to(out.dtype), grad_lse[seen].to(lse.dtype))
        return out, lse, *torch.autograd.grad(outputs, leaves, weights)

    ours = run(lambda *x: range_attention(*x, mask, scale=scale, return_lse=True), q.dtype)
    exact = run(exact_attention, torch.float64, dense, scale)
    if q.dtype == torch.float64:
        for a, b in zip(ours, exact, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12 * (1 + b[b.isfinite()].abs().max().item()))
        return
    eager = run(eager_attention, q.dtype, dense, scale)
    assert ours[0].dtype == q.dtype
    assert ours[1].dtype == torch.float32
    # lse is float32 however large it is, and the weights that backward recomputes from it carry its rounding.
    lse = exact[1][exact[1].isfinite()]
    rounding = torch.finfo(torch.float32).eps / 2 * (lse.abs().max().item() if lse.numel() else 0.0)
    for a, b, low, slack in zip(ours, exact, eager, (0, 0, *[rounding] * 3), strict=True):
        assert_close(a, b, low, factor=factor(q), slack=slack)
