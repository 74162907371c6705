"""`videoar profile` as it is typed."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from videoar.cli import app


def run(*arguments: object):
    return CliRunner().invoke(app, ["profile", *map(str, arguments)])


def test_a_preset_is_profiled_into_table_json_and_page(tmp_path):
    done = run(
        "--preset", "tiny", "--shape", "5x32x32", "--device", "cpu", "--rounds", 2, "--compare", "eager",
        "--json", tmp_path / "p.json", "--html", tmp_path / "p.html",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "frames/s" in done.output and "eager PyTorch takes" in done.output and "packed" in done.output
    data = json.loads((tmp_path / "p.json").read_text())
    assert data["subject"]["clip"].startswith("5x32x32") and data["rounds"] == 2
    assert (tmp_path / "p.html").read_text().startswith("<!doctype html>")


def test_the_shipped_model_is_profiled_where_nothing_is_named():
    done = run("--device", "cpu", "--rounds", 1, "--shape", "5x64x64", "--dtype", "float32", "--no-guidance")
    assert done.exit_code == 0, done.output
    assert "given weights" in done.output and "guidance off" in done.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--preset", "M"), "expected one of ['4B', 'L', 'S', 'XL', 'sprites', 'tiny'], got 'M'"),
        (("--preset", "tiny", "--model", "x"), "expected --preset or --model, got both"),
        (("--model", "nowhere"), "nowhere"),
        (("--layers", "1"), "expected --layers only with --preset"),
        (("--scales", "1,2"), "expected --scales only with --preset"),
        (("--shape", "17x128x128"), "expected --shape (1 + n * 4)x64x64, got 17x128x128"),
        (("--preset", "tiny", "--layers", "3"), "--layers from 1 to 2"),
        (("--preset", "tiny", "--shape", "17"), "such as 17x128x128, got '17'"),
        (("--preset", "tiny", "--shape", "8x32x32"), "1 + n * 4 frames"),
        (("--preset", "tiny", "--scales", "1,3"), "2x2"),
        (("--preset", "tiny", "--precision", "bf16", "--dtype", "bf16"), "--precision or --dtype, got both"),
        (("--preset", "tiny", "--seconds", "nan"), "expected --seconds of at least 0, got nan"),
        (("--preset", "tiny", "--seconds", "-1"), "expected --seconds of at least 0, got -1.0"),
        (("--preset", "tiny", "--json", "."), "expected a file for --json, got the folder ."),
    ],
)
def test_a_mistake_is_named_in_one_line(arguments, message):
    if arguments == ("--preset", "tiny", "--scales", "1,3"):
        arguments += ("--shape", "9x32x32")
    done = run(*arguments, "--device", "cpu")
    assert done.exit_code == 1
    assert message in done.output.replace("\n", "") and "Traceback" not in done.output
    assert len(done.output.strip().splitlines()) == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_said():
    done = run("--preset", "tiny", "--device", "cuda")
    assert done.exit_code == 1 and "this PyTorch sees no GPU" in done.output
