"""Is the caption used? The loss under the right, a wrong and no caption, on the same clips with the same draws."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from videoar.data.captions import VOCABULARY, Attributes, caption_of, parse_caption

Loss = Callable[[Tensor, Sequence[str | None]], float]


class CaptionUse(NamedTuple):
    """Mean loss over clips under each caption, and `excess` = wrong / right - 1."""

    right: float
    wrong: float
    none: float
    excess: float


def wrong_caption(caption: str, seed: int) -> str:
    """A caption of the built-in sprites that differs from this one in every attribute, drawn from a seed."""
    generator = torch.Generator().manual_seed(seed)
    words = []
    for name, word in zip(Attributes._fields, parse_caption(caption), strict=True):
        others = [other for other in VOCABULARY[name] if other != word]
        words.append(others[int(torch.randint(len(others), (), generator=generator))])
    return caption_of(Attributes(*words))


def caption_use(loss: Loss, batches: Sequence[tuple[Tensor, Sequence[str]]], *, seed: int = 0) -> CaptionUse:
    """Compare the loss under the right, a wrong and no caption.

    Args:
        loss: maps clips, in whatever form `batches` has them, and their captions (None is no caption) to the mean loss.
            It must draw nothing at random, or the same each time.
        batches: clips (B, ...) and their B captions.
        seed: of the wrong captions.

    Returns:
        Means over all clips.
    """
    total, clips = torch.zeros(3, dtype=torch.float64), 0
    for video, captions in batches:
        wrong = [wrong_caption(caption, seed + clips + i) for i, caption in enumerate(captions)]
        for column, said in enumerate((list(captions), wrong, [None] * len(captions))):
            total[column] += float(loss(video, said)) * len(captions)
        clips += len(captions)
    right, wrong, none = (total / max(clips, 1)).tolist()
    return CaptionUse(right, wrong, none, wrong / right - 1)
