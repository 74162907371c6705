"""A relative cache that is told beforehand where its next block lies, as a CUDA graph needs it."""

from __future__ import annotations

import random

import pytest
import torch

from videoar_kernels import KVCache

D = 4
K = V = torch.zeros(1, 1, 3, D)
AT = torch.tensor([[7, 0, 0], [7, 0, 1], [8, 1, 0]])


def cache(**options) -> KVCache:
    return KVCache(2, 1, 1, 12, D, **{"relative": True, **options})


@pytest.mark.parametrize("seed", range(5))
def test_placing_a_block_is_appending_it_with_its_positions(seed):
    rng = random.Random(seed)
    told, placed = (cache(sink=2, window=6) for _ in range(2))
    memory = placed.view(0).positions.data_ptr()
    queries, time = set(), 0
    for _ in range(30):
        length = rng.randint(1, 4)
        positions = torch.stack([torch.full((length,), time), *torch.randint(0, 9, (2, length))], dim=1)
        placed.place(positions, start=rng.choice([None, time]))
        for _ in range(rng.randint(1, 3)):  # a block is written again and again
            k, v = torch.randn(2, 1, 1, length, D).unbind(0)
            for layer in range(2):
                told.append(layer, k, v, positions=positions)
                placed.append(layer, k, v)
        one, other = told.view(1), placed.view(1)
        queries.add(other.query_positions.data_ptr())
        assert one.ranges == other.ranges and torch.equal(one.query_positions, other.query_positions)
        assert torch.equal(one.positions, other.positions) and torch.equal(one.k, other.k)
        if rng.random() < 0.8:
            assert told.commit() == placed.commit()
            time += rng.randint(1, 3)
        else:
            told.rollback(), placed.rollback()
    assert placed.view(0).positions.data_ptr() == memory and len(queries) == 1, "a graph finds them where they were"


def test_a_placed_block_that_a_graph_wrote_is_committed():
    one = cache()
    one.place(AT)
    one.mark_pending(3)
    assert one.commit() == 0 and one.length == 3
    with pytest.raises(ValueError, match="expected `place` before it, got 3 tokens"):
        one.mark_pending(3)


def test_equal_keys_mean_equal_slots():
    one, seen = KVCache(1, 1, 1, 11, D, sink=2, window=6), {}
    for index in range(60):
        length = 1 + index % 3
        key = one.place_key(length)
        one.append(0, *torch.randn(2, 1, 1, length, D).unbind(0))
        kept = one.view(0).k.clone()
        one.append(0, *torch.full((2, 1, 1, length, D), 9.0).unbind(0))
        slots = (one.view(0).k != kept).any(-1).nonzero()[:, -1].tolist()
        assert len(slots) == length and seen.setdefault(key, (slots, one.view(0).ranges)) == (slots, one.view(0).ranges)
        one.commit()
    assert len(seen) < 45, "places come back"


@pytest.mark.parametrize(
    ("error", "match", "call"),
    [
        (ValueError, "KVCache.place: expected a relative cache", lambda c: cache(relative=False).place(AT)),
        (ValueError, "KVCache.place: expected 1 to 12, got 13", lambda c: c.place(AT[:1].expand(13, 3))),
        (ValueError, r"positions of shape \(3, 3\), got \(3, 2\)", lambda c: c.place(AT[:, :2])),
        (TypeError, "positions of torch.int64, got torch.float32", lambda c: c.place(AT.float())),
        (ValueError, r"of shape \(2, 3\), got \(3, 3\)",
         lambda c: (c.place(AT), c.append(0, K[:, :, :2], V[:, :, :2]))),
        (ValueError, "a relative cache needs positions", lambda c: (c.place(AT), c.rollback(), c.append(0, K, V))),
        (ValueError, "KVCache.mark_pending: expected `place` before it, got 3", lambda c: c.mark_pending(3)),
        (ValueError, "mark_pending: expected the 3 that `place` was told", lambda c: (c.place(AT), c.mark_pending(2))),
    ],
)  # fmt: skip
def test_errors_name_what_was_expected(error, match, call):
    with pytest.raises(error, match=match):
        call(cache())
