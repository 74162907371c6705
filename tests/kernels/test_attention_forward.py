"""range_attention's forward where its kernels change: keys in pairs, heads packed or not, rescaling, tile edges."""

from __future__ import annotations

import pytest
import torch
from attention_oracle import eager_attention, exact_attention, factor, inputs
from closeness import assert_close

from videoar_kernels import RangeMask, range_attention

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
LOW = [torch.float32, torch.bfloat16, torch.float16]


def check_forward(q, k, v, mask=None, **options):
    dense = None if mask is None else mask.to_dense(q.device)
    scale = options.get("scale")
    for ours, exact, eager in zip(
        range_attention(q, k, v, mask, return_lse=True, **options),
        exact_attention(q, k, v, dense, scale),
        eager_attention(q, k, v, dense, scale),
        strict=True,
    ):
        assert_close(ours, exact, eager, factor=factor(q))


@pytest.mark.on_gpu("dtype, head_dim", [(F32, 7), (BF16, 48), (F16, 160), (BF16, 255)])
@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("head_dim", [1, 2, 7, 33, 48, 72, 96, 127, 160, 192, 255, 256])
def test_any_head_dim(isa, dtype, head_dim):
    """Few queries, that read keys as they are, and enough to pack them; an odd number of keys."""
    for q_len in (5, 200):
        check_forward(*inputs(dtype, 1, 2, 1, q_len, 131, head_dim))


@pytest.mark.on_gpu("dtype, q_len", [(F32, 9), (BF16, 150)])
@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("q_len", [9, 150])
def test_ranges_start_and_stop_anywhere(isa, dtype, q_len):
    """Ranges of 1 to 9 keys, other ones for every third query, cut chunks, blocks and pairs at any place."""
    lengths = torch.randint(1, 10, (q_len // 3 + 1, 150))
    toggles = (torch.arange(150) % 2).repeat(len(lengths), 1)
    rows = [torch.repeat_interleave(t, n)[:301].bool() for t, n in zip(toggles, lengths, strict=True)]
    dense = torch.stack(rows).repeat_interleave(3, 0)[:q_len]
    check_forward(*inputs(dtype, 2, 2, 2, q_len, 301, 40), RangeMask.from_dense(dense))


@pytest.mark.on_gpu("dtype", [BF16])
@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("k_len", [1, 2, 95, 96, 97, 127, 128, 129, 255, 257, 513])
def test_lengths_around_chunks_and_blocks(isa, dtype, k_len):
    check_forward(*inputs(dtype, 1, 1, 1, 130, k_len, 32))


@pytest.mark.on_gpu("dtype", [BF16])
@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("q_len", [1, 8, 15, 16, 17, 31, 33, 47, 49, 63, 65])
def test_tiles_of_any_height(isa, dtype, q_len):
    check_forward(*inputs(dtype, 1, 1, 1, q_len, 70, 64))
    check_forward(*inputs(dtype, 1, 1, 1, 128 + q_len, 70, 64))


@pytest.mark.on_gpu("dtype, scale", [(BF16, 0.7), (F32, -0.3), (F32, 0.0), (BF16, 1e-12)])
@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("scale", [0.7, -0.3, 0.0, 1e-12])
def test_any_scale(isa, dtype, scale):
    q, k, v = inputs(dtype, 1, 2, 2, 70, 90, 32)
    mask = RangeMask.from_dense(torch.rand(70, 90) < 0.8)
    if scale:
        check_forward(q, k, v, mask, scale=scale)
        return
    dense = mask.to_dense(q.device).double()
    out, lse = range_attention(q, k, v, mask, scale=0.0, return_lse=True)
    mean = dense @ v.double() / dense.sum(1, keepdim=True)
    assert_close(out, mean, mean.to(dtype))
    torch.testing.assert_close(lse.double(), dense.sum(1).log().expand_as(lse), rtol=1e-5, atol=1e-5)


@pytest.mark.on_gpu("dtype, order", [(F32, "rising"), (BF16, "falling"), (F32, "saw")])
@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("order", ["rising", "falling", "saw"])
def test_maxima_that_move_by_more_than_the_headroom(isa, dtype, order):
    """Scores climb by hundreds from key to key: sums are rescaled at every chunk, up to a single key that matters."""
    steps = {"rising": torch.arange(300), "falling": torch.arange(300).flip(0), "saw": torch.arange(300) % 37}[order]
    k = steps.mul(4.0).view(1, 1, -1, 1).expand(1, 2, -1, 16).to(dtype)
    q = (torch.rand(1, 2, 140, 16) + 0.5).to(dtype)
    v = torch.randn(1, 2, 300, 16).to(dtype)
    for sign in (1, -1):
        out, lse = range_attention(q * sign, k, v, return_lse=True)
        exact, exact_lse = exact_attention(q * sign, k, v)
        # float32 scores of thousands carry errors of 1e-4 or so into the weights of ties and near ties.
        torch.testing.assert_close(out.double(), exact, rtol=1e-3 + 2 * torch.finfo(dtype).eps, atol=2e-3)
        torch.testing.assert_close(lse.double(), exact_lse, rtol=5e-7 * factor(q), atol=1e-4)


@pytest.mark.on_gpu("dtype", [BF16])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_peaked_rows_are_as_exact_as_flat_ones(isa, dtype):
    """Nearly all weight on one key: the rounding of weights cancels against the sum that divides them."""
    q, k, v = inputs(dtype, 1, 2, 2, 140, 201, 64, peak=40.0)
    out = range_attention(q, k, v)
    exact, _ = exact_attention(q, k, v)
    assert_close(out, exact, eager_attention(q, k, v)[0])
    assert (out - exact).abs().max() <= 2 * torch.finfo(dtype).eps * exact.abs().max()


@pytest.mark.on_gpu("dtype, bad", [(F32, torch.nan), (F16, torch.inf), (F16, -torch.inf)])
@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_neighbours_of_a_range_have_no_influence(isa, dtype, bad):
    """Of a pair of keys the one outside the ranges may be anything, as may keys that only other queries see."""
    q, k, v = inputs(dtype, 1, 2, 1, 300, 601, 24)
    dense = torch.zeros(300, 601, dtype=torch.bool)
    dense[:100, 1:300] = True
    dense[:100, 301:600] = True
    dense[100:, 3:301] = True
    mask = RangeMask.from_dense(dense)
    clean, clean_lse = range_attention(q, k, v, mask, return_lse=True)
    for poisoned in (0, 2, 300, 301, 600):
        k2, v2 = k.clone(), v.clone()
        k2[:, :, poisoned] = bad
        v2[:, :, poisoned] = bad
        out, lse = range_attention(q, k2, v2, mask, return_lse=True)
        clear = ~dense[:, poisoned]
        assert torch.equal(out[:, :, clear], clean[:, :, clear])
        assert torch.equal(lse[:, :, clear], clean_lse[:, :, clear])
        assert not out[:, :, ~clear].isfinite().any()


@pytest.mark.on_gpu("dtype, head_dim", [(F32, 31), (BF16, 64)])
@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("head_dim", [31, 64])
def test_strides_do_not_matter(isa, dtype, head_dim):
    """Rows far apart are copied once, rows with gaps are not; sizes where heads are packed and where they are not."""
    for length in (10, 203):
        fused = torch.randn(2, length, 3, 4, 80).to(dtype)[..., :head_dim]  # (B, L, qkv, H, D)
        q, k, v = (x.transpose(1, 2) for x in fused.unbind(2))
        dense = range_attention(*(x.contiguous() for x in (q, k, v)))
        assert torch.equal(range_attention(q, k, v), dense)
        gaps = [torch.nn.functional.pad(x, (0, 5))[..., :head_dim] for x in (q, k, v)]
        assert torch.equal(range_attention(*gaps), dense)
        shared = k[:, :1].expand_as(k)
        assert torch.equal(range_attention(q, shared, shared), range_attention(q, k[:, :1], k[:, :1]))


@pytest.mark.on_gpu("dtype", [BF16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_mask_for_each_sample_and_grouped_heads_when_packed(isa, dtype):
    keep = torch.rand(2, 5, 5) < 0.6
    mask = RangeMask.multiscale(7, 5, [(1, 1), (3, 3), (5, 5)], frame_keep=keep)
    check_forward(*inputs(dtype, 2, 6, 2, mask.q_len, mask.k_len, 32), mask)


@pytest.mark.on_gpu("dtype", [BF16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_heads_that_are_packed_one_after_the_other(isa, dtype):
    """More than fits the memory for packed heads at a time."""
    q, k, v = inputs(dtype, 1, 2, 2, 130, 24001, 96)
    rows = torch.tensor([0, 64, 129])
    out = range_attention(q, k, v)[:, :, rows]
    assert_close(out, exact_attention(q[:, :, rows], k, v)[0], eager_attention(q[:, :, rows], k, v)[0])


def test_bits_do_not_depend_on_the_number_of_threads(isa):
    mask = RangeMask.multiscale(5, 4, [(1, 1), (3, 3), (8, 8)])
    q, k, v = inputs(torch.bfloat16, 2, 4, 2, mask.q_len, mask.k_len, 64)
    first = range_attention(q, k, v, mask)
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            assert torch.equal(range_attention(q, k, v, mask), first)
    finally:
        torch.set_num_threads(before)
