"""The work lists that kernels make of a RangeMask: tiles of queries, and blocks of keys."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from videoar_kernels import _C, RangeMask

SCALES = [(1, 1), (1, 2), (3, 2)]


def work_list(mask, tile, by_key):
    arrays = [a.numpy() for a in (mask.batch_ptr, mask.q_ranges, mask.key_ptr, mask.key_ranges)]
    return _C.plan(*arrays, mask.q_len, mask.k_len, tile, by_key)


@pytest.mark.parametrize("by_key", [False, True])
@pytest.mark.parametrize("tile", [1, 5, 24, 64])
def test_the_planner_covers_the_mask_once(tile, by_key):
    for dense in (
        torch.rand(2, 37, 50) < 0.5,
        (torch.rand(3, 40, 1) < torch.rand(3, 1, 66)).repeat_interleave(4, 1),
        torch.zeros(1, 10, 10, dtype=torch.bool),
        RangeMask.multiscale(3, 3, SCALES).to_dense()[None],
    ):
        mask = RangeMask.from_dense(dense)
        expected = dense.mT if by_key else dense
        samples, segments = work_list(mask, tile, by_key)
        seen = torch.zeros(expected.shape, dtype=torch.int)
        for b, tiles in enumerate(samples):
            rows = sorted((begin, end) for begin, end, _, _ in tiles)
            starts = range(0, expected.shape[1], tile)
            assert rows == [(i, min(i + tile, expected.shape[1])) for i in starts]
            for begin, end, first, last in tiles:
                columns = [s[:2] for s in segments[first:last]]
                assert columns == sorted(columns)
                for c0, c1, lanes in segments[first:last]:
                    for i in range(end - begin):
                        seen[b, begin + i, c0:c1] += lanes >> i & 1
        assert torch.equal(seen, expected.int())


def test_the_planner_refuses_arrays_that_point_outside():
    mask = RangeMask.full(4, 4)
    for q_len, k_len in ((3, 4), (4, 3)):
        arrays = [a.numpy() for a in (mask.batch_ptr, mask.q_ranges, mask.key_ptr, mask.key_ranges)]
        with pytest.raises(ValueError, match="out of bounds"):
            _C.plan(*arrays, q_len, k_len, 8)


def blocks_of(mask, tile, block, by_key=False):
    arrays = [a.numpy() for a in (mask.batch_ptr, mask.q_ranges, mask.key_ptr, mask.key_ranges)]
    return _C.plan_blocks(*arrays, mask.q_len, mask.k_len, tile, block, by_key)


def seen_in_blocks(plan, rows, columns, block):
    """How often each (row, column) is covered, per sample: bool full blocks and the patterns of partial ones."""
    tiles, tile_ptr, full, partial, patterns = plan
    seen = torch.zeros(len(tile_ptr) - 1, rows, columns, dtype=torch.int32)
    for sample in range(len(seen)):
        for begin, end, f0, f1, p0, p1 in tiles[tile_ptr[sample] : tile_ptr[sample + 1]]:
            for first in full[f0:f1]:
                assert first + block <= columns
                seen[sample, begin:end, first : first + block] += 1
            for first, last, pattern in partial[p0:p1]:
                assert 0 < last - first <= block
                words = torch.from_numpy(patterns[pattern])  # (words, tile)
                bits = (words[:, :, None] >> torch.arange(64)) & 1  # (words, tile, 64)
                bits = bits.permute(1, 0, 2).flatten(1)  # (tile, bit)
                assert not bits[:, last - first :].any()
                assert not bits[end - begin :].any()
                seen[sample, begin:end, first:last] += bits[: end - begin, : last - first].int()
    return seen


@pytest.mark.parametrize(("tile", "block"), [(16, 32), (128, 64), (64, 128)])
@pytest.mark.parametrize("by_key", [False, True])
def test_the_block_plan_covers_the_mask_once(tile, block, by_key):
    keep = torch.rand(3, 5, 5) < 0.5
    masks = [
        RangeMask.full(300, 200),
        RangeMask.full(0, 10),
        RangeMask.full(10, 0),
        RangeMask.multiscale(30, 5, [(1, 1), (3, 3), (9, 9)], frame_keep=keep),
        RangeMask.units([130, 7, 64, 200], 20, window=1, sink=1),
        RangeMask.teacher_forcing([100, 40, 1], 9),
        RangeMask.from_dense(torch.rand(2, 70, 150) < 0.4),
        RangeMask.from_dense(torch.zeros(20, 30, dtype=torch.bool)),
    ]
    for mask in masks:
        dense = mask.to_dense()
        dense = (dense if dense.dim() == 3 else dense[None]).int()
        dense = dense.mT if by_key else dense
        plan = blocks_of(mask, tile, block, by_key)
        assert torch.equal(seen_in_blocks(plan, *dense.shape[1:], block), dense)
        tiles, tile_ptr, *_ = plan
        for sample in range(len(tile_ptr) - 1):
            mine = tiles[tile_ptr[sample] : tile_ptr[sample + 1]]
            rows = np.concatenate([[0]] + [np.arange(t[0], t[1]) + 1 for t in mine])
            assert sorted(rows) == list(range(dense.shape[1] + 1))
            blocks = [t[3] - t[2] + t[5] - t[4] for t in mine]
            assert blocks == sorted(blocks, reverse=True)


def test_the_block_plan_of_no_mask_is_that_of_the_full_one():
    for by_key in (False, True):
        ours = _C.plan_blocks(None, None, None, None, 300, 100, 64, 32, by_key)
        for a, b in zip(ours, blocks_of(RangeMask.full(300, 100), 64, 32, by_key), strict=True):
            assert np.array_equal(a, b)


def test_nearly_all_blocks_of_long_masks_are_full():
    masks = {
        "units": (RangeMask.units([1560] * 6, 256), 0.04),
        "teacher_forcing": (RangeMask.teacher_forcing([1560] * 4, 256), 0.08),
        "multiscale": (RangeMask.multiscale(64, 8, [(s, s) for s in (1, 2, 4, 6, 8, 12, 16, 24)]), 0.12),
    }
    for name, (mask, share) in masks.items():
        tiles, _, _, _, _ = blocks_of(mask, 128, 64)
        full, partial = (tiles[:, 3] - tiles[:, 2]).sum(), (tiles[:, 5] - tiles[:, 4]).sum()
        assert partial / (full + partial) < share, name
        # The blocks cover little more than what is visible.
        assert (full + partial) * 128 * 64 < mask.pairs * (1 + 2 * share), name


def test_the_block_plan_refuses_what_it_cannot_hold():
    for tile, block in ((0, 64), (129, 64), (64, 129)):
        with pytest.raises(ValueError, match="tile and block between 1 and 128"):
            blocks_of(RangeMask.full(4, 4), tile, block)
    with pytest.raises(ValueError, match="out of bounds"):
        _C.plan_blocks(
            *[np.array(a, np.int32) for a in ([0, 1], [0, 4], [0, 1], [0, 9])], 4, 4, 64, 64
        )  # fmt: skip
