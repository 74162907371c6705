"""What a model folder holds, in words: its parts and their sizes, its clip, its units or scales, its sampling."""

from __future__ import annotations

from dataclasses import asdict
from math import prod
from pathlib import Path

from videoar.cli.models import holds_units, load_pipeline

PARTS = ("autoencoder", "tokenizer", "transformer", "text")


def model_summary(folder: Path) -> str:
    """Lines about a model of either paper.

    Raises:
        ValueError: a part is missing or broken.
    """
    pipeline, of_units = load_pipeline(folder, "MODEL"), holds_units(folder)
    parts = [_part(folder / name) for name in PARTS if (folder / name).is_dir()]
    height, width = pipeline.frame_size
    defaults = asdict(pipeline.defaults)
    said = {
        f"Model of paper {'U (next unit)' if of_units else 'S (next scale)'}": [str(folder), *parts],
        "Clip": [f"{pipeline.frames} frames of {height} x {width}, {defaults.pop('fps'):g} a second"],
        "Units" if of_units else "Scales": [_units(pipeline.defaults) if of_units else _scales(pipeline)],
        "Sampling": [f"{name:<12} {_value(value)}" for name, value in defaults.items()],
    }
    return "\n".join(line for title, lines in said.items() for line in (title, *(f"  {line}" for line in lines)))


def _part(folder: Path) -> str:
    from safetensors import safe_open

    count, size, kinds = 0, 0, set()
    for path in folder.glob("*.safetensors"):
        size += path.stat().st_size
        with safe_open(path, "pt") as file:
            tensors = [file.get_slice(name) for name in file.keys()]  # noqa: SIM118
        count += sum(prod(tensor.get_shape()) for tensor in tensors)
        kinds |= {tensor.get_dtype() for tensor in tensors}
    return f"{folder.name:<12} {count / 1e6:8.2f} M weights {size / 1e6:8.2f} MB  {', '.join(sorted(kinds))}".rstrip()


def _units(defaults) -> str:
    layout = defaults.layout
    lengths = sorted(set(layout.lengths))
    tokens = f"{lengths[0]} to {lengths[-1]}" if len(lengths) > 1 else f"{lengths[0]}"
    grid = " x ".join(map(str, layout.grid))
    return f"{defaults.units} on {grid} tokens: {len(layout.units)} units of {tokens} tokens"


def _scales(pipeline) -> str:
    config = pipeline.transformer.config
    scales = ", ".join(f"{height}x{width}" for height, width in config.scales)
    return f"{scales}: {config.tokens_per_frame} tokens a latent frame"


def _value(value) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {number:g}" for name, number in value.items())
    return "not set" if value is None else str(value)
