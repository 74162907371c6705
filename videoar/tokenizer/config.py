"""The shapes of tokenizer and autoencoder: everything needed to rebuild the network of a checkpoint."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import prod

from torch import Tensor


@dataclass(frozen=True)
class NetworkConfig(ABC):
    """Shape of a causal 3D CNN, pixels to latents and back; the defaults are those of paper S's nearest public
    relative (Infinity's CNN).

    Args:
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
        for name in ("strides", "time_kernels"):
            object.__setattr__(self, name, tuple(tuple(pair) for pair in getattr(self, name)))
        for name in ("patch", "channels"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if len(self.strides) != len(self.channels) - 1 or len(self.time_kernels) != len(self.channels):
            raise ValueError(
                f"{type(self).__name__}: expected one stride fewer than channels and one time_kernels pair per level, "
                f"got {len(self.channels)} channels, {len(self.strides)} strides, {len(self.time_kernels)} pairs"
            )
        if self.time_padding not in ("replicate", "zero"):
            raise ValueError(
                f"{type(self).__name__}: expected time_padding 'replicate' or 'zero', got {self.time_padding!r}"
            )

    @property
    @abstractmethod
    def latent_width(self) -> int:
        """Channels of a latent cell."""

    @property
    def time_stride(self) -> int:
        """Pixel frames per latent frame (the first latent frame holds one)."""
        return self.patch[0] * prod(time for time, _ in self.strides)

    @property
    def space_stride(self) -> int:
        """Pixels per latent cell along height and along width."""
        return self.patch[1] * prod(space for _, space in self.strides)

    def check_video(self, video: Tensor) -> None:
        """Raises ValueError unless `video` is (B, image_channels, T >= 1, H, W), H and W multiples of the stride."""
        shape, stride = tuple(video.shape), self.space_stride
        if video.ndim != 5 or shape[1] != self.image_channels or shape[2] < 1:
            raise ValueError(
                f"encode: expected video of shape (B, {self.image_channels}, T, H, W) with T >= 1, got {shape}"
            )
        if shape[3] % stride or shape[4] % stride:
            raise ValueError(f"encode: expected height and width to be multiples of {stride}, got {shape[3:]}")

    def latent_frames(self, frames: int) -> int:
        """Latent frames of a clip of 1 + n * time_stride pixel frames."""
        return 1 + (frames - 1) // self.time_stride


@dataclass(frozen=True)
class TokenizerConfig(NetworkConfig):
    """Shape of a causal multi-scale video tokenizer; the defaults are paper S's UCF-101 shape.

    17 x 128 x 128 pixels become 5 x 8 x 8 tokens of 48 bits (Sec. 4.1).

    Args:
        bits: bits per token, d.
        scales: heights and widths of the residual pyramid of a frame; the last is the latent grid, which fixes the
            resolution.
    """

    bits: int = 48
    scales: tuple[tuple[int, int], ...] = ((1, 1), (2, 2), (3, 3), (4, 4), (6, 6), (8, 8))

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "scales", tuple(tuple(pair) for pair in self.scales))

    @property
    def latent_width(self) -> int:
        return self.bits

    @property
    def tokens_per_frame(self) -> int:
        """Tokens of all scales of one latent frame."""
        return sum(height * width for height, width in self.scales)


@dataclass(frozen=True)
class AutoencoderConfig(NetworkConfig):
    """Shape of a continuous video autoencoder: the tokenizer's network around `latent_channels` numbers a cell."""

    latent_channels: int = 16

    @property
    def latent_width(self) -> int:
        return self.latent_channels
