"""Streams: chunks as soon as they are complete, memory that does not grow, several at once."""

from __future__ import annotations

import itertools

import pytest
import torch
from sharp_backbone import distance
from tiny_pipeline import tiny_pipeline

from videoar.next_unit import NextUnitTransformer, UnitPipeline
from videoar.next_unit.sampling import UnitDecoder

PROMPTS = ["a red circle moving up slowly", "a blue star moving left quickly"]


@pytest.mark.parametrize(
    ("scheme", "chunks", "units"),
    [
        ("frame", [1, 4, 4, 4, 4], [1, 2, 3, 4, 5]),
        ("key_detail(2)", [1, 12, 4, 12, 4], [1, 2, 3, 4, 5]),
        ("cube(2, 2, 2)", [5, 8, 8, 8], [4, 8, 12, 16]),
        ("multiscale(1x1, 2x2)", [13, 16, 16], [3, 6, 9]),
    ],
)
def test_chunks_come_as_soon_as_their_units_are_there(scheme, chunks, units, monkeypatch):
    pipeline = tiny_pipeline(scheme, levels=3 if scheme.startswith("multi") else 0)
    done, sampled = [], []
    right = UnitDecoder._unit
    monkeypatch.setattr(UnitDecoder, "_unit", lambda *given: (done.append(1), right(*given))[1])
    stream = pipeline.stream(PROMPTS, window=2)
    found = []
    for chunk in itertools.islice(stream, len(chunks)):
        found.append(chunk.shape[2])
        sampled.append(len(done))
    assert found == chunks and sampled == units


def test_a_stream_in_chunks_is_its_latents_decoded_at_once():
    pipeline = tiny_pipeline("cube(2, 2, 2)", dtype=torch.float64)
    video = torch.cat(list(pipeline.stream(PROMPTS, frames=45, seed=3)), dim=2)
    with torch.no_grad():
        latents = torch.cat(list(pipeline.latents(PROMPTS, frames=45, seed=3)), dim=2)
        whole = pipeline.autoencoder.decode(latents).clamp(-1, 1)
    assert video.shape[2] == 45 and latents.shape[2] == 12
    assert distance(video, whole) < 1e-9


def test_memory_does_not_grow(monkeypatch):
    """After the window is full a stream holds as many numbers as it ever will."""
    made = []
    new_cache = NextUnitTransformer.new_cache
    monkeypatch.setattr(
        NextUnitTransformer, "new_cache", lambda *given, **sizes: made.append(new_cache(*given, **sizes)) or made[-1]
    )
    pipeline = tiny_pipeline("frame", window=3, sink=1, history=6, steps=1)
    held, decoders = [], []
    right = UnitDecoder._unit
    monkeypatch.setattr(UnitDecoder, "_unit", lambda self, *given: (decoders.append(self), right(self, *given))[1])
    for chunk in itertools.islice(pipeline.stream(PROMPTS, switches={}), 60):
        (cache,), clean = made, decoders[-1]._clean
        held.append((cache.kv.nbytes, cache.kv.length, len(clean._last), len(clean._pinned), chunk.numel()))
    assert len(set(held[10:])) == 1
    assert held[-1][1:4] == (4 * 6, 6, 1)


def test_streams_share_a_pipeline():
    pipeline = tiny_pipeline("frame", window=2, dtype=torch.float64)
    alone = [torch.cat(list(pipeline.stream(PROMPTS[:1], frames=20, seed=seed)), dim=2) for seed in (1, 2)]
    both = [pipeline.stream(PROMPTS[:1], frames=20, seed=seed) for seed in (1, 2)]
    parts = list(zip(*both, strict=True))
    for number, expected in enumerate(alone):
        assert torch.equal(torch.cat([pair[number] for pair in parts], dim=2), expected)


def test_without_a_window_a_stream_sees_what_the_last_unit_of_a_clip_sees():
    pipeline = tiny_pipeline("cube(2, 2, 2)")
    assert torch.equal(pipeline.generate(PROMPTS, frames=40), pipeline.generate(PROMPTS, frames=40, window=7))
    assert not torch.equal(pipeline.generate(PROMPTS, frames=40), pipeline.generate(PROMPTS, frames=40, window=5))


def test_the_context_changes_a_stream_and_its_beginning_not(monkeypatch):
    pipeline = tiny_pipeline("frame", dtype=torch.float64)
    short, long = (torch.cat(list(pipeline.stream(PROMPTS, frames=25, window=n)), dim=2) for n in (1, 3))
    assert torch.equal(short[:, :, :5], long[:, :, :5]) and (short - long)[:, :, 9:].abs().max() > 1e-2
    assert isinstance(pipeline, UnitPipeline)
