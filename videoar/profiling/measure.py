"""Runs a subject, its eager twin and the machine's limits in turn, and puts the figures together."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from videoar.observer import Observer
from videoar.profiling import machine
from videoar.profiling.attribution import Attribution
from videoar.profiling.eager_clip import disagreement
from videoar.profiling.limits import Limit, copy_limit, dtype_name, matmul_limit
from videoar.profiling.memory import peak_memory
from videoar.profiling.nvml import NvmlUnavailable, meter_for
from videoar.profiling.recorder import Clip, Recorder, recorder_for
from videoar.profiling.result import Gpu, Profile, Rate, Spread
from videoar.profiling.subject import Subject

LEAST_ROUNDS, MOST_ROUNDS = 3, 50
WATCHED_SECONDS = 2.0  # NVML's power is a mean over up to a second
LIMIT_CALLS = {"cpu": 1, "cuda": 20}  # a GPU's are over before the host has noticed
Progress = Callable[[str], object]


@dataclass
class Contender:
    """One way of making the clip, and the clips it made."""

    name: str
    run: Callable[[Observer], None]
    computes_in: str
    first: float = 0.0
    clips: list[Clip] = field(default_factory=list)


def profile(
    subject: Subject, *, rounds: int | None = None, seconds: float = 10.0, progress: Progress = lambda _: None
) -> Profile:
    """Measures a subject.

    Args:
        subject: what to run.
        rounds: timed clips of each contender; None takes as many as fit into `seconds`, from 3 to 50.
        seconds: of timing, about.
        progress: is told what is being done.

    Raises:
        ValueError: if rounds is not positive, or the eager twin computes something else.
    """
    if rounds is not None and rounds < 1:
        raise ValueError(f"profile: expected --rounds of at least 1, got {rounds}")
    device = subject.options.device
    transformer, recorder = subject.pipeline.transformer, recorder_for(device)
    computing = subject.options.pack or transformer.dtype
    contenders = [Contender("videoar", subject.run, dtype_name(computing))]
    apart = None
    if subject.eager is not None:
        progress("comparing logits with eager PyTorch's")
        apart = _checked_disagreement(subject)
        contenders.append(Contender("eager", subject.run_eager, dtype_name(subject.eager.twin.start.dtype)))
    with torch.no_grad(), _no_garbage_collection():
        for contender in contenders:
            progress(f"{contender.name}: first clip")
            contender.first = recorder.clip(contender.run).seconds
        begin = time.perf_counter()
        memory = peak_memory(lambda: [recorder.clip(contender.run) for contender in contenders], device)
        once = time.perf_counter() - begin
        limits = [matmul_limit(computing, device), copy_limit(device)]
        for limit in limits:
            limit.call()
        count = rounds or max(LEAST_ROUNDS, min(MOST_ROUNDS, int(seconds / once)))
        rates = _rounds(contenders, limits, recorder, device, count, progress)
        gpu = watch(subject, progress) if device == "cuda" else None
    flop_rate, byte_rate = (statistics.median(rates[limit.name]) for limit in limits)
    weight_bytes = torch.empty((), dtype=computing).element_size()
    attribution = Attribution(subject, weight_bytes, flop_rate, byte_rate)
    timed = [attribution.timed(c.name, c.computes_in, c.first, c.clips) for c in contenders]
    return Profile(
        machine=machine.describe(device),
        subject=subject.facts,
        included=(*subject.includes, f"Parts are timed by {recorder.how}."),
        rounds=count,
        ours=timed[0],
        eager=timed[1] if len(timed) > 1 else None,
        disagreement=apart,
        limits=tuple(
            Rate(name, "FLOP/s" if name.startswith("matmul") else "B/s", Spread.of(values))
            for name, values in rates.items()
        ),
        memory=memory,
        gpu=gpu,
    )


def _checked_disagreement(subject: Subject) -> float:
    transformer = subject.pipeline.transformer
    rows = 1 if subject.guidance.is_one else 2
    features = subject.pipeline.conditioner(subject.prompts[:1]).expand(rows, -1, -1)
    found = disagreement(transformer, subject.eager.twin, features, subject.latent_frames)
    exact = transformer.dtype == torch.float32 and subject.options.pack in (None, torch.float32)
    allowed = 1e-3 if exact else 0.05
    if not found < allowed:
        raise ValueError(f"profile: expected eager PyTorch's logits within {allowed}, got {found:.2g} apart")
    return found


def _rounds(
    contenders: list[Contender], limits: list[Limit], recorder: Recorder, device: str, count: int, progress: Progress
) -> dict[str, list[float]]:
    """Fills every contender's clips; each round begins with the next one. Returns the limits' rates."""
    rates: dict[str, list[float]] = {limit.name: [] for limit in limits}
    for index in range(count):
        progress(f"round {index + 1} of {count}")
        start = index % len(contenders)
        for contender in contenders[start:] + contenders[:start]:
            contender.clips.append(recorder.clip(contender.run))
        for limit in limits:
            rates[limit.name].append(LIMIT_CALLS[device] * limit.work / recorder.clip(_repeated(limit, device)).seconds)
    return rates


def _repeated(limit: Limit, device: str) -> Callable[[Observer], None]:
    def calls(_: Observer) -> None:
        for _ in range(LIMIT_CALLS[device]):
            limit.call()

    return calls


def watch(subject: Subject, progress: Progress) -> Gpu:
    """Clips back to back under NVML's eyes."""
    progress("power and clocks")
    try:
        meter = meter_for(subject.options.device)
    except NvmlUnavailable as error:
        return Gpu(absent=str(error))
    recorder = recorder_for(subject.options.device)
    clips, begin = 0, time.perf_counter()
    with meter.watch() as window:
        while clips < 1 or time.perf_counter() - begin < WATCHED_SECONDS:
            recorder.clip(subject.run)
            clips += 1
    facts = meter.facts()
    meter.close()
    per_clip = None if window.joules is None else window.joules / clips
    return Gpu(
        facts=facts,
        seconds=window.seconds,
        clips=clips,
        busy=window.mean("busy"),
        memory_busy=window.mean("memory_busy"),
        watts=None if window.joules is None else window.joules / window.seconds,
        joules_per_clip=per_clip,
        joules_per_frame=None if per_clip is None else per_clip / (subject.shape.frames * subject.options.batch),
        energy_from=window.energy_from,
        sm_clock=window.mean("sm_clock"),
        memory_clock=window.mean("memory_clock"),
        temperature=window.mean("temperature"),
        held_back=window.shares(),
        readings=tuple((r.seconds, r.watts, r.busy, r.sm_clock) for r in window.readings),
    )


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
