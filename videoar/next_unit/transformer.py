"""Paper U's backbone: Wan 2.1's transformer, unit-causal, cached, and modulated unit by unit.

A token is a patch of the noisy latents; the output is the flow at its place. Parameters have the names of Wan's
original checkpoints. Source: paper U, Sec. 3.3; Wan 2.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad
from torch.utils.checkpoint import checkpoint

from videoar.model_folder import load_model, save_model_folder
from videoar.next_unit.attention import CachedUnit, TextKeys, UnitReader, WholeSequence
from videoar.next_unit.blocks import Block, Head
from videoar.next_unit.config import BackboneConfig
from videoar.next_unit.layout import UnitLayout
from videoar.next_unit.modulation import timestep_sinusoid, unit_runs
from videoar.next_unit.unit_cache import UnitCache
from videoar_kernels import PackedLinear, RangeMask


class NextUnitTransformer(nn.Module):
    """Predicts the flow of every unit of a latent clip from the text, what is visible of the clip, and its noise level.

    Args:
        config: its shape.
    """

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.patch_embedding = nn.Conv3d(config.channels, width, config.patch, stride=config.patch)
        self.text_embedding = nn.Sequential(
            nn.Linear(config.text_width, width), nn.GELU(approximate="tanh"), nn.Linear(width, width)
        )
        self.time_embedding = nn.Sequential(nn.Linear(config.freq_dim, width), nn.SiLU(), nn.Linear(width, width))
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.head = Head(config)
        self.level_embedding = nn.Parameter(torch.zeros(config.levels, width)) if config.levels else None
        self.checkpoint_blocks = False
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As Wan starts: Xavier, small embeddings of text and time, and a head of zeros."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.patch_embedding.weight.flatten(1))
        nn.init.zeros_(self.patch_embedding.bias)
        for module in (*self.text_embedding, *self.time_embedding):
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
        for block in self.blocks:
            nn.init.normal_(block.modulation, std=self.config.width**-0.5)
        nn.init.normal_(self.head.modulation, std=self.config.width**-0.5)
        nn.init.zeros_(self.head.head.weight)

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""
        return self.patch_embedding.weight.dtype

    def pack(self, dtype: torch.dtype = torch.bfloat16) -> NextUnitTransformer:
        """Puts the model into its form for inference, in place: `dtype`, and on the CPU packed linear layers.

        What the timestep goes through, modulation and gains stay in float32, as in Wan.

        Args:
            dtype: bfloat16, or float32 for a model that must not lose precision.

        Returns:
            The model, which can be neither trained nor saved any more.

        Raises:
            TypeError: if weights of this dtype cannot be packed.
        """
        self.float()
        for part in (self.text_embedding, self.blocks, self.head):
            for module in list(part.modules()):
                for name, child in module.named_children():
                    if isinstance(child, nn.Linear):
                        packed = PackedLinear.from_linear(child, dtype) if child.weight.is_cpu else child.to(dtype)
                        setattr(module, name, packed)
        if isinstance(self.head.head, nn.Linear):
            self.head.head.float()  # its rounded weights, see `Head`
        self.patch_embedding.to(dtype)
        return self.eval().requires_grad_(False)

    def new_cache(self, layout: UnitLayout, batch: int, **options) -> UnitCache:
        """An empty `UnitCache` in the model's dtype and on its device; options as there."""
        device = self.patch_embedding.weight.device
        return UnitCache(self.config, layout, batch, dtype=self.dtype, device=device, **options)

    def encode_text(self, text: Tensor) -> TextKeys:
        """Keys and values of a prompt, once for all steps.

        Args:
            text: features (B, n, text_width), n up to text_len; zeros are added up to text_len, as Wan was trained.

        Raises:
            ValueError: a longer text or another width.
        """
        self.check_text(text)
        text = pad(text.to(self.dtype), (0, 0, 0, self.config.text_len - text.shape[1]))
        hidden = self.text_embedding(text)
        pairs = [block.cross_attn.text_keys(hidden) for block in self.blocks]
        return TextKeys(*zip(*pairs, strict=True))

    def check_text(self, text: Tensor) -> None:
        """Raises ValueError for features that `encode_text` cannot read."""
        config = self.config
        if text.ndim != 3 or text.shape[1] > config.text_len or text.shape[2] != config.text_width:
            expected = f"(B, at most {config.text_len}, {config.text_width})"
            raise ValueError(f"encode_text: expected text of shape {expected}, got {tuple(text.shape)}")

    def forward(
        self,
        tokens: Tensor,
        timesteps: Tensor,
        text: Tensor | TextKeys,
        layout: UnitLayout,
        *,
        direction: str = "full",
        window: int | None = None,
        sink: int = 0,
        history: Tensor | None = None,
        start: int = 0,
    ) -> Tensor:
        """The flow of a whole clip in one pass.

        Args:
            tokens: noisy patches in the order of generation (B, L, patch_width), from `to_sequence`.
            timesteps: (B,), or (B, units) for a noise level for each unit; 0 is clean, 1000 is noise.
            text: features (B, n, text_width), or what `encode_text` made of them.
            layout: the units.
            direction: "full", "forward" or "backward", as `UnitLayout.mask`; not read with a history.
            window: units before its own that a unit sees; None: all.
            sink: first units that every unit sees besides.
            history: clean patches, like tokens: a unit sees the clean units before it and itself (teacher forcing).
            start: frame at which the clip begins.

        Returns:
            (B, L, patch_width), of tokens' order.

        Raises:
            ValueError: a shape that does not fit.
        """
        if timesteps.ndim == 1:
            timesteps = timesteps[:, None]
        self._check("forward", tokens, timesteps, layout.length, (1, len(layout.units)))
        positions, lengths = layout.positions(start, device=tokens.device), layout.lengths
        if history is not None:
            self._check("forward", history, timesteps, layout.length, (1, len(layout.units)))
            timesteps = timesteps.expand(-1, len(lengths))
            timesteps = torch.cat([torch.zeros_like(timesteps), timesteps], dim=1)
            x = torch.cat([self._embed(part, layout) for part in (history, tokens)], dim=1)
            mask = layout.teacher_forcing(window=window, sink=sink)
            out = self._run(x, timesteps, text, lengths * 2, WholeSequence(positions.repeat(2, 1), mask))
            return out[:, layout.length :]
        full = direction == "full" and window is None
        mask: RangeMask | None = None if full else layout.mask(direction, window=window, sink=sink)
        return self._run(self._embed(tokens, layout), timesteps, text, lengths, WholeSequence(positions, mask))

    def step(
        self,
        tokens: Tensor,
        timesteps: Tensor,
        text: Tensor | TextKeys,
        layout: UnitLayout,
        unit: int,
        cache: UnitCache,
        *,
        start: int = 0,
        positions: Tensor | None = None,
    ) -> Tensor:
        """The flow of one unit, which sees itself and the units in the cache; the cache then holds it uncommitted.

        Args:
            tokens: its noisy patches (B, n, patch_width); clean ones, at timestep 0, before it is committed.
            timesteps: (B,), 0 to 1000.
            text, layout, start: as in `forward`.
            unit: which one: the next to commit, or with positions any.
            cache: the units before it.
            positions: int64 (n, 3) of its tokens; None: those of layout and start.

        Returns:
            (B, n, patch_width).

        Raises:
            ValueError: a shape that does not fit, or a unit that is not the next.
        """
        if not 0 <= unit < len(layout.units):
            raise ValueError(f"NextUnitTransformer.step: expected unit in 0..{len(layout.units) - 1}, got {unit}")
        self._check("step", tokens, timesteps[:, None], layout.lengths[unit], (1,))
        if positions is None:
            following = cache.committed % len(layout.units)
            if unit != following:
                raise ValueError(f"NextUnitTransformer.step: expected unit {following}, the next to commit, got {unit}")
            positions = layout.positions(start, device=tokens.device)[layout.within(unit)]
        return self.run_units(tokens, timesteps[:, None], text, layout, (unit,), CachedUnit(positions, cache.kv))

    def run_units(
        self,
        tokens: Tensor,
        timesteps: Tensor,
        text: Tensor | TextKeys,
        layout: UnitLayout,
        units: Sequence[int],
        reader: UnitReader,
    ) -> Tensor:
        """The flow of some units, whose queries read what `reader` gives them.

        Args:
            tokens: their patches, unit after unit (B, n, patch_width).
            timesteps: (B, 1), or (B, len(units)) for a noise level for each; 0 to 1000.
            text, layout: as in `forward`.
            units: which ones.
            reader: what attention reads in every layer, and where it puts keys and values.

        Returns:
            (B, n, patch_width).

        Raises:
            ValueError: a shape that does not fit.
        """
        lengths = [layout.lengths[unit] for unit in units]
        self._check("run_units", tokens, timesteps, sum(lengths), (1, len(units)))
        return self._run(self._embed(tokens, layout, units), timesteps, text, lengths, reader)

    def _embed(self, tokens: Tensor, layout: UnitLayout, units: Sequence[int] | None = None) -> Tensor:
        weight = self.patch_embedding.weight.movedim(1, -1).flatten(1)  # (C, pt * ph * pw * channels)
        x = linear(tokens.to(self.dtype), weight, self.patch_embedding.bias)  # (B, L, C)
        levels = self.config.levels or 1
        if len(layout.levels) != levels:
            raise ValueError(
                f"NextUnitTransformer: expected units of {levels} level(s), as configured, got {len(layout.levels)}"
            )
        if self.level_embedding is None:
            return x
        units = range(len(layout.units)) if units is None else units
        parts = zip(x.split([layout.lengths[unit] for unit in units], dim=1), units, strict=True)
        levels = self.level_embedding.to(x.dtype)
        return torch.cat([part + levels[layout.units[unit].level] for part, unit in parts], dim=1)

    def _run(
        self,
        x: Tensor,
        timesteps: Tensor,
        text: Tensor | TextKeys,
        lengths: Sequence[int],
        reader: UnitReader,
    ) -> Tensor:
        text = text if isinstance(text, TextKeys) else self.encode_text(text)
        # One level of noise for all units is one row of modulation.
        runs = unit_runs(lengths if timesteps.shape[1] > 1 else (x.shape[1],))
        sinusoid = timestep_sinusoid(timesteps, self.config.freq_dim)
        time = self.time_embedding(sinusoid.to(self.time_embedding[0].weight.dtype))  # (B, units, C)
        modulation = self.time_projection(time).unflatten(-1, (6, -1))  # (B, units, 6, C)
        for index, block in enumerate(self.blocks):
            inputs = x, modulation, runs, reader.layer(index), (text.k[index], text.v[index])
            if self.checkpoint_blocks and self.training and torch.is_grad_enabled():
                x = checkpoint(block, *inputs, use_reentrant=False)
            else:
                x = block(*inputs)
        return self.head(x, time, runs)

    def _check(self, name: str, tokens: Tensor, timesteps: Tensor, length: int, rows: tuple[int, ...]) -> None:
        expected = (length, self.config.patch_width)
        if tokens.ndim != 3 or tuple(tokens.shape[1:]) != expected:
            raise ValueError(
                f"NextUnitTransformer.{name}: expected tokens of shape (B, {length}, {expected[1]}), "
                f"got {tuple(tokens.shape)}"
            )
        if timesteps.ndim != 2 or timesteps.shape[0] != tokens.shape[0] or timesteps.shape[1] not in rows:
            shapes = " or ".join(["(B,)", *(f"(B, {row})" for row in rows if row > 1)])
            raise ValueError(
                f"NextUnitTransformer.{name}: expected timesteps of shape {shapes} with B = {tokens.shape[0]}, "
                f"got {tuple(timesteps.shape)}"
            )

    def save_pretrained(self, folder: str | Path, *, dtype: torch.dtype | None = None) -> None:
        """Write `config.json` and `model.safetensors`, the weights in `dtype` if given.

        Raises:
            ValueError: after `pack`.
        """
        if isinstance(self.head.head, PackedLinear):
            raise ValueError("save_pretrained: expected a model as it was trained, got a packed one")
        save_model_folder(folder, self.config.to_dict(), self.state_dict(), dtype=dtype)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> NextUnitTransformer:
        """Read a folder that `save_pretrained` wrote, in float32; for Wan's own folders see `load_wan`."""
        return load_model(folder, cls, BackboneConfig)
