"""A clip, or several in a row, as the generator makes them from its own units, with the gradient of one step of each.

Unit after unit is denoised by a few steps and kept clean, all without gradient. The gradient flows through the last
step of every unit and through nothing before it: not through earlier steps, not through the cache. So once the finished
units are known, the last steps of all units are independent, and one pass with gradient does them together.

Source: paper U, Sec. 3.3; the rollouts of Self-Forcing, whose exit step is random too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from videoar.next_unit.attention import TextKeys
from videoar.next_unit.flow import add_noise, clean_from
from videoar.next_unit.functional_cache import FunctionalCache, UnitPass, run_units
from videoar.next_unit.layout import UnitLayout
from videoar.next_unit.transformer import NextUnitTransformer


class Rollout(NamedTuple):
    """Clips up to the last step of their units.

    Attributes:
        noisy: what that step is given (B, L, patch_width).
        level: its noise level.
        clean: what it makes of it, of all units but the last (B, L - n, patch_width).
        cache: the same units.
    """

    noisy: Tensor
    level: float
    clean: Tensor
    cache: FunctionalCache


@torch.no_grad()
def roll_out(
    model: NextUnitTransformer,
    text: Tensor | TextKeys,
    layout: UnitLayout,
    noise: Tensor,
    levels: Sequence[float],
    *,
    window: int | None = None,
    sink: int = 0,
) -> Rollout:
    """Denoises unit after unit, each given its predecessors clean; of the last unit all but the last step.

    Args:
        model: the generator.
        text: features (B, n, text_width), or what `encode_text` made of them.
        layout: the units of a clip, or of several in a row (`UnitLayout.repeated`).
        noise: (steps, B, L, patch_width): that of step i has level i.
        levels: descending from 1, at least as many as steps of noise. Fewer steps than levels leave the clip early.
        window: units before its own that a unit sees; None: all.
        sink: first units that every unit sees besides.

    Raises:
        ValueError: noise of another shape, or more steps than levels.
    """
    _check(model, layout, noise, levels)
    text = text if isinstance(text, TextKeys) else model.encode_text(text)
    levels = list(levels[: len(noise)])
    cache = FunctionalCache(layout, window=window, sink=sink)
    last = len(layout.units) - 1
    noisy, clean = [], []
    for unit in range(last + 1):
        steps = noise[:, :, layout.within(unit)]
        x = steps[0]
        for index, level in enumerate(levels):
            final = index == len(levels) - 1
            if final:
                noisy.append(x)
            if final and unit == last:
                break
            if index == 0 and unit > 0:
                found, cache = _after(model, text, cache, clean[-1], x, level)
            else:
                found = run_units(model, x, _timestep(x, level), text, cache, (unit,)).flow
            x = clean_from(x, found.to(x), level)
            if not final:
                x = add_noise(x, steps[index + 1], levels[index + 1])
        else:
            clean.append(x)
    if last and cache.units < last:  # one step: the last clean unit had no pass to share
        cache = cache.commit(run_units(model, clean[-1], _timestep(clean[-1], 0.0), text, cache, (last - 1,)).keys)
    done = torch.cat(clean, dim=1) if clean else noise[0, :, :0]
    return Rollout(torch.cat(noisy, dim=1), levels[-1], done, cache)


def last_steps(model: NextUnitTransformer, text: Tensor | TextKeys, rollout: Rollout, first: int = 0) -> Tensor:
    """The tokens (B, n, patch_width) that the last step of every unit makes: with gradient, in one pass.

    Args:
        model: the generator that rolled out.
        text: as for `roll_out`; features let the gradient reach the text's projections.
        rollout: its result.
        first: unit to begin with.
    """
    layout = rollout.cache.layout
    x = rollout.noisy[:, layout.offsets[first] :]
    units = range(first, len(layout.units))
    found = run_units(model, x, _timestep(x, rollout.level), text, rollout.cache, units, alone=True)
    return clean_from(x, found.flow.to(x), rollout.level)


@torch.no_grad()
def finished(model: NextUnitTransformer, text: Tensor | TextKeys, rollout: Rollout) -> Tensor:
    """All tokens (B, L, patch_width) without gradient: the last step of the one unit that lacks it."""
    layout = rollout.cache.layout
    unit = len(layout.units) - 1
    x = rollout.noisy[:, layout.within(unit)]
    found = run_units(model, x, _timestep(x, rollout.level), text, rollout.cache, (unit,)).flow
    return torch.cat([rollout.clean, clean_from(x, found.to(x), rollout.level)], dim=1)


def _after(
    model: NextUnitTransformer, text: TextKeys, cache: FunctionalCache, clean: Tensor, x: Tensor, level: float
) -> tuple[Tensor, FunctionalCache]:
    """The clean pass of a unit and the first step of the next one, which sees it, as one pass."""
    units = cache.units, cache.units + 1
    timesteps = torch.cat([_timestep(clean, 0.0), _timestep(x, level)], dim=1)
    found: UnitPass = run_units(model, torch.cat([clean, x], dim=1), timesteps, text, cache, units)
    return found.flow[:, clean.shape[1] :], cache.commit(found.keys)


def _timestep(x: Tensor, level: float) -> Tensor:
    return torch.full((x.shape[0], 1), 1000 * level, dtype=torch.float64, device=x.device)


def _check(model: NextUnitTransformer, layout: UnitLayout, noise: Tensor, levels: Sequence[float]) -> None:
    expected = (layout.length, model.config.patch_width)
    if noise.ndim != 4 or not len(noise) or tuple(noise.shape[2:]) != expected:
        raise ValueError(
            f"roll_out: expected noise of shape (steps, B, {expected[0]}, {expected[1]}), got {tuple(noise.shape)}"
        )
    if len(levels) < len(noise):
        raise ValueError(f"roll_out: expected a level for each of {len(noise)} steps, got {len(levels)}")
