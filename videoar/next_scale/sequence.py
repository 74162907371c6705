"""How paper S lays out a clip as one sequence.

    [text prefix] [frame 0: scale 1, 2, ..., K] [frame 1: scale 1, ..., K] ...

A scale's tokens are row-major. Source: paper S, Sec. 4.2, Fig. 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate

import torch
from torch import Tensor

from videoar.next_scale.config import Scales, TransformerConfig
from videoar_kernels import RangeMask, multiscale_positions


@dataclass(frozen=True)
class SequenceLayout:
    """Where every token of a clip of `frames` frames stands.

    Args:
        text_len: tokens of the text prefix.
        frames: latent frames.
        scales: (h, w) of every scale, coarse to fine.
        align: "index" (Eq. 7) or "grid"; see `videoar_kernels.multiscale_positions`.
        window: how many earlier frames a frame sees; None means all.
    """

    text_len: int
    frames: int
    scales: Scales
    align: str = "index"
    window: int | None = None

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """First token of every scale inside its frame, then the frame's length."""
        return tuple(accumulate((h * w for h, w in self.scales), initial=0))

    @property
    def tokens_per_frame(self) -> int:
        return self.offsets[-1]

    def within_frame(self, scale: int) -> slice:
        """Tokens of a scale among its frame's tokens."""
        return slice(self.offsets[scale], self.offsets[scale + 1])

    def block(self, frame: int, scale: int) -> slice:
        """Tokens of (frame, scale) in the whole sequence, text included."""
        start = self.text_len + frame * self.tokens_per_frame
        return slice(start + self.offsets[scale], start + self.offsets[scale + 1])

    @cached_property
    def scale_ids(self) -> Tensor:
        """Scale of every token of one frame, int64 (N,)."""
        lengths = torch.tensor([h * w for h, w in self.scales])
        return torch.repeat_interleave(torch.arange(len(self.scales)), lengths)

    @cached_property
    def positions(self) -> Tensor:
        """(t, h, w) of every token, int64 (text_len + frames * N, 3). Eq. 7."""
        with torch.inference_mode(False):  # kept for training too
            return multiscale_positions(self.text_len, self.frames, list(self.scales), align=self.align)

    def positions_on(self, device: torch.device) -> Tensor:
        """`positions` on a device, copied there once."""
        return _positions_on(self, device)

    def mask(self, frame_keep: Tensor | None = None) -> RangeMask:
        """What every token sees. Eq. 5, and Eq. 9 with `frame_keep`, bool (frames, frames) or (B, frames, frames)."""
        if frame_keep is None:
            return self._full_mask
        return RangeMask.multiscale(
            self.text_len, self.frames, list(self.scales), window=self.window, frame_keep=frame_keep
        )

    @cached_property
    def _full_mask(self) -> RangeMask:
        return RangeMask.multiscale(self.text_len, self.frames, list(self.scales), window=self.window)


@lru_cache(maxsize=256)
def _positions_on(layout: SequenceLayout, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return layout.positions.to(device)


@lru_cache(maxsize=64)
def sequence_layout(config: TransformerConfig, frames: int) -> SequenceLayout:
    """The layout of a clip of `frames` latent frames for a transformer."""
    return SequenceLayout(config.text_len, frames, config.scales, config.align, config.window)
