"""Units against definitions written cell by cell from the paper: partitions, orders, positions and masks."""

from __future__ import annotations

import itertools
from math import prod

import pytest
import torch

from videoar.next_unit import cube, frame, from_sequence, key_detail, multiscale, parse_units, patch_grid, to_sequence

GRIDS = [(4, 4, 4), (1, 1, 1), (5, 3, 7), (3, 5, 2), (2, 1, 4)]


def part(i: int, size: int, parts: int) -> int:
    """Which of about equal parts cell i falls into, the longer ones first: dealt out one by one."""
    parts = min(parts, size)
    lengths = [0] * parts
    for dealt in range(size):
        lengths[dealt % parts] += 1
    return next(p for p in range(parts) if i < sum(lengths[: p + 1]))


def cube_step(cell, grid, cuts):
    a, b, c = (part(i, size, parts) for i, size, parts in zip(cell, grid, cuts, strict=True))
    _, high, wide = (min(size, parts) for size, parts in zip(grid, cuts, strict=True))
    return (a * high + b) * wide + c


# scheme, and the step in which the paper generates cell (t, h, w) of a grid
FLAT = {
    "frame": (frame(), lambda cell, grid: cell[0]),
    "key_detail(1)": (key_detail(1), lambda cell, grid: 0),
    "key_detail(3)": (key_detail(3), lambda cell, grid: cell[0] % 3),
    "cube(2, 2, 2)": (cube(), lambda cell, grid: cube_step(cell, grid, (2, 2, 2))),
    "cube(1, 2, 2)": (cube(1, 2, 2), lambda cell, grid: cube_step(cell, grid, (1, 2, 2))),
    "cube(4, 4, 4)": (cube(4, 4, 4), lambda cell, grid: cube_step(cell, grid, (4, 4, 4))),
}
flat = pytest.mark.parametrize("name", FLAT)
grids = pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: "x".join(map(str, grid)))


def cells_of(grid):
    return list(itertools.product(*map(range, grid)))


@grids
@flat
def test_every_cell_is_generated_once_in_the_papers_step(name, grid):
    scheme, step = FLAT[name]
    layout = scheme.on(grid)
    cells = cells_of(grid)
    assert sorted(layout.permutation.tolist()) == list(range(prod(grid)))
    generated = [cells[cell] for cell in layout.permutation.tolist()]
    assert [step(cell, grid) for cell in generated] == layout.unit_ids.tolist()
    for unit in range(len(layout.units)):
        inside = generated[layout.within(unit)]
        assert inside == sorted(inside), "cells of a unit are row-major"
    assert generated == [tuple(p) for p in layout.positions().tolist()], "a token keeps its place in the grid"


@grids
@flat
def test_lengths_are_those_of_the_steps_and_no_unit_is_empty(name, grid):
    scheme, step = FLAT[name]
    layout = scheme.on(grid)
    counts = [0] * len(layout.units)
    for cell in cells_of(grid):
        counts[step(cell, grid)] += 1
    assert tuple(counts) == layout.lengths and min(counts) > 0
    assert layout.length == prod(grid) == layout.offsets[-1]


SCHEMES = [scheme for scheme, _ in FLAT.values()] + [multiscale([(1, 1)]), multiscale([(1, 1, 1), (1, 1, 2)])]


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("grid", [(4, 4, 4), (5, 3, 7)])
def test_permutation_and_inverse_undo_each_other(scheme, grid):
    layout = scheme.on(grid)
    every = torch.arange(layout.length)
    assert torch.equal(layout.permutation[layout.inverse], every)
    assert torch.equal(layout.inverse[layout.permutation], every)


def test_a_cube_is_about_a_half_along_every_axis():
    layout = cube().on((5, 3, 7))
    assert [unit.shape for unit in layout.units] == list(itertools.product((3, 2), (2, 1), (4, 3)))
    assert layout.starts == (0,) * 4 + (3,) * 4


def test_more_cubes_than_cells_are_as_many_as_cells():
    assert len(cube(4, 4, 4).on((3, 5, 2)).units) == 3 * 4 * 2
    assert len(key_detail(9).on((4, 1, 1)).units) == 4


def test_scales_are_generated_whole_and_end_with_the_grid():
    layout = multiscale([(1, 1), (2, 3)]).on((5, 3, 7))
    assert layout.levels == ((5, 1, 1), (5, 2, 3), (5, 3, 7))
    assert layout.lengths == (5, 30, 105)
    assert torch.equal(layout.permutation, torch.arange(140))
    assert multiscale([(1, 1), (2, 3), (3, 7)]).on((5, 3, 7)) == layout
    assert multiscale([(1, 1, 1), (3, 2, 4)]).on((5, 3, 7)).lengths == (1, 24, 105)


def test_coarse_scales_are_spread_over_the_grid():
    layout = multiscale([(1, 1, 1), (3, 2, 4)]).on((5, 3, 7))
    expected = [(0, 0, 0)]
    expected += [(round(t * 5 / 3), round(h * 3 / 2), round(w * 7 / 4)) for t, h, w in cells_of((3, 2, 4))]
    assert [tuple(p) for p in layout.positions().tolist()] == expected + cells_of((5, 3, 7))


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_a_later_clip_of_a_stream_stands_later_in_time_only(scheme):
    layout = scheme.on((4, 3, 2))
    assert torch.equal(layout.positions(12), layout.positions() + torch.tensor([12, 0, 0]))


def dense(layout, rule):
    units = layout.unit_ids.tolist()
    return torch.tensor([[rule(q, k) for k in units] for q in units])


def near(q, k, window, sink, last):
    """Whether q sees k of its past, going up to `last`."""
    return k <= q and (window is None or q - k <= window or k < sink)


@pytest.mark.parametrize("scheme", [frame(), key_detail(3), cube(2, 2, 2), multiscale([(1, 1), (2, 2)])], ids=str)
@pytest.mark.parametrize(("window", "sink"), [(None, 0), (0, 0), (1, 0), (1, 1), (2, 2)])
def test_masks_are_what_units_say(scheme, window, sink):
    layout = scheme.on((5, 3, 2))
    last = len(layout.units) - 1
    forward = dense(layout, lambda q, k: near(q, k, window, sink, last))
    backward = dense(layout, lambda q, k: near(last - q, last - k, window, sink, last))
    options = {"window": window, "sink": sink}
    assert torch.equal(layout.mask("forward", **options).to_dense(), forward)
    assert torch.equal(layout.mask("backward", **options).to_dense(), backward)
    assert torch.equal(layout.mask("full", **options).to_dense(), forward | backward)
    own = dense(layout, lambda q, k: q == k)
    forcing = torch.cat([torch.cat([forward, torch.zeros_like(own)], 1), torch.cat([forward & ~own, own], 1)])
    assert torch.equal(layout.teacher_forcing(**options).to_dense(), forcing)


def test_full_is_all_to_all():
    assert cube().on((3, 3, 3)).mask("full").density == 1


@pytest.mark.parametrize(("window", "sink"), [(None, 0), (0, 0), (1, 0), (2, 1), (3, 9)])
def test_a_unit_is_conditioned_on_what_its_mask_row_shows(window, sink):
    layout = cube(2, 2, 2).on((3, 3, 3))
    visible = layout.mask(window=window, sink=sink).to_dense()
    for unit in range(len(layout.units)):
        row = visible[layout.offsets[unit]]
        seen = sorted({int(layout.unit_ids[key]) for key in row.nonzero()[:, 0]} - {unit})
        assert layout.sees(unit, window=window, sink=sink) == tuple(seen)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("patch", [(1, 1, 1), (1, 2, 2), (2, 1, 3)])
def test_sequences_hold_the_clip(scheme, patch):
    grid = (5, 3, 7)
    latents = torch.randn(2, 3, *(size * p for size, p in zip(grid, patch, strict=True)), dtype=torch.float64)
    layout = scheme.on(patch_grid(latents, patch))
    tokens = to_sequence(latents, layout, patch)
    assert tokens.shape == (2, layout.length, 3 * prod(patch))
    assert torch.equal(from_sequence(tokens, layout, patch), latents)
    token = layout.length // 2 if len(layout.levels) == 1 else layout.length - 1
    t, h, w = (i * p for i, p in zip(layout.positions()[token].tolist(), patch, strict=True))
    box = latents[:, :, t : t + patch[0], h : h + patch[1], w : w + patch[2]]
    assert torch.equal(tokens[:, token], box.movedim(1, -1).flatten(1)), "channels come last inside a patch"


def test_coarse_levels_are_averages_over_areas():
    latents = torch.randn(1, 2, 4, 8, 8, dtype=torch.float64)
    layout = multiscale([(2, 2)]).on((4, 4, 4))
    tokens = to_sequence(latents, layout, (1, 2, 2))[:, layout.within(0)]
    pooled = latents.unflatten(4, (4, 2)).unflatten(3, (4, 2)).mean((4, 6))  # (1, 2, 4, 4, 4)
    again = from_sequence(tokens, frame().on((4, 2, 2)), (1, 2, 2))
    torch.testing.assert_close(again, pooled, rtol=0, atol=1e-14)


@pytest.mark.parametrize("scheme", SCHEMES + [multiscale([(1, 1), (2, 3)])], ids=str)
def test_a_scheme_is_read_back_from_its_name(scheme):
    assert parse_units(str(scheme)) == scheme


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: key_detail(0), "key_detail: expected k >= 1, got 0"),
        (lambda: cube(2, 0, 2), "cube: expected at least one cube along every axis, got 2 x 0 x 2"),
        (lambda: multiscale([]), "multiscale: expected scales"),
        (lambda: multiscale([(1, 1), (1, 2, 2)]), "multiscale: expected scales"),
        (lambda: multiscale([(0, 1)]), "multiscale: expected sizes of at least 1"),
        (lambda: multiscale([(2, 2), (1, 3)]), r"multiscale: expected scales from coarse to fine, got \(2, 2\) before"),
        (lambda: multiscale([(4, 4)]).on((4, 2, 2)), r"multiscale: expected scales within the grid \(4, 2, 2\)"),
        (lambda: frame().on((4, 0, 2)), r"UnitScheme.on: expected a grid \(T, H, W\)"),
        (lambda: frame().on((4, 2)), r"UnitScheme.on: expected a grid \(T, H, W\)"),
        (lambda: frame().on((2, 1, 1)).sees(2), r"UnitLayout.sees: expected a unit in 0..1, got 2"),
        (lambda: frame().on((2, 1, 1)).sees(1, window=-1), "UnitLayout.sees: expected window and sink >= 0"),
        (lambda: frame().on((2, 1, 1)).mask("sideways"), "RangeMask.units: expected direction"),
        (lambda: parse_units("cube(2, 2)"), r"parse_units: expected .*, got 'cube\(2, 2\)'"),
        (lambda: parse_units("cube(0, 2, 2)"), "parse_units: 'cube.0, 2, 2.': cube: expected at least one cube"),
        (lambda: parse_units("key_detail(2x2)"), "parse_units: 'key_detail.2x2.': "),
        (lambda: patch_grid(torch.zeros(1, 2, 4, 3, 4), (1, 2, 2)), "patch_grid: expected latents"),
        (lambda: to_sequence(torch.zeros(1, 2, 4, 4, 4), frame().on((4, 4, 4)), (1, 2, 2)), "to_sequence: expected"),
        (
            lambda: from_sequence(torch.zeros(1, 7, 4), frame().on((2, 2, 2)), (1, 1, 1)),
            r"from_sequence: expected tokens of shape \(B, 8, 1 \* C\), got \(1, 7, 4\)",
        ),
    ],
)
def test_what_does_not_fit_is_named(call, said):
    with pytest.raises(ValueError, match=said):
        call()
