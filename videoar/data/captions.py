"""The language of the built-in sprites: four attributes, one sentence, the combinations never seen in training."""

from __future__ import annotations

import re
from typing import NamedTuple

# The corners of the colour cube: as far from each other, and from grey backgrounds, as colours can be.
COLOURS = ("red", "green", "blue", "yellow", "cyan", "magenta", "white", "black")
SHAPES = ("circle", "square", "triangle", "star")
DIRECTIONS = (
    "right",
    "down-right",
    "down",
    "down-left",
    "left",
    "up-left",
    "up",
    "up-right",
)  # clockwise, 45 degrees
SPEEDS = ("slowly", "quickly")
VOCABULARY = {"colour": COLOURS, "shape": SHAPES, "direction": DIRECTIONS, "speed": SPEEDS}

_SENTENCE = re.compile(
    rf"an? ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)}) moving ([a-z-]+) ({'|'.join(SPEEDS)})\.?", re.IGNORECASE
)


class Attributes(NamedTuple):
    """What a caption says of a clip, or what was measured in one; None where nothing could be recognised."""

    colour: str | None
    shape: str | None
    direction: str | None
    speed: str | None


class Combination(NamedTuple):
    """Indices into COLOURS, SHAPES and DIRECTIONS."""

    colour: int
    shape: int
    direction: int


def caption_of(attributes: Attributes) -> str:
    """Say four attributes in one sentence, such as "a red circle moving up-left slowly"."""
    colour, shape, direction, speed = attributes
    return f"a {colour} {shape} moving {direction} {speed}"


def parse_caption(caption: str) -> Attributes:
    """Read the attributes back from a caption of the built-in data.

    Raises:
        ValueError: the sentence is not one that `caption_of` writes.
    """
    match = _SENTENCE.fullmatch(caption.strip())
    if match is None or match[3].lower() not in DIRECTIONS:
        raise ValueError(
            f'parse_caption: expected "a <colour> <shape> moving <direction> {"|".join(SPEEDS)}", got {caption!r}'
        )
    return Attributes(*(word.lower() for word in match.groups()))


def is_heldout(combination: Combination) -> bool:
    """Whether training never shows this combination of colour, shape and direction.

    The residue spreads them evenly: of the combinations that share two attributes at most one is held out, so
    each attribute, and each pair of attributes, still occurs in training.
    """
    colour, shape, direction = combination
    return (colour + 2 * shape + 3 * direction) % 10 == 7


def combinations(split: str = "all") -> list[Combination]:
    """List the combinations of a split: "train", "heldout" (26 of 256) or "all"."""
    if split not in ("train", "heldout", "all"):
        raise ValueError(f'combinations: expected split "train", "heldout" or "all", got {split!r}')
    every = [
        Combination(colour, shape, direction)
        for colour in range(len(COLOURS))
        for shape in range(len(SHAPES))
        for direction in range(len(DIRECTIONS))
    ]
    return every if split == "all" else [c for c in every if is_heldout(c) == (split == "heldout")]


def heldout_captions() -> list[str]:
    """List every caption, at both speeds, of the combinations that never occur in training."""
    return [
        caption_of(Attributes(COLOURS[c.colour], SHAPES[c.shape], DIRECTIONS[c.direction], speed))
        for c in combinations("heldout")
        for speed in SPEEDS
    ]
