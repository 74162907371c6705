"""Generates a video from a caption that training never saw, and measures what it shows (`make demo`)."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from videoar.data.captions import parse_caption
from videoar.data.measure import measure
from videoar.data.pixels import to_uint8
from videoar.data.video import write_video
from videoar.evaluation.sheet import contact_sheet
from videoar.next_scale.pipeline import VideoPipeline
from videoar.next_scale.shipped import shipped_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prompt", nargs="?", default="a red star moving up-right quickly")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("."), help="folder for demo.mp4 and demo.png")
    arguments = parser.parse_args()

    folder = shipped_model()
    if folder is None:
        raise SystemExit("demo: this installation ships no model; run it from the repository")
    asked = parse_caption(arguments.prompt)  # a prompt that cannot be measured is refused before any work
    pipeline = VideoPipeline.from_pretrained(folder)
    started = time.perf_counter()
    video = to_uint8(pipeline.generate([arguments.prompt], seed=arguments.seed))[0]  # (T, H, W, 3)
    seconds = time.perf_counter() - started

    movie, sheet = arguments.output / "demo.mp4", arguments.output / "demo.png"
    write_video(movie, video, pipeline.defaults.fps)
    seen = measure(video)
    contact_sheet(video[None], [arguments.prompt], sheet)

    print(f'"{arguments.prompt}", seed {arguments.seed}')
    print(f"{'':12}{'asked':<14}measured in the video")
    for name, wanted, found in zip(seen._fields, asked, seen, strict=True):
        print(f"{name:<12}{wanted:<14}{found or 'nothing recognised'}")
    print(
        f"{len(video)} frames in {seconds:.2f} s, {len(video) / seconds:.1f} frames/s "
        "(text, transformer and decoder, first call; loading and writing files not counted)"
    )
    print(f"{movie.resolve()}\n{sheet.resolve()}")


if __name__ == "__main__":
    main()
