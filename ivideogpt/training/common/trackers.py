"""Images and GIFs for the trackers that accelerate started, each by its own interface."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from accelerate.tracking import GeneralTracker
from PIL import Image


def track_image(tracker: GeneralTracker, step: int, name: str, image: Image.Image) -> None:
    pixels = np.asarray(image)
    if tracker.name == "tensorboard":
        tracker.log_images({name: pixels[None]}, step=step, dataformats="NHWC")
    elif tracker.name == "wandb":
        tracker.log_images({name: [pixels]}, step=step)
    elif tracker.name == "trackio":
        import trackio

        tracker.log({name: trackio.Image(pixels)}, step=step)


def track_gif(tracker: GeneralTracker, step: int, name: str, path: Path) -> None:
    if tracker.name == "tensorboard":
        _gif_to_tensorboard(tracker, step, name, path)
    elif tracker.name == "wandb":
        import wandb

        tracker.log({name: wandb.Video(str(path))}, step=step)
    elif tracker.name == "trackio":
        import trackio

        tracker.log({name: trackio.Video(path)}, step=step)


def _gif_to_tensorboard(tracker: GeneralTracker, step: int, name: str, path: Path) -> None:
    """Write a GIF as a TensorBoard image, which its page plays; ``add_video`` would need moviepy."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    with Image.open(path) as gif:
        width, height = gif.size
    picture = Summary.Image(width=width, height=height, colorspace=3, encoded_image_string=path.read_bytes())
    summary = Summary(value=[Summary.Value(tag=name, image=picture)])
    tracker.tracker.file_writer.add_summary(summary, step)
