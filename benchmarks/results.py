"""Rows, their arithmetic, and the JSON file they are kept in."""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from load import Elsewhere
from registry import MEMORY, Arithmetic, Case, Steps

SCHEMA = 1


@dataclass(frozen=True)
class Timing:
    """Seconds per call over the rounds."""

    median: float
    iqr: float
    min: float
    samples: list[float]
    iterations: int  # calls in one sample
    faults: float  # memory pages touched for the first time, per call of the median sample
    first: float  # seconds of the first call, compilation included

    @classmethod
    def of(cls, samples: list[float], iterations: int, faults: float, first: float = 0.0) -> Timing:
        quartiles = statistics.quantiles(samples, n=4, method="inclusive") if len(samples) > 1 else [samples[0]] * 3
        rounded = [float(f"{s:.5g}") for s in samples]
        iqr = quartiles[2] - quartiles[0]
        median, least = statistics.median(samples), min(samples)
        return cls(median, iqr, least, rounded, iterations, round(faults, 2), round(first, 3))


@dataclass(frozen=True)
class Floor:
    """The time below which the machine's limit does not let the op go."""

    limit: str
    seconds: float
    what: str


@dataclass(frozen=True)
class Bar:
    """What was asked for and what came."""

    name: str
    want: float
    got: float | None  # None: the peer is absent
    met: bool | None


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    family: str
    op: str
    shape: str
    dtype: str
    bytes: float = 0
    flops: float = 0
    ours: Timing | None = None
    peers: dict[str, Timing] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    yardsticks: dict[str, Timing] = field(default_factory=dict)
    limits: dict[str, Timing] = field(default_factory=dict)
    works: dict[str, float] = field(default_factory=dict)
    asides: dict[str, Timing] = field(default_factory=dict)
    floor: Floor | None = None
    bars: list[Bar] = field(default_factory=list)
    elsewhere: Elsewhere = field(default_factory=lambda: Elsewhere(None, None))
    memory: dict[str, int] = field(default_factory=dict)  # bytes at the peak of ours and its peers
    notes: str = ""
    wrong: str = ""
    wall: float = 0.0  # seconds from the first verification to the last sample

    @classmethod
    def wrong_result(cls, case: Case, family: str, why: str) -> Row:
        return cls(family, case.op, case.shape, case.dtype_name, case.bytes, case.flops, notes=case.notes, wrong=why)

    @property
    def name(self) -> str:
        return f"{self.op} [{self.shape}, {self.dtype}]"

    @property
    def best_peer(self) -> str | None:
        return min(self.peers, key=lambda name: self.peers[name].median, default=None)

    @property
    def ratio(self) -> float | None:
        """How many times as long the best peer takes; below 1 we lose."""
        return self.peers[self.best_peer].median / self.ours.median if self.peers and self.ours else None

    @property
    def share(self) -> float | None:
        """Share of the limit: its floor over our time."""
        return self.floor.seconds / self.ours.median if self.floor and self.ours else None


def floor_of(case: Case, rates: dict[str, float]) -> Floor | None:
    """Returns the floor of a case from the rates measured beside it, by limit name."""
    if case.limit is None:
        return None
    if isinstance(case.limit, Arithmetic):
        rate = case.limit.rate() if callable(case.limit.rate) else case.limit.rate
        arithmetic = Floor("arithmetic", case.flops / rate, case.limit.what)
        memory = [Floor(name, case.bytes / rate, "") for name, rate in rates.items()]
        return max([arithmetic, *memory], key=lambda floor: floor.seconds)
    matmul = next((rate for name, rate in rates.items() if name.startswith("matmul")), None)
    if isinstance(case.limit, Steps):
        seconds = sum(max(b / rates["copy"], f / matmul) for b, f in case.limit.steps)
        return Floor("steps", seconds, case.limit.what)
    (name, rate), *_ = rates.items()
    work = case.flops if case.limit.startswith("matmul") else case.bytes
    return Floor(name, work / rate, "")


def judge(case, family, timings, absent, works, floor, asides, elsewhere, memory=None) -> Row:
    """Returns the row with its bars compared."""
    row = Row(
        family,
        case.op,
        case.shape,
        case.dtype_name,
        case.bytes,
        case.flops,
        timings["ours"],
        {name: t for name, t in timings.items() if name in case.peers},
        absent,
        {name: t for name, t in timings.items() if name in case.yardsticks},
        {name: t for name, t in timings.items() if name in works},
        works,
        asides,
        floor,
        [],
        elsewhere,
        memory or {},
        case.notes,
    )
    bars = [Bar(name, want, *_compare(row, name, want)) for name, want in case.bars.items()]
    return dataclasses.replace(row, bars=bars)


def _compare(row: Row, name: str, want: float) -> tuple[float | None, bool | None]:
    others = {**row.peers, **row.yardsticks}
    if name == "time":
        return row.ours.median, row.ours.median <= want
    if name.startswith("beyond "):
        got = row.ours.median - others[name.removeprefix("beyond ")].median
        return got, got <= want
    if name.startswith(MEMORY):
        peer = row.memory.get(name.removeprefix(MEMORY))
        got = peer and row.memory["ours"] and peer / row.memory["ours"]
        return got, got and got >= want
    if name in row.absent:
        return None, None
    got = row.share if name == "limit" else others[name].median / row.ours.median
    return got, got >= want


def to_json(rows: list[Row], machine: dict, settings: dict, limits: dict, warnings: list[str]) -> dict:
    """Returns a run as plain data."""
    return {
        "schema": SCHEMA,
        "machine": machine,
        "settings": settings,
        "limits": limits,
        "warnings": warnings,
        "rows": [
            {**dataclasses.asdict(row), "best_peer": row.best_peer, "ratio": row.ratio, "share": row.share}
            for row in rows
        ],
    }


def rows_from(data: dict) -> list[Row]:
    """Returns the rows of a run that was read from its file."""
    if data.get("schema") != SCHEMA:
        raise ValueError(f"rows_from: expected schema {SCHEMA}, got {data.get('schema')}")
    return [_row(dict(entry)) for entry in data["rows"]]


def _row(entry: dict) -> Row:
    for key in ("best_peer", "ratio", "share"):
        del entry[key]
    for key in ("peers", "yardsticks", "limits", "asides"):
        entry[key] = {name: Timing(**t) for name, t in entry[key].items()}
    entry["ours"] = entry["ours"] and Timing(**entry["ours"])
    entry["floor"] = entry["floor"] and Floor(**entry["floor"])
    entry["bars"] = [Bar(**bar) for bar in entry["bars"]]
    entry["elsewhere"] = Elsewhere(**entry["elsewhere"])
    return Row(**entry)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a file beside its place and moves it there, so that nobody reads half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def save(path: Path, data: dict) -> None:
    write_atomically(path, json.dumps(data, indent=1, allow_nan=False) + "\n")


def read(path: Path) -> dict:
    return json.loads(path.read_text())
