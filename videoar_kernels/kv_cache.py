"""Key/value cache with fixed memory: a pinned sink, then a ring; cursors are Python integers.

Token i since the reset lies in slot i if i < sink, else in slot sink + (i - sink) mod (capacity - sink). The held
tokens of the ring are always consecutive, so attention reads at most three slot ranges and nothing is ever moved,
except by thinning.
Source: the rolling cache of Self-Forcing and its relatives, as a ring; relative positions after LongLive.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from videoar_kernels import reference
from videoar_kernels.fallback import register_fallback
from videoar_kernels.kv_cursors import RingCursors
from videoar_kernels.library import ops, register_fake, run_into
from videoar_kernels.reference.kv_cache import CacheView


class KVCache:
    """Keys and values of every layer of a decoder that advances unit by unit (a frame, a scale, a cube).

    A block is appended in every layer, may be appended again (a denoising step rewrites it), and is then committed
    or rolled back. No gradient flows through the cache.

    Args:
        layers: How many layers it serves.
        batch: Samples; every block must have as many.
        kv_heads: Key and value heads.
        capacity: Slots per head, in tokens: sink, window, and the unit being written must fit.
        head_dim: Size of a head.
        sink: The first `sink` tokens after a reset are never evicted.
        window: Tokens of closed units to hold outside the sink; when a unit is closed, the oldest units are dropped
            until no more are held. None: nothing is dropped by itself.
        relative: Store keys unrotated; `view` then gives positions in which the time that evicted units spanned is
            closed up, and the reader rotates (`rope_3d(view.k, view.positions)`).
        dtype: float32, bfloat16, float16 or float64.
        device: Where the buffers lie.

    Raises:
        ValueError: A size is not positive, or sink and window exceed the capacity.
    """

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
        device: torch.device | str = "cpu",
    ) -> None:
        sizes = dict(layers=layers, batch=batch, kv_heads=kv_heads, capacity=capacity, head_dim=head_dim)
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"KVCache: expected {name} >= 1, got {size}")
        if sink < 0 or (window is not None and window < 0):
            raise ValueError(f"KVCache: expected sink and window >= 0, got {sink} and {window}")
        if sink + (window or 0) > capacity:
            raise ValueError(
                f"KVCache: a sink of {sink} and a window of {window} tokens exceed the capacity of {capacity}"
            )
        self.layers, self.batch, self.kv_heads = layers, batch, kv_heads
        self.capacity, self.head_dim = capacity, head_dim
        self.sink, self.window, self.relative = sink, window, relative
        shape = (layers, batch, kv_heads, capacity, head_dim)
        # Zeros, since an attention that masks by adding still multiplies what lies in empty slots.
        self.k = torch.zeros(shape, dtype=dtype, device=device).unbind(0)
        self.v = torch.zeros(shape, dtype=dtype, device=device).unbind(0)
        self.dtype, self.device = self.k[0].dtype, self.k[0].device
        self._cursors = RingCursors(capacity, sink)
        self._positions = torch.zeros(capacity, 3, dtype=torch.int64, device=device) if relative else None
        self.reset()

    def reset(self) -> None:
        """Forgets everything; the memory stays."""
        self._cursors.reset()
        self.rollback()

    def rollback(self) -> None:
        """Forgets the pending block."""
        self._pending: dict[int, int] = {}  # layer -> tokens
        self._pass: set[int] = set()  # layers that share the positions below
        self._start = 0
        self._query_positions: Tensor | None = None

    @property
    def length(self) -> int:
        """Committed tokens held."""
        return self._cursors.length

    @property
    def total(self) -> int:
        """Tokens committed since the reset."""
        return self._cursors.total

    @property
    def units(self) -> int:
        """Closed units that `evict` could drop."""
        return len(self._cursors.units)

    @property
    def nbytes(self) -> int:
        """Bytes of the key and value buffers."""
        return 2 * self.layers * self.k[0].nbytes

    def append(
        self,
        layer: int | Sequence[int],
        k: Tensor | Sequence[Tensor],
        v: Tensor | Sequence[Tensor],
        *,
        k_weight: Tensor | Sequence[Tensor] | None = None,
        eps: float = 1e-6,
        positions: Tensor | None = None,
        dims: Sequence[int] | None = None,
        theta: float = 10000.0,
        interleaved: bool = True,
    ) -> None:
        """Makes k and v the pending block of a layer, replacing one that was pending there.

        Args:
            layer: A layer, or several (then k, v and k_weight are sequences, written by one kernel).
            k: Keys (B, H, L, D), before norm and RoPE where those are asked for.
            v: Values (B, H, L, D).
            k_weight: (D,): apply an RMS norm to every head of k, with this weight. None: no norm.
            eps: Of the norm.
            positions: int64 (L, 3) or (B, L, 3): rotate k by them. None: no RoPE. A relative cache stores them
                instead, needs (L, 3), and takes those of the first layer of a pass for all.
            dims: Split of D over (t, h, w), as in `rope_3d`.
            theta: Base of RoPE.
            interleaved: Layout of the rotated pairs, as in `rope_3d`.

        Raises:
            ValueError: A shape differs from the cache's, or the block does not fit.
            TypeError: A dtype differs from the cache's.
        """
        if isinstance(layer, int) and not self.relative:
            return self._append_layer(layer, k, v, k_weight, positions, eps, dims, theta, interleaved)
        many = not isinstance(layer, int)
        layers, ks, vs = (list(layer), list(k), list(v)) if many else ([layer], [k], [v])
        weights = [] if k_weight is None else list(k_weight) if many else [k_weight]
        length = self._check_blocks(layers, ks, vs, weights)
        positions = self._check_positions(positions, length)
        if self.relative:
            self._place(layers, positions, length)
            positions = None
        dims = (0, 0, 0) if positions is None else self._check_dims(dims)
        k_buffers, v_buffers = [self.k[i] for i in layers], [self.v[i] for i in layers]
        ops.kv_cache_append(
            k_buffers,
            v_buffers,
            [k.detach() for k in ks],
            [v.detach() for v in vs],
            [w.detach() for w in weights],
            positions,
            self.total,
            self.sink,
            eps,
            list(dims),
            theta,
            interleaved,
        )
        if not torch.compiler.is_compiling():
            torch.autograd.graph.increment_version(k_buffers + v_buffers)
        self._pending.update(dict.fromkeys(layers, length))

    def _append_layer(self, layer, k, v, k_weight, positions, eps, dims, theta, interleaved) -> None:
        """Appends to one layer, the call of every attention block; the kernel checks what Python need not."""

        def check() -> None:
            length = self._check_blocks([layer], [k], [v], [] if k_weight is None else [k_weight])
            if self._check_positions(positions, length) is not None:
                self._check_dims(dims)

        length = k.shape[2] if k.ndim == 4 else 0
        fits = 0 < length <= self.capacity - self._cursors.length and 0 <= layer < self.layers
        if not fits or (positions is not None and positions.dtype != torch.int64):
            check()
        if torch.is_grad_enabled():
            k, v, k_weight = k.detach(), v.detach(), None if k_weight is None else k_weight.detach()
        buffers = self.k[layer], self.v[layer]
        rest = (self._cursors.total, self.sink, eps, dims or (), theta, interleaved)
        run_into(buffers, ops.kv_cache_append_layer.default, check, *buffers, k, v, k_weight, positions, *rest)
        self._pending[layer] = length

    def mark_pending(self, length: int) -> None:
        """Counts `length` tokens as pending in every layer, written by a CUDA graph that was captured at this place.

        Args:
            length: Tokens of the block.

        Raises:
            ValueError: The block does not fit, or the cache is relative: a graph cannot renumber its positions.
        """
        if self.relative or not 0 < length <= self.capacity - self.length:
            raise ValueError(
                f"KVCache.mark_pending: expected 1 to {self.capacity - self.length} tokens and absolute positions, "
                f"got {length} tokens, relative={self.relative}"
            )
        self._pending = dict.fromkeys(range(self.layers), length)

    def commit(self, *, close: bool = True) -> int:
        """Keeps the pending block and, where the cache has a window, drops what has left it.

        Args:
            close: Whether the unit ends with this block. A frame that is committed scale by scale is one unit if
                only its last scale closes it; the window counts closed units.

        Returns:
            How many tokens were dropped.

        Raises:
            ValueError: A layer has no pending block, or lengths differ between layers.
        """
        lengths = [self._pending.get(layer, 0) for layer in range(self.layers)]
        length = lengths[0]
        if length == 0 or any(other != length for other in lengths):
            raise ValueError(f"KVCache.commit: expected one pending length in all layers, got {lengths}")
        self._cursors.commit(length, self._start, close)
        self.rollback()
        return self.evict() if close and self.window is not None else 0

    def evict(self, units: int | None = None, *, window: int | None = None, every: int | None = None) -> int:
        """Drops the oldest closed units; tokens in the sink stay.

        Args:
            units: How many units; or
            window: Drop the oldest units until at most so many tokens of closed units are held outside the sink
                (by default the cache's own window).
            every: Thinning: of the units that would go, those stay whose number since the reset is a multiple of it.
                They are moved next to the units that follow, so that the held tokens remain consecutive. A cache
                with a window of its own drops them at the next commit.

        Returns:
            How many tokens were dropped.

        Raises:
            ValueError: More units than there are, neither units nor a window, every < 1, or a block is pending.
        """
        if self._pending:
            raise ValueError("KVCache.evict: a block is pending; commit it or roll it back first")
        if every is not None and every < 1:
            raise ValueError(f"KVCache.evict: expected every >= 1, got {every}")
        window = self.window if window is None else window
        if units is None:
            if window is None:
                raise ValueError("KVCache.evict: expected units or window, got neither, and the cache has no window")
            units = self._cursors.beyond(window)
        if not 0 <= units <= self.units:
            raise ValueError(f"KVCache.evict: expected 0 to {self.units} units, got {units}")
        dropped = self._cursors.drop(units, every)
        if self.relative:
            for slots, gap in dropped.shifts:
                self._positions[slots, 0] -= gap
        if dropped.source:
            for buffer in (*self.k, *self.v, *([self._positions[None, None]] if self.relative else [])):
                buffer[:, :, dropped.target] = buffer[:, :, dropped.source]
        return dropped.tokens

    def view(self, layer: int) -> CacheView:
        """Returns what attention reads of a layer: the committed tokens and its pending block, without a copy."""
        pending = self._pending.get(layer, 0)
        query_positions = self._query_positions if pending else None
        return CacheView(self.k[layer], self.v[layer], self._cursors.ranges(pending), self._positions, query_positions)

    def _place(self, layers: list[int], positions: Tensor, length: int) -> None:
        """Stores the positions of the pending block, once per pass over the layers."""
        if self._pass and not self._pass & set(layers):
            self._pass.update(layers)
            return
        self._pass = set(layers)
        self._start = int(positions[:, 0].min())
        gap = torch.tensor([self._cursors.gap(self._start), 0, 0], device=self.device)
        self._query_positions = positions.to(self.device) - gap
        self._positions[self._cursors.next_slots(length)] = self._query_positions

    def _check_blocks(self, layers: list[int], ks: list[Tensor], vs: list[Tensor], weights: list[Tensor]) -> int:
        if not layers or not len(layers) == len(ks) == len(vs) or len(weights) not in (0, len(layers)):
            counts = f"{len(layers)} layers, {len(ks)} k, {len(vs)} v, {len(weights)} k_weight"
            raise ValueError(f"KVCache.append: expected as many k and v as layers, got {counts}")
        if len(set(layers)) < len(layers) or min(layers) < 0 or max(layers) >= self.layers:
            raise ValueError(f"KVCache.append: expected different layers in 0..{self.layers - 1}, got {layers}")
        length = ks[0].shape[2] if ks[0].ndim == 4 else 0
        shape = (self.batch, self.kv_heads, length, self.head_dim)
        for name, block in [*(("k", k) for k in ks), *(("v", v) for v in vs)]:
            if tuple(block.shape) != shape or length == 0:
                expected = f"({self.batch}, {self.kv_heads}, L >= 1, {self.head_dim})"
                raise ValueError(
                    f"KVCache.append: expected {name} of shape {expected}, one L for all, got {tuple(block.shape)}"
                )
            if block.dtype != self.dtype or block.device != self.device:
                raise TypeError(
                    f"KVCache.append: expected {name} of {self.dtype} on {self.device}, "
                    f"got {block.dtype} on {block.device}"
                )
        for weight in weights:
            if tuple(weight.shape) != (self.head_dim,):
                raise ValueError(
                    f"KVCache.append: expected k_weight of shape ({self.head_dim},), got {tuple(weight.shape)}"
                )
        if self.length + length > self.capacity:
            raise ValueError(
                f"KVCache.append: {self.length} held and {length} new tokens exceed the capacity of {self.capacity} "
                f"(sink {self.sink}, window {self.window}); evict first or make it larger"
            )
        return length

    def _check_positions(self, positions: Tensor | None, length: int) -> Tensor | None:
        if positions is None:
            if self.relative:
                raise ValueError("KVCache.append: a relative cache needs positions, got None")
            return None
        shapes = [(length, 3)] if self.relative else [(length, 3), (self.batch, length, 3)]
        if tuple(positions.shape) not in shapes:
            expected = " or ".join(map(str, shapes))
            raise ValueError(f"KVCache.append: expected positions of shape {expected}, got {tuple(positions.shape)}")
        if positions.dtype != torch.int64:
            raise TypeError(f"KVCache.append: expected positions of torch.int64, got {positions.dtype}")
        return positions

    def _check_dims(self, dims: Sequence[int] | None) -> Sequence[int]:
        dims = reference.rope.default_dims(self.head_dim) if dims is None else dims
        if len(dims) != 3 or sum(dims) != self.head_dim or any(d < 0 or d % 2 for d in dims):
            raise ValueError(f"KVCache.append: expected three even dims that sum to {self.head_dim}, got {tuple(dims)}")
        return dims


@register_fake("videoar_kernels::kv_cache_append")
def _(k_caches, v_caches, ks, vs, k_weights, positions, start, sink, eps, dims, theta, interleaved):
    return None


@register_fake("videoar_kernels::kv_cache_append_layer")
def _(k_cache, v_cache, k, v, k_weight, positions, start, sink, eps, dims, theta, interleaved):
    return None


def _reference_append_layer(k_cache, v_cache, k, v, k_weight, positions, start, sink, eps, dims, theta, interleaved):
    weights, dims = [] if k_weight is None else [k_weight], dims or None
    blocks = ([k_cache], [v_cache], [k], [v], weights)
    reference.kv_cache.kv_cache_append(*blocks, positions, start, sink, eps, dims, theta, interleaved)


register_fallback("kv_cache_append", reference.kv_cache.kv_cache_append)
register_fallback("kv_cache_append_layer", _reference_append_layer)
