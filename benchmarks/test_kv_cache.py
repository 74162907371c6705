"""Appending to a cache that is full, so that every append evicts: a window of several units."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

import torch
from memory_bound import gpu_bars
from registry import Call, Case, cases, on_gpu
from torch import Tensor

from videoar_kernels import KVCache

BATCH, HEADS, DIM = 1, 16, 64


class Blocks(NamedTuple):
    """One unit's keys and values of some layers."""

    k: list[Tensor]
    v: list[Tensor]

    @property
    def nbytes(self) -> int:
        return sum(x.nbytes for x in (*self.k, *self.v))


def draw(layers: int, new: int, dtype: torch.dtype) -> Blocks:
    return Blocks(*([torch.randn(BATCH, HEADS, new, DIM).to(dtype) for _ in range(layers)] for _ in range(2)))


@cases("kv_cache_append")
def append(full: bool) -> Iterator[Case]:
    if on_gpu():
        yield case(draw(8, 8192, torch.bfloat16), 32768)  # several layers by one kernel
        return
    for window in (4096, 16384) if full else (4096,):
        for dtype in (torch.bfloat16, torch.float32) if full else (torch.bfloat16,):
            yield case(draw(1, 512, dtype), window)


def case(blocks: Blocks, window: int) -> Case:
    layers, new, dtype = len(blocks.k), blocks.k[0].shape[2], blocks.k[0].dtype
    held = 2 * layers * BATCH * HEADS * window * DIM * dtype.itemsize
    bars = {"roll and copy": 10, "ours, window four times as long": 0.85}
    peers = {"roll and copy": rolling(window, blocks), "concatenate": concatenating(window, blocks)}
    if on_gpu():
        peers["torch.compile"] = compiled(window, blocks)
    return Case(
        op="KVCache.append",
        shape=f"{new} new of {window:,}, evicting, H {HEADS} D {DIM}{f', {layers} layers' if layers > 1 else ''}",
        dtype=dtype,
        ours=appending(window, blocks),
        verify=lambda: verify(layers, new, window, dtype),
        peers=peers,
        yardsticks={"ours, window four times as long": appending(4 * window, blocks)},
        bytes=2 * blocks.nbytes,
        **{"limit": "copy", "bars": gpu_bars(peers) | bars} if on_gpu() else {"limit": "copy same size", "bars": bars},
        notes=f"the window holds {held / 2**20:.0f} MiB of keys and values",
    )


def appending(window: int, blocks: Blocks) -> Call:
    layers = list(range(len(blocks.k)))
    cache = full_cache(window, blocks)

    def call() -> None:
        if len(layers) == 1:
            cache.append(0, blocks.k[0], blocks.v[0])
        else:
            cache.append(layers, blocks.k, blocks.v)
        cache.commit()

    return call


def empty_cache(layers: int, new: int, window: int, dtype: torch.dtype) -> KVCache:
    return KVCache(layers, BATCH, HEADS, window + new, DIM, window=window, dtype=dtype)


def full_cache(window: int, blocks: Blocks) -> KVCache:
    layers, new, dtype = len(blocks.k), blocks.k[0].shape[2], blocks.k[0].dtype
    cache = empty_cache(layers, new, window, dtype)
    for _ in range(window // new):
        cache.append(list(range(layers)), *draw(layers, new, dtype))
        cache.commit()
    return cache


def buffers_of(window: int, blocks: Blocks) -> list[Tensor]:
    return [torch.randn(BATCH, HEADS, window, DIM).to(x.dtype) for x in (*blocks.k, *blocks.v)]


def rolling(window: int, blocks: Blocks) -> Call:
    """What rolling caches do: move what stays to the front, then write behind it."""
    buffers, blocks = buffers_of(window, blocks), [*blocks.k, *blocks.v]

    def call() -> None:
        for buffer, block in zip(buffers, blocks, strict=True):
            new = block.shape[2]
            buffer[:, :, :-new] = buffer[:, :, new:].clone()
            buffer[:, :, -new:] = block

    return call


def compiled(window: int, blocks: Blocks) -> Call:
    """Rolling again, as torch.compile makes it of one call for all layers."""
    buffers, blocks = buffers_of(window, blocks), [*blocks.k, *blocks.v]

    def roll(buffers: list[Tensor], blocks: list[Tensor]) -> None:
        for buffer, block in zip(buffers, blocks, strict=True):
            buffer.copy_(torch.cat([buffer[:, :, block.shape[2] :], block], dim=2))

    call = torch.compile(roll, dynamic=False)
    return lambda: call(buffers, blocks)


def concatenating(window: int, blocks: Blocks) -> Call:
    buffers, blocks = buffers_of(window, blocks), [*blocks.k, *blocks.v]

    def call() -> None:
        for i, block in enumerate(blocks):
            buffers[i] = torch.cat([buffers[i][:, :, block.shape[2] :], block], dim=2)

    return call


def verify(layers: int, new: int, window: int, dtype: torch.dtype) -> None:
    """After many appends the cache holds the last `window` tokens, each in some slot."""
    cache, kept = empty_cache(layers, new, window, dtype), deque(maxlen=window // new)
    for _ in range(2 * window // new + 3):
        blocks = draw(layers, new, dtype).k
        cache.append(list(range(layers)), blocks, [-block for block in blocks])
        cache.commit()
        kept.append((blocks[0], blocks[-1]))
    for layer, blocks in ((0, [first for first, _ in kept]), (layers - 1, [last for _, last in kept])):
        view = cache.view(layer)
        slots = torch.cat([torch.arange(begin, end, device=view.k.device) for begin, end in view.ranges])
        k, v = view.k[:, :, slots], view.v[:, :, slots]
        assert len(slots) == window and torch.equal(v, -k)
        assert torch.equal(tokens(k), tokens(torch.cat(blocks, dim=2)))


def tokens(x: Tensor) -> Tensor:
    """The tokens of the first sample, all heads of each in one row, in an order that does not depend on their slots."""
    return x[0].transpose(0, 1).flatten(1).float().unique(dim=0)  # (window, heads * dim)


def test_kv_cache(case, compare):
    compare(case)
