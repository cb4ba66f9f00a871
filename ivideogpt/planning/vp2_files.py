"""Files of the benchmark VP2 for RoboDesk: goals.hdf5, and classifiers that tell from a frame whether a task is done.

Knows the layout of the files; nothing of simulators.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from ivideogpt.data.convert.hdf5 import open_hdf5
from ivideogpt.errors import UserError
from ivideogpt.state_dicts import read_foreign_tensors
from ivideogpt.video_io import Pixels

STATE_SIZE = 73  # positions and velocities of RoboDesk's robot and objects
CLASSIFIER_SIDE = 64  # pixels of the frames that classifiers read


@dataclass(frozen=True)
class Goal:
    """One instance of a task."""

    image: Pixels  # (h, w, 3), where the episode shall end
    start: NDArray[np.float64] | None = None  # state of the simulator where it begins, (73,) in VP2's files


def read_goals(path: Path, side: int) -> list[Goal]:
    """Read the instances of a goals.hdf5: the first state and the last image of each group below "data".

    Instances are in the order of their numbers. Images of another size are resized to ``side`` pixels. The arrays are
    ``states`` (T, 73) and ``obs/camera_image`` (T, H, W, 3) uint8, or whichever one alone has such a shape.

    Raises:
        UserError: there is no such file, or an instance has no such arrays; the message says what there is.
    """
    if not path.is_file():
        raise UserError(f"--goals {path}: no such file")
    with open_hdf5(path) as file:
        groups = file.get("data", file)
        instances = {name: group for name, group in groups.items() if hasattr(group, "visititems")}
        if not instances:
            raise UserError(f"{path} holds {_listed(_arrays(file))}: expected groups data/demo_0, data/demo_1, ...")
        return [_goal(instances[name], side) for name in sorted(instances, key=lambda name: (len(name), name))]


def _goal(group: Any, side: int) -> Goal:
    arrays = _arrays(group)
    states = _only(group, arrays, "states", lambda array: array.shape[1:] == (STATE_SIZE,))
    images = _only(
        group,
        arrays,
        "obs/camera_image",
        lambda array: array.ndim == 4 and array.shape[3] == 3 and array.dtype == np.uint8,
    )
    image = Image.fromarray(images[-1])
    if image.size != (side, side):
        image = image.resize((side, side), Image.Resampling.LANCZOS)  # as the benchmark shrinks what it renders
    return Goal(np.array(image), states[0].astype(np.float64))


def _arrays(group: Any) -> dict[str, Any]:
    """Return the HDF5 datasets below a group, by their names."""
    arrays: dict[str, Any] = {}
    group.visititems(lambda name, item: arrays.update({name: item} if hasattr(item, "shape") else {}))
    return arrays


def _only(group: Any, arrays: Mapping[str, Any], name: str, fits: Callable[[Any], bool]) -> Any:
    """Return the array of this name, or the only one that fits; UserError if there are none or several."""
    fitting = {other: array for other, array in arrays.items() if array.size and fits(array)}
    if name not in fitting and len(fitting) != 1:
        raise UserError(
            f"{group.file.filename}: {group.name} holds {_listed(arrays)}: expected states (T, {STATE_SIZE}) "
            f"and obs/camera_image (T, H, W, 3) uint8"
        )
    return fitting.get(name, next(iter(fitting.values())))


def _listed(arrays: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {array.shape} {array.dtype}" for name, array in arrays.items()) or "nothing"


class FrameClassifier(nn.Module):
    """VP2's network: frames (B, 3, 64, 64) in [0, 1] -> logits (B, 1) of a task being done."""

    def __init__(self) -> None:
        super().__init__()
        self.first = _conv(3, 32)
        self.pairs = nn.ModuleList(nn.Sequential(_conv(32, 32), nn.ReLU(), _conv(32, 32)) for _ in range(3))
        self.last = _conv(32, 3)
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(3 * CLASSIFIER_SIDE**2, 1024), nn.ReLU(), nn.Linear(1024, 1))

    def forward(self, frames: Tensor) -> Tensor:
        hidden = self.first(frames)
        for pair in self.pairs:
            hidden = hidden + pair(hidden)
        return self.head(self.last(hidden))


def _conv(channels: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(channels, outputs, kernel_size=3, padding=1)


def load_classifier(path: Path) -> FrameClassifier:
    """Load a classifier from a file of its tensors, whatever their names, in the order of the network.

    Raises:
        UserError: the file holds more than tensors, or tensors of other shapes.
    """
    tensors = read_foreign_tensors(path)
    with torch.device("meta"):
        network = FrameClassifier()
    own = network.state_dict()
    expected, found = ([tuple(tensor.shape) for tensor in some.values()] for some in (own, tensors))
    if found != expected:
        raise UserError(f"{path} holds tensors of shapes {found}, expected those of VP2's classifier: {expected}")
    network.load_state_dict(dict(zip(own, tensors.values())), assign=True)
    return network.float()
