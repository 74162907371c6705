"""A profile of paper U: its work, its eager twin, and figures that hang together."""

from __future__ import annotations

import json

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from videoar.cli import app
from videoar.next_unit import UnitDefaults, UnitPipeline, multiscale, preset
from videoar.profiling.contender import Options
from videoar.profiling.eager_backbone import EagerBackbone, flow_disagreement
from videoar.profiling.eager_model import rope_table
from videoar.profiling.measure import profile
from videoar.profiling.page import page
from videoar.profiling.random_weights import random_backbone
from videoar.profiling.shapes import Shape
from videoar.profiling.unit_subject import SMALL_AUTOENCODERS, unit_preset_subject
from videoar.profiling.unit_work import BackboneWork, autoencoder_work
from videoar.text import WordEncoder, WordEncoderConfig
from videoar.tokenizer.autoencoder import VideoAutoencoder

UNITS = ["frame", "cube(2, 2, 2)", "key_detail(2)", "multiscale(1x1)"]


def subject(units: str = "cube(2, 2, 2)", **options):
    torch.manual_seed(0)
    return unit_preset_subject("tiny", Options(**options), units=units, steps=2)


@pytest.fixture(scope="module")
def found():
    return profile(subject(batch=2, compare_eager=True, dtype=torch.float32, guidance=True), rounds=3)


@pytest.mark.parametrize("units", UNITS)
def test_the_eager_twin_is_the_same_model(units):
    one = subject(units, compare_eager=True, dtype=torch.float32, guidance=True)
    assert one.disagreement() < 1e-5
    packed = subject(units, compare_eager=True, pack=torch.bfloat16)
    assert {p.dtype for p in packed.eager.twin.parameters()} <= {torch.float32, torch.bfloat16}
    assert 1e-5 < packed.disagreement() < 0.05


def test_a_weight_that_differs_is_seen():
    one = subject(compare_eager=True, dtype=torch.float32)
    weight = one.eager.twin.blocks[1].cross_attn.v.weight
    weight.data = weight.data * 1.1
    assert flow_disagreement(one.model, one.eager.twin, one.layout, one.text()) > 1e-3
    weight.data = weight.data * 3
    with pytest.raises(ValueError, match=r"expected eager PyTorch's flow within 0.001"):
        one.disagreement()


@pytest.mark.parametrize("scheme", UNITS)
@torch.no_grad()
def test_flops_of_passes_are_those_that_pytorch_counts(scheme):
    layout, rows = subject(scheme).layout, 3
    config = preset("tiny", levels=len(layout.levels) if len(layout.levels) > 1 else 0)
    work = BackboneWork(config, rows, weight_bytes=4, cache_bytes=4)
    twin = EagerBackbone(random_backbone(config))
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as counter:
            keys = twin.text_keys(torch.randn(rows, config.text_len, config.text_width))
        assert work.text().flops == counter.get_total_flops()
        past, tables = [None] * config.depth, rope_table(layout.positions(), config.head_dim, config.theta)
        passes = work.passes(layout, 1)
        for unit, tokens in enumerate(layout.lengths):
            x, table = torch.randn(rows, tokens, config.patch_width), tuple(t[layout.within(unit)] for t in tables)
            with FlopCounterMode(display=False) as counter:
                _, past = twin.step(x, 0.5, keys, table, past, layout.units[unit].level)
            assert passes[2 * unit].work.flops == counter.get_total_flops()
            assert passes[2 * unit].place == f"unit {unit}, pass 1" and passes[2 * unit + 1].group == "clean pass"


def test_bytes_of_a_pass_by_hand():
    config = preset("tiny", width=8, depth=3, heads=2, ffn_width=16, channels=2, freq_dim=4, text_len=5)
    block = 6 * 8 * 8 + 2 * 8 * 16
    time = 4 * 8 + 7 * 8 * 8
    cached = 2 * 2 * (7 + 3 + 5) * 8 * 3  # keys and values, two rows, read 7 and 5, write 3, three layers
    work = BackboneWork(config, 2, weight_bytes=2, cache_bytes=4).one_pass(3, 7)
    assert work.bytes == 2 * (3 * block + 2 * 8 * 8) + 4 * time + 4 * cached


@torch.no_grad()
def test_decoder_flops_are_those_that_pytorch_counts():
    config = SMALL_AUTOENCODERS["sprites"]
    ours, state = VideoAutoencoder(config), None
    works = autoencoder_work(ours, (2, 16, 4, 2, 2), element_bytes=4)
    for work in works:
        with FlopCounterMode(display=False) as counter:
            state = ours.decode_chunk(torch.randn(2, 16, 1, 2, 2), state).state
        assert work.flops == counter.get_total_flops() and work.bytes > 0
    assert len(works) == 4 and works[2] == works[3] and works[0].flops < works[1].flops


def test_wan_is_decoded_and_counted():
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    from videoar.next_unit.wan_vae import WanVideoAutoencoder

    small = diffusers.AutoencoderKLWan(
        base_dim=8, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, latents_mean=[0.0] * 4, latents_std=[1.0] * 4
    )
    autoencoder, state = WanVideoAutoencoder(small), None
    for work in autoencoder_work(autoencoder, (1, 4, 4, 3, 2), element_bytes=4):
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            state = autoencoder.decode_chunk(torch.randn(1, 4, 1, 3, 2), state).state
        assert work.flops == counter.get_total_flops()


def test_figures_hang_together(found):
    ours, bare, eager = found.ours, found.bare, found.eager
    units, passes = 8, 3
    for timed in (ours, bare, eager):
        assert sum(part.in_median_clip for part in timed.parts) == pytest.approx(timed.seconds.median)
        assert len(timed.steps) == units * passes and timed.unit.count == 3 * units
        assert 0 < timed.unit.median < timed.seconds.most / 4
        assert timed.frame_rate == pytest.approx(2 * 9 / timed.seconds.median)
        assert timed.token_rate == pytest.approx(2 * 3 * 2 * 2 / timed.seconds.median)
        parts = {part.name: part for part in timed.parts}
        denoising = sum(row.flops for row in timed.steps if row.group != "clean pass")
        assert parts["transformer"].flops == denoising and parts["clean"].flops == denoising / 2
        assert ("decode" in parts) == (timed is not bare)
    assert [part.name for part in ours.parts] == ["text", "noise", "transformer", "clean", "decode", "between parts"]
    assert found.disagreement < 1e-3 and found.speedup > 0


def test_every_form_shows_them(found, tmp_path):
    found.save(tmp_path / "p.json")
    data = json.loads((tmp_path / "p.json").read_text())
    assert data["bare"]["name"] == "without decoding" and data["ours"]["unit"]["count"] == 24
    assert data["ours"]["steps"][2] | {"group": "clean pass", "place": "unit 0, clean pass"} == data["ours"]["steps"][2]
    text = page(found)
    assert "frames/s without decoding" in text and "unit 7, pass 2" in text and "a unit, median" in text


def test_multiscale_units_are_profiled_with_their_level_embedding():
    one = profile(subject("multiscale(1x1)", decode=False), once=True)
    assert one.rounds == 1 and len(one.ours.samples) == 1 and one.ours.first_clip == one.ours.samples[0]
    assert [row.size for row in one.ours.steps[::3]] == [(3, 1, 1), (3, 2, 2)] and one.bare is None
    assert multiscale([(1, 1)]).on((3, 2, 2)).levels == ((3, 1, 1), (3, 2, 2))


@pytest.mark.gpu
@pytest.mark.parametrize("units", ["cube(2, 2, 2)", "multiscale(1x1)"])
def test_units_are_profiled_on_a_gpu(units):
    found = profile(subject(units, device="cuda", pack=torch.bfloat16, compare_eager=True), rounds=2)
    assert {part.name for part in found.ours.parts} >= {"text", "noise", "transformer", "clean", "decode"}
    assert found.ours.unit.median > 0 and found.bare.frame_rate > 0 and found.disagreement < 0.05


def run(*arguments):
    return CliRunner().invoke(app, ["profile", "--device", "cpu", *map(str, arguments)])


def test_the_command_profiles_units(tmp_path):
    done = run("--preset", "tiny", "--units", "frame", "--steps", 1, "--once", "--json", tmp_path / "p.json")
    assert done.exit_code == 0, done.output
    assert "without decoding" in done.output and "a unit in" in done.output and "clean pass" in done.output
    assert json.loads((tmp_path / "p.json").read_text())["subject"]["units"].startswith("frame: 3 of 4 tokens, 1 step")
    once = run("--preset", "tiny", "--units", "frame", "--shape", "1x64x64", "--steps", 1, "--rounds", 1, "--no-vae")
    assert "One clip was made" in done.output and "One clip was made" not in once.output, once.output
    assert once.exit_code == 0 and "not run (--no-decode)" in once.output


def test_a_saved_model_is_profiled_as_it_is(tmp_path):
    one = subject()
    text = WordEncoder(WordEncoderConfig(("a", "red", "ball"), one.model.config.text_width, one.model.config.text_len))
    UnitPipeline(one.autoencoder, one.model, text, UnitDefaults("frame", (2, 2, 2), steps=1)).save_pretrained(
        tmp_path / "model"
    )
    done = run("--model", tmp_path / "model", "--once", "--dtype", "float32")
    assert done.exit_code == 0, done.output
    assert "given weights" in done.output and "a unit in" in done.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--preset", "L", "--units", "frame"), "expected one of ['1.3B', 'sprites', 'tiny'], got 'L'"),
        (("--preset", "tiny", "--units", "square"), "parse_units"),
        (("--preset", "tiny", "--units", "frame", "--scales", "1,2"), "--scales only for paper S"),
        (("--preset", "tiny", "--units", "frame", "--shape", "9x36x32"), "multiples of 16 x 16 pixels, got 9x36x32"),
        (("--preset", "tiny", "--units", "frame", "--layers", "3"), "--layers from 1 to 2"),
        (("--preset", "tiny", "--once", "--rounds", "2"), "expected --once or --rounds, got both"),
    ],
)
def test_a_mistake_is_named_in_one_line(arguments, message):
    done = run(*arguments)
    assert done.exit_code == 1 and message in done.output.replace("\n", "") and "Traceback" not in done.output


def test_a_missing_diffusers_is_said(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "diffusers", None)
    one = unit_preset_subject("1.3B", Options(), units="frame", steps=1, shape=Shape(1, 16, 16), layers=1)
    assert one.autoencoder is None and "diffusers is not installed" in one.facts["autoencoder"]
    assert any("pip install diffusers" in line for line in one.includes)
