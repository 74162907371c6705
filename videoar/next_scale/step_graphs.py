"""CUDA graphs of a decoder's steps: the host queues a whole step at once instead of some hundred kernels."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Protocol

import torch


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
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            step()
        self._graphs[key] = graph
