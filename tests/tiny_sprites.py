"""A next-unit pipeline of tiny random parts for sprites of 64 x 64 pixels."""

from __future__ import annotations

import torch

from videoar.data.captions import VOCABULARY
from videoar.next_unit import BackboneConfig, NextUnitTransformer, UnitDefaults, UnitPipeline
from videoar.text import WordEncoder, WordEncoderConfig
from videoar.tokenizer.autoencoder import VideoAutoencoder
from videoar.tokenizer.config import AutoencoderConfig

AUTOENCODER = AutoencoderConfig(
    latent_channels=3, patch=(1, 8), channels=(8, 8), strides=((4, 2),), blocks=1, time_kernels=((1, 1), (3, 1))
)
BACKBONE = BackboneConfig(
    width=16, depth=2, heads=1, ffn_width=16, channels=3, patch=(1, 1, 1), freq_dim=8, text_width=8, text_len=8
)


def tiny_sprites(units: str = "cube(2, 2, 2)", **defaults) -> UnitPipeline:
    """13 frames of 64 x 64, on a torus, from 4 x 4 x 4 latents."""
    torch.manual_seed(0)
    transformer = NextUnitTransformer(BACKBONE).eval()
    torch.nn.init.normal_(transformer.head.head.weight)
    words = tuple(sorted({word for group in VOCABULARY.values() for word in group} | {"a", "moving"}))
    encoder = WordEncoder(WordEncoderConfig(words, width=BACKBONE.text_width, length=BACKBONE.text_len))
    given = {"steps": 1, "wrap": True, **defaults}
    return UnitPipeline(
        VideoAutoencoder(AUTOENCODER).eval(), transformer, encoder, UnitDefaults(units, (4, 4, 4), **given)
    )
