"""The ring cache holds what a plain list of units holds, in fixed memory and without copies."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
import torch
from closeness import assert_close
from torch import Tensor

from videoar_kernels import KVCache, reference
from videoar_kernels.kv_cursors import RingCursors, runs
from videoar_kernels.reference.attention import range_attention
from videoar_kernels.reference.rope import rope_3d

ReferenceCache = reference.kv_cache.KVCache
D = 16


def block(length: int, *, batch: int = 2, heads: int = 2, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    k, v = torch.randn(2, batch, heads, length, D, dtype=torch.float64).to(dtype)
    return k, v


def write(cache, k: Tensor, v: Tensor, **options) -> None:
    for layer in range(cache.layers):
        cache.append(layer, k + layer, v - layer, **options)


def held(cache: KVCache, layer: int = 0) -> tuple[Tensor, Tensor]:
    """Keys and values in slot order."""
    view = cache.view(layer)
    slots = [slot for begin, end in view.ranges for slot in range(begin, end)]
    return view.k[:, :, slots], view.v[:, :, slots]


def rows(k: Tensor, v: Tensor) -> set[bytes]:
    """The multiset-free fingerprint of (key, value) pairs: their order does not matter to attention."""
    pairs = torch.cat((k, v), dim=-1).transpose(1, 2).transpose(0, 1)  # (L, B, H, 2 D)
    return {pair.contiguous().cpu().numpy().tobytes() for pair in pairs}


def assert_same(cache: KVCache, twin: ReferenceCache) -> None:
    assert cache.length == twin.length
    for layer in range(cache.layers):
        k, v = held(cache, layer)
        expected = twin.view(layer)
        assert k.shape == expected.k.shape
        assert rows(k, v) == rows(expected.k, expected.v)
        ranges = cache.view(layer).ranges
        assert len(ranges) <= 3 and all(begin < end for begin, end in ranges)
        assert all(a[1] < b[0] for a, b in pairwise(ranges))


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("relative", [False, True])
def test_random_sequences_hold_what_a_list_of_units_holds(seed, relative):
    rng = random.Random(seed)
    sink = rng.choice([0, 3, 5])
    capacity = sink + rng.randint(6, 24)
    window = rng.choice([None, rng.randint(0, capacity - sink - 4)])
    options = dict(sink=sink, window=window, relative=relative, dtype=torch.float64)
    cache, twin = (kind(2, 2, 2, capacity, D, **options) for kind in (KVCache, ReferenceCache))
    time, is_open, wrapped = 0, False, 0
    for _ in range(60):
        length = rng.randint(1, 5)
        if cache.length + length > capacity:
            with pytest.raises(ValueError, match=rf"{cache.length} held and {length} new tokens .* {capacity}"):
                write(cache, *block(length), positions=torch.zeros(length, 3, dtype=torch.int64))
            if cache.units == 0:
                break
            units, every = rng.randint(1, cache.units), rng.choice([None, 2, 3])
            assert cache.evict(units, every=every) == twin.evict(units, every=every)
            assert_same(cache, twin)
            continue
        for _ in range(rng.randint(1, 3)):  # denoising steps rewrite the block
            k, v = block(length)
            positions = torch.randint(0, 9, (length, 3)) + torch.tensor([time, 0, 0])
            for target in (cache, twin):
                write(target, k, v, positions=positions if relative else None)
            assert_same(cache, twin)
        action = rng.choice(["commit", "commit", "rollback", "open"])
        if action == "rollback":
            cache.rollback(), twin.rollback()
        else:
            close = action == "commit"
            assert cache.commit(close=close) == twin.commit(close=close)
            is_open = not close
            time += rng.randint(0, 7)
        assert_same(cache, twin)
        wrapped = max(wrapped, cache.total)
        if not is_open and cache.units and rng.random() < 0.2:
            keep, every = rng.randint(0, capacity), rng.choice([None, 2])
            assert cache.evict(window=keep, every=every) == twin.evict(window=keep, every=every)
            assert_same(cache, twin)
    cache.reset(), twin.reset()
    assert_same(cache, twin)


@pytest.mark.parametrize("seed", range(20))
def test_relative_positions_close_the_gap_that_evicted_units_leave(seed):
    rng = random.Random(seed)
    options = dict(sink=rng.choice([0, 2, 3]), window=rng.choice([None, 8]), relative=True, dtype=torch.float64)
    cache, twin = (kind(1, 1, 1, 24, D, **options) for kind in (KVCache, ReferenceCache))
    time = 0
    for _ in range(30):
        length = rng.randint(1, 4)
        if cache.length + length > 24 or (cache.units and rng.random() < 0.3):
            if not cache.units:
                break
            units, every = rng.randint(1, cache.units), rng.choice([None, 2])
            assert cache.evict(units, every=every) == twin.evict(units, every=every)
            continue
        k, v = block(length, batch=1, heads=1)
        positions = torch.stack([torch.full((length,), time), *torch.randint(0, 9, (2, length))], dim=1)
        for target in (cache, twin):
            target.append(0, k, v, positions=positions)
        expected = twin.view(0)
        view = cache.view(0)
        assert torch.equal(view.query_positions, expected.query_positions)
        slots = [slot for begin, end in view.ranges for slot in range(begin, end)]
        ours = {
            (key.cpu().numpy().tobytes(), *p.tolist())
            for key, p in zip(view.k[0, 0, slots], view.positions[slots], strict=True)
        }
        theirs = {
            (key.cpu().numpy().tobytes(), *p.tolist())
            for key, p in zip(expected.k[0, 0], expected.positions, strict=True)
        }
        assert ours == theirs
        if rng.random() < 0.8:
            cache.commit(), twin.commit()
            time += rng.randint(1, 3)
        else:
            cache.rollback(), twin.rollback()


def test_rotating_at_reading_equals_rotating_at_writing_while_nothing_is_evicted():
    absolute, relative = (KVCache(1, 2, 2, 12, D, sink=2, relative=flag, dtype=torch.float64) for flag in (False, True))
    for time in range(3):
        (k, v), q = block(4), 4 * torch.randn(2, 2, 4, D, dtype=torch.float64)
        positions = torch.cat([torch.full((4, 1), 5 + 2 * time), torch.randint(0, 9, (4, 2))], dim=1)
        weight = torch.rand(D) + 0.5
        outs = []
        for cache in (absolute, relative):
            cache.append(0, k, v, k_weight=weight, positions=positions)
            view = cache.view(0)
            keys = rope_3d(view.k, view.positions) if cache.relative else view.k
            queries = rope_3d(q, view.query_positions if cache.relative else positions)
            outs.append(range_attention(queries, keys, view.v, view.mask(4)))
            cache.commit()
        torch.testing.assert_close(*outs, rtol=1e-12, atol=1e-12)


def test_times_stay_bounded_on_an_endless_relative_stream():
    cache = KVCache(1, 1, 1, 14, D, sink=2, window=8, relative=True)
    cache.append(0, *block(2, batch=1, heads=1, dtype=torch.float32), positions=torch.tensor([[0, 0, 0], [1, 1, 1]]))
    cache.commit()
    for frame in range(50):
        positions = torch.tensor([[2 + frame, y, x] for y in range(2) for x in range(2)])
        cache.append(0, *block(4, batch=1, heads=1, dtype=torch.float32), positions=positions)
        assert cache.view(0).query_positions[:, 0].unique().item() == 2 + min(frame, 2)
        assert torch.equal(cache.view(0).query_positions[:, 1:], positions[:, 1:])
        cache.commit()


def test_window_drops_whole_units_once_they_have_left_it():
    cache = KVCache(1, 1, 1, 20, D, sink=2, window=9)
    lengths, dropped = [2, 4, 4, 4, 4], []
    for length in lengths:
        cache.append(0, *block(length, batch=1, heads=1, dtype=torch.float32))
        dropped.append(cache.commit())
    assert dropped == [0, 0, 0, 4, 4] and cache.length == 2 + 8


def test_scales_of_an_open_frame_do_not_push_its_predecessor_out():
    cache = KVCache(1, 1, 1, 12, D, window=5)
    for frame in range(4):
        for scale, length in enumerate((1, 4)):
            cache.append(0, *block(length, batch=1, heads=1, dtype=torch.float32))
            assert cache.view(0).ranges[-1][1] - cache.view(0).ranges[0][0] <= 12
            assert cache.length == (5 if frame else 0) + (scale == 1)
            cache.commit(close=scale == 1)


def test_exact_fill_is_allowed_and_one_token_more_is_not():
    cache = KVCache(1, 2, 2, 7, D, sink=3)
    cache.append(0, *block(7, dtype=torch.float32))
    cache.commit()
    assert cache.length == 7 and cache.view(0).ranges == ((0, 7),)
    with pytest.raises(ValueError, match=r"KVCache.append: 7 held and 1 new tokens exceed the capacity of 7"):
        cache.append(0, *block(1, dtype=torch.float32))


def test_rollback_leaves_committed_tokens_untouched():
    cache = KVCache(1, 2, 2, 8, D, window=4, dtype=torch.float64)
    for _ in range(5):
        cache.append(0, *block(4))
        cache.commit()
        before = held(cache)
        cache.append(0, *block(3))
        cache.rollback()
        after = held(cache)
        assert torch.equal(before[0], after[0]) and torch.equal(before[1], after[1])


def test_thinning_keeps_every_nth_older_unit():
    cache = KVCache(1, 1, 1, 40, D, sink=2)
    for number in range(10):
        cache.append(0, torch.full((1, 1, 2, D), float(number)), torch.zeros(1, 1, 2, D))
        cache.commit()
    assert cache.evict(window=6, every=3) == 8
    assert sorted(held(cache)[0][0, 0, :, 0].unique().tolist()) == [0, 3, 6, 7, 8, 9]
    assert len(cache.view(0).ranges) <= 3


def test_view_is_the_memory_itself():
    cache = KVCache(2, 1, 1, 8, D)
    cache.append([0, 1], *[[x, x] for x in block(3, batch=1, heads=1, dtype=torch.float32)])
    addresses = {cache.view(layer).k.data_ptr() for layer in (0, 1)}
    cache.commit()
    assert {cache.view(layer).k.data_ptr() for layer in (0, 1)} == addresses
    assert cache.view(0).k.shape == (1, 1, 8, D)


@pytest.mark.parametrize("sink, window", [(0, None), (3, 8)])
def test_attention_over_the_view_is_attention_over_the_concatenated_keys(sink, window):
    cache = KVCache(1, 2, 2, 17, D, sink=sink, window=window, dtype=torch.float64)
    twin = ReferenceCache(1, 2, 2, 17, D, sink=sink, window=window, dtype=torch.float64)
    for _ in range(9 if window else 4):
        k, v = block(4)
        q = 4 * torch.randn(2, 4, 4, D, dtype=torch.float64)
        cache.append(0, k, v), twin.append(0, k, v)
        view, plain = cache.view(0), twin.view(0)
        out = range_attention(q, view.k, view.v, view.mask(4))
        k_all, v_all = (x.repeat_interleave(2, dim=1) for x in (plain.k, plain.v))
        expected = torch.nn.functional.scaled_dot_product_attention(q, k_all, v_all)
        assert_close(out, expected)
        cache.commit(), twin.commit()


def test_every_committed_token_is_found_in_its_slot():
    cursors = RingCursors(capacity=10, sink=3)
    seen = []
    for length in (2, 4, 3, 5, 4, 6):
        cursors.drop(cursors.beyond(10 - 3 - length))
        seen += cursors.next_slots(length)
        cursors.commit(length, 0, close=True)
    assert seen == [i if i < 3 else 3 + (i - 3) % 7 for i in range(len(seen))]


def test_runs_part_where_slots_jump():
    found = runs([3, 4, 5, 0, 1, 3])
    assert found == [(slice(0, 3), slice(3, 6)), (slice(3, 5), slice(0, 2)), (slice(5, 6), slice(3, 4))]
    assert runs([]) == [] and runs([7]) == [(slice(0, 1), slice(7, 8))]
