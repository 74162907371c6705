"""Paper U's backbone as one writes it without this library: what `videoar profile --compare eager` runs beside ours.

Plain PyTorch only: SDPA, a cache grown by concatenation, RoPE from a table, F.layer_norm and F.rms_norm. Parameters
bear the names of `videoar.next_unit.NextUnitTransformer`, so that one state dict serves both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from videoar.next_unit.autoencoders import Autoencoder
from videoar.next_unit.config import BackboneConfig
from videoar.next_unit.flow import sampling_levels
from videoar.next_unit.frames import latent_frames
from videoar.next_unit.layout import UnitLayout
from videoar.next_unit.sampling import SampledUnit, SamplingOptions
from videoar.next_unit.transformer import NextUnitTransformer
from videoar.observer import UNOBSERVED, Observer
from videoar.profiling.eager_model import rope_table, rotate

Pair = tuple[Tensor, Tensor]  # keys and values (B, H, L, D), or cosines and sines


class Attention(nn.Module):
    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.heads, self.eps, width = config.heads, config.eps, config.width
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.norm_q, self.norm_k = nn.RMSNorm(width, eps=config.eps), nn.RMSNorm(width, eps=config.eps)

    def forward(self, x: Tensor, table: Pair, past: Pair | None) -> tuple[Tensor, Pair]:
        q, (k, v) = self.split(self.normed(self.q(x), self.norm_q)), self.keys(x)
        q, k = rotate(q, table), rotate(k, table)
        if past is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        return self.merge(F.scaled_dot_product_attention(q, k, v)), (k, v)

    def cross(self, x: Tensor, text: Pair) -> Tensor:
        return self.merge(F.scaled_dot_product_attention(self.split(self.normed(self.q(x), self.norm_q)), *text))

    def keys(self, x: Tensor) -> Pair:
        return self.split(self.normed(self.k(x), self.norm_k)), self.split(self.v(x))

    def normed(self, x: Tensor, norm: nn.RMSNorm) -> Tensor:
        return F.rms_norm(x, norm.weight.shape, norm.weight.to(x.dtype), self.eps)

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, H, L, D)

    def merge(self, x: Tensor) -> Tensor:
        return self.o(x.transpose(1, 2).flatten(2))  # (B, L, C)


class Block(nn.Module):
    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        width = config.width
        self.eps = config.eps
        self.self_attn, self.cross_attn = Attention(config), Attention(config)
        self.norm3 = nn.LayerNorm(width, eps=config.eps) if config.cross_norm else nn.Identity()
        self.ffn = nn.Sequential(
            nn.Linear(width, config.ffn_width), nn.GELU(approximate="tanh"), nn.Linear(config.ffn_width, width)
        )
        self.modulation = nn.Parameter(torch.zeros(1, 6, width))

    def forward(self, x: Tensor, time: Tensor, table: Pair, past: Pair | None, text: Pair) -> tuple[Tensor, Pair]:
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = (self.modulation + time).to(x.dtype).chunk(6, dim=1)
        y, past = self.self_attn(modulated(x, scale, shift, self.eps), table, past)
        x = x + y * gate
        x = x + self.cross_attn.cross(self.norm3(x), text)
        return x + self.ffn(modulated(x, ffn_scale, ffn_shift, self.eps)) * ffn_gate, past


class Head(nn.Module):
    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.eps = config.eps
        self.head = nn.Linear(config.width, config.patch_width)
        self.modulation = nn.Parameter(torch.zeros(1, 2, config.width))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        shift, scale = (self.modulation + time).to(x.dtype).chunk(2, dim=1)
        return self.head(modulated(x, scale, shift, self.eps))


def modulated(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
    """Layer norm of x (B, L, C) with scale and shift (B, 1, C)."""
    return F.layer_norm(x, x.shape[-1:], eps=eps) * (1 + scale) + shift


class EagerBackbone(nn.Module):
    """The twin of a `NextUnitTransformer`, on the very weights that it has when the twin is made.

    Args:
        ours: on its device, in its dtype, not yet packed.
    """

    def __init__(self, ours: NextUnitTransformer) -> None:
        super().__init__()
        config = self.config = ours.config
        width = config.width
        with torch.device("meta"):
            self.patch_embedding = nn.Conv3d(config.channels, width, config.patch, stride=config.patch)
            self.text_embedding = nn.Sequential(
                nn.Linear(config.text_width, width), nn.GELU(approximate="tanh"), nn.Linear(width, width)
            )
            self.time_embedding = nn.Sequential(nn.Linear(config.freq_dim, width), nn.SiLU(), nn.Linear(width, width))
            self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
            self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
            self.head = Head(config)
            self.level_embedding = nn.Parameter(torch.zeros(config.levels, width)) if config.levels else None
        self.load_state_dict(ours.state_dict(), assign=True)

    @property
    def dtype(self) -> torch.dtype:
        return self.patch_embedding.weight.dtype

    def text_keys(self, text: Tensor) -> list[Pair]:
        """Keys and values of a prompt (B, n, text_width), for every block."""
        text = F.pad(text.to(self.dtype), (0, 0, 0, self.config.text_len - text.shape[1]))
        hidden = self.text_embedding(text)
        return [block.cross_attn.keys(hidden) for block in self.blocks]

    def step(
        self, tokens: Tensor, level: float, text: list[Pair], table: Pair, past: Sequence[Pair | None], depth: int
    ) -> tuple[Tensor, list[Pair]]:
        """The flow of a unit at a noise level, and the cache with it; `depth` is its level of a pyramid."""
        weight = self.patch_embedding.weight.movedim(1, -1).flatten(1)
        x = F.linear(tokens.to(self.dtype), weight, self.patch_embedding.bias)
        if self.level_embedding is not None:
            x = x + self.level_embedding[depth]
        half = self.config.freq_dim // 2
        angles = 1000 * level * 10000.0 ** (-torch.arange(half, dtype=torch.float64, device=x.device) / half)
        sinusoid = torch.cat([angles.cos(), angles.sin()])[None].expand(len(x), -1)
        time = self.time_embedding(sinusoid.to(self.dtype))  # (B, C)
        modulation = self.time_projection(time).unflatten(-1, (6, -1))  # (B, 6, C)
        kept = []
        for block, before, keys in zip(self.blocks, past, text, strict=True):
            x, after = block(x, modulation, table, before, keys)
            kept.append(after)
        return self.head(x, time[:, None]), kept


class EagerUnits:
    """Samples as `UnitDecoder` does, without this library's kernels; decodes as soon as frames are complete.

    Args:
        twin: the backbone's twin.
        layout: the units of a clip.
        options: how a unit is denoised.
        autoencoder: None decodes nothing.
    """

    def __init__(
        self, twin: EagerBackbone, layout: UnitLayout, options: SamplingOptions, autoencoder: Autoencoder | None
    ) -> None:
        self.twin, self.layout, self.options, self.autoencoder = twin, layout, options, autoencoder
        positions, config = layout.positions(), twin.config
        device = twin.head.modulation.device
        self.table = tuple(part.to(device) for part in rope_table(positions, config.head_dim, config.theta))

    @torch.no_grad()
    def run(self, text: Tensor, observer: Observer = UNOBSERVED) -> None:
        """One clip of prompts, with those of no prompt after them where guidance is on."""
        units, state = self.units(text, observer), None
        if self.autoencoder is None:
            for _ in units:
                pass
            return
        for index, latents in enumerate(latent_frames(units, self.layout, self.twin.config.patch)):
            with observer.part("decode", frame=index):
                state = self.autoencoder.decode_chunk(latents, state)[1]

    @torch.no_grad()
    def units(self, text: Tensor, observer: Observer = UNOBSERVED) -> Iterator[SampledUnit]:
        """Yields unit after unit."""
        twin, options = self.twin, self.options
        with observer.part("text"):
            keys = twin.text_keys(text)
        copies = 1 if options.guidance == 1 else 2
        past: list[Pair | None] = [None] * len(twin.blocks)
        levels = sampling_levels(options.steps, options.shift)
        for unit, tokens in enumerate(self.layout.lengths):
            here = self.layout.within(unit)
            shape = (len(text) // copies, tokens, twin.config.patch_width)
            rest = keys, tuple(part[here] for part in self.table), past, self.layout.units[unit].level
            with observer.part("noise", frame=unit):
                x = torch.randn(shape, device=text.device)
            for step, (level, following) in enumerate(zip(levels, (*levels[1:], 0.0), strict=True)):
                with observer.part("transformer", frame=unit, scale=step):
                    found, _ = twin.step(x.repeat(copies, 1, 1), level, *rest)
                    if copies == 2:
                        cond, without = found.float().chunk(2)
                        found = without + options.guidance * (cond - without)
                    if options.method == "euler":
                        x = x + (following - level) * found
                    else:
                        x = (1 - following) * (x - level * found) + following * torch.randn_like(x)
            with observer.part("clean", frame=unit, scale=len(levels)):
                level = options.context_noise
                seen = (1 - level) * x + level * torch.randn_like(x) if level else x
                _, past = twin.step(seen.repeat(copies, 1, 1), level, *rest)
            yield SampledUnit(0, unit, x)


@torch.no_grad()
def flow_disagreement(ours: NextUnitTransformer, twin: EagerBackbone, layout: UnitLayout, text: Tensor) -> float:
    """Root mean square difference of the flow of a clip's first two units, in units of the twin's own.

    Args:
        ours, twin: the backbone, packed or not, and its twin.
        layout: the units.
        text: features (R, n, text_width).
    """
    positions, config = layout.positions(), twin.config
    table = tuple(part.to(text.device) for part in rope_table(positions, config.head_dim, config.theta))
    cache, keys = ours.new_cache(layout, len(text)), ours.encode_text(text)
    past, theirs = [None] * len(twin.blocks), twin.text_keys(text)
    worst, timesteps = 0.0, torch.full((len(text),), 625.0, dtype=torch.float64, device=text.device)
    for unit, tokens in enumerate(layout.lengths[:2]):
        here, level = layout.within(unit), layout.units[unit].level
        x = torch.randn(len(text), tokens, config.patch_width, device=text.device)
        found = ours.step(x, timesteps, keys, layout, unit, cache).float()
        cache.commit()
        expected, past = twin.step(x, 0.625, theirs, tuple(part[here] for part in table), past, level)
        expected = expected.float()
        worst = max(worst, float((found - expected).square().mean().sqrt() / expected.square().mean().sqrt()))
    return worst
