"""Symmetric DMD: its gradient is the written one, every critic and unit trains, a killed run goes on exactly."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from killed_runs import Killed, losses
from safetensors.torch import load_file
from sharp_backbone import distance, sharpen
from tiny_pipeline import AUTOENCODER
from torch import Tensor
from unit_runs import write_autoencoder

from videoar.model_folder import read_json
from videoar.next_unit import NextUnitTransformer, preset, sample_units
from videoar.next_unit.autoencoders import load_autoencoder
from videoar.next_unit.flow import add_noise
from videoar.next_unit.pipeline import UnitDefaults, UnitPipeline
from videoar.next_unit.rollout import finished, last_steps, roll_out
from videoar.next_unit.sampling import unit_noise
from videoar.text import WordEncoder, WordEncoderConfig, WordTokenizer
from videoar.training.clips import ClipsConfig
from videoar.training.config import load_config
from videoar.training.critics_ablation import critics_ablation, table
from videoar.training.latents import all_captions
from videoar.training.optimizer import OptimizerConfig
from videoar.training.score_difference import clean_of, guided_clean, matching_loss, score_gradient
from videoar.training.unit_dmd import DmdTraining, Draws, build_objective, build_optimizers, train
from videoar.training.unit_dmd_objective import CRITICS, Judged, Prompts

GRID = (3, 2, 2)
UNITS = ["frame", "key_detail(2)", "cube(2, 2, 2)", "multiscale(1x1)"]


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_autoencoder(tmp_path_factory.mktemp("autoencoder"))


def write_model(folder: Path, autoencoder: Path, units: str, *, seed: int = 0, **sampling) -> Path:
    """A pipeline of random weights, whose head is not zero."""
    defaults = UnitDefaults(units, GRID, wrap=True, **sampling)
    levels = len(defaults.layout.levels)
    shape = preset("tiny", depth=1, width=32, channels=AUTOENCODER.latent_channels, text_width=8, text_len=7)
    torch.manual_seed(0)
    words = WordTokenizer.from_captions(all_captions(ClipsConfig()), 7).words
    text = WordEncoder(WordEncoderConfig(words, 8, 7))
    torch.manual_seed(seed)
    model = NextUnitTransformer(shape.replace(levels=levels if levels > 1 else 0))
    torch.nn.init.normal_(model.head.head.weight, std=0.05)
    UnitPipeline(load_autoencoder(autoencoder), model, text, defaults).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def models(autoencoder: Path, tmp_path_factory: pytest.TempPathFactory):
    """The folders of start and teacher for units, written once."""
    written: dict[str, tuple[Path, Path]] = {}

    def folders(units: str) -> tuple[Path, Path]:
        if units not in written:
            folder = tmp_path_factory.mktemp("models")
            start = write_model(folder / "start", autoencoder, units)
            written[units] = start, write_model(folder / "teacher", autoencoder, units, seed=1, guidance=2.0)
        return written[units]

    return folders


def tiny(models, output: Path, units: str = "cube(2, 2, 2)", **changes) -> DmdTraining:
    start, teacher = models(units)
    often = {"log_every": 1, "evaluate_every": 0, "checkpoint_every": 1, "prompts": 0}
    rest = {"critic_steps": 2, "steps": 2, "batch": 2, **often, **changes}
    return DmdTraining(output=str(output), start=str(start), teacher=str(teacher), **rest)


@pytest.mark.parametrize("critics", CRITICS)
@pytest.mark.parametrize("units", UNITS)
def test_every_critic_and_unit_steps(models, tmp_path, units, critics):
    config = tiny(models, tmp_path, units, critics=critics)
    start, teacher = map(UnitPipeline.from_pretrained, (config.start, config.teacher))
    objective = build_objective(config, start, teacher)
    assert objective.ways == CRITICS[critics] and objective.guidance == 2.0
    of = teacher if critics == "full" else start
    for critic in objective.critics:
        for name, x in critic.state_dict().items():
            assert torch.equal(x, of.transformer.state_dict()[name]), name
    draws, optimizer = Draws(config, start), build_optimizers(config, objective)
    optimizer.set_learning_rate(1.0)
    before = {name: x.clone() for name, x in objective.state_dict().items()}
    prompts, noise = draws.rollout(0)

    def moved(made, *rest) -> set[str]:
        objective(made, prompts, draws.judged(0), *rest)[0].backward()
        optimizer.step()
        optimizer.zero_grad()
        changed = {name.split(".")[0] for name, x in objective.state_dict().items() if not torch.equal(x, before[name])}
        before.update({name: x.clone() for name, x in objective.state_dict().items()})
        return changed

    assert moved(objective.clips(prompts, noise)) == {"critics"}
    assert moved(objective.roll_out(prompts, noise), teacher.transformer) == {"generator"}


def test_a_critic_sees_under_its_own_mask(models, tmp_path):
    config = tiny(models, tmp_path, "frame")
    objective = build_objective(config, *map(UnitPipeline.from_pretrained, (config.start, config.teacher)))
    ways = []
    for critic in objective.critics:
        critic.register_forward_hook(lambda _, args, kwargs, out: ways.append(kwargs["direction"]), with_kwargs=True)
    judged = Judged(torch.tensor([0.5], dtype=torch.float64), torch.randn(1, 12, 12))
    objective.critic_loss(torch.randn(1, 12, 12), Prompts(torch.ones(1, 7, 8), torch.zeros(1, 7, 8)), judged)
    assert ways == ["forward", "backward"]


def test_draws_follow_from_seed_and_number(models, tmp_path):
    config = tiny(models, tmp_path)
    start = UnitPipeline.from_pretrained(config.start)
    (_, one), (_, same), (_, other) = (Draws(config, start).rollout(number) for number in (3, 3, 4))
    assert torch.equal(one, same) and not (one.shape == other.shape and torch.equal(one, other))
    steps = {Draws(config, start).rollout(number)[1].shape[0] for number in range(40)}
    assert steps == {1, 2, 3, 4}
    streams = Draws(replace(config, clips=2), start)
    assert {streams.rollout(number)[1].shape[2] for number in range(20)} == {12, 24}
    one, same, other = (Draws(config, start).judged(number) for number in (3, 3, 4))
    for x, again, y in zip(one, same, other, strict=True):
        assert torch.equal(x, again) and not torch.equal(x, y)


def test_scores_are_compared_on_the_last_clip_given_those_before(models, tmp_path):
    config = tiny(models, tmp_path, "frame")
    start, teacher = map(UnitPipeline.from_pretrained, (config.start, config.teacher))
    objective, layout = build_objective(config, start, teacher), start.defaults.layout
    for seed, critic in enumerate(objective.critics):  # equal ones would do as well under each other's masks
        sharpen(critic, seed)
    noise = torch.randn(2, 1, 2 * layout.length, 12, generator=torch.Generator().manual_seed(0))
    prompts = Prompts(torch.ones(1, 7, 8), torch.zeros(1, 7, 8))
    made = objective.clips(prompts, noise)
    assert made.shape == (1, layout.length, 12)
    units, window = layout.repeated(2), len(layout.units) - 1
    whole = roll_out(objective.generator, prompts.text, units, noise, objective.levels, window=window)
    assert distance(made, finished(objective.generator, prompts.text, whole)[:, layout.length :]) < 1e-4
    assert distance(objective.clips(prompts, noise[:, :, layout.length :]), made) > 1e-2, "the first clip is seen"
    judged = Judged(torch.tensor([0.5], dtype=torch.float64), torch.randn(1, layout.length, 12))
    ends = last_steps(objective.generator, prompts.text, whole, len(layout.units))
    assert distance(ends, made) < 1e-4
    loss, terms = objective(objective.roll_out(prompts, noise), prompts, judged, teacher.transformer)
    loss.backward()
    assert terms["generated_std"] == pytest.approx(float(made.std()), rel=1e-3)
    found = torch.cat([x.grad.flatten() for x in objective.generator.parameters()])
    objective.zero_grad()
    real = guided_clean(
        teacher.transformer, *_noised(ends, judged), prompts.text, prompts.uncond, layout, objective.guidance
    )
    fakes = [
        clean_of(critic, *_noised(ends, judged), prompts.text, layout, direction=way)
        for way, critic in zip(objective.ways, objective.critics, strict=True)
    ]
    matching_loss(ends, score_gradient(ends, real, fakes)).backward()
    expected = torch.cat([x.grad.flatten() for x in objective.generator.parameters()])
    assert distance(found, expected) < 1e-3


def _noised(clips: Tensor, judged: Judged) -> tuple[Tensor, Tensor]:
    return add_noise(clips.detach(), judged.noise, judged.levels[:, None, None].float()), judged.levels


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_killed_run_goes_on_exactly(models, tmp_path, monkeypatch, checkpointing):
    def config(name: str) -> DmdTraining:
        return tiny(models, tmp_path / name, steps=3, critic_reuse=2, gradient_checkpointing=checkpointing)

    whole = losses(train, config("whole"), monkeypatch)
    first = losses(train, config("killed"), monkeypatch, killed_after=2)
    rest = losses(train, config("killed"), monkeypatch)
    assert first | rest == whole and set(rest) == {2}
    one, other = (UnitPipeline.from_pretrained(tmp_path / name / "model") for name in ("whole", "killed"))
    for name, x in one.transformer.state_dict().items():
        assert torch.equal(x, other.transformer.state_dict()[name]), name


def test_a_run_ends_in_a_model_of_few_steps_and_a_curve(models, tmp_path):
    config = tiny(models, tmp_path, steps=2, critic_only=1, evaluate_every=1, prompts=2, passes=3, generator=fast())
    model = UnitPipeline.from_pretrained(train(config))
    assert model.defaults.options == replace(model.defaults.options, steps=3, method="renoise", guidance=1.0)
    points = read_json(tmp_path / "curve.json")["points"]
    assert [point["step"] for point in points] == [1, 2] and "colour" in points[0]
    start = UnitPipeline.from_pretrained(config.start)
    assert model.generate(["a red ball moving left slowly"]).shape == (1, 3, 9, 64, 64)
    pairs = zip(model.transformer.parameters(), start.transformer.parameters(), strict=True)
    assert any(not torch.equal(x, y.half().float()) for x, y in pairs)


def fast() -> OptimizerConfig:
    return OptimizerConfig("adamw", 1e-2, betas=(0.0, 0.999), warmup=1)


def test_critics_move_alone_at_first(models, tmp_path, monkeypatch):
    config = tiny(models, tmp_path, steps=3, critic_only=2, critic_steps=1, generator=fast())
    losses(train, config, monkeypatch, killed_after=2)
    kept = load_file(tmp_path / "checkpoints" / "step-00000002" / "model.safetensors")
    start = UnitPipeline.from_pretrained(config.start).transformer.state_dict()
    assert all(torch.equal(x, kept[f"generator.{name}"]) for name, x in start.items())
    assert any(not torch.equal(x, kept[f"critics.0.{name}"]) for name, x in start.items())


@pytest.mark.parametrize(("window", "sink"), [(None, 0), (1, 0), (1, 1)])
def test_the_clips_of_a_run_are_what_its_model_samples(models, tmp_path, window, sink):
    config = tiny(models, tmp_path, "cube(2, 2, 2)")
    start, teacher = map(UnitPipeline.from_pretrained, (config.start, config.teacher))
    start = start.with_options(window=window, sink=sink)
    objective, layout = build_objective(config, start, teacher), start.defaults.layout
    text = start.conditioner(["a red ball moving left slowly"]).detach()
    generators, width = [torch.Generator().manual_seed(4)], start.transformer.config.patch_width
    units = [torch.stack([unit_noise(generators, n, width, text) for _ in range(4)]) for n in layout.lengths]
    made = objective.clips(Prompts(text, text), torch.cat(units, dim=2))

    def sampled(**seen) -> Tensor:
        return torch.cat([x.tokens for x in sample_units(start.transformer, text, layout, seeds=[4], **seen)], dim=1)

    assert distance(made, sampled(window=window, sink=sink)) < 1e-4
    for other in {(None, 0), (1, 0), (1, 1)} - {(window, sink)}:
        assert distance(made, sampled(window=other[0], sink=other[1])) > 1e-3, other


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"critics": "sideways"}, "critics to be one of"),
        ({"critic_steps": 0}, "critic_steps of at least 1, got 0"),
        ({"steps": 0}, "steps of at least 1, got 0"),
        ({"batch": 0}, "batch of at least 1, got 0"),
        ({"clips": 0}, "clips of at least 1, got 0"),
        ({"critic_only": 600}, "critic_only below 600 steps, got 600"),
        ({"guidance": float("nan")}, "guidance to be finite, got nan"),
        ({"score_shift": 0.0}, "score_shift above 0, got 0.0"),
        ({"average": 1.0}, r"average in \[0, 1\), got 1.0"),
        ({"stored_as": "float7"}, "stored_as to be one of PyTorch's floating-point types, got 'float7'"),
        ({"evaluate_every": -1}, "evaluate_every of at least 0, got -1"),
        ({"prompts": -1}, "prompts of at least 0, got -1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        DmdTraining(**changes)


def test_a_teacher_that_does_not_fit_is_refused(models, autoencoder, tmp_path):
    config = tiny(models, tmp_path, "multiscale(1x1)")
    start, levels = UnitPipeline.from_pretrained(config.start), UnitPipeline.from_pretrained(models("frame")[1])
    with pytest.raises(ValueError, match="expected a teacher of 2 levels, as the units of start have, got 0"):
        build_objective(config, start, levels)
    other = UnitPipeline.from_pretrained(config.teacher)
    with pytest.raises(ValueError, match=r"data.wrap: expected False, as the model of teacher has it, got True"):
        build_objective(config, start, other.with_options(wrap=False))
    with pytest.raises(ValueError, match=r"expected a start without sink for several clips, .* got sink 1 and 2 clips"):
        build_objective(replace(config, clips=2), start.with_options(sink=1), other)
    torch.nn.init.normal_(other.conditioner.embedding.weight)
    with pytest.raises(ValueError, match="expected the teacher's text encoder to be that of start"):
        build_objective(config, start, other)


def test_prompts_are_the_captions_of_training(models, tmp_path):
    heldout = set(all_captions(ClipsConfig(), "heldout"))
    captions = Draws(tiny(models, tmp_path), UnitPipeline.from_pretrained(models("frame")[0])).captions
    assert heldout and len(captions) == 460 and not heldout & set(captions)


def test_the_shipped_config_is_one():
    config = load_config(Path(__file__).parents[2] / "configs/sprites/unit_dmd.yaml", ["critics=full"], DmdTraining)
    assert config.critics == "full" and config.generator.betas == (0.0, 0.999)


def test_the_ablation_trains_each_kind_of_critics_once(models, tmp_path, monkeypatch):
    config = tiny(models, tmp_path, steps=1, critic_steps=1)
    found = critics_ablation(config, [5], prompts=2)
    assert set(found) == set(CRITICS) and all(set(scores["5"]) >= {"colour", "total"} for scores in found.values())

    def killed(config: DmdTraining) -> None:
        raise Killed

    monkeypatch.setattr("videoar.training.critics_ablation.train", killed)
    again = replace(config, log_every=2)
    assert critics_ablation(again, [5], prompts=2) == found == read_json(tmp_path / "critics.json")
    for other, prompts in ((replace(config, steps=2), 2), (replace(config, score_shift=3.0), 2), (config, 3)):
        with pytest.raises(Killed):
            critics_ablation(other, [5], prompts=prompts)


def test_the_table_has_the_papers_rows():
    zeros = dict.fromkeys(("colour", "shape", "direction", "speed"), 0.5)
    found = {name: {"0": {**zeros, "total": 0.8}, "1": {**zeros, "total": 0.9}} for name in CRITICS}
    lines = table(found).splitlines()
    assert lines[0].startswith("| full | causal forward | causal backward | total | colour")
    assert lines[2].startswith("| x |  |  | 85.0 ± 7.1 | 50.0 ± 0.0") and lines[5].startswith("|  | x | x |")
