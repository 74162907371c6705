"""Paper S's transformer: LLaMA blocks over [text, frame 0 scale 1..K, frame 1 scale 1..K, ...].

A token carries what is already known of its place (Eq. 6) plus its scale's embedding (Eq. 7) and predicts the
d bits of its residual. Masked in one pass for training, block by block through a KV cache for sampling.
Source: paper S, Sec. 4.2 and App. A.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from videoar.model_folder import load_model, save_model_folder
from videoar.next_scale.blocks import Attend, Attention, Block, RMSNorm
from videoar.next_scale.config import TransformerConfig
from videoar.next_scale.sequence import SequenceLayout, sequence_layout
from videoar_kernels import KVCache, PackedLinear, range_attention


class NextScaleTransformer(nn.Module):
    """Predicts the bits of every scale of every frame from the text, earlier frames and coarser scales.

    Args:
        config: its shape.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.text_in = nn.Linear(config.text_width, width, bias=False)
        self.input = nn.Linear(config.bits, width, bias=False)
        self.start = nn.Parameter(torch.zeros(width))
        self.scale_embedding = nn.Embedding(len(config.scales), width)
        self.context = nn.Linear(config.bits, width, bias=False) if config.context == "resampled" else None
        self.pooled_text = None
        if config.pooled_text:
            self.pooled_text = nn.Sequential(
                nn.Linear(config.text_width, width), nn.SiLU(), nn.Linear(width, width, bias=False)
            )
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = RMSNorm(width)
        self.head = nn.Linear(width, config.bits, bias=False)
        self.checkpoint_blocks = False
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Residual branches and the head start at zero: the first loss is log 2 a bit."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
        for block in self.blocks:
            nn.init.zeros_(block.attention.out.weight)
            nn.init.zeros_(block.ffn.down.weight)
        nn.init.zeros_(self.head.weight)
        nn.init.normal_(self.start, std=1.0)
        nn.init.normal_(self.scale_embedding.weight, std=1.0)

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in, and what text features are to come in."""
        return self.start.dtype

    def pack(self, dtype: torch.dtype = torch.bfloat16) -> NextScaleTransformer:
        """Puts the model into its form for inference, in place: everything in `dtype`, linear layers packed.

        Packing is for the CPU; on another device, move the model there first, and its layers are converted only. The
        logits are float32 either way.

        Args:
            dtype: bfloat16, or float32 for a model that must not lose precision.

        Returns:
            The model, which can be neither trained nor saved any more.

        Raises:
            TypeError: if weights of this dtype cannot be packed.
        """
        for module in list(self.modules()):
            for name, child in module.named_children():
                if isinstance(child, nn.Linear) and child.weight.is_cpu:
                    setattr(module, name, PackedLinear.from_linear(child, dtype))
        for module in self.modules():
            if not isinstance(module, PackedLinear):
                for parameter in module.parameters(recurse=False):
                    # Norms compute in float32 and want their gains so.
                    wide = isinstance(module, (RMSNorm, Attention))
                    parameter.data = parameter.data.to(torch.float32 if wide else dtype)
        if isinstance(self.head, nn.Linear):
            self.head.float()  # its rounded weights, see `_predict`
        return self.eval().requires_grad_(False)

    def layout(self, frames: int) -> SequenceLayout:
        return sequence_layout(self.config, frames)

    def forward(
        self, text: Tensor, inputs: Tensor, context: Tensor | None = None, *, frame_keep: Tensor | None = None
    ) -> Tensor:
        """Logits of every bit of a clip in one masked pass.

        Args:
            text: conditioner features (B, text_len, text_width).
            inputs: what is known at every token (B, T, N, d), as `pyramid_encode` returns it.
            context: the predecessor's feature at every token (B, T, N, d); needed if `config.context` says so.
            frame_keep: bool (T, T) or (B, T, T), which earlier frames each frame sees (Eq. 9).

        Returns:
            Logits (B, T, N, d), float, one a bit.

        Raises:
            ValueError: if a shape does not fit the configuration.
        """
        batch, frames, tokens, _ = inputs.shape
        self._check(text, inputs, context)
        layout = self.layout(frames)
        scale_ids = layout.scale_ids.to(inputs.device).repeat(frames)  # (T N,)
        x = self._embed(
            inputs.flatten(1, 2),
            None if context is None else context.flatten(1, 2),
            text,
            scale_ids,
            start=layout.offsets[1],
        )
        x = torch.cat([self.text_in(text), x], dim=1)  # (B, text_len + T N, C)
        mask = layout.mask(frame_keep)

        def attend(_: int) -> Attend:
            return lambda q, k, v: range_attention(q, k, v, mask)

        x = self._run(x, layout.positions_on(x.device), attend)
        return self._predict(x[:, text.shape[1] :]).view(batch, frames, tokens, -1)

    def prefill(self, text: Tensor, cache: KVCache, positions: Tensor | None = None) -> None:
        """Put the text prefix (B, text_len, text_width) into the cache as its own block, uncommitted."""
        positions = self.layout(1).positions_on(text.device) if positions is None else positions
        self._run(self.text_in(text), positions[: text.shape[1]], self._cached(cache))

    def step(
        self,
        text: Tensor,
        inputs: Tensor,
        context: Tensor | None,
        cache: KVCache,
        *,
        frame: int,
        scale: int,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Logits of one (frame, scale) through the cache, which then holds the block uncommitted.

        Args:
            text: conditioner features (B, text_len, text_width), for the pooled text.
            inputs, context: (B, h * w, d) at this scale, as in `forward`.
            cache: holds the text and every earlier block.
            frame, scale: which block, from 0.
            positions: of a clip of this many frames or more, as `SequenceLayout.positions`, held by the caller; None:
                looked up, in memory that does not stay.

        Returns:
            Logits (B, h * w, d).
        """
        layout = self.layout(frame + 1)
        height, width = self.config.scales[scale]
        scale_ids = torch.full((height * width,), scale, device=inputs.device)
        first = frame == 0 and scale == 0
        x = self._embed(inputs, context, text, scale_ids, start=height * width if first else 0)
        positions = layout.positions_on(x.device) if positions is None else positions
        return self._predict(self._run(x, positions[layout.block(frame, scale)], self._cached(cache)))

    def _embed(self, inputs: Tensor, context: Tensor | None, text: Tensor, scale_ids: Tensor, *, start: int) -> Tensor:
        gain = self.config.bits**0.5  # code entries are +-1 / sqrt(d); the residual stream wants unit size
        inputs, context = (part if part is None else part.to(self.dtype) for part in (inputs, context))
        x = self.input(inputs * gain) + self.scale_embedding(scale_ids)  # (B, L, C)
        if self.context is not None:
            x = x + self.context(context * gain)
        if self.pooled_text is not None:
            x = x + self.pooled_text(text.mean(1, keepdim=True))
        if start:
            # Nothing is known at the first scale of frame 0: its input is zero and the SOS stands in.
            x = torch.cat([x[:, :start] + self.start, x[:, start:]], dim=1)
        return x

    def _run(self, x: Tensor, positions: Tensor, attend: Callable[[int], Attend]) -> Tensor:
        for index, block in enumerate(self.blocks):
            if self.checkpoint_blocks and self.training:
                x = checkpoint(block, x, positions, attend(index), use_reentrant=False)
            else:
                x = block(x, positions, attend(index))
        return x

    def _predict(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        # Guidance multiplies the rounding of logits, so a packed model's head gives float32 on every device.
        wide = isinstance(self.head, PackedLinear) or self.head.weight.dtype == torch.float32
        return self.head(x.float() if wide else x)

    @staticmethod
    def _cached(cache: KVCache) -> Callable[[int], Attend]:
        def layer(index: int) -> Attend:
            def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
                cache.append(index, k, v)
                view = cache.view(index)
                return range_attention(q, view.k, view.v, view.mask(q.shape[2]))

            return attend

        return layer

    def _check(self, text: Tensor, inputs: Tensor, context: Tensor | None) -> None:
        config = self.config
        expected = (config.text_len, config.text_width)
        if tuple(text.shape[1:]) != expected or text.shape[0] != inputs.shape[0]:
            raise ValueError(
                f"NextScaleTransformer: expected text of shape ({inputs.shape[0]}, {expected[0]}, {expected[1]}), "
                f"got {tuple(text.shape)}"
            )
        if tuple(inputs.shape[2:]) != (config.tokens_per_frame, config.bits):
            raise ValueError(
                f"NextScaleTransformer: expected inputs of shape (B, T, {config.tokens_per_frame}, {config.bits}), "
                f"got {tuple(inputs.shape)}"
            )
        if (self.context is not None) and (context is None or context.shape != inputs.shape):
            raise ValueError(
                f"NextScaleTransformer: expected context of shape {tuple(inputs.shape)}, "
                f"got {None if context is None else tuple(context.shape)}"
            )

    def save_pretrained(self, folder: str | Path, *, dtype: torch.dtype | None = None) -> None:
        """Write `config.json` and `model.safetensors`, the weights in `dtype` if given.

        Raises:
            ValueError: after `pack`.
        """
        if isinstance(self.head, PackedLinear):
            raise ValueError("save_pretrained: expected a model as it was trained, got a packed one")
        save_model_folder(folder, self.config.to_dict(), self.state_dict(), dtype=dtype)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> NextScaleTransformer:
        """Read a folder that `save_pretrained` wrote, in float32."""
        return load_model(folder, cls, TransformerConfig)
