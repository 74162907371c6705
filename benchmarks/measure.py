"""Verifies a case, then times ours, its peers and its limit interleaved, round by round, in one process."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import math
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from clock import Clock
from limits import limit_calls
from load import Load
from memory import peak_bytes
from registry import MEMORY, Absent, Arithmetic, Case, Steps
from results import Row, Timing, floor_of, judge

from videoar_kernels import library

SHORTEST_SAMPLE = 1e-3  # seconds: shorter calls are repeated until one sample takes this long
WARM_BELOW = 50e-3  # seconds: shorter calls run once untimed before each sample, so that neighbours' traces are gone
SLOW = 10.0  # seconds: a call this slow is timed once


@dataclass(frozen=True)
class Effort:
    """How long a case may be timed.

    Args:
        seconds: of timing for one case, about; slow contenders get fewer samples, 3 at least.
        least, most: samples per contender.
        rounds: exactly so many instead.
    """

    seconds: float = 2.0
    least: int = 5
    most: int = 30
    rounds: int | None = None


@dataclass
class Contender:
    """One call in the rounds, and what was measured of it."""

    name: str
    role: str  # "ours", "peer", "yardstick" or "limit"
    call: Callable[[], object]
    work: float = 0
    first: float = 0.0  # seconds of the first call
    once: float = 0.0  # seconds of one call, estimated
    iterations: int = 1
    wanted: int = 0
    samples: list[float] = field(default_factory=list)
    faults: list[int] = field(default_factory=list)

    def sample(self, clock: Clock) -> None:
        if self.once < WARM_BELOW:
            self.call()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        self.samples.append(clock.seconds(self.call, self.iterations) / self.iterations)
        self.faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

    def timing(self) -> Timing:
        faults = statistics.median(self.faults or [0]) / self.iterations
        return Timing.of(self.samples, self.iterations, faults, self.first)


def verify(case: Case) -> str | None:
    """Returns why the case's result is wrong or cannot be had, or None."""
    try:
        case.verify()
        case.ours()
    except Exception as error:
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
    return None


def interleave(contenders: list[Contender], clock: Clock) -> None:
    """Samples every contender `wanted` times, spread evenly over the rounds; each round starts with the next one."""
    rounds = max(c.wanted for c in contenders)
    for r in range(rounds):
        start = r % len(contenders)
        for c in contenders[start:] + contenders[:start]:
            if (r + 1) * c.wanted // rounds > r * c.wanted // rounds:
                c.sample(clock)


def plan(contenders: list[Contender], effort: Effort) -> None:
    """Sets how many calls make a sample and how many samples each contender gives."""
    shares = effort.seconds / (len(contenders) + 1)
    for c in contenders:
        share = shares * (2 if c.role == "ours" else 1)
        c.iterations = max(1, math.ceil(SHORTEST_SAMPLE / max(c.once, 1e-9))) if c.once < SHORTEST_SAMPLE else 1
        cost = c.once * (c.iterations + (c.once < WARM_BELOW))
        least = effort.least if cost * effort.least <= effort.seconds else 3
        c.wanted = effort.rounds or min(effort.most, max(least, int(share / cost)))
        if c.once > SLOW:
            c.wanted = 0


def prepare(c: Contender, clock: Clock) -> None:
    """Warms a contender up and estimates one call; a very slow one has its only sample then."""
    start = time.perf_counter()
    c.call()
    c.first = time.perf_counter() - start
    c.once = clock.seconds(c.call, 1)
    if c.once < 0.1:  # the heap may need a few calls until freed blocks fit the next ones
        c.once = min(clock.seconds(c.call, 1) for _ in range(3))
    if c.once < SHORTEST_SAMPLE:
        repeats = max(1, int(0.2 * SHORTEST_SAMPLE / max(c.once, 1e-7)))
        c.once = clock.seconds(c.call, repeats) / repeats
    if c.once > SLOW:
        c.samples.append(c.once)


def measure(case: Case, family: str, clock: Clock, effort: Effort) -> Row:
    """Returns the row of one case; a wrong result is not timed."""
    start = time.perf_counter()
    torch._dynamo.reset()  # so that no case meets another's recompile limit
    with torch.set_grad_enabled(case.grad), instruction_set(case.isa):
        if wrong := verify(case):
            return Row.wrong_result(case, family, wrong)
        contenders, absent = gather(case, clock)
        plan(contenders, effort)
        with no_garbage_collection():
            load = Load()
            interleave([c for c in contenders if c.wanted], clock)
            elsewhere = load.elsewhere()
        memory = peaks(case, [c for c in contenders if c.role in ("ours", "peer")], clock)
        asides = {name: Timing.of(few(call, clock), 1, 0) for name, call in case.asides.items()}
        timings = {c.name: c.timing() for c in contenders}
        works = {c.name: c.work for c in contenders if c.role == "limit"}
        floor = floor_of(case, {name: work / timings[name].median for name, work in works.items()})
    row = judge(case, family, timings, absent, works, floor, asides, elsewhere, memory)
    return dataclasses.replace(row, wall=round(time.perf_counter() - start, 2))


def peaks(case: Case, contenders: list[Contender], clock: Clock) -> dict[str, int]:
    """Returns the peak memory of ours and its peers, where a bar asks for it; after all timing."""
    if not any(bar.startswith(MEMORY) for bar in case.bars):
        return {}
    return {c.name: peak_bytes(c.call, clock.device) for c in contenders}


@contextlib.contextmanager
def instruction_set(name: str | None):
    """Runs CPU kernels with instruction set `name`, if any."""
    before = library.set_cpu_isa(name) if name else None
    try:
        yield
    finally:
        if before:
            library.set_cpu_isa(before)


@contextlib.contextmanager
def no_garbage_collection():
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def gather(case: Case, clock: Clock) -> tuple[list[Contender], dict[str, str]]:
    """Returns the contenders that run, warmed up, and why the others do not."""
    ours = Contender("ours", "ours", case.ours)
    prepare(ours, clock)
    contenders, absent = [ours], {}
    for name, call in case.peers.items():
        if isinstance(call, Absent):
            absent[name] = call.reason
            continue
        peer = Contender(name, "peer", call)
        try:
            prepare(peer, clock)
        except Exception as error:
            absent[name] = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"[:160]
        else:
            contenders.append(peer)
    for name, call in case.yardsticks.items():
        contenders.append(Contender(name, "yardstick", call))
        prepare(contenders[-1], clock)
    for kind in limit_kinds(case):
        for name, (call, work) in limit_calls(kind, case, clock.device).items():
            contenders.append(Contender(name, "limit", call, work))
            prepare(contenders[-1], clock)
    return contenders, absent


def limit_kinds(case: Case) -> tuple[str, ...]:
    """Returns the kinds of `limit_calls` that a case's floor is made of."""
    if isinstance(case.limit, Steps):
        return "copy", "matmul"
    if isinstance(case.limit, Arithmetic):
        return ("copy same size",) if case.bytes else ()
    return () if case.limit is None else (case.limit,)


def few(call: Callable[[], object], clock: Clock) -> list[float]:
    start = time.perf_counter()
    call()
    slow = time.perf_counter() - start > SLOW
    return [clock.seconds(call, 1) for _ in range(1 if slow else 3)]
