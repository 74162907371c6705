"""Symmetric DMD: a generator, and critics that know the distribution of what it generates.

The real score is the frozen teacher's, with full attention. The generated score is the mean of two models under the
forward and the backward mask. Source: paper U, Sec. 3.3 and Table 4; Self-Forcing.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from videoar.next_unit.flow import add_noise
from videoar.next_unit.layout import UnitLayout
from videoar.next_unit.rollout import Rollout, finished, last_steps, roll_out
from videoar.next_unit.transformer import NextUnitTransformer
from videoar.training.score_difference import (
    HIGHEST,
    LOWEST,
    by_token,
    clean_of,
    guided_clean,
    matching_loss,
    score_gradient,
)
from videoar.training.unit_objective import NoiseConfig, noise_levels

# The rows of the paper's Table 4: the masks of the critics.
CRITICS = {
    "full": ("full",),
    "forward": ("forward",),
    "backward": ("backward",),
    "both": ("forward", "backward"),
}


class Prompts(NamedTuple):
    """Features of the prompts (B, n, width), and of none (1, n, width)."""

    text: Tensor
    uncond: Tensor


class Judged(NamedTuple):
    """At which noise scores are compared: levels float64 (B,), and noise (B, L, P)."""

    levels: Tensor
    noise: Tensor

    def to(self, device: torch.device) -> Judged:
        return Judged(*(x.to(device) for x in self))


def draw_judged(batch: int, layout: UnitLayout, width: int, shift: float, generator: torch.Generator) -> Judged:
    """One level a clip, spread evenly over the batch."""
    levels = noise_levels(batch, 1, NoiseConfig(shift=shift), generator)[:, 0].clamp(LOWEST, HIGHEST)
    return Judged(levels, torch.randn(batch, layout.length, width, generator=generator))


class SymmetricDmd(nn.Module):
    """The trained parts and their losses: a module, so that Accelerate can wrap the whole computation.

    Args:
        generator: what is distilled.
        critics: a model by the direction of its mask.
        layout: the units of a clip.
        levels: of the generator's steps, from 1 down.
        window, sink: units that the generator sees; critics see all before, or after, a unit of their clip.
        guidance: of the teacher.
    """

    def __init__(
        self,
        generator: NextUnitTransformer,
        critics: dict[str, NextUnitTransformer],
        layout: UnitLayout,
        levels: tuple[float, ...],
        *,
        window: int | None = None,
        sink: int = 0,
        guidance: float = 1.0,
    ) -> None:
        super().__init__()
        self.generator = generator
        self.ways, self.critics = tuple(critics), nn.ModuleList(critics.values())
        self.layout, self.levels, self.window, self.sink = layout, levels, window, sink
        self.guidance = guidance

    def roll_out(self, prompts: Prompts, noise: Tensor) -> Rollout:
        """One clip or several in a row, as the noise (steps, B, clips * L, P) has; which end at the last step."""
        layout, window = self.layout.repeated(noise.shape[2] // self.layout.length), self.window
        if window is None and layout is not self.layout:
            window = len(self.layout.units) - 1  # as a stream has it
        return roll_out(self.generator, prompts.text, layout, noise, self.levels, window=window, sink=self.sink)

    def clips(self, prompts: Prompts, noise: Tensor) -> Tensor:
        """Generated clips (B, L, P), without gradient: the last ones of a rollout."""
        return finished(self.generator, prompts.text, self.roll_out(prompts, noise))[:, -self.layout.length :]

    def forward(
        self,
        generated: Rollout | Tensor,
        prompts: Prompts,
        judged: Judged,
        teacher: NextUnitTransformer | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The generator's loss on a rollout, given the teacher, or the critics' on finished clips; and its terms."""
        if isinstance(generated, Rollout):
            return self.generator_loss(generated, prompts, judged, teacher)
        return self.critic_loss(generated, prompts, judged)

    def generator_loss(
        self, rollout: Rollout, prompts: Prompts, judged: Judged, teacher: NextUnitTransformer
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss whose gradient makes the last clips likelier real; its size says little (see the terms)."""
        first = len(rollout.cache.layout.units) - len(self.layout.units)
        clips = last_steps(self.generator, prompts.text, rollout, first)
        with torch.no_grad():
            noisy = add_noise(clips, judged.noise, by_token(judged.levels, clips))
            given = noisy, judged.levels, prompts.text
            real = guided_clean(teacher, *given, prompts.uncond, self.layout, self.guidance)
            fakes = [
                clean_of(critic, *given, self.layout, direction=way)
                for way, critic in zip(self.ways, self.critics, strict=True)
            ]
            gradient = score_gradient(clips, real, fakes)
        made = clips.detach()
        terms = {
            "score_gap": gradient.abs().mean(),
            "to_real": (made - real).abs().mean(),
            "generated_std": made.float().std(),
        }
        return matching_loss(clips, gradient), terms

    def critic_loss(self, clips: Tensor, prompts: Prompts, judged: Judged) -> tuple[Tensor, dict[str, Tensor]]:
        """Flow matching of generated clips: the sum over the critics, which share nothing."""
        noisy = add_noise(clips, judged.noise, by_token(judged.levels, clips))
        losses = {}
        for way, critic in zip(self.ways, self.critics, strict=True):
            flow = critic(noisy, 1000 * judged.levels, prompts.text, self.layout, direction=way)
            losses[way] = (flow.to(clips) - (judged.noise - clips)).square().mean()
        return torch.stack(list(losses.values())).sum(), {f"critic_{way}": x.detach() for way, x in losses.items()}
