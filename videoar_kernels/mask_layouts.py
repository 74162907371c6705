"""Which tokens see which, for the sequence layouts of both papers: the rows and ranges that RangeMask is built from.

Source: paper S, Eq. 5 and 9; paper U, Sec. 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from .argument_types import whole
from .mask_ranges import integers, runs

MAX_LENGTH = 2**31 - 1


class Layout(NamedTuple):
    """A square mask before canonical form."""

    length: int
    batch: int | None
    rows: np.ndarray  # (n, 3): sample, q_start, q_stop
    ranges: np.ndarray  # (m, 3): row, k_start, k_stop


def multiscale(
    text_len: int,
    frames: int,
    scales: Sequence[tuple[int, int]],
    window: int | None,
    frame_keep: Tensor | np.ndarray | Sequence | None,
) -> Layout:
    """See RangeMask.multiscale."""
    check_lengths("multiscale", text_len=text_len, frames=frames)
    window = _window("multiscale", window)
    sizes = _positive("multiscale", "scales", [h * w for h, w in scales])
    ends = np.cumsum(sizes)
    steps, tokens = len(sizes), int(ends[-1])
    check_lengths("multiscale", **{"length in all": int(text_len) + int(frames) * tokens})
    batch, samples, found = _earlier_frames("multiscale", frames, window, frame_keep)

    sample, frame, step = np.indices((samples, frames, steps)).reshape(3, -1)
    frame_start = text_len + frame * tokens
    rows = np.stack([sample, frame_start + (ends - sizes)[step], frame_start + ends[step]], 1)
    own = np.stack([np.arange(len(rows)), frame_start, frame_start + ends[step]], 1)
    run_sample, run_frame, run_first, run_last = found
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
    return _with_text(length, text_len, batch, rows, np.concatenate([own, earlier]))


def units(unit_lens: Sequence[int], text_len: int, window: int | None, sink: int, direction: str) -> Layout:
    """See RangeMask.units."""
    offsets, window = _unit_offsets("units", unit_lens, text_len, sink), _window("units", window)
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
    return _with_text(int(offsets[-1]), text_len, None, rows, np.concatenate(ranges))


def teacher_forcing(unit_lens: Sequence[int], text_len: int, window: int | None, sink: int) -> Layout:
    """See RangeMask.teacher_forcing."""
    clean, window = _unit_offsets("teacher_forcing", unit_lens, text_len, sink), _window("teacher_forcing", window)
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
    return _with_text(int(noisy[-1]), text_len, None, rows, np.concatenate(ranges))


def check_lengths(name: str, **lengths: int) -> None:
    for what, value in lengths.items():
        value = whole(f"RangeMask.{name}", what, value)
        if not 0 <= value <= MAX_LENGTH:
            raise ValueError(f"RangeMask.{name}: expected {what} between 0 and {MAX_LENGTH}, got {value}")


def _window(name: str, window: int | None) -> int | None:
    """The window as an int; no mask is longer than MAX_LENGTH."""
    if window is None:
        return None
    number = whole(f"RangeMask.{name}", "window", window)
    if number < 0:
        raise ValueError(f"RangeMask.{name}: expected window of at least 0 or None, got {window}")
    return min(number, MAX_LENGTH)


def _positive(name: str, what: str, sizes: Sequence[int]) -> np.ndarray:
    sizes = integers(name, what, sizes)
    if sizes.ndim != 1 or len(sizes) == 0 or (sizes < 1).any():
        raise ValueError(f"RangeMask.{name}: expected {what} to be a list of sizes of at least 1, got {sizes.tolist()}")
    return sizes


def _unit_offsets(name: str, unit_lens: Sequence[int], text_len: int, sink: int) -> np.ndarray:
    check_lengths(name, text_len=text_len, sink=sink)
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
    return batch, 1 if batch is None else batch, runs(visible.reshape(-1, frames, frames))


def _with_text(length: int, text_len: int, batch: int | None, rows: np.ndarray, ranges: np.ndarray) -> Layout:
    """Add the text prefix: everybody sees it, and it sees only itself."""
    samples = np.arange(1 if batch is None else batch)
    text_rows = np.stack([samples, np.zeros_like(samples), np.full_like(samples, text_len)], 1)
    rows = np.concatenate([rows, text_rows])
    everybody = np.arange(len(rows))
    text = np.stack([everybody, np.zeros_like(everybody), np.full_like(everybody, text_len)], 1)
    return Layout(length, batch, rows, np.concatenate([ranges, text]))
