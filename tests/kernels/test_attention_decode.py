"""Few queries against many keys: range_attention against float64, and what decoding promises beyond numbers."""

from __future__ import annotations

import pytest
import torch
from attention_oracle import eager_attention, exact_attention, factor, inputs
from closeness import assert_close

from videoar_kernels import KVCache, RangeMask, range_attention
from videoar_kernels.library import ops

F32, BF16, F16, F64 = torch.float32, torch.bfloat16, torch.float16, torch.float64
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def check(q, k, v, mask=None, *, scale=None):
    dense = None if mask is None else mask.to_dense(q.device)
    out, lse = range_attention(q, k, v, mask, scale=scale, return_lse=True)
    exact = exact_attention(q, k, v, dense, scale)
    if q.dtype == torch.float64:
        torch.testing.assert_close(out, exact[0], rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(lse, exact[1], rtol=1e-11, atol=1e-12)
        return
    eager = eager_attention(q, k, v, dense, scale)
    assert_close(out, exact[0], eager[0], factor=factor(q))
    assert_close(lse, exact[1], eager[1], factor=factor(q))


@pytest.mark.on_gpu("dtype, queries", [*((BF16, n) for n in range(50)), (F32, 1), (F32, 33), (F16, 16), (F64, 5)])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("queries", [1, 2, 3, 5, 6, 7, 16, 23, 32, 33, 48, 49])
def test_every_number_of_queries(isa, dtype, queries):
    check(*inputs(dtype, 2, 2, 2, queries, 1111, 64))


@pytest.mark.on_gpu("dtype, head_dim", [(F32, 31), (BF16, 80), (F32, 200), (BF16, 128)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("head_dim", [1, 7, 16, 31, 32, 40, 80, 96, 128, 200, 255, 256])
def test_any_head_dim(isa, dtype, head_dim):
    for queries in (1, 9):
        check(*inputs(dtype, 1, 2, 1, queries, 700, head_dim))


@pytest.mark.on_gpu("dtype, heads", [(BF16, 6), (F32, 8), (F16, 12), (BF16, 32)])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "kv_heads", "queries"), [(6, 2, 1), (8, 1, 3), (12, 1, 11), (32, 1, 8)])
def test_a_group_of_query_heads_reads_the_keys_once(isa, dtype, heads, kv_heads, queries):
    check(*inputs(dtype, 2, heads, kv_heads, queries, 600, 32))


@pytest.mark.parametrize("k_len", [1, 2, 63, 64, 65, 511, 512, 513, 1024, 16384, 16385, 40000])
def test_keys_at_the_edges_of_blocks_and_chunks(isa, k_len):
    for queries in (1, 8):
        check(*inputs(torch.float32, 1, 1, 1, queries, k_len, 16))


@pytest.mark.on_gpu("dtype", [BF16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_cache_that_wrapped(isa, dtype):
    """What KVCache.view gives: buffers of the capacity, of which ranges of slots are held."""
    cache = KVCache(1, 2, 2, 900, 64, sink=100, window=600, dtype=dtype)
    cache.k[0].fill_(torch.nan)
    cache.v[0].fill_(torch.nan)
    for _ in range(11):
        cache.append(0, *(torch.randn(2, 2, 2, 170, 64).to(dtype)))
        cache.commit()
    cache.append(0, *(torch.randn(2, 2, 2, 5, 64).to(dtype)))
    view = cache.view(0)
    assert len(view.ranges) > 1
    assert view.ranges[-1][1] == 900
    held = torch.cat([torch.arange(a, b) for a, b in view.ranges])
    q = torch.randn(2, 6, 5, 64).to(dtype)
    out = range_attention(q, view.k, view.v, view.mask(5))
    k, v = view.k[:, :, held], view.v[:, :, held]
    assert_close(out, exact_attention(q, k, v)[0], eager_attention(q, k, v)[0])


@pytest.mark.on_gpu("dtype", [F32])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_queries_see_different_keys(isa, dtype):
    """New tokens see the cache and, causally, one another; some see a part of the cache, one sees nothing."""
    queries, cached = 12, 1500
    dense = torch.ones(queries, cached + queries).tril(cached).bool()
    dense[3:5, 200:900] = False
    dense[7] = False
    dense[11, :1400] = False
    q, k, v = inputs(dtype, 2, 4, 2, queries, cached + queries, 64)
    mask = RangeMask.from_dense(dense)
    check(q, k, v, mask)
    out, lse = range_attention(q, k, v, mask, return_lse=True)
    assert (out[:, :, 7] == 0).all()
    assert (lse[:, :, 7] == -torch.inf).all()


@pytest.mark.on_gpu("dtype", [BF16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_mask_for_each_sample(isa, dtype):
    dense = torch.zeros(3, 4, 1300, dtype=torch.bool)
    dense[0, :, :700] = True
    dense[1, 1:3, 400:1300] = True
    dense[2, :, 100:200] = dense[2, 2:, 600:1111] = True
    check(*inputs(dtype, 3, 4, 2, 4, 1300, 32), RangeMask.from_dense(dense))


def test_masks_without_any_run(isa):
    check(*inputs(torch.float32, 1, 4, 2, 6, 500, 32), RangeMask.from_dense(torch.rand(6, 500) < 0.5))


@pytest.mark.on_gpu("dtype, bad", [(F32, torch.inf), (BF16, torch.nan)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_nothing_leaks_from_keys_outside_the_ranges(isa, dtype, bad):
    dense = torch.ones(10, 1200, dtype=torch.bool)
    dense[:, 1000:] = False
    dense[4:, 300:400] = False
    mask = RangeMask.from_dense(dense)
    for queries in (slice(0, 10), slice(4, 5)):
        part = RangeMask.from_dense(dense[queries])
        q, k, v = inputs(dtype, 2, 4, 2, dense[queries].shape[0], 1200, 64)
        clean = range_attention(q, k, v, part)
        for hidden in (slice(1000, 1200), slice(300, 400)):
            k2, v2 = k.clone(), v.clone()
            k2[:, :, hidden] = bad
            v2[:, :, hidden] = bad
            clear = ~dense[queries][:, hidden].any(1)
            out = range_attention(q, k2, v2, part)
            assert torch.equal(out[:, :, clear], clean[:, :, clear])
            assert not out[:, :, ~clear].isfinite().any()
    assert mask.k_len == 1200


@pytest.mark.on_gpu("dtype", [BF16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_peaked_and_rising_scores(isa, dtype):
    q, k, v = inputs(dtype, 1, 2, 2, 9, 1400, 64, peak=30.0)
    check(q, k, v)
    check(q[:, :, :1], k, v)
    k = torch.arange(1, 1401.0).mul(3).view(1, 1, -1, 1).expand(1, 2, -1, 64).to(dtype)
    for sign in (1, -1):
        check((torch.rand(1, 2, 9, 64) + 0.5).mul(sign).to(dtype), k, v)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("queries", [1, 20])
def test_bits_depend_neither_on_threads_nor_on_the_batch(dtype, queries):
    q, k, v = inputs(dtype, 3, 2, 1, queries, 5000, 64)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(range_attention(q, k, v, return_lse=True))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))
    assert torch.equal(range_attention(q[1:2], k[1:2], v[1:2]), results[0][0][1:2])


def test_strided_inputs(isa):
    fused = torch.randn(2, 600, 3, 4, 48)[..., :32]
    q, k, v = (x.transpose(1, 2) for x in fused.unbind(2))
    q = q[:, :, :3]
    dense = range_attention(q.contiguous(), k.contiguous(), v.contiguous())
    assert torch.equal(range_attention(q, k, v), dense)
    shared = k[:, :1].expand(2, 4, 600, 32)
    assert torch.equal(range_attention(q, shared, shared), range_attention(q, *[shared.contiguous()] * 2))


@pytest.mark.parametrize("queries", [4, 60])
def test_out_receives_the_result(isa, queries):
    q, k, v = inputs(torch.bfloat16, 2, 4, 2, queries, 700, 64)
    expected, expected_lse = range_attention(q, k, v, return_lse=True)
    buffers = (
        torch.full_like(q, torch.nan),
        torch.full((2, queries, 4, 64), torch.nan, dtype=q.dtype).transpose(1, 2),
        torch.full((2, 4, queries + 3, 80), torch.nan, dtype=q.dtype)[:, :, 2:-1, :64],
    )
    for out in buffers:
        result, lse = range_attention(q, k, v, return_lse=True, out=out)
        assert result is out
        assert torch.equal(out, expected)
        assert torch.equal(lse, expected_lse)
        with torch.no_grad():
            assert range_attention(q, k, v, out=out.fill_(torch.nan)) is out
        assert torch.equal(out, expected)
    assert buffers[2]._base[:, :, :2].isnan().all()
    assert buffers[2]._base[..., 64:].isnan().all()


@pytest.mark.parametrize("grad", [True, False])
def test_out_is_refused_where_it_cannot_serve(grad):
    q, k, v = inputs(torch.float32, 1, 2, 2, 3, 9, 32)
    fused = torch.randn(1, 2, 12, 32)
    wrong = [
        ((q, k, v, torch.empty(1, 2, 4, 32)), ValueError, "out of shape"),
        (
            (q, k, v, torch.empty(1, 2, 3, 32, dtype=torch.float64)),
            TypeError,
            "out of torch.float32, got torch.float64",
        ),
        ((q, k, v, torch.empty(1, 2, 3, 64)[..., ::2]), ValueError, "contiguous last dimension"),
        ((q, k, v, torch.empty(1, 1, 3, 32).expand(1, 2, 3, 32)), ValueError, "no element stored twice"),
        ((q, k, v, torch.empty(200).as_strided((1, 2, 3, 32), (96, 40, 20, 1))), ValueError, "no element stored twice"),
        ((fused[:, :, :3], k, v, fused[:, :, 1:4]), ValueError, "apart from q"),
        ((q, fused[:, :, :9], v, fused[:, :, 8:11]), ValueError, "apart from k"),
    ]
    with torch.set_grad_enabled(grad):
        for (q_, k_, v_, out), error, message in wrong:
            with pytest.raises(error, match=f"range_attention: expected .*{message}"):
                range_attention(q_, k_, v_, out=out)
        if grad:
            with pytest.raises(ValueError, match="need no gradient with out"):
                range_attention(q.requires_grad_(), k, v, out=torch.empty(1, 2, 3, 32))


def test_without_gradients_errors_stay_the_same():
    q, k, v = inputs(torch.float32, 2, 4, 2, 3, 9, 32)
    wrong = [
        ((q, k, v[:, :, :8]), ValueError, "expected v of shape"),
        ((q, k[:1], v[:1]), ValueError, "expected k of shape"),
        ((q, k.double(), v.double()), TypeError, "expected k of dtype"),
        ((q[0], k, v), ValueError, "expected q of shape"),
        ((torch.ones(2, 4, 3, 0), torch.ones(2, 2, 9, 0), torch.ones(2, 2, 9, 0)), ValueError, "head_dim 1 to 256"),
        ((q.int(), k.int(), v.int()), TypeError, "expected q of dtype"),
        ((q, k, v, RangeMask.full(3, 8)), ValueError, "mask of q_len 3 and k_len 9"),
        ((q, k, v, RangeMask.full(2, 9)), ValueError, "mask of q_len 3 and k_len 9"),
        ((q, k, v, RangeMask.stack([RangeMask.full(3, 9)])), ValueError, "mask of batch 2 or None, got 1"),
    ]
    for arguments, error, message in wrong:
        for mode in (torch.no_grad, torch.inference_mode, torch.enable_grad):
            with mode(), pytest.raises(error, match=f"range_attention: .*{message}"):
                range_attention(*arguments)


def test_opcheck_of_out():
    mask = RangeMask.units([3, 4], 2)
    q, k, v = inputs(torch.float32, 2, 4, 2, 9, 9, 32)
    arrays = (mask.batch_ptr, mask.q_ranges, mask.key_ptr, mask.key_ranges)
    torch.library.opcheck(ops.range_attention_out.default, (q, k, v, *arrays, 0.2, torch.empty_like(q)))


def test_out_inside_a_full_graph():
    q, k, v = inputs(torch.float32, 1, 2, 2, 4, 30, 32)
    compiled = torch.compile(
        lambda q, k, v, out: range_attention(q, k, v, out=out) * 2, fullgraph=True, backend="aot_eager"
    )
    out = torch.empty_like(q)
    with torch.no_grad():
        assert torch.equal(compiled(q, k, v, out), 2 * range_attention(q, k, v))
        assert torch.equal(out, range_attention(q, k, v))
