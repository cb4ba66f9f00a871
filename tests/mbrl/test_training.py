"""The loop: what happens in which step, what is kept of it, and that nothing is asked of a run in vain."""

from __future__ import annotations

import csv
import dataclasses
import errno
import json
import logging
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import ivideogpt.world_model
from ivideogpt.errors import UserError
from ivideogpt.training.common.optim import SoundUpdates
from mbrl import build_trainer, config_files, metric_logger
from mbrl import command as command_line
from mbrl.agent.drqv2 import DrQAgent, DrQConfig
from mbrl.config_files import CommandLine
from mbrl.envs.agent_env import AgentEnv
from mbrl.envs.env_settings import EnvSettings
from mbrl.metric_logger import MetricLogger, captioned
from mbrl.replay.replay_buffer import ReplayBuffer
from mbrl.run_folder import RunFolder, flat
from mbrl.settings import WorldModelConfig
from mbrl.snapshots import Snapshots, saved_state
from mbrl.tools import export_world_model
from tests.commands import run_python
from tests.mbrl.runs import STEPS, WorldModel, lines, parse_drq, parse_mbpo, train_drq, train_mbpo, words

PLOT = MetricLogger.plot_success  # half a second each: runs in tests do without
ROOT = Path(__file__).parents[2]


PUBLISHED = dict(
    frame_stack=3, action_repeat=2, duration=100, succ_bonus=10.0, discount=0.99, nstep=3, batch_size=256,
    num_seed_frames=4000, eval_every_frames=2000, num_eval_episodes=20, replay_buffer_size=1_000_000,
    agent_update_times=2, lr=1e-4, feature_dim=50, start_mbpo=4000, init_update_gen_steps=1000, init_gen_times=20,
    update_gen_every_step=10, update_gen_times=1, update_tokenizer_every_step=40, gen_every_steps=200, gen_batch=32,
    gen_horizon=10, real_ratio=0.5, num_train_frames=260_002,
)  # fmt: skip


# Keys of the released configuration and its values, as given on a command line.
RELEASED_DRQ = """
    task_name coffee_push; camera corner; frame_stack 3; action_repeat 2; duration 100; succ_bonus 10.0; discount 0.99;
    num_train_frames 260002; num_seed_frames 4000; stddev_schedule linear(1.0,0.1,100000); eval_every_frames 2000;
    num_eval_episodes 20; save_snapshot true; save_video true; save_train_video false; use_tb true;
    replay_buffer_size 1000000; replay_buffer_num_workers 4; nstep 3; batch_size 256; demo false;
    demo_path_prefix demonstrations; seed 1; device cpu; experiment default; agent_update_times 2; lr 1e-4;
    feature_dim 50; agent.lr 1e-4; agent.critic_target_tau 0.01; agent.update_every_steps 1; agent.use_tb true;
    agent.device cpu; agent.num_expl_steps 2000; agent.hidden_dim 1024; agent.feature_dim 50;
    agent.stddev_schedule linear(1.0,0.1,100000); agent.stddev_clip 0.3; agent.beta 0; agent.delay_steps 1
""".replace("\n", " ").split(";")
RELEASED_MBPO = """
    exp_name mbpo; start_mbpo 4000; init_update_gen_steps 1000; init_gen_times 20; update_gen_every_step 10;
    update_gen_times 1; update_tokenizer_every_step 40; gen_every_steps 200; gen_batch 32; gen_horizon 10;
    real_ratio 0.5; world_model.load_pretrained_model true; world_model.config_name configs/llama/config.json;
    world_model.vqgan_type ctx_vqgan;
    world_model.pretrained_model_name_or_path pretrained_models/ivideogpt-oxe-64-act-free/tokenizer;
    world_model.pretrained_transformer_path pretrained_models/ivideogpt-oxe-64-act-free/transformer;
    world_model.load_internal_llm true; world_model.llama_attn_drop 0.1; world_model.symlog true;
    world_model.context_length 2; world_model.segment_length 12; world_model.action_dim 4; world_model.batch_size 16;
    world_model.selected_params true; world_model.tok_lr 1e-4; world_model.tok_wd 0.0; world_model.tok_beta1 0.9;
    world_model.tok_beta2 0.999; world_model.fast_reward_predictor false; world_model.reward_lr 1e-4;
    world_model.reward_wd 0.0; world_model.max_grad_norm 1.0; world_model.max_target_frames 5;
    world_model.model_lr 1e-4; world_model.model_wd 0.0; world_model.embed_no_wd true; world_model.reward_weight 1.0
""".replace("\n", " ").split(";")
OURS_DRQ = {"paper_reward", "use_wandb", "run_dir", "resume_with_changes", "agent.compile"}
OURS_MBPO = {"lpips_path", "world_model.action_space", "world_model.without_lpips"}


@pytest.fixture
def events(monkeypatch, cheap_runs):
    """What was done, step for step: names in order."""
    steps: list[list[str]] = [[]]

    def spy(kind: type, method: str, name: str) -> None:
        original = getattr(kind, method)

        def noted(self, *args, **kwargs):
            steps[-1].append(name)
            result = original(self, *args, **kwargs)
            if name == "env":
                steps.append([])
            return result

        monkeypatch.setattr(kind, method, noted)

    spy(WorldModel, "update_tokenizer", "tokenizer")
    spy(WorldModel, "update_transformer", "transformer")
    spy(WorldModel, "imagine", "imagine")
    spy(WorldModel, "validate", "validate")
    spy(DrQAgent, "update", "agent")
    spy(AgentEnv, "step", "env")
    return steps


def steps_of(events: list[list[str]]) -> dict[int, str]:
    """Of the environment to learn in, by frame; evaluations are 12 steps in front of some."""
    flat = [name for step in events for name in step]
    steps, current, frame, skipped = {}, [], 0, 0
    for name in flat:
        evaluating = frame % 48 == 0 and skipped < 2 * STEPS
        if name == "env" and evaluating:
            skipped += 1
            continue
        current.append(name)
        if name == "env":
            steps[frame] = " ".join(current)
            frame, current, skipped = frame + 2, [], 0
    return steps


def test_what_happens_when(tmp_path, events):
    """Seed frames, the initial updates, and then each thing at its own pace, in this order within a step."""
    train_mbpo(tmp_path, "agent_update_times=2")
    steps = steps_of(events)
    assert list(steps) == list(range(0, 120, 2))
    assert {steps[frame] for frame in range(0, 24, 2)} == {"env"}
    assert steps[24] == "tokenizer transformer tokenizer transformer imagine imagine agent agent imagine env"
    assert steps[26] == "agent agent env"
    assert steps[28] == "transformer agent agent env"
    assert steps[32] == "tokenizer transformer agent agent env"
    assert steps[36] == "transformer agent agent imagine env"
    assert steps[48] == "tokenizer transformer agent agent imagine env"
    regular = {frame: steps[frame] for frame in range(26, 120, 2)}
    for name, every in (("transformer", 4), ("tokenizer", 8), ("imagine", 12)):
        assert [frame for frame, step in regular.items() if name in step] == [f for f in regular if f % every == 0]


def test_counts_of_the_defaults():
    """The published schedule, in frames."""
    settings, _ = parse_mbpo(["device=cpu"])
    assert settings.frame(settings.first_step) == 4000
    frames = range(3990, 4402)
    of = {
        name: [frame for frame in frames if frame % 2 == 0 and getattr(settings, name)(frame // 2)]
        for name in ("agent_learns", "model_learns", "imagines", "evaluates")
    }
    assert of["agent_learns"] == list(range(4000, 4402, 2))
    assert of["model_learns"] == list(range(4010, 4402, 10))
    assert [frame for frame in of["model_learns"] if settings.tokenizer_learns(frame // 2)] == list(
        range(4040, 4402, 40)
    )
    assert of["imagines"] == [4000, 4200, 4400]
    assert of["evaluates"] == [4000]
    assert settings.num_steps == 130_001
    assert settings.evaluates(130_000)


def test_numbers_of_the_defaults():
    """The published ones, written down a second time."""
    settings, _ = parse_mbpo(["device=cpu"])
    assert {name: getattr(settings, name) for name in PUBLISHED} == PUBLISHED
    assert settings.stddev_schedule == "linear(1.0,0.1,100000)"


def test_every_key_of_the_released_configuration():
    """Bug prevented: commands and values of released runs are refused, or mean something else."""
    for parse, released in (
        (parse_drq, ["exp_name drq", *RELEASED_DRQ]),
        (parse_mbpo, [*RELEASED_DRQ, *RELEASED_MBPO]),
    ):
        values = dict(map(str.split, released))
        _, config = parse(["device=cpu"])
        _, given = parse([f"{name}={value}" for name, value in values.items()])
        assert flat(given) | {"device": "cpu", "agent.device": "cpu"} == flat(config)
        assert OURS_DRQ <= set(flat(config)) - set(values) <= OURS_DRQ | OURS_MBPO
    nulls = ["world_model.max_grad_norm=null", "world_model.llama_attn_drop=null"]
    world_model = parse_mbpo(["device=cpu", *nulls])[0].world_model
    assert (world_model.max_grad_norm, world_model.llama_attn_drop) == (None, None)
    schedule = "step_linear(1.0,0.5,1000,0.1,5000)"
    for override in (
        f"stddev_schedule={schedule}",
        f"stddev_schedule='{schedule}'",
        f"agent.stddev_schedule={schedule}",
    ):
        assert parse_drq(["device=cpu", override])[0].agent.stddev_schedule == schedule


def test_several_runs_of_one_command(tmp_path, monkeypatch, caplog):
    """As `-m` of hydra's: one after another, each in its own folder, and the process starts again for the next one."""
    started, trained = [], []
    monkeypatch.setattr(command_line.os, "execv", lambda program, arguments: started.append(arguments))
    monkeypatch.setattr(command_line, "keep_freed_memory", lambda: None)

    monkeypatch.setattr(build_trainer, "train", lambda settings, config: trained.append(settings) or 0)

    def run(*arguments: str) -> int | None:
        monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
        try:
            command_line.run("", is_mbpo=False)
        except SystemExit as end:
            return end.code
        return None

    sweep = ["-m", "task=plate-slide,hammer", "seed=1,2", "device=cpu", "stddev_schedule=linear(1.0,0.1,9)"]
    arguments = sweep
    while run(*arguments) is None:
        arguments = started[-1][2:]
    assert [(settings.task_name, settings.seed) for settings in trained] == [
        ("plate_slide", 1), ("plate_slide", 2), ("hammer", 1), ("hammer", 2)
    ]  # fmt: skip
    assert len({settings.run_dir for settings in trained}) == 4
    assert [arguments[1:] for arguments in started] == [
        ["train.py", *sweep, *(part for n in range(2, last + 1) for part in ("--first-run", str(n)))]
        for last in (2, 3, 4)
    ]
    for wrong, message in (
        (["seed=1,2"], r"seed=1,2: several values make several runs, one after another, with --multirun \(-m\)"),
        (
            ["-m", "lr=1e-4,3e-4", "device=cpu"],
            "several of these runs would be in log_mbrl/drq/coffee_push-seed1: name",
        ),
        (["-m", "seed=1,x", "device=cpu"], "seed is 'x': it should be a whole number"),
        (["-m", "seed=1,2", "--first-run", "3"], "--first-run is 3: these are 2 runs"),
        (["--config-name", "other"], "--config-name other: .* has config, mbpo_config; put a file of your own there"),
        (["--config-name"], "--config-name: expected one argument"),
    ):
        with pytest.raises(UserError, match=message):
            run(*wrong)
    assert len(trained) == 4
    assert run("-m", "exp_name=drq-lr${lr}", "lr=1e-4,3e-4", "device=cpu") is None
    assert str(trained[-1].run_dir) == "log_mbrl/drq-lr0.0001/coffee_push-seed1"


def test_a_run_that_fails_is_the_last(monkeypatch):
    """Its exit code is the command's."""
    monkeypatch.setattr(sys, "argv", ["train.py", "-m", "seed=1,2", "device=cpu"])
    monkeypatch.setattr(command_line, "keep_freed_memory", lambda: None)
    monkeypatch.setattr(build_trainer, "train", lambda settings, config: 143)
    with pytest.raises(SystemExit) as end:
        command_line.run("", is_mbpo=False)
    assert end.value.code == 143


def test_the_configuration_may_be_named():
    line = CommandLine.read(["--config-name", "mbpo_config.yaml", "task=hammer"], "config")
    assert (line.config_name, line.runs) == ("mbpo_config", [["task=hammer"]])
    assert CommandLine.read(["-cn=mbpo_config"], "config").config_name == "mbpo_config"
    settings, _ = parse_mbpo(["task=hammer", "device=cpu"], "mbpo_config")
    assert settings.exp_name == "mbpo"


def test_the_home_folder_is_found_in_settings(monkeypatch):
    """hydra refuses "~", and shells leave it alone behind "="; a first "~" still leaves out a setting."""
    monkeypatch.setenv("HOME", "/home/me")
    given = ["run_dir=~/runs/a,~/b", "demo_path_prefix=~/demonstrations", "~preset", "-m"]
    line = CommandLine.read(given, "config")
    kept = ["demo_path_prefix=/home/me/demonstrations", "~preset"]
    assert line.runs == [["run_dir=/home/me/runs/a", *kept], ["run_dir=/home/me/b", *kept]]
    settings, _ = parse_drq(["task=hammer", "device=cpu", *line.runs[0][:2]])
    assert settings.run_dir == Path("/home/me/runs/a")


def test_the_home_folder_is_found_in_files_of_settings(tmp_path, monkeypatch):
    """A run was kept in a folder named "~", and was another one than that of run_dir=~/runs on the command line."""
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setattr(config_files, "CFGS", Path(shutil.copytree(config_files.CFGS, tmp_path / "cfgs")))
    mine = [
        "defaults: [mbpo_config, _self_]",
        "run_dir: ~/runs/${exp_name}",
        "world_model: {config_name: ~/llama.json}",
    ]
    (config_files.CFGS / "mine.yaml").write_text("\n".join(mine))
    settings, noted = parse_mbpo(["task=hammer", "device=cpu"], "mine")
    assert settings.run_dir == Path("/home/me/runs/mbpo")
    assert settings.world_model.config_name == "/home/me/llama.json"
    assert noted["run_dir"] == "/home/me/runs/mbpo"


def test_agent_learns_at_its_own_pace(tmp_path, events):
    train_drq(tmp_path, "agent.update_every_steps=3")
    learned = [frame for frame, step in steps_of(events).items() if "agent" in step]
    assert learned == list(range(24, 120, 6))


def test_validation_needs_held_out_episodes(tmp_path, cheap_runs, caplog):
    """The tenth episode is the first that is held out."""
    with caplog.at_level(logging.INFO):
        train_mbpo(tmp_path, "num_train_frames=182", "num_eval_episodes=1", "replay_buffer_size=600")
    assert [line["frame"] for line in lines(tmp_path, "validation")] == [120, 180]
    assert caplog.text.count("no episode is held out yet") == 1  # at 24, and not again at 60


def test_the_world_model_never_learns_from_what_validates_it(tmp_path, cheap_runs):
    """Rewards hardly repeat, so that they tell segments apart: none of a validation was among those of the updates."""
    learned, validated = set(), []

    def fingerprint(rewards):
        return tuple(rewards.tolist())

    class Watched(WorldModel):
        def update_transformer(self, segments):
            learned.update(map(fingerprint, segments.rewards))
            return super().update_transformer(segments)

        def validate(self, segments, seed):
            validated.extend(map(fingerprint, segments.rewards))
            return super().validate(segments, seed)

    train_mbpo(
        tmp_path, "num_train_frames=362", "num_eval_episodes=1", "replay_buffer_size=600", "update_gen_times=5",
        "agent_update_times=0", world_model=Watched(),
    )  # fmt: skip
    assert len(set(validated)) > 1
    assert len(learned) > 30
    assert not learned & set(validated)


def test_a_model_that_has_learned_nothing_is_not_validated(tmp_path, cheap_runs):
    """It begins when the fifth episode ends, at frame 60, and with ten more of them one is held out."""
    train_mbpo(tmp_path / "fifth", "start_mbpo=60", "num_train_frames=62", "num_eval_episodes=1")
    assert not lines(tmp_path / "fifth", "validation")
    train_mbpo(
        tmp_path / "tenth", "start_mbpo=120", "num_train_frames=182", "num_eval_episodes=1", "replay_buffer_size=600"
    )
    assert [line["frame"] for line in lines(tmp_path / "tenth", "validation")] == [120, 180]


def test_random_actions_in_the_initial_rounds_then_the_policy(tmp_path, cheap_runs, monkeypatch):
    asked: list[str] = []
    for name in ("act", "random_actions"):
        original = getattr(DrQAgent, name)

        def noted(self, first, *args, name=name, original=original, **kwargs):
            if (first if isinstance(first, int) else len(first)) == 3:
                asked.append(name)
            return original(self, first, *args, **kwargs)

        monkeypatch.setattr(DrQAgent, name, noted)
    train_mbpo(tmp_path, "gen_batch=3", "num_train_frames=38")
    assert asked == ["random_actions"] * 6 + ["act"] * 6


def test_episodes_are_stored_as_they_were(tmp_path, cheap_runs, monkeypatch):
    """Bug prevented: rewards or actions one row early in the buffer."""
    acted: list[tuple[np.ndarray, float]] = []
    step = AgentEnv.step

    def noted(self, action):
        result = step(self, action)
        acted.append((action.copy(), result[1]))
        return result

    episodes = []
    add = ReplayBuffer.add
    monkeypatch.setattr(AgentEnv, "step", noted)
    monkeypatch.setattr(ReplayBuffer, "add", lambda self, episode, **k: (episodes.append(episode), add(self, episode)))
    train_drq(tmp_path, "num_train_frames=36", "eval_every_frames=1000", "num_eval_episodes=1")
    own = acted[STEPS:]  # after the evaluation
    assert len(own) == 18
    assert len(episodes) == 3
    for number, episode in enumerate(episodes):
        did = own[number * STEPS : (number + 1) * STEPS]
        np.testing.assert_array_equal(episode.action[1:], [action for action, _ in did])
        np.testing.assert_array_equal(episode.reward[1:], np.float32([reward for _, reward in did]))
        assert not episode.action[0].any()
        assert episode.reward[0] == 0


def test_evaluations_are_the_same_episodes_and_disturb_nothing(tmp_path, cheap_runs, whole_drq):
    train_drq(tmp_path / "often", "eval_every_frames=12")
    assert lines(tmp_path / "often", "train") == lines(whole_drq, "train")
    before_learning = lines(tmp_path / "often", "eval")[:3]
    assert len({line["episode_reward"] for line in before_learning}) == 1


def test_what_a_run_leaves(tmp_path, cheap_runs):
    assert train_mbpo(tmp_path, "save_video=true", "save_train_video=true", "use_tb=true") == 0
    present = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert {
        "metrics.jsonl", "train.csv", "eval.csv", "latest.json",
        "snapshots/000000120/state.pt", "snapshots/000000120/environment.npz", "videos/eval/000000048.gif",
        "videos/train/000000012.gif", "videos/imagined/000000024-random.gif", "videos/imagined/000000048.gif",
    } <= present  # fmt: skip
    assert any(path.startswith("tensorboard/") for path in present)
    assert sorted(path.name for path in (tmp_path / "snapshots").iterdir()) == ["000000096", "000000120"]
    PLOT(MetricLogger(RunFolder(tmp_path)))
    assert (tmp_path / "success_rate.png").stat().st_size > 5000
    with (tmp_path / "eval.csv").open() as file:
        assert [row["frame"] for row in csv.DictReader(file)] == ["0", "48", "96"]
    train = lines(tmp_path, "train")
    assert [line["frame"] for line in train] == list(range(12, 121, 12))
    assert {"critic_loss", "tokenizer_loss", "transformer_loss", "imagined_reward"} <= train[-1].keys()


def test_captions_say_how_much_was_earned():
    video = captioned(np.full((2, 16, 64, 3), 7, np.uint8), ["reward 0.00", "reward 9.00"])
    assert video.shape == (2, 32 + 18, 128, 3)
    assert (video[:, :32] == 7).all(), "the picture is left alone"
    assert (video[0, 32:] != video[1, 32:]).any()


def test_weights_and_biases(tmp_path, cheap_runs, monkeypatch):
    """A run that goes on is one run there; one that begins anew is another."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")

    def train(frames: int, *overrides: str) -> str:
        assert train_drq(tmp_path, "use_wandb=true", f"num_train_frames={frames}", *overrides) == 0
        return (tmp_path / "wandb_id").read_text()

    first = train(24)
    assert train(48) == first
    assert len(list((tmp_path / "wandb").glob(f"offline-run-*-{first}/run-{first}.wandb"))) >= 1
    (tmp_path / "latest.json").unlink()
    shutil.rmtree(tmp_path / "snapshots")
    assert train(12) != first


def test_weights_and_biases_without_an_account(tmp_path):
    """In a process of its own: theirs remembers how it was first used."""
    code = (
        "from pathlib import Path; from ivideogpt.errors import cli; from mbrl.metric_logger import start_wandb; "
        "from mbrl.run_folder import RunFolder; "
        f"cli(lambda: start_wandb(RunFolder(Path({str(tmp_path)!r})), 'group', {{}}, is_resumed=False))"
    )
    known = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    environment = known | {"HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc")}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert "error: use_wandb=true, but No API key" in done.stderr.splitlines()[-1]


def test_without_snapshots_nothing_is_kept_or_lost(tmp_path, cheap_runs):
    train_drq(tmp_path, "save_snapshot=false", "num_train_frames=48")
    assert not {"latest.json", "snapshots", "replay"} & {path.name for path in tmp_path.iterdir()}
    before = (tmp_path / "metrics.jsonl").read_text()
    train_drq(tmp_path, "save_snapshot=false", "num_train_frames=48")
    assert (tmp_path / "metrics.jsonl.old").read_text() == before
    assert len(lines(tmp_path)) == len(before.splitlines())
    train_drq(tmp_path, "save_snapshot=false", "num_train_frames=24")
    assert (tmp_path / "metrics.jsonl.old").read_text() == before
    assert len((tmp_path / "metrics.jsonl.old1").read_text().splitlines()) == len(before.splitlines())


def test_a_saved_run_goes_on_being_saved(tmp_path, cheap_runs):
    """The next start cut off the lines of all frames since the last snapshot."""
    train_drq(tmp_path, "num_train_frames=24")
    with pytest.raises(UserError, match="what the run adds would be cut off"):
        train_drq(tmp_path, "save_snapshot=false", "num_train_frames=48")


def test_a_failing_world_model_is_left_alone(tmp_path, cheap_runs, caplog):
    """The agent goes on, also after a resume."""
    train_mbpo(tmp_path, world_model=WorldModel(fails_at_round=4))
    assert sum("no imagination from here on" in record.message for record in caplog.records) == 1
    assert "critic_loss" in lines(tmp_path, "train")[-1]
    assert "transformer_loss" not in lines(tmp_path, "train")[-1]
    state = torch.load(tmp_path / "snapshots/000000120/state.pt", weights_only=True)
    imagined = state["replay"]["imagined"]
    assert imagined["num_added"] == imagined["oldest"] == 3 * 2  # what it imagined before is not learned from either
    resumed = WorldModel()
    train_mbpo(tmp_path, "num_train_frames=144", world_model=resumed)
    assert resumed.num_rounds == 4


def test_a_world_model_that_cannot_learn_is_left_alone_too(tmp_path, cheap_runs, monkeypatch, caplog):
    """It ended the run, and every start after that: its losses were NaN, not its frames."""

    def update(model, segments):
        weight = torch.nn.Parameter(torch.zeros(()))
        updates = SoundUpdates("transformer", torch.optim.SGD([weight]))
        while True:
            updates.step(torch.tensor(math.nan), torch.tensor(1.0))

    monkeypatch.setattr(WorldModel, "update_transformer", update)
    assert train_mbpo(tmp_path) == 0
    assert sum("no imagination from here on" in message for message in caplog.messages) == 1


def test_a_lost_agent_never_reaches_a_snapshot(tmp_path, cheap_runs, monkeypatch):
    update = DrQAgent.update

    def spoiled(self, batch, step):
        return {**update(self, batch, step), **({"critic_loss": torch.tensor(torch.nan)} if step == 40 else {})}

    monkeypatch.setattr(DrQAgent, "update", spoiled)
    with pytest.raises(UserError, match=r"critic_loss is nan at frame 84"):
        train_drq(tmp_path)
    assert json.loads((tmp_path / "latest.json").read_text()) == {"snapshot": "000000072"}


def test_gradients_of_the_last_update_never_reach_a_snapshot(tmp_path, cheap_runs, monkeypatch):
    """Bug prevented: a finite loss, infinite gradients, and NaN weights saved over the last good ones."""
    update = DrQAgent.update

    def spoiled(self, batch, step):
        metrics = update(self, batch, step)
        if step == 47:
            self.critic.heads[0][0].weight.data[0, 0] = torch.nan
        return metrics

    monkeypatch.setattr(DrQAgent, "update", spoiled)
    with pytest.raises(UserError, match=r"the norm of the critic's weights is nan at frame 96: the agent is lost"):
        train_drq(tmp_path)
    assert json.loads((tmp_path / "latest.json").read_text()) == {"snapshot": "000000072"}


def test_a_simulator_that_earns_nan_ends_the_run(tmp_path, cheap_runs, monkeypatch):
    """Bug prevented: a reward that is saved in the replay buffer, and spoils the agent after every resume."""
    step = AgentEnv.step
    calls = iter(range(1000))

    def broken(self, action):
        stack, reward, *rest = step(self, action)
        return stack, np.inf if next(calls) == 12 + 40 else reward, *rest

    monkeypatch.setattr(AgentEnv, "step", broken)
    with pytest.raises(UserError, match=r"the simulator's reward is inf at frame \d+: The last snapshot"):
        train_drq(tmp_path, "eval_every_frames=1000")
    assert "NaN" not in (text := (tmp_path / "metrics.jsonl").read_text())
    assert "Infinity" not in text


def test_an_agent_that_acts_nan_ends_the_run(tmp_path, cheap_runs, monkeypatch):
    """Before the environment sees it, and in words."""
    update = DrQAgent.update

    def spoiled(self, batch, step):
        if step == 40:
            self.encoder.convolutions[0].bias.data.fill_(torch.nan)
        return update(self, batch, step)

    monkeypatch.setattr(DrQAgent, "update", spoiled)
    with pytest.raises(UserError, match=r"the sum of actions is nan at frame 82: the agent is lost"):
        train_drq(tmp_path)


@pytest.mark.parametrize(("owner", "name"), [(torch, "save"), (np, "savez")])
def test_full_disk_while_saving(tmp_path, cheap_runs, whole_drq, monkeypatch, caplog, owner, name):
    """In between it is a line in the log; at the end it is the command's error, and what was saved is valid."""
    save = getattr(owner, name)
    full = False

    def fail(*args, **arrays):
        if full:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(*args, **arrays)

    monkeypatch.setattr(owner, name, fail)
    train_drq(tmp_path, "num_train_frames=48")
    full = True
    with pytest.raises(UserError, match=r"No space left on device.*unharmed"):
        train_drq(tmp_path)
    assert sum("going on without" in record.message for record in caplog.records) == 3
    assert sorted(path.name for path in (tmp_path / "snapshots").iterdir()) == ["000000024", "000000048"]
    full = False
    train_drq(tmp_path)
    assert lines(tmp_path) == lines(whole_drq)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["batch_size=5"], r"batch_size is 5, was 4: .*, or add resume_with_changes=true"),
        (["stddev_schedule=linear(1.0,0.1,9)"], r"stddev_schedule is linear\(1.0,0.1,9\), was"),
        (["task=hammer"], "task_name is hammer, was plate_slide"),
    ],
)
def test_a_folder_is_for_one_kind_of_run(tmp_path, cheap_runs, overrides, message):
    train_drq(tmp_path, "num_train_frames=12")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with pytest.raises(UserError, match=message):
        train_drq(tmp_path, *overrides)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_run_goes_on_with_changes_on_purpose(tmp_path, cheap_runs):
    """A run whose learning rate was too high had to begin again; saved optimizers brought the old rate back."""
    train_drq(tmp_path, "num_train_frames=24")
    for options in (
        ["num_train_frames=48", "lr=0.002", "resume_with_changes=true"],
        ["lr=0.002", "num_train_frames=72"],
    ):
        assert train_drq(tmp_path, *options) == 0
        folder = max((tmp_path / "snapshots").iterdir())
        state = torch.load(folder / "state.pt", weights_only=True)
        assert state["parts"]["agent"]["actor_optimizer"]["param_groups"][0]["lr"] == 0.002
    changes = json.loads((tmp_path / "run.json").read_text())["changes"]
    assert [(change["step"], change["lr"]["now"]) for change in changes] == [(24, 0.002)]


@pytest.mark.parametrize(
    "change",
    [
        "task=hammer", "camera=topview", "frame_stack=2", "action_repeat=1", "duration=4", "demo=true",
        "replay_buffer_size=90", "agent.hidden_dim=16", "agent.feature_dim=6", "start_mbpo=12",
    ],
)  # fmt: skip
def test_what_was_saved_allows_no_other(tmp_path, cheap_runs, change):
    """They were noted before they were found not to fit, after which the run did not even go on as it had been."""
    train = train_mbpo if "mbpo" in change else train_drq
    train(tmp_path, "num_train_frames=22")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*") if path.is_file()}
    with pytest.raises(UserError, match=r"whatever else may change: .*use another"):
        train(tmp_path, change, "resume_with_changes=true")
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*") if path.is_file()} == before
    assert train(tmp_path, "num_train_frames=36") == 0


def test_a_state_that_does_not_fit_leaves_the_record(tmp_path, cheap_runs):
    """A network that no setting names is another one, such as one of another version."""
    train_drq(tmp_path, "num_train_frames=24")
    record = (tmp_path / "run.json").read_text()
    (tmp_path / "run.json").write_text(record.replace('"hidden_dim": 8', '"hidden_dim": 16'))
    with pytest.raises(UserError, match=r"the agent that was saved does not fit these settings \(.*size mismatch"):
        train_drq(tmp_path, "agent.hidden_dim=16", "lr=0.002", "resume_with_changes=true")
    assert "changes" not in json.loads((tmp_path / "run.json").read_text())


def test_a_full_disk_costs_pictures_not_the_run(tmp_path, cheap_runs, monkeypatch, caplog):
    def fail(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(metric_logger, "write_gif", fail)
    monkeypatch.setattr(metric_logger, "atomic_file", fail)
    monkeypatch.setattr(MetricLogger, "plot_success", PLOT)
    assert train_drq(tmp_path, "save_video=true", "num_train_frames=12") == 0
    assert sum("No space left on device" in line for line in caplog.messages) == 2
    assert (tmp_path / "snapshots/000000012").is_dir()


def test_drq_does_not_go_on_with_mbpo(tmp_path, cheap_runs):
    train_mbpo(tmp_path, "num_train_frames=12")
    with pytest.raises(UserError, match="exp_name is drq, was mbpo"):
        train_drq(tmp_path)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("task=plat_slide", r"no Meta-World task named 'plat_slide'; did you mean plate-slide"),
        ("task_name=plat_slide", r"no Meta-World task named 'plat_slide'; did you mean plate-slide"),
        ("preset=cpu_mbpo", r"given as \+preset=, and there are cpu_agent, cpu_demo, cpu_mbpo"),
        ("+preset=cpu", r"given as \+preset=, and there are cpu_agent, cpu_demo, cpu_mbpo"),
        ("task=easy", "no task is given"),
        ("batch_sise=3", r"no setting named 'batch_sise'; did you mean batch_size\?"),
        ("world_model.tok_rl=3", r"did you mean world_model.tok_lr\?"),
        ("+new=3", "no setting named 'new'"),
        ("lr=abc", "lr is 'abc': it should be a number"),
        ("seed=1.5", "seed is 1.5: it should be a whole number"),
        ("demo=2", "demo is 2: it should be true or false"),
        ("agent=3", "agent is 3: it should be a group"),
        ("world_model=3", "world_model is 3: it should be a group"),
        ("world_model.batch_size=x", "world_model.batch_size is 'x': it should be a whole number"),
        ("num_seed_frames=100", r"before the first episode ends \(200 frames\)"),
        ("=5", "settings are given as key=value"),
        (f"seed={2**64}", "seed is 18446744073709551616: it must be less than 2\\^63"),
        ("replay_buffer_size=199", "less than the two episodes .200. that a world model needs"),
        ("start_mbpo=100", "start_mbpo is 100, before the first episode ends"),
        ("gen_horizon=5", r"must be gen_horizon \+ world_model.context_length, which is 5 \+ 2"),
        ("world_model.action_dim=5", "world_model.action_dim is 5: Meta-World's actions have 4"),
        ("update_tokenizer_every_step=35", r"give a multiple of 10 \(update_gen_every_step\)"),
        ("action_repeat=3", r"update_tokenizer_every_step is 40: .* both in multiples of action_repeat \(3\)"),
        ("lpips_path=nowhere", "lpips_path is nowhere: no such folder"),
        ("camera=nowhere", "there are corner"),
        ("agent.beta=1", "agent.beta"),
        ("--multirun", "given as key=value"),
        ("--config-path=cfgs", r"--config-path=cfgs: .* of hydra's flags there are --multirun \(-m\)"),
        ("hydra.run.dir=here", "hydra.run.dir=here: hydra only puts the settings together here.*run_dir="),
        ("+hydra.job.chdir=true", "hydra only puts the settings together"),
        ("hydra/launcher=joblib", "hydra only puts the settings together"),
        ("agent.device=cuda", "agent.device is cuda and device is cpu: .* give device alone"),
    ],
)
def test_wrong_settings_are_one_line(override, message):
    with pytest.raises(UserError, match=message):
        parse_mbpo(["device=cpu", override])


def test_settings_that_can_do_nothing_say_so(caplog):
    parse_drq(["device=cpu", "use_tb=true"])
    assert not caplog.records
    parse_drq(["device=cpu", "replay_buffer_num_workers=2", "agent.use_tb=false"])
    assert [record.message.partition(" has no effect")[0] for record in caplog.records] == [
        "replay_buffer_num_workers",
        "agent.use_tb",
    ]


def test_defaults_are_the_same_in_code_and_files():
    """Both may be read as the paper's settings."""
    settings, _ = parse_mbpo(["device=cpu"])
    assert settings.world_model == WorldModelConfig()
    agent = dataclasses.asdict(DrQConfig())
    assert {name: getattr(settings.agent, name) for name in agent} == agent
    assert replace(settings.env, task=EnvSettings("hammer").task) == EnvSettings("hammer")


def test_without_the_optional_packages_it_is_one_line(tmp_path):
    code = (
        "import runpy, sys; sys.modules['hydra'] = None; sys.argv = ['x', 'device=cpu']; "
        f"runpy.run_path({str(ROOT / 'mbrl' / 'train_metaworld_mbpo.py')!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "error: the package hydra is not installed: pip install -e '.[mbrl]' in the project folder\n"


@pytest.mark.parametrize(("gpu", "expected"), [(True, "cuda"), (False, "cpu")])
def test_a_gpu_if_there_is_one(monkeypatch, caplog, gpu, expected):
    """Bug prevented: the first command that a user tries ends because there is no GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    settings, _ = parse_drq([])
    assert (settings.device, settings.agent.device, settings.torch_device.type) == ("auto", "auto", expected)
    assert [record.message.partition(",")[0] for record in caplog.records] == ["no GPU here: training on the CPU"] * (
        not gpu
    )


def test_a_gpu_by_its_number(monkeypatch):
    """Bug prevented: a traceback of CUDA's for a GPU that is one too many."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    settings = {name: parse_drq([f"device={name}"])[0] for name in ("cpu", "cuda", "cuda:1", "cuda:2")}
    assert [str(settings[name].torch_device) for name in ("cpu", "cuda", "cuda:1")] == ["cpu", "cuda", "cuda:1"]
    with pytest.raises(UserError, match="device=cuda:2, but the last GPU that PyTorch finds here is cuda:1"):
        _ = settings["cuda:2"].torch_device


def test_the_agent_s_device_alone_is_that_of_everything(monkeypatch, caplog):
    """Bug prevented: agent.device=cuda of a released command was refused, since device is auto here."""
    assert str(parse_drq(["agent.device=cpu"])[0].torch_device) == "cpu"
    assert not caplog.records
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert str(parse_drq(["agent.device=cuda:1"])[0].torch_device) == "cuda:1"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("cuda", "finds no GPU here: leave device out, or give device=cpu"),
        ("cuda:1", "finds no GPU here: leave device out, or give device=cpu"),
        ("nothing", "should be auto, cpu, cuda or cuda:<number>"),
        ("meta", "should be auto, cpu, cuda or cuda:<number>"),
        ("mps", "should be auto, cpu, cuda or cuda:<number>"),
        ("cuda:", "should be auto, cpu, cuda or cuda:<number>"),
    ],
)
def test_devices_that_are_not_there(tmp_path, device, message):
    with pytest.raises(UserError, match=message):
        train_drq(tmp_path / "run", f"device={device}")
    assert not (tmp_path / "run").exists()


HOLD = """
import sys, time
from pathlib import Path
from mbrl.run_folder import RunFolder, flat
with RunFolder(Path(sys.argv[1])).locked():
    print("locked", flush=True)
    time.sleep(600)
"""


def test_a_folder_is_for_one_process_at_a_time(tmp_path, cheap_runs):
    """Bug prevented: a command that is started twice, each process removing what the other has saved."""
    holder = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(
        holder, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout.readline() == b"locked\n"
            with pytest.raises(UserError, match=r"another process is running in .*: wait for it, or use another"):
                train_drq(tmp_path, "num_train_frames=12")
            assert [path.name for path in tmp_path.iterdir()] == ["lock"]
        finally:
            process.kill()
    assert train_drq(tmp_path, "num_train_frames=12") == 0
    assert train_drq(tmp_path, "num_train_frames=24") == 0


def test_two_processes_that_begin_at_once(tmp_path, cheap_runs, monkeypatch):
    """The second one has found nothing to be locked yet."""
    monkeypatch.setattr(RunFolder, "check", lambda folder, config: {})
    with pytest.raises(UserError, match="another process is running"), RunFolder(tmp_path).locked():
        train_drq(tmp_path)


def test_any_task_and_spelling():
    assert parse_drq(["task=drawer-open", "device=cpu"])[0].env.task == "drawer-open"
    settings, _ = parse_mbpo(["task=plate-slide", "device=cpu", "num_train_frames=1e5"])
    assert (settings.task_name, settings.num_train_frames) == ("plate_slide", 100_000)
    assert str(settings.run_dir) == "log_mbrl/mbpo/plate_slide-seed1"
    settings, _ = parse_drq(["task=hard", "task_name=drawer-open", "device=cpu"])
    assert settings.task_name == "drawer_open"
    assert (settings.num_train_frames, settings.stddev_schedule) == (30_100_000, "linear(1.0,0.1,2000000)")
    settings, _ = parse_mbpo(["+preset=cpu_demo", "seed=3"])
    assert (settings.task_name, settings.device, settings.seed) == ("handle_press", "cpu", 3)


@pytest.mark.parametrize("paper_reward", [True, False])
def test_the_paper_s_reward_is_a_setting(paper_reward):
    argv = ["task=button_press_topdown_wall", "device=cpu", f"paper_reward={str(paper_reward).lower()}"]
    assert parse_mbpo(argv)[0].env.paper_reward is paper_reward
    assert parse_drq(argv[:2])[0].env.paper_reward


SHORT = words(
    "task=plate_slide device=cpu duration=5 num_seed_frames=92 num_train_frames=116 num_eval_episodes=1 batch_size=4 "
    "agent.hidden_dim=8 agent.num_expl_steps=5 replay_buffer_size=200 eval_every_frames=500"
)


SHORT_DREAMS = words(
    "+preset=cpu_mbpo start_mbpo=92 init_update_gen_steps=1 init_gen_times=1 update_gen_every_step=4 gen_horizon=3 "
    "update_tokenizer_every_step=4 gen_every_steps=20 gen_batch=2 world_model.segment_length=5 "
    "world_model.batch_size=1 save_video=true"
)


def command(*overrides: str) -> list[str]:
    return [str(ROOT / "mbrl" / "train_metaworld_drq.py"), *SHORT, *overrides]


def test_the_command_killed_and_started_again(tmp_path):
    """The real simulator, from another directory without PYTHONPATH; SIGKILL after the first snapshot."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    options = dict(cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    quiet = "use_tb=false", "save_video=false"
    with subprocess.Popen([sys.executable, *command("run_dir=killed", *quiet)], **options) as process:
        metrics = tmp_path / "killed" / "metrics.jsonl"
        while process.poll() is None and not (metrics.exists() and '"frame": 110' in metrics.read_text()):
            time.sleep(0.01)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert (tmp_path / "killed" / "latest.json").exists()
    done = run_python(*command("run_dir=killed", *quiet), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "going on from killed/snapshots/000000100" in done.stderr
    whole = build_trainer.train(*parse_drq([*SHORT, *quiet, f"run_dir={tmp_path / 'whole'}"]))
    assert whole == 0
    assert lines(tmp_path / "killed") == lines(tmp_path / "whole")
    assert {path.name for path in tmp_path.iterdir()} == {"killed", "whole"}


def test_the_command_for_several_seeds(tmp_path):
    """In processes of their own: bug prevented, a second run in what memory the first one has left."""
    overrides = ["-m", "num_train_frames=2", "seed=1,2", "run_dir=run-${seed}", "save_video=false", "use_tb=false"]
    done = run_python(*command(*overrides), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    begun = [line for line in done.stderr.splitlines() if line.startswith("run ")]
    assert begun == ["run 1 of 2: run-1", "run 2 of 2: run-2"]
    assert {path.name for path in tmp_path.iterdir()} == {"run-1", "run-2"}
    assert [json.loads((tmp_path / f"run-{n}" / "run.json").read_text())["settings"]["seed"] for n in (1, 2)] == [1, 2]


def test_the_command_of_mbpo(tmp_path):
    """The real simulator, the bundled world model, demonstrations made by the recorder: all that a run consists of."""
    script = str(ROOT / "mbrl" / "train_metaworld_mbpo.py")
    overrides = [*SHORT_DREAMS, *SHORT, "demo=true", "demo_path_prefix=demos", "duration=50", "run_dir=run"]
    done = run_python(script, *overrides, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [line["frame"] for line in lines(tmp_path / "run", "world_model")] == [92]
    (episode,) = lines(tmp_path / "run", "train")
    assert {"critic_loss", "tokenizer_recon", "transformer_reward", "imagined_reward"} <= episode.keys()
    assert (tmp_path / "run" / "videos" / "imagined" / "000000092-random.gif").stat().st_size > 1000
    assert len(list((tmp_path / "demos" / "plate-slide").glob("*.npz"))) == 5

    export_world_model.main([str(tmp_path / "run"), "--output", str(tmp_path / "model")])
    state = saved_state(RunFolder(tmp_path / "run"))["parts"]["world_model"]
    model = ivideogpt.world_model.WorldModel.from_pretrained(tmp_path / "model")
    assert_equal_tensors(model.transformer.state_dict(), state["transformer"])
    assert_equal_tensors(model.tokenizer.state_dict(), state["tokenizer"])
    assert (model.metadata.reward_prediction, model.metadata.symlog, model.metadata.generation.top_k) == (True, True, 1)


def assert_equal_tensors(actual, expected):
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


def test_what_cannot_be_exported(tmp_path, cheap_runs):
    with pytest.raises(UserError, match=r"run\.json is missing; name the folder of a run"):
        export_world_model.main([str(tmp_path), "--output", str(tmp_path / "model")])
    train_drq(tmp_path / "drq", "num_train_frames=24")
    with pytest.raises(UserError, match="is a run of DrQ-v2, which has no world model"):
        export_world_model.main([str(tmp_path / "drq"), "--output", str(tmp_path / "model")])
    train_mbpo(tmp_path / "mbpo", "num_train_frames=24", "save_snapshot=false")
    with pytest.raises(UserError, match="was never saved"):
        export_world_model.main([str(tmp_path / "mbpo"), "--output", str(tmp_path / "model")])
    assert not (tmp_path / "model").exists()


def test_errors_of_the_command_are_one_line_and_leave_nothing(tmp_path):
    done = run_python(*command("batch_sise=3"), cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "error: no setting named 'batch_sise'; did you mean batch_size?\n"
    assert not list(tmp_path.iterdir())


def test_a_damaged_snapshot_gives_a_line_and_the_one_before(tmp_path, cheap_runs, caplog):
    """A power failure's last snapshot stopped every resumption, as the one before had been removed."""
    train_drq(tmp_path / "whole", "num_train_frames=72")
    with caplog.at_level("INFO"):
        train_drq(tmp_path / "run", "num_train_frames=60")
        before, last = sorted((tmp_path / "run" / "snapshots").iterdir())
        (last / "environment.npz").write_bytes(b"")
        assert train_drq(tmp_path / "run", "num_train_frames=72") == 0
    told = f"{last} is left out, as it is damaged: environment.npz has 0 bytes"
    assert caplog.text.count(told) == 1  # it is read once
    assert f"going on from {before}" in caplog.text
    assert lines(tmp_path / "run") == lines(tmp_path / "whole")
    snapshots = sorted((tmp_path / "run" / "snapshots").iterdir())
    assert len(snapshots) == 2
    for path in snapshots:
        (path / "state.pt").unlink()
    with pytest.raises(UserError, match="all of its checkpoints are damaged"):
        train_drq(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "snapshots")
    with pytest.raises(UserError, match="names a snapshot that is not there"):
        train_drq(tmp_path / "run")


def test_a_tracker_that_fails_does_not_end_a_run(tmp_path, cheap_runs, monkeypatch, caplog):
    """All that it is told is in metrics.jsonl, too."""

    def refuse(*_):
        raise OSError("no room for the tracker")

    for name in ("log", "close"):
        monkeypatch.setattr(build_trainer.TensorBoard, name, refuse)
    assert train_drq(tmp_path, "use_tb=true", "num_train_frames=24") == 0
    assert caplog.messages.count("no room for the tracker; going on without") > len(lines(tmp_path)) > 1


def test_a_saved_frame_is_not_saved_again(tmp_path, cheap_runs, monkeypatch):
    """But once if it is evaluated after that: the evaluation was made again at each start."""
    end = "num_train_frames=120", "eval_every_frames=60"  # which is saved after ten episodes, too
    train_drq(tmp_path, *end)
    assert saved_state(RunFolder(tmp_path))["parts"]["progress"]["evaluated"] == 60
    assert [path.name for path in sorted((tmp_path / "snapshots").iterdir())] == ["000000096", "000000120"]
    monkeypatch.setattr(Snapshots, "_write", None)
    assert train_drq(tmp_path, *end) == 0
