"""The planning command in the real simulator, on a tiny model: what it writes, how it goes on, how it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from inference import plan, planning
from ivideogpt.errors import cli
from ivideogpt.files import KeptRows
from ivideogpt.planning import Futures, Plan
from ivideogpt.planning.vp2_files import FrameClassifier
from tests.mbrl.toy_env import Toy
from tests.parity.networks import world_model
from tests.planning.test_vp2_files import write_goals

STEPS = 3
FLAGS = f"--task plate_slide --episode_length {STEPS} --replan_every 2 --horizon 2 --num_candidates 2 --device cpu"


def run(model: Path, output: Path, *flags: str) -> int:
    argv = ["--pretrained_model_name_or_path", model, "--output_path", output, "--dtype", "float32", *FLAGS.split()]
    try:
        cli(lambda: plan.main([*map(str, argv), *flags]))
    except SystemExit as stop:
        return int(stop.code)
    return 0


def rows(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "episodes.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def planned(tiny_world_model, tmp_path_factory) -> Path:
    """The output folder of one planned episode. Not to be written to."""
    output = tmp_path_factory.mktemp("planned")
    assert run(tiny_world_model, output, "--episodes", "1", "--planner", "cem") == 0
    return output


def test_writes_rows_a_gif_and_a_report(planned):
    """Everything that docs/planning.md promises."""
    played = {row["policy"]: row for row in rows(planned)}
    assert list(played) == ["scripted", "random", "cem"]
    assert {(row["task"], row["episode"]) for row in played.values()} == {("plate-slide", 0)}
    assert played["scripted"]["goal_distance"] == 0 < played["random"]["goal_distance"]
    assert len({row["start_distance"] for row in played.values()}) == 1
    assert played["cem"]["seconds_per_decision"] > 0
    assert played["random"]["seconds_per_decision"] is None
    report = (planned / "report.md").read_text()
    assert "| plate-slide | cem | 1 | 0.00 |" in report
    assert "![plate-slide-cem-0](plate-slide-cem-0.gif)" in report
    assert str(planned) not in report


def test_gif_has_what_happened_what_was_imagined_and_the_goal(planned):
    """Left and right are the simulator's; the middle is the model's, and one frame for each step."""
    with Image.open(planned / "plate-slide-cem-0.gif") as gif:
        assert (gif.size, gif.n_frames) == ((3 * 64, 64), STEPS + 1)
        columns = []
        for i in (0, STEPS):
            gif.seek(i)
            columns += np.split(np.asarray(gif.convert("RGB")).astype(int), 3, axis=1)
    real, imagined, goal, _, later, goal_again = columns
    assert np.abs(real - imagined).mean() < 2  # the start
    assert np.abs(real - later).mean() > 10  # a model without training
    assert np.abs(goal - goal_again).mean() < 2


def test_goes_on_with_what_is_missing(planned, tiny_world_model, tmp_path, monkeypatch):
    """An episode that is played again costs minutes; one that is left out spoils the comparison."""
    output = Path(shutil.copytree(planned, tmp_path / "out"))
    before = rows(output)
    played = []
    play = planning.play_episode
    monkeypatch.setattr(
        planning, "play_episode", lambda env, act, *rest, **state: played.append(act) or play(env, act, *rest, **state)
    )
    assert run(tiny_world_model, output, "--episodes", "1", "--planner", "cem") == 0
    assert (rows(output), played) == (before, [])
    assert run(tiny_world_model, output, "--episodes", "1", "--planner", "mppi") == 0
    assert rows(output)[:3] == before
    assert [row["policy"] for row in rows(output)[3:]] == ["mppi"]
    assert isinstance(played[-1], planning.PlanningController)
    assert "| plate-slide | mppi | 1 |" in (output / "report.md").read_text()


def test_same_seed_same_episode(planned, tiny_world_model, tmp_path):
    assert run(tiny_world_model, tmp_path, "--episodes", "1", "--planner", "cem") == 0
    free = "seconds_per_decision"
    one, other = ([{**row, free: None} for row in rows(folder)] for folder in (planned, tmp_path))
    assert one == other


def test_other_settings_are_refused(planned, tiny_world_model, tmp_path, capsys):
    """Rows of two horizons, or of two models, in one table."""
    output = Path(shutil.copytree(planned, tmp_path / "out"))
    assert run(tiny_world_model, output, "--planner", "cem", "--seed", "1") == 2
    assert "was made with other settings (seed was 0, is 1)" in capsys.readouterr().err
    other = tmp_path / tiny_world_model.name
    world_model(action_dim=4, success_prediction=True).save_pretrained(other)
    assert run(other, output, "--planner", "cem") == 2
    message = capsys.readouterr().err
    assert "metadata.success_prediction was False, is True; transformer_checksum was" in message
    assert "horizon" not in message


def test_a_wrong_planner_is_found_before_anything_is_played(tiny_world_model, tmp_path, capsys):
    """It was found after the baselines, and the corrected command was refused for their rows."""
    assert run(tiny_world_model, tmp_path / "out", "--init_std", "0.5", "0.5") == 2
    assert "init_std has 2 numbers for actions of 4" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_tasks_that_end_alike_are_two(monkeypatch, tiny_world_model, tmp_path, capsys):
    """Of my_envs:a/Push-v0 and my_envs:b/Push-v0 only the first was played. Environments need no attribute `task`."""
    args = plan.PlanArgs(planner="cem", episode_length=1)
    rows = KeptRows(tmp_path, planning.PlanRow, {})
    monkeypatch.setattr(planning, "scripted", lambda env: lambda frames: np.zeros(2))
    monkeypatch.setattr(planning, "build_controller", lambda *_: lambda frames: np.zeros(2))
    for task in ("my_envs:a/Push-v0", "my_envs:b/Push-v0"):
        planning.play_missing(args, None, Toy(64, 2), task, 0, rows, planning.TaskFiles())
    assert len(rows.rows) == 6
    assert "my_envs:b/Push-v0 0 cem: success" in capsys.readouterr().out
    assert planning.video_name("my_envs:a/Push-v0", "cem", 0) == "my_envs-a-Push-v0-cem-0"


DESK = "tests.mbrl.toy_env:Desk-v0"
VP2 = "--objective vp2 --planner mppi --replan_every 1 --idle_steps 1 --episodes 2"


@pytest.fixture(scope="module")
def vp2_files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("vp2")
    write_goals(folder / "goals.hdf5", numbers=(3, 150))
    write_goals(folder / "other.hdf5", numbers=(5, 150))
    torch.save(FrameClassifier().state_dict(), folder / "push.pt")
    return folder


@pytest.fixture(scope="module")
def planned_for_goals(vp2_files, tiny_world_model, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("goals")
    files = ["--goals", str(vp2_files / "goals.hdf5"), "--classifiers", str(vp2_files / "push.pt")]
    assert run(tiny_world_model, output, "--task", DESK, *VP2.split(), *files) == 0
    return output


def test_plans_for_goals_of_vp2(planned_for_goals):
    """Episodes that begin where the seed says, goals of the next instance, a plan that begins before it has frames."""
    played = rows(planned_for_goals)
    assert [(row["episode"], row["policy"]) for row in played] == [
        (i, name) for i in (0, 1) for name in ("random", "mppi")
    ]
    assert [row["start_distance"] for row in played] == pytest.approx([100 / 255] * 4)
    assert [row["success"] for row in played] == [False, False, True, True]
    report = (planned_for_goals / "report.md").read_text()
    assert (
        f"| success rate | mppi | random |\n| --- | --- | --- |\n| {DESK} | 0.50 | 0.50 |\n| all | 0.50 | 0.50 |"
        in report
    )
    assert "- goals: `VP2's`" in report


def test_rows_of_other_goals_are_refused(planned_for_goals, vp2_files, tiny_world_model, tmp_path, capsys):
    """A success rate over instances of two files, whose paths may be the same."""
    output = Path(shutil.copytree(planned_for_goals, tmp_path / "out"))
    flags = ["--task", DESK, *VP2.split(), "--classifiers", str(vp2_files / "push.pt"), "--goals"]
    assert run(tiny_world_model, output, *flags, str(vp2_files / "goals.hdf5")) == 0
    assert rows(output) == rows(planned_for_goals)
    assert run(tiny_world_model, output, *flags, str(vp2_files / "other.hdf5")) == 2
    assert f"holds episodes of {DESK} with other --goals or --classifiers" in capsys.readouterr().err
    assert run(tiny_world_model, tmp_path / "new", *flags, str(vp2_files / "goals.hdf5"), "--episodes", "3") == 2
    assert "--episodes is 3, but" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_tasks_that_cannot_begin_in_a_state(vp2_files, tiny_world_model, tmp_path, capsys):
    """The goal of another start, which nobody would notice."""
    flags = ["--task", "tests.mbrl.toy_env:Toy-v0", "--episodes", "1", "--goals", str(vp2_files / "goals.hdf5")]
    assert run(tiny_world_model, tmp_path / "out", *flags) == 2
    assert "--goals: Toy has no method reset_to" in capsys.readouterr().err


def test_the_first_plan_comes_after_the_idle_steps(monkeypatch):
    """A plan whose actions are executed from the second on would miss every goal by a step."""
    args = plan.PlanArgs(idle_steps=2, replan_every=2, horizon=2)
    controller = planning.PlanningController(args, SimpleNamespace(action_dim=4), planning.Reward(), 0)
    decisions = []

    def decide(frames):
        decisions.append(len(frames))
        controller._plan = Plan(torch.tensor([[0.1] * 4, [0.2] * 4]), 0.0, 0)

    monkeypatch.setattr(controller, "_decide", decide)
    first_numbers = [float(controller([np.zeros(3, np.uint8)] * length)[0]) for length in range(1, 6)]
    assert first_numbers == pytest.approx([0, 0, 0.1, 0.2, 0.1])
    assert (decisions, len(controller.imagined)) == ([3, 5], 2)


def test_the_objective_of_vp2():
    """MPPI weighs candidates by differences of scores: half the error is another planner."""
    frames, goal = torch.rand(3, 2, 3, 64, 64), np.full((64, 64, 3), 51, np.uint8)
    network = FrameClassifier()
    model = SimpleNamespace(tokenizer=None)
    args = plan.PlanArgs(objective="vp2")
    error = -(frames - 0.2).square().sum(dim=(1, 2, 3, 4))
    logits = network(frames.flatten(0, 1)).detach().view(3, 2).sum(1)
    for classifier, expected in ((None, 0.5 * error), (network, 0.5 * error + 10 * logits)):
        scores = planning.build_objective(args, model, goal, classifier)(Futures(frames))
        torch.testing.assert_close(scores, expected)


BAD_FLAGS = {
    ("--replan_every", "3"): "--replan_every is 3, but plans have --horizon 2 steps",
    ("--task", "plate-slid"): "did you mean plate-slide",
    ("--objective", "reward"): "--objective reward: the model has no such head",
    ("--episodes", "0"): "--episodes is 0",
    ("--goals", "a.hdf5", "b.hdf5"): "--goals: 2 files for 1 tasks: give each its own",
    ("--classifiers", "a.pt"): "--classifiers are for --objective vp2, not goal",
    ("--idle_steps", "3"): "--idle_steps 3 leave none of --episode_length 3",
}


@pytest.mark.parametrize("flags", BAD_FLAGS, ids=" ".join)
def test_bad_flags(flags, tiny_world_model, tmp_path, capsys):
    assert run(tiny_world_model, tmp_path / "out", *flags) == 2
    assert BAD_FLAGS[flags] in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_robot_of_several_plans(robots_model, tmp_path, capsys):
    """Nobody had tried: plans of another length than the simulator's actions, or of no robot."""
    flags = ["--objective", "reward", "--planner", "cem", "--episodes", "1", "--num_iterations", "1"]
    assert run(robots_model, tmp_path / "arm", *flags, "--action_space", "arm") == 0
    assert [row["policy"] for row in rows(tmp_path / "arm")] == ["scripted", "random", "cem"]
    assert "- action_space: `arm`" in (tmp_path / "arm" / "report.md").read_text()
    capsys.readouterr()
    for chosen, message in (
        (["--action_space", "hand"], "actions of 3 numbers"),
        ([], "give action_space as one of arm"),
    ):
        assert run(robots_model, tmp_path / "other", *flags, *chosen) == 2
        assert message in capsys.readouterr().err


def test_models_that_cannot_plan_here(tmp_path, capsys):
    """The first decision would fail, after the scripted episode."""
    world_model(action_dim=3).save_pretrained(tmp_path / "model")
    assert run(tmp_path / "model", tmp_path / "out") == 2
    assert "takes actions of 3 numbers, the environment wants 4" in capsys.readouterr().err
