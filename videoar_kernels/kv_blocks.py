"""What a KV cache asks of the blocks that are appended to it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from videoar_kernels import reference
from videoar_kernels.argument_types import check_tensor, whole
from videoar_kernels.bit_checks import FLOATS
from videoar_kernels.outputs import shares_memory
from videoar_kernels.rope import check_dims


@dataclass(frozen=True)
class CacheShape:
    """What a cache was made for; see `KVCache`."""

    layers: int
    batch: int
    kv_heads: int
    capacity: int
    head_dim: int
    sink: int
    window: int | None
    relative: bool

    def check(self) -> None:
        """Raises ValueError unless a cache can be made of these sizes."""
        for name in ("layers", "batch", "kv_heads", "capacity", "head_dim"):
            if whole("KVCache", name, getattr(self, name)) < 1:
                raise ValueError(f"KVCache: expected {name} >= 1, got {getattr(self, name)}")
        for name in ("sink", "window"):
            if getattr(self, name) is not None:
                whole("KVCache", name, getattr(self, name))
        sink, window = self.sink, self.window
        if sink < 0 or (window is not None and window < 0):
            raise ValueError(f"KVCache: expected sink and window >= 0, got {sink} and {window}")
        if sink + (window or 0) > self.capacity:
            raise ValueError(
                f"KVCache: a sink of {sink} and a window of {window} tokens exceed the capacity of {self.capacity}"
            )

    def has(self, layers: Sequence[int]) -> bool:
        """Returns whether these are different layers of the cache, at least one."""
        distinct = len(layers) == 1 or len(set(layers)) == len(layers) > 0
        return distinct and bool not in map(type, layers) and min(layers) >= 0 and max(layers) < self.layers

    def check_layer(self, name: str, layer: int) -> None:
        """Raises unless the cache has this layer."""
        if isinstance(layer, bool) or not isinstance(layer, int):
            raise TypeError(f"{name}: expected a layer as int, got {layer!r}")
        if not 0 <= layer < self.layers:
            raise ValueError(f"{name}: expected a layer in 0..{self.layers - 1}, got {layer}")

    def check_fit(self, name: str, length: int, held: int, placed: int | None = None) -> None:
        """Raises unless a block of `length` tokens fits, and is the one that was placed if that is asked for."""
        if not 0 < length <= self.capacity - held or placed not in (None, length):
            free = f"1 to {self.capacity - held}"
            asked = free if placed is None else f"the {placed} that `place` was told" if placed else "`place` before it"
            raise ValueError(f"{name}: expected {asked}, got {length} tokens")

    def check_blocks(
        self,
        layers: Sequence[int],
        ks: Sequence[Tensor],
        vs: Sequence[Tensor],
        weights: Sequence[Tensor],
        buffers: Sequence[Sequence[Tensor]],
        held: int,
    ) -> None:
        """Raises unless these keys, values and norm weights can go to these layers.

        Args:
            layers: One index for each of ks and vs, and of weights if there are any.
            ks: Keys.
            vs: Values.
            weights: Norm weights of the keys, or none.
            buffers: The caches' own keys and values, one tensor per layer each.
            held: Tokens committed.
        """
        if not layers or not len(layers) == len(ks) == len(vs) or len(weights) not in (0, len(layers)):
            counts = f"{len(layers)} layers, {len(ks)} k, {len(vs)} v, {len(weights)} k_weight"
            raise ValueError(f"KVCache.append: expected as many k and v as layers, got {counts}")
        if any(isinstance(layer, bool) or not hasattr(layer, "__index__") for layer in layers):
            raise TypeError(f"KVCache.append: expected layers as int, got {list(layers)}")
        named = [*(("k", k) for k in ks), *(("v", v) for v in vs)]
        for name, tensor in (*named, *(("k_weight", weight) for weight in weights)):
            check_tensor("KVCache.append", name, tensor)
        if not self.has(layers):
            raise ValueError(f"KVCache.append: expected different layers in 0..{self.layers - 1}, got {list(layers)}")
        length = ks[0].shape[2] if ks[0].ndim == 4 else 0
        shape, like = (self.batch, self.kv_heads, length, self.head_dim), buffers[0][0]
        written = [kind[layer] for kind in buffers for layer in layers]
        for name, block in named:
            if tuple(block.shape) != shape or length == 0:
                expected = f"({self.batch}, {self.kv_heads}, L >= 1, {self.head_dim})"
                raise ValueError(
                    f"KVCache.append: expected {name} of shape {expected}, one L for all, got {tuple(block.shape)}"
                )
            if block.dtype != like.dtype or block.device != like.device:
                raise TypeError(
                    f"KVCache.append: expected {name} of {like.dtype} on {like.device}, "
                    f"got {block.dtype} on {block.device}"
                )
            if _storage(block) in {_storage(kind[0]) for kind in buffers} and any(
                shares_memory(buffer, block) for buffer in written
            ):
                raise ValueError(
                    f"KVCache.append: expected {name} apart from the cache's memory; hand in a clone of it"
                )
        for weight in weights:
            if tuple(weight.shape) != (self.head_dim,):
                raise ValueError(
                    f"KVCache.append: expected k_weight of shape ({self.head_dim},), got {tuple(weight.shape)}"
                )
            if weight.dtype not in FLOATS:
                raise TypeError(
                    f"KVCache.append: expected k_weight of float32, float64, bfloat16 or float16, got {weight.dtype}"
                )
            if weight.device != like.device:
                raise ValueError(f"KVCache.append: expected k_weight on {like.device}, got one on {weight.device}")
        if held + length > self.capacity:
            raise ValueError(
                f"KVCache.append: {held} held and {length} new tokens exceed the capacity of {self.capacity} "
                f"(sink {self.sink}, window {self.window}); evict first or make it larger"
            )

    def check_rotation(
        self,
        length: int,
        positions: Tensor | None,
        normed: bool,
        eps: float,
        dims: Sequence[int],
        theta: float,
        interleaved: bool,
    ) -> None:
        """Raises unless `length` tokens can be normed (if asked) and rotated by `positions` (if any)."""
        if normed and not 0 <= eps < math.inf:
            raise ValueError(f"KVCache.append: expected a finite eps >= 0, got {eps}")
        if positions is None:
            if self.relative:
                raise ValueError("KVCache.append: a relative cache needs positions, got None")
            return
        check_tensor("KVCache.append", "positions", positions)
        shapes = [(length, 3)] if self.relative else [(length, 3), (self.batch, length, 3)]
        if tuple(positions.shape) not in shapes:
            expected = " or ".join(map(str, shapes))
            raise ValueError(f"KVCache.append: expected positions of shape {expected}, got {tuple(positions.shape)}")
        if positions.dtype != torch.int64:
            raise TypeError(f"KVCache.append: expected positions of torch.int64, got {positions.dtype}")
        if self.relative:
            return
        check_dims("KVCache.append", dims or reference.rope.default_dims(self.head_dim), self.head_dim)
        if not 0 < theta < math.inf:
            raise ValueError(f"KVCache.append: expected a finite theta > 0, got {theta}")


def _storage(t: Tensor) -> int:
    return 0 if torch.compiler.is_compiling() else t.untyped_storage().data_ptr()
