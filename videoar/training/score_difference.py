"""Distribution matching: which way a generated clip must move to be likelier real than generated.

    gradient = (mean of the fakes' x_0 - the real model's x_0) / mean |x_0 - the real model's x_0|
    loss = |x_0 - stop(x_0 - gradient)|^2 / 2, so d loss / d x_0 = gradient / numel

The x_0 that a model points to from x_s gives its score there, so the difference of two of them is that of scores.
Source: Yin et al. 2024 (DMD, DMD2); paper U, Eq. 2; constants of Self-Forcing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from videoar.next_unit.flow import clean_from
from videoar.next_unit.layout import UnitLayout
from videoar.next_unit.transformer import NextUnitTransformer

# Beyond these, scores say nothing: all noise, or none.
LOWEST, HIGHEST = 0.02, 0.98
# A clip that the real model would not change has no direction to be divided by.
_SMALLEST = 1e-6


def by_token(levels: Tensor, like: Tensor) -> Tensor:
    """Levels (B,) so that they broadcast to tokens (B, L, P)."""
    return levels[:, None, None].to(like)


def clean_of(
    model: NextUnitTransformer,
    noisy: Tensor,
    levels: Tensor,
    text: Tensor,
    layout: UnitLayout,
    *,
    direction: str = "full",
) -> Tensor:
    """The x_0 (B, L, P) that a model points to from a whole noisy clip of levels (B,)."""
    flow = model(noisy, 1000 * levels, text, layout, direction=direction)
    return clean_from(noisy, flow.to(noisy), by_token(levels, noisy))


def guided_clean(
    model: NextUnitTransformer,
    noisy: Tensor,
    levels: Tensor,
    text: Tensor,
    uncond: Tensor,
    layout: UnitLayout,
    guidance: float,
) -> Tensor:
    """The real model's x_0 with guidance: uncond + guidance * (cond - uncond); 1 is none."""
    if guidance == 1:
        return clean_of(model, noisy, levels, text, layout)
    texts = torch.cat([text, uncond.expand_as(text)])
    both = clean_of(model, noisy.repeat(2, 1, 1), levels.repeat(2), texts, layout)
    cond, without = both.chunk(2)
    return without + guidance * (cond - without)


def score_gradient(generated: Tensor, real: Tensor, fakes: Sequence[Tensor]) -> Tensor:
    """The normalised difference of scores, without gradient; NaN where a model gives NaN.

    Args:
        generated: clips (B, L, P).
        real: what the real model makes of their noisy versions.
        fakes: what models of the generator's distribution make of them.
    """
    with torch.no_grad():
        size = (generated - real).abs().mean(dim=(1, 2), keepdim=True)  # (B, 1, 1)
        return (torch.stack(list(fakes)).mean(0) - real) / size.clamp(min=_SMALLEST)


def matching_loss(generated: Tensor, gradient: Tensor) -> Tensor:
    """A loss whose derivative by `generated` is gradient / numel."""
    target = (generated - gradient).detach()
    return 0.5 * (generated - target).square().mean()
