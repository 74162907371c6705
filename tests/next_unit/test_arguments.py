"""Arguments of the public functions: what makes no sense is refused, and named."""

from __future__ import annotations

import json
from functools import cache

import numpy as np
import pytest
import torch
from sharp_backbone import GRID as RAGGED
from sharp_backbone import config_for, sharp_backbone
from tiny_pipeline import BACKBONE, GRID, tiny_pipeline

from videoar.next_unit import (
    SamplingOptions,
    UnitCache,
    UnitDefaults,
    UnitPipeline,
    cube,
    frame,
    from_sequence,
    key_detail,
    multiscale,
    parse_units,
    patch_grid,
)
from videoar.next_unit.flow import sampling_levels

LAYOUT = cube().on(GRID)
NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: cube(2.7, 2, 2), "cube: expected a as int, got 2.7"),
        (lambda: cube(2, 2, True), "cube: expected c as int, got True"),
        (lambda: key_detail(2.9), "key_detail: expected k as int, got 2.9"),
        (lambda: multiscale([1, 2]), r"multiscale: expected scales as \(h, w\) or \(t, h, w\), got \[1, 2\]"),
        (lambda: multiscale([(1, 1.5)]), "multiscale: expected sizes as int, got 1.5"),
        (lambda: frame().on((4.9, 3, 3)), "UnitScheme.on: expected grid as int, got 4.9"),
        (lambda: parse_units(None), "parse_units: expected .*, got None"),
        (lambda: LAYOUT.sees(3, window=1.5), "UnitLayout.sees: expected window as int, got 1.5"),
        (lambda: LAYOUT.sees(1.0), "UnitLayout.sees: expected unit as int, got 1.0"),
        (lambda: LAYOUT.positions(1.5), "UnitLayout.positions: expected start as int, got 1.5"),
        (lambda: LAYOUT.repeated(1.5), "UnitLayout.repeated: expected clips as int, got 1.5"),
        (lambda: UnitCache(BACKBONE, LAYOUT, 1, window=1.5), "UnitCache: expected window as int, got 1.5"),
        (lambda: sampling_levels(2.5), "sampling_levels: expected steps as int, got 2.5"),
        (lambda: sampling_levels(4, INF), "sampling_levels: expected a finite shift, got inf"),
        (lambda: sampling_levels(4, "5"), "sampling_levels: expected shift as float, got '5'"),
        (lambda: SamplingOptions(guidance="2"), "SamplingOptions: expected guidance as float, got '2'"),
        (lambda: SamplingOptions(guidance=NAN), "SamplingOptions: expected a finite guidance, got nan"),
        (lambda: UnitDefaults(guidance=INF), "expected a finite guidance, got inf"),
        (lambda: UnitDefaults(window=-3), "UnitDefaults: expected window >= 0, got -3"),
        (lambda: UnitDefaults(window=1.5), "UnitDefaults: expected window as int, got 1.5"),
        (lambda: UnitDefaults(sink=-2), "UnitDefaults: expected sink >= 0, got -2"),
        (lambda: UnitDefaults(sink=None), "UnitDefaults: expected sink as int, got None"),
        (lambda: UnitDefaults(history=-1), "UnitDefaults: expected history >= 0, got -1"),
        (lambda: UnitDefaults(fps=0), "UnitDefaults: expected fps > 0, got 0"),
        (lambda: UnitDefaults(fps=NAN), "UnitDefaults: expected a finite fps, got nan"),
        (lambda: UnitDefaults(grid=(5, 4.5, 4)), "UnitDefaults: expected grid as int, got 4.5"),
        (lambda: patch_grid(torch.zeros(1, 16, 5, 4), (1, 1, 1)), r"patch_grid: expected latents \(B, C, T, H, W\)"),
        (lambda: from_sequence(torch.zeros(1, 24, 15), LAYOUT, (1, 2, 2)), r"tokens of shape \(B, 24, 4 \* C\), got"),
        (lambda: from_sequence(torch.zeros(24, 16), LAYOUT, (1, 1, 1)), r"tokens of shape \(B, 24, 1 \* C\), got"),
        (lambda: pipeline().generate("red"), "UnitPipeline: expected prompts as a list, got 'red'"),
        (lambda: next(pipeline().stream("red")), "UnitPipeline: expected prompts as a list, got 'red'"),
        (lambda: pipeline().generate([]), "UnitPipeline: expected at least one prompt, got none"),
        (lambda: pipeline().generate(["red"], frames=2.5), "UnitPipeline: expected frames as int, got 2.5"),
        (lambda: pipeline().generate(["red"], seed=1.5), "sample_units: expected seeds as int, got 1.5"),
        (lambda: pipeline().generate(["red"], seed="1"), "sample_units: expected seeds as int, got '1'"),
        (lambda: pipeline().generate(["red"], seed=1 << 64), "sample_units: expected seeds of 64 bits"),
        (lambda: pipeline().generate(["red"], window=-1), "UnitDefaults: expected window >= 0, got -1"),
    ],
)
def test_what_makes_no_sense_is_refused(call, said):
    with pytest.raises((ValueError, TypeError), match=said):
        call()


def test_whole_numbers_of_numpy_serve():
    whole, number = np.int64(2), np.float64(1.0)
    assert cube(whole, 2, 2) == cube() and LAYOUT.sees(whole, window=whole) == (0, 1)
    defaults = UnitDefaults(grid=np.array([5, 4, 4]), steps=whole, window=whole, guidance=number)
    assert defaults == UnitDefaults(steps=2, window=2) and json.loads(json.dumps(vars(defaults)))["steps"] == 2
    expected = pipeline().generate(["red"], seed=2, frames=1)
    for seed in (whole, [whole], np.array([2]), torch.tensor([2])):
        assert torch.equal(pipeline().generate(["red"], seed=seed, frames=np.int64(1)), expected)


@pytest.mark.parametrize(
    ("text", "said"),
    [('{"foo": 1}', "foo"), ("[1]", "mapping"), ('{"window": 1.5}', "expected window as int, got 1.5"), ("{", "")],
)
def test_a_foreign_sampling_json_is_named(tmp_path, text, said):
    (tmp_path / "sampling.json").write_text(text)
    with pytest.raises(ValueError, match=f"sampling.json: .*{said}"):
        UnitDefaults.read(tmp_path / "sampling.json")


def test_a_pipeline_reads_its_sampling_json_so(tmp_path):
    pipeline().save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "sampling.json").write_text('{"foo": 1}')
    with pytest.raises(ValueError, match=r"sampling.json: .*foo"):
        UnitPipeline.from_pretrained(tmp_path / "model")


def test_a_step_asks_for_the_next_unit():
    model, layout = sharp_backbone(config_for(cube())), cube().on(RAGGED)
    config, cache = model.config, model.new_cache(layout, 1, window=2, clips=2)
    text, zero = torch.zeros(1, config.text_len, config.text_width).double(), torch.zeros(1, dtype=torch.float64)

    def step(unit: int, **options) -> None:
        length = layout.lengths[unit % len(layout.units)]
        model.step(torch.zeros(1, length, config.patch_width).double(), zero, text, layout, unit, cache, **options)

    for wrong in (-1, 8, 9):
        with pytest.raises(ValueError, match=rf"step: expected unit in 0..7, got {wrong}"):
            step(wrong)
    with pytest.raises(ValueError, match="step: expected unit 0, the next to commit, got 3"):
        step(3)
    for clip in range(2):
        for unit in range(8):
            with pytest.raises(ValueError, match=f"expected unit {unit}"):
                step((unit + 1) % 8, start=clip * layout.grid[0])
            step(unit, start=clip * layout.grid[0])
            cache.commit()
    cache.reset()
    step(0)
    step(3, positions=layout.positions()[layout.within(3)])


@cache
def pipeline() -> UnitPipeline:
    return tiny_pipeline(steps=1)
