"""Turns the errors a user can mend into one line and exit code 1, and finds some before any work."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer
from rich.console import Console
from rich.markup import escape

console = Console(stderr=True)


@contextmanager
def readable_errors() -> Iterator[None]:
    """Prints what a user can mend without a traceback; FloatingPointError is a training's loss that is not finite."""
    try:
        yield
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        console.print(f"[red]error:[/red] {escape(str(error))}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None


@contextmanager
def of_argument(name: str) -> Iterator[None]:
    """Puts the name of an argument before the message of an error that its value leads to."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise ValueError(f"{name}: {error}") from error


def expect_file(command: str, option: str, path: Path | None) -> None:
    """Raises ValueError for a file that cannot be written, before there is anything to write."""
    if path is None:
        return
    if path.is_dir():
        raise ValueError(f"{command}: expected a file for {option}, got the folder {path}")
    _expect_writable(command, option, path, path if path.exists() else path.parent)


def expect_folder(command: str, option: str, path: Path) -> None:
    """Raises ValueError for a folder that cannot be made or written into."""
    if path.exists() and not path.is_dir():
        raise ValueError(f"{command}: expected a folder for {option}, got the file {path}")
    _expect_writable(command, option, path, path)


def _expect_writable(command: str, option: str, path: Path, place: Path) -> None:
    while not os.path.lexists(place):
        place = place.parent
    if place != path and not place.is_dir():
        raise ValueError(f"{command}: expected {option} below a folder, got {path}, and {place} is none")
    if not os.access(place, os.W_OK):
        raise ValueError(f"{command}: expected {option} where files can be written, got {path}")
