"""Rollouts: sampling as it will be done, and the gradient of the last step of every unit."""

from __future__ import annotations

import pytest
import torch
from sharp_backbone import BATCH, GRID, SCHEMES, config_for, distance, draw, prompt, sharp_backbone
from torch import Tensor

from videoar.next_unit import NextUnitTransformer, UnitLayout, cube, frame, sample_units
from videoar.next_unit.flow import add_noise, clean_from, sampling_levels
from videoar.next_unit.functional_cache import FunctionalCache, run_units
from videoar.next_unit.rollout import finished, last_steps, roll_out
from videoar.next_unit.sampling import unit_noise

EQUAL, WRONG = 1e-9, 1e-2
LEVELS = sampling_levels(4)
SEEDS = [5, 6]
schemes = pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
windows = pytest.mark.parametrize(("window", "sink"), [(None, 0), (1, 1)])


def noise_of(layout: UnitLayout, width: int, steps: int = 4) -> Tensor:
    """What `sample_units` draws, as (steps, B, L, width)."""
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    like = torch.empty(0, dtype=torch.float64)
    units = [torch.stack([unit_noise(generators, n, width, like) for _ in range(steps)]) for n in layout.lengths]
    return torch.cat(units, dim=2)


@windows
@schemes
@torch.no_grad()
def test_all_steps_are_what_sampling_does(scheme, window, sink):
    model, layout = sharp_backbone(config_for(scheme)), scheme.on(GRID)
    text, options = prompt(model.config), {"window": window, "sink": sink}
    sampled = sample_units(model, text, layout, seeds=SEEDS, **options)
    expected = torch.cat([unit.tokens for unit in sampled], dim=1)
    rolled = roll_out(model, text, layout, noise_of(layout, model.config.patch_width), LEVELS, **options)
    assert rolled.level == LEVELS[-1]
    assert distance(finished(model, text, rolled), expected) < EQUAL
    assert distance(last_steps(model, text, rolled), expected) < EQUAL
    other = roll_out(model, text, layout, noise_of(layout, model.config.patch_width)[:3], LEVELS, **options)
    assert distance(finished(model, text, other), expected) > WRONG, "an earlier exit is seen"


def one_unit_at_a_time(
    model: NextUnitTransformer, text: Tensor, layout: UnitLayout, noise: Tensor, *, leak: bool = False, **options
) -> Tensor:
    """The definition: steps before the last and the clean pass without gradient, the last with it."""
    cache, parts = FunctionalCache(layout, **options), []

    def flow(x: Tensor, level: float, unit: int):
        timesteps = torch.full((BATCH, 1), 1000 * level, dtype=torch.float64)
        return run_units(model, x, timesteps, text, cache, (unit,))

    for unit in range(len(layout.units)):
        steps = noise[:, :, layout.within(unit)]
        x = steps[0]
        for index, level in enumerate(LEVELS[: len(noise)]):
            final = index == len(noise) - 1
            with torch.set_grad_enabled(final or leak):
                x = clean_from(x, flow(x, level, unit).flow, level)
                x = x if final else add_noise(x, steps[index + 1], LEVELS[index + 1])
        parts.append(x)
        with torch.no_grad():
            cache = cache.commit(flow(x, 0.0, unit).keys)
    return torch.cat(parts, dim=1)


def gradient(model: NextUnitTransformer, clip: Tensor) -> Tensor:
    model.zero_grad()
    (clip * draw(4, *clip.shape)).sum().backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("steps", [1, 2, 4])
@schemes
def test_the_gradient_is_that_of_the_last_step_of_every_unit(scheme, steps):
    model, layout = sharp_backbone(config_for(scheme)), scheme.on(GRID)
    text, noise = prompt(model.config), draw(1, steps, BATCH, layout.length, model.config.patch_width)
    expected = one_unit_at_a_time(model, text, layout, noise, window=2, sink=1)
    rolled = roll_out(model, text, layout, noise, LEVELS, window=2, sink=1)
    assert not rolled.clean.requires_grad and not rolled.noisy.requires_grad
    found = last_steps(model, text, rolled)
    assert distance(found, expected) < EQUAL
    right = gradient(model, expected)
    assert distance(gradient(model, found), right) < EQUAL
    if steps > 1:
        leaked = gradient(model, one_unit_at_a_time(model, text, layout, noise, leak=True, window=2, sink=1))
        assert distance(leaked, right) > WRONG, "a gradient through earlier steps is seen"


def test_checkpoints_do_not_change_the_gradient():
    model, layout = sharp_backbone(config_for(cube())).train(), cube().on(GRID)
    text, noise = prompt(model.config), draw(1, 2, BATCH, layout.length, model.config.patch_width)
    found = []
    for model.checkpoint_blocks in (False, True):
        found.append(gradient(model, last_steps(model, text, roll_out(model, text, layout, noise, LEVELS))))
    assert torch.equal(*found)


@torch.no_grad()
def test_one_unit_is_a_rollout_too():
    scheme = cube(1, 1, 1)
    model, layout = sharp_backbone(config_for(scheme)), scheme.on(GRID)
    text, noise = prompt(model.config), draw(1, 1, BATCH, layout.length, model.config.patch_width)
    rolled = roll_out(model, text, layout, noise, LEVELS)
    flow = model(noise[0], torch.full((BATCH,), 1000.0), text, layout)
    assert distance(finished(model, text, rolled), noise[0] - flow) < EQUAL


@pytest.mark.parametrize(
    ("shape", "levels", "said"), [((4, 2, 60, 3), 3, "a level for each of 4"), ((4, 2, 59, 3), 4, "shape")]
)
def test_what_does_not_fit_is_named(shape, levels, said):
    model, layout = sharp_backbone(config_for(frame())), frame().on(GRID)
    shape = (*shape[:3], model.config.patch_width)
    with pytest.raises(ValueError, match=f"roll_out: expected .*{said}"):
        roll_out(model, prompt(model.config), layout, torch.zeros(shape), LEVELS[:levels])
