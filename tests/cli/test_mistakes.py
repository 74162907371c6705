"""What a user can mend is said in one line that names the argument, by every command, before any work."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tiny_sprites import tiny_sprites
from typer.testing import CliRunner

from videoar.cli import app

TRAIN = {
    "tokenizer": [],
    "autoencoder": ["start"],
    "transformer": ["tokenizer"],
    "unit-teacher": ["autoencoder", "start"],
    "unit-causal": ["autoencoder", "start"],
    "unit-dmd": ["start", "teacher"],
}
MODELS = ["generate", "stream", "profile", "evaluate sprites", "evaluate units", "evaluate stream", "evaluate switch"]
OUTPUTS = [
    *((command, "--output") for command in ("generate", "stream")),
    *(("profile", option) for option in ("--json", "--html")),
    *((f"evaluate {name}", option) for name in ("sprites", "units") for option in ("--report", "--sheet")),
    *((f"evaluate {name}", option) for name in ("stream", "switch") for option in ("--report", "--plot")),
    ("info", "--png"),
]


def said(*arguments: object, code: int = 1) -> str:
    """The one line that a command ends with."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == code and isinstance(done.exception, SystemExit), (done.output, done.exception)
    assert code == 2 or len(done.output.strip().splitlines()) == 1, done.output
    return done.output.replace("\n", "")


@pytest.fixture
def config(tmp_path) -> Path:
    (tmp_path / "run.yaml").write_text("{}")
    return tmp_path / "run.yaml"


@pytest.fixture(scope="module")
def units(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tiny_sprites("frame").save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", TRAIN)
def test_a_loss_that_is_not_finite_is_said_in_one_line(kind, config, tmp_path, monkeypatch):
    def train(settings) -> None:
        raise FloatingPointError("step 3: expected a finite loss, got nan")

    monkeypatch.setattr(f"videoar.training.{kind.replace('-', '_')}.train", train)
    folders = [f"{name}={tmp_path}" for name in TRAIN[kind]]
    assert said("train", kind, "-c", config, *folders) == "error: step 3: expected a finite loss, got nan"


@pytest.mark.parametrize("kind", TRAIN)
def test_settings_that_cannot_be_read_are_named(kind, config, tmp_path):
    assert "--config" in said("train", kind, "-c", tmp_path / "missing.yaml", code=2)
    for text, word in (("a: [1\nb: 2", "run.yaml"), ("- 1", "run.yaml"), ("foo: 1", "foo"), ("1: 2\nfoo: 3", "key 1")):
        config.write_text(text)
        assert word in said("train", kind, "-c", config)
    config.write_bytes(b"\xff\xfe\x00\x01")
    assert "run.yaml" in said("train", kind, "-c", config)
    config.write_text("{}")
    assert "seed=[" in said("train", kind, "-c", config, "seed=[")


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in TRAIN.items() for name in names])
def test_a_folder_to_start_from_that_is_none_is_named(kind, name, config, tmp_path):
    others = [f"{other}={tmp_path}" for other in TRAIN[kind] if other != name]
    assert f"for {name}, got nowhere" in said("train", kind, "-c", config, f"{name}=nowhere", *others)


@pytest.mark.parametrize("kind", TRAIN)
def test_videos_that_are_not_there_are_named(kind, config, tmp_path):
    folders = [f"{name}={tmp_path}" for name in TRAIN[kind]]
    message = said("train", kind, "-c", config, *folders, "data.kind=folder", "data.path=nowhere")
    assert "for data.path, got nowhere" in message


@pytest.mark.parametrize("kind", TRAIN)
@pytest.mark.parametrize("output", ["run.yaml", "run.yaml/run"])
def test_a_run_that_cannot_be_written_is_named(kind, output, config, tmp_path):
    folders = [f"{name}={tmp_path}" for name in TRAIN[kind]]
    message = said("train", kind, "-c", config, f"output={tmp_path / output}", *folders)
    assert "for output" in message or "expected output" in message


@pytest.mark.parametrize(("command", "option"), OUTPUTS)
def test_a_file_that_cannot_be_written_is_named_before_a_model_is_read(command, option, config, tmp_path):
    model = () if command == "info" else ("--model", "nowhere")
    for path in (tmp_path, config / "x.mp4"):
        message = said(*command.split(), *model, option, path)
        assert option in message and str(path) in message
    if model:
        message = said(*command.split(), *model, option, tmp_path / "new" / "x.mp4")
        assert "--model" in message and option not in message


@pytest.mark.parametrize("command", MODELS)
def test_a_folder_that_is_no_model_is_named(command, config, tmp_path):
    for folder in (tmp_path / "nowhere", config, tmp_path):
        message = said(*command.split(), "--model", folder)
        assert "--model" in message and str(folder) in message


@pytest.mark.parametrize("broken", ["weights", "shape", "key", "json", "sampling"])
@pytest.mark.parametrize("command", [*MODELS, "info"])
def test_a_broken_model_is_named(command, broken, units, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(units, folder)
    part = folder / "transformer"
    config = json.loads((part / "config.json").read_text())
    if broken == "weights":
        (part / "model.safetensors").write_bytes((part / "model.safetensors").read_bytes()[:500])
    elif broken == "sampling":
        (folder / "sampling.json").write_text('{"foo": 1}')
    else:
        text = {"shape": json.dumps({**config, "ffn_width": 32}), "key": '{"foo": 1}', "json": "{"}[broken]
        (part / "config.json").write_text(text)
    assert str(folder) in said(*command.split(), *(("--model", folder) if command != "info" else (folder,)))


@pytest.mark.parametrize("option", ["--prompts", "--clips"])
def test_an_evaluation_of_nothing_is_refused(option):
    assert option in said("evaluate", "sprites", option, 0, code=2)
