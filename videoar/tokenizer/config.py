"""The shape of a tokenizer: everything needed to rebuild the network of a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod


@dataclass(frozen=True)
class TokenizerConfig:
    """Shape of a causal multi-scale video tokenizer; the defaults are paper S's UCF-101 shape.

    17 x 128 x 128 pixels become 5 x 8 x 8 tokens of 48 bits (Sec. 4.1); widths and block counts are those of its
    nearest public relative (Infinity's CNN).

    Args:
        bits: bits per token, d.
        scales: heights and widths of the residual pyramid of a frame; the last is the latent grid, which fixes the
            resolution.
        patch: frames and pixels folded into channels before the first convolution; `(1, 1)` folds nothing.
        channels: width of each level, finest first.
        strides: (time, space) stride between each level and the next.
        blocks: residual blocks per encoder level; the decoder has one more in each.
        time_kernels: temporal extent of the two convolutions of a block, one pair per level.
        time_padding: what precedes the first frame: `"replicate"` repeats it, `"zero"` is black (after the norm).
        shuffle: change size by folding into channels, with a shortcut (DC-AE), instead of strided convolution and
            nearest upsampling: cheaper, and far easier to train when small.
        image_channels: colour channels.
    """

    bits: int = 48
    scales: tuple[tuple[int, int], ...] = ((1, 1), (2, 2), (3, 3), (4, 4), (6, 6), (8, 8))
    patch: tuple[int, int] = (1, 1)
    channels: tuple[int, ...] = (128, 256, 512, 512, 512)
    strides: tuple[tuple[int, int], ...] = ((1, 2), (1, 2), (2, 2), (2, 2))
    blocks: int = 2
    time_kernels: tuple[tuple[int, int], ...] = ((3, 3), (3, 3), (3, 3), (3, 3), (3, 3))
    time_padding: str = "replicate"
    shuffle: bool = False
    image_channels: int = 3

    def __post_init__(self) -> None:
        # JSON and YAML know lists only; tuples keep the config hashable.
        for name in ("scales", "strides", "time_kernels"):
            object.__setattr__(self, name, tuple(tuple(pair) for pair in getattr(self, name)))
        for name in ("patch", "channels"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if len(self.strides) != len(self.channels) - 1 or len(self.time_kernels) != len(self.channels):
            raise ValueError(
                f"TokenizerConfig: expected one stride fewer than channels and one time_kernels pair per level, got "
                f"{len(self.channels)} channels, {len(self.strides)} strides, {len(self.time_kernels)} pairs"
            )
        if self.time_padding not in ("replicate", "zero"):
            raise ValueError(f"TokenizerConfig: expected time_padding 'replicate' or 'zero', got {self.time_padding!r}")

    @property
    def time_stride(self) -> int:
        """Pixel frames per latent frame (the first latent frame holds one)."""
        return self.patch[0] * prod(time for time, _ in self.strides)

    @property
    def space_stride(self) -> int:
        """Pixels per latent cell along height and along width."""
        return self.patch[1] * prod(space for _, space in self.strides)

    @property
    def tokens_per_frame(self) -> int:
        """Tokens of all scales of one latent frame."""
        return sum(height * width for height, width in self.scales)

    def latent_frames(self, frames: int) -> int:
        """Latent frames of a clip of 1 + n * time_stride pixel frames."""
        return 1 + (frames - 1) // self.time_stride
