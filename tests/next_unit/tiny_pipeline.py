"""A pipeline with tiny random parts, peaked attention, and the small words of the sprites."""

from __future__ import annotations

import torch
from sharp_backbone import sharpen

from videoar.data.captions import VOCABULARY
from videoar.next_unit import BackboneConfig, NextUnitTransformer, UnitDefaults, UnitPipeline
from videoar.text import WordEncoder, WordEncoderConfig
from videoar.tokenizer.autoencoder import VideoAutoencoder
from videoar.tokenizer.config import AutoencoderConfig

AUTOENCODER = AutoencoderConfig(
    latent_channels=3,
    patch=(1, 8),
    channels=(8, 8, 8),
    strides=((2, 2), (2, 1)),
    blocks=1,
    time_kernels=((3, 3), (3, 3), (3, 3)),
)
BACKBONE = BackboneConfig(
    width=48, depth=3, heads=2, ffn_width=64, channels=3, patch=(1, 1, 1), freq_dim=16, text_width=12, text_len=8
)
GRID = (4, 2, 3)  # 13 frames of 32 x 48


def tiny_pipeline(units: str = "frame", *, levels: int = 0, dtype: torch.dtype = torch.float32, **defaults):
    torch.manual_seed(0)
    transformer = NextUnitTransformer(BACKBONE.replace(levels=levels)).to(torch.float64).eval()
    sharpen(transformer)
    words = tuple(sorted({word for group in VOCABULARY.values() for word in group} | {"a", "moving"}))
    encoder = WordEncoder(WordEncoderConfig(words, width=BACKBONE.text_width, length=BACKBONE.text_len))
    autoencoder = VideoAutoencoder(AUTOENCODER).eval()
    parts = (part.to(dtype) for part in (autoencoder, transformer, encoder))
    return UnitPipeline(*parts, UnitDefaults(units, GRID, **{"steps": 2, **defaults}))
