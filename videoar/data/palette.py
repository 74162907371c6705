"""The eight sprite colours as RGB numbers."""

from __future__ import annotations

import torch

from videoar.data.captions import COLOURS

_DARK, _BRIGHT = 0.05, 0.95  # a little inside the cube, so that a codec's ringing is not clipped away

_CORNERS = {
    "red": (1, 0, 0),
    "green": (0, 1, 0),
    "blue": (0, 0, 1),
    "yellow": (1, 1, 0),
    "cyan": (0, 1, 1),
    "magenta": (1, 0, 1),
    "white": (1, 1, 1),
    "black": (0, 0, 0),
}

PALETTE = _DARK + (_BRIGHT - _DARK) * torch.tensor([_CORNERS[name] for name in COLOURS], dtype=torch.float32)  # (8, 3)
