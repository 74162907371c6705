"""The figures of a row: what they count, and the table they make."""

from __future__ import annotations

import json

import pytest
import torch
from tiny_sprites import sprites, tiny_sprites
from typer.testing import CliRunner

from videoar.cli import app
from videoar.data.sprites import SpriteConfig, sample_batch
from videoar.evaluation.unit_quality import frechet_distances, unit_quality
from videoar.evaluation.unit_table import unit_table
from videoar.next_unit import UnitPipeline

SIZES = {"prompts": 6, "batch": 4, "reference": 8, "timed": 1}


@pytest.fixture(scope="module")
def report() -> dict:
    return {"name": "cubes", **unit_quality(tiny_sprites(), **SIZES, steps=3).to_dict()}


def test_a_row_holds_what_was_measured(report):
    assert report["units"] == "cube(2, 2, 2)" and report["sampling"]["steps"] == 3
    assert report["passes"] == 8 * 4 and report["adherence"]["clips"] == 6
    assert set(report["adherence"]["right"]) == set(report["adherence"]["wrong_prompt"])
    assert report["frechet"]["clips"] == 6 and report["frechet"]["reference"] == 8
    assert report["seconds"] > 0 and report["threads"] == torch.get_num_threads()


def test_real_clips_are_at_the_floor_and_noise_is_not():
    pipeline = tiny_sprites()
    config = SpriteConfig(frames=pipeline.frames, wrap=True)
    real = sample_batch(24, 77, split="heldout", config=config).video
    # As many as samples: were the floor's clips the reference's own, the floor would be zero.
    near = frechet_distances(pipeline, real, reference=24)
    far = frechet_distances(pipeline, torch.randint_like(real, 256), reference=24)
    assert near.real == far.real and near.reconstructed == far.reconstructed
    assert near.generated < 2 * near.real < far.generated
    torus, flat = (frechet_distances(tiny_sprites(wrap=wrap), real[:4], reference=4).real for wrap in (True, False))
    assert torus != flat, "real clips are on a torus where the model's are"


@pytest.mark.parametrize("wrap", [True, False])
def test_samples_are_measured_on_a_torus_where_the_model_says_so(monkeypatch, wrap):
    """Samples that show their prompts perfectly; measured as if nothing wrapped, most sprites are cut somewhere."""
    monkeypatch.setattr(UnitPipeline, "generate", lambda self, prompts, *, seed: sprites(prompts, 17))
    found = unit_quality(tiny_sprites(wrap=wrap), prompts=8, reference=2, timed=1)
    assert (set(found.adherence.right.values()) == {1.0}) == wrap


def test_seeds_of_one_name_are_one_row(report):
    better = json.loads(json.dumps(report))
    better["adherence"]["right"]["colour"] = report["adherence"]["right"]["colour"] + 0.5
    other = {**report, "name": "frames"}
    lines = unit_table([report, better, other], first="scheme").splitlines()
    assert [line.split(" | ")[0] for line in lines[:4]] == ["| scheme", "| ---", "| cubes (2 seeds)", "| frames"]
    colour = 100 * report["adherence"]["right"]["colour"]
    assert lines[2].split(" | ")[2] == f"{colour + 25:.1f} ± {50 / 2**0.5:.1f}%"
    assert lines[3].split(" | ")[1] == "32" and lines[5].startswith("6 held-out prompts")
    with pytest.raises(ValueError, match="at least one report"):
        unit_table([])


def test_the_command_writes_a_report(tmp_path):
    tiny_sprites().save_pretrained(tmp_path / "model")
    arguments = ["--model", tmp_path / "model", "--report", tmp_path / "r.json", "--sheet", tmp_path / "s.png"]
    sizes = ["--prompts", 4, "--reference", 4, "--timed", 1, "--steps", 1]
    sizes += ["--units", "frame", "--name", "one", "--context-noise", 0.1]
    done = CliRunner().invoke(app, ["evaluate", "units", *map(str, [*arguments, *sizes])])
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["name"] == "one" and found["units"] == "frame" and found["passes"] == 8
    assert found["sampling"]["context_noise"] == 0.1
    assert "| one | 8 |" in done.output and (tmp_path / "s.png").is_file()


def test_an_installation_without_a_model_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr("videoar.next_unit.shipped.SHIPPED", tmp_path)
    done = CliRunner().invoke(app, ["evaluate", "units"])
    assert done.exit_code == 1 and "ships no model" in done.output
