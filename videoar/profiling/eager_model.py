"""Paper S's transformer as one writes it without this library: what the profiler and the benchmarks compare with.

Plain PyTorch only: SDPA under a dense mask, RoPE from a table, F.rms_norm, a cache grown by concatenation. Parameters
bear the names of `videoar.next_scale.NextScaleTransformer`, so that one state dict serves both. It may be compiled.
Its layers are its own, though they look like that model's: a peer must not change with what it is compared to.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from videoar.next_scale.config import TransformerConfig
from videoar.next_scale.transformer import NextScaleTransformer
from videoar_kernels import RangeMask, multiscale_positions

Cache = list[tuple[Tensor, Tensor] | None]  # keys and values (B, Hk, L, D) of every block


def rope_table(positions: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos and sin (L, D / 2), float32, of positions (L, 3)."""
    side = 2 * (head_dim // 6)
    angles = [
        positions[:, axis, None].double() * theta ** -(torch.arange(0, dim, 2, dtype=torch.float64) / dim)
        for axis, dim in enumerate((head_dim - 2 * side, side, side))
    ]
    angles = torch.cat(angles, dim=1)
    return angles.cos().float(), angles.sin().float()


def rotate(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """RoPE of x (B, H, L, D), in float32."""
    cos, sin = table
    a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1).flatten(-2).type_as(x)


class RMSNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], self.weight, 1e-6)


class Attention(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.heads, self.key_heads, self.head_dim = config.heads, config.key_heads, config.head_dim
        self.qkv = nn.Linear(config.width, (config.heads + 2 * config.key_heads) * config.head_dim, bias=False)
        self.out = nn.Linear(config.width, config.width, bias=False)
        self.q_norm = nn.Parameter(torch.ones(config.head_dim)) if config.qk_norm else None
        self.k_norm = nn.Parameter(torch.ones(config.head_dim)) if config.qk_norm else None

    def forward(
        self, x: Tensor, table: tuple[Tensor, Tensor], mask: Tensor | None, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        qkv = self.qkv(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (B, H + 2 Hk, L, D)
        q, k, v = qkv.split((self.heads, self.key_heads, self.key_heads), dim=1)
        if self.q_norm is not None:
            q, k = (F.rms_norm(part, (self.head_dim,), w, 1e-6) for part, w in ((q, self.q_norm), (k, self.k_norm)))
        q, k = rotate(q, table), rotate(k, table)
        if past is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=self.heads != self.key_heads)
        return self.out(out.transpose(1, 2).flatten(2)), (k, v)  # (B, L, C)


class SwiGLU(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.width, config.ffn_width, bias=False)
        self.up = nn.Linear(config.width, config.ffn_width, bias=False)
        self.down = nn.Linear(config.ffn_width, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.attention_norm, self.attention = RMSNorm(config.width), Attention(config)
        self.ffn_norm, self.ffn = RMSNorm(config.width), SwiGLU(config)

    def forward(self, x: Tensor, table, mask, past=None):
        attended, past = self.attention(self.attention_norm(x), table, mask, past)
        x = x + attended
        return x + self.ffn(self.ffn_norm(x)), past


class EagerTransformer(nn.Module):
    """The twin of a `NextScaleTransformer`, on the very weights that it has when the twin is made.

    Args:
        ours: on its device, in its dtype, not yet packed.
        whole_clips: whether `forward` is wanted, which needs a dense mask of the whole clip.
    """

    def __init__(self, ours: NextScaleTransformer, *, whole_clips: bool = True) -> None:
        super().__init__()
        config = self.config = ours.config
        with torch.device("meta"):
            self._make_layers(config)
        self.load_state_dict(ours.state_dict(), assign=True)
        self.prepare(config.frames, whole_clips)

    def _make_layers(self, config: TransformerConfig) -> None:
        width = config.width
        self.text_in = nn.Linear(config.text_width, width, bias=False)
        self.input = nn.Linear(config.bits, width, bias=False)
        self.start = nn.Parameter(torch.zeros(width))
        self.scale_embedding = nn.Embedding(len(config.scales), width)
        self.context = nn.Linear(config.bits, width, bias=False) if config.context == "resampled" else None
        self.pooled_text = None
        if config.pooled_text:
            self.pooled_text = nn.Sequential(
                nn.Linear(config.text_width, width), nn.SiLU(), nn.Linear(width, width, bias=False)
            )
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = RMSNorm(width)
        self.head = nn.Linear(width, config.bits, bias=False)

    def prepare(self, frames: int, whole_clips: bool = True) -> None:
        """Mask and tables of a clip of `frames` frames, built once: no step pays for them."""
        config, scales, device = self.config, list(self.config.scales), self.start.device
        positions = multiscale_positions(config.text_len, frames, scales, align=config.align)
        self.cos, self.sin = (part.to(device) for part in rope_table(positions, config.head_dim, config.theta))
        self.mask = None
        if whole_clips:
            mask = RangeMask.multiscale(config.text_len, frames, scales, window=config.window)
            self.mask = mask.to_dense().to(device)
        scale_ids = [scale for scale, (height, width) in enumerate(scales) for _ in range(height * width)]
        self.scale_ids = torch.tensor(scale_ids, device=device).repeat(frames)

    def forward(self, text: Tensor, inputs: Tensor, context: Tensor | None = None) -> Tensor:
        """Logits (B, T, N, d) of a whole clip, as `NextScaleTransformer.forward`."""
        first = self.config.scales[0][0] * self.config.scales[0][1]
        x = self.embed(
            text, inputs.flatten(1, 2), None if context is None else context.flatten(1, 2), self.scale_ids, first
        )
        x = torch.cat([self.text_in(text), x], dim=1)  # (B, text_len + T N, C)
        for block in self.blocks:
            x, _ = block(x, (self.cos, self.sin), self.mask)
        return self.head(self.norm(x[:, text.shape[1] :])).view(*inputs.shape[:3], -1)

    def prefill(self, text: Tensor) -> Cache:
        """A cache that holds the text."""
        cache: Cache = [None] * len(self.blocks)
        self.run(self.text_in(text), 0, cache)
        return cache

    def step(
        self, text: Tensor, inputs: Tensor, context: Tensor | None, cache: Cache, *, frame: int, scale: int
    ) -> Tensor:
        """Logits (B, h * w, d) of one (frame, scale), which `cache` holds afterwards."""
        areas = [h * w for h, w in self.config.scales]
        ids = torch.full((areas[scale],), scale, device=inputs.device)
        x = self.embed(text, inputs, context, ids, areas[0] if frame == scale == 0 else 0)
        return self.head(self.norm(self.run(x, text.shape[1] + frame * sum(areas) + sum(areas[:scale]), cache)))

    def run(self, x: Tensor, begin: int, cache: Cache) -> Tensor:
        table = self.cos[begin : begin + x.shape[1]], self.sin[begin : begin + x.shape[1]]
        for i, block in enumerate(self.blocks):
            x, cache[i] = block(x, table, None, cache[i])
        return x

    def embed(self, text: Tensor, inputs: Tensor, context: Tensor | None, ids: Tensor, first: int) -> Tensor:
        gain = self.config.bits**0.5
        x = self.input(inputs * gain) + self.scale_embedding(ids)
        if self.context is not None:
            x = x + self.context(context * gain)
        if self.pooled_text is not None:
            x = x + self.pooled_text(text.mean(1, keepdim=True))
        return torch.cat([x[:, :first] + self.start, x[:, first:]], dim=1) if first else x
