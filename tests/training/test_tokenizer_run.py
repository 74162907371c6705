"""A tokenizer run: it learns, it resumes exactly, it leaves complete folders only."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from videoar.data.video import write_video
from videoar.tokenizer import TokenizerConfig, VideoTokenizer
from videoar.training import stages
from videoar.training import tokenizer as training
from videoar.training.checkpoint import latest_checkpoint
from videoar.training.clips import ClipsConfig
from videoar.training.logging import RunLog
from videoar.training.stages import Stage
from videoar.training.tokenizer import TokenizerTraining, corruption, train


class Killed(Exception):
    pass


@pytest.fixture
def run(tmp_path):
    model = TokenizerConfig(
        bits=8,
        scales=((1, 1), (2, 2)),
        patch=(4, 4),
        channels=(8, 8),
        strides=((1, 4),),
        blocks=1,
        time_kernels=((1, 1), (3, 1)),
    )
    return TokenizerTraining(
        output=str(tmp_path / "run"),
        model=model,
        data=ClipsConfig(frames=5, size=32),
        stages=(Stage(steps=6, frames=5, batch=2),),
        log_every=1,
        checkpoint_every=2,
        evaluate_every=0,
    )


@pytest.fixture
def losses(monkeypatch):
    """Every step's loss, in order."""
    seen = []
    step = RunLog.step

    def record(self, number, metrics):
        seen.append((number, metrics["loss"]))
        step(self, number, metrics)

    monkeypatch.setattr(RunLog, "step", record)
    return seen


def kill_at(monkeypatch, step):
    batches = stages.clip_batches

    def dying(*arguments, **options):
        draw = batches(*arguments, **options)

        def one(number):
            if number == step:
                raise Killed
            return draw(number)

        return one

    monkeypatch.setattr(stages, "clip_batches", dying)


def test_a_killed_and_resumed_run_is_the_uninterrupted_run(run, losses, monkeypatch, tmp_path):
    whole = VideoTokenizer.from_pretrained(train(replace(run, output=str(tmp_path / "whole"))))
    expected = losses[:]
    losses.clear()
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, 5)  # a step after the last checkpoint
        train(run)
    resumed = VideoTokenizer.from_pretrained(train(run))
    assert [number for number, _ in losses] == [0, 1, 2, 3, 4, 4, 5]
    assert losses[-2:] == expected[-2:]
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name


def test_a_half_written_checkpoint_is_not_resumed_from(run, losses, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, 3)
        train(run)
    complete = latest_checkpoint(run.output)
    assert complete.name == "step-00000002"
    for name in (".step-00000004.1", "step-00000004"):
        (complete.parent / name).mkdir()
        (complete.parent / name / "model.safetensors").write_bytes(b"half")
    assert latest_checkpoint(run.output) == complete
    train(run)
    assert [number for number, _ in losses] == [0, 1, 2, 2, 3, 4, 5]
    assert [path.name for path in sorted(complete.parent.glob("step-*"))] == ["step-00000004", "step-00000006"]


def test_training_lowers_the_loss(run, losses):
    train(replace(run, stages=(Stage(steps=40, frames=5, batch=2),), scale_dropout=0.0, flip=0.0))
    first, last = losses[:5], losses[-5:]
    assert sum(loss for _, loss in last) < 0.8 * sum(loss for _, loss in first)


def test_stages_follow_each_other_and_a_killed_run_resumes_inside_one(run, losses, monkeypatch):
    config = replace(
        run, stages=(Stage(3, frames=1, batch=5), Stage(2, frames=5, batch=2), Stage(1, frames=9, batch=1))
    )
    shapes = []
    forward = training.TokenizerObjective.forward

    def record(self, video, *rest):
        shapes.append(tuple(video.shape))
        return forward(self, video, *rest)

    monkeypatch.setattr(training.TokenizerObjective, "forward", record)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, 4)  # the last checkpoint is at 4, inside the second stage
        train(config)
    train(config)
    assert shapes == [(5, 3, 1, 32, 32)] * 3 + [(2, 3, 5, 32, 32)] * 2 + [(1, 3, 9, 32, 32)]


def test_a_decoder_stage_leaves_every_bit_as_it_was(run, losses):
    stage = Stage(steps=2, frames=5, batch=2)
    before = VideoTokenizer.from_pretrained(train(replace(run, stages=(stage,), average=0.5)))
    after = VideoTokenizer.from_pretrained(
        train(replace(run, stages=(stage, replace(stage, decoder_only=True)), average=0.5))
    )
    assert len(losses) == 4, "the second run goes on from the first"
    for name, weight in before.state_dict().items():
        assert torch.equal(weight, after.state_dict()[name]) != name.startswith("decoder."), name


def test_a_folder_of_clips_is_trained_on(run, losses, tmp_path):
    folder = tmp_path / "clips"
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    for name, (frames, height, width) in {"a.mp4": (9, 48, 80), "b.mp4": (7, 64, 36)}.items():
        write_video(
            folder / name, torch.randint(0, 256, (frames, height, width, 3), generator=generator).byte(), fps=10
        )
    train(replace(run, data=ClipsConfig(kind="folder", path=str(folder), frames=5, size=32)))
    assert [number for number, _ in losses] == list(range(6))
    assert all(loss == loss and loss < 10 for _, loss in losses)


def test_scale_dropout_and_flips_hit_the_share_asked_for(run):
    config = replace(
        run,
        stages=(Stage(9, frames=1, batch=4000),),
        scale_dropout=0.6,
        flip=0.1,
        model=replace(run.model, scales=((1, 1),) * 3 + ((2, 2),)),
    )
    keep, flip = corruption(config, 3)
    shares = [(keep == k).float().mean().item() for k in range(1, 5)]
    assert shares == pytest.approx([0.2, 0.2, 0.2, 0.4], abs=0.04)
    assert (flip == 0).float().mean().item() == pytest.approx(0.5, abs=0.04)
    assert flip.max() <= 0.1
    again = corruption(config, 3)
    assert torch.equal(keep, again.keep)
    assert torch.equal(flip, again.flip)
    assert not torch.equal(keep, corruption(config, 4).keep)
