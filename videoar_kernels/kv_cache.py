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

from videoar_kernels.bit_checks import FLOATS
from videoar_kernels.kv_append import DEFAULTS
from videoar_kernels.kv_blocks import CacheShape
from videoar_kernels.kv_cursors import RingCursors, moves
from videoar_kernels.kv_places import Places
from videoar_kernels.library import ops, run_into
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
        device: Where the buffers lie; None: PyTorch's default device.

    Raises:
        ValueError: A size is not positive, or sink and window exceed the capacity. TypeError: Another dtype.
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
        device: torch.device | str | None = None,
    ) -> None:
        self._shape = CacheShape(layers, batch, kv_heads, capacity, head_dim, sink, window, relative)
        self._shape.check()
        if dtype not in FLOATS:
            raise TypeError(f"KVCache: expected dtype float32, float64, bfloat16 or float16, got {dtype}")
        self.layers, self.batch, self.kv_heads = layers, batch, kv_heads
        self.capacity, self.head_dim = capacity, head_dim
        self.sink, self.window, self.relative = sink, window, relative
        shape = (layers, batch, kv_heads, capacity, head_dim)
        # Zeros, since an attention that masks by adding still multiplies what lies in empty slots.
        self.k = torch.zeros(shape, dtype=dtype, device=device).unbind(0)
        self.v = torch.zeros(shape, dtype=dtype, device=device).unbind(0)
        self.dtype, self.device = self.k[0].dtype, self.k[0].device
        self._cursors = RingCursors(capacity, sink)
        self._places = Places(capacity, device) if relative else None
        self.reset()

    def reset(self) -> None:
        """Forgets everything; the memory stays."""
        self._cursors.reset()
        self.rollback()

    def rollback(self) -> None:
        """Forgets the pending block."""
        self._pending: dict[int, int] = {}  # layer -> tokens
        self._pass: set[int] = set()  # layers that share the positions below
        self._placed = False  # by `place`
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
                instead, needs (L, 3), takes those of the first layer of a pass for all, and waits for positions that
                lie on a GPU; none are read after `place`.
            dims: Split of D over (t, h, w), as in `rope_3d`.
            theta: Base of RoPE.
            interleaved: Layout of the rotated pairs, as in `rope_3d`.

        Raises:
            ValueError: A shape differs from the cache's, the block does not fit or is a view of the cache's own memory;
                layers, dims, theta or eps.
            TypeError: A dtype differs from the cache's; k_weight is not floating; a layer is not an int.
        """
        one = isinstance(layer, int) or not isinstance(layer, Sequence)
        layers, ks, vs = ((layer,), (k,), (v,)) if one else (list(layer), list(k), list(v))
        weights = () if k_weight is None else (k_weight,) if one else list(k_weight)
        length = ks[0].shape[2] if ks and getattr(ks[0], "ndim", 0) == 4 else 0
        rotation = (eps, dims or (), theta, interleaved)

        placed = self.relative and self._placed

        def check() -> None:
            self._shape.check_blocks(layers, ks, vs, weights, (self.k, self.v), self.length)
            given = self._query_positions if placed else positions
            self._shape.check_rotation(length, given, bool(weights), *rotation)

        # The kernel checks the rest, but knows neither other layers nor how many tokens are held.
        fits = 0 < length <= self.capacity - self._cursors.length and self._shape.has(layers)
        if not fits or self.relative or (positions is not None and getattr(positions, "dtype", None) != torch.int64):
            check()
        stored = None if self.relative else positions
        if self.relative and not placed:
            self._place_once(layers, positions)
        if torch.is_grad_enabled():
            check()
            ks, vs, weights = ([t.detach() for t in tensors] for tensors in (ks, vs, weights))
        # Every argument that is not left to its default costs a quarter of a microsecond.
        rest = (stored, self._cursors.total, self.sink, *(() if rotation == DEFAULTS else rotation))
        if one:
            buffers = self.k[layer], self.v[layer]
            weight = weights[0] if weights else None
            run_into(buffers, ops.kv_cache_append_layer.default, check, *buffers, ks[0], vs[0], weight, *rest)
        else:
            k_buffers, v_buffers = [self.k[i] for i in layers], [self.v[i] for i in layers]
            blocks = (k_buffers, v_buffers, ks, vs, weights)
            run_into(k_buffers + v_buffers, ops.kv_cache_append.default, check, *blocks, *rest)
        for i in layers:
            self._pending[i] = length

    def mark_pending(self, length: int) -> None:
        """Counts `length` tokens as pending in every layer, written by a CUDA graph that was captured at this place.

        Args:
            length: Tokens of the block.

        Raises:
            ValueError: The block does not fit, or the cache is relative and the block was not placed: a graph cannot
                renumber its positions.
        """
        placed = len(self._query_positions) if self._placed else 0
        self._shape.check_fit("KVCache.mark_pending", length, self.length, placed if self.relative else None)
        self._pending = dict.fromkeys(range(self.layers), length)

    def place(self, positions: Tensor, *, start: int | None = None) -> None:
        """Tells a relative cache where its next block lies, before it is appended and until commit or rollback.

        Nothing that `append` then does depends on the positions' values: a CUDA graph of it serves other positions.

        Args:
            positions: int64 (L, 3) of the block.
            start: their earliest time. None: it is looked up, which waits for positions that lie on a GPU.

        Raises:
            ValueError: The cache is not relative, positions have another shape, or the block does not fit.
            TypeError: Positions of another dtype.
        """
        length = positions.shape[0] if positions.ndim else 0
        if not self.relative:
            raise ValueError("KVCache.place: expected a relative cache, got one that stores rotated keys")
        self._shape.check_fit("KVCache.place", length, self.length)
        self._shape.check_rotation(length, positions, False, *DEFAULTS)
        self.rollback()
        self._place(positions, start)
        self._placed = True

    def place_key(self, length: int) -> tuple:
        """What of this cache's state a CUDA graph that appends `length` tokens and reads them is captured with.

        Returns:
            Their first slot and the slot ranges that they see; a stream comes back to the same ones again and again.
        """
        return length, self._cursors.next_slot, self._cursors.ranges(length)

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
        lengths = set(self._pending.values())
        if len(self._pending) < self.layers or len(lengths) > 1:
            lengths = [self._pending.get(layer, 0) for layer in range(self.layers)]
            raise ValueError(f"KVCache.commit: expected one pending length in all layers, got {lengths}")
        self._cursors.commit(lengths.pop(), self._start, close)
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
            ValueError: More units than there are, neither units nor a window, window < 0, every < 1, or a block is
                pending.
        """
        if self._pending:
            raise ValueError("KVCache.evict: a block is pending; commit it or roll it back first")
        if every is not None and every < 1:
            raise ValueError(f"KVCache.evict: expected every >= 1, got {every}")
        window = self.window if window is None else window
        if units is None:
            if window is None:
                raise ValueError("KVCache.evict: expected units or window, got neither, and the cache has no window")
            if window < 0:
                raise ValueError(f"KVCache.evict: expected window >= 0, got {window}")
            units = self._cursors.beyond(window)
        if not 0 <= units <= self.units:
            raise ValueError(f"KVCache.evict: expected 0 to {self.units} units, got {units}")
        dropped = self._cursors.drop(units, every)
        if self.relative:
            self._places.shift(dropped.shifts)
        if dropped.source:
            buffers = [*self.k, *self.v, *([self._places.slots[None, None]] if self.relative else [])]
            moved = moves(dropped.source, dropped.target)
            run_into(buffers, ops.kv_cache_move.default, lambda: None, buffers, moved)
        return dropped.tokens

    def view(self, layer: int) -> CacheView:
        """Returns what attention reads of a layer: the committed tokens and its pending block, without a copy.

        Raises:
            ValueError: The cache has no such layer. TypeError: It is not an int.
        """
        self._shape.check_layer("KVCache.view", layer)
        pending = self._pending.get(layer, 0)
        query_positions = self._query_positions if pending else None
        positions = self._places.slots if self.relative else None
        return CacheView(self.k[layer], self.v[layer], self._cursors.ranges(pending), positions, query_positions)

    def _place_once(self, layers: list[int], positions: Tensor) -> None:
        """Stores the positions of the pending block, once per pass over the layers."""
        if self._pass and not self._pass & set(layers):
            self._pass.update(layers)
            return
        self._pass = set(layers)
        self._place(positions, None)

    def _place(self, positions: Tensor, start: int | None) -> None:
        self._start = int(positions[:, 0].min()) if start is None else start
        gap, slots = self._cursors.gap(self._start), self._cursors.next_slots(len(positions))
        self._query_positions = self._places.put(positions, gap, slots)
