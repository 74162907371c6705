"""`videoar train tokenizer|autoencoder|transformer|...`: a YAML config with dotted overrides."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from videoar.cli.errors import expect_folder, readable_errors

train_app = typer.Typer(
    help="Train a model; an interrupted run goes on where its last checkpoint was.", no_args_is_help=True
)

Config = Annotated[Path, typer.Option("--config", "-c", help="YAML file; see configs/.", exists=True, dir_okay=False)]
Overrides = Annotated[list[str] | None, typer.Argument(help="key=value pairs such as optimizer.learning_rate=1e-3.")]


@train_app.command()
def tokenizer(config: Config, overrides: Overrides = None) -> None:
    """Train the causal 3D multi-scale tokenizer."""
    from videoar.training.tokenizer import TokenizerTraining, train

    with readable_errors():
        train(_settings(config, overrides, TokenizerTraining))


@train_app.command()
def autoencoder(config: Config, overrides: Overrides = None) -> None:
    """Train the continuous video autoencoder of paper U."""
    from videoar.training.autoencoder import AutoencoderTraining, train

    with readable_errors():
        train(_settings(config, overrides, AutoencoderTraining))


@train_app.command()
def transformer(config: Config, overrides: Overrides = None) -> None:
    """Train the next-scale transformer on a trained tokenizer."""
    from videoar.training.transformer import TransformerTraining, train

    with readable_errors():
        train(_settings(config, overrides, TransformerTraining))


@train_app.command("unit-teacher")
def unit_teacher(config: Config, overrides: Overrides = None) -> None:
    """Train paper U's full-attention teacher on a trained autoencoder."""
    from videoar.training.unit_teacher import TeacherTraining, train

    with readable_errors():
        train(_settings(config, overrides, TeacherTraining))


@train_app.command("unit-causal")
def unit_causal(config: Config, overrides: Overrides = None) -> None:
    """Train paper U's unit-causal model, from a teacher on (stage 1)."""
    from videoar.training.unit_causal import CausalTraining, train

    with readable_errors():
        train(_settings(config, overrides, CausalTraining))


@train_app.command("unit-dmd")
def unit_dmd(config: Config, overrides: Overrides = None) -> None:
    """Distil paper U's causal model into a few-step generator by Symmetric DMD."""
    from videoar.training.unit_dmd import DmdTraining, train

    with readable_errors():
        train(_settings(config, overrides, DmdTraining))


def _settings(path: Path, overrides: list[str] | None, schema: type) -> Any:
    """The settings of a run, whose folders are there or can be made."""
    from videoar.training.config import load_config

    settings = load_config(path, overrides or [], schema)
    for name in ("tokenizer", "autoencoder", "start", "teacher"):
        folder = getattr(settings, name, None)
        if folder is not None and not Path(folder).is_dir():
            raise ValueError(f"train: expected the folder of a model for {name}, got {folder}")
    if settings.data.path is not None and not Path(settings.data.path).is_dir():
        raise ValueError(f"train: expected a folder of videos for data.path, got {settings.data.path}")
    expect_folder("train", "output", Path(settings.output))
    return settings
