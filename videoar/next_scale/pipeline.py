"""Text, class, image or video in; video out. A folder holds tokenizer, transformer and text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from videoar.decode_ahead import decode_ahead
from videoar.model_folder import broken_parts, read_json, write_json
from videoar.next_scale.guidance import GuidanceSchedule
from videoar.next_scale.sampling import DecodedFrame, FrameDecoder
from videoar.next_scale.transformer import NextScaleTransformer
from videoar.observer import UNOBSERVED, Observer
from videoar.step_graphs import KeptDecoders
from videoar.text import Conditioner, Prompt, check_prompts, load_conditioner
from videoar.tokenizer import VideoTokenizer
from videoar_kernels import pyramid_encode
from videoar_kernels.argument_types import whole


@dataclass(frozen=True)
class SamplingDefaults:
    """What a shipped model is sampled with when the caller says nothing."""

    guidance: GuidanceSchedule = field(default_factory=GuidanceSchedule)
    temperature: float = 1.0
    frames: int = 17
    fps: float = 8.0


class VideoPipeline:
    """A tokenizer, a transformer and a conditioner that belong together.

    Args:
        tokenizer, transformer, conditioner: the parts, on one device.
        defaults: sampling settings used where `generate` gets none.
    """

    def __init__(
        self,
        tokenizer: VideoTokenizer,
        transformer: NextScaleTransformer,
        conditioner: Conditioner,
        defaults: SamplingDefaults | None = None,
    ) -> None:
        if tokenizer.config.bits != transformer.config.bits:
            raise ValueError(
                f"VideoPipeline: expected a tokenizer of {transformer.config.bits} bits, got {tokenizer.config.bits}"
            )
        self.tokenizer, self.transformer, self.conditioner = tokenizer, transformer, conditioner
        self.defaults = defaults or SamplingDefaults()
        self._decoders = KeptDecoders()

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> VideoPipeline:
        """Read a folder that `save_pretrained` wrote.

        Raises:
            FileNotFoundError: a part is missing. ValueError: one is broken, or of another kind of model.
        """
        folder = Path(folder)
        path = folder / "sampling.json"
        if not path.is_file():
            raise FileNotFoundError(f"VideoPipeline: expected sampling.json in {folder}")
        values = read_json(path)
        with broken_parts(path):
            defaults = SamplingDefaults(**{**values, "guidance": GuidanceSchedule(**values["guidance"])})
        return cls(
            VideoTokenizer.from_pretrained(folder / "tokenizer"),
            NextScaleTransformer.from_pretrained(folder / "transformer"),
            load_conditioner(folder / "text"),
            defaults,
        )

    def save_pretrained(self, folder: str | Path, *, dtype: torch.dtype | None = None) -> None:
        """Write `tokenizer/`, `transformer/`, `text/` and `sampling.json`, the weights in `dtype` if given."""
        folder = Path(folder)
        self.tokenizer.save_pretrained(folder / "tokenizer", dtype=dtype)
        self.transformer.save_pretrained(folder / "transformer", dtype=dtype)
        self.conditioner.save_pretrained(folder / "text", dtype=dtype)
        write_json(folder / "sampling.json", asdict(self.defaults))

    def to(self, device: torch.device | str) -> VideoPipeline:
        for part in (self.tokenizer, self.transformer, self.conditioner):
            part.to(device)
        self._decoders.clear()
        return self

    def pack(self, dtype: torch.dtype = torch.bfloat16) -> VideoPipeline:
        """Puts the transformer into its form for inference, in place: `NextScaleTransformer.pack`."""
        self.transformer.pack(dtype)
        self._decoders.clear()
        return self

    def decode_in(self, dtype: torch.dtype) -> VideoPipeline:
        """Lets the tokenizer decode in another dtype, in place: `VideoTokenizer.decode_in`."""
        self.tokenizer.decode_in(dtype)
        return self

    @property
    def device(self) -> torch.device:
        return self.transformer.start.device

    @property
    def frames(self) -> int:
        """Pixel frames of one clip."""
        return self.defaults.frames

    @property
    def frame_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        height, width = self.transformer.config.scales[-1]
        stride = self.tokenizer.config.space_stride
        return height * stride, width * stride

    @torch.no_grad()
    def stream(
        self,
        prompts: Sequence[Prompt],
        *,
        video: Tensor | None = None,
        frames: int | None = None,
        seed: int | Sequence[int] = 0,
        guidance: GuidanceSchedule | float | None = None,
        temperature: float | None = None,
        observer: Observer = UNOBSERVED,
    ) -> Iterator[Tensor]:
        """Yield pixels (B, 3, n, H, W) in [-1, 1] as they are decoded: first 1 frame, then one time stride each.

        Args:
            prompts: B captions or classes; None and "" are no condition.
            video: pixels to begin with (B, 3, T, H, W) in [-1, 1], or (1, 3, T, H, W) for all: one frame is
                image-to-video, more is continuation. They come out first, as the tokenizer reproduces them.
            frames: pixel frames in all, 1 + n * time stride; the default's if None.
            seed: one for all prompts, or one each; a (seed, prompt) gives the same video in any batch, on a GPU
                up to what rounding makes of it.
            guidance: schedule or a constant; the default's if None.
            temperature: of the bits; the default's if None.
            observer: sees the parts "text", "decode" and those of `FrameDecoder.decode`.

        Raises:
            ValueError: if the frames don't fit the tokenizer's stride, the video is not shorter, or there is no prompt
                or another number of seeds. TypeError: a prompt in place of a list of them, or frames or seeds that are
                no ints.
        """
        decoded = self.latents(
            prompts,
            video=video,
            frames=frames,
            seed=seed,
            guidance=guidance,
            temperature=temperature,
            observer=observer,
        )
        totals = (frame.total[:, None] for frame in decoded)
        yield from decode_ahead(totals, self.tokenizer.decode_chunk, observer)

    @torch.no_grad()
    def latents(
        self,
        prompts: Sequence[Prompt],
        *,
        video: Tensor | None = None,
        frames: int | None = None,
        seed: int | Sequence[int] = 0,
        guidance: GuidanceSchedule | float | None = None,
        temperature: float | None = None,
        observer: Observer = UNOBSERVED,
    ) -> Iterator[DecodedFrame]:
        """Yield latent frames as they are drawn; arguments and errors as `stream`."""
        check_prompts("VideoPipeline", prompts)
        count, stride = len(prompts), self.tokenizer.config.time_stride
        frames = self.defaults.frames if frames is None else whole("VideoPipeline", "frames", frames)
        if frames < 1 or (frames - 1) % stride:
            raise ValueError(f"generate: expected 1 + n * {stride} frames, got {frames}")
        guidance = self.defaults.guidance if guidance is None else guidance
        if not isinstance(guidance, GuidanceSchedule):
            guidance = GuidanceSchedule.constant(float(guidance))
        given = None if video is None else self._given(video, count, frames)
        dtype = self.transformer.dtype
        with observer.part("text"):
            uncond = None if guidance.is_one else self.conditioner([None]).to(dtype).expand(count, -1, -1)
            text = self.conditioner(prompts).to(dtype)
        temperature = self.defaults.temperature if temperature is None else temperature
        decoder = self._decoder(text, 1 + (frames - 1) // stride, guidance, temperature)
        seeds = list(seed) if isinstance(seed, Iterable) else [seed] * count
        yield from decoder.decode(text, seeds=seeds, uncond=uncond, given=given, observer=observer)

    def _decoder(self, text: Tensor, frames: int, guidance: GuidanceSchedule, temperature: float) -> FrameDecoder:
        """A decoder for clips like this; on CUDA one whose graphs are kept from clip to clip."""
        options = dict(frames=frames, guidance=guidance, temperature=temperature)
        key = (text.shape, text.dtype, text.device, *options.values())
        return self._decoders.get(
            key, text.device, lambda run: FrameDecoder(self.transformer, text, **options, run=run)
        )

    def generate(self, prompts: Sequence[Prompt], **options) -> Tensor:
        """Pixels (B, 3, frames, H, W) in [-1, 1]; options as `stream`."""
        return torch.cat(list(self.stream(prompts, **options)), dim=2)

    def extend(
        self, prompts: Sequence[Prompt], video: Tensor, *, shots: int = 1, overlap: int = 5, seed: int = 0, **options
    ) -> Tensor:
        """Lengthen a video: re-encode its last `overlap` frames as a new clip, complete that, repeat `shots` times.

        Args:
            prompts: B prompts.
            video: (B, 3, T, H, W) in [-1, 1], T >= overlap.
            shots: how often ("V2V shot N").
            overlap: frames re-encoded, 1 + n * time stride.
            seed: of the first shot; later ones count up.
            options: as `stream`.

        Returns:
            The video with the new frames after it.

        Source: paper S, Sec. 1 and Fig. 5 (duration extension by frame re-encoding).
        """
        if video.shape[2] < overlap:
            raise ValueError(f"extend: expected at least {overlap} frames, got {video.shape[2]}")
        for shot in range(shots):
            grown = self.generate(prompts, video=video[:, :, -overlap:], seed=seed + shot, **options)
            video = torch.cat([video, grown[:, :, overlap:]], dim=2)
        return video

    def _given(self, video: Tensor, count: int, frames: int) -> Tensor:
        """Packed bits of the frames to begin with."""
        stride = self.tokenizer.config.time_stride
        if (video.shape[2] - 1) % stride or video.shape[2] >= frames:
            raise ValueError(
                f"generate: expected a video of 1 + n * {stride} frames, fewer than {frames}, got {video.shape[2]}"
            )
        latent = self.tokenizer.encode(video.to(self.device))
        grid = self.transformer.config.scales[-1]
        if tuple(latent.shape[2:4]) != grid:
            raise ValueError(f"generate: expected a video of {grid} latent cells, got {tuple(latent.shape[2:4])}")
        labels = pyramid_encode(latent, list(self.transformer.config.scales)).labels
        return labels.expand(count, -1, -1, -1)
