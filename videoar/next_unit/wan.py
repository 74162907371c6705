"""Wan 2.1's checkpoints: the original layout and that of diffusers, from a local folder.

Our parameters have the original names, so the original needs no renaming; diffusers' names are translated.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from videoar.next_unit.config import BackboneConfig
from videoar.next_unit.transformer import NextUnitTransformer

# Names that wrappers put in front of, or into, those of a trained model.
_WRAPPERS = re.compile(r"^(model\.|module\.)+|_fsdp_wrapped_module\.|_checkpoint_wrapped_module\.|_orig_mod\.")

# In this order: diffusers calls the affine norm norm2, and Wan norm3.
_FROM_DIFFUSERS = [
    (r"^condition_embedder\.time_embedder\.linear_1\.", "time_embedding.0."),
    (r"^condition_embedder\.time_embedder\.linear_2\.", "time_embedding.2."),
    (r"^condition_embedder\.time_proj\.", "time_projection.1."),
    (r"^condition_embedder\.text_embedder\.linear_1\.", "text_embedding.0."),
    (r"^condition_embedder\.text_embedder\.linear_2\.", "text_embedding.2."),
    (r"^proj_out\.", "head.head."),
    (r"^scale_shift_table$", "head.modulation"),
    (r"^(blocks\.\d+)\.scale_shift_table$", r"\1.modulation"),
    (r"^(blocks\.\d+)\.norm2\.", r"\1.norm3."),
    (r"^(blocks\.\d+)\.ffn\.net\.0\.proj\.", r"\1.ffn.0."),
    (r"^(blocks\.\d+)\.ffn\.net\.2\.", r"\1.ffn.2."),
    (r"^(blocks\.\d+)\.attn1\.", r"\1.self_attn."),
    (r"^(blocks\.\d+)\.attn2\.", r"\1.cross_attn."),
    (r"^(blocks\.\d+\.\w+_attn)\.to_out\.0\.", r"\1.o."),
    (r"^(blocks\.\d+\.\w+_attn)\.to_([qkv])\.", r"\1.\2."),
]


class LoadReport(NamedTuple):
    """What became of a checkpoint's tensors; matched and missing by our names, unexpected by the file's.

    Attributes:
        layout: "original" or "diffusers".
        matched: parameters that were read.
        missing: parameters that the folder does not have, left as they were initialised.
        unexpected: tensors of the folder that the model has no place for.
        mismatched: parameters whose shape in the folder is another; left as they were initialised.
    """

    layout: str
    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"{self.layout} layout, {len(self.matched)} tensors matched"]
        for what in ("missing", "unexpected", "mismatched"):
            names = getattr(self, what)
            shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
            lines.append(f"{len(names)} {what}" + (f": {shown}" if names else ""))
        return "; ".join(lines)


class LoadedWan(NamedTuple):
    """The model, and what was found for it."""

    model: NextUnitTransformer
    report: LoadReport


def load_wan(
    folder: str | Path,
    config: BackboneConfig | None = None,
    *,
    levels: int = 0,
    dtype: torch.dtype = torch.float32,
    strict: bool = True,
) -> LoadedWan:
    """Reads Wan's transformer from a local folder; nothing is downloaded.

    Args:
        folder: holds `config.json` and one or more `*.safetensors`, or has them in `transformer/`.
        config: the shape; None: that of `config.json`.
        levels: of a `multiscale` pyramid, whose embeddings no Wan checkpoint has and which start at zero.
        dtype: of the parameters.
        strict: raise where a parameter is missing or has another shape, except the embeddings of levels.

    Returns:
        The model, in evaluation mode, and the report.

    Raises:
        FileNotFoundError: a file is missing. ValueError: another checkpoint, or strict and something is missing.

    Source: Wan 2.1, `wan_t2v_1_3B`; diffusers' `WanTransformer3DModel`.
    """
    folder = _weights_folder(Path(folder))
    files = sorted(folder.glob("*.safetensors"))
    config = (config or read_wan_config(folder)).replace(levels=levels)
    names = {name: file for file in files for name in _names(file)}
    layout = _layout(names)
    places = {name: to_original(name) if layout == "diffusers" else _WRAPPERS.sub("", name) for name in names}

    with torch.device("meta"):
        wanted = {name: tensor.shape for name, tensor in NextUnitTransformer(config).state_dict().items()}
    state, mismatched, unexpected = {}, [], []
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                place = places[name]
                if place not in wanted:
                    unexpected.append(name)
                elif tuple(tensors.get_slice(name).get_shape()) != tuple(wanted[place]):
                    mismatched.append(place)
                else:
                    state[place] = tensors.get_tensor(name).to(dtype)
    missing = wanted.keys() - state.keys() - set(mismatched)
    report = LoadReport(layout, *(tuple(sorted(names)) for names in (state, missing, unexpected, mismatched)))
    if strict and (missing - {"level_embedding"} or mismatched):
        raise ValueError(f"load_wan: expected every parameter in {folder}, got {report}")
    return LoadedWan(_filled(config, state, dtype).eval(), report)


def read_wan_config(folder: str | Path) -> BackboneConfig:
    """The shape that a folder's `config.json` gives, in either layout.

    Raises:
        FileNotFoundError: no such file. ValueError: no text-to-video model of Wan's.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"load_wan: {folder} has no config.json; give a BackboneConfig")
    found = json.loads(path.read_text())
    if "num_attention_heads" in found:
        heads = found["num_attention_heads"]
        sizes = {
            "width": heads * found["attention_head_dim"],
            "channels": found["in_channels"],
            "out": found.get("out_channels") or found["in_channels"],
        }
    elif "dim" in found:
        heads = found["num_heads"]
        sizes = {"width": found["dim"], "channels": found["in_dim"], "out": found.get("out_dim", found["in_dim"])}
    else:
        raise ValueError(f"load_wan: expected the config of a Wan transformer, got keys {sorted(found)[:8]}")
    if sizes.pop("out") != sizes["channels"] or found.get("model_type", "t2v") != "t2v":
        raise ValueError("load_wan: expected a text-to-video model with as many channels out as in")
    defaults = BackboneConfig()
    return BackboneConfig(
        **sizes,
        heads=heads,
        depth=found["num_layers"],
        ffn_width=found["ffn_dim"],
        patch=tuple(found.get("patch_size", defaults.patch)),
        freq_dim=found.get("freq_dim", defaults.freq_dim),
        text_width=found.get("text_dim", defaults.text_width),
        text_len=found.get("text_len", defaults.text_len),
        cross_norm=found.get("cross_attn_norm", True),
        eps=found.get("eps", defaults.eps),
    )


def to_original(name: str) -> str:
    """The original's name of a tensor in diffusers' layout."""
    name = _WRAPPERS.sub("", name)
    for pattern, replacement in _FROM_DIFFUSERS:
        name = re.sub(pattern, replacement, name)
    return name


def _weights_folder(folder: Path) -> Path:
    for place in (folder, folder / "transformer"):
        if any(place.glob("*.safetensors")):
            return place
    raise FileNotFoundError(f"load_wan: {folder} has no *.safetensors, nor has its transformer/")


def _names(file: Path) -> list[str]:
    with safe_open(file, framework="pt") as tensors:
        return list(tensors.keys())


def _layout(names: Iterable[str]) -> str:
    plain = [_WRAPPERS.sub("", name) for name in names]
    if any(name.startswith("condition_embedder.") for name in plain):
        return "diffusers"
    if any(name.startswith("time_embedding.") for name in plain):
        return "original"
    raise ValueError(f"load_wan: expected a Wan transformer, original or diffusers, got tensors {plain[:4]}")


def _filled(config: BackboneConfig, state: dict[str, Tensor], dtype: torch.dtype) -> NextUnitTransformer:
    """A model that holds these tensors themselves; only what they lack is initialised."""
    with torch.device("meta"):
        model = NextUnitTransformer(config)
    lacking = model.state_dict().keys() - state.keys()
    if lacking == {"level_embedding"}:
        state["level_embedding"] = torch.zeros(config.levels, config.width, dtype=dtype)
    elif lacking:
        model = NextUnitTransformer(config).to(dtype)
    model.load_state_dict(state, strict=False, assign=True)
    return model
