"""The command line, on a tiny model with random weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_sprites import tiny_sprites
from typer.testing import CliRunner

from videoar.cli import app
from videoar.data.video import probe_video, read_video, write_video
from videoar.next_scale.config import preset
from videoar.next_scale.pipeline import SamplingDefaults, VideoPipeline
from videoar.next_scale.transformer import NextScaleTransformer
from videoar.next_unit import UnitPipeline
from videoar.text import WordEncoder, WordEncoderConfig
from videoar.tokenizer import TokenizerConfig, VideoTokenizer
from videoar_kernels import PackedLinear

TOKENIZER = TokenizerConfig(
    bits=12,
    scales=((1, 1), (2, 2), (4, 4)),
    patch=(4, 4),
    channels=(8, 12, 16),
    strides=((1, 2), (1, 2)),
    blocks=1,
    time_kernels=((1, 1), (1, 1), (1, 1)),
)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    config = preset("tiny", bits=12, scales=TOKENIZER.scales, frames=5)
    words = WordEncoder(
        WordEncoderConfig(words=("a", "circle", "red"), width=config.text_width, length=config.text_len)
    )
    pipeline = VideoPipeline(
        VideoTokenizer(TOKENIZER), NextScaleTransformer(config), words, SamplingDefaults(frames=17)
    )
    folder = tmp_path_factory.mktemp("model") / "tiny"
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def unit_model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny_units"
    tiny_sprites("frame").save_pretrained(folder)
    return folder


def run(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def clip(frames: int, size: int = 64) -> torch.Tensor:
    return (torch.rand(frames, size, size, 3) * 255).to(torch.uint8)


@pytest.mark.parametrize("precision", ["bf16", "float32"])
def test_generate_packs_the_transformer_when_asked(model, tmp_path, precision):
    output = tmp_path / "out.mp4"
    done = run("generate", "a red circle", "--model", model, "-o", output, "--frames", 9, "--precision", precision)
    assert done.exit_code == 0, done.output
    assert read_video(output).frames.shape == (9, 64, 64, 3)


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_generate_writes_a_file_of_the_asked_length(model, tmp_path, suffix):
    output = tmp_path / f"out{suffix}"
    done = run("generate", "a red circle", "--model", model, "-o", output, "--frames", 9)
    assert done.exit_code == 0, done.output
    assert read_video(output).frames.shape == (9, 64, 64, 3)
    assert "frames/s" in done.output


def test_the_same_seed_gives_the_same_file(model, tmp_path):
    files = []
    for index, seed in enumerate((3, 3, 4)):
        files.append(tmp_path / f"{index}.gif")
        assert run("generate", "a red circle", "--model", model, "-o", files[-1], "--seed", seed).exit_code == 0
    same, again, other = (read_video(f).frames for f in files)
    assert torch.equal(same, again) and not torch.equal(same, other)


def test_words_the_model_does_not_know_are_told(model, tmp_path):
    done = run("generate", "a purple circle", "--model", model, "-o", tmp_path / "o.gif", "--frames", 1)
    assert done.exit_code == 0 and "purple" in done.output
    done = run("generate", "a red circle", "--model", model, "-o", tmp_path / "o.gif", "--frames", 1)
    assert "does not know" not in done.output


def test_generate_begins_with_an_image(model, tmp_path):
    from PIL import Image

    Image.fromarray(clip(1)[0].numpy()).save(tmp_path / "start.png")
    done = run(
        "generate", "a red circle", "--model", model, "--image", tmp_path / "start.png", "-o", tmp_path / "o.mp4"
    )
    assert done.exit_code == 0, done.output
    assert len(read_video(tmp_path / "o.mp4").frames) == 17


def test_generate_continues_a_video_of_another_size(model, tmp_path):
    write_video(tmp_path / "in.mp4", clip(12, 96), 8)
    done = run("generate", "--model", model, "--video", tmp_path / "in.mp4", "-o", tmp_path / "o.mp4")
    assert done.exit_code == 0, done.output
    assert len(read_video(tmp_path / "o.mp4").frames) == 17


def test_generate_reads_a_model_of_paper_u(unit_model, tmp_path):
    frames = {}
    for name, rest in {"plain": (), "again": (), "units": ("--units", "cube(2, 2, 2)"), "seed": ("--seed", 1)}.items():
        arguments = ("a red circle", "--model", unit_model, "-o", tmp_path / f"{name}.mp4", "--guidance", 2, *rest)
        done = run("generate", *arguments)
        assert done.exit_code == 0 and "13 frames in" in done.output, done.output
        frames[name] = read_video(tmp_path / f"{name}.mp4").frames
    assert frames["plain"].shape == (13, 64, 64, 3) and torch.equal(frames["plain"], frames["again"])
    assert not torch.equal(frames["plain"], frames["units"]) and not torch.equal(frames["plain"], frames["seed"])


def test_options_that_both_papers_know_reach_a_model_of_paper_u(unit_model, tmp_path, monkeypatch):
    seen = []

    def stream(self, prompts, **options):
        seen.append((prompts, options, isinstance(self.transformer.head.head, PackedLinear)))
        yield torch.zeros(1, 3, options["frames"], 64, 64)

    monkeypatch.setattr(UnitPipeline, "stream", stream)
    arguments = ("--frames", 6, "--seed", 4, "--guidance", 1.5, "--steps", 3, "--precision", "float32", "--fps", 4)
    done = run("generate", "a purple circle", "--model", unit_model, "-o", tmp_path / "a.mp4", *arguments)
    assert done.exit_code == 0 and "purple" in done.output, done.output
    options = {"frames": 6, "seed": 4, "guidance": 1.5, "units": None, "steps": 3}
    assert seen == [(["a purple circle"], options, True)]
    assert probe_video(tmp_path / "a.mp4").fps == 4


@pytest.mark.parametrize(
    ("folder", "arguments", "paper"),
    [
        ("unit_model", ("--temperature", 0.5), "U"),
        ("unit_model", ("--image", "a.png"), "U"),
        ("unit_model", ("--video", "a.mp4", "--context-frames", 9), "U"),
        ("model", ("--steps", 2, "--units", "frame"), "S"),
    ],
)
def test_an_option_of_the_other_paper_is_named_and_leaves_no_file(folder, arguments, paper, tmp_path, request):
    output = tmp_path / "out.mp4"
    done = run("generate", "a red circle", "--model", request.getfixturevalue(folder), "-o", output, *arguments)
    said = done.output.replace("\n", "")
    assert done.exit_code == 1 and f"expected options of paper {paper}" in said and "Traceback" not in said
    assert all(word in said.split(", got ")[1] for word in arguments if str(word).startswith("--"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--frames", 8), "expected 1 + n * 4 frames, got 8"),
        (("--image", "a.png", "--video", "b.mp4"), "expected --image or --video, got both"),
        (("--image", "missing.png"), "missing.png"),
        (("--video", "missing.mp4"), "missing.mp4"),
        (("--model", "nowhere"), "nowhere"),
        (("-o", "out.xyz"), ".xyz"),
    ],
)
def test_a_mistake_is_named_in_one_line_and_leaves_no_file(model, tmp_path, arguments, message):
    output = tmp_path / "out.mp4"
    done = run("generate", "a red circle", "--model", model, "-o", output, *arguments)
    assert done.exit_code == 1
    assert message in done.output.replace("\n", "") and "Traceback" not in done.output
    assert not list(tmp_path.iterdir())


def test_an_unknown_config_key_names_the_known_ones(tmp_path):
    config = tmp_path / "tokenizer.yaml"
    config.write_text("stagez: 3\n")
    done = run("train", "tokenizer", "--config", config)
    assert done.exit_code == 1 and "stagez" in done.output and "stages" in done.output


def test_evaluate_sprites_reports_every_figure_as_json(model, tmp_path):
    report = tmp_path / "report.json"
    done = run(
        "evaluate", "sprites", "--model", model, "--prompts", 2, "--clips", 2, "--report", report,
        "--sheet", tmp_path / "sheet.png",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    figures = json.loads(report.read_text())
    assert set(figures["text_to_video"]["right"]) == {"colour", "shape", "direction", "speed"}
    assert figures["tokenizer"]["psnr"] < 28, "random weights must not pass the gate"
    assert (tmp_path / "sheet.png").stat().st_size > 1000


def test_info_lists_the_operators():
    done = run("info")
    assert done.exit_code == 0 and "swiglu" in done.output and "Shipped models" in done.output


def test_info_shows_a_model_of_either_paper(model, unit_model):
    of_units, of_scales = run("info", unit_model).output, run("info", model).output
    pipeline = UnitPipeline.from_pretrained(unit_model)
    for name, part in (("transformer", pipeline.transformer), ("text", pipeline.conditioner)):
        weights = sum(parameter.numel() for parameter in part.parameters()) / 1e6
        (line,) = [line for line in of_units.splitlines() if line.split()[0] == name]
        assert f" {weights:.2f} M weights " in line and line.endswith("F32")
    assert "Model of paper U" in of_units and "13 frames of 64 x 64, 8 a second" in of_units
    assert "frame on 4 x 4 x 4 tokens: 4 units of 16 tokens" in of_units and "method       renoise" in of_units
    assert "Model of paper S" in of_scales and "17 frames of 64 x 64, 8 a second" in of_scales
    assert "1x1, 2x2, 4x4: 21 tokens a latent frame" in of_scales and "tokenizer" in of_scales


@pytest.mark.parametrize(
    ("arguments", "message"), [(("nowhere",), "nowhere"), ((".", "--units"), "expected a model folder or --units")]
)
def test_info_names_a_mistake_in_one_line(arguments, message):
    done = run("info", *arguments)
    assert done.exit_code == 1 and message in done.output.replace("\n", "") and "Traceback" not in done.output
