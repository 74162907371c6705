"""Gradients of range_attention where test_attention.py does not look: odd shapes, shared heads, threads, NaN."""

from __future__ import annotations

import pytest
import torch
from attention_oracle import DTYPES, check, exact_attention, inputs
from closeness import assert_close

from videoar_kernels import RangeMask, range_attention

F32, BF16, F16, F64 = torch.float32, torch.bfloat16, torch.float16, torch.float64


def gradients(q, k, v, mask, grad, grad_lse=None):
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    out, lse = range_attention(*leaves, mask, return_lse=True)
    outputs, weights = ((out,), (grad,)) if grad_lse is None else ((out, lse), (grad, grad_lse))
    return torch.autograd.grad(outputs, leaves, weights)


@pytest.mark.on_gpu("dtype, head_dim", [(BF16, 64), (F16, 128), (F32, 33), (F64, 72)])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [64, 128, 33, 72])
@pytest.mark.parametrize(("q_len", "k_len"), [(13, 11), (59, 47), (61, 49), (121, 97), (7, 193)])
def test_lengths_beside_the_block_sizes(isa, dtype, head_dim, q_len, k_len):
    check(*inputs(dtype, 1, 2, 1, q_len, k_len, head_dim), None)


@pytest.mark.on_gpu("dtype", [BF16, F64])
@pytest.mark.parametrize("dtype", DTYPES)
def test_masks_whose_ranges_start_anywhere(isa, dtype):
    mask = RangeMask.multiscale(3, 4, [(1, 1), (1, 3), (3, 5), (5, 7)], window=2)
    check(*inputs(dtype, 2, 4, 2, mask.q_len, mask.k_len, 48), mask)
    check(*inputs(dtype, 1, 1, 1, 150, 130, 64), RangeMask.from_dense(torch.rand(150, 130) < 0.3))


@pytest.mark.on_gpu("dtype", [F32])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_mask_for_each_sample_with_rows_that_see_nothing(isa, dtype):
    dense = torch.rand(3, 70, 90) < 0.5
    dense[0, 10:40] = False
    dense[1] = False
    dense[2, :, 33:60] = False
    check(*inputs(dtype, 3, 2, 1, 70, 90, 40), RangeMask.from_dense(dense))


@pytest.mark.on_gpu("dtype, peak", [(BF16, 8.0), (F32, 30.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("peak", [8.0, 30.0])
def test_peaked_rows_err_no_more_than_eager(isa, dtype, peak):
    for seed in range(3):
        torch.manual_seed(seed)
        check(*inputs(dtype, 1, 1, 1, 100, 300, 64, peak=peak), None)


@pytest.mark.on_gpu("dtype", [F32, BF16])
@pytest.mark.parametrize("dtype", DTYPES)
def test_one_key_takes_all_the_weight_and_no_gradient_passes(isa, dtype):
    """delta and the weight's gradient are sums of the same numbers, on a CPU in one order: they cancel."""
    q, k, v = inputs(dtype, 1, 2, 2, 40, 30, 64)
    mask = RangeMask.from_dense(torch.eye(40, 30, dtype=torch.bool))
    grad_q, grad_k, _ = gradients(q, k, v, mask, torch.randn_like(q))
    if isa != "cuda" and (dtype != torch.bfloat16 or isa != "avx512_bf16"):
        assert (grad_q == 0).all()
        assert (grad_k == 0).all()
    assert_close(grad_q.float(), torch.zeros(grad_q.shape).double(), torch.full(grad_q.shape, 1e-3))


@pytest.mark.on_gpu("dtype", [F32])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_lse_has_a_gradient(isa, dtype):
    q, k, v = inputs(dtype, 1, 4, 2, 37, 50, 32)
    mask = RangeMask.from_dense(torch.rand(37, 50) < 0.5)
    grad_lse = torch.randn(1, 4, 37)
    leaves = [x.double().requires_grad_() for x in (q, k, v)]
    exact = torch.autograd.grad(exact_attention(*leaves, mask.to_dense(q.device))[1], leaves[:2], grad_lse.double())
    ours = gradients(q, k, v, mask, torch.zeros_like(q), grad_lse)
    for a, b in zip(ours, exact, strict=False):
        assert_close(a, b, b.to(torch.bfloat16) if dtype == torch.bfloat16 else b.float(), factor=8)
    assert (ours[2] == 0).all()


@pytest.mark.on_gpu("dtype", [BF16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_expanded_and_strided_gradients(isa, dtype):
    q, k, v = inputs(dtype, 2, 4, 2, 33, 33, 32)
    dense = torch.randn(2, 33, 4, 32).to(dtype)
    for grad in (dense.transpose(1, 2), dense[:1, :1, :1].expand(2, 33, 4, 32).transpose(1, 2), dense[0, 0, 0, 0]):
        grad = grad.expand(2, 4, 33, 32)
        for a, b in zip(gradients(q, k, v, None, grad), gradients(q, k, v, None, grad.contiguous()), strict=True):
            assert torch.equal(a, b)


@pytest.mark.on_gpu("dtype", [BF16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("where", ["q", "k", "v", "grad"])
def test_numbers_outside_the_mask_reach_no_gradient(isa, dtype, bad, where):
    """Unit 1 holds the bad numbers; unit 0 does not see it and is not seen by it."""
    dense = torch.block_diag(torch.ones(70, 50), torch.ones(30, 21)).bool()
    q, k, v = inputs(dtype, 1, 2, 1, 100, 71, 32)
    grad = torch.randn_like(q)
    clean = gradients(q[:, :, :70], k[:, :, :50], v[:, :, :50], None, grad[:, :, :70])
    at = {"q": (q, 70), "k": (k, 50), "v": (v, 50), "grad": (grad, 70)}[where]
    at[0][:, :, at[1] + 3 :: 5] = bad
    ours = gradients(q, k, v, RangeMask.from_dense(dense), grad)
    for a, b, end in zip(ours, clean, (70, 50, 50), strict=True):
        assert a[:, :, :end].isfinite().all()
        assert_close(a[:, :, :end], b.double(), b, slack=8 * torch.finfo(dtype).eps)


@pytest.mark.on_gpu("dtype", [BF16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(("batch", "heads", "kv_heads"), [(1, 1, 1), (1, 3, 3), (1, 4, 1), (2, 6, 3)])
def test_bits_do_not_depend_on_how_threads_share_heads(isa, dtype, batch, heads, kv_heads):
    """Key heads that divide among the threads are taken whole, the others tile by tile, in turns."""
    mask = RangeMask.multiscale(5, 3, [(1, 1), (2, 3), (7, 9)], window=1)
    q, k, v = inputs(dtype, batch, heads, kv_heads, mask.q_len, mask.k_len, 40)
    grad, grad_lse = torch.randn_like(q), torch.randn(q.shape[:3], dtype=torch.promote_types(dtype, torch.float32))
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 5, 8):
            torch.set_num_threads(threads)
            results.append(gradients(q, k, v, mask, grad, grad_lse))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("group", [1, 3])
def test_gradcheck_of_one_key_head(isa, group):
    mask = RangeMask.from_dense(torch.rand(7, 11) < 0.6)
    leaves = [x.requires_grad_() for x in inputs(torch.float64, 1, group, 1, 7, 11, 6)]

    def finite(q, k, v):
        out, lse = range_attention(q, k, v, mask, return_lse=True)
        return out, lse.nan_to_num(neginf=0.0)

    assert torch.autograd.gradcheck(finite, leaves)
