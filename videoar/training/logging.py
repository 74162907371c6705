"""What a run shows: a progress bar on a terminal, a line now and then in a log file, and TensorBoard."""

from __future__ import annotations

import time
from types import TracebackType

from accelerate import Accelerator
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class RunLog:
    """Counts steps and reports metrics; a context manager.

    Args:
        accelerator: whose trackers get the metrics; only its main process prints.
        steps: of the whole run.
        start: steps done before this process began.
        every: steps between reports.
    """

    def __init__(self, accelerator: Accelerator, steps: int, *, start: int = 0, every: int = 20) -> None:
        self.accelerator, self.steps, self.every = accelerator, steps, every
        self.console = Console()
        self.visible = accelerator.is_main_process
        self.bar = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("{task.fields[shown]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
            disable=not (self.visible and self.console.is_terminal),
        )
        self.task = self.bar.add_task("", total=steps, completed=start, shown="")
        self.sums: dict[str, float] = {}
        self.count, self.clock = 0, time.perf_counter()

    def step(self, step: int, metrics: dict[str, float]) -> None:
        """Takes the metrics of step number `step` (from 0); reports their means when due."""
        self.bar.advance(self.task)
        for name, value in metrics.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value)
        self.count += 1
        if self.every and ((step + 1) % self.every == 0 or step + 1 == self.steps):
            means = {name: value / self.count for name, value in self.sums.items()}
            means["seconds_per_step"] = (time.perf_counter() - self.clock) / self.count
            self.report(step + 1, means)
            self.sums, self.count, self.clock = {}, 0, time.perf_counter()

    def report(self, step: int, metrics: dict[str, float], prefix: str = "train") -> None:
        """Sends metrics to TensorBoard and shows them."""
        self.accelerator.log({f"{prefix}/{name}": value for name, value in metrics.items()}, step=step)
        shown = " ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        if self.bar.disable:
            if self.visible:
                print(f"{prefix} {step}/{self.steps} {shown}", flush=True)
        else:
            self.bar.update(self.task, shown=shown)

    def __enter__(self) -> RunLog:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()
