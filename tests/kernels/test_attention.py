"""range_attention against an einsum in float64, on every instruction set, and what it promises beyond numbers."""

from __future__ import annotations

import pytest
import torch
from attention_oracle import DTYPES, check, exact_attention, inputs
from closeness import assert_close

from videoar_kernels import RangeMask, range_attention, reference

F32, BF16, F16, F64 = torch.float32, torch.bfloat16, torch.float16, torch.float64


@pytest.mark.on_gpu("dtype, head_dim", [(BF16, 64), (F16, 128), (BF16, 32), (F64, 64)])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [32, 64, 40, 128])
def test_every_key(isa, dtype, head_dim):
    check(*inputs(dtype, 2, 3, 3, 37, 53, head_dim), None)


@pytest.mark.on_gpu("dtype", [F32, BF16, F64])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_multiscale_mask(isa, dtype):
    mask = RangeMask.multiscale(7, 3, [(1, 1), (2, 2), (4, 4), (5, 5)], window=1)
    check(*inputs(dtype, 2, 2, 2, mask.q_len, mask.k_len, 64), mask)


@pytest.mark.on_gpu("dtype", [BF16, F64])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_mask_for_each_sample(isa, dtype):
    keep = torch.rand(3, 4, 4) < 0.5
    mask = RangeMask.multiscale(5, 4, [(1, 1), (3, 3), (4, 5)], frame_keep=keep)
    check(*inputs(dtype, 3, 4, 2, mask.q_len, mask.k_len, 32), mask)


def test_random_masks_lengths_and_heads(isa):
    head_dims = [64] if isa == "cuda" else [8, 33, 64, 96, 1, 256]  # each is compiled anew there
    for trial in range(12):
        generator = torch.Generator().manual_seed(trial)

        def draw(low, high, generator=generator):
            return int(torch.randint(low, high, (), generator=generator, device="cpu"))

        batch, kv_heads, group = draw(1, 3), draw(1, 3), draw(1, 4)
        q_len, k_len, head_dim = draw(1, 80), draw(1, 300), head_dims[trial % len(head_dims)]
        rows, columns = (batch, q_len, 1), (batch, 1, k_len)
        rows, columns = (torch.rand(size, generator=generator, device="cpu") for size in (rows, columns))
        dense = rows < columns
        if trial % 2:
            dense = dense[:, :, : k_len // 10 + 1].repeat_interleave(10, 2)[:, :, :k_len]
        check(
            *inputs(torch.float32, batch, kv_heads * group, kv_heads, q_len, k_len, head_dim),
            RangeMask.from_dense(dense),
        )


@pytest.mark.parametrize(("q_len", "k_len"), [(1, 2), (1, 500), (3, 260), (64, 2), (200, 129)])
def test_lengths_differ(isa, q_len, k_len):
    check(*inputs(torch.float32, 1, 2, 1, q_len, k_len, 64), None)


@pytest.mark.on_gpu("dtype", [BF16, F64])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_group_of_query_heads_shares_a_key_head(isa, dtype):
    check(*inputs(dtype, 1, 6, 2, 40, 50, 32), RangeMask.from_dense(torch.rand(40, 50) < 0.7))


def test_scale_is_applied(isa):
    q, k, v = inputs(torch.float32, 1, 2, 2, 9, 11, 32)
    check(q, k, v, None, scale=0.7)
    check(q, k, v, None, scale=-0.3)


@pytest.mark.on_gpu("dtype", [F32, BF16])
@pytest.mark.parametrize("dtype", DTYPES)
def test_peaked_rows(isa, dtype):
    check(*inputs(dtype, 1, 2, 2, 30, 200, 64, peak=30.0), None)


@pytest.mark.parametrize("q_len", [1, 30])
def test_a_single_key_gives_its_value(isa, q_len):
    q, k, v = (x.requires_grad_() for x in inputs(torch.float32, 2, 2, 2, q_len, 1, 32))
    out, lse = range_attention(q, k, v, return_lse=True)
    # Three products of TF32 leave a bit or two of v.
    torch.testing.assert_close(out, v.expand_as(out), rtol=2**-21 if isa == "cuda" else 0, atol=0)
    torch.testing.assert_close(lse, (q * k).sum(-1) * 32**-0.5)
    grad_q, grad_k, grad_v = torch.autograd.grad(out.sum(), (q, k, v))
    torch.testing.assert_close(grad_v, torch.full_like(v, q_len))
    for grad in (grad_q, grad_k):
        torch.testing.assert_close(grad, torch.zeros_like(grad), rtol=0, atol=1e-5)


def test_scores_that_rise_with_every_key(isa):
    """Each new block of keys beats all before it by far more than the headroom: every rescaling path runs."""
    k = torch.arange(1, 301.0).mul(40).view(1, 1, -1, 1).expand(1, 2, -1, 16).contiguous()
    v = torch.randn(1, 2, 300, 16)
    q = torch.rand(1, 2, 33, 16) + 0.5
    for sign in (1, -1):
        out, lse = range_attention(q * sign, k, v, return_lse=True)
        out64, lse64 = exact_attention(q * sign, k, v)
        torch.testing.assert_close(out.double(), out64, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(lse.double(), lse64, rtol=1e-5, atol=1e-3)


def test_queries_without_keys_give_zero_and_pass_no_gradient(isa):
    dense = torch.rand(70, 40) < 0.5
    dense[[0, 20, 21, 22, 69]] = False
    dense[30:58] = False
    q, k, v = (x.requires_grad_() for x in inputs(torch.float32, 1, 2, 2, 70, 40, 32))
    out, lse = range_attention(q, k, v, RangeMask.from_dense(dense), return_lse=True)
    blind = ~dense.any(1)
    assert (out[:, :, blind] == 0).all()
    assert (lse[:, :, blind] == -torch.inf).all()
    grads = torch.autograd.grad(out.sum() + lse[:, :, ~blind].sum(), (q, k, v))
    assert (grads[0][:, :, blind] == 0).all()
    assert all(g.isfinite().all() for g in grads)


def test_no_query_sees_any_key(isa):
    q, k, v = (x.requires_grad_() for x in inputs(torch.float32, 2, 2, 1, 30, 40, 32))
    out = range_attention(q, k, v, RangeMask.from_dense(torch.zeros(30, 40, dtype=torch.bool)))
    assert (out == 0).all()
    for grad in torch.autograd.grad(out.sum(), (q, k, v)):
        assert (grad == 0).all()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("queries", [2, 200])
@pytest.mark.parametrize("empty", ["batch", "heads", "q_len", "k_len"])
def test_empty_sizes(isa, empty, queries, dtype, masked):
    sizes = {"batch": 2, "heads": 2, "q_len": queries, "k_len": 6} | {empty: 0}
    q, k, v = inputs(dtype, sizes["batch"], sizes["heads"], 2, sizes["q_len"], sizes["k_len"], 32)
    mask = RangeMask.full(sizes["q_len"], sizes["k_len"]) if masked else None
    with torch.no_grad():
        assert range_attention(q, k, v, mask, out=torch.empty_like(q)).shape == q.shape
        assert range_attention(q, k, v, mask, return_lse=True)[1].shape == q.shape[:3]
        assert torch.equal(range_attention(q, k, v, mask), torch.zeros_like(q))
    for x in (q, k, v):
        x.requires_grad_()
    out = range_attention(q, k, v, mask)
    assert out.shape == q.shape
    assert (out == 0).all()
    for x, grad in zip((q, k, v), torch.autograd.grad(out.sum(), (q, k, v)), strict=True):
        assert grad.shape == x.shape
        assert (grad == 0).all()


@pytest.mark.on_gpu("dtype, bad", [(F32, torch.inf), (BF16, torch.nan)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_nothing_leaks_from_keys_outside_the_ranges(isa, dtype, bad):
    mask = RangeMask.multiscale(3, 3, [(1, 1), (2, 3), (4, 4)], frame_keep=torch.rand(3, 3) < 0.5)
    q, k, v = inputs(dtype, 1, 2, 2, mask.q_len, mask.k_len, 40)
    dense = mask.to_dense(q.device)
    grad = torch.randn_like(q)

    def run(*tensors):
        leaves = [x.clone().requires_grad_() for x in tensors]
        out = range_attention(*leaves, mask)
        return out.detach(), *torch.autograd.grad(out, leaves, grad)

    clean = run(q, k, v)
    for poisoned in (4, 30, mask.k_len - 1):
        k2, v2 = k.clone(), v.clone()
        k2[:, :, poisoned] = bad
        v2[:, :, poisoned] = bad
        out, grad_q, _, _ = run(q, k2, v2)
        clear = ~dense[:, poisoned]
        assert clear.any()
        assert torch.equal(out[:, :, clear], clean[0][:, :, clear])
        assert torch.equal(grad_q[:, :, clear], clean[1][:, :, clear])
        assert not out[:, :, ~clear].isfinite().all()
        q2 = q.clone()
        q2[:, :, poisoned] = bad
        _, _, grad_k, grad_v = run(q2, k, v)
        clear = ~dense[poisoned]
        assert torch.equal(grad_k[:, :, clear], clean[2][:, :, clear])
        assert torch.equal(grad_v[:, :, clear], clean[3][:, :, clear])


def test_strided_and_expanded_inputs_and_gradients(isa):
    mask = RangeMask.units([5, 20, 13], 4)
    length = mask.q_len
    fused = torch.randn(2, length, 3, 4, 48)[..., :32]  # (B, L, qkv, H, D), rows with gaps
    q, k, v = (x.transpose(1, 2) for x in fused.unbind(2))
    k = k[:, :1].expand(2, 4, length, 32)
    v = v[:, :2]
    for case in ((q, k[:, :2], v), (q, k, k), (q.flip(2), k, k)):
        leaves = [x.detach().requires_grad_() for x in case]
        dense = [x.detach().contiguous().requires_grad_() for x in case]
        outs = [range_attention(*xs, mask) for xs in (leaves, dense)]
        assert torch.equal(*outs)
        grad = torch.randn(length, 2, 4, 32).permute(1, 2, 0, 3)
        for g in (grad, grad[:1, :, :1].expand_as(grad)):
            pairs = [
                torch.autograd.grad(o, xs, g, retain_graph=True) for o, xs in zip(outs, (leaves, dense), strict=True)
            ]
            for ours, theirs in zip(*pairs, strict=True):
                assert torch.equal(ours, theirs)
    columns = torch.randn(1, 2, 32, 10).mT  # the last dimension is not contiguous
    torch.testing.assert_close(range_attention(columns, columns, columns), range_attention(*[columns.contiguous()] * 3))


def test_the_output_is_stored_as_the_projection_reads_it():
    q, k, v = inputs(torch.float32, 2, 3, 3, 5, 5, 32)
    assert range_attention(q, k, v).transpose(1, 2).is_contiguous()


def test_parts_merge_through_lse():
    """Attention over two halves of the keys, merged by lse, is attention over all: gradients too."""
    leaves = [x.requires_grad_() for x in inputs(torch.float64, 1, 2, 2, 10, 30, 32)]
    q, k, v = leaves
    parts = [range_attention(q, k[:, :, s], v[:, :, s], return_lse=True) for s in (slice(11), slice(11, None))]
    lse = torch.stack([p[1] for p in parts])
    merged = (torch.stack([p[0] for p in parts]) * lse.softmax(0).unsqueeze(-1)).sum(0)
    whole = range_attention(q, k, v)
    torch.testing.assert_close(merged, whole)
    grad = torch.randn_like(whole)
    for a, b in zip(torch.autograd.grad(merged, leaves, grad), torch.autograd.grad(whole, leaves, grad), strict=True):
        torch.testing.assert_close(a, b)


def test_bits_are_the_same_again_and_with_other_threads():
    mask = RangeMask.multiscale(5, 4, [(1, 1), (3, 3), (8, 8)])
    leaves = [x.requires_grad_() for x in inputs(torch.float32, 2, 4, 2, mask.q_len, mask.k_len, 64)]
    grad = torch.randn(2, 4, mask.q_len, 64)

    def run():
        out, lse = range_attention(*leaves, mask, return_lse=True)
        return out, lse, *torch.autograd.grad(out, leaves, grad)

    first = run()
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            for a, b in zip(first, run(), strict=True):
                assert torch.equal(a, b)
    finally:
        torch.set_num_threads(before)


def test_gradcheck(isa):
    mask = RangeMask.from_dense(torch.rand(2, 6, 9) < 0.6)
    leaves = [x.requires_grad_() for x in inputs(torch.float64, 2, 2, 1, 6, 9, 5)]

    def finite(q, k, v):
        out, lse = range_attention(q, k, v, mask, return_lse=True)
        return out, lse.nan_to_num(neginf=0.0)

    assert torch.autograd.gradcheck(finite, leaves)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_reference_agrees_with_the_definition(dtype):
    q, k, v = inputs(dtype, 3, 4, 2, 12, 20, 16)
    dense = torch.rand(3, 12, 20) < 0.4
    dense[:, 3] = False
    for mask, form in ((RangeMask.from_dense(dense), dense), (RangeMask.from_dense(dense[0]), dense[0]), (None, None)):
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        exact = [x.double().requires_grad_() for x in (q, k, v)]
        out, lse = reference.attention.range_attention(*leaves, mask, return_lse=True)
        out64, lse64 = exact_attention(*exact, form)
        assert_close(out, out64, out64.to(dtype))
        assert torch.equal(lse.isfinite(), lse64.isfinite())
        torch.testing.assert_close(lse.double(), lse64, rtol=1e-5, atol=1e-5)
        grad = torch.randn_like(out)
        for a, b in zip(
            torch.autograd.grad(out, leaves, grad), torch.autograd.grad(out64, exact, grad.double()), strict=True
        ):
            torch.testing.assert_close(a.double(), b, rtol=0, atol=8 * torch.finfo(dtype).eps * b.abs().max().item())
