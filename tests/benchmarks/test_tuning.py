"""benchmarks/tune_attention.py without a GPU: every candidate reaches its kernel, and the fastest is named."""

from __future__ import annotations

import importlib.util
import itertools
import sys

import pytest
import torch

pytestmark = pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="Triton is not installed")


class Kernel:
    """Takes a launch and writes its options down."""

    def __init__(self, launched: list[dict]) -> None:
        self.launched = launched

    def __getitem__(self, grid: tuple[int]):
        return lambda *arguments, **options: self.launched.append(options)


@pytest.mark.parametrize("kernel", ["forward", "decode", "queries", "keys"])
def test_every_candidate_is_launched_and_the_fastest_is_named(kernel, monkeypatch, capsys):
    import tune_attention

    from videoar_kernels.triton import attention, attention_backward
    from videoar_kernels.triton import attention_configs as configs

    launches = {name: [] for name in ("forward_kernel", "queries_kernel", "keys_kernel", "merge_kernel")}
    for name, launched in launches.items():
        module = attention if hasattr(attention, name) else attention_backward
        monkeypatch.setattr(module, name, Kernel(launched))
    monkeypatch.setattr(configs, "_TWO_BYTES", {key: dict(row) for key, row in configs._TWO_BYTES.items()})
    monkeypatch.setattr(configs, "device_family", lambda device: 90)
    monkeypatch.setattr(configs, "processors", lambda device: 132)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    made = tune_attention.work(kernel, 128, device="meta")
    monkeypatch.setattr(tune_attention, "work", lambda *_: made)
    tuned = launches["forward_kernel" if kernel in ("forward", "decode") else f"{kernel}_kernel"]
    tried = []

    def seconds(call, rounds: int) -> float:
        tuned.clear()
        call()
        options = tuned[-1]
        tried.append((options["TILE"], options["BLOCK"], options["num_warps"], options["num_stages"]))
        return 1.0 if tried[-1] != fastest else 0.5

    sizes = list(itertools.product(*tune_attention.CANDIDATES[kernel]))
    fastest = sizes[7]
    monkeypatch.setattr(tune_attention, "seconds", seconds)
    monkeypatch.setattr(sys, "argv", ["tune_attention", kernel, "--columns", "128"])
    tune_attention.main()
    assert tried[1:] == sizes
    tile, block, warps, stages = fastest
    best = capsys.readouterr().out.splitlines()[-1]
    assert f"Config(tile={tile}, block={block}, warps={warps}, stages={stages})" in best and "(0.5," in best
