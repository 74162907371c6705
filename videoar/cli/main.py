"""Subcommands put together; errors that a user can mend are printed in one line."""

from __future__ import annotations

import typer

from videoar.cli.evaluate import evaluate_app
from videoar.cli.evaluate_units import long_stream, switch, units
from videoar.cli.generate import generate
from videoar.cli.info import info
from videoar.cli.profile import profile
from videoar.cli.stream import StreamCommand, stream
from videoar.cli.train import train_app

app = typer.Typer(
    name="videoar",
    help="Train and sample autoregressive video models.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
)
app.command()(generate)
app.command(cls=StreamCommand)(stream)
app.command()(profile)
app.command()(info)
app.add_typer(train_app, name="train")
evaluate_app.command()(units)
evaluate_app.command("stream")(long_stream)
evaluate_app.command()(switch)
app.add_typer(evaluate_app, name="evaluate")
