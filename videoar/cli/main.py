"""Subcommands put together; errors that a user can mend are printed in one line."""

from __future__ import annotations

import typer

from videoar.cli.evaluate import evaluate_app
from videoar.cli.generate import generate
from videoar.cli.profile import profile
from videoar.cli.train import train_app

app = typer.Typer(
    name="videoar",
    help="Train and sample autoregressive video models.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
)
app.command()(generate)
app.command()(profile)
app.add_typer(train_app, name="train")
app.add_typer(evaluate_app, name="evaluate")


@app.command()
def info() -> None:
    """Show what is built, what would run for each operator, and where the shipped model is."""
    import videoar_kernels
    from videoar.next_scale.shipped import shipped_model

    typer.echo(videoar_kernels.info())
    typer.echo(f"Shipped model\n  {shipped_model() or 'none in this installation'}")
