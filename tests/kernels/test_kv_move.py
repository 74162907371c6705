"""Moving tokens inside caches: what thinning asks for, in one operator for all layers."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from videoar_kernels import KVCache, reference
from videoar_kernels.kv_cursors import moves
from videoar_kernels.library import ops

DTYPES = [torch.float32, torch.bfloat16, torch.float64, torch.uint8, torch.int64]
SLOTS = 200
# Upwards and downwards, overlapping and apart, long enough to be cut into parts, one reading what another wrote.
MOVES = {
    "up": [10, 13, 90],
    "down": [80, 20, 110],
    "apart": [0, 100, 99],
    "nowhere": [5, 5, 20],
    "none": [7, 9, 0],
    "one after the other": [0, 70, 65, 70, 3, 65, 0, 135, 65],
    "onto one another": [0, 90, 70, 3, 95, 70],
    "more than a launch takes": [n for i in range(70) for n in (2 * i, 199 - 2 * i, 1)],
}


def random_cache(batch: int, heads: int, width: int, dtype: torch.dtype, gap: int = 0, first: int = 0) -> torch.Tensor:
    """Noise in a cache whose tokens lie `gap` elements apart, `first` elements into their storage."""
    storage = torch.randint(0, 100, (first + batch * heads * SLOTS * (width + gap),)).to(dtype)
    return storage[first:].view(batch, heads, SLOTS, width + gap)[..., :width]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", MOVES)
def test_tokens_move_as_if_all_were_read_first(isa, dtype, case):
    shapes = [(2, 3, 16), (1, 2, 3), (1, 1, 40)]
    caches = [random_cache(*shape, dtype, gap, first) for shape in shapes for gap in (0, 1) for first in (0, 1)]
    caches.append(random_cache(2, 3, 16, dtype).transpose(0, 1))
    expected = [cache.clone() for cache in caches]
    reference.kv_cache.kv_cache_move(expected, MOVES[case])
    ops.kv_cache_move(caches, MOVES[case])
    assert all(torch.equal(*pair) for pair in zip(caches, expected, strict=True))


def test_more_tensors_than_one_launch_takes(isa):
    caches = [random_cache(1, 1, 3, torch.float32) for _ in range(140)]
    expected = [cache.clone() for cache in caches]
    reference.kv_cache.kv_cache_move(expected, MOVES["up"])
    ops.kv_cache_move(caches, MOVES["up"])
    assert all(torch.equal(*pair) for pair in zip(caches, expected, strict=True))


def test_what_lies_between_tokens_stays(isa):
    rows = torch.randint(0, 100, (1, 2, SLOTS, 9), dtype=torch.uint8)
    before = rows.clone()
    ops.kv_cache_move([rows[..., :8]], MOVES["up"])
    assert torch.equal(rows[..., 8], before[..., 8]) and not torch.equal(rows, before)


@pytest.mark.parametrize(
    "wrong", [[0, 1], [-1, 0, 1], [0, -1, 1], [0, 1, -1], [190, 0, 11], [0, 190, 11], [0, 1, 2**63 - 1]]
)
def test_moves_beyond_the_slots_are_refused(wrong):
    cache = random_cache(1, 1, 4, torch.float32)
    before = cache.clone()
    with pytest.raises(RuntimeError, match="kv_cache_move: expected"):
        ops.kv_cache_move([cache], wrong)
    assert torch.equal(cache, before)


def test_caches_that_cannot_be_moved_are_refused():
    good = random_cache(1, 1, 4, torch.float32)
    for bad in (good[0], good.transpose(2, 3), good[:, :1].expand(-1, 2, -1, -1)):
        with pytest.raises(RuntimeError, match="kv_cache_move: expected"):
            ops.kv_cache_move([good, bad], [0, 1, 2])


def test_operator_passes_opcheck():
    caches = [random_cache(1, 2, 4, torch.float32) for _ in range(2)]
    torch.library.opcheck(ops.kv_cache_move.default, (caches, [3, 5, 20]))


def test_stretches_end_where_slots_do_and_come_last_first():
    # A ring of ten slots: 5 to 9 go to 7, 8, 9, 0, 1, and the tail must be gone before the head comes.
    assert moves([5, 6, 7, 8, 9], [7, 8, 9, 0, 1]) == [8, 0, 2, 5, 7, 3]
    assert moves([1, 2, 5], [4, 5, 6]) == [5, 6, 1, 1, 4, 2]
    assert moves([], []) == []


def thinned(device: str, layers: int = 3, relative: bool = True) -> KVCache:
    cache = KVCache(layers, 1, 2, 40, 16, sink=3, relative=relative, device=device)
    for unit in range(11):
        blocks = [torch.full((1, 2, 5, 16), float(unit), device=device)] * layers
        positions = torch.tensor([[unit, 0, i] for i in range(5)], device=device)
        cache.append(range(layers), blocks, blocks, positions=positions)
        cache.commit()
        if unit % 4 == 3:
            cache.evict(cache.units - 1, every=2)
    return cache


class Called(TorchDispatchMode):
    """Counts the operators that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


def test_thinning_calls_one_operator_for_all_layers():
    cache = thinned("cpu", relative=False)
    with Called() as called:
        assert cache.evict(cache.units - 1, every=3) > 0
    assert called.names.count("videoar_kernels.kv_cache_move.default") == 1
    assert not [name for name in called.names if "cat" in name or "copy" in name]


@pytest.mark.gpu
def test_thinning_on_a_gpu_is_one_launch_and_holds_what_the_cpu_does():
    caches = [thinned(device, layers=30) for device in ("cuda", "cpu")]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for cache in caches:
            assert cache.evict(cache.units - 1, every=3) > 0
        torch.cuda.synchronize()
    assert sum(event.count for event in profile.key_averages() if "move_kernel" in event.key) == 1
    for layer in range(30):
        views = [cache.view(layer) for cache in caches]
        assert views[0].ranges == views[1].ranges
        for begin, end in views[0].ranges:
            for name in ("k", "v"):
                on_gpu, on_cpu = (getattr(view, name)[:, :, begin:end].cpu() for view in views)
                assert torch.equal(on_gpu, on_cpu)
            assert torch.equal(views[0].positions[begin:end].cpu(), views[1].positions[begin:end])
