"""Prints what is built and what would run for each operator: `python -m videoar_kernels.info`."""

from __future__ import annotations

from videoar_kernels.report import info

if __name__ == "__main__":
    print(info())
