"""Goals and classifiers of VP2, in files as its users have them; where their layout is not known, by their shapes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ivideogpt.errors import UserError
from ivideogpt.planning import Classifier, Futures
from ivideogpt.planning.vp2_files import STATE_SIZE, FrameClassifier, load_classifier, read_goals

h5py = pytest.importorskip("h5py")


def write_goals(path: Path, numbers=(0,), states="states", image="obs/camera_image", side=64) -> Path:
    """Instance i begins in a state of i and ends with an image of colour i + 100."""
    with h5py.File(path, "w") as file:
        for number in numbers:
            demo = file.create_group(f"data/demo_{number}")
            demo[states] = number + np.arange(4)[:, None] * np.ones(STATE_SIZE)
            colours = np.array([number, number, number, number + 100], np.uint8)
            demo[image] = colours[:, None, None, None] * np.ones((side, side, 3), np.uint8)
            demo["actions"] = np.zeros((4, 5))
            demo["obs/other_image"] = np.zeros((4, 8, 8, 3), np.uint8)
            demo["obs/depth"] = np.zeros((4, 8, 8, 3))
            demo.attrs["num_samples"] = demo["seed"] = 3
    return path


def test_instances_begin_in_the_first_state_and_end_with_the_last_image(tmp_path):
    """As text, demo_10 comes before demo_2: rows of an interrupted run would belong to other instances."""
    goals = read_goals(write_goals(tmp_path / "goals.hdf5", numbers=(10, 2, 0)), 64)
    assert [goal.start.tolist() for goal in goals] == [[number] * STATE_SIZE for number in (0, 2, 10)]
    assert [np.unique(goal.image).tolist() for goal in goals] == [[100], [102], [110]]
    assert {(goal.image.shape, goal.image.dtype) for goal in goals} == {((64, 64, 3), np.dtype(np.uint8))}


def test_images_of_another_size_are_those_of_the_model(tmp_path):
    """A goal that is larger than predictions cannot be compared with them."""
    (goal,) = read_goals(write_goals(tmp_path / "goals.hdf5", side=120), 64)
    assert (goal.image.shape, np.unique(goal.image).tolist()) == ((64, 64, 3), [100])


def test_other_names_are_told_by_shape_where_only_one_fits(tmp_path):
    """A wrong guess of the layout must neither fail on a file that is clear nor pass one that is not."""
    path = write_goals(tmp_path / "goals.hdf5", states="env/state")
    assert read_goals(path, 64)[0].start.tolist() == [0] * STATE_SIZE
    with h5py.File(write_goals(tmp_path / "goals.hdf5", image="obs/picture"), "r+") as file:
        with pytest.raises(UserError, match=r"demo_0 holds .*obs/other_image \(4, 8, 8, 3\) uint8.*expected states"):
            read_goals(path, 64)
        del file["data/demo_0/obs/other_image"]
    assert read_goals(path, 64)[0].image.min() == 100


def test_files_that_hold_no_goals_say_what_they_hold(tmp_path):
    with pytest.raises(UserError, match=r"--goals .*none.hdf5: no such file"):
        read_goals(tmp_path / "none.hdf5", 64)
    with h5py.File(tmp_path / "flat.hdf5", "w") as file:
        file["data/states"] = np.zeros((4, 5))
    with pytest.raises(UserError, match=r"holds data/states \(4, 5\) float64: expected groups data/demo_0"):
        read_goals(tmp_path / "flat.hdf5", 64)
    with h5py.File(write_goals(tmp_path / "stateless.hdf5"), "r+") as file:
        del file["data/demo_0/states"]
    with pytest.raises(UserError, match=r"demo_0 holds actions \(4, 5\) float64, .*: expected states \(T, 73\)"):
        read_goals(tmp_path / "stateless.hdf5", 64)


def naive_logits(tensors: list[torch.Tensor], frames: torch.Tensor) -> torch.Tensor:
    """The network as VP2's description has it, written plainly."""
    weights = iter(tensors)
    conv = lambda x: F.conv2d(x, next(weights), next(weights), padding=1)  # noqa: E731
    x = conv(frames)
    for _ in range(3):
        x = x + conv(conv(x).relu())
    x = F.linear(conv(x).flatten(1), next(weights), next(weights)).relu()
    return F.linear(x, next(weights), next(weights))


@pytest.fixture(scope="module")
def tensors() -> list[torch.Tensor]:
    torch.manual_seed(0)
    return list(FrameClassifier().state_dict().values())


def test_a_classifier_under_any_names(tensors, tmp_path):
    """Tensors that end up in other layers give scores, only wrong ones."""
    torch.save({f"module.layer_{i}": tensor for i, tensor in enumerate(tensors)}, tmp_path / "push_red.pt")
    frames = torch.rand(2, 2, 3, 64, 64)
    scores = Classifier(load_classifier(tmp_path / "push_red.pt"))(Futures(frames))
    expected = naive_logits(tensors, frames.flatten(0, 1)).view(2, 2).sum(1)
    torch.testing.assert_close(scores, expected)


def test_files_of_other_networks(tensors, tmp_path):
    """A pickle may run any code, and a network of other shapes would fail in the first decision."""
    torch.save(FrameClassifier, tmp_path / "pickle.pt")
    with pytest.raises(UserError, match=r"pickle\.pt cannot be read as plain tensors"):
        load_classifier(tmp_path / "pickle.pt")
    torch.save({"weight": tensors[0]}, tmp_path / "other.pt")
    with pytest.raises(UserError, match=r"shapes \[\(32, 3, 3, 3\)\], expected those of VP2's classifier: \[\(32, 3,"):
        load_classifier(tmp_path / "other.pt")
