"""Training of the transformer: exact resume, the loss goes down, the run's folder is a usable model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from killed_runs import losses

from videoar.model_folder import read_json
from videoar.next_scale.config import preset
from videoar.next_scale.guidance import GuidanceSchedule
from videoar.next_scale.pipeline import SamplingDefaults, VideoPipeline
from videoar.tokenizer import TokenizerConfig, VideoTokenizer
from videoar.training.optimizer import OptimizerConfig
from videoar.training.transformer import TransformerTraining, train

TOKENIZER = TokenizerConfig(
    bits=12,
    scales=((1, 1), (2, 2), (4, 4)),
    patch=(4, 4),
    channels=(8, 12, 16),
    strides=((1, 2), (1, 2)),
    blocks=1,
    time_kernels=((1, 1), (1, 3), (3, 1)),
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("tokenizer")
    VideoTokenizer(TOKENIZER).save_pretrained(folder)
    return folder


def settings(tokenizer: Path, output: Path, **changes) -> TransformerTraining:
    options = {
        "model": preset("tiny", text_len=8, frames=5),
        "optimizer": OptimizerConfig(warmup=2, weight_decay=0.05),
        "sampling": SamplingDefaults(guidance=GuidanceSchedule.constant(2.0), frames=5),
        "steps": 6,
        "batch": 4,
        "pool": 32,
        "log_every": 1,
        "evaluate_every": 0,
        "checkpoint_every": 2,
    }
    return TransformerTraining(output=str(output), tokenizer=str(tokenizer), **{**options, **changes})


@pytest.fixture(scope="module")
def run(tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of two steps with an evaluation after each."""
    output = tmp_path_factory.mktemp("run")
    assert train(settings(tokenizer, output, steps=2, evaluate_every=1, prompts=2)) == output / "model"
    return output


@pytest.fixture(scope="module")
def pipeline(run: Path) -> VideoPipeline:
    return VideoPipeline.from_pretrained(run / "model")


@pytest.mark.parametrize("pool", [32, 0])
def test_a_killed_run_goes_on_as_if_it_had_not_been(
    tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pool: int
):
    whole = losses(train, settings(tokenizer, tmp_path / "whole", pool=pool), monkeypatch)
    losses(train, settings(tokenizer, tmp_path / "killed", pool=pool), monkeypatch, killed_after=4)
    resumed = losses(train, settings(tokenizer, tmp_path / "killed", pool=pool), monkeypatch)
    assert sorted(resumed) == [4, 5]
    assert resumed == {step: whole[step] for step in (4, 5)}


def test_the_loss_falls_from_log_2(tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    found = losses(train, settings(tokenizer, tmp_path, steps=24, checkpoint_every=0), monkeypatch)
    assert abs(found[0] - 0.6931) < 1e-3
    assert found[23] < 0.67


def test_a_run_leaves_a_curve(run: Path):
    points = read_json(run / "curve.json")["points"]
    assert [point["step"] for point in points] == [1, 2]
    assert {"loss_right", "loss_wrong", "loss_none", "colour", "shape", "direction"} <= set(points[0])


def test_its_model_generates_the_same_video_for_a_prompt_and_seed_in_any_batch(pipeline: VideoPipeline):
    video = pipeline.generate(["a red circle moving up slowly", None], seed=3)
    assert video.shape == (2, 3, 5, 64, 64)
    alone = pipeline.generate(["a red circle moving up slowly"], seed=3)
    assert torch.allclose(alone, video[:1], atol=1e-5)


def test_image_to_video_and_continuation_keep_what_is_given(pipeline: VideoPipeline):
    start = torch.rand(1, 3, 5, 64, 64) * 2 - 1
    reproduced = pipeline.tokenizer.detokenize(pipeline.tokenizer.tokenize(start)).clamp(-1, 1)
    continued = pipeline.generate([None], video=start, frames=9)
    assert torch.allclose(continued[:, :, :5], reproduced, atol=1e-5)
    longer = pipeline.extend([None], start, shots=2, overlap=1, frames=5)
    assert longer.shape[2] == 5 + 2 * 4
    assert torch.equal(longer[:, :, :5], start)


@pytest.mark.parametrize("options", [{"frames": 6}, {"video": torch.zeros(1, 3, 5, 64, 64), "frames": 5}])
def test_frames_that_do_not_fit_are_refused(pipeline: VideoPipeline, options: dict):
    with pytest.raises(ValueError, match="generate: expected"):
        pipeline.generate([None], **options)
