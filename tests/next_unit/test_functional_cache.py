"""The cache of training: as the one that is written in place, and safe to compute with twice."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from sharp_backbone import BATCH, GRID, SCHEMES, clip, config_for, distance, noise_levels, prompt, sharp_backbone
from torch import Tensor

from videoar.next_unit import UnitCache, UnitLayout, cube, frame
from videoar.next_unit.functional_cache import FunctionalCache, UnitKeys, run_units
from videoar.next_unit.transformer import NextUnitTransformer

EQUAL, WRONG = 1e-10, 1e-2
schemes = pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
windows = pytest.mark.parametrize(("window", "sink"), [(None, 0), (0, 0), (1, 0), (1, 1), (2, 2)])


def functional(
    model: NextUnitTransformer, layout: UnitLayout, history: Tensor, *, keep: bool = True, **options
) -> Tensor:
    """Every unit noisy, then clean, then committed; `keep=False` commits the noisy pass."""
    text, tokens, levels = prompt(model.config), clip(layout, model.config), noise_levels(layout)
    cache, parts = FunctionalCache(layout, **options), []
    for unit in range(len(layout.units)):
        here = layout.within(unit)
        found = run_units(model, tokens[:, here], levels[:, unit, None], text, cache, (unit,))
        parts.append(found.flow)
        if keep:
            clean = torch.zeros(BATCH, 1)
            found = run_units(model, history[:, here], clean, text, cache, (unit,))
        cache = cache.commit(found.keys)
    return torch.cat(parts, dim=1)


def in_place(model: NextUnitTransformer, layout: UnitLayout, history: Tensor, **options) -> Tensor:
    text, tokens, levels = prompt(model.config), clip(layout, model.config), noise_levels(layout)
    cache = UnitCache(model.config, layout, BATCH, dtype=torch.float64, **options)
    parts = []
    for unit in range(len(layout.units)):
        here = layout.within(unit)
        parts.append(model.step(tokens[:, here], levels[:, unit], text, layout, unit, cache))
        model.step(history[:, here], torch.zeros(BATCH), text, layout, unit, cache)
        cache.commit()
    return torch.cat(parts, dim=1)


@windows
@schemes
@torch.no_grad()
def test_it_equals_the_cache_written_in_place_and_one_pass(scheme, window, sink):
    model, layout = sharp_backbone(config_for(scheme)), scheme.on(GRID)
    history, options = clip(layout, model.config, seed=9), {"window": window, "sink": sink}
    found = functional(model, layout, history, **options)
    assert distance(found, in_place(model, layout, history, **options)) < EQUAL
    text, tokens, levels = prompt(model.config), clip(layout, model.config), noise_levels(layout)
    assert distance(found, model(tokens, levels, text, layout, history=history, **options)) < EQUAL
    if window != 0 or sink:
        noisy = functional(model, layout, history, keep=False, **options)
        assert distance(noisy, found) > WRONG, "a unit committed noisy is seen"
    if window is not None and len(layout.units) > window + sink + 1:
        assert distance(functional(model, layout, history), found) > WRONG, "units beyond the window are seen"


@windows
@schemes
@torch.no_grad()
def test_all_units_after_all_clean_ones_are_one_pass(scheme, window, sink):
    model, layout = sharp_backbone(config_for(scheme)), scheme.on(GRID)
    history, options = clip(layout, model.config, seed=9), {"window": window, "sink": sink}
    text, tokens, levels = prompt(model.config), clip(layout, model.config), noise_levels(layout)
    units, clean = range(len(layout.units)), torch.zeros(BATCH, 1)
    cache = FunctionalCache(layout, **options)
    for unit in units:
        cache = cache.commit(run_units(model, history[:, layout.within(unit)], clean, text, cache, (unit,)).keys)
    found = run_units(model, tokens, levels, text, cache, units, alone=True).flow
    expected = model(tokens, levels, text, layout, history=history, **options)
    assert distance(found, expected) < EQUAL
    together = run_units(model, tokens, levels, text, FunctionalCache(layout, **options), units).flow
    if window != 0 or sink:
        assert distance(together, expected) > WRONG, "units that see one another's noise are seen"


@torch.no_grad()
def test_a_clean_unit_and_the_next_one_share_a_pass():
    model, layout = sharp_backbone(config_for(cube())), cube().on(GRID)
    history, text = clip(layout, model.config, seed=9), prompt(model.config)
    tokens, levels = clip(layout, model.config), noise_levels(layout)
    empty, (n, m) = FunctionalCache(layout), layout.lengths[:2]
    alone = run_units(model, history[:, :n], torch.zeros(BATCH, 1), text, empty, (0,))
    after = run_units(model, tokens[:, n : n + m], levels[:, 1:2], text, empty.commit(alone.keys), (1,))
    both = torch.cat([history[:, :n], tokens[:, n : n + m]], dim=1)
    times = torch.cat([torch.zeros(BATCH, 1), levels[:, 1:2]], dim=1)
    shared = run_units(model, both, times, text, empty, (0, 1))
    assert distance(shared.flow[:, :n], alone.flow) < EQUAL
    assert distance(shared.flow[:, n:], after.flow) < EQUAL
    kept = empty.commit(shared.keys)
    assert kept.units == 1 and empty.units == 0 and empty.keys is None
    for one, other in zip(kept.keys, empty.commit(alone.keys).keys, strict=True):
        assert all(distance(x, y) < EQUAL for x, y in zip(one, other, strict=True))


def gradients(model: NextUnitTransformer, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def windowed_loss(model: NextUnitTransformer, layout: UnitLayout) -> Tensor:
    return functional(model, layout, clip(layout, model.config, seed=9), window=1, sink=1).square().sum()


@schemes
def test_checkpointed_blocks_have_the_same_gradient(scheme):
    model, layout = sharp_backbone(config_for(scheme)).train(), scheme.on(GRID)
    plain = gradients(model, windowed_loss(model, layout))
    model.checkpoint_blocks = True
    again = gradients(model, windowed_loss(model, layout))
    for name, gradient in plain.items():
        assert gradient.abs().max() > 0, name
        assert torch.equal(gradient, again[name]), name


def test_recomputing_with_a_cache_written_in_place_would_be_wrong():
    """The backward pass then finds the cache of the last unit, with keys and a window that no other unit saw."""
    model, layout = sharp_backbone(config_for(frame())).train(), frame().on(GRID)
    history = clip(layout, model.config, seed=9)
    # Its gradient needs what attention read, and no gradient of keys, which such a cache never has.
    weight = model.blocks[-1].self_attn.o.weight

    def gradient(way, checkpoints: bool) -> Tensor:
        model.checkpoint_blocks = checkpoints
        (found,) = torch.autograd.grad(way(model, layout, history, window=1, sink=1).square().sum(), weight)
        return found

    right = gradient(functional, False)
    assert distance(gradient(in_place, False), right) < EQUAL
    assert distance(gradient(functional, True), right) < EQUAL
    assert distance(gradient(in_place, True), right) > WRONG


def keys_of(model: NextUnitTransformer, cache: FunctionalCache, tokens: Tensor) -> UnitKeys:
    return run_units(model, tokens, torch.zeros(2, 1), prompt(model.config), cache, (0,)).keys


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda m, c, x: run_units(m, x, torch.zeros(2, 1), prompt(m.config), c, (1,)), "which unit 1 sees"),
        (lambda m, c, x: run_units(m, x, torch.zeros(2, 1), prompt(m.config), c, (0, 1)), "expected tokens of shape"),
        (lambda m, c, x: replace(c, layout=cube(1, 1, 1).on(GRID)).commit(keys_of(m, c, x)), "got 15"),
    ],
)
def test_what_does_not_fit_is_named(call, said):
    model, layout = sharp_backbone(config_for(frame())), frame().on(GRID)
    with pytest.raises(ValueError, match=said):
        call(model, FunctionalCache(layout), clip(layout, model.config)[:, :15])
