"""The examples of `make demo`: files, what is measured in them, and what happens where no model is shipped."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch
from tiny_sprites import tiny_sprites

from videoar.data.pixels import from_uint8
from videoar.data.sprites import SpriteConfig, sample_batch
from videoar.data.video import read_video
from videoar.next_scale.shipped import shipped_model
from videoar.next_unit import UnitPipeline
from videoar.next_unit.shipped import shipped_units

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Runs an example with arguments, its files in tmp_path, and returns the lines that it prints."""

    def call(name: str, *arguments: object) -> list[str]:
        words = [name, *map(str, arguments), "--output", str(tmp_path)]
        monkeypatch.setattr("sys.argv", words)
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out.splitlines()

    return call


def table(lines: list[str]) -> list[list[str]]:
    """Attributes in the rows from "asked" or "measured" on."""
    return [line[44:].split() for line in lines if line.startswith(("asked", "measured"))]


def test_the_stream_is_measured_around_its_switch(run, tmp_path, monkeypatch):
    tiny_sprites("frame", fps=8.0).save_pretrained(tmp_path / "model")
    batch = sample_batch(2, seed=0, config=SpriteConfig(wrap=True, frames=69))
    asked = [caption.split() for caption in batch.captions]
    said = []

    def stream(self, prompts, *, frames, seed, switches):
        said.append((prompts, seed, switches))
        (switch,) = switches
        video = torch.cat([batch.video[0, : round(switch * 8)], batch.video[1]])[:frames]
        yield from from_uint8(video[None]).split(4, dim=2)

    monkeypatch.setattr(UnitPipeline, "stream", stream)
    lines = run("stream.py", *batch.captions, "--model", tmp_path / "model", "--contexts", 2, "--seed", 3)
    # Clips are 13 frames, so two end at 29; a unit sees three latent frames before its own.
    assert said == [([batch.captions[0]], 3, {29 / 8: batch.captions[1]})]
    first, then = ([words[i] for i in (1, 2, 4, 5)] for words in asked)
    assert table(lines) == [first, first, then, then, then, then]
    assert [line[10:22] for line in lines if line.startswith("measured")] == [
        "1.5 to 3.6 s", "3.6 to 5.8 s", "5.1 to 7.2 s", "6.6 to 8.8 s",
    ]  # fmt: skip
    assert "70 frames in" in lines[-3]
    assert read_video(tmp_path / "stream.mp4").frames.shape == (70, 64, 64, 3)
    assert (tmp_path / "stream.png").stat().st_size > 1000


def test_the_stream_runs_on_a_model_as_it_is(run, tmp_path):
    tiny_sprites("cube(2, 2, 2)", fps=8.0).save_pretrained(tmp_path / "model")
    lines = run("stream.py", "--model", tmp_path / "model")
    assert len(table(lines)) == 5 and (tmp_path / "stream.mp4").exists()


@pytest.mark.parametrize(("prompt", "then"), [("a purple thing", "a red star moving up slowly"), (1, 2)])
def test_a_prompt_that_cannot_be_measured_is_refused_before_any_work(run, tmp_path, prompt, then):
    with pytest.raises(ValueError, match="parse_caption: expected"):
        run("stream.py", prompt, then, "--model", "nowhere")
    assert not list(tmp_path.iterdir())


def test_an_installation_without_models_says_so(run, tmp_path, monkeypatch):
    monkeypatch.setattr("videoar.next_unit.shipped.SHIPPED", tmp_path)
    monkeypatch.setattr("videoar.next_scale.shipped.SHIPPED", tmp_path)
    assert "ships no model of paper U" in run("stream.py")[0]
    with pytest.raises(SystemExit, match="ships no model"):
        run("demo.py")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(shipped_model() is None, reason="no model of paper S is shipped")
def test_the_demo_shows_what_was_asked(run, tmp_path):
    lines = run("demo.py")
    assert all(line.split()[1] == line.split()[2] for line in lines if line.startswith(("colour", "shape")))
    assert read_video(tmp_path / "demo.mp4").frames.shape == (17, 64, 64, 3) and (tmp_path / "demo.png").exists()


@pytest.mark.skipif(shipped_units() is None, reason="no model of paper U is shipped")
def test_the_shipped_model_follows_the_switch(run, tmp_path):
    asked, before, then, _, later = table(run("stream.py"))
    assert before[:2] == asked[:2] and later[:2] == then[:2]
    assert (tmp_path / "stream.mp4").exists() and (tmp_path / "stream.png").exists()
