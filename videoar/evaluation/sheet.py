"""Contact sheets: clips as rows, their frames as columns, what was asked and what was measured above each row."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from videoar.data.captions import Attributes, parse_caption
from videoar.data.measure import measure_batch

_PAPER, _INK, _RIGHT, _WRONG = (255, 255, 255), (40, 40, 40), (20, 120, 50), (190, 30, 30)
_GAP = 2  # pixels between frames
_LINE = 16  # pixels of text above a row


def contact_sheet(
    videos: Tensor | np.ndarray | Sequence[Tensor],
    captions: Sequence[str] | None = None,
    path: str | Path | None = None,
    *,
    columns: int = 9,
    zoom: int | None = None,
    wrap: bool = False,
) -> Image.Image:
    """Draw clips on one picture.

    Above a row stands its caption and, if that is one of the built-in sprites', what `measure_batch` finds in the
    clip: in green where it is what was asked, in red where not.

    Args:
        videos: B clips (T, H, W, 3) uint8; they may differ in length and size.
        captions: one a clip.
        path: where to write the picture (PNG), if anywhere.
        columns: frames shown of each clip, the first, the last and evenly between; all if it has no more.
        zoom: how much larger pixels are drawn; None makes a frame about 96 pixels high.
        wrap: sprites on a torus are measured as such.

    Returns:
        The picture.

    Raises:
        ValueError: clips and captions differ in number, or there is no clip.
    """
    clips = [torch.as_tensor(video).cpu() for video in videos]
    captions = [""] * len(clips) if captions is None else list(captions)
    if not clips or len(captions) != len(clips):
        raise ValueError(
            f"contact_sheet: expected a caption for each of 1 or more clips, got {len(captions)} for {len(clips)}"
        )
    rows = [
        _row(clip, caption, columns, zoom or max(1, round(96 / clip.shape[1])), wrap)
        for clip, caption in zip(clips, captions, strict=True)
    ]
    width, height = max(row.width for row in rows), sum(row.height for row in rows)
    sheet = Image.new("RGB", (width, height), _PAPER)
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    if path is not None:
        sheet.save(path, format="PNG")
    return sheet


def _row(clip: Tensor, caption: str, columns: int, zoom: int, wrap: bool) -> Image.Image:
    frames, height, width, _ = clip.shape
    shown = sorted({round(i * (frames - 1) / max(columns - 1, 1)) for i in range(columns)})
    step = width * zoom + _GAP
    title, font = _title(clip, caption, wrap), ImageFont.load_default(11)
    written = sum(font.getlength(text + " ") for text, _ in title)
    row = Image.new("RGB", (max(len(shown) * step, int(written) + 4), _LINE + height * zoom + _GAP), _PAPER)
    draw = ImageDraw.Draw(row)
    left = 2.0
    for text, colour in title:
        draw.text((left, 1), text, fill=colour, font=font)
        left += font.getlength(text + " ")
    for column, frame in enumerate(shown):
        picture = Image.fromarray(clip[frame].numpy())
        picture = picture.resize((width * zoom, height * zoom), Image.Resampling.NEAREST)
        row.paste(picture, (column * step, _LINE))
    return row


def _title(clip: Tensor, caption: str, wrap: bool) -> list[tuple[str, tuple[int, int, int]]]:
    try:
        wanted = parse_caption(caption)
    except ValueError:
        return [(caption, _INK)]
    seen = measure_batch(clip[None], wrap=wrap)[0].attributes
    words = [
        (getattr(seen, name) or f"no {name}", _RIGHT if getattr(seen, name) == getattr(wanted, name) else _WRONG)
        for name in Attributes._fields
    ]
    return [(caption, _INK), ("| measured:", _INK), *words]
