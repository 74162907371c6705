"""`videoar info`: what is built and what would run, what a model folder holds, and pictures of paper U's units."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from videoar.cli.errors import expect_file, readable_errors
from videoar.cli.model_summary import model_summary

# Small enough for a terminal, and not divided by all the sizes below.
GRID, SHOWN = "4x5x6", ("frame", "key_detail(2)", "cube(2, 2, 2)", "multiscale(1x1, 2x2, 3x4)")


def info(
    model: Annotated[Path | None, typer.Argument(help="A model folder of either paper, to show that instead.")] = None,
    units: Annotated[bool, typer.Option("--units", help="Show paper U's units on a small grid instead.")] = False,
    grid: Annotated[str, typer.Option(help="With --units: the latent grid T x H x W, in tokens.")] = GRID,
    scheme: Annotated[
        list[str] | None, typer.Option(help="With --units: only these, such as 'cube(1, 2, 2)'; may be repeated.")
    ] = None,
    png: Annotated[
        Path | None, typer.Option("--png", help="With --units: also write a picture with the masks.")
    ] = None,
) -> None:
    """Show what is built, what would run for each operator, and where the shipped models are."""
    with readable_errors():
        if units and model:
            raise ValueError("info: expected a model folder or --units, got both")
        expect_file("info", "--png", png)
        if units:
            _show_units(grid, scheme or list(SHOWN), png)
            return
        if scheme or png or grid != GRID:
            raise ValueError("info: expected --grid, --scheme and --png only with --units")
        if model:
            typer.echo(model_summary(model))
            return
    import videoar_kernels
    from videoar.next_scale.shipped import shipped_model
    from videoar.next_unit.shipped import shipped_units

    typer.echo(videoar_kernels.info())
    typer.echo("Shipped models")
    for paper, folder in (("S", shipped_model()), ("U", shipped_units())):
        typer.echo(f"  paper {paper}  {folder or 'none in this installation'}")


def _show_units(grid: str, schemes: list[str], png: Path | None) -> None:
    from rich.console import Console

    from videoar.next_unit.drawing import picture, terminal
    from videoar.next_unit.units import parse_units

    sizes = grid.split("x")
    if len(sizes) != 3 or not all(size.isdigit() for size in sizes):
        raise ValueError(f"info: expected --grid such as {GRID}, got {grid!r}")
    layouts = [(parsed, parsed.on(tuple(map(int, sizes)))) for parsed in map(parse_units, schemes)]
    console = Console()
    for parsed, layout in layouts:
        console.print(terminal(parsed, layout), no_wrap=True, overflow="ignore", crop=False)
    if png is not None:
        picture(layouts).save(png)
        typer.echo(f"{png}")
