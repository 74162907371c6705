"""The eager clip computes what ours computes; otherwise comparing their times would mean nothing."""

from __future__ import annotations

import pytest
import torch

from videoar.next_scale.guidance import GuidanceSchedule
from videoar.next_scale.pipeline import SamplingDefaults
from videoar.profiling.eager_clip import disagreement, down, draw, up
from videoar.profiling.recorder import CpuRecorder
from videoar.profiling.subject import Options, preset_subject
from videoar_kernels import reference


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("decode", [False, True])
def test_greedy_clips_are_ours(guidance, decode):
    subject = preset_subject("tiny", Options(dtype=torch.float32, compare_eager=True, batch=2))
    schedule = GuidanceSchedule.constant(guidance)
    subject.pipeline.defaults = SamplingDefaults(temperature=0.0)
    options = {"frames": subject.shape.frames, "guidance": schedule, "temperature": 0.0}
    if decode:
        ours = list(subject.pipeline.stream(subject.prompts, **options))
    else:
        ours = [frame.total for frame in subject.pipeline.latents(subject.prompts, **options)]
    eager = subject.eager.stream(subject.prompts, latent_frames=subject.latent_frames, guidance=schedule, decode=decode)
    for a, b in zip(ours, eager, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_logits_agree_until_a_weight_differs():
    subject = preset_subject("tiny", Options(dtype=torch.float32, compare_eager=True))
    twin, text = subject.eager.twin, torch.randn(1, subject.config.text_len, subject.config.text_width)
    assert disagreement(subject.pipeline.transformer, twin, text, 3) < 1e-5
    twin.blocks[1].ffn.up.weight.data = twin.blocks[1].ffn.up.weight.data.clone().mul_(1.1)
    assert disagreement(subject.pipeline.transformer, twin, text, 3) > 1e-3


def test_the_twin_keeps_its_weights_when_ours_are_packed():
    subject = preset_subject("tiny", Options(pack=torch.bfloat16, compare_eager=True))
    twin = subject.eager.twin
    text = torch.randn(1, subject.config.text_len, subject.config.text_width)
    assert {p.dtype for p in twin.parameters()} <= {torch.float32, torch.bfloat16}
    assert 1e-5 < disagreement(subject.pipeline.transformer, twin, text, 3) < 0.05


def test_both_report_the_same_parts():
    subject = preset_subject("tiny", Options(compare_eager=True))
    ours, eager = (CpuRecorder().clip(run) for run in (subject.run, subject.run_eager))
    assert {span.part for span in ours.spans} == {span.part for span in eager.spans}
    assert set(ours.part_seconds()) == {"text", "prefill", "transformer", "sampling", "decode", "between parts"}


def test_resampling_and_drawing_are_the_references():
    x = torch.randn(2, 6, 5, 8)
    coarse = reference.pyramid.down(x, (2, 3))
    torch.testing.assert_close(down(x, (2, 3)), coarse.flatten(1, 2))
    torch.testing.assert_close(up(down(x, (2, 3)), (2, 3), (6, 5)), reference.pyramid.up(coarse, (6, 5)))
    logits = torch.tensor([[[2.0, -2.0]], [[1.0, 3.0]]])
    assert draw(logits, 2, 3.0, 0.0).tolist() == [[[True, False]]]
    assert draw(torch.full((1, 1, 4000), 1.0), 1, 1.0, 0.5).float().mean().item() == pytest.approx(0.88, abs=0.03)
