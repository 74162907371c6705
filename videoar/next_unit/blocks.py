"""Wan's block and output head, their norms modulated by one row a unit. Source: Wan 2.1."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from videoar.next_unit.attention import Attend, Attention
from videoar.next_unit.config import BackboneConfig
from videoar.next_unit.modulation import Run, unit_norm, unit_residual
from videoar_kernels import PackedLinear, adaln_norm


class Block(nn.Module):
    """Self-attention, cross-attention and a feed-forward network, the first and last modulated."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        width = config.width
        self.eps = config.eps
        self.self_attn, self.cross_attn = Attention(config), Attention(config)
        self.norm3 = nn.LayerNorm(width, eps=config.eps) if config.cross_norm else None
        self.ffn = nn.Sequential(
            nn.Linear(width, config.ffn_width), nn.GELU(approximate="tanh"), nn.Linear(config.ffn_width, width)
        )
        self.modulation = nn.Parameter(torch.zeros(1, 6, width))

    def forward(
        self, x: Tensor, time: Tensor, runs: Sequence[Run], attend: Attend, text: tuple[Tensor, Tensor]
    ) -> Tensor:
        """x (B, L, C) and time (B, units, 6, C)."""
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = (self.modulation + time).unbind(2)  # (B, units, C)
        x = unit_residual(x, self.self_attn(unit_norm(x, scale, shift, runs, self.eps), attend), gate, runs)
        y = x
        if self.norm3 is not None:
            y = adaln_norm(x, shift=self.norm3.bias, weight=self.norm3.weight, eps=self.eps, kind="layer")
        x = x + self.cross_attn.cross(y, *text)
        return unit_residual(x, self.ffn(unit_norm(x, ffn_scale, ffn_shift, runs, self.eps)), ffn_gate, runs)


class Head(nn.Module):
    """The modulated projection to patches."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.eps = config.eps
        self.head = nn.Linear(config.width, config.patch_width)
        self.modulation = nn.Parameter(torch.zeros(1, 2, config.width))

    def forward(self, x: Tensor, time: Tensor, runs: Sequence[Run]) -> Tensor:
        shift, scale = (self.modulation + time[:, :, None]).unbind(2)  # (B, units, C)
        x = unit_norm(x, scale, shift, runs, self.eps)
        # Every step adds the flow to the latents, so a packed model's head gives float32 on every device.
        wide = isinstance(self.head, PackedLinear) or self.head.weight.dtype == torch.float32
        return self.head(x.float() if wide else x)
