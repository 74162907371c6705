"""Appending to a cache that is full, so that every append evicts: 512 new tokens of a window of 4,096."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from registry import Call, Case, cases
from torch import Tensor

from videoar_kernels import KVCache

BATCH, HEADS, DIM, NEW = 1, 16, 64, 512


@cases("kv_cache_append")
def append(full: bool) -> Iterator[Case]:
    for window in (4096, 16384) if full else (4096,):
        for dtype in (torch.bfloat16, torch.float32) if full else (torch.bfloat16,):
            yield case(window, dtype)


def case(window: int, dtype: torch.dtype) -> Case:
    k, v = (torch.randn(BATCH, HEADS, NEW, DIM).to(dtype) for _ in range(2))
    held = 2 * BATCH * HEADS * window * DIM * k.element_size()
    return Case(
        op="KVCache.append",
        shape=f"{NEW} new of {window:,}, evicting, H {HEADS} D {DIM}",
        dtype=dtype,
        ours=appending(window, k, v),
        verify=lambda: verify(window, dtype),
        peers={
            "roll and copy": rolling(window, k, v),
            "concatenate": concatenating(window, k, v),
        },
        yardsticks={"ours, window four times as long": appending(4 * window, k, v)},
        bytes=2 * (k.nbytes + v.nbytes),
        limit="copy same size",
        bars={"roll and copy": 10, "ours, window four times as long": 0.85},
        notes=f"the window holds {held / 2**20:.0f} MiB of keys and values",
    )


def appending(window: int, k: Tensor, v: Tensor) -> Call:
    cache = full_cache(window, k.dtype)

    def call() -> None:
        cache.append(0, k, v)
        cache.commit()

    return call


def full_cache(window: int, dtype: torch.dtype) -> KVCache:
    cache = KVCache(1, BATCH, HEADS, window + NEW, DIM, window=window, dtype=dtype)
    for _ in range(window // NEW):
        block = torch.randn(BATCH, HEADS, NEW, DIM).to(dtype)
        cache.append(0, block, block)
        cache.commit()
    return cache


def rolling(window: int, k: Tensor, v: Tensor) -> Call:
    """What rolling caches do: move what stays to the front, then write behind it."""
    buffers = [torch.randn(BATCH, HEADS, window, DIM).to(k.dtype) for _ in range(2)]

    def call() -> None:
        for buffer, new in zip(buffers, (k, v), strict=True):
            buffer[:, :, :-NEW] = buffer[:, :, NEW:].clone()
            buffer[:, :, -NEW:] = new

    return call


def concatenating(window: int, k: Tensor, v: Tensor) -> Call:
    buffers = [torch.randn(BATCH, HEADS, window, DIM).to(k.dtype) for _ in range(2)]

    def call() -> None:
        for i, new in enumerate((k, v)):
            buffers[i] = torch.cat([buffers[i][:, :, NEW:], new], dim=2)

    return call


def verify(window: int, dtype: torch.dtype) -> None:
    """After many appends the cache holds the last `window` tokens, each in some slot."""
    cache = KVCache(1, BATCH, HEADS, window + NEW, DIM, window=window, dtype=dtype)
    blocks = [torch.randn(BATCH, HEADS, NEW, DIM).to(dtype) for _ in range(2 * window // NEW + 3)]
    for block in blocks:
        cache.append(0, block, -block)
        cache.commit()
    wanted = torch.cat(blocks[-window // NEW :], dim=2)
    view = cache.view(0)
    slots = torch.cat([torch.arange(begin, end) for begin, end in view.ranges])
    k, v = view.k[:, :, slots], view.v[:, :, slots]
    assert len(slots) == window and torch.equal(v, -k)
    assert torch.equal(tokens(k), tokens(wanted))


def tokens(x: Tensor) -> Tensor:
    """The tokens of the first sample, all heads of each in one row, in an order that does not depend on their slots."""
    return x[0].transpose(0, 1).flatten(1).float().unique(dim=0)  # (window, heads * dim)


def test_kv_cache(case, compare):
    compare(case)
