"""How a model is sampled when nothing else is asked: what `sampling.json` holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from videoar.next_unit.denoising import SamplingOptions
from videoar.next_unit.layout import Grid, UnitLayout
from videoar.next_unit.units import parse_units


@dataclass(frozen=True)
class UnitDefaults:
    """What a model is sampled with when the caller says nothing: `sampling.json`.

    Args:
        units: the scheme, as `parse_units` reads it.
        grid: (T, H, W) of a clip in tokens.
        steps, shift, method, guidance: as in `SamplingOptions`.
        window: units before its own that a unit sees; None: all of its clip, and in a stream as many as the last unit
            of a clip sees.
        sink: first units of a stream that every unit sees besides.
        history: units that a switch of prompts computes anew; None: those of the window.
        fps: frame rate of the clips it was trained on.
        wrap: whether these were sprites on a torus, which are measured as such.
    """

    units: str = "cube(2, 2, 2)"
    grid: Grid = (5, 4, 4)
    steps: int = 4
    shift: float = 5.0
    method: Literal["renoise", "euler"] = "renoise"
    guidance: float = 1.0
    window: int | None = None
    sink: int = 0
    history: int | None = None
    fps: float = 8.0
    wrap: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "units", str(parse_units(str(self.units))))
        object.__setattr__(self, "grid", tuple(int(size) for size in self.grid))
        _ = self.options, self.layout  # which say what makes no sense

    @property
    def options(self) -> SamplingOptions:
        return SamplingOptions(self.steps, self.shift, self.method, self.guidance)

    @property
    def stream_window(self) -> int:
        """Units before its own that a unit of a stream sees."""
        return len(self.layout.units) - 1 if self.window is None else self.window

    @property
    def layout(self) -> UnitLayout:
        """The units of one clip."""
        return parse_units(self.units).on(self.grid)


# The public model denoises a whole clip at once: 81 frames of 480 x 832 at 16 a second.
WAN_DEFAULTS = UnitDefaults("cube(1, 1, 1)", (21, 30, 52), steps=50, method="euler", guidance=5.0, fps=16.0)
