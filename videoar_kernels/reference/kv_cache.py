"""Key/value cache of a unit-by-unit decoder, in plain PyTorch: the definition of `videoar_kernels.kv_cache`.

A list of units, each with its own tensors, concatenated at every reading. No ring, no cursor, no reuse of memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from videoar_kernels.masks import RangeMask
from videoar_kernels.reference.rope import rope_3d


class CacheView(NamedTuple):
    """What attention reads of one layer: the buffers themselves, and which slots of them hold keys.

    Attributes:
        k: Keys (B, H, slots, D); only the slots in `ranges` mean anything.
        v: Values (B, H, slots, D).
        ranges: Ascending, disjoint slot ranges (begin, end) of the held tokens, pending block included.
        positions: int64 (slots, 3), re-indexed; only for a relative cache.
        query_positions: int64 (L, 3) of the pending block, re-indexed; only for a relative cache.
    """

    k: Tensor
    v: Tensor
    ranges: tuple[tuple[int, int], ...]
    positions: Tensor | None = None
    query_positions: Tensor | None = None

    def mask(self, q_len: int) -> RangeMask:
        """Returns the mask under which q_len queries see every held token and nothing else."""
        return _slots_mask(q_len, self.k.shape[2], self.ranges)


@lru_cache(maxsize=256)
def _slots_mask(q_len: int, slots: int, ranges: tuple[tuple[int, int], ...]) -> RangeMask:
    return RangeMask.from_ranges(q_len, slots, [(0, q_len)], [ranges])


def normalise_and_rotate(
    k: Tensor,
    weight: Tensor | None,
    positions: Tensor | None,
    eps: float = 1e-6,
    dims: Sequence[int] | None = None,
    theta: float = 10000.0,
    interleaved: bool = True,
) -> Tensor:
    """Applies a per-head RMS norm (where there is a weight) and RoPE (where there are positions) to k (B, H, L, D)."""
    y = k.to(torch.promote_types(k.dtype, torch.float32))
    if weight is not None:
        y = y * torch.rsqrt(y.square().mean(dim=-1, keepdim=True) + eps) * weight.to(y.dtype)
    if positions is not None:
        y = rope_3d(y, positions, dims=dims, theta=theta, interleaved=interleaved)
    return y.to(k.dtype)


def kv_cache_append(
    k_caches: Sequence[Tensor],
    v_caches: Sequence[Tensor],
    ks: Sequence[Tensor],
    vs: Sequence[Tensor],
    k_weights: Sequence[Tensor],
    positions: Tensor | None,
    start: int,
    sink: int,
    eps: float,
    dims: Sequence[int],
    theta: float,
    interleaved: bool,
) -> None:
    """Writes blocks (B, H, L, D) into caches (B, H, capacity, D): token i since the reset goes to slot i inside the
    sink, to slot sink + (i - sink) mod (capacity - sink) after it; the first token of the block is token `start`."""
    capacity, length = k_caches[0].shape[2], ks[0].shape[2]
    slots = [i if i < sink else sink + (i - sink) % (capacity - sink) for i in range(start, start + length)]
    if len(set(slots)) < length:
        raise ValueError(
            f"kv_cache_append: expected a block that fits, got {length} tokens for {len(set(slots))} slots"
        )
    slots = torch.tensor(slots, dtype=torch.int64, device=ks[0].device)
    for layer in range(len(ks)):
        weight = k_weights[layer] if k_weights else None
        k_caches[layer][:, :, slots] = normalise_and_rotate(ks[layer], weight, positions, eps, dims, theta, interleaved)
        v_caches[layer][:, :, slots] = vs[layer]


def kv_cache_move(caches: Sequence[Tensor], moves: Sequence[int]) -> None:
    """Moves tokens of caches (B, H, slots, D): `moves` holds source, target and length of stretches of slots, one after
    the other; each is read before it is written."""
    for source, target, length in zip(moves[::3], moves[1::3], moves[2::3], strict=True):
        for cache in caches:
            cache[:, :, target : target + length] = cache[:, :, source : source + length].clone()


@dataclass
class _Unit:
    number: int  # counted since the reset
    k: list[Tensor]  # one (B, H, n, D) per layer
    v: list[Tensor]
    positions: Tensor | None  # (n, 3)
    pinned: int  # how many of its first tokens lie in the sink


class KVCache:
    """See `videoar_kernels.KVCache`; `view` concatenates, so its buffers are copies of `length` slots."""

    def __init__(
        self,
        layers: int,
        batch: int,
        kv_heads: int,
        capacity: int,
        head_dim: int,
        *,
        sink: int = 0,
        window: int | None = None,
        relative: bool = False,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        self.layers, self.batch, self.kv_heads, self.capacity, self.head_dim = (
            layers,
            batch,
            kv_heads,
            capacity,
            head_dim,
        )
        self.sink, self.window, self.relative = sink, window, relative
        self.dtype, self.device = dtype, torch.device(device or torch.get_default_device())
        self.reset()

    def reset(self) -> None:
        """Forgets everything."""
        self.units: list[_Unit] = []  # the held ones; the last may be open
        self.open = False
        self.total = 0  # tokens committed since the reset
        self.starts: list[int] = []  # time of the first token of every unit since the reset, dropped ones too
        self.pending: dict[int, tuple[Tensor, Tensor, Tensor | None]] = {}

    @property
    def length(self) -> int:
        """Committed tokens held."""
        return sum(unit.k[0].shape[2] for unit in self.units)

    def append(
        self,
        layer: int,
        k: Tensor,
        v: Tensor,
        *,
        k_weight: Tensor | None = None,
        eps: float = 1e-6,
        positions: Tensor | None = None,
        dims: Sequence[int] | None = None,
        theta: float = 10000.0,
        interleaved: bool = True,
    ) -> None:
        """Makes k and v (B, H, L, D) the pending block of a layer."""
        if self.length + k.shape[2] > self.capacity:
            raise ValueError(f"KVCache.append: {self.length} + {k.shape[2]} tokens exceed {self.capacity}")
        rotation = None if self.relative else positions
        k = normalise_and_rotate(k, k_weight, rotation, eps, dims, theta, interleaved)
        self.pending[layer] = (k.clone(), v.clone(), positions if self.relative else None)

    def rollback(self) -> None:
        """Forgets the pending block."""
        self.pending = {}

    def commit(self, *, close: bool = True) -> int:
        """Keeps the pending block; return how many tokens the window dropped."""
        blocks = [self.pending[layer] for layer in range(self.layers)]
        length = blocks[0][0].shape[2]
        pinned = min(max(self.sink - self.total, 0), length)
        if not self.open:
            number = len(self.starts)
            empty = [torch.empty_like(k[:, :, :0]) for k, _, _ in blocks]
            positions = torch.empty(0, 3, dtype=torch.int64) if self.relative else None
            self.units.append(_Unit(number, empty, list(empty), positions, 0))
            self.starts.append(int(blocks[0][2][:, 0].min()) if self.relative else 0)
        unit = self.units[-1]
        unit.k = [torch.cat((old, k), dim=2) for old, (k, _, _) in zip(unit.k, blocks, strict=True)]
        unit.v = [torch.cat((old, v), dim=2) for old, (_, v, _) in zip(unit.v, blocks, strict=True)]
        if self.relative:
            unit.positions = torch.cat((unit.positions, blocks[0][2].cpu()))
        unit.pinned += pinned
        self.total += length
        self.open = not close
        self.pending = {}
        return self.evict(window=self.window) if close and self.window is not None else 0

    def evict(self, units: int | None = None, *, window: int | None = None, every: int | None = None) -> int:
        """Drops the oldest `units`, or the oldest until `window` tokens are left; see `videoar_kernels.KVCache`."""
        closed = self.units[: len(self.units) - self.open]
        loose = [unit for unit in closed if unit.k[0].shape[2] > unit.pinned]
        if units is None:
            held = sum(unit.k[0].shape[2] - unit.pinned for unit in loose)
            units = 0
            while held > window:
                held -= loose[units].k[0].shape[2] - loose[units].pinned
                units += 1
        doomed = [unit for unit in loose[:units] if every is None or unit.number % every]
        before = self.length
        for unit in doomed:
            unit.k = [k[:, :, : unit.pinned] for k in unit.k]
            unit.v = [v[:, :, : unit.pinned] for v in unit.v]
            if self.relative:
                unit.positions = unit.positions[: unit.pinned]
        self.units = [unit for unit in self.units if unit.k[0].shape[2] > 0]
        return before - self.length

    def view(self, layer: int) -> CacheView:
        """Returns the held keys and values in the order they were written, then the pending block."""
        ks, vs = [unit.k[layer] for unit in self.units], [unit.v[layer] for unit in self.units]
        positions, query_positions = [], None
        if self.relative:
            positions = [self._closed_up(unit.positions, unit.number) for unit in self.units]
        if layer in self.pending:
            k, v, pending_positions = self.pending[layer]
            ks, vs = [*ks, k], [*vs, v]
            if self.relative:
                query_positions = self._closed_up(pending_positions, len(self.starts) - self.open)
                positions.append(query_positions)
        shape = (self.batch, self.kv_heads, 0, self.head_dim)
        empty = torch.empty(shape, dtype=self.dtype, device=self.device)
        k, v = torch.cat([empty, *ks], dim=2), torch.cat([empty, *vs], dim=2)
        ranges = ((0, k.shape[2]),) if k.shape[2] else ()
        return CacheView(k, v, ranges, torch.cat(positions) if positions else None, query_positions)

    def _closed_up(self, positions: Tensor, number: int) -> Tensor:
        """Moves a unit's times down by the time spans of the units before it that are gone."""
        starts = self.starts
        if number == len(starts):
            starts = [*starts, int(positions[:, 0].min())]
        held = {unit.number for unit in self.units}
        gap = sum(starts[i + 1] - starts[i] for i in range(number) if i not in held)
        return positions - torch.tensor([gap, 0, 0])
