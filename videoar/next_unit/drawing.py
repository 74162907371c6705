"""Pictures of units: in which step every cell of a small grid is generated, and what every token sees.

A frame is a block of H x W cells, frames stand side by side, the levels of a pyramid below one another.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from videoar.next_unit.layout import UnitLayout
from videoar.next_unit.units import UnitScheme

if TYPE_CHECKING:
    from PIL.Image import Image
    from rich.console import RenderableType

CELL, GAP = 14, 6  # pixels


def steps(layout: UnitLayout) -> list[np.ndarray]:
    """The number of the unit of every cell, one int (T, H, W) for each level."""
    of_cell = layout.unit_ids[layout.inverse].numpy()
    levels, first = [], 0
    for level in layout.levels:
        count = int(np.prod(level))
        levels.append(of_cell[first : first + count].reshape(level))
        first += count
    return levels


def colour(unit: int, units: int) -> tuple[int, int, int]:
    """Blue for the first unit, over green, to red for the last."""
    share = unit / max(units - 1, 1)
    return tuple(round(255 * part) for part in colorsys.hsv_to_rgb(0.62 * (1 - share), 0.55, 0.95))


def describe(scheme: UnitScheme, layout: UnitLayout) -> str:
    """One line: how many steps, of how many tokens, and what share of all pairs attention looks at."""
    low, high = min(layout.lengths), max(layout.lengths)
    tokens = f"{low}" if low == high else f"{low} to {high}"
    return (
        f"{scheme}: {len(layout.units)} units of {tokens} tokens, {layout.length} in all; "
        f"forward mask {layout.mask().density:.0%}"
    )


def terminal(scheme: UnitScheme, layout: UnitLayout) -> RenderableType:
    """The cells as coloured numbers, for rich."""
    from rich.text import Text

    units = len(layout.units)
    digits = len(str(units - 1)) + 1
    text = Text(describe(scheme, layout) + "\n", style="bold")
    for level in steps(layout):
        for row in range(level.shape[1]):
            text.append("  ")
            for frame in level:
                for unit in frame[row]:
                    red, green, blue = colour(int(unit), units)
                    text.append(f"{unit:>{digits}}", style=f"not bold black on rgb({red},{green},{blue})")
                text.append("  ", style="not bold")
            text.append("\n")
        text.append("\n")
    return text


def picture(layouts: Sequence[tuple[UnitScheme, UnitLayout]]) -> Image:
    """Every scheme in a row of its own: its cells, then its forward, backward and teacher-forcing masks."""
    from PIL import Image, ImageDraw

    rows = [_row(scheme, layout) for scheme, layout in layouts]
    width = max(row.width for row in rows)
    sheet = Image.new("RGB", (width, sum(row.height for row in rows)), "white")
    top = 0
    for (scheme, layout), row in zip(layouts, rows, strict=True):
        sheet.paste(row, (0, top))
        ImageDraw.Draw(sheet).text((GAP, top + GAP), describe(scheme, layout), fill="black")
        top += row.height
    return sheet


def _row(scheme: UnitScheme, layout: UnitLayout) -> Image:
    from PIL import Image

    cells = _cells(layout)
    side = max(cells.height, 96)
    masks = [layout.mask("forward"), layout.mask("backward"), layout.teacher_forcing()]
    panels = [cells, *(mask.draw(size=side).convert("RGB") for mask in masks)]
    title = 24
    size = sum(panel.width + 3 * GAP for panel in panels), side + title + 2 * GAP
    row = Image.new("RGB", (max(size[0], 560), size[1]), "white")
    left = GAP
    for panel in panels:
        row.paste(panel, (left, title))
        left += panel.width + 3 * GAP
    return row


def _cells(layout: UnitLayout) -> Image:
    from PIL import Image, ImageDraw

    frames, _height, width = layout.grid
    levels = steps(layout)
    tall = sum(level.shape[1] * CELL + GAP for level in levels)
    sheet = Image.new("RGB", (frames * (width * CELL + GAP), tall), "white")
    pen, top = ImageDraw.Draw(sheet), 0
    for level in levels:
        for t, h, w in np.ndindex(level.shape):
            x, y = t * (width * CELL + GAP) + w * CELL, top + h * CELL
            unit = int(level[t, h, w])
            pen.rectangle((x, y, x + CELL - 2, y + CELL - 2), fill=colour(unit, len(layout.units)))
            if len(layout.units) <= 100:
                pen.text((x + CELL // 2, y + CELL // 2), str(unit), fill="black", anchor="mm", font_size=9)
        top += level.shape[1] * CELL + GAP
    return sheet
