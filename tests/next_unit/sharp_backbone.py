"""A small backbone in float64 whose attention is peaked: with tiny weights a wrong offset would be invisible."""

from __future__ import annotations

import torch
from torch import Tensor

from videoar.next_unit import UnitLayout, UnitScheme, cube, frame, key_detail, multiscale, to_sequence
from videoar.next_unit.config import BackboneConfig
from videoar.next_unit.transformer import NextUnitTransformer

BATCH = 2
GRID = (4, 3, 5)  # tokens; cubes are ragged
SCHEMES = {"frame": frame(), "key_detail": key_detail(3), "cube": cube(), "multiscale": multiscale([(1, 1), (2, 3)])}
CONFIG = BackboneConfig(
    width=48, depth=3, heads=2, ffn_width=64, channels=3, freq_dim=16, text_width=10, text_len=5, levels=0
)


def config_for(scheme: UnitScheme, **changes) -> BackboneConfig:
    levels = len(scheme.on(GRID).levels)
    return CONFIG.replace(levels=levels if levels > 1 else 0, **changes)


def sharpen(model: torch.nn.Module, seed: int = 0) -> None:
    """Random weights with large gains of queries and keys, so that attention picks few keys."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            if "norm_q" in name or "norm_k" in name:
                parameter.copy_(1 + noise.abs())
            elif name.endswith("weight") and parameter.ndim > 1:
                parameter.copy_(noise * parameter[0].numel() ** -0.5)
            elif name.endswith("weight"):
                parameter.copy_(1 + 0.1 * noise)
            else:
                parameter.copy_(0.3 * noise)


def sharp_backbone(config: BackboneConfig) -> NextUnitTransformer:
    model = NextUnitTransformer(config).double().eval()
    sharpen(model)
    return model


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def clip(layout: UnitLayout, config: BackboneConfig, seed: int = 1) -> Tensor:
    """A random clip as a sequence of units (B, L, patch_width)."""
    sizes = (size * p for size, p in zip(layout.grid, config.patch, strict=True))
    return to_sequence(draw(seed, BATCH, config.channels, *sizes), layout, config.patch)


def prompt(config: BackboneConfig, seed: int = 2, length: int = 4) -> Tensor:
    """Features of a prompt that is shorter than the text may be."""
    return draw(seed, BATCH, length, config.text_width)


def noise_levels(layout: UnitLayout, seed: int = 3) -> Tensor:
    """A timestep for every sample and unit, none of them whole."""
    return 1000 * draw(seed, BATCH, len(layout.units)).sigmoid()


def distance(one: Tensor, other: Tensor) -> float:
    """Largest difference, in units of the mean size."""
    return float((one - other).detach().abs().max() / other.detach().abs().mean())
