"""The form for inference: packed layers, and what stays in float32."""

from __future__ import annotations

import copy

import pytest
import torch
from closeness import assert_close
from sharp_backbone import BATCH, CONFIG, GRID, SCHEMES, clip, config_for, noise_levels, prompt, sharp_backbone

from videoar.next_unit import cube

LAYOUT = cube().on(GRID)


@torch.no_grad()
def flow(model) -> torch.Tensor:
    tokens, text = clip(LAYOUT, CONFIG), prompt(CONFIG)
    return model(tokens, noise_levels(LAYOUT), text, LAYOUT, direction="forward")


def rms(x: torch.Tensor) -> float:
    return float(x.double().square().mean().sqrt())


def test_packed_float32_is_as_close_as_float32():
    model = sharp_backbone(CONFIG)
    exact, low = flow(model), flow(copy.deepcopy(model).float())
    assert_close(flow(model.pack(torch.float32)), exact, low)


def test_packed_bfloat16_is_closer_than_all_in_bfloat16():
    model = sharp_backbone(CONFIG)
    exact, low = flow(model), flow(copy.deepcopy(model).bfloat16())
    out = flow(model.pack())
    assert out.dtype == torch.float32
    assert 0 < rms(out - exact) < rms(low - exact) < rms(exact)


@pytest.mark.parametrize("device", ["cpu", "meta", "cuda"])
def test_the_flow_of_a_packed_model_is_float32_on_every_device(device):
    model = sharp_backbone(CONFIG).to(device).pack()
    tokens, levels, text = (x.to(device) for x in (clip(LAYOUT, CONFIG), noise_levels(LAYOUT), prompt(CONFIG)))
    with torch.no_grad():
        assert model.blocks[0].ffn[0](model.patch_embedding.weight.new_zeros(1, CONFIG.width)).dtype == torch.bfloat16
        assert model(tokens, levels, text, LAYOUT, direction="forward").dtype == torch.float32


def test_what_the_timestep_goes_through_stays_in_float32():
    model = sharp_backbone(CONFIG).pack()
    kept = [*model.time_embedding.parameters(), *model.time_projection.parameters(), model.head.modulation]
    kept += [block.modulation for block in model.blocks]
    assert all(parameter.dtype == torch.float32 for parameter in kept)
    assert model.dtype == torch.bfloat16


@pytest.mark.parametrize("scheme", [SCHEMES["frame"], SCHEMES["multiscale"]], ids=str)
def test_a_packed_model_steps_through_a_cache_of_its_dtype(scheme):
    config, layout = config_for(scheme), scheme.on(GRID)
    model = sharp_backbone(config).pack()
    cache, text = model.new_cache(layout, BATCH, window=1), model.encode_text(prompt(config))
    assert cache.kv.dtype == torch.bfloat16 and text.k[0].dtype == torch.bfloat16
    tokens, levels = clip(layout, config), noise_levels(layout)
    with torch.no_grad():
        whole = model(tokens, levels, text, layout, direction="forward", window=1)
        for unit in range(len(layout.units)):
            here = layout.within(unit)
            part = model.step(tokens[:, here], levels[:, unit], text, layout, unit, cache)
            cache.commit()
            assert rms(part - whole[:, here]) < 0.02 * rms(whole)


def test_a_packed_model_cannot_be_saved(tmp_path):
    with pytest.raises(ValueError, match="got a packed one"):
        sharp_backbone(CONFIG).pack().save_pretrained(tmp_path / "model")
