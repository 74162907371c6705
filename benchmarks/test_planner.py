"""Masks become work lists of tiles: built once for each content, then found again."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from registry import Case, cases

from videoar_kernels import _C, RangeMask

TILE = 24  # queries
BUILD, FIND = 2e-4, 5e-6  # seconds, for a thousand query ranges


def masks(full: bool) -> dict[str, RangeMask]:
    scales = [(1, 1), (2, 2), (3, 3), (4, 4), (6, 6), (8, 8)]
    keep = torch.rand(166, 166, generator=torch.Generator("cpu").manual_seed(0), device="cpu") < 0.5
    chosen = {
        "units, window": RangeMask.units([60] * 999, text_len=60, window=4),
        "166 frames of 6 scales": RangeMask.multiscale(64, 166, scales),
    }
    if full:
        chosen["the same, frames kept at random"] = RangeMask.multiscale(64, 166, scales, frame_keep=keep)
    return chosen


@cases("planner")
def planner(full: bool) -> Iterator[Case]:
    for name, mask in masks(full).items():
        arrays = [a.numpy() for a in (mask.batch_ptr, mask.q_ranges, mask.key_ptr, mask.key_ranges)]
        options = (*arrays, mask.q_len, mask.k_len, TILE)
        shape = f"{len(mask.q_ranges)} query ranges ({len(mask.key_ranges)} key ranges): {name}"

        def verify(options=options):
            assert _C.plan(*options, cached=True) == _C.plan(*options)

        for op, cached, most in (("plan, built", False, BUILD), ("plan, found", True, FIND)):
            yield Case(
                op=op,
                shape=shape,
                dtype=torch.int32,
                ours=lambda options=options, cached=cached: _C.plan_segments(*options, cached=cached),
                verify=verify,
                bars={"time": most},
            )


def test_planner(case, compare):
    compare(case)
