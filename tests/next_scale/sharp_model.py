"""A small model in float64 whose attention is peaked: with tiny weights a wrong offset would be invisible."""

from __future__ import annotations

import torch
from torch import Tensor

from videoar.next_scale.config import TransformerConfig, square_scales
from videoar.next_scale.transformer import NextScaleTransformer

BATCH, FRAMES = 2, 4


def sharp_config(**changes) -> TransformerConfig:
    config = TransformerConfig(
        width=48,
        depth=3,
        heads=4,
        kv_heads=2,
        ffn_multiple=2.0,
        bits=10,
        scales=square_scales(1, 2, 3),
        frames=FRAMES,
        text_len=3,
        text_width=20,
        pooled_text=True,
    )
    return config.replace(**changes)


def sharp_model(config: TransformerConfig, seed: int = 0) -> NextScaleTransformer:
    generator = torch.Generator().manual_seed(seed)
    model = NextScaleTransformer(config).double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            if name.endswith(("q_norm", "k_norm")):
                parameter.copy_(1.5 + noise.abs())  # scores of several units: attention picks few keys
            elif parameter.ndim == 1:
                parameter.copy_(1 + 0.1 * noise)
            else:
                parameter.copy_(noise * parameter.shape[-1] ** -0.5)
    return model


def clip_inputs(config: TransformerConfig, seed: int = 1) -> tuple[Tensor, Tensor, Tensor | None]:
    """Random text, inputs and context of a clip of FRAMES frames, float64."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    tokens = (BATCH, FRAMES, config.tokens_per_frame, config.bits)
    context = draw(*tokens) * config.bits**-0.5 if config.context == "resampled" else None
    return draw(BATCH, config.text_len, config.text_width), draw(*tokens) * config.bits**-0.5, context
