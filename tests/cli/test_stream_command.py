"""`videoar stream` on a tiny model: length, prompts on the way, and files that appear whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_sprites import tiny_sprites
from typer.testing import CliRunner

from videoar.cli import app
from videoar.data.video import read_video
from videoar.next_unit import UnitPipeline

PROMPT, OTHER = "a red circle moving up slowly", "a blue star moving down quickly"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tiny_sprites("frame", fps=8.0).save_pretrained(folder)
    return folder


def run(*arguments: object):
    return CliRunner().invoke(app, ["stream", *map(str, arguments)])


def test_a_stream_is_as_long_as_asked(model, tmp_path):
    done = run(PROMPT, "--model", model, "--seconds", 3.5, "-o", tmp_path / "a.mp4", "--context", 2, "--sink", 1)
    assert done.exit_code == 0, done.output
    assert read_video(tmp_path / "a.mp4").frames.shape == (28, 64, 64, 3)
    assert "28 frames, the first after" in done.output and "frames/s" in done.output
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_options_reach_the_stream(model, tmp_path, monkeypatch):
    seen = []

    def stream(self, prompts, **options):
        seen.append((prompts, self.defaults, options))
        yield torch.zeros(1, 3, options["frames"], 64, 64)

    monkeypatch.setattr(UnitPipeline, "stream", stream)
    arguments = ["--at", 1.5, OTHER, "--context", 5, "--sink", 2, "--history", 9, "--seed", 4, f"--at=2 {PROMPT}"]
    arguments += ["--at=2.25", OTHER, "--at", f"2.4 {PROMPT}"]
    rest = ["--units", "cube(2,2,2)", "--steps", 3, "--guidance", 1.5, "--fps", 4, "--seconds", 12]
    done = run(PROMPT, "--model", model, "-o", tmp_path / "a.mp4", *arguments, *rest)
    ((prompts, defaults, options),) = seen
    switches = {1.5: OTHER, 2.0: PROMPT, 2.25: OTHER, 2.4: PROMPT}
    assert prompts == [PROMPT] and options == {"frames": 48, "seed": 4, "switches": switches}
    assert (defaults.window, defaults.sink, defaults.history, defaults.steps) == (5, 2, 9, 3)
    assert (defaults.units, defaults.guidance, defaults.fps) == ("cube(2, 2, 2)", 1.5, 4.0)
    assert done.exit_code == 0, done.output


# 1.2 s is within the frames 9 to 12, so the new prompt holds from frame 13 on; what is before is only encoded anew.
# 2.625 s is the last time that serves.
@pytest.mark.parametrize(("seconds", "first"), [(1.2, 13), (2.625, 21)])
def test_another_prompt_shows_from_its_time_on(model, tmp_path, seconds, first):
    for name, at in (("plain", ()), ("other", ("--at", seconds, OTHER))):
        done = run(PROMPT, "--model", model, "--seconds", 3, "-o", tmp_path / f"{name}.mp4", *at)
        assert done.exit_code == 0, done.output
    plain, other = (read_video(tmp_path / f"{name}.mp4").frames.float() for name in ("plain", "other"))
    apart = (plain - other).abs().flatten(1).mean(1)
    assert apart[first:].min() > 2 * apart[:first].max()


def test_the_file_appears_when_the_stream_has_ended(model, tmp_path, monkeypatch):
    listed = []

    def stream(self, prompts, *, frames, **options):
        for number in range(frames):
            listed.append([path.name for path in tmp_path.iterdir()])
            yield torch.full((1, 3, 1, 64, 64), number / frames)

    monkeypatch.setattr(UnitPipeline, "stream", stream)
    assert run(PROMPT, "--model", model, "--seconds", 20, "-o", tmp_path / "a.mp4").exit_code == 0
    assert all(names != ["a.mp4"] and len(names) < 2 for names in listed) and len(listed[-1]) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--seconds", 0), "expected --seconds above 0, got 0.0"),
        (("--seconds", "inf"), "expected --seconds above 0, got inf"),
        (("--seconds", "nan"), "expected --seconds above 0, got nan"),
        (("--seconds", 0.01), "at least one frame"),
        (("--at", "soon", OTHER), "expected --at SECONDS PROMPT, got 'soon a blue star"),
        (("--at", "nan", OTHER), "expected --at SECONDS PROMPT, got 'nan"),
        (("--at", "soon", "--seed", 1), "expected --at SECONDS PROMPT, got 'soon'"),
        (("--at", 1, "--seed", 1), "expected --at SECONDS PROMPT, got '1'"),
        (("--at=1", "-o", "a.mp4"), "expected --at SECONDS PROMPT, got '1'"),
        (("--at", "--seed", 1), "expected --at SECONDS PROMPT, got ''"),
        (("--at",), "expected --at SECONDS PROMPT, got ''"),
        (("--at", "1 ", ""), "expected --at SECONDS PROMPT, got '1"),
        (("--at", 0, OTHER), "expected --at after 0 s and before the end at 8 s, got 0"),
        (("--at", -1, OTHER), "expected --at after 0 s and before the end at 8 s, got -1"),
        (("--at", 8, OTHER), "expected --at after 0 s and before the end at 8 s, got 8"),
        (("--at=1", OTHER, "--at", 1.0, PROMPT), "expected one prompt for --at 1.0, got two"),
        (
            ("--seconds", 3, "--at", 2.63, OTHER),
            "--at of at most 2.625 s, the last begin of a unit in 24 frames, got 2.63",
        ),
        (("--seconds", 1, "--at", 0.5, OTHER, "--units", "cube(1, 1, 1)"), "expected no --at"),
        (("--units", "line"), "parse_units: expected"),
        (("--model", "nowhere"), "nowhere"),
        (("-o", "out.xyz"), ".xyz"),
    ],
)
def test_a_mistake_is_named_in_one_line_and_leaves_no_file(model, tmp_path, arguments, message):
    done = run(PROMPT, "--model", model, "-o", tmp_path / "out.mp4", *arguments)
    assert done.exit_code == 1
    assert message in done.output.replace("\n", "") and "Traceback" not in done.output
    assert not list(tmp_path.iterdir())


def test_words_the_model_does_not_know_are_told(model, tmp_path):
    done = run(PROMPT, "--model", model, "-o", tmp_path / "o.gif", "--seconds", 0.2, "--at", 0.1, "a purple star")
    assert done.exit_code == 0 and "purple" in done.output


def test_an_installation_without_a_model_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr("videoar.next_unit.shipped.SHIPPED", tmp_path)
    done = run(PROMPT)
    assert done.exit_code == 1 and "ships no model" in done.output
