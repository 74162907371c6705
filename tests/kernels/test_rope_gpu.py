"""The Triton kernel of rope without a GPU: interpreted, and compiled ahead of time."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from tests.closeness import assert_close
from tests.python_path import python_path
from videoar_kernels import reference

ROOT = Path(__file__).parents[2]
CASES = [  # shape, dims, theta
    ((2, 3, 5, 16), None, 10000.0),
    ((1, 17, 2, 10), (2, 4, 4), 100.0),
    ((2, 1, 0, 16), None, 10000.0),
]


def compare_with_float64(rope_3d, device="cpu"):
    """Raises unless rope_3d(x, positions, **options) agrees with the float64 reference on all CASES."""
    for shape, dims, theta in CASES:
        for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
            for interleaved in (True, False):
                options = {"dims": dims, "theta": theta, "interleaved": interleaved}
                batch, heads, length, head_dim = shape
                x = torch.randn(batch, length, heads, head_dim, dtype=dtype, device=device).transpose(1, 2)
                positions = torch.randint(0, 9, (batch, length, 3), device=device)
                exact = reference.rope.rope_3d(x.double(), positions, **options)
                # The interpreter cuts bfloat16 off instead of rounding it.
                low = exact.to(dtype) * (1 + torch.finfo(dtype).eps)
                for p, e, v, l in ((positions, exact, x, low), (positions[0], exact[:1], x[:1], low[:1])):
                    assert_close(rope_3d(v, p, **options), e, l)


requires_triton = pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="Triton is not installed")


@requires_triton
def test_interpreted_triton_kernel_matches_float64():
    # Triton reads the variable when it is imported, so this needs a process of its own.
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": python_path(ROOT)}
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


@requires_triton
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_triton_kernel_compiles_ahead_of_time_without_spills(capability):
    from tests.ahead_of_time import compile_kernel
    from videoar_kernels.triton.rope import rope_kernel

    for interleaved in (True, False):
        for element, table in (("bf16", "fp32"), ("fp64", "fp64")):
            pointers = {"x_pointer": element, "out_pointer": element, "cosines_pointer": table, "sines_pointer": table}
            strides = [f"{t}_{axis}" for t in ("x", "out") for axis in ("batch", "head", "token")]
            types = {name: f"*{kind}" for name, kind in pointers.items()} | dict.fromkeys(strides, "i64")
            constants = {"PAIRS": 64, "PADDED": 64, "HEADS": 16, "INTERLEAVED": interleaved}
            made = compile_kernel(rope_kernel, types | {"table_batch": "i64"}, constants, capability, warps=4)
            assert made.stack == 0 and made.registers <= 128 and made.shared <= 48 * 1024, made


@requires_triton
@pytest.mark.gpu
def test_triton_kernel_matches_float64_on_a_gpu():
    """Where the CUDA library is compiled, the operator is its; so the Triton kernel is asked for by name."""
    from videoar_kernels.triton import rope as triton_rope

    compare_with_float64(triton_rope.rope_3d, "cuda")
    x = torch.randn(2, 3, 5, 16, device="cuda", dtype=torch.bfloat16)
    positions = torch.randint(0, 9, (5, 3), device="cuda")
    rotated = triton_rope.rope_3d(x, positions)
    triton_rope.operator_(x, positions, None, 10000.0, True, False)
    assert torch.equal(x, rotated)


@requires_triton
@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU or none")
def test_triton_kernel_runs_where_its_tensors_lie():
    from videoar_kernels.triton import rope as triton_rope

    compare_with_float64(triton_rope.rope_3d, "cuda:1")


@requires_triton
def test_the_triton_kernel_is_launched_on_its_tensors_device(monkeypatch):
    from videoar_kernels.triton import rope as triton_rope

    entered = []

    @contextmanager
    def on_device(x):
        entered.append(x)
        yield
        entered.pop()

    class Kernel:
        def __getitem__(self, grid):
            return lambda x, *rest, **options: launched.append((x, *entered))

    launched = []
    monkeypatch.setattr(triton_rope, "on_device", on_device)
    monkeypatch.setattr(triton_rope, "rope_kernel", Kernel())
    x = torch.randn(1, 2, 3, 16)
    triton_rope.rope_3d(x, torch.zeros(3, 3, dtype=torch.int64))
    ((given, around),) = launched
    assert given is x and around is x and not entered


if __name__ == "__main__":
    from videoar_kernels.triton import rope as triton_rope

    torch.manual_seed(0)
    compare_with_float64(triton_rope.rope_3d)
