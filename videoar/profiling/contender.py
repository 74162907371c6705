"""What is timed, and what the profiler asks of a model to time it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch

from videoar.observer import Observer
from videoar.profiling.recorder import Clip
from videoar.profiling.shapes import Shape
from videoar.profiling.work import Work


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a subject is run.

    Args:
        device: "cpu" or "cuda".
        batch: clips at once.
        guidance: whether each step also runs without the condition; None is the model's own choice.
        decode: whether pixels are made.
        pack: dtype to pack the transformer in, as `videoar generate --precision` does; None leaves it.
        dtype: what a transformer that is not packed computes in; None leaves it.
        decode_dtype: what paper S's decoder computes in; None: bfloat16 on CUDA, else what it has.
        compare_eager: whether eager PyTorch runs beside it.
    """

    device: str = "cpu"
    batch: int = 1
    guidance: bool | None = None
    decode: bool = True
    pack: torch.dtype | None = None
    dtype: torch.dtype | None = None
    decode_dtype: torch.dtype | None = None
    compare_eager: bool = False

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ValueError(f"profile: expected --batch of at least 1, got {self.batch}")
        if self.pack is not None and self.dtype is not None:
            raise ValueError("profile: expected --precision or --dtype, got both")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("profile: expected --device cpu, because this PyTorch sees no GPU")


@dataclass
class Contender:
    """One way of making the clip, and the clips it made."""

    name: str
    run: Callable[[Observer], None]
    computes_in: str
    first: float = 0.0
    clips: list[Clip] = field(default_factory=list)


class StepWork(NamedTuple):
    """What one step of a clip needs of the transformer; `frame` and `scale` are those of its spans.

    Attributes:
        size: of what it works on, in tokens.
        group: name of the steps that a table puts together, such as `8x8`.
        place: its name, such as `frame 3, scale 8x8`.
        tokens, seen: its queries and the keys that they see, their own included.
        work: FLOPs and bytes.
    """

    frame: int
    scale: int
    size: tuple[int, ...]
    group: str
    place: str
    tokens: int
    seen: int
    work: Work


class ClipWork(NamedTuple):
    """What a clip needs.

    Attributes:
        steps: of the transformer, in order.
        parts: work of every part that is counted, piece by piece.
        tokens: generated in one clip.
        unit_parts: parts that together make a unit, where there are units.
    """

    steps: list[StepWork]
    parts: dict[str, list[Work]]
    tokens: int
    unit_parts: tuple[str, ...] = ()


class Subject(Protocol):
    """A model that is ready to be profiled.

    Attributes:
        shape: of a clip in pixels.
        facts: name -> text on what every figure depends on.
        includes: sentences on what the figures include.
        computing: dtype of the transformer's matrix products.
    """

    shape: Shape
    options: Options
    facts: dict[str, str]
    includes: list[str]
    computing: torch.dtype

    def contenders(self) -> list[Contender]:
        """This library first; then "without decoding" and "eager", where there are such."""
        ...

    def disagreement(self) -> float | None:
        """How far eager PyTorch's results are from ours; None if it was not asked for."""
        ...

    def work(self) -> ClipWork: ...


def checked_disagreement(found: float, options: Options, dtype: torch.dtype, what: str) -> float:
    """Returns a relative difference from eager PyTorch's results.

    Raises:
        ValueError: if it is too large: the two would not be the same model.
    """
    exact = dtype == torch.float32 and options.pack in (None, torch.float32)
    allowed = 1e-3 if exact else 0.05
    if not found < allowed:
        raise ValueError(f"profile: expected eager PyTorch's {what} within {allowed}, got {found:.2g} apart")
    return found
