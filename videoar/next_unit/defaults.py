"""How a model is sampled when nothing else is asked: what `sampling.json` holds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from videoar.model_folder import read_json
from videoar.next_unit.denoising import SamplingOptions
from videoar.next_unit.layout import Grid, UnitLayout
from videoar.next_unit.units import parse_units
from videoar_kernels.argument_types import finite, whole


@dataclass(frozen=True)
class UnitDefaults:
    """What a model is sampled with when the caller says nothing: `sampling.json`.

    Args:
        units: the scheme, as `parse_units` reads it.
        grid: (T, H, W) of a clip in tokens.
        steps, shift, method, guidance, context_noise: as in `SamplingOptions`.
        window: units before its own that a unit sees; None: all of its clip, and in a stream as many as the last unit
            of a clip sees.
        sink: first units of a stream that every unit sees besides.
        history: units that a switch of prompts computes anew; None: those of the window.
        fps: frame rate of the clips it was trained on.
        wrap: whether these were sprites on a torus, which are measured as such.

    Raises:
        ValueError: a value that makes no sense. TypeError: one that is no number.
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
    context_noise: float = 0.0

    def __post_init__(self) -> None:
        self._set("units", str(parse_units(str(self.units))))
        self._set("grid", tuple(whole("UnitDefaults", "grid", size) for size in self.grid))
        for name in ("window", "sink", "history"):
            if getattr(self, name) is not None or name == "sink":
                self._set(name, whole("UnitDefaults", name, getattr(self, name)))
                if getattr(self, name) < 0:
                    raise ValueError(f"UnitDefaults: expected {name} >= 0, got {getattr(self, name)}")
        self._set("fps", finite("UnitDefaults", "fps", self.fps))
        if self.fps <= 0:
            raise ValueError(f"UnitDefaults: expected fps > 0, got {self.fps}")
        for name, value in vars(self.options).items():
            self._set(name, value)
        _ = self.layout  # which says what makes no sense

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    @classmethod
    def read(cls, path: str | Path) -> UnitDefaults:
        """Read a `sampling.json`.

        Raises:
            ValueError: it holds anything else.
        """
        values = read_json(path)
        try:
            return cls(**values)
        except (TypeError, ValueError) as error:
            raise ValueError(f"UnitDefaults.read: {path}: {error}") from None

    @property
    def options(self) -> SamplingOptions:
        return SamplingOptions(self.steps, self.shift, self.method, self.guidance, self.context_noise)

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
