"""Streams a video whose prompt changes on the way, and measures what it shows before and after (`make demo`)."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from videoar.data.captions import Attributes, parse_caption
from videoar.data.measure import measure_batch
from videoar.data.pixels import to_uint8
from videoar.data.video import write_video
from videoar.evaluation.followed import context_frames
from videoar.evaluation.long_stream import WINDOW
from videoar.evaluation.sheet import contact_sheet
from videoar.next_unit import UnitPipeline
from videoar.next_unit.shipped import shipped_units


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prompt", nargs="?", default="a yellow triangle moving right slowly")
    parser.add_argument(
        "then", nargs="?", default="a blue star moving down-left quickly", help="prompt after the switch"
    )
    parser.add_argument("--model", type=Path, help="model folder of paper U; the shipped one if not given")
    parser.add_argument("--contexts", type=int, default=1, help="context lengths to watch after the switch")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("."), help="folder for stream.mp4 and stream.png")
    arguments = parser.parse_args()

    folder = arguments.model or shipped_units()
    if folder is None:
        print("stream: this installation ships no model of paper U; --model names a folder of your own")
        return
    prompts = arguments.prompt, arguments.then
    asked = [parse_caption(prompt) for prompt in prompts]  # one that cannot be measured is refused before any work
    pipeline = UnitPipeline.from_pretrained(folder)
    fps, stride = pipeline.defaults.fps, pipeline.autoencoder.config.time_stride
    start = pipeline.pixel_frames(2 * pipeline.clip_latents)  # of the new prompt
    context = stride * context_frames(pipeline)
    begins = [start - WINDOW, *(start + number * context for number in range(arguments.contexts + 1))]

    chunks, arrived, started = [], [], time.perf_counter()
    switches = {start / fps: arguments.then}
    frames = begins[-1] + WINDOW
    for chunk in pipeline.stream([arguments.prompt], frames=frames, seed=arguments.seed, switches=switches):
        chunks.append(to_uint8(chunk)[0].cpu())
        arrived.append(time.perf_counter() - started)

    video = torch.cat(chunks)  # (T, H, W, 3)
    windows = torch.stack([video[begin : begin + WINDOW] for begin in begins])
    seen = [found.attributes for found in measure_batch(windows, wrap=pipeline.defaults.wrap)]
    movie, sheet = arguments.output / "stream.mp4", arguments.output / "stream.png"
    write_video(movie, video, fps)
    captions = [arguments.prompt] + [arguments.then] * (arguments.contexts + 1)
    contact_sheet(windows, captions, sheet, wrap=pipeline.defaults.wrap)

    print(f'"{prompts[0]}", from {start / fps:.1f} s on "{prompts[1]}", seed {arguments.seed}')
    print(_row("", Attributes._fields))
    print(_row("asked at first", asked[0]))
    print(_row(f"measured, {_span(begins[0], fps)}", seen[0]))
    print(_row("asked then", asked[1]))
    for number, (begin, found) in enumerate(zip(begins[1:], seen[1:], strict=True)):
        later = f", {number} context{'s' * (number > 1)} later" if number else ""
        print(_row(f"measured, {_span(begin, fps)}{later}", found))
    print(
        f"{frames} frames in {arrived[-1]:.2f} s, {frames / arrived[-1]:.1f} frames/s, first after {arrived[0]:.2f} s "
        "(text, transformer and decoder, first call; loading and writing files not counted)"
    )
    print(f"{movie.resolve()}\n{sheet.resolve()}")


def _span(begin: int, fps: float) -> str:
    return f"{begin / fps:.1f} to {(begin + WINDOW) / fps:.1f} s"


def _row(title: str, attributes) -> str:
    return f"{title:<44}" + "".join(f"{found or 'none':<12}" for found in attributes)


if __name__ == "__main__":
    main()
