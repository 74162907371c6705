"""Times candidate tile sizes of the Triton attention kernels on this GPU; nothing is changed, the rows are printed.

    PYTHONPATH=. python benchmarks/tune_attention.py forward --columns 128

Paste what wins into videoar_kernels/triton/attention_configs.py with its reason; the tests compile every row.
"""

from __future__ import annotations

import argparse
import itertools
import statistics

import torch
from clock import host_seconds, idle

from videoar_kernels import RangeMask
from videoar_kernels.triton import attention, attention_backward
from videoar_kernels.triton import attention_configs as configs

CANDIDATES = {
    "forward": ((64, 128), (32, 64, 128), (4, 8), (2, 3, 4)),
    "decode": ((32, 64), (32, 64, 128), (4, 8), (2, 3, 4, 5)),
    "queries": ((64, 128), (32, 64, 128), (4, 8), (1, 2, 3)),
    "keys": ((64, 128), (16, 32, 64, 128), (4, 8), (1, 2, 3)),
}


def seconds(call, rounds: int) -> float:
    """Median time on the device."""
    call()
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(rounds)]
    ahead = host_seconds(call)
    for start, stop in events:
        idle(ahead)
        start.record()
        call()
        stop.record()
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(stop) for start, stop in events) / 1e3


def work(kernel: str, columns: int, device: str = "cuda"):
    """(call, useful operations, bytes) of the kernel's usual work."""
    mask = None if kernel == "decode" else RangeMask.units([1560] * 6, 256)
    k_len = 16384 if mask is None else mask.k_len
    q_len = 64 if mask is None else mask.q_len
    q = torch.randn(2, 16, q_len, columns, device=device, dtype=torch.bfloat16)
    k, v = torch.randn(2, 2, 16, k_len, columns, device=device, dtype=torch.bfloat16)
    arrays = (None,) * 4 if mask is None else (mask.batch_ptr, mask.q_ranges, mask.key_ptr, mask.key_ranges)
    scale = columns**-0.5
    pairs = q.shape[0] * q.shape[1] * q_len * k_len * (1 if mask is None else mask.density)
    out, lse = attention.operator(q, k, v, *arrays, scale)
    if kernel in ("forward", "decode"):
        return lambda: attention.operator(q, k, v, *arrays, scale), 4 * columns * pairs, 2 * k.nbytes
    grad, delta = torch.randn_like(out), torch.zeros_like(lse)
    grads = [torch.empty_like(x) for x in (q, k, v)]
    if kernel == "queries":
        rest = (lse, None, delta, grads[0], arrays, scale)
        return lambda: attention_backward.launch_queries(q, k, v, out, grad, *rest), 6 * columns * pairs, 0
    rest = (lse, delta, *grads[1:], arrays, scale)
    return lambda: attention_backward.launch_keys(q, k, v, grad, *rest), 8 * columns * pairs, 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kernel", choices=configs.KERNELS)
    parser.add_argument("--columns", type=int, default=128, choices=(64, 128, 256), help="head_dim")
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("needs an NVIDIA GPU")
    family = configs.device_family(torch.device("cuda", torch.cuda.current_device()))
    call, flops, read = work(arguments.kernel, arguments.columns)
    shipped = configs.config(arguments.kernel, family, arguments.columns, 2)
    table = configs._TWO_BYTES[family, arguments.kernel]
    results = []
    for sizes in itertools.chain([None], itertools.product(*CANDIDATES[arguments.kernel])):
        config = shipped if sizes is None else configs.Config(*sizes)
        table[arguments.columns] = config
        try:
            time = seconds(call, arguments.rounds)
        except Exception as error:
            print(f"{config}  {type(error).__name__}: {str(error).splitlines()[0][:80]}", flush=True)
            continue
        results.append((time, config))
        mark = "  (shipped)" if sizes is None else ""
        print(f"{config}  {time * 1e3:.3f} ms  {flops / time / 1e12:.0f} TFLOP/s  {read / time / 1e9:.0f} GB/s{mark}")
    print(f"best for ({family}, {arguments.kernel!r}), {arguments.columns} columns: {min(results, key=lambda r: r[0])}")


if __name__ == "__main__":
    main()
