"""What reaches a tracker, in its own words. TensorBoard's files are read in tests/training/common/test_run.py."""

import sys
from types import SimpleNamespace

import pytest
from PIL import Image

from ivideogpt.errors import UserError
from ivideogpt.runs.trackers import Trackio, WeightsAndBiases
from ivideogpt.training.common.args import GptArgs, parse


class FakePackage:
    """Stands in for wandb and trackio: notes what its run is given."""

    errors = SimpleNamespace(Error=RuntimeError)

    def __init__(self, refuses: bool = False) -> None:
        self.refuses, self.logged, self.axes, self.finished = refuses, [], [], False

    def init(self, **arguments):
        if self.refuses:
            raise RuntimeError("No API key")
        self.arguments = arguments
        return self

    def log(self, values, step=None):
        self.logged.append((values, step))

    def define_metric(self, name, step_metric=None):
        self.axes.append((name, step_metric))

    def finish(self):
        self.finished = True

    def Image(self, image):
        return "image"

    def Video(self, path):
        return "video"


def log_everything(tracker, path):
    tracker.log({"train/loss": 0.5}, 3)
    tracker.log_image("grid", Image.new("RGB", (8, 4)), 3)
    tracker.log_gif("film", path, 3)
    tracker.close()


def test_weights_and_biases(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", package := FakePackage())
    log_everything(WeightsAndBiases("--report_to wandb", project="p", config={"lr": 1}), tmp_path)
    assert package.arguments == {"project": "p", "config": {"lr": 1}}
    assert package.logged == [({"train/loss": 0.5}, 3), ({"grid": ["image"]}, 3), ({"film": "video"}, 3)]
    assert package.finished


def test_weights_and_biases_over_frames(monkeypatch, tmp_path):
    """Bug prevented: a run that goes on before its last line is refused, as their own counter only rises."""
    monkeypatch.setitem(sys.modules, "wandb", package := FakePackage())
    log_everything(WeightsAndBiases("use_wandb=true", axis="frame"), tmp_path)
    assert package.axes == [("frame", None), ("*", "frame")]
    assert package.logged[0] == ({"train/loss": 0.5, "frame": 3}, None)


def test_nobody_is_logged_in(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", FakePackage(refuses=True))
    with pytest.raises(UserError, match="--report_to wandb, but No API key; without it"):
        WeightsAndBiases("--report_to wandb")


def test_trackio(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "trackio", package := FakePackage())
    log_everything(Trackio("p", {"lr": 1}), tmp_path)
    assert package.arguments == {"project": "p", "config": {"lr": 1}}
    assert package.logged == [({"train/loss": 0.5}, 3), ({"grid": "image"}, 3), ({"film": "video"}, 3)]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--report_to none", []),
        ("--report_to tensorboard", ["tensorboard"]),
        ("--report_to all", ["tensorboard", "wandb"]),
        ("--report_to all --with_tracking False", []),
    ],
)
def test_which_trackers(flags, expected, monkeypatch):
    monkeypatch.setattr("ivideogpt.training.common.args._is_installed", lambda name: name != "trackio")
    assert parse(GptArgs, f"--pretrained_model_name_or_path a {flags}".split()).trackers == expected
