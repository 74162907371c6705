"""The continuous autoencoder: chunk by chunk equals whole, latents of unit variance, a decoder's stage, a run."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tokenizer.lively import FOLDED, lively

from videoar.data.pixels import from_uint8
from videoar.data.sprites import SpriteConfig, sample_batch
from videoar.evaluation.tokenizer import evaluate_autoencoder
from videoar.tokenizer import AutoencoderConfig, VideoAutoencoder, VideoTokenizer
from videoar.training.autoencoder import AutoencoderTraining, train
from videoar.training.clips import ClipsConfig
from videoar.training.stages import Stage

CONFIG = AutoencoderConfig(
    latent_channels=6, patch=(2, 4), channels=(8, 12), strides=((2, 2),), blocks=1, time_kernels=((3, 1), (3, 3))
)


@pytest.fixture
def model():
    found = lively(CONFIG)
    found.latent_mean.uniform_(-1, 1)
    found.latent_std.uniform_(0.5, 2)
    return found


@pytest.mark.parametrize("sizes", [[1] * 13, [5, 8], [2, 3, 1, 7]], ids=str)
@torch.no_grad()
def test_encoding_in_chunks_equals_encoding_the_whole(model, sizes):
    video = torch.rand(2, 3, 13, 16, 24) * 2 - 1
    whole, state, parts = model.encode(video), None, []
    assert whole.shape == (2, 6, 4, 2, 3)
    for chunk in video.split(sizes, 2):
        part, state = model.encode_chunk(chunk, state)
        parts.append(part)
    torch.testing.assert_close(torch.cat(parts, 2), whole, atol=1e-5, rtol=0)


@torch.no_grad()
def test_decoding_in_chunks_equals_decoding_the_whole_and_forgetting_is_seen(model):
    latents = torch.randn(2, 6, 4, 2, 3)
    whole, state, parts = model.decode(latents), None, []
    assert whole.shape == (2, 3, 13, 16, 24)
    for chunk in latents.split(1, 2):
        part, state = model.decode_chunk(chunk, state)
        parts.append(part)
    torch.testing.assert_close(torch.cat(parts, 2), whole, atol=1e-5, rtol=0)
    forgetful = torch.cat([model.decode_chunk(chunk).video for chunk in latents.split(1, 2)], 2)
    assert forgetful.shape != whole.shape or (forgetful - whole).abs().max() > 1e-2


def test_calibration_gives_unit_variance_and_keeps_what_is_decoded(model):
    videos = [from_uint8(sample_batch(8, 1, i * 8, config=SpriteConfig(frames=9, size=64)).video) for i in range(2)]
    with torch.no_grad():
        before = model.decode(model.encode(videos[0]))
    model.calibrate(iter(videos))
    with torch.no_grad():
        latents = torch.cat([model.encode(video) for video in videos])[:, :, 1:].transpose(0, 1).flatten(1)
        torch.testing.assert_close(model.decode(model.encode(videos[0])), before, atol=1e-4, rtol=0)
    torch.testing.assert_close(latents.mean(1), torch.zeros(6), atol=1e-4, rtol=0)
    torch.testing.assert_close(latents.std(1), torch.ones(6), atol=1e-4, rtol=0)


def test_a_saved_model_is_the_same(model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    again = VideoAutoencoder.from_pretrained(tmp_path / "model")
    video = torch.rand(1, 3, 5, 16, 16)
    with torch.no_grad():
        assert torch.equal(again.encode(video), model.encode(video))


def test_shapes_that_do_not_fit_are_refused(model):
    with pytest.raises(ValueError, match=r"multiples of 8, got \(20, 16\)"):
        model.encode(torch.zeros(1, 3, 5, 20, 16))
    with pytest.raises(ValueError, match=r"expected latents of shape \(B, 6, T >= 1, H, W\)"):
        model.decode(torch.zeros(1, 5, 2, 2, 2))


@pytest.fixture
def run(tmp_path):
    return AutoencoderTraining(
        output=str(tmp_path / "run"),
        model=CONFIG,
        data=ClipsConfig(frames=9, size=32, wrap=True),
        stages=(Stage(steps=3, frames=9, batch=2),),
        log_every=1,
        checkpoint_every=3,
        evaluate_every=0,
        calibration=1,
        average=0.5,
    )


def test_a_run_starts_from_a_tokenizer_and_a_decoder_stage_keeps_the_latents(run, tmp_path):
    shape = {name: getattr(FOLDED, name) for name in ("patch", "channels", "strides", "blocks", "time_kernels")}
    tokenizer = VideoTokenizer(FOLDED)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    start = replace(
        run,
        model=AutoencoderConfig(latent_channels=6, **shape),
        start=str(tmp_path / "tokenizer"),
        stages=(Stage(1, 1, 1),),
    )
    first = VideoAutoencoder.from_pretrained(train(start))
    weight = first.encoder.conv_in.weight
    near = tokenizer.encoder.conv_in.weight
    assert (weight - near).norm() < 0.2 * near.norm()  # taken up, then moved by one step

    before = VideoAutoencoder.from_pretrained(train(run))
    stages = (*run.stages, Stage(steps=2, frames=9, batch=2, decoder_only=True))
    after = VideoAutoencoder.from_pretrained(train(replace(run, stages=stages)))
    for name, weight in before.state_dict().items():
        assert torch.equal(weight, after.state_dict()[name]) != name.startswith("decoder."), name

    with pytest.raises(ValueError, match="none that fit"):
        other = AutoencoderConfig(latent_channels=7, channels=(10,), strides=(), time_kernels=((1, 1),), blocks=0)
        train(
            replace(
                run,
                output=str(tmp_path / "x"),
                model=replace(other, patch=(3, 5)),
                start=str(tmp_path / "run/autoencoder"),
            )
        )


def test_evaluation_scores_a_perfect_and_a_blank_reconstruction():
    class Perfect:
        def encode(self, video):
            return video

        def decode(self, latents):
            return latents

    class Blank(Perfect):
        def decode(self, latents):
            return torch.zeros_like(latents)

    sprites = SpriteConfig(wrap=True)
    good = evaluate_autoencoder(Perfect(), clips=8, sprites=sprites)
    assert set(good.attributes.values()) == {1.0}
    assert good.psnr > 60
    bad = evaluate_autoencoder(Blank(), clips=8, sprites=sprites)
    assert set(bad.attributes.values()) == {0.0}
    assert bad.psnr < 30
