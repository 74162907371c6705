"""Models of a preset's size with random weights: what takes the time of a trained one and needs no download."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from videoar.next_scale.config import TransformerConfig
from videoar.next_scale.transformer import NextScaleTransformer
from videoar.next_unit.config import BackboneConfig
from videoar.next_unit.transformer import NextUnitTransformer
from videoar.text import Prompt
from videoar.tokenizer import TokenizerConfig, VideoTokenizer


def random_transformer(
    config: TransformerConfig, *, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
) -> NextScaleTransformer:
    """Random weights, the same in every block: drawing a billion would take longer than measuring."""
    with torch.device("meta"):
        model = NextScaleTransformer(config)
    model.to(dtype).to_empty(device=device or torch.get_default_device()).requires_grad_(False)
    for name, parameter in model.named_parameters():
        if name.startswith("blocks.") and not name.startswith("blocks.0."):
            continue
        if name.endswith(("norm.weight", "_norm")):
            parameter.fill_(1.0)
        else:
            parameter.normal_(std=parameter.shape[-1] ** -0.5)
    for block in model.blocks[1:]:
        block.load_state_dict(model.blocks[0].state_dict())
    return model.eval()


def random_backbone(
    config: BackboneConfig, *, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
) -> NextUnitTransformer:
    """Random weights, the same in every block, as `random_transformer`."""
    with torch.device("meta"):
        model = NextUnitTransformer(config)
    model.to(dtype).to_empty(device=device or torch.get_default_device()).requires_grad_(False)
    for name, parameter in model.named_parameters():
        if name.startswith("blocks.") and not name.startswith("blocks.0."):
            continue
        if "norm" in name and name.endswith("weight"):
            parameter.fill_(1.0)
        elif name.endswith("bias"):
            parameter.zero_()
        else:
            parameter.normal_(std=parameter[0].numel() ** -0.5)
    for block in model.blocks[1:]:
        block.load_state_dict(model.blocks[0].state_dict())
    return model.eval()


def random_tokenizer(config: TokenizerConfig, *, device: torch.device | str = "cpu") -> VideoTokenizer:
    """Random weights in float32; pixels stay finite, which is all that timing asks."""
    with torch.device(device):
        return VideoTokenizer(config).eval().requires_grad_(False)


class RandomFeatures(nn.Module):
    """Stands for a text encoder that is not there: the same random features for every prompt, at no cost."""

    def __init__(self, length: int, width: int, device: torch.device | str = "cpu") -> None:
        super().__init__()
        self.register_buffer("features", torch.randn(1, length, width, device=device), persistent=False)

    def forward(self, prompts: Sequence[Prompt]) -> Tensor:
        """Features (B, length, width)."""
        return self.features.expand(len(prompts), -1, -1)
