"""The command `videoar`; each subcommand has a file of its own."""

from videoar.cli.main import app

__all__ = ["app"]
