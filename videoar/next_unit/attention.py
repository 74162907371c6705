"""Wan's two attentions: over the video with 3D RoPE, under a mask or through a cache, and over the text.

Queries and keys are RMS-normalised over all heads of a token together. Source: Wan 2.1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from torch import Tensor, nn

from videoar.next_unit.config import BackboneConfig
from videoar_kernels import KVCache, RangeMask, adaln_norm, qk_norm_rope, range_attention, rope_3d

# (attention, q, k, v): what queries read, given a token's own unnormed heads (B, L, C), as (B, H, L, D)
Attend = Callable[["Attention", Tensor, Tensor, Tensor], Tensor]


class TextKeys(NamedTuple):
    """What a prompt's cross-attention reads: keys and values (B, H, text_len, D) of every layer."""

    k: tuple[Tensor, ...]
    v: tuple[Tensor, ...]


class Weight(nn.RMSNorm):
    """The gain of an RMS norm over the full width, under the name that Wan's checkpoints have."""


class Attention(nn.Module):
    """Projections of queries, keys, values and the output, and the two gains."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        width = config.width
        self.heads, self.eps, self.theta = config.heads, config.eps, config.theta
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.norm_q, self.norm_k = Weight(width, eps=config.eps), Weight(width, eps=config.eps)

    def forward(self, x: Tensor, attend: Attend) -> Tensor:
        """Self-attention of x (B, L, C)."""
        return self.merge(attend(self, self.q(x), self.k(x), self.v(x)))

    def cross(self, x: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of x (B, L, C) to the text's keys and values (B, H, n, D), which `text_keys` made."""
        return self.merge(range_attention(self.split(self.normed(self.q(x), self.norm_q)), k, v))

    def text_keys(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, H, n, D) of the embedded text (B, n, C)."""
        return self.split(self.normed(self.k(text), self.norm_k)), self.split(self.v(text))

    def normed(self, x: Tensor, gain: Weight) -> Tensor:
        return adaln_norm(x, weight=gain.weight, eps=self.eps, kind="rms")

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, H, L, D)

    def merge(self, x: Tensor) -> Tensor:
        return self.o(x.transpose(1, 2).flatten(2))  # (B, L, C)

    def rotated(self, q: Tensor, k: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys (B, L, C) normed and rotated, as heads."""
        weights = self.norm_q.weight, self.norm_k.weight
        q, k = self.split(q), self.split(k)
        return qk_norm_rope(q, k, *weights, positions, eps=self.eps, theta=self.theta, full_width=True)


class UnitReader(Protocol):
    """What the queries of a pass read."""

    def layer(self, index: int) -> Attend:
        """The attention of a layer."""


class WholeSequence(NamedTuple):
    """One pass over a sequence under a mask; None: all to all."""

    positions: Tensor
    mask: RangeMask | None

    def layer(self, index: int) -> Attend:
        def attend(attention: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            q, k = attention.rotated(q, k, self.positions)
            return range_attention(q, k, attention.split(v), self.mask)

        return attend


class CachedUnit(NamedTuple):
    """One unit that sees itself and what the cache holds; its keys and values become the cache's pending block.

    A relative cache that was told of the unit by `KVCache.place` reads no positions.
    """

    positions: Tensor
    cache: KVCache

    def layer(self, index: int) -> Attend:
        return lambda attention, *heads: (self._relative if self.cache.relative else self._absolute)(
            index, attention, *heads
        )

    def _absolute(self, index: int, attention: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k = attention.rotated(q, k, self.positions)
        self.cache.append(index, k, attention.split(v))
        view = self.cache.view(index)
        return range_attention(q, view.k, view.v, view.mask(q.shape[2]))

    def _relative(self, index: int, attention: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k = attention.split(attention.normed(k, attention.norm_k))
        self.cache.append(index, k, attention.split(v), positions=self.positions)
        view = self.cache.view(index)
        q = attention.split(attention.normed(q, attention.norm_q))
        q = rope_3d(q, view.query_positions, theta=attention.theta)
        k = rope_3d(view.k, view.positions, theta=attention.theta)
        return range_attention(q, k, view.v, view.mask(q.shape[2]))
