"""TensorBoard, Weights & Biases and trackio: each takes metrics, pictures and GIFs, and is imported when it is made."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from PIL import Image

from ivideogpt.errors import UserError
from ivideogpt.files import going_on_without_room

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class Tracker(Protocol):
    def log(self, metrics: Mapping[str, float], step: int) -> None: ...

    def log_image(self, name: str, image: Image.Image, step: int) -> None: ...

    def log_gif(self, name: str, path: Path, step: int) -> None: ...

    def close(self) -> None: ...


def send_to_each(trackers: Iterable[Tracker], send: Callable[[Tracker], None]) -> None:
    """Call a function with each tracker; one that cannot write is logged, and silences no other."""
    for tracker in trackers:
        with going_on_without_room():
            send(tracker)


class TensorBoard:
    """TensorBoard's files. What cannot be written is an OSError, and the next call begins a new file.

    The library writes in a thread, which ends with its first error, and a record that was cut off would hide all that
    follow it in the same file.
    """

    def __init__(self, folder: Path, last_step: int, config: Mapping[str, Any] | None = None) -> None:
        """
        Args:
            last_step: what is there already and comes after it is hidden; -1 for a new run.
            config: plain values for the page of hyperparameters.
        """
        from torch.utils.tensorboard import SummaryWriter

        self._folder = folder
        self._writer: SummaryWriter | None = SummaryWriter(str(folder), purge_step=last_step + 1)
        if config is not None:
            self._writer.add_hparams(dict(config), {})

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        with self._writing() as writer:
            for name, value in metrics.items():
                writer.add_scalar(name, value, step)

    def log_image(self, name: str, image: Image.Image, step: int) -> None:
        with self._writing() as writer:
            writer.add_image(name, np.asarray(image), step, dataformats="HWC")

    def log_gif(self, name: str, path: Path, step: int) -> None:
        """TensorBoard's page plays an image that is a GIF. Its ``add_video`` would encode it again, with moviepy."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        with Image.open(path) as gif:
            width, height = gif.size
        picture = Summary.Image(width=width, height=height, colorspace=3, encoded_image_string=path.read_bytes())
        summary = Summary(value=[Summary.Value(tag=name, image=picture)])
        with self._writing() as writer:
            writer.file_writer.add_summary(summary, step)  # type: ignore[attr-defined]

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    @contextmanager
    def _writing(self) -> Iterator[SummaryWriter]:
        from torch.utils.tensorboard import SummaryWriter

        try:
            self._writer = self._writer or SummaryWriter(str(self._folder))
            yield self._writer
            self._writer.flush()  # raises what the thread failed of
        except OSError as error:
            self._writer = None
            for file in self._folder.glob("events.out.tfevents.*"):
                if file.stat().st_size == 0:  # or each call on a full disk would leave one
                    file.unlink()
            raise OSError(f"{self._folder}: {error}") from error


class WeightsAndBiases:
    """
    Args:
        asked: what asked for it, for the error.
        axis: name of the steps, for a run there that goes on with an earlier one; None for their own counter.
        arguments: of ``wandb.init``.

    Raises:
        UserError: it cannot be reached, or nobody is logged in.
    """

    def __init__(self, asked: str, axis: str | None = None, **arguments: Any) -> None:
        import wandb

        self._library: Any = wandb
        self._axis = axis
        try:
            self._run = wandb.init(**arguments)
        except wandb.errors.Error as error:
            raise UserError(f"{asked}, but {error}; without it everything is in metrics.jsonl, too") from error
        if axis is not None:
            self._run.define_metric(axis)
            self._run.define_metric("*", step_metric=axis)  # so that runs of other lengths of log lie on one axis

    def log(self, metrics: Mapping[str, Any], step: int) -> None:
        if self._axis is None:
            self._run.log(dict(metrics), step=step)
        else:
            self._run.log({**metrics, self._axis: step})

    def log_image(self, name: str, image: Image.Image, step: int) -> None:
        self.log({name: [self._library.Image(image)]}, step)

    def log_gif(self, name: str, path: Path, step: int) -> None:
        self.log({name: self._library.Video(str(path))}, step)

    def close(self) -> None:
        self._run.finish()


class Trackio(WeightsAndBiases):
    """A run of trackio, whose calls are those of Weights & Biases."""

    def __init__(self, project: str, config: Mapping[str, Any]) -> None:
        import trackio

        self._library, self._axis = trackio, None
        self._run = trackio.init(project=project, config=dict(config))

    def log_image(self, name: str, image: Image.Image, step: int) -> None:
        self.log({name: self._library.Image(image)}, step)
