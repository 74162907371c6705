"""Figures as people read them."""

from __future__ import annotations

PREFIXES = (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3), ("", 1.0))


def time_text(seconds: float) -> str:
    """Seconds with three digits and a fitting unit."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if abs(seconds) >= 0.9995 * size:
            return f"{seconds / size:.3g} {unit}" if abs(seconds) < 999.5 * size else f"{seconds / size:.0f} {unit}"
    return f"{seconds * 1e9:.0f} ns"


def amount_text(value: float, unit: str = "") -> str:
    """Such as `176 GFLOP/s`, with three digits."""
    prefix, size = next((p for p in PREFIXES if abs(value) >= 0.9995 * p[1]), PREFIXES[-1])
    scaled = value / size
    return (f"{scaled:.0f}" if abs(scaled) >= 99.95 else f"{scaled:.3g}") + f" {prefix}{unit}".rstrip()
