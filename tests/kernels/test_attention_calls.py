"""range_attention as an operator: opcheck, full graphs, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from attention_oracle import inputs

from videoar_kernels import RangeMask, range_attention
from videoar_kernels.library import ops


@pytest.mark.parametrize("masked", [False, True])
def test_opcheck(masked):
    mask = RangeMask.units([3, 4], 2) if masked else None
    arrays = (mask.batch_ptr, mask.q_ranges, mask.key_ptr, mask.key_ranges) if masked else (None,) * 4
    q, k, v = (x.requires_grad_() for x in inputs(torch.float32, 2, 4, 2, 9, 9, 32))
    torch.library.opcheck(ops.range_attention.default, (q, k, v, *arrays, 0.2))
    out, lse = ops.range_attention(q, k, v, *arrays, 0.2)
    saved = [x.detach() for x in (q, k, v, out, lse)]
    for grad_lse in (None, torch.randn_like(lse)):
        torch.library.opcheck(
            ops.range_attention_backward.default, (torch.randn_like(out), grad_lse, *saved, *arrays, 0.2)
        )


@pytest.mark.parametrize("dynamic", [False, True])
def test_runs_inside_a_full_graph(dynamic):
    closure = RangeMask.units([5, 7])

    def model(x, mask):
        q, k, v = x.unflatten(-1, (3, 2, 32)).permute(2, 0, 3, 1, 4)
        out, lse = range_attention(q, k, v, mask, return_lse=True)
        if mask is None:
            out = out + range_attention(q, k, v, closure)
        return out.transpose(1, 2).flatten(2), lse

    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for mask in (RangeMask.units([3, 9]), RangeMask.multiscale(2, 2, [(1, 1), (2, 2)]), None):
        x = torch.randn(2, 12, 192, requires_grad=True)
        results = [f(x, mask) for f in (model, compiled)]
        for a, b in zip(*results, strict=True):
            assert torch.equal(a, b)
        grads = [torch.autograd.grad(out.square().sum() + lse.sum(), x)[0] for out, lse in results]
        torch.testing.assert_close(*grads)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"k": (2, 4, 128, 32), "v": (2, 4, 128, 32)},
            ValueError,
            r"k of shape \(2, \*, \*, 64\), got \(2, 4, 128, 32\)",
        ),
        ({"k": (2, 3, 12, 64), "v": (2, 3, 12, 64)}, ValueError, r"k of shape \(2, a divisor of 4, \*, 64\)"),
        ({"k": (2, 0, 12, 64), "v": (2, 0, 12, 64)}, ValueError, r"k of shape \(2, a divisor of 4, \*, 64\)"),
        ({"v": (2, 4, 13, 64)}, ValueError, r"v of shape \(2, 4, 12, 64\), got \(2, 4, 13, 64\)"),
        ({"q": (2, 10, 64)}, ValueError, r"q of shape \(batch, heads, q_len, head_dim\).*got \(2, 10, 64\)"),
        ({"q": (2, 4, 10, 300)}, ValueError, r"head_dim 1 to 256, got \(2, 4, 10, 300\)"),
        ({"mask": RangeMask.full(10, 13)}, ValueError, "mask of q_len 10 and k_len 12, got q_len 10 and k_len 13"),
        ({"mask": RangeMask.stack([RangeMask.full(10, 12)] * 3)}, ValueError, "mask of batch 2 or None, got 3"),
        ({"dtype": torch.int64}, TypeError, "float32, bfloat16, float16 or float64, got torch.int64"),
        ({"k_dtype": torch.float64}, TypeError, "k of dtype torch.float32, got torch.float64"),
    ],
)
def test_errors_name_what_was_expected_and_what_came(change, error, message):
    q = torch.ones(change.get("q", (2, 4, 10, 64)), dtype=change.get("dtype", torch.float32))
    k = torch.ones(change.get("k", (2, 4, 12, 64)), dtype=change.get("k_dtype", q.dtype))
    v = torch.ones(change.get("v", (2, 4, 12, 64)), dtype=q.dtype)
    with pytest.raises(error, match=f"range_attention: expected .*{message}"):
        range_attention(q, k, v, change.get("mask"))


def test_ranges_that_point_outside_are_refused_by_the_operator():
    q, k, v = inputs(torch.float32, 1, 1, 1, 4, 4, 32)
    mask = RangeMask.full(4, 5)
    with pytest.raises(RuntimeError, match="out of bounds"):
        ops.range_attention(q, k, v, mask.batch_ptr, mask.q_ranges, mask.key_ptr, mask.key_ranges, 1.0)
