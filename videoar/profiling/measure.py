"""Runs a subject, its eager twin and the machine's limits in turn, and puts the figures together."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch

from videoar.observer import Observer
from videoar.profiling import machine
from videoar.profiling.attribution import Attribution
from videoar.profiling.contender import Contender, Subject
from videoar.profiling.limits import Limit, copy_limit, float32_products, matmul_limit
from videoar.profiling.memory import peak_memory
from videoar.profiling.nvml import NvmlUnavailable, meter_for
from videoar.profiling.recorder import Recorder, recorder_for
from videoar.profiling.result import Gpu, Profile, Rate, Spread

LEAST_ROUNDS, MOST_ROUNDS = 3, 50
WATCHED_SECONDS = 2.0  # NVML's power is a mean over up to a second
LIMIT_CALLS = {"cpu": 1, "cuda": 20}  # a GPU's are over before the host has noticed
Progress = Callable[[str], object]


def profile(
    subject: Subject,
    *,
    rounds: int | None = None,
    seconds: float = 10.0,
    once: bool = False,
    progress: Progress = lambda _: None,
) -> Profile:
    """Measures a subject.

    Args:
        subject: what to run.
        rounds: timed clips of each contender; None takes as many as fit into `seconds`, from 3 to 50.
        seconds: of timing, about.
        once: make one clip with each contender and no other, for what takes minutes.
        progress: is told what is being done.

    Raises:
        ValueError: if rounds is not positive, or the eager twin computes something else.
    """
    if rounds is not None and rounds < 1:
        raise ValueError(f"profile: expected --rounds of at least 1, got {rounds}")
    device, recorder = subject.options.device, recorder_for(subject.options.device)
    if subject.options.compare_eager:
        progress("comparing with eager PyTorch's results")
    apart = subject.disagreement()
    contenders = subject.contenders()

    def one(contender: Contender) -> None:
        progress(f"{contender.name}: {'the clip' if once else 'a clip'}")
        contender.clips.append(recorder.clip(contender.run))
        contender.first = contender.first or contender.clips[-1].seconds

    with torch.no_grad(), _no_garbage_collection():
        if not once:
            for contender in contenders:
                one(contender)
        begin = time.perf_counter()
        memory = {}
        for contender in contenders:
            peaks = peak_memory(partial(one, contender), device)
            whose = f" ({contender.name})" if len(contenders) > 1 else ""
            memory |= {f"{name}{whose}": size for name, size in peaks.items()}
        once_each = time.perf_counter() - begin
        limits = [matmul_limit(subject.computing, device), copy_limit(device)]
        for limit in limits:
            limit.call()
        if once:
            rates = {limit.name: [_rate(limit, recorder, device)] for limit in limits}
        else:
            for contender in contenders:
                contender.clips.clear()
            rounds = rounds or max(LEAST_ROUNDS, min(MOST_ROUNDS, int(seconds / once_each)))
            rates = _rounds(contenders, limits, recorder, device, rounds, progress)
        gpu = watch(subject, progress) if device == "cuda" else None
    attribution = Attribution(subject, *(statistics.median(rates[limit.name]) for limit in limits))
    timed = {contender.name: attribution.timed(contender) for contender in contenders}
    cold = ("One clip was made, without one before it: the figures hold all that is made once.",) if once else ()
    products = (float32_products(),) if device == "cuda" else ()
    return Profile(
        machine=machine.describe(device),
        subject=subject.facts,
        included=(*cold, *subject.includes, *products, f"Parts are timed by {recorder.how}."),
        rounds=1 if once else rounds,
        ours=timed["videoar"],
        bare=timed.get("without decoding"),
        eager=timed.get("eager"),
        disagreement=apart,
        limits=tuple(
            Rate(name, "FLOP/s" if name.startswith("matmul") else "B/s", Spread.of(values))
            for name, values in rates.items()
        ),
        memory=memory,
        gpu=gpu,
    )


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
            rates[limit.name].append(_rate(limit, recorder, device))
    return rates


def _rate(limit: Limit, recorder: Recorder, device: str) -> float:
    def calls(_: Observer) -> None:
        for _ in range(LIMIT_CALLS[device]):
            limit.call()

    return LIMIT_CALLS[device] * limit.work / recorder.clip(calls).seconds


def watch(subject: Subject, progress: Progress) -> Gpu:
    """Clips back to back under NVML's eyes."""
    progress("power and clocks")
    try:
        meter = meter_for(subject.options.device)
    except NvmlUnavailable as error:
        return Gpu(absent=str(error))
    recorder = recorder_for(subject.options.device)
    run = subject.contenders()[0].run
    clips, begin = 0, time.perf_counter()
    with meter.watch() as window:
        while clips < 1 or time.perf_counter() - begin < WATCHED_SECONDS:
            recorder.clip(run)
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
