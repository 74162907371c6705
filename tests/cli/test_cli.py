"""The command line, on a tiny model with random weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from videoar.cli import app
from videoar.data.video import read_video, write_video
from videoar.next_scale.config import preset
from videoar.next_scale.pipeline import SamplingDefaults, VideoPipeline
from videoar.next_scale.transformer import NextScaleTransformer
from videoar.text import WordEncoder, WordEncoderConfig
from videoar.tokenizer import TokenizerConfig, VideoTokenizer

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
    assert done.exit_code == 0 and "swiglu" in done.output and "Shipped model" in done.output
