"""The end-to-end bars of paper S and paper U on an H200, read from what `videoar profile` wrote."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Bar(NamedTuple):
    """A figure of a profile: `place` leads to it in the JSON, and it must be at most or at least `bar`."""

    what: str
    profile: str
    place: tuple[str, ...]
    at_most: bool
    bar: float
    unit: str


BARS = (
    Bar("preset L, UCF-101 shape, guidance, decoded", "profile_L", ("ours", "seconds", "median"), True, 0.10, "s"),
    Bar("preset XL, the same", "profile_XL", ("ours", "seconds", "median"), True, 0.16, "s"),
    Bar(
        "Wan 1.3B shape, 81 frames 480 x 832, 4 steps, cube 2x2x2, transformer only",
        "profile_1.3B", ("bare", "frame_rate"), False, 30.0, "frames/s",
    ),
    Bar("the same, with VAE", "profile_1.3B", ("ours", "frame_rate"), False, 20.0, "frames/s"),
)  # fmt: skip


def judged(results: Sequence[dict]) -> list[dict]:
    """Every bar with the figure that the stages measured, and whether it is met; None for both where it is missing."""
    profiles = {name: data for stage in results for name, data in stage["results"].items()}
    found = []
    for bar in BARS:
        data = profiles.get(bar.profile)
        # A profile without an autoencoder has no second figure: its own is that of the transformer alone.
        decoded = data is not None and any(part["name"] == "decode" for part in data["ours"]["parts"])
        place = ("ours", *bar.place[1:]) if bar.place[0] == "bare" and not decoded else bar.place
        value = data if decoded or bar.place[0] == "bare" else None
        for name in place:
            value = None if value is None else value.get(name)
        met = None if value is None else value <= bar.bar if bar.at_most else value >= bar.bar
        sign = "<=" if bar.at_most else ">="
        found.append({"what": bar.what, "bar": f"{sign} {bar.bar:g} {bar.unit}", "value": value, "met": met})
    return found


def lines(bars: Sequence[dict]) -> list[str]:
    """The bars as they are printed."""
    said = {True: "met", False: "MISSED", None: ""}
    return [
        f"  {bar['what']}: {'not measured' if bar['value'] is None else format(bar['value'], '.3g')} "
        f"({bar['bar']}) {said[bar['met']]}".rstrip()
        for bar in bars
    ]
