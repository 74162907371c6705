"""Plans are found again by their mask's content, whatever tensors hold it, and never by where it lies."""

from __future__ import annotations

import threading

import pytest
import torch
from attention_oracle import exact_attention, inputs
from closeness import assert_close

from videoar_kernels import _C, RangeMask
from videoar_kernels.library import ops


def arrays_of(mask):
    return [a.numpy() for a in (mask.batch_ptr, mask.q_ranges, mask.key_ptr, mask.key_ranges)]


def plan(mask, tile=24, **options):
    return _C.plan(*arrays_of(mask), mask.q_len, mask.k_len, tile, **options)


def test_a_plan_is_found_again_by_content():
    _C.clear_plan_cache()
    before = _C.plan_cache()
    masks = [RangeMask.units([5, 9, 30], window=1) for _ in range(3)]
    plans = [plan(mask, cached=True) for mask in masks]
    assert plans[0] == plans[1] == plans[2] == plan(masks[0])
    after = _C.plan_cache()
    assert (after["misses"] - before["misses"], after["hits"] - before["hits"]) == (1, 2)
    assert after["plans"] == 1
    for options in ({"tile": 8}, {"tile": 24, "by_key": True}):
        assert plan(masks[0], cached=True, **options) == plan(masks[0], **options)
    assert _C.plan_cache()["plans"] == 3


def test_plans_of_equal_sizes_and_different_content_are_told_apart():
    _C.clear_plan_cache()
    rows = [(i, i + 1) for i in range(400)]
    masks = [
        RangeMask.from_ranges(400, 400, rows, [[(0, 1 + i // 2 + 100 * (i == j))] for i in range(400)])
        for j in range(40)
    ]
    expected = [plan(mask) for mask in masks]
    for _ in range(3):
        for mask, wanted in zip(masks, expected, strict=True):
            assert plan(mask, cached=True) == wanted
    assert _C.plan_cache()["plans"] == 40


def test_arrays_that_change_are_seen():
    q, k, v = inputs(torch.float32, 1, 1, 1, 4, 100, 16)
    mask = RangeMask.full(4, 100)
    arrays = [a.clone() for a in (mask.batch_ptr, mask.q_ranges, mask.key_ptr, mask.key_ranges)]
    for end in (100, 40, 100, 7):
        arrays[3][0, 1] = end
        out, _ = ops.range_attention(q, k, v, *arrays, 0.25)
        assert_close(out, exact_attention(q, k[:, :, :end], v[:, :, :end])[0], factor=0)
    arrays[3][0, 1] = 101
    with pytest.raises(RuntimeError, match="out of bounds"):
        ops.range_attention(q, k, v, *arrays, 0.25)


def test_the_cache_of_plans_is_bounded():
    _C.clear_plan_cache()
    for i in range(200):
        plan(RangeMask.full(10 + i, 10), cached=True)
    assert _C.plan_cache()["plans"] == 64
    for frames in (100, 101, 102):
        mask = RangeMask.units([1, 1] * 150000, window=frames)
        _C.plan_segments(*arrays_of(mask), mask.q_len, mask.k_len, 1, cached=True)
    assert _C.plan_cache()["bytes"] <= 64 << 20


def test_many_threads_share_plans():
    _C.clear_plan_cache()
    masks = [RangeMask.units([3 + i, 40, 7], window=1) for i in range(100)]  # more than are kept
    expected = [plan(mask) for mask in masks]
    wrong = []

    def work(seed):
        order = torch.randperm(len(masks), generator=torch.Generator().manual_seed(seed)).tolist()
        wrong.extend(i for i in order * 5 if plan(masks[i], cached=True) != expected[i])

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
