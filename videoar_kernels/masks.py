"""Attention masks made of ranges: disjoint query ranges, each with a short sorted list of key ranges.

Query i may see key j  <=>  i lies in some query range r and j in one of r's key ranges (CSR: key_ptr, key_ranges).
Sources: paper S, Eq. 5 (block-causal over frames and scales) and Eq. 9 (Random Frame Mask with a window);
paper U, Sec. 3 (units, and the symmetric forward and backward critics).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from . import mask_layouts, mask_ranges, mask_views
from .argument_types import check_tensor
from .mask_layouts import Layout

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch.nn.attention.flex_attention import BlockMask


@dataclass(frozen=True, eq=False, repr=False)
class RangeMask:
    """Which keys each query may see, as contiguous ranges; immutable, hashable and in a canonical form.

    Canonical: query ranges are sorted, disjoint and maximal, key ranges are sorted, disjoint and never adjacent,
    and a query range without keys is left out. So two masks are equal exactly where their dense forms are.
    Build one with a constructor below; don't write into its tensors.

    Args:
        q_len: number of queries.
        k_len: number of keys.
        batch: number of samples with masks of their own, or None for one mask that serves every sample.
        batch_ptr: int32 (batch or 1) + 1; sample b owns the query ranges batch_ptr[b] to batch_ptr[b + 1].
        q_ranges: int32 (n, 2), half-open ranges of queries.
        key_ptr: int32 (n + 1); query range r owns the key ranges key_ptr[r] to key_ptr[r + 1].
        key_ranges: int32 (m, 2), half-open ranges of keys.

    Source: paper S, Eq. 5 and 9; paper U, Sec. 3.
    """

    q_len: int
    k_len: int
    batch: int | None
    batch_ptr: Tensor
    q_ranges: Tensor
    key_ptr: Tensor
    key_ranges: Tensor

    @staticmethod
    def full(q_len: int, k_len: int) -> RangeMask:
        """Every query sees every key.

        Args:
            q_len: number of queries.
            k_len: number of keys.

        Raises:
            ValueError: a length below 0 or beyond int32. TypeError: one that is no integer.
        """
        rows, ranges = np.array([[0, 0, q_len]]), np.array([[0, 0, k_len]])
        return _canonical("full", q_len, k_len, None, rows, ranges)

    @staticmethod
    def multiscale(
        text_len: int,
        frames: int,
        scales: Sequence[tuple[int, int]],
        window: int | None = None,
        frame_keep: Tensor | np.ndarray | Sequence | None = None,
    ) -> RangeMask:
        """Paper S: text, then frame after frame, inside a frame scale after scale.

        Text sees all text. Scale k of frame t sees text, every scale of the earlier frames it keeps, and scales
        1 to k of its own frame.

        Args:
            text_len: tokens of the text prefix.
            frames: number of frames.
            scales: (h, w) of each scale, coarse to fine.
            window: frame t sees frames t - window to t - 1 only; None: all earlier frames.
            frame_keep: bool (frames, frames) or (batch, frames, frames); row t says which earlier frames step t may
                see (entries on and above the diagonal have no meaning). With a batch the mask is batched.

        Raises:
            ValueError: a negative length or window, an empty scale, or frame_keep of another shape. TypeError: a
                length, window or scale that is no integer.

        Source: paper S, Eq. 5 and 9.
        """
        return _arrange("multiscale", mask_layouts.multiscale(text_len, frames, scales, window, frame_keep))

    @staticmethod
    def units(
        unit_lens: Sequence[int],
        text_len: int = 0,
        window: int | None = None,
        sink: int = 0,
        direction: str = "forward",
    ) -> RangeMask:
        """Paper U: text, then unit after unit; a unit sees text, itself whole, and its past.

        Args:
            unit_lens: tokens of each unit, in generation order.
            text_len: tokens of the text prefix, which sees only itself.
            window: how many units before its own a unit sees; None: all of them.
            sink: how many of the very first units every later unit sees whatever the window.
            direction: "forward"; "backward", its mirror image (later units instead of earlier ones, the sink at the
                end); "full", the union of both.

        Raises:
            ValueError: a negative length, window or sink, an empty unit, or an unknown direction. TypeError: one of
                them is no integer.

        Source: paper U, Sec. 3.3.
        """
        return _arrange("units", mask_layouts.units(unit_lens, text_len, window, sink, direction))

    @staticmethod
    def teacher_forcing(
        unit_lens: Sequence[int], text_len: int = 0, window: int | None = None, sink: int = 0
    ) -> RangeMask:
        """Text, a clean copy of all units, then a noisy copy: history is clean, the unit being denoised is noisy.

        Clean unit i sees text and clean units up to i; noisy unit i sees text, clean units before i, and itself.

        Args:
            unit_lens: tokens of each unit; the sequence holds them twice.
            text_len: tokens of the text prefix, which sees only itself.
            window: how many units before its own a unit sees; None: all of them.
            sink: how many of the very first units every later unit sees whatever the window.

        Raises:
            ValueError: a negative length, window or sink, or an empty unit. TypeError: one that is no integer.

        Source: paper U, Sec. 3.2.
        """
        return _arrange("teacher_forcing", mask_layouts.teacher_forcing(unit_lens, text_len, window, sink))

    @staticmethod
    def from_ranges(
        q_len: int,
        k_len: int,
        q_ranges: Sequence[tuple[int, int]],
        key_ranges: Sequence[Sequence[tuple[int, int]]],
    ) -> RangeMask:
        """Any mask, from its ranges; key ranges may come in any order, overlap, touch or be empty.

        Args:
            q_len: number of queries.
            k_len: number of keys.
            q_ranges: disjoint half-open query ranges; a query in none of them sees no key.
            key_ranges: for each query range, the half-open key ranges it sees.

        Raises:
            ValueError: a range outside the lengths, query ranges that overlap, or lists of different lengths.
            TypeError: a length or a range's end that is no integer.
        """
        rows, ranges = mask_ranges.of_lists(q_len, k_len, q_ranges, key_ranges)
        return _canonical("from_ranges", q_len, k_len, None, rows, ranges)

    @staticmethod
    def from_dense(dense: Tensor) -> RangeMask:
        """The mask with the given dense form.

        Args:
            dense: bool (q_len, k_len), or (batch, q_len, k_len) for a batched mask; true where a query sees a key.

        Raises:
            ValueError: another dtype or number of dimensions.
        """
        check_tensor("RangeMask.from_dense", "dense", dense)
        if dense.dtype != torch.bool or dense.dim() not in (2, 3):
            raise ValueError(
                "RangeMask.from_dense: expected dense of dtype bool and shape (q_len, k_len) or (batch, q_len, k_len), "
                f"got {dense.dtype} {tuple(dense.shape)}"
            )
        batch = dense.shape[0] if dense.dim() == 3 else None
        visible = dense.detach().cpu().numpy()
        visible = visible if dense.dim() == 3 else visible[None]
        return _canonical("from_dense", *visible.shape[1:], batch, *mask_ranges.of_dense(visible))

    @staticmethod
    def stack(masks: Sequence[RangeMask]) -> RangeMask:
        """One batched mask, sample b having masks[b].

        Args:
            masks: unbatched masks of equal lengths.

        Raises:
            ValueError: no mask, a batched one, or different lengths.
        """
        if not masks or any(not isinstance(m, RangeMask) or m.batch is not None for m in masks):
            raise ValueError("RangeMask.stack: expected at least one mask, all unbatched")
        q_len, k_len = masks[0].q_len, masks[0].k_len
        for mask in masks:
            if (mask.q_len, mask.k_len) != (q_len, k_len):
                raise ValueError(
                    f"RangeMask.stack: expected masks of lengths ({q_len}, {k_len}), got ({mask.q_len}, {mask.k_len})"
                )
        return RangeMask(
            q_len,
            k_len,
            len(masks),
            mask_ranges.chain([m.batch_ptr for m in masks]),
            torch.cat([m.q_ranges for m in masks]),
            mask_ranges.chain([m.key_ptr for m in masks]),
            torch.cat([m.key_ranges for m in masks]),
        )

    @cached_property
    def pairs(self) -> int:
        """Number of visible (query, key) pairs, over all samples of a batched mask."""
        return mask_ranges.pairs(self.q_ranges, self.key_ptr, self.key_ranges)

    @property
    def density(self) -> float:
        """Share of all (query, key) pairs that are visible, 0 to 1."""
        return self.pairs / max(self.q_len * self.k_len * (self.batch or 1), 1)

    def flops(self, heads: int, head_dim: int, backward: bool = False) -> int:
        """Useful floating-point operations of attention: two matrix products forward, five backward.

        Args:
            heads: number of query heads.
            head_dim: size of a head.
            backward: count the backward pass instead of the forward pass.

        Returns:
            The count for one sample, or for the whole batch of a batched mask; softmax is not counted.
        """
        return (10 if backward else 4) * heads * head_dim * self.pairs

    def to_dense(self, device: torch.device | str = "cpu") -> Tensor:
        """The mask as bool (q_len, k_len), or (batch, q_len, k_len); quadratic memory."""
        return mask_views.dense(self).to(device)

    def to_flex(self, device: torch.device | str = "cpu", block_size: int = 128) -> BlockMask:
        """The mask as a FlexAttention BlockMask, built without a dense form."""
        return mask_views.flex(self, device, block_size)

    def draw(self, path: str | None = None, *, size: int = 512) -> Image:
        """Draw the mask, queries down and keys across, grey where a pixel is partly visible.

        Args:
            path: where to write the picture (any format Pillow knows); None: don't.
            size: longest side at most, in pixels; a batch is drawn side by side.

        Returns:
            The picture, mode "L".
        """
        picture = mask_views.picture(self, size)
        if path is not None:
            picture.save(path)
        return picture

    @cached_property
    def packed(self) -> Tensor:
        """int32: q_len, k_len, batch (-1: None), query ranges, key ranges, then the four arrays.

        One argument of an operator instead of four, each of which takes a quarter of a microsecond.
        """
        sizes = [self.q_len, self.k_len, -1 if self.batch is None else self.batch]
        return mask_ranges.packed(sizes, self.batch_ptr, self.q_ranges, self.key_ptr, self.key_ranges)

    @cached_property
    def _content(self) -> bytes:
        return self.packed.numpy().tobytes()

    @cached_property
    def _hash(self) -> int:
        return hash(self._content)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RangeMask):
            return NotImplemented
        return self is other or (hash(self) == hash(other) and self._content == other._content)

    def __repr__(self) -> str:
        batch = "" if self.batch is None else f"batch={self.batch}, "
        return (
            f"RangeMask({batch}q_len={self.q_len}, k_len={self.k_len}, query_ranges={len(self.q_ranges)}, "
            f"key_ranges={len(self.key_ranges)}, density={self.density:.3f})"
        )


def _arrange(name: str, layout: Layout) -> RangeMask:
    return _canonical(name, layout.length, layout.length, layout.batch, layout.rows, layout.ranges)


def _canonical(name: str, q_len: int, k_len: int, batch: int | None, rows: np.ndarray, ranges: np.ndarray) -> RangeMask:
    mask_layouts.check_lengths(name, q_len=q_len, k_len=k_len)
    arrays = mask_ranges.canonical(name, 1 if batch is None else batch, k_len, rows, ranges)
    return RangeMask(int(q_len), int(k_len), batch, *arrays)
