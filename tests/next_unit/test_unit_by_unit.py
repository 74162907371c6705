"""Units, masks, positions and cache together: one pass equals unit by unit, and errors are seen."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from sharp_backbone import BATCH, GRID, SCHEMES, clip, config_for, distance, noise_levels, prompt, sharp_backbone
from torch import Tensor

from videoar.next_unit import UnitLayout, UnitScheme, cube
from videoar.next_unit.transformer import NextUnitTransformer
from videoar.next_unit.unit_cache import UnitCache

EQUAL, WRONG = 1e-10, 1e-2
schemes = pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
windows = pytest.mark.parametrize(("window", "sink"), [(None, 0), (0, 0), (1, 0), (1, 1), (2, 2)])


def models(scheme: UnitScheme) -> tuple[NextUnitTransformer, UnitLayout]:
    return sharp_backbone(config_for(scheme)), scheme.on(GRID)


@torch.no_grad()
def one_pass(model: NextUnitTransformer, layout: UnitLayout, **options) -> Tensor:
    text, levels = prompt(model.config), noise_levels(layout)
    return model(clip(layout, model.config), levels, text, layout, direction="forward", **options)


@torch.no_grad()
def unit_by_unit(
    model: NextUnitTransformer,
    layout: UnitLayout,
    *,
    history: Tensor | None = None,
    relative: bool = False,
    start: Callable[[int], int] = lambda unit: 0,
    skip: Callable[[int], bool] = lambda unit: False,
    window: int | None = None,
    sink: int = 0,
) -> Tensor:
    """Every unit through the cache; with a clean history it is rewritten before it is committed."""
    text = model.encode_text(prompt(model.config))
    tokens, levels = clip(layout, model.config), noise_levels(layout)
    options = {"window": window, "sink": sink, "relative": relative, "dtype": torch.float64}
    cache = UnitCache(model.config, layout, BATCH, **options)
    parts = []
    for unit in range(len(layout.units)):
        here = layout.within(unit)
        # After a skipped unit the next one is another, unless positions are given.
        skipped = cache.committed != unit
        where = {"positions": layout.positions(start(unit))[here]} if skipped else {"start": start(unit)}
        parts.append(model.step(tokens[:, here], levels[:, unit], text, layout, unit, cache, **where))
        if history is not None:
            model.step(history[:, here], torch.zeros(BATCH), text, layout, unit, cache, **where)
        cache.rollback() if skip(unit) else cache.commit()
    return torch.cat(parts, dim=1)


@windows
@schemes
def test_one_masked_pass_equals_cached_units(scheme, window, sink):
    model, layout = models(scheme)
    found = unit_by_unit(model, layout, window=window, sink=sink)
    assert distance(found, one_pass(model, layout, window=window, sink=sink)) < EQUAL


@pytest.mark.parametrize(("window", "sink"), [(None, 0), (1, 1)])
@schemes
def test_teacher_forcing_equals_units_rewritten_until_clean(scheme, window, sink):
    model, layout = models(scheme)
    history = clip(layout, model.config, seed=9)
    options = {"window": window, "sink": sink}
    forced = one_pass(model, layout, history=history, **options)
    assert distance(unit_by_unit(model, layout, history=history, **options), forced) < EQUAL
    assert distance(unit_by_unit(model, layout, **options), forced) > WRONG, "a unit committed noisy is seen"


@schemes
def test_relative_positions_change_nothing_while_nothing_is_dropped_in_between(scheme):
    model, layout = models(scheme)
    for options in ({}, {"window": 1}):
        expected = one_pass(model, layout, **options)
        assert distance(unit_by_unit(model, layout, relative=True, **options), expected) < EQUAL


@schemes
def test_the_text_is_read(scheme):
    model, layout = models(scheme)
    tokens, levels = clip(layout, model.config), noise_levels(layout)
    with torch.no_grad():
        other = model(tokens, levels, prompt(model.config, seed=7), layout, direction="forward")
    assert distance(other, one_pass(model, layout)) > WRONG


def test_zeros_that_fill_up_the_text_are_attended():
    model, layout = models(cube())
    short = prompt(model.config)
    whole = torch.nn.functional.pad(short, (0, 0, 0, model.config.text_len - short.shape[1]))
    tokens, levels = clip(layout, model.config), noise_levels(layout)
    with torch.no_grad():
        assert torch.equal(model(tokens, levels, short, layout), model(tokens, levels, whole, layout))


@schemes
def test_a_wrong_position_is_seen(scheme):
    model, layout = models(scheme)
    right = one_pass(model, layout)
    wrong = unit_by_unit(model, layout, start=lambda unit: int(unit > 0))
    later = layout.offsets[1]
    assert distance(wrong[:, :later], right[:, :later]) < EQUAL
    assert distance(wrong[:, later:], right[:, later:]) > WRONG


@schemes
def test_a_leaked_later_unit_is_seen(scheme):
    model, layout = models(scheme)
    text = prompt(model.config)
    with torch.no_grad():
        leaked = model(clip(layout, model.config), noise_levels(layout), text, layout, direction="full")
    found, last = unit_by_unit(model, layout), layout.offsets[-2]
    assert distance(leaked[:, :last], found[:, :last]) > WRONG


@schemes
def test_a_dropped_unit_is_seen(scheme):
    model, layout = models(scheme)
    wrong, right = unit_by_unit(model, layout, skip=lambda unit: unit == 0), one_pass(model, layout)
    later = layout.offsets[1]
    assert distance(wrong[:, later:], right[:, later:]) > WRONG


@pytest.mark.parametrize("scheme", [s for name, s in SCHEMES.items() if name != "key_detail"], ids=str)
def test_a_window_is_seen(scheme):
    model, layout = models(scheme)
    last = layout.offsets[-2]
    windowed, right = unit_by_unit(model, layout, window=1), one_pass(model, layout)
    assert distance(windowed[:, last:], right[:, last:]) > WRONG


@schemes
def test_a_wrong_timestep_of_one_unit_changes_it_and_what_follows(scheme):
    model, layout = models(scheme)
    levels = noise_levels(layout)
    levels[:, 1] += 100
    with torch.no_grad():
        other = model(clip(layout, model.config), levels, prompt(model.config), layout, direction="forward")
    right, first = one_pass(model, layout), layout.offsets[1]
    assert distance(other[:, :first], right[:, :first]) < EQUAL
    assert distance(other[:, layout.within(1)], right[:, layout.within(1)]) > WRONG


def test_one_timestep_for_all_is_the_same_as_one_a_unit():
    model, layout = models(cube())
    tokens, text = clip(layout, model.config), prompt(model.config)
    level = torch.tensor([17.5, 980.25])
    with torch.no_grad():
        shared = model(tokens, level, text, layout)
        each = model(tokens, level[:, None].expand(-1, len(layout.units)), text, layout)
    assert distance(shared, each) < EQUAL


def test_a_stream_of_clips_fits_its_window():
    """Three clips, clip after clip in time: memory stays, and the oldest units go."""
    model, layout = models(cube())
    cache = UnitCache(model.config, layout, BATCH, window=3, sink=1, relative=True, dtype=torch.float64)
    text, tokens = model.encode_text(prompt(model.config)), clip(layout, model.config)
    with torch.no_grad():
        for number in range(3 * len(layout.units)):
            shot, unit = divmod(number, len(layout.units))
            here, start = layout.within(unit), shot * GRID[0]
            flow = model.step(tokens[:, here], torch.zeros(BATCH), text, layout, unit, cache, start=start)
            cache.commit()
            assert flow.isfinite().all() and cache.kv.length <= cache.kv.capacity
    assert cache.kv.units == 3
    assert cache.kv.view(0).positions[:, 0].max() < 2 * GRID[0], "dropped time is closed up"


def test_modulation_is_never_expanded_to_tokens():
    scheme = cube()
    config = config_for(scheme, ffn_width=48)
    layout = scheme.on((8, 6, 10))
    model = sharp_backbone(config)
    largest = Largest()
    with torch.no_grad(), largest:
        model(clip(layout, config), noise_levels(layout), prompt(config), layout, direction="forward")
    tokens = BATCH * layout.length * config.width
    assert tokens <= largest.numel < 2 * tokens, "at most one tensor of all tokens at a time, and no six-fold one"


class Largest(torch.utils._python_dispatch.TorchDispatchMode):
    """Remembers the largest tensor that any operator returned."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(out):
            if isinstance(tensor, Tensor):
                self.numel = max(self.numel, tensor.numel())
        return out


def test_gradients_reach_every_parameter_with_and_without_checkpoints():
    scheme = SCHEMES["multiscale"]
    model, layout = models(scheme)
    model.train()
    tokens, text, levels = clip(layout, model.config), prompt(model.config), noise_levels(layout)
    gradients = []
    for model.checkpoint_blocks in (False, True):
        model.zero_grad()
        out = model(tokens, levels, text, layout, history=clip(layout, model.config, seed=9))
        out.square().sum().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient is not None and gradient.abs().max() > 0, name
        assert torch.equal(gradient, gradients[1][name]), name


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda m, u, x, t: m(x[:, 1:], t, None, u), r"forward: expected tokens of shape \(B, 60, 12\)"),
        (lambda m, u, x, t: m(x, t[:, 1:], None, u), r"forward: expected timesteps of shape \(B,\) or \(B, 8\)"),
        (lambda m, u, x, t: m.step(x, t[:, 0], None, u, 0, None), r"step: expected tokens of shape \(B, 12, 12\)"),
        (lambda m, u, x, t: m.encode_text(torch.zeros(2, 6, 10)), r"encode_text: expected text of shape"),
        (lambda m, u, x, t: UnitCache(m.config, u, 2, window=-1), "UnitCache: expected window and sink >= 0"),
    ],
)
def test_what_does_not_fit_is_named(call, said):
    model, layout = models(cube())
    with pytest.raises(ValueError, match=said):
        call(model, layout, clip(layout, model.config), noise_levels(layout))


def test_levels_without_embeddings_are_refused():
    model, _ = models(cube())
    layout = SCHEMES["multiscale"].on(GRID)
    with pytest.raises(ValueError, match=r"expected units of 1 level\(s\), as configured, got 3"):
        model(clip(layout, model.config), noise_levels(layout), prompt(model.config), layout)
