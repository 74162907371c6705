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

from . import mask_views

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch.nn.attention.flex_attention import BlockMask

_MAX_LENGTH = 2**31 - 1


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
            ValueError: a negative length or window, an empty scale, or frame_keep of another shape.

        Source: paper S, Eq. 5 and 9.
        """
        name = "multiscale"
        _check_lengths(name, text_len=text_len, frames=frames)
        _check_window(name, window)
        sizes = _positive(name, "scales", [h * w for h, w in scales])
        ends = np.cumsum(sizes)
        steps, tokens = len(sizes), int(ends[-1])
        batch, samples, runs = _earlier_frames(name, frames, window, frame_keep)

        sample, frame, step = np.indices((samples, frames, steps)).reshape(3, -1)
        frame_start = text_len + frame * tokens
        rows = np.stack([sample, frame_start + (ends - sizes)[step], frame_start + ends[step]], 1)
        own = np.stack([np.arange(len(rows)), frame_start, frame_start + ends[step]], 1)
        run_sample, run_frame, run_first, run_last = runs
        run_row = ((run_sample * frames + run_frame) * steps)[:, None] + np.arange(steps)
        earlier = np.stack(
            [
                run_row.ravel(),
                np.repeat(text_len + run_first * tokens, steps),
                np.repeat(text_len + run_last * tokens, steps),
            ],
            1,
        )
        length = text_len + frames * tokens
        return _with_text(name, length, text_len, batch, rows, np.concatenate([own, earlier]))

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
            ValueError: a negative length, window or sink, an empty unit, or an unknown direction.

        Source: paper U, Sec. 3.3.
        """
        name = "units"
        offsets = _unit_offsets(name, unit_lens, text_len, window, sink)
        if direction not in ("forward", "backward", "full"):
            raise ValueError(f'RangeMask.units: expected direction "forward", "backward" or "full", got {direction!r}')
        count = len(offsets) - 1
        unit = np.arange(count)
        rows = np.stack([np.zeros_like(unit), offsets[:-1], offsets[1:]], 1)
        ranges = []
        reach = count if window is None else window
        if direction != "backward":
            ranges += [
                np.stack([unit, offsets[np.maximum(unit - reach, 0)], offsets[unit + 1]], 1),
                np.stack([unit, np.full(count, offsets[0]), offsets[np.minimum(sink, unit + 1)]], 1),
            ]
        if direction != "forward":
            ranges += [
                np.stack([unit, offsets[unit], offsets[np.minimum(unit + reach + 1, count)]], 1),
                np.stack([unit, offsets[np.maximum(count - sink, unit)], np.full(count, offsets[-1])], 1),
            ]
        return _with_text(name, int(offsets[-1]), text_len, None, rows, np.concatenate(ranges))

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
            ValueError: a negative length, window or sink, or an empty unit.

        Source: paper U, Sec. 3.2.
        """
        name = "teacher_forcing"
        clean = _unit_offsets(name, unit_lens, text_len, window, sink)
        noisy = clean + (clean[-1] - clean[0])
        count = len(clean) - 1
        unit = np.arange(count)
        first = np.maximum(unit - (count if window is None else window), 0)
        start = np.full(count, clean[0])
        rows = np.concatenate([np.stack([np.zeros_like(unit), copy[:-1], copy[1:]], 1) for copy in (clean, noisy)])
        ranges = [
            np.stack([unit, clean[first], clean[unit + 1]], 1),
            np.stack([unit, start, clean[np.minimum(sink, unit + 1)]], 1),
            np.stack([unit + count, clean[first], clean[unit]], 1),
            np.stack([unit + count, start, clean[np.minimum(sink, unit)]], 1),
            np.stack([unit + count, noisy[:-1], noisy[1:]], 1),
        ]
        return _with_text(name, int(noisy[-1]), text_len, None, rows, np.concatenate(ranges))

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
        """
        name = "from_ranges"
        if len(q_ranges) != len(key_ranges):
            raise ValueError(
                f"RangeMask.from_ranges: expected one list of key ranges for each of the {len(q_ranges)} query "
                f"ranges, got {len(key_ranges)}"
            )
        q_array = np.asarray(q_ranges, np.int64).reshape(-1, 2)
        counts = [len(ranges) for ranges in key_ranges]
        k_array = np.array([pair for ranges in key_ranges for pair in ranges], np.int64).reshape(-1, 2)
        for kind, array, length in (("query", q_array, q_len), ("key", k_array, k_len)):
            bad = (array[:, 0] < 0) | (array[:, 1] > length) | (array[:, 0] > array[:, 1])
            if bad.any():
                got = tuple(array[bad][0].tolist())
                raise ValueError(f"RangeMask.from_ranges: expected {kind} ranges within (0, {length}), got {got}")
        rows = np.concatenate([np.zeros((len(q_array), 1), np.int64), q_array], 1)
        ranges = np.concatenate([np.repeat(np.arange(len(counts)), counts)[:, None], k_array], 1)
        return _canonical(name, q_len, k_len, None, rows, ranges)

    @staticmethod
    def from_dense(dense: Tensor) -> RangeMask:
        """The mask with the given dense form.

        Args:
            dense: bool (q_len, k_len), or (batch, q_len, k_len) for a batched mask; true where a query sees a key.

        Raises:
            ValueError: another dtype or number of dimensions.
        """
        if dense.dtype != torch.bool or dense.dim() not in (2, 3):
            raise ValueError(
                "RangeMask.from_dense: expected dense of dtype bool and shape (q_len, k_len) or (batch, q_len, k_len), "
                f"got {dense.dtype} {tuple(dense.shape)}"
            )
        batch = dense.shape[0] if dense.dim() == 3 else None
        visible = dense.detach().cpu().numpy()
        visible = visible if dense.dim() == 3 else visible[None]
        q_len, k_len = visible.shape[1:]
        sample, query, first, last = _runs(visible)
        row = sample * q_len + query
        queries = np.arange(visible.shape[0] * q_len)
        rows = np.stack([queries // max(q_len, 1), queries % max(q_len, 1), queries % max(q_len, 1) + 1], 1)
        return _canonical("from_dense", q_len, k_len, batch, rows, np.stack([row, first, last], 1))

    @staticmethod
    def stack(masks: Sequence[RangeMask]) -> RangeMask:
        """One batched mask, sample b having masks[b].

        Args:
            masks: unbatched masks of equal lengths.

        Raises:
            ValueError: no mask, a batched one, or different lengths.
        """
        if not masks or any(m.batch is not None for m in masks):
            raise ValueError("RangeMask.stack: expected at least one mask, all unbatched")
        q_len, k_len = masks[0].q_len, masks[0].k_len
        for mask in masks:
            if (mask.q_len, mask.k_len) != (q_len, k_len):
                raise ValueError(
                    f"RangeMask.stack: expected masks of lengths ({q_len}, {k_len}), got ({mask.q_len}, {mask.k_len})"
                )

        def chain(pointers: list[Tensor]) -> Tensor:
            sizes = torch.cat([p.diff() for p in pointers])
            return torch.cat([sizes.new_zeros(1), sizes.cumsum(0, dtype=torch.int32)])

        return RangeMask(
            q_len,
            k_len,
            len(masks),
            chain([m.batch_ptr for m in masks]),
            torch.cat([m.q_ranges for m in masks]),
            chain([m.key_ptr for m in masks]),
            torch.cat([m.key_ranges for m in masks]),
        )

    @cached_property
    def pairs(self) -> int:
        """Number of visible (query, key) pairs, over all samples of a batched mask."""
        queries = np.diff(self.q_ranges.numpy().astype(np.int64), axis=1)[:, 0]
        keys = np.diff(self.key_ranges.numpy().astype(np.int64), axis=1)[:, 0]
        return int(np.repeat(queries, np.diff(self.key_ptr.numpy())) @ keys)

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
    def _content(self) -> tuple:
        arrays = (self.batch_ptr, self.q_ranges, self.key_ptr, self.key_ranges)
        return (self.q_len, self.k_len, self.batch, *(a.numpy().tobytes() for a in arrays))

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


def _check_lengths(name: str, **lengths: int) -> None:
    for what, value in lengths.items():
        if not 0 <= value <= _MAX_LENGTH:
            raise ValueError(f"RangeMask.{name}: expected {what} between 0 and {_MAX_LENGTH}, got {value}")


def _check_window(name: str, window: int | None) -> None:
    if window is not None and window < 0:
        raise ValueError(f"RangeMask.{name}: expected window of at least 0 or None, got {window}")


def _positive(name: str, what: str, sizes: Sequence[int]) -> np.ndarray:
    sizes = np.asarray(sizes, np.int64)
    if sizes.ndim != 1 or len(sizes) == 0 or (sizes < 1).any():
        raise ValueError(f"RangeMask.{name}: expected {what} to be a list of sizes of at least 1, got {sizes.tolist()}")
    return sizes


def _unit_offsets(name: str, unit_lens: Sequence[int], text_len: int, window: int | None, sink: int) -> np.ndarray:
    _check_lengths(name, text_len=text_len, sink=sink)
    _check_window(name, window)
    sizes = _positive(name, "unit_lens", unit_lens)
    return text_len + np.concatenate([[0], np.cumsum(sizes)])


def _earlier_frames(
    name: str, frames: int, window: int | None, frame_keep: Tensor | np.ndarray | Sequence | None
) -> tuple[int | None, int, np.ndarray]:
    """Runs of earlier frames each frame sees: int (4, runs) of sample, frame, first, last + 1."""
    frame = np.arange(frames)
    oldest = np.maximum(frame - (frames if window is None else window), 0)
    if frame_keep is None:
        return None, 1, np.stack([np.zeros_like(frame), frame, oldest, frame])
    keep = frame_keep.detach().cpu().numpy() if isinstance(frame_keep, Tensor) else np.asarray(frame_keep)
    keep = keep.astype(bool)
    if keep.ndim not in (2, 3) or keep.shape[-2:] != (frames, frames):
        raise ValueError(
            f"RangeMask.{name}: expected frame_keep of shape ({frames}, {frames}) or (batch, {frames}, {frames}), "
            f"got {keep.shape}"
        )
    batch = keep.shape[0] if keep.ndim == 3 else None
    visible = keep & (frame >= oldest[:, None]) & (frame < frame[:, None])
    runs = _runs(visible.reshape(-1, frames, frames))
    return batch, 1 if batch is None else batch, runs


def _runs(visible: np.ndarray) -> np.ndarray:
    """Maximal runs along the last axis of a bool (a, b, n): int (4, runs) of a, b, first, last + 1."""
    edges = np.diff(visible.astype(np.int8), axis=-1, prepend=0, append=0)
    first, last = np.argwhere(edges == 1), np.argwhere(edges == -1)
    return np.concatenate([first, last[:, 2:]], 1).T


def _with_text(
    name: str, length: int, text_len: int, batch: int | None, rows: np.ndarray, ranges: np.ndarray
) -> RangeMask:
    """Add the text prefix: everybody sees it, and it sees only itself."""
    samples = np.arange(1 if batch is None else batch)
    text_rows = np.stack([samples, np.zeros_like(samples), np.full_like(samples, text_len)], 1)
    rows = np.concatenate([rows, text_rows])
    everybody = np.arange(len(rows))
    text = np.stack([everybody, np.zeros_like(everybody), np.full_like(everybody, text_len)], 1)
    return _canonical(name, length, length, batch, rows, np.concatenate([ranges, text]))


def _canonical(name: str, q_len: int, k_len: int, batch: int | None, rows: np.ndarray, ranges: np.ndarray) -> RangeMask:
    """Build the canonical mask from rows (sample, q_start, q_stop) and ranges (row, k_start, k_stop), in any order."""
    _check_lengths(name, q_len=q_len, k_len=k_len)
    row, k_start, k_stop = _merge_ranges(ranges[ranges[:, 2] > ranges[:, 1]], k_len)

    counts = np.bincount(row, minlength=len(rows))
    live = np.flatnonzero((counts > 0) & (rows[:, 2] > rows[:, 1]))
    live = live[np.lexsort((rows[live, 1], rows[live, 0]))]
    begin = (np.cumsum(counts) - counts)[live]
    counts = counts[live]
    pointer = np.concatenate([[0], np.cumsum(counts)])
    pick = np.repeat(begin - pointer[:-1], counts) + np.arange(pointer[-1])
    keys = np.stack([k_start[pick], k_stop[pick]], 1)
    sample, q_start, q_stop = rows[live].T
    touching = sample[1:] == sample[:-1]
    overlap = touching & (q_start[1:] < q_stop[:-1])
    if overlap.any():
        at = int(np.argmax(overlap))
        raise ValueError(
            f"RangeMask.{name}: expected disjoint query ranges, got ({q_start[at]}, {q_stop[at]}) and "
            f"({q_start[at + 1]}, {q_stop[at + 1]})"
        )

    # A row that continues its predecessor with the same keys joins it.
    joins = np.zeros(len(live), bool)
    if len(live) > 1:
        joins[1:] = touching & (q_start[1:] == q_stop[:-1]) & (counts[1:] == counts[:-1])
        previous = np.maximum(np.arange(len(keys)) - np.repeat(counts, counts), 0)
        differs = (keys != keys[previous]).any(1)
        joins &= ~np.logical_or.reduceat(differs, pointer[:-1])
    heads = np.flatnonzero(~joins)
    tails = np.append(heads[1:], len(live)) - 1
    samples = 1 if batch is None else batch
    sizes = np.bincount(sample[heads], minlength=samples)

    def tensor(array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array, np.int32))

    return RangeMask(
        int(q_len),
        int(k_len),
        batch,
        tensor(np.concatenate([[0], np.cumsum(sizes)])),
        tensor(np.stack([q_start[heads], q_stop[tails]], 1) if len(heads) else np.zeros((0, 2))),
        tensor(np.concatenate([[0], np.cumsum(counts[heads])])),
        tensor(keys[~np.repeat(joins, counts)]),
    )


def _merge_ranges(ranges: np.ndarray, k_len: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sort each row's key ranges and merge those that overlap or touch."""
    # All rows on one number line, a gap of one between them, so that one running maximum serves all.
    shift = ranges[:, 0] * (k_len + 1)
    begin, end = ranges[:, 1] + shift, ranges[:, 2] + shift
    order = np.argsort(begin, kind="stable")
    begin, end = begin[order], np.maximum.accumulate(end[order])
    starts_new = np.ones(len(begin), bool)
    starts_new[1:] = begin[1:] > end[:-1]
    first = np.flatnonzero(starts_new)
    last = np.append(first[1:], len(begin)) - 1 if len(first) else first
    row, k_start = np.divmod(begin[first], k_len + 1)
    return row, k_start, end[last] - row * (k_len + 1)
