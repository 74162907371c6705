"""Other forms of a RangeMask: dense, FlexAttention's BlockMask, a picture.

All but the dense form rest on coverage(): cells[i, j] = number of visible pairs between bin i of queries and bin j of
keys = sum over query ranges r of overlap(r, i) * (visible keys of r in j), a small matrix product.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch.nn.attention.flex_attention import BlockMask

    from .masks import RangeMask


def dense(mask: RangeMask) -> Tensor:
    """bool (q_len, k_len), or (batch, q_len, k_len)."""
    samples = mask.batch if mask.batch is not None else 1
    result = torch.zeros(samples, mask.q_len, mask.k_len, dtype=torch.bool, device="cpu")
    key_ptr, key_ranges = mask.key_ptr.tolist(), mask.key_ranges.tolist()
    for row, (sample, (q_start, q_stop)) in enumerate(
        zip(row_samples(mask).tolist(), mask.q_ranges.tolist(), strict=True)
    ):
        for k_start, k_stop in key_ranges[key_ptr[row] : key_ptr[row + 1]]:
            result[sample, q_start:q_stop, k_start:k_stop] = True
    return result if mask.batch is not None else result[0]


def row_samples(mask: RangeMask) -> np.ndarray:
    """The sample that each query range belongs to."""
    sizes = np.diff(mask.batch_ptr.numpy())
    return np.repeat(np.arange(len(sizes)), sizes)


def coverage(mask: RangeMask, q_edges: np.ndarray, k_edges: np.ndarray) -> np.ndarray:
    """Visible pairs in every cell of a grid.

    Args:
        mask: the mask.
        q_edges: int (n + 1), ascending; bin i holds queries q_edges[i] to q_edges[i + 1].
        k_edges: int (m + 1), likewise for keys.

    Returns:
        float64 (batch or 1, n, m), whole numbers.
    """
    q_ranges = mask.q_ranges.numpy().astype(np.int64)
    queries = np.diff(np.clip(q_edges, q_ranges[:, :1], q_ranges[:, 1:]), axis=1)  # (rows, n)
    keys = np.diff(_keys_before(mask, k_edges), axis=1)  # (rows, m)
    pointer = mask.batch_ptr.tolist()
    return np.stack([queries[a:b].T.astype(np.float64) @ keys[a:b] for a, b in pairwise(pointer)])


def _keys_before(mask: RangeMask, edges: np.ndarray) -> np.ndarray:
    """How many keys below each edge a query range sees: float64 (rows, edges)."""
    key_ranges = mask.key_ranges.numpy().astype(np.int64)
    seen = np.zeros((len(key_ranges) + 1, len(edges)))
    np.cumsum(np.clip(edges, key_ranges[:, :1], key_ranges[:, 1:]) - key_ranges[:, :1], axis=0, out=seen[1:])
    pointer = mask.key_ptr.numpy()
    return seen[pointer[1:]] - seen[pointer[:-1]]


def picture(mask: RangeMask, size: int) -> Image:
    """A grey picture of the mask, white where nothing is visible."""
    from PIL import Image

    scale = min(1.0, size / max(mask.q_len, mask.k_len, 1))
    height, width = (max(round(n * scale), 1) for n in (mask.q_len, mask.k_len))
    q_edges = np.linspace(0, mask.q_len, height + 1).round().astype(np.int64)
    k_edges = np.linspace(0, mask.k_len, width + 1).round().astype(np.int64)
    area = np.maximum(np.outer(np.diff(q_edges), np.diff(k_edges)), 1)
    shade = 255 - np.rint(255 * coverage(mask, q_edges, k_edges) / area).astype(np.uint8)
    border = np.full((height, 4), 128, np.uint8)
    panels = [part for panel in shade for part in (border, panel)][1:]
    return Image.fromarray(np.concatenate(panels, 1), mode="L")


def flex(mask: RangeMask, device: torch.device | str, block_size: int) -> BlockMask:
    """FlexAttention's BlockMask: block lists from coverage(), and a mask function that reads two small tables."""
    from torch.nn.attention.flex_attention import BlockMask

    q_edges, k_edges = (np.minimum(np.arange(0, n + block_size, block_size), n) for n in (mask.q_len, mask.k_len))
    cells = coverage(mask, q_edges, k_edges)
    # A ragged last block counts as partial: Flex would read a full one without looking at the lengths.
    whole = cells == float(block_size * block_size)
    lists = []
    for chosen in ((cells > 0) & ~whole, whole):
        order = np.argsort(~chosen, axis=-1, kind="stable")
        for array in (chosen.sum(-1), order):
            lists.append(torch.from_numpy(array.astype(np.int32)).unsqueeze(1).to(device))

    # reach[sample, query row, key segment]; between two neighbouring boundaries all keys look alike.
    boundaries = np.unique(np.concatenate([[0], mask.key_ranges.numpy().ravel(), [mask.k_len]])).astype(np.int64)
    visible = np.diff(_keys_before(mask, boundaries), axis=1) > 0
    visible = np.concatenate([visible, np.zeros((1, visible.shape[1]), bool)])  # the row of queries in no range
    row_of = np.full((len(cells), mask.q_len), len(visible) - 1, np.int64)
    for row, (sample, (start, stop)) in enumerate(zip(row_samples(mask), mask.q_ranges.tolist(), strict=True)):
        row_of[sample, start:stop] = row
    segment_of = np.searchsorted(boundaries, np.arange(mask.k_len), side="right") - 1
    reach, rows, segments = (torch.from_numpy(a).to(device) for a in (visible, row_of, segment_of))
    batched = mask.batch is not None

    def range_mask(b: Tensor, h: Tensor, q_index: Tensor, k_index: Tensor) -> Tensor:
        sample = b if batched else torch.zeros_like(b)
        return reach[rows[sample, q_index], segments[k_index]]

    return BlockMask.from_kv_blocks(
        *lists, BLOCK_SIZE=block_size, mask_mod=range_mask, seq_lengths=(mask.q_len, mask.k_len)
    )
