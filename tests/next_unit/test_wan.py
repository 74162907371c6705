"""Our backbone beside diffusers' WanTransformer3DModel, and the two layouts of checkpoints."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
from closeness import assert_close
from safetensors.torch import save_file
from sharp_backbone import BATCH, CONFIG, GRID, SCHEMES, distance, draw, prompt, sharp_backbone, sharpen

from videoar.next_unit import cube, frame, from_sequence, to_sequence
from videoar.next_unit.config import preset
from videoar.next_unit.modulation import timestep_sinusoid
from videoar.next_unit.transformer import NextUnitTransformer
from videoar.next_unit.wan import load_wan, read_wan_config

EXACT, WRONG = 1e-12, 1e-2


@pytest.fixture(scope="module")
def wan(tmp_path_factory):
    """diffusers' model with our small shape, and a folder with it."""
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    torch.manual_seed(0)
    model = diffusers.WanTransformer3DModel(
        patch_size=CONFIG.patch,
        num_attention_heads=CONFIG.heads,
        attention_head_dim=CONFIG.head_dim,
        in_channels=CONFIG.channels,
        out_channels=CONFIG.channels,
        text_dim=CONFIG.text_width,
        freq_dim=CONFIG.freq_dim,
        ffn_dim=CONFIG.ffn_width,
        num_layers=CONFIG.depth,
        cross_attn_norm=True,
        rope_max_seq_len=32,
    ).eval()
    sharpen(model)
    folder = tmp_path_factory.mktemp("wan")
    model.save_pretrained(folder / "transformer")
    return model, folder


def latents() -> torch.Tensor:
    return draw(5, BATCH, CONFIG.channels, *(size * p for size, p in zip(GRID, CONFIG.patch, strict=True)))


TIMESTEPS = torch.tensor([999.0, 437.5], dtype=torch.float64)


@torch.no_grad()
def ours(folder, dtype, scheme, timesteps=TIMESTEPS):
    model = load_wan(folder, CONFIG, dtype=dtype).model
    layout = scheme.on(GRID)
    text = torch.nn.functional.pad(prompt(CONFIG), (0, 0, 0, 1))
    out = model(to_sequence(latents().to(dtype), layout, CONFIG.patch), timesteps, text, layout)
    return from_sequence(out, layout, CONFIG.patch)


@torch.no_grad()
def theirs(model, dtype, timesteps=TIMESTEPS):
    text = torch.nn.functional.pad(prompt(CONFIG), (0, 0, 0, 1)).to(dtype)
    return model(latents().to(dtype), timesteps, text, return_dict=False)[0]


class Sinusoid(torch.nn.Module):
    """Of the timesteps, number by number in float64."""

    def forward(self, timesteps):
        half = CONFIG.freq_dim // 2
        rates = torch.tensor([math.exp(-math.log(10000) * i / half) for i in range(half)], dtype=torch.float64)
        angles = timesteps.double()[:, None] * rates
        return torch.cat([angles.cos(), angles.sin()], dim=1)


@pytest.fixture
def exact(wan, monkeypatch):
    """diffusers' model in float64, with its own roundings to float32 lifted: norms, RoPE's table and sinusoids."""

    def run(timesteps=TIMESTEPS):
        with monkeypatch.context() as lifted:
            lifted.setattr(torch.Tensor, "float", torch.Tensor.double)
            wide = type(wan[0]).from_config(wan[0].config).double().eval()
            wide.load_state_dict(wan[0].state_dict())
            wide.condition_embedder.timesteps_proj = Sinusoid()
            return theirs(wide, torch.float64, timesteps)

    return run


@pytest.mark.parametrize("name", [name for name in SCHEMES if name != "multiscale"])
def test_float64_equals_diffusers_whatever_the_order_of_tokens(wan, exact, name):
    assert distance(ours(wan[1], torch.float64, SCHEMES[name]), exact()) < EXACT


def test_float32_is_as_close_as_diffusers(wan, exact):
    model, folder = wan
    expected, low = exact(), theirs(model, torch.float32)
    assert_close(ours(folder, torch.float32, frame()), expected, low)


def test_a_noise_level_for_each_ragged_unit_equals_one_for_each_token(wan, exact):
    layout = cube().on(GRID)
    levels = 1000 * draw(3, BATCH, len(layout.units)).sigmoid()
    each = levels[:, layout.unit_ids][:, layout.inverse]  # (B, tokens of the grid)
    assert distance(ours(wan[1], torch.float64, cube(), levels), exact(each)) < EXACT
    wrong = levels.roll(1, dims=1)[:, layout.unit_ids][:, layout.inverse]
    assert distance(ours(wan[1], torch.float64, cube(), levels), exact(wrong)) > WRONG


def test_the_comparison_sees_swapped_axes_and_unpadded_text(wan, exact):
    model = load_wan(wan[1], CONFIG, dtype=torch.float64).model
    layout = frame().on(GRID)
    tokens, text = to_sequence(latents(), layout, CONFIG.patch), prompt(CONFIG)
    swapped = copy.copy(layout)
    object.__setattr__(swapped, "positions", lambda *_, **__: layout.positions()[:, [0, 2, 1]])
    model.config = CONFIG.replace(text_len=text.shape[1])
    with torch.no_grad():
        unpadded = from_sequence(model(tokens, TIMESTEPS, text, layout), layout, CONFIG.patch)
        model.config = CONFIG
        turned = from_sequence(model(tokens, TIMESTEPS, text, swapped), layout, CONFIG.patch)
    assert distance(unpadded, exact()) > WRONG
    assert distance(turned, exact()) > WRONG


def test_sinusoids_are_those_of_the_definition():
    found = timestep_sinusoid(torch.tensor([0.0, 999.0, 0.25]), 6)
    for row, t in zip(found.tolist(), (0.0, 999.0, 0.25), strict=True):
        angles = [t / 10000 ** (i / 3) for i in range(3)]
        assert row == pytest.approx([math.cos(a) for a in angles] + [math.sin(a) for a in angles], abs=1e-12)


def test_diffusers_layout_is_matched_whole(wan):
    model, report = load_wan(wan[1])
    assert model.config == CONFIG.replace(text_len=512)
    assert report.layout == "diffusers"
    assert len(report.matched) == len(model.state_dict()) == len(wan[0].state_dict())
    assert report.missing == report.unexpected == report.mismatched == ()


@pytest.fixture
def original(tmp_path):
    """A folder as Wan's authors ship it, in two files, with what they write into config.json."""
    state = {name: tensor.clone() for name, tensor in sharp_backbone(CONFIG).state_dict().items()}
    names = sorted(state)
    for number, part in enumerate((names[::2], names[1::2])):
        save_file({name: state[name] for name in part}, tmp_path / f"part-{number}.safetensors")
    (tmp_path / "config.json").write_text(
        json.dumps(
            {
                "_class_name": "WanModel",
                "dim": 48,
                "ffn_dim": 64,
                "num_heads": 2,
                "num_layers": 3,
                "in_dim": 3,
                "out_dim": 3,
                "freq_dim": 16,
                "text_len": 5,
                "text_dim": 10,
                "model_type": "t2v",
                "eps": 1e-6,
            }
        )
    )
    return tmp_path, state


def test_original_layout_is_matched_whole(original):
    folder, state = original
    model, report = load_wan(folder, dtype=torch.float64)
    assert report.layout == "original" and len(report.matched) == len(state)
    assert report.missing == report.unexpected == report.mismatched == ()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert read_wan_config(folder) == CONFIG


def test_the_original_has_these_names(original):
    """Spelled out from Wan's repository, so that a renamed module is noticed."""
    block = {f"{a}_attn.{p}.{w}" for a in ("self", "cross") for p in "qkvo" for w in ("weight", "bias")}
    block |= {f"{a}_attn.norm_{p}.weight" for a in ("self", "cross") for p in "qk"}
    block |= {f"ffn.{i}.{w}" for i in (0, 2) for w in ("weight", "bias")}
    block |= {"norm3.weight", "norm3.bias", "modulation"}
    expected = {f"blocks.{i}.{name}" for i in range(3) for name in block} | {"head.modulation"}
    places = ("patch_embedding", "time_projection.1", "head.head")
    places += tuple(f"{kind}_embedding.{i}" for kind in ("text", "time") for i in (0, 2))
    expected |= {f"{place}.{w}" for place in places for w in ("weight", "bias")}
    assert set(original[1]) == expected


def test_the_report_names_what_is_missing_unexpected_and_of_another_shape(original):
    folder, state = original
    for file in folder.glob("*.safetensors"):
        file.unlink()
    state = {f"model.{name}": tensor for name, tensor in state.items() if name != "blocks.1.norm3.bias"}
    state["model.blocks.0.ffn.0.weight"] = torch.zeros(3, 3)
    state["model.img_emb.proj.weight"] = torch.zeros(2)
    save_file(state, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"1 missing: blocks\.1\.norm3\.bias.*1 mismatched: blocks\.0\.ffn\.0\.weight"):
        load_wan(folder)
    model, report = load_wan(folder, strict=False)
    assert report.missing == ("blocks.1.norm3.bias",)
    assert report.unexpected == ("model.img_emb.proj.weight",)
    assert report.mismatched == ("blocks.0.ffn.0.weight",)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert torch.equal(model.head.head.bias.double(), state["model.head.head.bias"].float().double())


def test_levels_start_at_zero(original):
    model, report = load_wan(original[0], levels=3)
    assert report.missing == ("level_embedding",)
    assert torch.equal(model.level_embedding, torch.zeros(3, 48))


def test_folders_without_a_model_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no \*\.safetensors"):
        load_wan(tmp_path)
    save_file({"weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        load_wan(tmp_path)
    with pytest.raises(ValueError, match="expected a Wan transformer"):
        load_wan(tmp_path, CONFIG)
    (tmp_path / "config.json").write_text('{"hidden_size": 4}')
    with pytest.raises(ValueError, match="expected the config of a Wan transformer"):
        read_wan_config(tmp_path)


def test_the_preset_has_the_size_of_wan():
    with torch.device("meta"):
        model = NextUnitTransformer(preset("1.3B"))
    assert sum(parameter.numel() for parameter in model.parameters()) == 1_418_996_800


def test_a_model_is_read_back_as_it_was_saved(tmp_path):
    model = sharp_backbone(CONFIG).float()
    model.save_pretrained(tmp_path / "model")
    again = NextUnitTransformer.from_pretrained(tmp_path / "model")
    assert again.config == CONFIG
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in again.state_dict().items())
