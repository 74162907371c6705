"""LLaMA's block with multi-scale temporal RoPE. Source: paper S, App. A."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from videoar.next_scale.config import TransformerConfig
from videoar_kernels import adaln_norm, qk_norm_rope, rope_3d, swiglu

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


class RMSNorm(nn.Module):
    """Root-mean-square norm with a learned gain."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return adaln_norm(x, weight=self.weight, kind="rms")


class Attention(nn.Module):
    """Self-attention with multi-scale temporal RoPE; who sees whom is the caller's `attend`."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.heads, self.key_heads, self.head_dim = config.heads, config.key_heads, config.head_dim
        self.theta = config.theta
        self.qkv = nn.Linear(config.width, (config.heads + 2 * config.key_heads) * config.head_dim, bias=False)
        self.out = nn.Linear(config.width, config.width, bias=False)
        self.q_norm = nn.Parameter(torch.ones(config.head_dim)) if config.qk_norm else None
        self.k_norm = nn.Parameter(torch.ones(config.head_dim)) if config.qk_norm else None

    def forward(self, x: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (B, H + 2 Hk, L, D)
        q, k, v = qkv.split((self.heads, self.key_heads, self.key_heads), dim=1)
        if self.q_norm is None:
            q, k = (rope_3d(part, positions, theta=self.theta) for part in (q, k))
        else:
            q, k = qk_norm_rope(q, k, self.q_norm, self.k_norm, positions, theta=self.theta)
        return self.out(attend(q, k, v).transpose(1, 2).flatten(2))  # (B, L, C)


class SwiGLU(nn.Module):
    """Gated feed-forward network."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.width, config.ffn_width, bias=False)
        self.up = nn.Linear(config.width, config.ffn_width, bias=False)
        self.down = nn.Linear(config.ffn_width, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(swiglu(self.gate(x), self.up(x)))


class Block(nn.Module):
    """Pre-norm attention and feed-forward with residuals."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.attention_norm, self.attention = RMSNorm(config.width), Attention(config)
        self.ffn_norm, self.ffn = RMSNorm(config.width), SwiGLU(config)

    def forward(self, x: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        x = x + self.attention(self.attention_norm(x), positions, attend)
        return x + self.ffn(self.ffn_norm(x))
