"""CUDA graphs of a decoder's steps: the host queues a whole step at once instead of some hundred kernels."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable
from typing import Protocol, TypeVar

import torch

from videoar_kernels.report import without_kernel
from videoar_kernels.triton.attention_plan import BlockPlan, kept_by

# What steps run. In place of one of these, the reference may wait for the device, which a graph cannot hold.
OPERATORS = (
    "adaln_norm", "gated_residual", "kv_cache_append_layer", "pyramid_resample", "pyramid_step", "qk_norm_rope",
    "range_attention", "range_attention_forward", "rope_3d", "sample_bits", "swiglu",
)  # fmt: skip
KEPT_DECODERS = 4  # on CUDA: those whose graphs and cache stay in memory


class StepRunner(Protocol):
    """Runs steps that read and write tensors of fixed addresses."""

    def __call__(self, key: Hashable, step: Callable[[], None]) -> None:
        """Do what `step` does; the same key always stands for the same work on the same tensors."""


def run_eagerly(key: Hashable, step: Callable[[], None]) -> None:
    """The runner that replays nothing."""
    step()


class CudaGraphs:
    """A runner that captures a step after running it for the first time and replays the graph from then on.

    A step must leave its results in tensors that were there before it: the graphs share one pool of memory, so what a
    step allocates is overwritten by others. What Python does in a step, such as moving a cursor, is not replayed.

    Args:
        device: the CUDA device of all steps.
    """

    def __init__(self, device: torch.device) -> None:
        self._graphs: dict[Hashable, torch.cuda.CUDAGraph] = {}
        self._plans: set[BlockPlan] = set()
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)

    def __len__(self) -> int:
        return len(self._graphs)

    def __call__(self, key: Hashable, step: Callable[[], None]) -> None:
        graph = self._graphs.get(key)
        if graph is not None:
            return graph.replay()
        step()  # what is made at a first call (work lists, compiled kernels, workspaces) must exist before the capture
        graph = torch.cuda.CUDAGraph()
        # Other threads, such as one that writes the video, may go on using the device meanwhile.
        capture = torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local")
        with capture, kept_by(self._plans):
            step()
        self._graphs[key] = graph


def step_runner(device: torch.device) -> StepRunner:
    """What runs the steps of one decoder: graphs on CUDA, unless an operator has no kernel there."""
    if device.type != "cuda":
        return run_eagerly
    if lacking := without_kernel(OPERATORS):
        warnings.warn(f"steps run without CUDA graphs and slowly: {_reason(lacking)}", stacklevel=2)
        return run_eagerly
    return CudaGraphs(device)


def how_steps_run(device: torch.device) -> str:
    """What `step_runner` gives, in words."""
    lacking = without_kernel(OPERATORS) if device.type == "cuda" else []
    if lacking:
        return f"one after another without CUDA graphs: {_reason(lacking)}"
    return "each one CUDA graph" if device.type == "cuda" else "called by Python"


def _reason(lacking: list[str]) -> str:
    return f"this build has no CUDA kernel of {', '.join(lacking)} (`python -m videoar_kernels.info`)"


class Decoder(Protocol):
    """What decodes one clip or stream at a time."""

    busy: bool


D = TypeVar("D", bound=Decoder)


class KeptDecoders:
    """On CUDA, the decoders that were used last, so that their graphs serve further clips; elsewhere a new one each."""

    def __init__(self) -> None:
        self._kept: dict[Hashable, Decoder] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: Hashable, device: torch.device, make: Callable[[StepRunner], D]) -> D:
        """A decoder that is not busy, kept under this key or made with a runner of its own."""
        if device.type != "cuda":
            return make(run_eagerly)
        decoder = self._kept.pop(key, None)
        if decoder is None or decoder.busy:
            decoder = make(step_runner(device))
        self._kept[key] = decoder  # the latest last
        while len(self._kept) > KEPT_DECODERS:
            del self._kept[next(iter(self._kept))]
        return decoder

    def clear(self) -> None:
        """Forgets all of them: the model has changed."""
        self._kept.clear()
