"""Where paper U's model that comes with the package lies."""

from __future__ import annotations

from pathlib import Path

SHIPPED = Path(__file__).parents[1] / "checkpoints" / "sprites-units"


def shipped_units() -> Path | None:
    """Returns the folder of the shipped sprites model; None where the installation has none."""
    return SHIPPED if (SHIPPED / "sampling.json").is_file() else None
