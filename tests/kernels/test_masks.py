"""RangeMask: every constructor against a predicate on tokens written from the papers, then the algebra of ranges."""

from __future__ import annotations

import copy
import itertools
import pickle

import numpy as np
import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention

from videoar_kernels import RangeMask, reference


def tokens_of_frames(text_len, frames, scales):
    """(frame, scale) of every token; text is (-1, -1)."""
    video = [(t, k) for t in range(frames) for k, (h, w) in enumerate(scales) for _ in range(h * w)]
    return [(-1, -1)] * text_len + video


def tokens_of_units(text_len, unit_lens):
    return [-1] * text_len + [i for i, n in enumerate(unit_lens) for _ in range(n)]


def dense_from(predicate, tokens):
    rows = [[predicate(q, k) for k in tokens] for q in tokens]
    return torch.tensor(rows, dtype=torch.bool).reshape(len(tokens), len(tokens))


def sees_frames(q, k, window=None, keep=None):
    """Paper S, Eq. 5 and 9: text, kept frames within the window, and the own frame's scales up to one's own."""
    (t, scale), (u, other) = q, k
    if u < 0:
        return True
    if t < 0 or u > t:
        return False
    if u == t:
        return other <= scale
    return (window is None or t - u <= window) and (keep is None or bool(keep[t, u]))


SCALES = [(1, 1), (1, 2), (3, 2)]


@pytest.mark.parametrize("text_len", [0, 1, 5])
@pytest.mark.parametrize("frames", [1, 4])
@pytest.mark.parametrize("window", [None, 0, 1, 2, 9])
def test_multiscale_follows_equation_5(text_len, frames, window):
    mask = RangeMask.multiscale(text_len, frames, SCALES, window)
    tokens = tokens_of_frames(text_len, frames, SCALES)
    assert torch.equal(mask.to_dense(), dense_from(lambda q, k: sees_frames(q, k, window), tokens))


@pytest.mark.parametrize("window", [None, 2])
def test_multiscale_follows_equation_9_with_a_mask_per_sample(window):
    keep = torch.rand(3, 5, 5) < 0.5
    mask = RangeMask.multiscale(4, 5, SCALES, window, keep)
    assert mask.batch == 3
    tokens = tokens_of_frames(4, 5, SCALES)
    for dense, sample in zip(mask.to_dense(), keep, strict=True):
        assert torch.equal(dense, dense_from(lambda q, k, s=sample: sees_frames(q, k, window, s), tokens))
    shared = RangeMask.multiscale(4, 5, SCALES, window, keep[1])
    assert shared.batch is None
    assert torch.equal(shared.to_dense(), mask.to_dense()[1])
    assert RangeMask.multiscale(4, 5, SCALES, window, keep[1].tolist()) == shared
    assert RangeMask.multiscale(4, 5, SCALES, window, keep[1].numpy()) == shared


def test_window_hides_frames_older_than_w():
    tokens = tokens_of_frames(2, 6, SCALES)
    dense = RangeMask.multiscale(2, 6, SCALES, window=2).to_dense()
    for (i, (t, _)), (j, (u, _)) in itertools.product(enumerate(tokens), repeat=2):
        if t >= 0 and 0 <= u < t:
            assert dense[i, j] == (t - u <= 2)


def test_text_sees_all_text_and_nothing_else():
    for mask in (
        RangeMask.multiscale(3, 2, SCALES),
        RangeMask.units([2, 4], 3, direction="full"),
        RangeMask.units([2, 4], 3, direction="backward"),
        RangeMask.teacher_forcing([2, 4], 3),
    ):
        dense = mask.to_dense()
        assert dense[:3, :3].all()
        assert not dense[:3, 3:].any()
        assert dense[:, :3].all()


def sees_units(q, k, count, window, sink, direction):
    """Paper U: text, itself, earlier units within the window or in the sink; backward is the mirror image."""
    if k < 0:
        return True
    if q < 0:
        return False
    forward = k <= q and (window is None or q - k <= window or k < sink)
    backward = k >= q and (window is None or k - q <= window or k >= count - sink)
    return {"forward": forward, "backward": backward, "full": forward or backward}[direction]


@pytest.mark.parametrize("direction", ["forward", "backward", "full"])
@pytest.mark.parametrize("window", [None, 0, 1, 3])
@pytest.mark.parametrize("sink", [0, 1, 2, 7])
def test_units_follow_their_definition(direction, window, sink):
    lens = [3, 1, 2, 4, 1]
    mask = RangeMask.units(lens, 2, window, sink, direction)
    expected = dense_from(lambda q, k: sees_units(q, k, len(lens), window, sink, direction), tokens_of_units(2, lens))
    assert torch.equal(mask.to_dense(), expected)


def test_units_without_a_window_see_everything_in_both_directions():
    dense = RangeMask.units([2, 3], direction="full").to_dense()
    assert dense.all()


@pytest.mark.parametrize("window", [None, 0, 1])
@pytest.mark.parametrize("sink", [0, 1, 2])
@pytest.mark.parametrize("text_len", [0, 2])
def test_teacher_forcing_shows_a_noisy_unit_itself_and_clean_history(window, sink, text_len):
    lens = [2, 1, 3, 2]
    tokens = [(-1, False)] * text_len
    tokens += [(i, noisy) for noisy in (False, True) for i, n in enumerate(lens) for _ in range(n)]

    def sees(q, k):
        (i, noisy), (j, other_noisy) = q, k
        if j < 0:
            return True
        if i < 0:
            return False
        near = j < i and (window is None or i - j <= window or j < sink)
        if noisy:
            return j == i if other_noisy else near
        return not other_noisy and (near or j == i)

    mask = RangeMask.teacher_forcing(lens, text_len, window, sink)
    assert torch.equal(mask.to_dense(), dense_from(sees, tokens))


@pytest.mark.parametrize("shape", [(1, 1), (7, 12), (2, 9, 5), (4, 1, 30), (3, 0, 5), (3, 5, 0), (0, 4, 4)])
@pytest.mark.parametrize("share", [0.0, 0.2, 0.8, 1.0])
def test_from_dense_and_to_dense_are_inverse(shape, share):
    dense = torch.rand(shape) < share
    mask = RangeMask.from_dense(dense)
    assert torch.equal(mask.to_dense(), dense)
    assert mask.pairs == dense.sum()
    if dense.numel():
        assert mask.density == pytest.approx(dense.double().mean().item())


def test_full_shows_every_key():
    assert RangeMask.full(3, 7).to_dense().all()
    assert RangeMask.full(3, 7).density == 1
    for lengths in ((0, 3), (3, 0), (0, 0)):
        assert RangeMask.full(*lengths).pairs == 0


def test_masks_that_mean_the_same_are_equal_and_hash_alike():
    one = RangeMask.multiscale(3, 4, SCALES, window=1)
    other = RangeMask.from_dense(one.to_dense())
    assert one == other
    assert hash(one) == hash(other)
    assert len({one, other, RangeMask.multiscale(3, 4, SCALES, window=2)}) == 2
    assert one != RangeMask.multiscale(3, 4, SCALES)
    assert RangeMask.full(2, 3) != RangeMask.full(3, 2)
    assert RangeMask.stack([one]) != one
    assert one != "a mask"


def test_ranges_are_sorted_merged_and_int32():
    mask = RangeMask.from_ranges(
        10, 20, [(4, 6), (0, 2), (2, 4)], [[(9, 12), (3, 5), (5, 9), (4, 6)], [(1, 2), (0, 0)], [(1, 2)]]
    )
    assert mask.q_ranges.tolist() == [[0, 4], [4, 6]]  # neighbours with the same keys are one range
    assert mask.key_ranges.tolist() == [[1, 2], [3, 12]]  # touching and overlapping ranges too
    assert mask.key_ptr.tolist() == [0, 1, 2]
    for array in (mask.batch_ptr, mask.q_ranges, mask.key_ptr, mask.key_ranges):
        assert array.dtype == torch.int32
        assert array.is_contiguous()


def test_full_history_is_one_range_per_step():
    mask = RangeMask.multiscale(5, 50, SCALES)
    assert len(mask.key_ranges) == len(mask.q_ranges) == 50 * 3 + 1


def test_stack_gives_each_sample_its_mask():
    masks = [RangeMask.units([2, 3, 1], window=w) for w in (None, 0, 1)]
    stacked = RangeMask.stack(masks)
    assert stacked.batch == 3
    assert torch.equal(stacked.to_dense(), torch.stack([m.to_dense() for m in masks]))
    assert stacked == RangeMask.from_dense(stacked.to_dense())


def test_a_mask_cannot_be_changed_and_survives_copying():
    mask = RangeMask.units([2, 3])
    with pytest.raises(AttributeError):
        mask.q_len = 4
    assert copy.deepcopy(mask) == mask
    assert pickle.loads(pickle.dumps(mask)) == mask
    assert "density=0.760" in repr(mask)


def test_flops_count_visible_pairs_only():
    mask = RangeMask.units([2, 3])
    assert mask.pairs == 2 * 2 + 3 * 5
    assert mask.flops(4, 32) == 4 * 4 * 32 * 19
    assert mask.flops(4, 32, backward=True) == 10 * 4 * 32 * 19


@pytest.mark.parametrize("batched", [False, True])
def test_to_flex_is_the_same_mask(batched):
    keep = torch.rand(2, 3, 3) < 0.5
    mask = RangeMask.multiscale(6, 3, [(2, 2), (5, 9), (16, 16)], frame_keep=keep if batched else keep[0])
    q, k, v = torch.randn(3, 2, 2, mask.q_len, 16)
    out = flex_attention(q, k, v, block_mask=mask.to_flex())
    torch.testing.assert_close(out, reference.attention.range_attention(q, k, v, mask))
    listed = mask.to_flex(block_size=64)
    blocks = torch.nn.functional.pad(mask.to_dense(), (0, -mask.k_len % 64, 0, -mask.q_len % 64))
    blocks = blocks.unflatten(-1, (-1, 64)).unflatten(-3, (-1, 64)).any(-1).any(-2)
    assert (listed.to_dense().bool().squeeze(1) == blocks).all()


def test_draw_is_dark_where_keys_are_seen(tmp_path):
    mask = RangeMask.units([100, 300], 200)
    picture = np.asarray(mask.draw(str(tmp_path / "mask.png"), size=60))
    assert (tmp_path / "mask.png").stat().st_size > 0
    assert picture.shape == (60, 60)
    assert (picture[:20, :20] == 0).all()
    assert (picture[:20, 20:] == 255).all()
    assert RangeMask.stack([mask, mask]).draw(size=60).size == (124, 60)


def test_a_mask_of_a_hundred_thousand_tokens_is_a_few_kilobytes():
    mask = RangeMask.multiscale(128, 200, [(i, i) for i in (1, 2, 3, 4, 6, 8, 12, 16)], window=32)
    assert mask.q_len > 100_000
    arrays = (mask.q_ranges, mask.key_ptr, mask.key_ranges)
    assert sum(a.nbytes for a in arrays) < 100_000


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: RangeMask.full(-1, 3), "full: expected q_len between 0"),
        (lambda: RangeMask.full(1, 2**31), "full: expected k_len between 0"),
        (lambda: RangeMask.multiscale(-1, 2, SCALES), "multiscale: expected text_len"),
        (lambda: RangeMask.multiscale(0, 2, []), "multiscale: expected scales"),
        (lambda: RangeMask.multiscale(0, 2, [(1, 1), (0, 3)]), "multiscale: expected scales"),
        (lambda: RangeMask.multiscale(0, 2, SCALES, window=-1), "expected window of at least 0 or None, got -1"),
        (
            lambda: RangeMask.multiscale(0, 3, SCALES, frame_keep=torch.ones(2, 2)),
            r"frame_keep of shape \(3, 3\) or \(batch, 3, 3\), got \(2, 2\)",
        ),
        (lambda: RangeMask.units([]), "units: expected unit_lens"),
        (lambda: RangeMask.units([3, 0]), "units: expected unit_lens"),
        (lambda: RangeMask.units([3], sink=-1), "units: expected sink"),
        (lambda: RangeMask.units([3], direction="sideways"), "got 'sideways'"),
        (lambda: RangeMask.teacher_forcing([3], window=-2), "teacher_forcing: expected window"),
        (lambda: RangeMask.from_dense(torch.ones(2, 2)), "from_dense: expected dense of dtype bool"),
        (lambda: RangeMask.from_dense(torch.ones(2, dtype=torch.bool)), "from_dense: expected dense"),
        (lambda: RangeMask.from_ranges(4, 4, [(0, 5)], [[(0, 1)]]), r"query ranges within \(0, 4\), got \(0, 5\)"),
        (lambda: RangeMask.from_ranges(4, 4, [(0, 4)], [[(3, 2)]]), r"key ranges within \(0, 4\), got \(3, 2\)"),
        (lambda: RangeMask.from_ranges(4, 4, [(0, 2), (1, 3)], [[(0, 1)], [(0, 2)]]), "disjoint query ranges"),
        (lambda: RangeMask.from_ranges(4, 4, [(0, 2)], []), "one list of key ranges for each"),
        (lambda: RangeMask.stack([]), "stack: expected at least one mask"),
        (lambda: RangeMask.stack([RangeMask.full(1, 2), RangeMask.full(2, 2)]), r"lengths \(1, 2\), got \(2, 2\)"),
    ],
)
def test_errors_name_what_was_expected_and_what_came(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: RangeMask.full(2.5, 3), "full: expected q_len as int, got 2.5"),
        (lambda: RangeMask.units([1.5, 2]), r"units: expected unit_lens as integers, got \[1.5, 2.0\]"),
        (lambda: RangeMask.units([1, 2], window=0.5), "units: expected window as int, got 0.5"),
        (lambda: RangeMask.units([1, 2], text_len=1.0), "units: expected text_len as int, got 1.0"),
        (lambda: RangeMask.teacher_forcing([1, 2.5]), "teacher_forcing: expected unit_lens as integers"),
        (lambda: RangeMask.multiscale(0, 2, [(1, 1), (1.5, 2)]), "multiscale: expected scales as integers"),
        (lambda: RangeMask.multiscale(0, 1.5, SCALES), "multiscale: expected frames as int, got 1.5"),
        (lambda: RangeMask.from_ranges(4, 4, [(0, 4)], [[(0.5, 3.5)]]), "from_ranges: expected key_ranges as integers"),
        (lambda: RangeMask.from_ranges(4, 4, [(0, 1.5)], [[(0, 3)]]), "from_ranges: expected q_ranges as integers"),
        (lambda: RangeMask.from_ranges(4.5, 4, [(0, 4)], [[(0, 3)]]), "from_ranges: expected q_len as int, got 4.5"),
    ],
)
def test_sizes_that_are_no_integers_are_refused(build, message):
    with pytest.raises(TypeError, match=message):
        build()


def test_any_integers_are_sizes():
    expected = RangeMask.units([1, 2, 3])
    assert RangeMask.units(np.array([1, 2, 3], np.uint8)) == RangeMask.units(torch.tensor([1, 2, 3])) == expected
    assert RangeMask.full(np.int32(2), 3) == RangeMask.from_ranges(2, 3, torch.tensor([[0, 2]]), [[(0, np.int64(3))]])
