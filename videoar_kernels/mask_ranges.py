"""Arithmetic on lists of ranges: sort, merge and join them into the canonical form of a RangeMask."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def canonical(name: str, samples: int, k_len: int, rows: np.ndarray, ranges: np.ndarray) -> tuple[Tensor, ...]:
    """The arrays of a RangeMask.

    Args:
        name: the constructor, for the error message.
        samples: number of masks.
        k_len: number of keys.
        rows: int (n, 3) of sample, q_start, q_stop, in any order.
        ranges: int (m, 3) of row, k_start, k_stop, in any order; they may overlap, touch or be empty.

    Returns:
        batch_ptr, q_ranges, key_ptr and key_ranges, int32.

    Raises:
        ValueError: query ranges of one sample overlap.
    """
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
    sizes = np.bincount(sample[heads], minlength=samples)

    def tensor(array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array, np.int32))

    return (
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


def integers(name: str, what: str, values: Sequence) -> np.ndarray:
    """The values as int64; TypeError unless they are integers."""
    array = np.asarray(values)
    if array.size and array.dtype.kind not in "iu":
        raise TypeError(f"RangeMask.{name}: expected {what} as integers, got {array.tolist()}")
    return array.astype(np.int64)


def of_lists(
    q_len: int, k_len: int, q_ranges: Sequence[tuple[int, int]], key_ranges: Sequence[Sequence[tuple[int, int]]]
) -> tuple[np.ndarray, np.ndarray]:
    """`canonical`'s rows and ranges of `RangeMask.from_ranges`'s arguments, checked."""
    if len(q_ranges) != len(key_ranges):
        raise ValueError(
            f"RangeMask.from_ranges: expected one list of key ranges for each of the {len(q_ranges)} query "
            f"ranges, got {len(key_ranges)}"
        )
    q_array = integers("from_ranges", "q_ranges", q_ranges).reshape(-1, 2)
    counts = [len(ranges) for ranges in key_ranges]
    pairs = [pair for ranges in key_ranges for pair in ranges]
    k_array = integers("from_ranges", "key_ranges", pairs).reshape(-1, 2)
    for kind, array, length in (("query", q_array, q_len), ("key", k_array, k_len)):
        bad = (array[:, 0] < 0) | (array[:, 1] > length) | (array[:, 0] > array[:, 1])
        if bad.any():
            got = tuple(array[bad][0].tolist())
            raise ValueError(f"RangeMask.from_ranges: expected {kind} ranges within (0, {length}), got {got}")
    rows = np.concatenate([np.zeros((len(q_array), 1), np.int64), q_array], 1)
    return rows, np.concatenate([np.repeat(np.arange(len(counts)), counts)[:, None], k_array], 1)


def of_dense(visible: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`canonical`'s rows and ranges of a bool (samples, q_len, k_len)."""
    samples, q_len, _ = visible.shape
    sample, query, first, last = runs(visible)
    queries = np.arange(samples * q_len)
    rows = np.stack([queries // max(q_len, 1), queries % max(q_len, 1), queries % max(q_len, 1) + 1], 1)
    return rows, np.stack([sample * q_len + query, first, last], 1)


def chain(pointers: list[Tensor]) -> Tensor:
    """The CSR pointer of arrays that are laid one after another."""
    sizes = torch.cat([p.diff() for p in pointers])
    return torch.cat([sizes.new_zeros(1), sizes.cumsum(0, dtype=torch.int32)])


def runs(visible: np.ndarray) -> np.ndarray:
    """Maximal runs along the last axis of a bool (a, b, n): int (4, runs) of a, b, first, last + 1."""
    edges = np.diff(visible.astype(np.int8), axis=-1, prepend=0, append=0)
    first, last = np.argwhere(edges == 1), np.argwhere(edges == -1)
    return np.concatenate([first, last[:, 2:]], 1).T


def pairs(q_ranges: Tensor, key_ptr: Tensor, key_ranges: Tensor) -> int:
    """How many (query, key) pairs are visible."""
    queries = np.diff(q_ranges.numpy().astype(np.int64), axis=1)[:, 0]
    keys = np.diff(key_ranges.numpy().astype(np.int64), axis=1)[:, 0]
    return int(np.repeat(queries, np.diff(key_ptr.numpy())) @ keys)


def packed(sizes: list[int], batch_ptr: Tensor, q_ranges: Tensor, key_ptr: Tensor, key_ranges: Tensor) -> Tensor:
    """The sizes, the numbers of ranges, and the four arrays, one after another."""
    header = np.array([*sizes, len(q_ranges), len(key_ranges)], np.int32)
    arrays = (a.numpy().ravel() for a in (batch_ptr, q_ranges, key_ptr, key_ranges))
    return torch.from_numpy(np.concatenate((header, *arrays)))
