"""Stage 1 of paper U's training: what is trained is what is sampled, for every unit; no switch moves a gradient."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from killed_runs import losses
from sharp_backbone import BATCH, GRID, SCHEMES, clip, config_for, distance, noise_levels, prompt, sharp_backbone
from unit_runs import tiny, write_autoencoder

from videoar.next_unit import NextUnitTransformer, UnitLayout, cube, frame, key_detail, multiscale, parse_units, preset
from videoar.next_unit.pipeline import UnitPipeline
from videoar.text import WordEncoder, WordEncoderConfig
from videoar.training.config import load_config
from videoar.training.unit_causal import CausalTraining, train
from videoar.training.unit_objective import FlowObjective, NoiseConfig
from videoar.training.unit_run import build_objective
from videoar.training.unit_teacher import TeacherTraining
from videoar.training.unit_teacher import train as train_teacher

UNITS = ["frame", "key_detail(2)", "cube(2, 2, 2)", "multiscale(1x1)"]
CONFIGS = Path(__file__).parents[2] / "configs" / "sprites"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a teacher's finished run."""
    output = tmp_path_factory.mktemp("teacher")
    autoencoder = write_autoencoder(tmp_path_factory.mktemp("autoencoder"))
    return train_teacher(TeacherTraining(**tiny(autoencoder, output, steps=1)))


def settings(teacher: Path, output: Path, **changes) -> CausalTraining:
    return CausalTraining(**{**tiny(None, output, start=str(teacher)), "autoencoder": None, **changes})


@pytest.mark.parametrize("kind", SCHEMES)
def test_two_clips_in_a_row_are_trained_as_a_stream_is_sampled(kind: str):
    """Teacher forcing over two clips, with a stream's window, gives every unit the flow that its cache gives."""
    scheme = SCHEMES[kind]
    config = config_for(scheme)
    model = sharp_backbone(config)
    one = scheme.on(GRID)
    both = one.repeated(2)
    assert both.lengths == one.lengths * 2
    history, noisy, text = clip(both, config), clip(both, config, seed=4), prompt(config)
    timesteps = noise_levels(both)
    window = len(one.units) - 1
    trained = model(noisy, timesteps, text, both, history=history, window=window)
    cache = model.new_cache(one, BATCH, window=window, clips=2, relative=True)
    clean = torch.zeros(BATCH, dtype=torch.float64)
    for unit in range(len(both.units)):
        here, start = unit % len(one.units), unit // len(one.units) * GRID[0]
        tokens = both.within(unit)
        flow = model.step(noisy[:, tokens], timesteps[:, unit], text, one, here, cache, start=start)
        assert distance(flow, trained[:, tokens]) < 1e-11, unit
        model.step(history[:, tokens], clean, text, one, here, cache, start=start)
        cache.commit()
    wider = model(noisy, timesteps, text, both, history=history)
    assert distance(wider, trained) > 1e-3  # the window was there to be missed


def test_repeated_units_partition_the_longer_grid():
    for scheme in (frame(), key_detail(3), cube(2, 2, 2), multiscale([(1, 1), (2, 3)])):
        one, three = scheme.on(GRID), scheme.on(GRID).repeated(3)
        assert sorted(three.permutation.tolist()) == list(range(three.length))
        last = one.positions(start=2 * GRID[0])
        assert torch.equal(three.positions()[-one.length :], last)
    assert frame().on(GRID).repeated(2) == frame().on((2 * GRID[0], *GRID[1:]))
    with pytest.raises(ValueError, match="divide the grid's frames"):
        multiscale([(3, 1, 1)]).on(GRID).repeated(2)


@pytest.mark.parametrize("units", UNITS)
@pytest.mark.parametrize("clips", [1, 2])
def test_every_unit_trains_and_samples(teacher: Path, tmp_path: Path, monkeypatch, units: str, clips: int):
    data = tiny(None, tmp_path)["data"]
    config = settings(
        teacher,
        tmp_path,
        units=units,
        clips=clips,
        data=type(data)(frames=1 + 12 * clips, size=64, wrap=True),
        steps=1,
        pool=4,
        checkpoint_every=0,
    )
    (found,) = losses(train, config, monkeypatch).values()
    assert 1 < found < 4
    pipeline = UnitPipeline.from_pretrained(tmp_path / "model")
    assert pipeline.defaults.units == units
    assert pipeline.defaults.grid == (3, 2, 2)
    assert pipeline.generate(["a red circle moving up slowly"], seed=3, frames=21).shape == (1, 3, 21, 64, 64)


def test_a_killed_run_goes_on_as_if_it_had_not_been(teacher: Path, tmp_path: Path, monkeypatch):
    whole = losses(train, settings(teacher, tmp_path / "whole"), monkeypatch)
    config = settings(teacher, tmp_path / "killed")
    losses(train, config, monkeypatch, killed_after=4)
    with pytest.raises(ValueError, match=r"checkpoints of other settings.* units: expected 'cube\(2, .*', got 'frame'"):
        train(replace(config, units="frame"))
    with pytest.raises(ValueError, match="expected steps of at least the 4 done, got 3"):
        train(replace(config, steps=3))
    (tmp_path / "killed" / "settings.json").rename(tmp_path / "settings.json")  # as a folder of before it was written
    resumed = losses(train, config, monkeypatch)
    assert resumed == {step: whole[step] for step in (4, 5)}
    assert (tmp_path / "killed" / "settings.json").read_text() == (tmp_path / "settings.json").read_text()


def test_it_starts_from_the_teacher_and_needs_one(teacher: Path, tmp_path: Path):
    config = settings(teacher, tmp_path, units="multiscale(1x1)")
    known = UnitPipeline.from_pretrained(teacher)
    before = known.transformer.state_dict()
    after = build_objective(config, known.autoencoder, causal=True).transformer.state_dict()
    level = after.pop("level_embedding")
    assert level.shape[0] == 2
    assert not level.any()
    assert all(torch.equal(weight, after[name]) for name, weight in before.items())
    with pytest.raises(ValueError, match="expected start to be a teacher's folder"):
        train(settings(teacher, tmp_path, start=None, autoencoder="somewhere"))
    with pytest.raises(ValueError, match=r"data.wrap: expected True, as the model of start has it, got False"):
        build_objective(replace(config, data=replace(config.data, wrap=False)), known.autoencoder, causal=True)


def objective(**options) -> tuple[FlowObjective, tuple]:
    torch.manual_seed(0)
    shape = preset("tiny", patch=(1, 1, 1), text_width=16)
    model = FlowObjective(
        NextUnitTransformer(shape), WordEncoder(WordEncoderConfig(("red", "blue"), 16, 2)), cube(2, 2, 2), causal=True
    )
    with torch.no_grad():  # a head of zeros would give the layers before it no gradient
        model.transformer.head.head.weight.normal_(std=0.1)
    latents = torch.randn(2, 4, 3, 4, 4)
    return model, (latents, ["red", ""], *model.draw(latents, NoiseConfig(), torch.Generator().manual_seed(1)))


def gradients(model: FlowObjective, batch: tuple, *, bfloat16: bool = False) -> dict[str, torch.Tensor]:
    model.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
        loss, _ = model(*batch)
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_gradient_checkpointing_gives_the_same_gradients(monkeypatch):
    model, batch = objective()
    kept = gradients(model, batch)
    model.transformer.checkpoint_blocks = True
    passes = []
    forward = type(model.transformer.blocks[0]).forward
    monkeypatch.setattr(type(model.transformer.blocks[0]), "forward", lambda *a: passes.append(1) or forward(*a))
    again = gradients(model, batch)
    assert len(passes) == 2 * len(model.transformer.blocks)  # each block ran twice
    assert kept.keys() == again.keys()
    assert all(torch.equal(kept[name], again[name]) for name in kept)


def test_mixed_precision_gives_nearly_the_same_gradients():
    model, batch = objective()
    exact, mixed = gradients(model, batch), gradients(model, batch, bfloat16=True)
    for name, wanted in exact.items():
        error = (mixed[name] - wanted).norm() / wanted.norm()
        assert error < 0.06, (name, error)
        assert mixed[name].dtype == torch.float32


@pytest.mark.parametrize(("clips", "asked", "window"), [(1, None, None), (2, None, 7), (2, 3, 3)])
def test_units_have_their_own_noise_and_a_clean_history(clips: int, asked: int | None, window: int | None):
    model, _ = objective()
    model.clips, model.window = clips, asked
    latents = torch.randn(2, 4, 2 * clips, 2, 2)  # every unit is one token
    drawn = model.draw(latents, NoiseConfig(), torch.Generator().manual_seed(1))
    seen = {}

    class Recording(torch.nn.Module):
        config = model.transformer.config

        def forward(self, tokens, timesteps, text, layout, **options):
            seen.update(options, tokens=tokens, timesteps=timesteps)
            return torch.zeros_like(tokens)

    model.transformer = Recording()
    loss, _ = model(latents, ["red", ""], *drawn)
    clean = latents.permute(0, 2, 3, 4, 1).flatten(1, 3)  # two cubes of frames, then rows, then columns
    assert drawn.levels.shape == (2, 8 * clips)
    assert torch.equal(seen["history"], clean)
    assert torch.equal(seen["timesteps"], 1000 * drawn.levels)
    level = drawn.levels[..., None].float()
    assert torch.allclose(seen["tokens"], (1 - level) * clean + level * drawn.noise, atol=1e-6)
    assert seen["window"] == window
    assert loss.item() == pytest.approx((drawn.noise - clean).square().mean().item(), rel=1e-5)


@pytest.mark.parametrize(
    ("file", "schema"), [("unit_teacher.yaml", TeacherTraining), ("unit_causal.yaml", CausalTraining)]
)
def test_the_configs_fit_their_schema(file: str, schema: type):
    config = load_config(CONFIGS / file, [], schema)
    assert (config.data.frames - 1) % (4 * config.clips) == 0
    assert isinstance(parse_units(config.units).on((5, 4, 4)), UnitLayout)
