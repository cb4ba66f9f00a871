"""The main job, end to end on a tiny model: what it writes, what it asks the model, and how it refuses bad input."""

import json
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from inference import predict, prediction
from inference.utils import Segment
from ivideogpt.action_spaces import ActionSpace, ActionSpaces
from ivideogpt.errors import UserError, cli
from ivideogpt.flags import parse
from ivideogpt.metrics.table import METRICS, frame_mse
from ivideogpt.video_io import to_pixels
from ivideogpt.world_model import WorldModel
from tests.parity.formulas import actions, clip
from tests.parity.networks import SEGMENT_LENGTH, world_model

NUM_FRAMES = 12


def episode_arrays(**changes: np.ndarray | None) -> dict[str, np.ndarray]:
    arrays = {
        "image": to_pixels(clip(1, NUM_FRAMES, 64, 64)[0]),
        "action": actions(1, NUM_FRAMES, 4)[0].numpy(),
        "reward": np.zeros(NUM_FRAMES, np.float32),
    }
    return {name: array for name, array in (arrays | changes).items() if array is not None}


@pytest.fixture
def episode(tmp_path) -> Path:
    np.savez(tmp_path / "episode.npz", **episode_arrays())
    return tmp_path / "episode.npz"


@pytest.fixture
def run(tiny_world_model, episode, tmp_path, capsys):
    """Runs the command in this process; returns (exit code, stdout, stderr, output folder)."""

    def run(*flags: str, model: Path = tiny_world_model, input_path: Path = episode):
        output = tmp_path / "out"
        argv = ["--pretrained_model_name_or_path", model, "--input_path", input_path, "--output_path", output]
        code = 0
        try:
            cli(lambda: predict.main([*map(str, argv), "--device", "cpu", "--repeat_times", "2", *flags]))
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr(), output

    return run


@pytest.fixture
def shared_model(tiny_world_model, tmp_path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(tiny_world_model, tmp_path / "model"))


def predict_args(*flags: str) -> predict.PredictArgs:
    return parse(predict.PredictArgs, flags)


# ---- what it writes


def test_writes_gifs_contact_sheet_and_metrics(run, every_mode):
    """Everything that the README promises is there and readable, in the precision that the machine is fastest in."""
    code, printed, _, output = run()
    assert code == 0
    names = ["contact-sheet.png", "metrics.json", "pred-samples-0.gif", "pred-samples-1.gif"]
    assert sorted(path.name for path in output.iterdir()) == names
    with Image.open(output / "pred-samples-1.gif") as gif:
        assert (gif.size, gif.n_frames, gif.info["loop"], gif.info["duration"]) == ((128, 64), SEGMENT_LENGTH, 0, 250)
    metrics = json.loads((output / "metrics.json").read_text())
    assert set(metrics["scores"]) == {"prediction", "prediction_best_sample", "reconstruction", "copy_last_frame"}
    assert len(metrics["scores_per_frame"]["prediction"]["psnr"]) == SEGMENT_LENGTH - 2
    assert len(metrics["scores_per_sample"]["ssim"]) == 2
    assert metrics["frames_per_second"] == pytest.approx(2 * (SEGMENT_LENGTH - 2) / metrics["seconds"])
    assert metrics["dtype"] == str(every_mode).removeprefix("torch.")
    for word in ("PSNR", "SSIM", "reconstruction", "copy last frame", "frames per second", str(output)):
        assert word in printed


def test_the_data_set_names_the_robot(run, robots_model):
    """Evaluation knew the robot of a data set, and this command asked for it; or took another than was asked for."""
    code, _, _, output = run("--dataset_name", "arm-data", model=robots_model)
    assert (code, json.loads((output / "metrics.json").read_text())["action_space"]) == (0, "arm")
    for flags, message in {
        (): "no action space was chosen",
        ("--dataset_name", "foot-data"): "no action space was chosen",
        ("--dataset_name", "arm-data", "--action_space", "hand"): "expected 3",
    }.items():
        code, _, error, _ = run(*flags, model=robots_model)
        assert (code, message in error) == (2, True), error


def test_rewards_that_are_no_numbers_are_refused_before_anything_is_written(run, tmp_path):
    """They ended in a traceback of JSON, after the pictures were written."""
    model = world_model(action_dim=4, reward_prediction=True, symlog=True)
    model.reward_head.bias.data.fill_(1000)  # the reward is e to the thousandth
    model.save_pretrained(tmp_path / "model")
    code, _, err, output = run(model=tmp_path / "model")
    assert code == 2
    assert "error: the world model gives NaN or infinity" in err
    assert not output.exists()


def test_equal_samples_are_written_once(run):
    """A checkpoint that asks for the likeliest tokens would fill the sheet with one future."""
    run("--repeat_times", "3")
    _, printed, _, output = run("--top_k", "1")
    assert [path.name for path in output.glob("*.gif")] == ["pred-samples-0.gif"]
    assert "--top_k 100 samples several" in printed
    assert json.loads((output / "metrics.json").read_text())["num_samples"] == 1


def test_a_checkpoints_sampling_rule_can_be_changed_back(capsys):
    """Whoever gives --top_k wants samples; with the rule that draws none it would be ignored."""
    model = prediction.adapt(world_model(action_dim=4), predict_args("--sampling_rule", "expected_code"))
    assert model.metadata.generation.rule == "expected_code"
    assert prediction.number_of_samples(predict_args(), model) == 1
    assert "--top_k 100 samples several" in capsys.readouterr().out
    with pytest.raises(UserError, match="--top_k does nothing with --sampling_rule expected_code: give one"):
        prediction.adapt(model, predict_args("--sampling_rule", "expected_code", "--top_k", "100"))
    again = prediction.adapt(model, predict_args("--top_k", "100"))
    assert again.metadata.generation.rule == "sample"
    assert prediction.number_of_samples(predict_args(), again) == 5


def test_gif_has_the_truth_left_and_reconstruction_then_prediction_right(tiny_world_model, episode, run, every_mode):
    """The right half is what the model made of the left half's context, not a copy of it.

    The command's own precision, "auto", is bfloat16 on some machines, which draws other tokens than float32.
    """
    *_, output = run("--repeat_times", "1")
    args = predict_args("--input_path", str(episode), "--repeat_times", "1")
    model = WorldModel.from_pretrained(tiny_world_model, dtype=every_mode)
    segment = prediction.read_segment(args, model.metadata)
    rollout = model.predict(segment.frames[None, :2], segment.actions[None, 1 : SEGMENT_LENGTH - 1], seed=0)
    expected = to_pixels(torch.cat([rollout.context[0], rollout.frames[0, 0]]))
    with Image.open(output / "pred-samples-0.gif") as gif:
        for i, (left, right) in enumerate(zip(to_pixels(segment.frames), expected)):
            gif.seek(i)
            shown = np.asarray(gif.convert("RGB")).astype(int)
            assert np.abs(shown - np.concatenate([left, right], axis=1)).mean() < 8


def test_same_seed_same_files_and_another_seed_another_segment(run):
    """A result that cannot be had again is no result."""
    scores = []
    for seed in ("0", "0", "3"):
        *_, output = run("--seed", seed)
        metrics = json.loads((output / "metrics.json").read_text())
        scores.append((metrics["scores"], metrics["frames"]))
    assert scores[0] == scores[1] != scores[2]


def test_runs_from_any_directory_without_pythonpath(tiny_world_model, episode, tmp_path):
    """The released scripts needed PYTHONPATH."""
    script = Path(predict.__file__)
    flags = ["--pretrained_model_name_or_path", tiny_world_model, "--input_path", episode, "--device", "cpu"]
    done = subprocess.run(
        [sys.executable, "-S", "-c", BARE_START, script, *flags], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "outputs" / "metrics.json").is_file()


# The installed packages, but not this project's own editable install.
BARE_START = f"""
import runpy, sys
sys.path += {[path for path in sys.path if path.endswith("-packages")]!r}
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


# ---- what it asks the model


class Recorder:
    """Stands in for a world model and notes what it is asked."""

    def __init__(self, model: WorldModel) -> None:
        self._model = model
        self.asked: dict[str, object] = {}

    def __getattr__(self, name: str) -> object:
        return getattr(self._model, name)

    def predict(self, context, actions, horizon, **options):
        self.asked = {"context": context, "actions": actions, "horizon": horizon, **options}
        return self._model.predict(context, actions, horizon, **options)


def numbered_segment(num_frames: int) -> Segment:
    """Frame i is i / 100 everywhere and action i is i."""
    numbers = torch.arange(num_frames, dtype=torch.float32)
    frames = (numbers / 100)[:, None, None, None].expand(-1, 3, 64, 64)
    return Segment(frames, numbers[:, None].expand(-1, 4), None, tuple(range(num_frames)))


def test_actions_lead_to_the_frames_that_they_led_to():
    """The action at the last context frame leads to the first predicted frame; one off goes unnoticed otherwise."""
    model = Recorder(world_model(action_dim=4))
    prediction.predict(model, numbered_segment(SEGMENT_LENGTH), num_samples=3, seed=0)
    assert model.asked["context"][0, :, 0, 0, 0].tolist() == pytest.approx([0, 0.01])
    assert model.asked["actions"][0, :, 0].tolist() == [1, 2, 3]
    assert (model.asked["horizon"], model.asked["num_samples"]) == (3, 3)


def test_goal_conditioned_moves_the_last_frame_to_the_front(episode):
    """Moved, not copied: T frames in, T frames out, and the goal is not among the frames to predict."""
    model = prediction.adapt(world_model(), predict_args("--goal_conditioned"))
    args = predict_args("--input_path", str(episode))
    plain = prediction.read_segment(args, replace(model.metadata, goal_conditioned=False))
    moved = prediction.read_segment(args, model.metadata)
    assert moved.indices == (plain.indices[-1], *plain.indices[:-1])
    assert torch.equal(moved.frames[1:], plain.frames[:-1])
    assert torch.equal(moved.frames[0], plain.frames[-1])


def test_frames_are_as_far_apart_as_in_training(episode, caplog):
    """At another pace even a perfect model looks wrong. A dataset that is paced otherwise is used, with a warning."""
    metadata = replace(world_model().metadata, dataset_step=2, segment_length=3)

    def steps(*flags: str) -> set[int]:
        args = predict_args("--input_path", str(episode), *flags)
        return set(np.diff(prediction.read_segment(args, metadata).indices))

    assert steps() == {2}
    assert steps("--dataset_name", "metaworld") == {2}
    assert steps("--dataset_name", "bridge") == {2}
    assert not caplog.records
    assert steps("--dataset_name", "toto") == {4}  # 10, shrunk to the episode
    assert "dataset toto has its frames 10 apart, but the model was trained on frames 2 apart" in caplog.text


def test_a_mistyped_dataset_is_pointed_out_once(episode, caplog):
    args = predict_args("--input_path", str(episode), "--dataset_name", "brigde")
    prediction.read_segment(args, world_model().metadata)
    (record,) = caplog.records
    assert record.getMessage() == "--dataset_name brigde is in no table: frames are 1 apart, from array 'image'"
    caplog.clear()
    spaces = ActionSpaces((ActionSpace("arm", 4, datasets=("brigde",)),))  # the model's own robot
    metadata = replace(world_model(action_dim=spaces.length).metadata, action_spaces=spaces)
    prediction.read_segment(args, metadata)
    assert not caplog.records


def test_baseline_repeats_the_last_context_frame():
    """Repeating another frame would make every model look good."""
    segment = numbered_segment(SEGMENT_LENGTH)
    predicted = prediction.predict(world_model(action_dim=4), segment, num_samples=1, seed=0)
    scores = prediction.score(segment, predicted)
    expected = [(i / 100) ** 2 for i in range(1, 4)]
    assert (10 ** (-scores["copy_last_frame"]["psnr"][0] / 10)).tolist() == pytest.approx(expected, rel=1e-3)


def test_the_best_sample_has_the_least_error(monkeypatch):
    """Of a metric of which less is better the worst sample was reported."""
    monkeypatch.setitem(METRICS, "mse", replace(METRICS["mse"], function=frame_mse))
    segment, futures = numbered_segment(SEGMENT_LENGTH), torch.zeros(2, 3, 3, 64, 64)
    predicted = prediction.Prediction(segment.frames[:2], futures, {}, None, 0.0)
    predicted.futures[1] = segment.frames[2:]
    assert prediction.summarise(prediction.score(segment, predicted))["prediction_best_sample"]["mse"] == 0


def test_flags_change_what_the_checkpoint_says():
    model = world_model(action_dim=4)
    flags = ("--context_length", "1", "--horizon", "3", "--temperature", "0.5", "--top_k", "0")
    adapted = prediction.adapt(model, predict_args(*flags))
    assert (adapted.metadata.context_length, adapted.metadata.segment_length) == (1, 4)
    assert (adapted.metadata.generation.temperature, adapted.metadata.generation.top_k) == (0.5, None)
    predicted = prediction.predict(adapted, numbered_segment(4), num_samples=2, seed=0)
    assert (len(predicted.context), tuple(predicted.futures.shape[:2])) == (1, (2, 3))


# ---- bad input: one line, exit code 2, nothing written


def assert_refused(result: tuple, *words: str) -> None:
    code, _, error, output = result
    assert code == 2
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not [word for word in words if word not in error], error
    assert not output.exists()


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2000])


def with_arrays(**changes: np.ndarray | None):
    return lambda path: np.savez(path, **episode_arrays(**changes))


def nan_actions() -> np.ndarray:
    values = episode_arrays()["action"].copy()
    values[3, 1] = np.nan
    return values


BAD_EPISODES = {
    "missing": (lambda path: path.unlink(), ["no such file"]),
    "truncated": (truncated, ["truncated"]),
    "not an npz": (lambda path: path.write_text("hello"), []),
    "no image": (with_arrays(image=None, picture=np.zeros((12, 64, 64, 3), np.uint8)), ["picture", "action", "reward"]),
    "image shape": (with_arrays(image=np.zeros((12, 64, 64), np.uint8)), ["image", "(12, 64, 64)"]),
    "image type": (with_arrays(image=np.zeros((12, 64, 64, 3), np.float32)), ["image", "float32"]),
    "fewer frames than the segment": (
        with_arrays(
            image=np.zeros((4, 64, 64, 3), np.uint8),
            action=np.zeros((4, 4), np.float32),
            reward=np.zeros(4, np.float32),
        ),
        ["4 frames", "5"],
    ),
    "no actions": (with_arrays(action=None), ["action"]),
    "action dimension": (with_arrays(action=np.zeros((12, 5), np.float32)), ["5", "4"]),
    "action length": (with_arrays(action=np.zeros((7, 4), np.float32)), ["action", "7", "12"]),
    "NaN actions": (with_arrays(action=nan_actions()), ["NaN"]),
    "pickle": (with_arrays(image=np.array([{"a": 1}] * 12, dtype=object)), ["image"]),
}


@pytest.mark.parametrize("kind", BAD_EPISODES)
def test_bad_episode(kind, run, episode):
    spoil, words = BAD_EPISODES[kind]
    spoil(episode)
    assert_refused(run(), str(episode), *words)


BAD_FLAGS = {
    ("--resolution", "128"): ["resolution", "128", "64"],
    ("--action_dim", "5"): ["action_dim", "5", "4"],
    ("--context_length", "3"): ["3", "2"],
    ("--horizon", "0"): ["horizon"],
    ("--horizon", "4", "--segment_length", "6"): ["horizon", "segment_length"],
    ("--segment_length", "2"): ["2"],
    ("--segment_length", "13"): ["12", "13"],
    ("--goal_conditioned",): ["goal_conditioned"],
    ("--temperature", "0"): ["temperature"],
    ("--top_k", "-1"): ["top_k"],
    ("--seed", "-1"): ["seed"],
    ("--repeat_times", "0"): ["repeat_times"],
}


@pytest.mark.parametrize("flags", BAD_FLAGS, ids=" ".join)
def test_bad_flags(flags, run):
    assert_refused(run(*flags), *BAD_FLAGS[flags])


@pytest.fixture
def no_model(monkeypatch):
    """Fails the test if a model is loaded: that may be a download of gigabytes."""
    monkeypatch.setattr(prediction, "load_model", lambda args: pytest.fail("a model was loaded"))


@pytest.mark.parametrize("path", ["taken", "taken/below/it"])
def test_output_path_that_is_no_folder(path, run, tmp_path, no_model):
    (tmp_path / "taken").write_text("")
    assert_refused(run("--output_path", str(tmp_path / path)), "--output_path", "taken is a file")


@pytest.mark.parametrize("kind", ["missing", "truncated", "no image"])
def test_the_episode_is_looked_at_first(kind, run, episode, no_model):
    BAD_EPISODES[kind][0](episode)
    assert_refused(run(), str(episode))


def test_the_datasets_camera_is_looked_for_first(run, episode, no_model):
    BAD_EPISODES["no image"][0](episode)
    assert_refused(run("--dataset_name", "language_table"), "'rgb'")


def reshape_a_tensor(model: Path) -> None:
    file = model / "transformer" / "model.safetensors"
    tensors = load_file(file)
    save_file(tensors | {"action_linear.bias": torch.zeros(7)}, file)


def change_vocabulary(model: Path) -> None:
    file = model / "transformer" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"vocab_size": 77}))


def pickle_the_weights(model: Path) -> None:
    (model / "transformer" / "model.safetensors").unlink()
    (model / "transformer" / "pytorch_model.bin").write_bytes(pickle.dumps({"a": 1}))


BAD_MODELS = {
    "missing file": (
        lambda model: (model / "tokenizer" / "diffusion_pytorch_model.safetensors").unlink(),
        ["diffusion_pytorch_model.safetensors"],
    ),
    "missing config": (lambda model: (model / "transformer" / "config.json").unlink(), ["config.json"]),
    "wrong shape": (reshape_a_tensor, ["action_linear.bias", "[7]"]),
    "another vocabulary": (change_vocabulary, ["77", "114"]),
    "pickle": (pickle_the_weights, ["pytorch_model.bin", "pickle"]),
    "no folder": (shutil.rmtree, []),
}


@pytest.mark.parametrize("kind", BAD_MODELS)
def test_bad_model(kind, run, shared_model):
    spoil, words = BAD_MODELS[kind]
    spoil(shared_model)
    assert_refused(run(model=shared_model), str(shared_model), *words)
