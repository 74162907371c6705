"""What a tokenizer or autoencoder keeps: the gates that a transformer's training waits for.

PSNR over all pixels and over the sprite's alone, the attributes that `measure` finds in reconstructions (from all
scales and without the last), and the entropy of the bits of each scale at a given frame index: a bit that tells the
first frame from the others and nothing else has marginal entropy and carries nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from videoar.data.pixels import from_uint8, to_uint8
from videoar.data.sprites import SpriteConfig, measure_batch, sample_batch
from videoar.evaluation.bit_entropy import BitEntropy, bit_entropy
from videoar.tokenizer.autoencoder import VideoAutoencoder
from videoar.tokenizer.model import VideoTokenizer

ATTRIBUTES = ("colour", "shape", "direction", "speed")


class TokenizerReport(NamedTuple):
    """Figures over a set of clips; shares are 0 to 1, PSNR in dB, entropies in bits a bit.

    `attributes[k]` holds the share of clips whose attribute is right when the first k + 1 scales are decoded.
    """

    clips: int
    psnr: float
    foreground_psnr: float
    attributes: list[dict[str, float]]
    entropy: BitEntropy


class AutoencoderReport(NamedTuple):
    """Figures over a set of clips; shares are 0 to 1, PSNR in dB."""

    clips: int
    psnr: float
    foreground_psnr: float
    attributes: dict[str, float]


@torch.no_grad()
def evaluate_tokenizer(
    tokenizer: VideoTokenizer, *, clips: int = 256, batch: int = 32, seed: int = 1_000_003, split: str = "heldout"
) -> TokenizerReport:
    """Measure a tokenizer on sprites.

    Args:
        tokenizer: on the CPU.
        clips: how many.
        batch: clips at a time.
        seed: which clips.
        split: of the combinations.
    """
    scales = tokenizer.config.scales
    side = scales[-1][0] * tokenizer.config.space_stride  # the resolution it was trained at
    labels = []

    def decoded(video: Tensor) -> list[Tensor]:
        bits = tokenizer.tokenize(video)
        labels.append(bits)
        return [tokenizer.detokenize(bits, keep=kept) for kept in range(1, len(scales) + 1)]

    psnr, foreground, attributes = _compare(decoded, SpriteConfig(size=side), clips, batch, seed, split)
    return TokenizerReport(
        clips, psnr, foreground, attributes, bit_entropy(torch.cat(labels), scales, tokenizer.config.bits)
    )


@torch.no_grad()
def evaluate_autoencoder(
    autoencoder: VideoAutoencoder,
    *,
    clips: int = 256,
    batch: int = 32,
    seed: int = 1_000_003,
    split: str = "heldout",
    sprites: SpriteConfig | None = None,
    noise: float = 0.0,
) -> AutoencoderReport:
    """Measure an autoencoder on sprites.

    Args:
        autoencoder: on the CPU.
        clips, batch, seed, split: as in `evaluate_tokenizer`.
        sprites: size and variety of the clips.
        noise: standard deviation of what is added to the latents before they are decoded.
    """
    generator = torch.Generator().manual_seed(seed)

    def decoded(video: Tensor) -> list[Tensor]:
        latents = autoencoder.encode(video)
        return [autoencoder.decode(latents + noise * torch.randn(latents.shape, generator=generator))]

    found = _compare(decoded, sprites or SpriteConfig(), clips, batch, seed, split)
    return AutoencoderReport(clips, found[0], found[1], found[2][0])


def _compare(
    decoded: Callable[[Tensor], list[Tensor]], sprites: SpriteConfig, clips: int, batch: int, seed: int, split: str
) -> tuple[float, float, list[dict[str, float]]]:
    """PSNR of the last reconstruction, that of its sprite alone, and the share of right attributes of each."""
    right: list[dict[str, int]] = []
    squared, foreground, area, pixels = 0.0, 0.0, 0.0, 0
    for first in range(0, clips, batch):
        truth = sample_batch(min(batch, clips - first), seed, first, split=split, config=sprites)
        videos = [to_uint8(video) for video in decoded(from_uint8(truth.video))]
        right = right or [dict.fromkeys(ATTRIBUTES, 0) for _ in videos]
        for count, video in zip(right, videos, strict=True):
            for seen, wanted in zip(measure_batch(video, wrap=sprites.wrap), truth.attributes, strict=True):
                for name in ATTRIBUTES:
                    count[name] += getattr(seen.attributes, name) == getattr(wanted, name)
        error = (videos[-1].double() - truth.video.double()).square().mean(-1) / 255**2  # (B, T, H, W)
        squared += error.sum().item()
        pixels += error.numel()
        foreground += (error * truth.mask).sum().item()
        area += truth.mask.sum().item()
    shares = [{name: value / clips for name, value in count.items()} for count in right]
    return _decibel(squared / pixels), _decibel(foreground / area), shares


def _decibel(mean_square: float) -> float:
    return -10 * torch.log10(torch.tensor(max(mean_square, 1e-12))).item()
