"""Turns the errors a user can mend into one line and exit code 1."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console

from videoar.data.video_file import VideoError

console = Console(stderr=True)


@contextmanager
def readable_errors() -> Iterator[None]:
    """Prints ValueError, OSError and VideoError without a traceback."""
    try:
        yield
    except (ValueError, OSError, VideoError) as error:
        console.print(f"[red]error:[/red] {error}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None
