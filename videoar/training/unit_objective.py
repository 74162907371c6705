"""Flow matching on units: noise levels, and clean clips to the loss of the predicted flow.

    x_s = (1 - s) x_0 + s noise,  loss = |flow(x_s, s, text) - (noise - x_0)|^2

Source: Lipman et al. 2022; levels by a logit-normal: Esser et al. 2024; paper U, Sec. 3.3.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from videoar.next_unit.flow import add_noise, shifted
from videoar.next_unit.latents import patch_grid, to_sequence
from videoar.next_unit.layout import UnitLayout
from videoar.next_unit.transformer import NextUnitTransformer
from videoar.next_unit.units import UnitScheme, cube, frame
from videoar.text import Conditioner


@dataclass(frozen=True)
class NoiseConfig:
    """How noise levels are drawn, 0 (clean) to 1 (noise).

    Args:
        kind: "uniform", or "logit-normal": the sigmoid of a normal number.
        shift: moves them towards noise, see `flow.shifted`.
        mean, std: of the logit-normal.
        same_level: share of clips whose units all have one level; the others' are independent.
    """

    kind: str = "uniform"
    shift: float = 3.0
    mean: float = 0.0
    std: float = 1.0
    same_level: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in ("uniform", "logit-normal"):
            raise ValueError(f"NoiseConfig: expected kind 'uniform' or 'logit-normal', got {self.kind!r}")
        if not (self.shift > 0 and self.std > 0 and 0 <= self.same_level <= 1):
            raise ValueError(
                "NoiseConfig: expected shift > 0, std > 0 and same_level in [0, 1], "
                f"got {self.shift}, {self.std} and {self.same_level}"
            )


class Noise(NamedTuple):
    """Levels float64 (B, 1) or (B, units), and noise float32 (B, L, patch_width)."""

    levels: Tensor
    noise: Tensor


def noise_levels(batch: int, units: int, config: NoiseConfig, generator: torch.Generator) -> Tensor:
    """Levels float64 (batch, units), spread evenly over the batch: each of its `batch` equal shares has one level."""
    place = torch.stack([torch.randperm(batch, generator=generator) for _ in range(units)], dim=1)
    even = (place + torch.rand(batch, units, generator=generator, dtype=torch.float64)) / batch
    if config.kind == "logit-normal":
        even = (config.mean + config.std * torch.special.ndtri(even)).sigmoid()
    levels = shifted(even, config.shift)
    same = torch.rand(batch, 1, generator=generator) < config.same_level
    return torch.where(same, levels[:, :1], levels)


def draw_noise(
    batch: int, layout: UnitLayout, width: int, config: NoiseConfig, generator: torch.Generator, *, by_unit: bool
) -> Noise:
    """What a step adds to clips of a layout, drawn on the CPU and so equal on every device.

    Args:
        batch: clips.
        layout: the units.
        width: numbers in a token.
        config: of the levels.
        generator: gives everything.
        by_unit: a level for each unit; else one a clip.
    """
    levels = noise_levels(batch, len(layout.units) if by_unit else 1, config, generator)
    return Noise(levels, torch.randn(batch, layout.length, width, generator=generator))


class FlowObjective(nn.Module):
    """Clean latents, captions and noise to the loss: a module, so that Accelerate can wrap the whole computation.

    Args:
        transformer: what learns the flow.
        conditioner: the text encoder; trained along where its weights want gradients.
        units: the scheme.
        causal: teacher forcing: every unit sees clean units before it; else all see all, at their noise.
        window, sink: as in `NextUnitTransformer.forward`; for causal. Without a window a unit sees all before it, or
            with several clips as many as the last unit of a clip sees, as `UnitPipeline.stream`.
        clips: clips of the scheme's units that follow each other in one sample, as in a stream.
        level_weight: exponent e of a token's weight (cells of the finest level / cells of its own)^e.
        frame_levels: share of clips whose frames have noise levels of their own (Diffusion Forcing, Chen et al. 2024);
            for a whole clip as one unit.

    Raises:
        ValueError: `frame_levels` for other units.
    """

    def __init__(
        self,
        transformer: NextUnitTransformer,
        conditioner: Conditioner,
        units: UnitScheme,
        *,
        causal: bool = False,
        window: int | None = None,
        sink: int = 0,
        clips: int = 1,
        level_weight: float = 0.0,
        frame_levels: float = 0.0,
    ) -> None:
        super().__init__()
        if frame_levels and (causal or clips > 1 or units != cube(1, 1, 1)):
            raise ValueError(f"FlowObjective: expected frame_levels 0 for units that are not a whole clip, got {units}")
        self.transformer, self.conditioner, self.units = transformer, conditioner, units
        self.causal, self.window, self.sink = causal, window, sink
        self.clips, self.level_weight, self.frame_levels = clips, level_weight, frame_levels

    def layout(self, latents: Tensor) -> UnitLayout:
        """The units over latents (B, C, T', H', W')."""
        frames, height, width = patch_grid(latents, self.transformer.config.patch)
        if frames % self.clips:
            raise ValueError(f"FlowObjective: expected {self.clips} clips of equally many frames, got {frames} frames")
        # Frame after frame is the same order of tokens as the whole clip, with a level a frame.
        units = frame() if self.frame_levels else self.units
        return units.on((frames // self.clips, height, width)).repeated(self.clips)

    def _window(self, layout: UnitLayout) -> int | None:
        return len(layout.units) // self.clips - 1 if self.window is None and self.clips > 1 else self.window

    def draw(self, latents: Tensor, config: NoiseConfig, generator: torch.Generator) -> Noise:
        """Noise for latents."""
        width = self.transformer.config.patch_width
        if self.frame_levels:
            config = replace(config, same_level=1 - self.frame_levels)
        by_unit = self.causal or self.frame_levels > 0
        return draw_noise(latents.shape[0], self.layout(latents), width, config, generator, by_unit=by_unit)

    def forward(
        self, latents: Tensor, captions: list[str | None], levels: Tensor, noise: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted loss, and the plain loss of the first and last unit where there are several."""
        layout = self.layout(latents)
        clean = to_sequence(latents, layout, self.transformer.config.patch)  # (B, L, P)
        by_token = levels if levels.shape[1] == 1 else levels[:, layout.unit_ids.to(levels.device)]
        noisy = add_noise(clean, noise, by_token[..., None].to(clean.dtype))
        text = self.conditioner(captions)
        options = (
            {"history": clean, "window": self._window(layout), "sink": self.sink}
            if self.causal
            else {"direction": "full"}
        )
        flow = self.transformer(noisy, 1000 * levels, text, layout, **options)
        error = (flow.float() - (noise - clean)).square().mean(-1)  # (B, L)
        weight = token_weights(layout, self.level_weight).to(error)
        loss = (error * weight).sum() / (weight.sum() * error.shape[0])
        if len(layout.units) == 1:
            return loss, {}
        first, last = (error[:, layout.within(unit)].mean().detach() for unit in (0, len(layout.units) - 1))
        return loss, {"loss_first": first, "loss_last": last}


def token_weights(layout: UnitLayout, exponent: float) -> Tensor:
    """(L,) (cells of the finest level / cells of a token's own level)^exponent: at 1 all levels weigh alike."""
    cells = torch.tensor([float(t * h * w) for t, h, w in layout.levels])
    by_unit = torch.tensor([unit.level for unit in layout.units])
    return ((cells[-1] / cells) ** exponent)[by_unit][layout.unit_ids]
