"""Chunk by chunk equals the whole in one go, and nothing sees the future."""

from __future__ import annotations

import itertools

import pytest
import torch
from tokenizer.lively import CONFIGS, FOLDED, lively

CHUNKINGS = [[1] * 13, [13], [1, 12], [5, 8], [2, 3, 1, 7], [12, 1], [4, 4, 4, 1]]


def encode_in_chunks(model, video, sizes):
    state, parts = None, []
    for chunk in video.split(sizes, 2):
        part = model.encode_chunk(chunk, state)
        state = part.state
        parts.append(part.latent)
    return torch.cat(parts, 1)


def decode_in_chunks(model, latent, sizes):
    state, parts = None, []
    for chunk in latent.split(sizes, 1):
        part = model.decode_chunk(chunk, state)
        state = part.state
        parts.append(part.video)
    return torch.cat(parts, 2)


@pytest.fixture(params=CONFIGS)
def model(request):
    return lively(CONFIGS[request.param])


@pytest.mark.parametrize("sizes", CHUNKINGS, ids=str)
@torch.no_grad()
def test_encoding_in_any_chunks_equals_encoding_the_whole(model, sizes):
    side = 3 * model.config.space_stride
    video = torch.rand(2, 3, 13, side, side) * 2 - 1
    whole = model.encode(video)
    assert whole.shape == (2, model.config.latent_frames(13), 3, 3, model.config.bits)
    torch.testing.assert_close(encode_in_chunks(model, video, sizes), whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("sizes", [[1] * 5, [2, 3], [1, 4], [4, 1]], ids=str)
@torch.no_grad()
def test_decoding_in_any_chunks_equals_decoding_the_whole(model, sizes):
    latent = torch.randn(2, 5, 2, 3, model.config.bits)
    whole = model.decode(latent)
    assert whole.shape[2] == 1 + 4 * model.config.time_stride
    torch.testing.assert_close(decode_in_chunks(model, latent, sizes), whole, atol=1e-5, rtol=0)


@torch.no_grad()
def test_forgetting_the_state_is_seen(model):
    latent = torch.randn(1, 4, 2, 2, model.config.bits)
    forgetful = torch.cat([model.decode_chunk(part).video for part in latent.split(1, 1)], 2)
    whole = model.decode(latent)
    assert forgetful.shape != whole.shape or (forgetful - whole).abs().max() > 0.1


@torch.no_grad()
def test_two_streams_do_not_share_their_state(model):
    first, second = torch.randn(2, 1, 3, 2, 2, model.config.bits).unbind(0)
    parts, states = ([], []), [None, None]
    for frame, (stream, latent) in itertools.product(range(3), enumerate((first, second))):
        chunk = model.decode_chunk(latent[:, frame : frame + 1], states[stream])
        states[stream] = chunk.state
        parts[stream].append(chunk.video)
    torch.testing.assert_close(torch.cat(parts[1], 2), model.decode(second), atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_later_pixel_changes_no_earlier_latent(model):
    side = 2 * model.config.space_stride
    video = torch.rand(1, 3, 13, side, side)
    before = model.encode(video)
    for frame in range(13):
        changed = video.clone()
        changed[:, :, frame] = -changed[:, :, frame]
        differs = (model.encode(changed) - before).abs().amax((0, 2, 3, 4)) > 1e-4
        own = -(-frame // model.config.time_stride)  # the latent frame that this frame belongs to
        assert not differs[:own].any()
        assert own >= len(differs) or differs[own]


@torch.no_grad()
def test_a_later_latent_changes_no_earlier_frame(model):
    latent = torch.randn(1, 4, 2, 2, model.config.bits)
    before = model.decode(latent)
    for frame in range(4):
        changed = latent.clone()
        changed[:, frame] = -changed[:, frame]
        differs = (model.decode(changed) - before).abs().amax((0, 1, 3, 4)) > 1e-4
        own = 0 if frame == 0 else 1 + (frame - 1) * model.config.time_stride
        assert not differs[:own].any()
        assert differs[own]


@torch.no_grad()
def test_an_image_is_the_first_frame_of_a_video(model):
    side = model.config.space_stride
    video = torch.rand(1, 3, 7, side, side)
    image = model.encode(video[:, :, :1])
    torch.testing.assert_close(image, model.encode(video)[:, :1], atol=1e-5, rtol=0)
    assert model.decode(image).shape == (1, 3, 1, side, side)


@torch.no_grad()
def test_other_sizes_than_the_trained_one_work():
    model = lively(FOLDED)
    latent = model.encode(torch.rand(1, 3, 5, 96, 48))
    assert latent.shape == (1, 2, 6, 3, 12)
    assert model.decode(latent).shape == (1, 3, 5, 96, 48)


def test_sizes_that_do_not_fit_are_refused_with_the_numbers():
    model = lively(FOLDED)
    with pytest.raises(ValueError, match=r"multiples of 16, got \(60, 64\)"):
        model.encode(torch.zeros(1, 3, 1, 60, 64))
    with pytest.raises(ValueError, match="T >= 1"):
        model.encode(torch.zeros(1, 3, 0, 64, 64))
    with pytest.raises(ValueError, match=r"\(B, T >= 1, H, W, 12\)"):
        model.decode(torch.zeros(1, 1, 4, 4, 16))
