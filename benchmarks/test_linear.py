"""Linear layers with packed weights, as sampling calls them: the widths of preset L, few rows to many.

One call runs a stack of layers whose weights outgrow every cache, for a model never meets its weights warm.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from closeness import assert_close
from limits import emulated
from registry import Absent, Case, Steps, cases

from videoar_kernels import pack_linear_weight, packed_linear

LAYERS = 6
BARS = {1: 0.8, 2: 0.8, 8: 0.8, 18: 0.8, 32: 0.8, 64: 0.9, 128: 0.9, 512: 0.9}  # share of the floor, by rows


@cases("packed_linear")
def linear(full: bool):
    shapes = ((1536, 6144), (6144, 1536), (1536, 4608)) if full else ((1536, 6144),)
    for inputs, outputs in shapes:
        for dtype in (torch.bfloat16, torch.float32) if full else (torch.bfloat16,):
            for rows in BARS if full else (2, 32, 128):
                yield stack(inputs, outputs, rows, dtype)
    if not full:
        yield stack(1536, 6144, 128, torch.float32)


def stack(inputs: int, outputs: int, rows: int, dtype: torch.dtype) -> Case:
    weights = [torch.randn(outputs, inputs).to(dtype) for _ in range(LAYERS)]
    packed = [pack_linear_weight(weight) for weight in weights]
    x = torch.randn(rows, inputs).to(dtype)
    wide_weights, wide = [weight.float() for weight in weights], x.float()

    def ours():
        for weight in packed:
            packed_linear(x, weight, outputs)

    def eager():
        for weight in weights:
            F.linear(x, weight)

    def eager_float32():
        for weight in wide_weights:
            F.linear(wide, weight)

    def verify():
        exact = F.linear(x.double(), weights[-1].double())
        assert_close(packed_linear(x, packed[-1], outputs), exact, F.linear(wide, wide_weights[-1]).to(dtype))

    peers = {"eager float32": eager_float32}
    if dtype != torch.float32:
        slow = emulated(dtype)
        peers["eager bfloat16"] = (
            Absent("this processor multiplies bfloat16 at a hundredth of float32") if slow else eager
        )
    floor = Steps(((packed[0].nbytes, 2 * rows * inputs * outputs),) * LAYERS, "one layer: its weights read, its FLOPs")
    return Case(
        op="packed_linear",
        shape=f"{inputs} to {outputs}, {rows} rows",
        dtype=dtype,
        ours=ours,
        verify=verify,
        peers=peers,
        bytes=LAYERS * (packed[0].nbytes + (inputs + outputs) * rows * x.element_size()),
        flops=LAYERS * 2 * rows * inputs * outputs,
        limit=floor,
        bars={"limit": BARS[rows]},
    )


def test_linear(case, compare):
    compare(case)
