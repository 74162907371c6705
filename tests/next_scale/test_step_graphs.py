"""Steps that are replayed give what steps run by Python give: other prompts, other seeds, given frames, a window."""

from __future__ import annotations

import pytest
import torch
from host_copies import DEVICE, HostCopies, address
from named_gpu import NamedGpu
from recorded_steps import RecordedSteps, WatchedSteps, own_operators
from sharp_model import sharp_config, sharp_model
from torch import Tensor

from videoar.next_scale import transformer as next_scale_transformer
from videoar.next_scale.guidance import GuidanceSchedule
from videoar.next_scale.sampling import FrameDecoder, decode_frames, decoding_cache
from videoar.step_graphs import OPERATORS, CudaGraphs

FRAMES = 4
CLIPS = [(0, [5, 6]), (1, [7, 2**64 - 1]), (0, [7, 8])]  # (prompts, seeds)


def prompts(config, number: int, device: str = "cpu", dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(number)
    shape = (2, config.text_len, config.text_width)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)


def clip(frames) -> tuple[Tensor, Tensor]:
    frames = list(frames)
    return torch.stack([f.bits for f in frames], dim=1), torch.stack([f.total for f in frames], dim=1)


@pytest.mark.parametrize("window", [None, 1], ids=["whole past", "window"])
@pytest.mark.parametrize("context", ["resampled", "paper"])
def test_recorded_steps_decode_other_clips(window: int | None, context: str):
    config = sharp_config(window=window, context=context)
    model, guidance = sharp_model(config), GuidanceSchedule.ucf()
    uncond = torch.zeros_like(prompts(config, 0))
    run = RecordedSteps()
    decoder = FrameDecoder(model, uncond, frames=FRAMES, guidance=guidance, run=run)
    for number, seeds in CLIPS:
        text = prompts(config, number)
        run.poison()
        found = clip(decoder.decode(text, seeds=seeds, uncond=uncond))
        expected = clip(decode_frames(model, text, frames=FRAMES, seeds=seeds, uncond=uncond, guidance=guidance))
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])
    assert run.replays == (len(CLIPS) - 1) * (1 + FRAMES * len(config.scales))
    waits = {name for name in run.names() if "local_scalar" in name or "nonzero" in name or "item" in name}
    assert not waits, "these wait for the device"
    assert {"sample_bits", "pyramid_step"} <= own_operators(run) <= set(OPERATORS)


@pytest.mark.parametrize("window", [None, 1], ids=["whole past", "window"])
def test_a_decoder_holds_all_that_its_steps_read(window: int | None):
    config, run = sharp_config(window=window), WatchedSteps()
    model, text = sharp_model(config), prompts(config, 0)
    decoder = FrameDecoder(model, text, frames=FRAMES, run=run)
    list(decoder.decode(text, seeds=[5, 6]))
    assert len(run.read) == 1 + FRAMES * len(config.scales) and not run.freed()


def test_what_nobody_holds_is_seen():
    """The control of the test above: positions that are looked up in every step are in a cache alone."""
    config, run = sharp_config(), WatchedSteps()
    model, text = sharp_model(config), prompts(config, 0)
    cache = decoding_cache(model, text, FRAMES)

    def prefill() -> None:
        cache.rollback()
        model.prefill(text, cache)

    run("prefill", prefill)
    assert run.freed() == {"prefill"}


def test_given_frames_have_steps_of_their_own():
    config = sharp_config()
    model, run = sharp_model(config), RecordedSteps()
    text = prompts(config, 0)
    whole, _ = clip(decode_frames(model, text, frames=FRAMES, seeds=[1, 2]))
    decoder = FrameDecoder(model, text, frames=FRAMES, run=run)
    for given in (None, whole[:, :1], whole[:, :2], None):
        assert torch.equal(clip(decoder.decode(text, seeds=[1, 2], given=given))[0], whole)


def test_a_decoder_takes_one_clip_at_a_time_and_recovers_from_one_left_early():
    config = sharp_config()
    decoder = FrameDecoder(sharp_model(config), prompts(config, 0), frames=FRAMES)
    first = decoder.decode(prompts(config, 0), seeds=[1, 2])
    next(first)
    with pytest.raises(RuntimeError, match="one clip at a time"):
        next(decoder.decode(prompts(config, 0), seeds=[1, 2]))
    first.close()
    again, _ = clip(decoder.decode(prompts(config, 0), seeds=[1, 2]))
    assert torch.equal(
        again, clip(decode_frames(decoder.transformer, prompts(config, 0), frames=FRAMES, seeds=[1, 2]))[0]
    )


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_cuda_graphs_decode_other_clips(dtype: torch.dtype):
    config = sharp_config(width=128)
    model, guidance = sharp_model(config).to("cuda", dtype), GuidanceSchedule.ucf()
    uncond = torch.zeros_like(prompts(config, 0, "cuda", dtype))
    run = CudaGraphs(uncond.device)
    decoder = FrameDecoder(model, uncond, frames=FRAMES, guidance=guidance, run=run)
    for number, seeds in CLIPS:
        text = prompts(config, number, "cuda", dtype)
        found = clip(decoder.decode(text, seeds=seeds, uncond=uncond))
        expected = clip(decode_frames(model, text, frames=FRAMES, seeds=seeds, uncond=uncond, guidance=guidance))
        assert torch.equal(found[0], expected[0])
    assert len(run) == 1 + FRAMES * len(config.scales)


def test_a_decoder_made_in_inference_mode_serves_outside_it():
    config = sharp_config()
    text = prompts(config, 0)
    with torch.inference_mode():
        decoder = FrameDecoder(sharp_model(config), text, frames=FRAMES)
        inside, _ = clip(decoder.decode(text, seeds=[1, 2]))
    assert torch.equal(clip(decoder.decode(text, seeds=[1, 2]))[0], inside)


@pytest.mark.parametrize("window", [None, 1], ids=["whole past", "window"])
def test_a_step_copies_nothing_from_the_host(window: int | None, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "data_ptr", address)
    config, run = sharp_config(window=window), HostCopies()
    text = prompts(config, 0, DEVICE)
    guidance = GuidanceSchedule.ucf()
    decoder = FrameDecoder(sharp_model(config).to(DEVICE), text, frames=FRAMES, guidance=guidance, run=run)
    assert len(list(decoder.decode(text, seeds=[5, 6], uncond=torch.zeros_like(text)))) == FRAMES
    assert run.steps == 1 + FRAMES * len(config.scales) and run.found == []


def test_what_a_step_copies_from_the_host_is_seen():
    """The control of the test above."""
    run, like, index = HostCopies(), torch.zeros(3, device=DEVICE), torch.tensor([0, 2])
    run("numbers", lambda: like.new_tensor([1.0, 2.0]))
    run("copy", lambda: like.copy_(torch.ones(3)))
    run("move", lambda: index.to(DEVICE))
    run("index", lambda: like[index])
    run("scalar", lambda: like.mul_(torch.tensor(2.0)).add_(3))
    assert run.found == ["new_tensor", "aten.copy_.default", "aten._to_copy.default", "aten.index.Tensor"]


@pytest.mark.parametrize("window", [None, 1], ids=["whole past", "window"])
def test_a_step_asks_for_no_new_mask_when_it_is_captured(window: int | None, monkeypatch):
    gpu = NamedGpu(monkeypatch)
    monkeypatch.setattr(next_scale_transformer, "range_attention", gpu.attention)
    config = sharp_config(window=window)
    text = prompts(config, 0)
    decoder = FrameDecoder(sharp_model(config), text, frames=FRAMES, run=gpu.run_and_capture)
    assert len(list(decoder.decode(text, seeds=[5, 6]))) == FRAMES
    assert gpu.made > FRAMES
