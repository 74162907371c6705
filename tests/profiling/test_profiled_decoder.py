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


@pytest.mark.parametrize(("matrices", "convolutions"), [(False, True), (True, False)])
def test_the_report_says_whether_float32_is_tf32(monkeypatch, matrices, convolutions):
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", matrices)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", convolutions)
    name = {True: "TF32", False: "float32"}
    said = limits.float32_products()
    assert f"matrix products in {name[matrices]}, convolutions in {name[convolutions]}" in said
