"""What range_attention runs without gradients: operators of one result, whose mask is one tensor."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from attention_oracle import DTYPES, inputs

from videoar_kernels import RangeMask, attention, range_attention
from videoar_kernels.library import ops

F32, BF16 = torch.float32, torch.bfloat16
MASKS = {
    "none": None,
    "units": RangeMask.units([3, 20, 14], 4),
    "runs": RangeMask.from_dense(torch.rand(2, 41, 41) < 0.5),
    "blind": RangeMask.from_dense(torch.zeros(41, 41, dtype=torch.bool)),
}


@pytest.mark.on_gpu("dtype, head_dim", [(BF16, 64), (F32, 33)])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("head_dim", [64, 33])
def test_bits_are_those_of_training(isa, dtype, mask, head_dim):
    q, k, v = inputs(dtype, 2, 4, 2, 41, 41, head_dim)
    expected, lse = range_attention(q.clone().requires_grad_(), k, v, mask, return_lse=True)
    out = torch.full_like(q, torch.nan)
    with torch.no_grad():
        assert torch.equal(range_attention(q, k, v, mask), expected)
        assert range_attention(q, k, v, mask, out=out) is out
        assert torch.equal(range_attention(q, k, v, mask, return_lse=True)[1], lse)
        assert torch.equal(out, expected)
        few = slice(0, 41, 11)  # decoding
        dense = None if mask is None else mask.to_dense()[..., few, :]
        few_mask = None if mask is None else RangeMask.from_dense(dense)
        decoded = range_attention(q[:, :, few], k, v, few_mask)
    assert torch.equal(decoded, range_attention(q[:, :, few].requires_grad_(), k, v, few_mask))


def test_a_mask_is_told_by_its_content():
    """Masks of equal sizes, one after the other and as copies, never stand for one another."""
    q, k, v = inputs(torch.float32, 1, 2, 2, 12, 12, 32)
    masks = [RangeMask.units([n, 12 - n]) for n in range(1, 12)]
    expected = [range_attention(q.requires_grad_(), k, v, mask).detach() for mask in masks]
    with torch.no_grad():
        for _ in range(2):
            for mask, out in zip(masks, expected, strict=True):
                for same in (mask, copy.deepcopy(mask), pickle.loads(pickle.dumps(mask))):
                    assert torch.equal(range_attention(q, k, v, same), out)


@pytest.mark.parametrize("batch", [None, 1, 3])
def test_packed_holds_the_whole_mask(batch):
    mask = RangeMask.units([5, 7], 2) if batch is None else RangeMask.stack([RangeMask.units([5, 7], 2)] * batch)
    assert mask.packed.dtype == torch.int32
    *arrays, scale = attention._unpacked(torch.ones(1, 1, 1, 16), mask.packed, None)
    for array, name in zip(arrays, ("batch_ptr", "q_ranges", "key_ptr", "key_ranges"), strict=True):
        assert torch.equal(array, getattr(mask, name))
    assert scale == 0.25
    assert mask != RangeMask.units([5, 7], 2) or batch is None


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_devices_without_the_operator_run_range_attention(mask):
    q, k, v = inputs(torch.float32, 2, 4, 2, 41, 41, 32)
    packed = None if mask is None else mask.packed
    expected = ops.range_attention_forward(q, k, v, packed, None)
    assert torch.equal(attention._forward_elsewhere(q, k, v, packed, None), expected)
    out = torch.empty_like(q)
    attention._forward_out_elsewhere(q, k, v, packed, None, out)
    assert torch.equal(out, expected)


def test_packed_masks_that_point_outside_are_refused_by_the_operator():
    q, k, v = inputs(torch.float32, 2, 2, 2, 6, 6, 32)
    good = RangeMask.units([2, 4]).packed

    def changed(place, number):
        return torch.cat([good[:place], good.new_tensor([number]), good[place + 1 :]])

    header = [changed(place, number) for place in range(5) for number in (-2, 0, 1, 3, 7, 2**31 - 1)]
    header = [packed for packed in header if not torch.equal(packed, good)]
    for packed in (*header, good[:-1], good[:4], good[:0], good.long(), torch.cat([good, good[:1]])):
        with pytest.raises(RuntimeError, match="range_attention: "):
            ops.range_attention_forward(q, k, v, packed, None)
        with pytest.raises(RuntimeError, match="range_attention: "):
            ops.range_attention_forward_out(q, k, v, packed, None, torch.empty_like(q))
    for place in range(5, good.numel()):
        with pytest.raises(RuntimeError, match="range_attention: mask with"):
            ops.range_attention_forward(q, k, v, changed(place, 99), None)
    batched = RangeMask.stack([RangeMask.units([2, 4])] * 3).packed
    with pytest.raises(RuntimeError, match="lengths or batch"):
        ops.range_attention_forward(q, k, v, batched, None)


@pytest.mark.parametrize("masked", [False, True])
def test_opcheck(masked):
    packed = RangeMask.units([3, 4], 2).packed if masked else None
    q, k, v = inputs(torch.float32, 2, 4, 2, 9, 9, 32)
    for scale in (None, 0.2):
        torch.library.opcheck(ops.range_attention_forward.default, (q, k, v, packed, scale))
        torch.library.opcheck(ops.range_attention_forward_out.default, (q, k, v, packed, scale, torch.empty_like(q)))


def test_inside_a_full_graph_without_gradients():
    mask = RangeMask.units([5, 7])
    q, k, v = inputs(torch.float32, 1, 2, 2, 12, 12, 32)
    compiled = torch.compile(lambda *x: range_attention(*x, mask) * 2, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert torch.equal(compiled(q, k, v), 2 * range_attention(q, k, v, mask))


def test_sizes_of_zero():
    with torch.no_grad():
        for sizes in ((0, 2, 3, 4), (2, 2, 0, 4), (2, 2, 3, 0)):
            batch, heads, q_len, k_len = sizes
            q, k, v = inputs(torch.float32, batch, heads, heads, q_len, k_len, 16)
            for mask in (None, RangeMask.full(q_len, k_len)):
                out = range_attention(q, k, v, mask)
                assert out.shape == q.shape
                assert (out == 0).all()
