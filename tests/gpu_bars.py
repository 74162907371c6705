"""The bars on an H200: of operators, from what `pytest benchmarks` wrote, and end to end, from `videoar profile`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple


class ProfileBar(NamedTuple):
    """A figure of a profile: `place` leads to it in the JSON, and it must be at most or at least `bar`."""

    what: str
    profile: str
    place: tuple[str, ...]
    at_most: bool
    bar: float
    unit: str

    def judged(self, results: dict[str, dict]) -> dict:
        """`value` and `met`, None where nothing was measured, and `why` not."""
        data = results.get(self.profile)
        # A profile without an autoencoder has no second figure: its own is that of the transformer alone.
        decoded = data is not None and any(part["name"] == "decode" for part in data["ours"]["parts"])
        place = ("ours", *self.place[1:]) if self.place[0] == "bare" and not decoded else self.place
        value = data if decoded or self.place[0] == "bare" else None
        for name in place:
            value = None if value is None else value.get(name)
        met = None if value is None else value <= self.bar if self.at_most else value >= self.bar
        why = "" if data is None or value is not None else data.get("subject", {}).get("autoencoder", "")
        return {"bar": f"{'<=' if self.at_most else '>='} {self.bar:g} {self.unit}", "value": value, "met": met} | (
            {"why": f"autoencoder {why}"} if why else {}
        )


class RowBar(NamedTuple):
    """A bar that every benchmark row of a kind must meet; its figure is the worst row's.

    Args:
        what: is asked for.
        rows: tells whether a row is of the kind.
        name: of the bar in those rows: "limit", "time" or a peer.
        bar: what they ask for; for "time" useful TFLOP/s.
        unit: for people.
    """

    what: str
    rows: Callable[[dict], bool]
    name: str
    bar: float
    unit: str

    def judged(self, results: dict[str, dict]) -> dict:
        """As of `ProfileBar`, and which row it is of how many."""
        found = {"bar": f">= {self.bar:g} {self.unit}", "value": None, "met": None}
        rows = [row for name in results if name.startswith("benchmarks") for row in results[name].get("rows", ())]
        rows = [row for row in rows if self.rows(row)]
        wrong = [row for row in rows if row["wrong"]]
        figures = [(figure, row) for row in rows if (figure := self.figure(row)) is not None]
        absent = {reason for row in rows if (reason := row["absent"].get(self.name))}
        if figures:
            value, worst = min(figures, key=lambda pair: pair[0])
            found |= {"value": value, "met": value >= self.bar, "worst": worst["shape"], "rows": len(figures)}
        if wrong:
            found |= {"met": False, "why": f"wrong result: {wrong[0]['shape']}: {wrong[0]['wrong']}"}
        elif absent:
            found |= {"why": f"{self.name} is absent: {'; '.join(sorted(absent))}"}
            found["met"] = found["met"] and None  # what is there may miss it, but cannot meet it for all
        return found

    def figure(self, row: dict) -> float | None:
        bar = next((bar for bar in row["bars"] if bar["name"] == self.name), None)
        if bar is None or not bar["got"]:
            return None
        return row["flops"] / bar["got"] * 1e-12 if self.name == "time" else bar["got"]


def attention(op: str, part: str) -> Callable[[dict], bool]:
    return lambda row: row["family"] == "attention_gpu" and row["op"] == op and part in row["shape"]


def operator_bars() -> Iterator[RowBar]:
    for what, op, head_dim, rate in (
        ("range_attention forward D 128", "range_attention", 128, 450),
        ("range_attention forward D 64", "range_attention", 64, 350),
        ("range_attention backward D 128, bitwise repeatable", "range_attention backward", 128, 330),
    ):
        rows = attention(op, f" D {head_dim} density")
        yield RowBar(what, rows, "time", rate, "TFLOP/s")
        yield RowBar("the same", rows, "FlexAttention", 1.2, "x FlexAttention")
    rows = attention("range_attention", " queries, 16k keys")
    yield RowBar("range_attention, 16 to 256 new tokens against 16k", rows, "limit", 0.8, "of copy speed")
    yield RowBar("the same", rows, "SDPA concatenated", 1.5, "x SDPA on a concatenated cache")
    for what, family, op in (
        ("rope_3d", "rope", "rope_3d"),
        ("qk_norm_rope", "rope", "qk_norm_rope"),
        ("adaln_norm", "norm", "adaln_norm"),
        ("bit operators", "bits", ""),
        ("KV cache", "kv_cache", ""),
    ):

        def of_kind(row: dict, family: str = family, op: str = op) -> bool:
            return row["family"] == family and op in row["op"]

        yield RowBar(f"{what}, 256 MB and up", of_kind, "limit", 0.8, "of copy speed")
        yield RowBar("the same", of_kind, "torch.compile", 1.0, "x torch.compile")


PROFILE_BARS = (
    ProfileBar("preset L, UCF-101 shape, with decoding", "profile_L", ("ours", "seconds", "median"), True, 0.1, "s"),
    ProfileBar("preset XL, the same", "profile_XL", ("ours", "seconds", "median"), True, 0.16, "s"),
    ProfileBar(
        "Wan 1.3B shape, 81 frames 480 x 832, 4 steps, cube 2x2x2, transformer only",
        "profile_1.3B", ("bare", "frame_rate"), False, 30.0, "frames/s",
    ),
    ProfileBar("the same, with VAE", "profile_1.3B", ("ours", "frame_rate"), False, 20.0, "frames/s"),
)  # fmt: skip
BARS = (*operator_bars(), *PROFILE_BARS)


def judged(results: Sequence[dict]) -> list[dict]:
    """Every bar with the figure that the stages measured, and whether it is met; None for both where it is missing."""
    measured = {name: data for stage in results for name, data in stage["results"].items()}
    return [{"what": bar.what, **bar.judged(measured)} for bar in BARS]


def lines(bars: Sequence[dict]) -> list[str]:
    """The bars as they are printed."""
    said = {True: "met", False: "MISSED", None: ""}
    found = []
    for bar in bars:
        value = "not measured" if bar["value"] is None else format(bar["value"], ".3g")
        rows = f"; the worst of {bar['rows']}: {bar['worst']}" if bar.get("rows", 0) > 1 else ""
        why = f"; {bar['why']}" if bar.get("why") else ""
        found.append(f"  {bar['what']}: {value} ({bar['bar']}) {said[bar['met']]}".rstrip() + rows + why)
    return found
