"""Rotary embedding, alone and fused with the norm of queries and keys, on tensors that outgrow every cache."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from closeness import assert_close
from memory_bound import LEAST_BYTES, judged_by
from registry import Case, cases, on_gpu
from torch import Tensor

from videoar_kernels import qk_norm_rope, reference, rope_3d

HEADS, DIM = 16, 64
BARS = {"limit": 0.7, "torch.compile": 5.0}
LENGTHS = {21_504: "44 MB", 171_008: "350 MB"}  # bf16


def lengths(full: bool) -> list[int]:
    if on_gpu():
        return [length for length in LENGTHS if 2 * HEADS * DIM * length >= LEAST_BYTES]
    return list(LENGTHS) if full else list(LENGTHS)[:1]


@cases("rope_3d")
def rope(full: bool) -> Iterator[Case]:
    for length in lengths(full):
        for in_place in (True, False):
            yield rope_case(length, in_place)


def rope_case(length: int, in_place: bool) -> Case:
    x, positions = tokens(length), grid(length)
    out = x if in_place else torch.empty_like(x)
    table = angles(positions)
    peer = x.clone()

    def eager() -> Tensor:
        return rotate(peer, table)

    def compiled_into(x: Tensor, out: Tensor) -> None:
        out.copy_(rotate(x, table))

    compiled = torch.compile(compiled_into, dynamic=False)
    target = peer if in_place else torch.empty_like(peer)

    def verify() -> None:
        some = slice(length - 100, length)
        given = tokens(100)
        exact = reference.rope.rope_3d(given.double(), positions[some])
        low = rotate(given, tuple(t[some] for t in table))
        assert_close(rope_3d(given, positions[some]), exact, low)
        before = x[:, :, some].double()
        rope_3d(x, positions, out=out)
        right = reference.rope.rope_3d(before, positions[some])
        assert_close(out[:, :, some], right, right.to(x.dtype))

    return Case(
        op="rope_3d",
        shape=f"{LENGTHS[length]}, {'in place' if in_place else 'out='}",
        dtype=x.dtype,
        ours=lambda: rope_3d(x, positions, out=out),
        verify=verify,
        peers={"eager": eager, "torch.compile": lambda: compiled(peer, target)},
        bytes=2 * x.nbytes,
        **judged_by("copy same size", BARS),
    )


@cases("qk_norm_rope")
def normed(full: bool) -> Iterator[Case]:
    for length in lengths(full):
        for in_place in (True, False):
            yield normed_case(length // 2, LENGTHS[length], in_place)


def normed_case(length: int, size: str, in_place: bool) -> Case:
    q, k, positions = tokens(length), tokens(length), grid(length)
    weight = 1 + 0.1 * torch.randn(DIM)
    out = (q, k) if in_place else (torch.empty_like(q), torch.empty_like(k))
    table = angles(positions)
    peers = q.clone(), k.clone()

    def norm(x: Tensor, table: tuple[Tensor, Tensor] = table) -> Tensor:
        return rotate(F.rms_norm(x.float(), (DIM,), weight, 1e-6).to(x.dtype), table)

    def compiled_into(q: Tensor, k: Tensor, q_out: Tensor, k_out: Tensor) -> None:
        q_out.copy_(norm(q))
        k_out.copy_(norm(k))

    compiled = torch.compile(compiled_into, dynamic=False)
    targets = peers if in_place else tuple(torch.empty_like(x) for x in peers)

    def verify() -> None:
        some = slice(length - 100, length)
        before = [x[:, :, some].clone() for x in (q, k)]
        qk_norm_rope(q, k, weight, weight, positions, out=out)
        exact = reference.rope.qk_norm_rope(*(x.double() for x in before), weight, weight, positions[some])
        for found, right, x in zip(out, exact, before, strict=True):
            assert_close(found[:, :, some], right, norm(x, tuple(t[some] for t in table)))

    return Case(
        op="qk_norm_rope",
        shape=f"{size}, {'in place' if in_place else 'out='}",
        dtype=q.dtype,
        ours=lambda: qk_norm_rope(q, k, weight, weight, positions, out=out),
        verify=verify,
        peers={"eager": lambda: [norm(x) for x in peers], "torch.compile": lambda: compiled(*peers, *targets)},
        bytes=2 * (q.nbytes + k.nbytes),
        **judged_by("copy same size", BARS),
    )


def tokens(length: int) -> Tensor:
    return torch.randn(1, HEADS, length, DIM).bfloat16()


def grid(length: int) -> Tensor:
    """Positions of frames of 32 x 32 tokens."""
    index = torch.arange(length)
    return torch.stack([index // 1024, index // 32 % 32, index % 32], dim=1)


def angles(positions: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines (L, D / 2), float32, made beforehand for the peers."""
    table = reference.rope.rope_angles(positions, reference.rope.default_dims(DIM))
    return table.cos().float(), table.sin().float()


def rotate(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    cos, sin = table
    a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1).flatten(-2).to(x.dtype)


def test_rope(case, compare):
    compare(case)
