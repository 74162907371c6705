"""What a tokenizer keeps: the gates that a transformer's training waits for.

PSNR over all pixels and over the sprite's alone, the attributes that `measure` finds in reconstructions (from all
scales and without the last), and the entropy of the bits of each scale at a given frame index: a bit that tells the
first frame from the others and nothing else has marginal entropy and carries nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from videoar.data.pixels import from_uint8, to_uint8
from videoar.data.sprites import SpriteConfig, measure_batch, sample_batch
from videoar.evaluation.bit_entropy import BitEntropy, bit_entropy
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
    right = [dict.fromkeys(ATTRIBUTES, 0) for _ in scales]
    squared, foreground, area, pixels = 0.0, 0.0, 0.0, 0
    labels = []
    for first in range(0, clips, batch):
        size = min(batch, clips - first)
        truth = sample_batch(size, seed, first, split=split, config=SpriteConfig(size=side))
        bits = tokenizer.tokenize(from_uint8(truth.video))
        labels.append(bits)
        for kept in range(1, len(scales) + 1):
            video = to_uint8(tokenizer.detokenize(bits, keep=kept))
            for seen, wanted in zip(measure_batch(video), truth.attributes, strict=True):
                for name in ATTRIBUTES:
                    right[kept - 1][name] += getattr(seen.attributes, name) == getattr(wanted, name)
        error = (video.double() - truth.video.double()).square().mean(-1) / 255**2  # (B, T, H, W), from all scales
        squared += error.sum().item()
        pixels += error.numel()
        foreground += (error * truth.mask).sum().item()
        area += truth.mask.sum().item()
    return TokenizerReport(
        clips=clips,
        psnr=_decibel(squared / pixels),
        foreground_psnr=_decibel(foreground / area),
        attributes=[{name: value / clips for name, value in found.items()} for found in right],
        entropy=bit_entropy(torch.cat(labels), scales, tokenizer.config.bits),
    )


def _decibel(mean_square: float) -> float:
    return -10 * torch.log10(torch.tensor(max(mean_square, 1e-12))).item()
