"""Training of paper U's teacher: noise levels, targets, exact resume, and that it learns what the caption says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from killed_runs import losses
from unit_runs import tiny, write_autoencoder

from videoar.model_folder import read_json
from videoar.next_unit import NextUnitTransformer, cube, frame, multiscale, preset
from videoar.next_unit.pipeline import UnitPipeline
from videoar.text import WordEncoder, WordEncoderConfig
from videoar.training.latents import LatentBatch
from videoar.training.optimizer import OptimizerConfig, build_optimizer
from videoar.training.unit_objective import FlowObjective, NoiseConfig, noise_levels, token_weights
from videoar.training.unit_run import PLAIN, caption_losses, unit_loss
from videoar.training.unit_teacher import TeacherTraining, train


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_autoencoder(tmp_path_factory.mktemp("autoencoder"))


@pytest.fixture(scope="module")
def run(autoencoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of two steps with an evaluation after each."""
    output = tmp_path_factory.mktemp("run")
    config = TeacherTraining(**tiny(autoencoder, output, steps=2, evaluate_every=1, prompts=2))
    assert train(config) == output / "model"
    return output


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small_objective(units=None, **options) -> FlowObjective:
    torch.manual_seed(0)
    shape = preset(
        "tiny", patch=(1, 1, 1), text_width=16, levels=len((units or cube(1, 1, 1)).on((3, 4, 4)).levels) - 1
    )
    shape = shape.replace(levels=shape.levels + 1 if shape.levels else 0)
    text = WordEncoder(WordEncoderConfig(("red", "blue"), 16, 2))
    return FlowObjective(NextUnitTransformer(shape), text, units or cube(1, 1, 1), **options)


def test_uniform_levels_have_the_shifted_distribution():
    levels = noise_levels(4000, 2, NoiseConfig(shift=3.0), generator())
    s = torch.tensor([0.1, 0.5, 0.75, 0.9], dtype=torch.float64)
    below = (levels[None] < s[:, None, None]).double().mean(1)  # (4, units)
    expected = s / (3 - 2 * s)  # P(k u / (1 + (k - 1) u) < s) for uniform u
    assert (below - expected[:, None]).abs().max() < 1e-3  # 4000 draws that were not spread evenly would miss by 8e-3
    assert abs(torch.corrcoef(levels.T)[0, 1]) < 0.06


def test_logit_normal_levels_have_its_distribution():
    levels = noise_levels(4000, 1, NoiseConfig(kind="logit-normal", shift=1.0, mean=0.5, std=2.0), generator())
    s = torch.tensor([0.05, 0.5, 0.9], dtype=torch.float64)
    expected = torch.special.ndtr((s.logit() - 0.5) / 2.0)
    assert ((levels < s).double().mean(0) - expected).abs().max() < 1e-3


def test_the_share_of_clips_with_one_level_is_the_one_asked_for():
    levels = noise_levels(4000, 3, NoiseConfig(same_level=0.3), generator())
    same = (levels == levels[:, :1]).all(1).double().mean()
    assert abs(same - 0.3) < 0.03


@pytest.mark.parametrize("changes", [{"kind": "normal"}, {"shift": 0.0}, {"same_level": 1.5}])
def test_wrong_noise_is_refused(changes: dict):
    with pytest.raises(ValueError, match="NoiseConfig: expected"):
        NoiseConfig(**changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"steps": 0}, "steps of at least 1, got 0"),
        ({"batch": 0}, "batch of at least 1, got 0"),
        ({"clips": 0}, "clips of at least 1, got 0"),
        ({"pool": -1}, "pool of at least 0, got -1"),
        ({"prompts": -1}, "prompts of at least 0, got -1"),
        ({"checkpoint_every": -1}, "checkpoint_every of at least 0, got -1"),
        ({"window": -1}, "window of at least 0, got -1"),
        ({"caption_dropout": 1.5}, r"caption_dropout in \[0, 1\], got 1.5"),
        ({"average": float("nan")}, r"average in \[0, 1\), got nan"),
        ({"level_weight": float("inf")}, "level_weight to be finite, got inf"),
        ({"stored_as": "int8"}, "stored_as to be one of PyTorch's floating-point types, got 'int8'"),
        ({"sink": 1, "clips": 2}, "sink 0 with several clips, .* got sink 1 and 2 clips"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict, said: str):
    with pytest.raises(ValueError, match=f"TeacherTraining: expected {said}"):
        TeacherTraining(autoencoder="somewhere", **changes)


def test_what_a_batch_draws_follows_from_its_number_and_captions_are_dropped():
    model, seen = small_objective(), []
    config = TeacherTraining(autoencoder="somewhere", caption_dropout=0.3)
    batch = LatentBatch(torch.zeros(400, 4, 1, 2, 2), ["red"] * 400)
    for place in (0, 0, 1):
        unit_loss(lambda *given: seen.append(given) or (None, {}), model, batch, config, place)
    one, same, other = seen
    assert one[1] == same[1] != other[1]
    for drawn in (2, 3):
        assert torch.equal(one[drawn], same[drawn]) and not torch.equal(one[drawn], other[drawn])
    assert set(one[1]) == {"", "red"}
    assert one[1].count("") / 400 == pytest.approx(0.3, abs=0.08)


def test_a_model_that_knows_the_flow_has_no_loss_and_sees_noisy_tokens():
    """The target of every level of a pyramid is its noise minus the clip averaged over areas."""
    objective = small_objective(multiscale([(1, 1), (2, 2)]))
    latents = torch.randn(2, 4, 3, 4, 4, generator=generator(1))
    drawn = objective.draw(latents, NoiseConfig(), generator(2))
    assert drawn.levels.shape == (2, 1)
    coarse = latents.mean((3, 4)).transpose(1, 2)  # (B, T, C), one cell a frame
    middle = latents.unflatten(4, (2, 2)).unflatten(3, (2, 2)).mean((4, 6)).permute(0, 2, 3, 4, 1).flatten(1, 3)
    clean = torch.cat([coarse, middle, latents.permute(0, 2, 3, 4, 1).flatten(1, 3)], 1)  # (B, 3 + 12 + 48, C)
    seen = []

    class Knowing(torch.nn.Module):
        config = objective.transformer.config

        def forward(self, tokens, timesteps, text, layout, **options):
            seen.append((tokens, timesteps))
            return drawn.noise - clean

    objective.transformer = Knowing()
    loss, terms = objective(latents, ["red", ""], *drawn)
    assert loss < 1e-10
    assert max(terms.values()) < 1e-10
    tokens, timesteps = seen[0]
    s = drawn.levels[..., None].float()
    assert torch.allclose(tokens, (1 - s) * clean + s * drawn.noise, atol=1e-6)
    assert torch.equal(timesteps, 1000 * drawn.levels)


def test_level_weights_let_levels_weigh_alike():
    layout = multiscale([(1, 1), (2, 2)]).on((3, 4, 4))
    weights = token_weights(layout, 1.0)
    assert [float(weights[layout.within(unit)].sum()) for unit in range(3)] == [48.0] * 3
    assert torch.equal(token_weights(layout, 0.0), torch.ones(layout.length))


def test_it_learns_what_the_caption_says():
    objective = small_objective()
    optimizer = build_optimizer(objective, OptimizerConfig(warmup=1), plain=PLAIN)
    latents = torch.cat([torch.ones(8, 4, 3, 4, 4), -torch.ones(8, 4, 3, 4, 4)])
    captions = ["red"] * 8 + ["blue"] * 8
    noise = NoiseConfig(shift=5.0)
    found = []
    for step in range(60):
        loss, _ = objective(latents, captions, *objective.draw(latents, noise, generator(step)))
        loss.backward()
        optimizer.set_learning_rate(1.0)
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    assert found[0] == pytest.approx(2.0, abs=0.1)  # noise - x_0 of a head of zeros
    assert found[-1] < 1.3
    drawn = objective.draw(latents, noise, generator(100))
    with torch.no_grad():
        right, wrong = (float(objective(latents, said, *drawn)[0]) for said in (captions, captions[::-1]))
    assert wrong > 1.1 * right


def test_a_killed_run_goes_on_as_if_it_had_not_been(autoencoder: Path, tmp_path: Path, monkeypatch):
    options = {"pool": 32, "cache": str(tmp_path / "pools")}
    whole = losses(train, TeacherTraining(**tiny(autoencoder, tmp_path / "whole", **options)), monkeypatch)
    config = TeacherTraining(**tiny(autoencoder, tmp_path / "killed", **options))
    losses(train, config, monkeypatch, killed_after=4)
    resumed = losses(train, config, monkeypatch)
    assert sorted(resumed) == [4, 5]
    assert resumed == {step: whole[step] for step in (4, 5)}
    assert len(list((tmp_path / "pools").iterdir())) == 1  # the three runs share what they encoded


def test_fresh_clips_every_step_train_too(autoencoder: Path, tmp_path: Path, monkeypatch):
    found = losses(train, TeacherTraining(**tiny(autoencoder, tmp_path, pool=0, steps=2)), monkeypatch)
    assert all(1 < loss < 4 for loss in found.values())


def test_a_run_leaves_a_curve_and_a_pipeline(run: Path):
    points = read_json(run / "curve.json")["points"]
    assert [point["step"] for point in points] == [1, 2]
    assert {"loss_right", "loss_wrong", "loss_none", "colour", "speed"} <= set(points[0])
    pipeline = UnitPipeline.from_pretrained(run / "model")
    assert pipeline.defaults.grid == (3, 2, 2)
    assert pipeline.defaults.wrap
    video = pipeline.generate(["a red circle moving up slowly", None], seed=3)
    assert video.shape == (2, 3, 9, 64, 64)


def test_a_teacher_of_all_levels_starts_from_the_teacher_and_keeps_its_text(
    run: Path, autoencoder: Path, tmp_path: Path
):
    options = {
        "units": "multiscale(1x1)",
        "start": str(run / "model"),
        "steps": 2,
        "average": 0.0,
        "stored_as": "float32",
    }
    before = UnitPipeline.from_pretrained(run / "model")
    after = UnitPipeline.from_pretrained(train(TeacherTraining(**tiny(autoencoder, tmp_path, **options))))
    assert after.transformer.config.levels == 2
    assert after.transformer.level_embedding.abs().max() > 0
    for name, weight in before.conditioner.state_dict().items():
        assert torch.equal(weight, after.conditioner.state_dict()[name]), name
    moved = [
        n for n, w in before.transformer.state_dict().items() if not torch.equal(w, after.transformer.state_dict()[n])
    ]
    assert len(moved) == len(before.transformer.state_dict())


def test_caption_losses_see_the_same_noise_each_time():
    objective = small_objective().eval()
    batches = [LatentBatch(torch.randn(2, 4, 3, 4, 4), ["a red circle moving up slowly"] * 2)]
    one, other = (caption_losses(objective, batches, NoiseConfig()) for _ in range(2))
    assert one == other


def test_frames_with_levels_of_their_own_are_the_share_asked_for_and_stay_in_the_order_of_the_clip():
    mixed, plain = small_objective(frame_levels=0.75), small_objective()
    torch.nn.init.normal_(mixed.transformer.head.head.weight)  # a head of zeros would hide everything
    plain.load_state_dict(mixed.state_dict())
    latents = torch.randn(400, 4, 3, 4, 4, generator=generator())
    drawn = mixed.draw(latents, NoiseConfig(), generator())
    assert drawn.levels.shape == (400, 3)
    own = (drawn.levels != drawn.levels[:, :1]).any(1).double().mean()
    assert own == pytest.approx(0.75, abs=0.08)
    few, one = latents[:2], torch.tensor([[0.3], [0.8]], dtype=torch.float64)
    captions, noise = ["red", "blue"], drawn.noise[:2]
    with torch.no_grad():
        same = mixed(few, captions, one.expand(-1, 3), noise)[0]
        other = mixed(few, captions, torch.tensor([[0.3, 0.0, 0.3], [0.8, 0.8, 0.1]]).double(), noise)[0]
        torch.testing.assert_close(same, plain(few, captions, one, noise)[0])
    assert (other - same).abs() > 1e-3
    with pytest.raises(ValueError, match="not a whole clip, got frame"):
        small_objective(frame(), frame_levels=0.5)


def test_a_teacher_of_levels_is_not_sampled_level_by_level(autoencoder: Path, run: Path, tmp_path: Path):
    changes = {"start": str(run / "model"), "units": "multiscale(1x1)", "steps": 1, "evaluate_every": 1, "prompts": 2}
    train(TeacherTraining(**tiny(autoencoder, tmp_path, **changes)))
    (point,) = read_json(tmp_path / "curve.json")["points"]
    assert "loss_right" in point and "colour" not in point
