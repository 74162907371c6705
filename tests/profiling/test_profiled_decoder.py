"""What the profiled decoder computes in, and that the report says so."""

from __future__ import annotations

import pytest
import torch

from videoar.profiling import limits
from videoar.profiling.subject import Options, preset_subject


@torch.no_grad()
def test_a_profile_decodes_as_it_says():
    narrow = preset_subject("tiny", Options(decode_dtype=torch.bfloat16))
    usual = preset_subject("tiny", Options())
    assert narrow.facts["tokenizer"] == "decodes in bf16" and usual.facts["tokenizer"] == "decodes in f32"
    assert narrow.pipeline.tokenizer.decoding == torch.bfloat16
    work, wide = narrow.work().parts["decode"], usual.work().parts["decode"]
    assert [w.flops for w in work] == [w.flops for w in wide] and [2 * w.bytes for w in work] == [w.bytes for w in wide]
    (pixels,) = narrow.pipeline.stream([""], frames=1)
    assert pixels.dtype == torch.float32 and not pixels.isnan().any()


@pytest.mark.gpu
def test_on_a_gpu_the_profile_decodes_in_bfloat16():
    assert preset_subject("tiny", Options(device="cuda")).facts["tokenizer"] == "decodes in bf16"
    wide = Options(device="cuda", decode_dtype=torch.float32)
    assert preset_subject("tiny", wide).facts["tokenizer"] == "decodes in f32"


@pytest.fixture
def backends():
    """Those of matrix products and convolutions; their settings are properties, which `monkeypatch` cannot put back."""
    found = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [backend.allow_tf32 for backend in found]
    yield found
    for backend, value in zip(found, before, strict=True):
        backend.allow_tf32 = value


@pytest.mark.parametrize("wanted", [(False, True), (True, False)])
def test_the_report_says_whether_float32_is_tf32(backends, wanted):
    for backend, value in zip(backends, wanted, strict=True):
        backend.allow_tf32 = value
    matrices, convolutions = ("TF32" if value else "float32" for value in wanted)
    assert f"matrix products in {matrices}, convolutions in {convolutions}" in limits.float32_products()
