"""Policies, imagined and real: the numbers of the report, and the command with the real simulator."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.stats
import torch

from inference import playing
from ivideogpt.commands import evaluate
from ivideogpt.commands.evaluate_policies import PolicyArgs
from ivideogpt.errors import UserError
from ivideogpt.evaluation.policy_report import EpisodeRow, correlate, matrix, pearson, read_rows, spearman
from ivideogpt.flags import parse
from ivideogpt.play.autopilots import AUTOPILOTS, autopilot_action
from mbrl import policy_evaluation
from mbrl.agent import saved_agent
from mbrl.agent.drqv2 import DrQConfig, build_agent
from mbrl.agent.saved_agent import trained_agent
from mbrl.replay.replay_buffer import EpisodeShape
from mbrl.run_folder import RunFolder
from mbrl.snapshots import saved_state
from tests.documented import ROOT
from tests.mbrl.runs import train_drq
from tests.parity.networks import world_model
from tests.play import worlds

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(("ours", "theirs"), [(pearson, scipy.stats.pearsonr), (spearman, scipy.stats.spearmanr)])
def test_coefficients_are_those_of_scipy(ours, theirs):
    """With ties, as success rates have them."""
    x, y = RNG.integers(0, 4, (2, 30)).astype(float)
    assert ours(x, y) == pytest.approx(theirs(x, y).statistic)
    assert np.isnan(ours(np.ones(3), np.arange(3.0)))
    assert np.isnan(ours(np.arange(2.0), np.arange(2.0)))  # of any two policies it would be 1 or -1


def test_intervals_resample_episodes_that_policies_share():
    """An episode that is hard for all policies must not look like a difference between them."""
    quality, difficulty = np.array([0.0, 1.0, 2.0, 4.0])[:, None], 10 * RNG.normal(size=(1, 12))
    exact = correlate(quality + difficulty, 3 * quality + 1 + difficulty, pearson)
    assert (exact.mean, exact.low, exact.high) == pytest.approx((1, 1, 1))
    noise = RNG.normal(size=(2, 4, 12))
    rough = correlate(quality + noise[0], quality + noise[1], spearman)
    assert rough.low <= rough.mean <= rough.high
    assert rough.low < rough.high


def still(stacks: torch.Tensor) -> torch.Tensor:
    """A policy of frames: it checks what it sees, and stays where it is."""
    assert stacks.dtype == torch.uint8
    assert stacks.shape[1:] == (9, 64, 64)
    return torch.zeros(len(stacks), 4)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    world_model(action_dim=4, reward_prediction=True, success_prediction=True).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def flags(model, renders):
    return [
        "--pretrained_model_name_or_path", str(model), "--episodes", "2", "--episode_length", "3", "--device", "cpu",
        "--policies", "scripted", "scripted:1", f"{__name__}:still",
    ]  # fmt: skip


def test_the_command_plays_all_and_goes_on_with_what_is_missing(flags, tmp_path, capsys, monkeypatch):
    """The same starts for all policies; an interruption loses one policy's episodes."""
    evaluate.main(["policies", *flags, "--output_path", str(tmp_path)])
    rows = [json.loads(line) for line in (tmp_path / "episodes.jsonl").read_text().splitlines()]
    assert [(row["policy"].partition(".")[0], row["episode"], row["sees_frames"]) for row in rows] == [
        ("scripted", 0, False), ("scripted", 1, False), ("scripted:1", 0, False), ("scripted:1", 1, False),
        ("tests", 0, True), ("tests", 1, True),
    ]  # fmt: skip
    assert "| scripted:1 | repeated | 2 |" in capsys.readouterr().out
    assert {"report.md", "policies.png", "scripted.gif", "scripted-1.gif"} <= {path.name for path in tmp_path.iterdir()}

    played = []
    monkeypatch.setattr(
        policy_evaluation, "play_policy", lambda args, model, env, policy, rows: played.append(policy.name)
    )
    evaluate.main(["policies", *flags, "random", "--output_path", str(tmp_path)])
    assert played == ["random"]
    assert "scripted is not played again: its episodes are in" in capsys.readouterr().out  # a function may have changed
    with pytest.raises(UserError, match=r"seed was 2000, is 1\): name another folder"):
        evaluate.main(["policies", *flags, "--seed", "1", "--output_path", str(tmp_path)])


def test_a_policy_with_rows_has_its_video(flags, tmp_path, monkeypatch):
    """A full disk in between left a report without it for good: policies that have rows are not played again."""
    only = [*flags[: flags.index("--policies") + 1], "scripted", "--output_path", str(tmp_path)]

    def full(*arguments, **named):
        raise OSError("No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(policy_evaluation, "write_gif", full)
        with pytest.raises(OSError, match="No space left"):
            evaluate.main(["policies", *only])
    evaluate.main(["policies", *only])
    assert (tmp_path / "scripted.gif").exists()


def test_a_probability_above_1_is_refused(flags, tmp_path):
    """No imagined episode would have been a success."""
    with pytest.raises(UserError, match=r"--success_threshold is 1.5: it must be at most 1"):
        evaluate.main(["policies", *flags, "--success_threshold", "1.5", "--output_path", str(tmp_path)])


def test_repeated_actions_are_those_that_were_taken(flags, model, monkeypatch):
    """Off by one step, every correlation would still look plausible: a policy that sees frames gives the same."""
    args = parse(PolicyArgs, flags)
    world = policy_evaluation.load_model(args)
    seen = [
        policy_evaluation.find_policy(name, "plate-slide", args, world) for name in ("scripted", f"{__name__}:still")
    ]
    start = RNG.integers(0, 256, (3, 3, 64, 64), dtype=np.uint8)
    real = policy_evaluation.RealEpisode(np.empty(0), 0.0, False, start, np.zeros((3, 4), np.float32))
    (repeated,), (own,) = (policy_evaluation.imagine(args, world, policy, [real], 0) for policy in seen)
    assert np.array_equal(repeated.frames, own.frames)
    assert repeated.total_reward == own.total_reward
    context = torch.from_numpy(start[None, -2:]) / 255
    rollout = world.predict(context, torch.zeros(1, 3, 4), seed=args.seed)
    assert rollout.rewards.sum().item() == pytest.approx(repeated.total_reward, rel=1e-5)


def test_the_agent_of_a_run_acts_as_it_was_saved(tmp_path, cheap_runs, monkeypatch):
    """A freshly made agent would act, too. One that sees other stacks is refused."""
    train_drq(tmp_path / "run", "num_train_frames=48")
    device = torch.device("cpu")
    saved = trained_agent(tmp_path / "run", 64, 4, device)
    stacks = torch.from_numpy(RNG.integers(0, 256, (2, 9, 64, 64), dtype=np.uint8))
    weights = saved_state(RunFolder(tmp_path / "run"))["parts"]["agent"]
    agent = build_agent(EpisodeShape(3, (64, 64), 4), DrQConfig(hidden_dim=8, feature_dim=4), 7, device)
    agent.load_state_dict(weights)
    assert torch.equal(saved.act(stacks), agent.act(stacks, 0, mean=True, generator=torch.Generator()))
    assert saved.frame_stack == 3
    monkeypatch.setitem(AUTOPILOTS, "agent", None)
    playing.offer_agent(str(tmp_path / "run"), worlds.model())
    seen = torch.from_numpy(worlds.FRAMES[[0, 0, 1]]).permute(0, 3, 1, 2).flatten(0, 1)[None]
    assert np.allclose(autopilot_action(worlds.new_game(), "agent"), saved.act(seen)[0])
    for other, message in (
        ((32, 4, device), "sizes of .3, 64., not .3, 32.$"),
        ((64, 4, device, 2), "give --frame_stack"),
        ((64, 5, device), "4 numbers, those of the model 5"),
    ):
        with pytest.raises(UserError, match=message):
            trained_agent(tmp_path / "run", *other)


def test_an_agent_s_rows_are_those_of_its_frame(flags, tmp_path, cheap_runs):
    """After more training the old rows stood for the new agent; one of another task or camera was played, too."""
    args = parse(PolicyArgs, flags)
    find = partial(policy_evaluation.find_policy, str(tmp_path / "run"), model=policy_evaluation.load_model(args))
    names = []
    for frames in (24, 48):
        train_drq(tmp_path / "run", f"num_train_frames={frames}")
        names.append(find(task="plate-slide", args=args).name)
    assert names == [f"{tmp_path / 'run'} (frame {frame})" for frame in (24, 48)]
    with pytest.raises(
        UserError, match="has learned with --task plate-slide, not hammer, --camera corner, not topview:"
    ):
        find(task="hammer", args=replace(args, camera="topview"))


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("scripted:-1", "what follows the colon is a standard deviation"),
        ("nobody", "expected scripted"),
        ("nowhere:act", "No module named 'nowhere'"),
        ("./my_policies.py:act", "'./my_policies.py' is not the name of a module"),
        ("broken:act", "policy broken:act: SyntaxError: "),
        (":act", "'' is not the name of a module"),
    ],
)
def test_policies_that_are_not_there(flags, policy, message, tmp_path, monkeypatch):
    (tmp_path / "broken.py").write_text("def act(:")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        evaluate.main(["policies", *flags, policy, "--output_path", str(tmp_path)])


FUNCTIONS = """
import numpy as np
import torch

def without_arguments(): ...
def failing(stacks): return helper(stacks)
def helper(stacks): return torch.zeros(3) + torch.zeros(4)
def nothing(stacks): return None
def single(stacks): return torch.zeros(4)
def counting(stacks): return torch.zeros(len(stacks), 4, dtype=torch.int64)
def unknown(stacks): return torch.full((len(stacks), 4), torch.nan)
def plain(stacks): return np.zeros((len(stacks), 4))
"""


def evaluated(flags, folder, policy):
    command = [sys.executable, "-m", "ivideogpt.evaluation", "policies", *flags, policy, "--output_path", "out"]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(command, cwd=folder, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("without_arguments", "TypeError: without_arguments() takes 0 positional arguments but 1 was given"),
        ("failing", "RuntimeError: The size of tensor a (3) must match the size of tensor b (4)"),
        ("nothing", "returned None, expected finite floats (1, 4)"),
        ("single", "returned torch.float32 of shape (4,), expected finite floats (1, 4)"),
        ("counting", "returned torch.int64 of shape (1, 4), expected"),
        ("unknown", "returned numbers that are not finite, expected"),
    ],
)  # fmt: skip
def test_what_a_users_function_does_wrong_is_one_line(model, function, message, tmp_path, monkeypatch):
    """It was a traceback through ours."""
    (tmp_path / "functions.py").write_text(FUNCTIONS)
    monkeypatch.chdir(tmp_path)
    args = parse(PolicyArgs, ["--pretrained_model_name_or_path", str(model), "--device", "cpu"])
    world = policy_evaluation.load_model(args)
    policy = policy_evaluation.find_policy(f"functions:{function}", "plate-slide", args, world)
    with pytest.raises(UserError) as told:
        policy.on_frames(torch.zeros(1, 9, 64, 64, dtype=torch.uint8))
    assert f"policy functions:{function}" in str(told.value)
    assert message in str(told.value)
    assert ("in line 7 of" in str(told.value)) == (function == "failing")  # where it called what has failed
    numbers = policy_evaluation.find_policy("functions:plain", "plate-slide", args, world)
    assert numbers.on_frames(torch.zeros(2, 9, 64, 64, dtype=torch.uint8)).dtype == torch.float32


def test_the_command_ends_with_that_line(flags, tmp_path):
    (tmp_path / "functions.py").write_text(FUNCTIONS)
    only = [*flags[: flags.index("--policies") + 1], "functions:without_arguments"]
    done = evaluated(only, tmp_path, "functions:failing")
    assert "error: policy functions:without_arguments: TypeError" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.returncode == 2


def test_a_model_without_heads_is_refused(tiny_world_model, tmp_path):
    flags = ["--pretrained_model_name_or_path", str(tiny_world_model), "--output_path", str(tmp_path)]
    with pytest.raises(UserError, match="has no reward and no success head: train one"):
        evaluate.main(["policies", *flags])


def test_a_model_of_another_robot_is_refused(flags, tmp_path):
    """All real episodes were played before the first imagined one failed."""
    model = world_model(action_dim=3, reward_prediction=True, success_prediction=True)
    model.save_pretrained(tmp_path / "model")
    output = ["--output_path", str(tmp_path / "out")]
    with pytest.raises(UserError, match="takes actions of 3 numbers, the environment wants 4"):
        evaluate.main(["policies", *flags, "--pretrained_model_name_or_path", str(tmp_path / "model"), *output])


def test_runs_of_one_name_are_two_policies(monkeypatch):
    """The second agent was taken for the first, whose row was there; and its video would replace the other."""
    settings = {"task_name": "plate_slide", "camera": "corner", "action_repeat": 2}
    monkeypatch.setattr(saved_agent, "trained_agent", lambda *_: SimpleNamespace(act=still, frame=8, settings=settings))
    monkeypatch.setattr(policy_evaluation.Path, "is_dir", lambda path: True)
    args = PolicyArgs(pretrained_model_name_or_path="model")
    model = world_model(action_dim=4)
    runs = [policy_evaluation.find_policy(f"{name}/seed0/", "plate-slide", args, model).name for name in "ab"]
    assert runs == ["a/seed0 (frame 8)", "b/seed0 (frame 8)"]
    policy_evaluation.check_names(runs)
    with pytest.raises(UserError, match=r"a-seed0-frame-8- and .* have the same file name"):
        policy_evaluation.check_names([*runs, "a-seed0-frame-8-"])


@pytest.mark.parametrize("head", ["reward_head", "success_head"])
def test_a_model_that_gives_no_numbers_is_noticed(head):
    """NaN would be black frames, a policy that never succeeds, and a correlation of nothing."""
    model = world_model(action_dim=4, reward_prediction=True, success_prediction=True)
    with torch.no_grad():
        getattr(model, head).bias.fill_(torch.nan)
    real = policy_evaluation.RealEpisode(
        np.empty(0), 0.0, False, np.zeros((3, 3, 64, 64), np.uint8), np.zeros((1, 4), np.float32)
    )
    args = PolicyArgs(pretrained_model_name_or_path="model")
    with pytest.raises(UserError, match=r"gives NaN or infinity, expected .* choose another checkpoint"):
        policy_evaluation.imagine(args, model, policy_evaluation.Policy("still", on_frames=still), [real], 0)


def test_a_policy_without_some_of_its_rows(tmp_path):
    """A table of policies with other episodes than the rest."""
    rows = read_rows(tmp_path, {"episodes": 3})
    rows.add([EpisodeRow("a", number, False, -1.0, 2.0, True, False) for number in range(2)])
    with pytest.raises(UserError, match="lines are missing; remove it to begin anew"):
        read_rows(tmp_path, {"episodes": 3})


def test_rows_keep_their_order(tmp_path):
    rows = read_rows(tmp_path / "new", {"episodes": 3})
    rows.add([EpisodeRow("a", number, False, number, 2 * number, True, False) for number in range(3)])
    rows.add([EpisodeRow("b", number, False, 5, 6, True, False) for number in range(3)])
    again = read_rows(tmp_path / "new", {"episodes": 3})
    assert again.rows == rows.rows
    assert matrix(again.rows, "imagined_return").tolist() == [[0, 2, 4], [6, 6, 6]]
