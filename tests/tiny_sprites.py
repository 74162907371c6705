"""A next-unit pipeline of tiny random parts for sprites of 64 x 64 pixels, and videos as a perfect one makes them."""

from __future__ import annotations

import torch

from videoar.data.captions import COLOURS, DIRECTIONS, SHAPES, SPEEDS, VOCABULARY, parse_caption
from videoar.data.pixels import from_uint8
from videoar.data.sprites import SpriteConfig, draw_parameters, render_batch
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


def sprites(captions, frames: int) -> torch.Tensor:
    """Videos (B, 3, T, 64, 64) that show exactly what captions say."""
    config = SpriteConfig(frames=frames, wrap=True)
    drawn = draw_parameters(len(captions), 5, config=config)
    wanted = [parse_caption(caption) for caption in captions]
    index = {
        name: torch.tensor([words.index(getattr(w, name)) for w in wanted])
        for name, words in {"colour": COLOURS, "shape": SHAPES, "direction": DIRECTIONS, "speed": SPEEDS}.items()
    }
    angle = index["direction"] * (2 * torch.pi / len(DIRECTIONS))
    travel = torch.tensor(config.travel)[index["speed"], None] * torch.stack([angle.cos(), angle.sin()], 1)
    return from_uint8(render_batch(drawn._replace(**index, step=travel / 16), config)[0])
