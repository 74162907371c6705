"""What is measured: one `Case` for every row of the table, made by the generators that `@cases` collects.

A family's file holds generators and one test:

    @cases("rope_3d")
    def rope_3d(full: bool):
        x = torch.randn(...)
        yield Case(op="rope_3d", shape="44 MB, in place", dtype=x.dtype, ours=lambda: ..., verify=lambda: ..., ...)

    def test_rope(case, compare):
        compare(case)

A generator is advanced only when its next case is due, so that one case's inputs live at a time. There and in `verify`
tensors are created without naming a device, for the harness sets a default; what is timed takes it from its inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch

Call = Callable[[], object]
MEMORY = "memory of "  # begins the name of a bar


@dataclass(frozen=True)
class Arithmetic:
    """A limit of its own for an op bound by arithmetic other than matrix products, or by memory if that takes longer.

    Args:
        rate: operations per second this machine can do, or a function that measures it; `Case.flops` counts them.
        what: what one operation is and how the rate was found.
    """

    rate: float | Callable[[], float]
    what: str


@dataclass(frozen=True)
class Steps:
    """A limit for a sequence of steps: the sum over steps of max(bytes / copy rate, flops / matmul rate).

    Args:
        steps: (bytes, flops) of every step.
        what: what a step is.
    """

    steps: tuple[tuple[float, float], ...]
    what: str


@dataclass(frozen=True)
class Absent:
    """Stands for a peer that cannot run here; its reason is printed in its place."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class Case:
    """One row.

    Args:
        op: the operation, as users call it.
        shape: what tells this row from the op's other rows: sizes, layout, density.
        dtype: of the inputs.
        ours: the call that is timed.
        verify: raises if what `ours` computes is wrong; runs before anything is timed.
        peers: the same work by others, by name. A peer that raises at its first call is reported as absent. Compile in
            the callable's creation (`torch.compile(f)`); the first, untimed call then compiles.
        yardsticks: other timed calls, for bars only; never "best peer". Such as an empty op, or ours on other sizes.
        asides: what a peer needs beforehand (building a mask): timed apart, a few times.
        bytes: compulsory bytes: every input read once, every output written once.
        flops: useful floating point operations.
        limit: "copy" (large torch copies, bytes read plus written), "copy same size" (a torch copy that moves `bytes`),
            "matmul" (PyTorch's better one of bfloat16 and float32), "matmul f32", `Arithmetic` (or "copy same size", if
            there are `bytes` and they take longer), `Steps`, or None.
        bars: what is asked for. "limit": least share of the limit; a peer's or yardstick's name: least ratio of its
            time to ours; "time": most seconds; "beyond <name>": most seconds more than that yardstick; "memory of
            <peer>": least ratio of its peak memory to ours.
        grad: run with gradients enabled; otherwise everything runs under torch.no_grad().
        isa: run under this CPU instruction set instead of the best one.
        notes: a remark printed below the table.
    """

    op: str
    shape: str
    dtype: torch.dtype
    ours: Call
    verify: Call
    peers: Mapping[str, Call | Absent] = field(default_factory=dict)
    yardsticks: Mapping[str, Call] = field(default_factory=dict)
    asides: Mapping[str, Call] = field(default_factory=dict)
    bytes: float = 0
    flops: float = 0
    limit: str | Arithmetic | Steps | None = None
    bars: Mapping[str, float] = field(default_factory=dict)
    grad: bool = False
    isa: str | None = None
    notes: str = ""

    def __post_init__(self) -> None:
        names = (*self.peers, *self.yardsticks)
        if len(set(names)) != len(names):
            raise ValueError(f"Case: expected names of peers and yardsticks to differ, got {names}")
        if isinstance(self.limit, str) and self.limit not in ("copy", "copy same size", "matmul", "matmul f32"):
            raise ValueError(f"Case: expected limit copy, copy same size, matmul or matmul f32, got {self.limit!r}")
        for name in self.bars:
            known = name in ("limit", "time") or name.removeprefix("beyond ").removeprefix(MEMORY) in names
            if not known or (name == "limit" and self.limit is None):
                raise ValueError(f"Case: expected bars for limit, time or one of {names}, got {name!r}")

    @property
    def dtype_name(self) -> str:
        return {torch.bfloat16: "bf16", torch.float32: "f32", torch.float16: "f16"}.get(
            self.dtype, str(self.dtype).removeprefix("torch.")
        )


@dataclass(frozen=True)
class CaseSet:
    """The cases of one generator, made one at a time."""

    name: str
    module: str
    generate: Callable[[bool], Iterator[Case]]


_sets: list[CaseSet] = []


def on_gpu() -> bool:
    """Whether cases are made for a GPU now (tests take the meta device): some ask for other sizes and bars there."""
    return torch.get_default_device().type != "cpu"


def cases(name: str):
    """Registers a generator of cases; `pytest benchmarks -k name` runs it alone."""

    def register(generate: Callable[[bool], Iterator[Case]]):
        _sets.append(CaseSet(name, generate.__module__, generate))
        return generate

    return register


def sets_of(module: str) -> list[CaseSet]:
    """Returns what a family's file registered."""
    return [s for s in _sets if s.module == module]
