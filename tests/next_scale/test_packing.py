"""The transformer in its form for inference: what it predicts, and what it refuses."""

from __future__ import annotations

import copy

import pytest
import torch
from sharp_model import FRAMES, clip_inputs, sharp_config, sharp_model
from torch import Tensor, nn

from videoar.next_scale.guidance import GuidanceSchedule
from videoar.next_scale.sampling import decode_frames
from videoar.next_scale.transformer import NextScaleTransformer
from videoar_kernels import PackedLinear


@pytest.fixture(scope="module")
def model() -> NextScaleTransformer:
    return sharp_model(sharp_config()).float()


def packed(model: NextScaleTransformer, dtype: torch.dtype) -> NextScaleTransformer:
    return copy.deepcopy(model).pack(dtype)


@torch.no_grad()
def logits(model: NextScaleTransformer) -> Tensor:
    return model(*(part.to(model.dtype) for part in clip_inputs(model.config)))


@torch.no_grad()
def bits(model: NextScaleTransformer) -> Tensor:
    text, _, _ = clip_inputs(model.config)
    text = text.to(model.dtype)
    frames = decode_frames(
        model,
        text,
        frames=FRAMES,
        seeds=[1, 2],
        uncond=torch.zeros_like(text),
        guidance=GuidanceSchedule.constant(2.0),
    )
    return torch.stack([frame.bits for frame in frames], dim=1)


def test_every_linear_layer_is_packed(model):
    for dtype in (torch.bfloat16, torch.float32):
        modules = list(packed(model, dtype).modules())
        assert not any(isinstance(module, nn.Linear) for module in modules)
        linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
        assert sum(isinstance(module, PackedLinear) for module in modules) == len(linears)


def test_on_another_device_layers_are_converted_only(model):
    elsewhere = copy.deepcopy(model).to("meta").pack(torch.bfloat16)
    linears = [module for module in elsewhere.modules() if isinstance(module, nn.Linear)]
    assert len(linears) > 3 * elsewhere.config.depth
    assert {module.weight.dtype for module in linears if module is not elsewhere.head} == {torch.bfloat16}


@pytest.mark.parametrize("device", ["cpu", "meta", "cuda"])
def test_logits_of_a_packed_model_are_float32_on_every_device(model, device):
    elsewhere = copy.deepcopy(model).to(device).pack(torch.bfloat16)
    text, inputs, context = (part.to(device, torch.bfloat16) for part in clip_inputs(model.config))
    with torch.no_grad():
        assert elsewhere(text, inputs, context).dtype == torch.float32
        unpacked = copy.deepcopy(model).to(device, torch.bfloat16)
        assert unpacked(text, inputs, context).dtype == torch.bfloat16


@pytest.mark.gpu
def test_packed_models_predict_the_same_on_cpu_and_gpu(model):
    """Both round the same weights to bfloat16; neither rounds its logits."""
    expected = logits(packed(model, torch.bfloat16))
    with torch.no_grad():
        inputs = (part.to("cuda", torch.bfloat16) for part in clip_inputs(model.config))
        found = copy.deepcopy(model).to("cuda").pack(torch.bfloat16)(*inputs).cpu()
    assert float((found - expected).square().mean().sqrt() / expected.square().mean().sqrt()) < 0.1


@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float32, 1e-4), (torch.bfloat16, 0.1)])
def test_a_packed_model_predicts_the_same_up_to_its_rounding(model, dtype, allowed):
    expected = logits(model)
    found = logits(packed(model, dtype))
    assert found.dtype == torch.float32
    assert float((found - expected).square().mean().sqrt() / expected.square().mean().sqrt()) < allowed


def test_sampling_in_float32_draws_the_same_bits(model):
    """Rounding may move a bit whose draw falls upon its probability; none does here."""
    assert torch.equal(bits(packed(model, torch.float32)), bits(model))


def test_sampling_in_bfloat16_sums_what_it_drew_in_float32(model):
    narrow = packed(model, torch.bfloat16)
    assert bits(narrow).shape == bits(model).shape
    text = clip_inputs(model.config)[0].bfloat16()
    (frame,) = decode_frames(narrow, text, frames=1, seeds=[1, 2])
    assert frame.total.dtype == torch.float32


def test_a_packed_model_cannot_be_saved_or_trained(model, tmp_path):
    narrow = packed(model, torch.bfloat16)
    with pytest.raises(ValueError, match="got a packed one"):
        narrow.save_pretrained(tmp_path)
    assert not narrow.training and not any(p.requires_grad for p in narrow.parameters())


def test_a_dtype_that_cannot_be_packed_is_told(model):
    with pytest.raises(TypeError, match="expected dtype"):
        packed(model, torch.float16)
