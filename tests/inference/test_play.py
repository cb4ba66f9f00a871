"""The command, and the real simulator in a game."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from inference import play, playing
from ivideogpt.errors import UserError, cli
from ivideogpt.flags import parse
from ivideogpt.paths import BUNDLED_MODEL
from ivideogpt.play.autopilots import autopilot_action
from ivideogpt.play.game import Game
from ivideogpt.web import WebArgs, open_socket
from mbrl.envs.env_settings import PAPER_TASKS
from mbrl.envs.metaworld_env import MetaWorldEnv
from tests.data.synthetic import write_episode
from tests.play.worlds import model

SCRIPT = Path(play.__file__)


@pytest.fixture(scope="module")
def game(renders):
    from inference.simulator import Simulators

    simulators = Simulators(model().metadata)
    choice = simulators.choice("plate-slide")
    yield Game(model(), {choice.key: choice})
    simulators.close()


def test_the_simulator_goes_back_with_the_dream(game):
    """A simulator that stayed in the future would be compared with another past."""
    game.reset("task:plate-slide", 5)
    scripted = []
    for _ in range(3):
        scripted.append(autopilot_action(game, "scripted"))
        game.step(scripted[-1])
    before = game.real_frames(3)
    assert before.shape == (5, 64, 64, 3)
    game.seek(1)
    game.step(-scripted[1])
    assert not np.array_equal(game.now.real.frame, before[3])
    game.seek(1)
    assert np.array_equal(autopilot_action(game, "scripted"), scripted[1])
    for action in scripted[1:]:
        game.step(action)
    assert np.array_equal(game.real_frames(3), before)
    env = MetaWorldEnv("plate-slide")
    frames = [env.reset(seed=5)[0], *(env.step(action)[0] for action in (np.zeros(4, np.float32), *scripted))]
    env.close()
    assert np.array_equal(frames, before)
    game.reset("task:plate-slide", 5)
    assert np.array_equal(game.now.real.frame, before[1])
    game.close()


def test_the_command_says_its_address_and_ends_with_ctrl_c(robots_model):
    """A server that leaves a traceback, or a thread that goes on, at the usual way to end it."""
    flags = ["--pretrained_model_name_or_path", robots_model, "--action_space", "arm", "--port", "0"]
    command = [sys.executable, str(SCRIPT), *map(str, flags)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        line = server.stdout.readline()
        server.send_signal(signal.SIGINT)
        rest, errors = server.communicate(timeout=60)
    assert line.startswith("play: http://127.0.0.1:"), errors
    assert (rest, errors, server.returncode) == ("", "stopped\n", 0)


def test_what_the_page_offers(tiny_world_model, monkeypatch):
    """Without a simulator, or for another robot, there is the dream alone, and the page says why."""
    served = []
    monkeypatch.setattr(playing, "PlayServer", lambda *args: served.append(args) or SimpleNamespace(app=None))
    monkeypatch.setattr(playing, "serve", lambda *args: None)

    def offered(*flags: str, has_simulator: bool = True) -> tuple[list[str], str]:
        args = parse(play.PlayArgs, ["--pretrained_model_name_or_path", str(tiny_world_model), *flags])
        playing.run(args, None, has_simulator)
        _, _, choices, _, note, _ = served[-1]
        return [choice.title for choice in choices], note

    bundled = ["drawer-open", "hammer", "plate-slide", "push"]
    assert offered() == ([*PAPER_TASKS, *bundled], playing.UNNAMED_ROBOT)  # it has 4 actions, whoever's they are
    assert offered("--pretrained_model_name_or_path", str(BUNDLED_MODEL)) == ([*PAPER_TASKS, *bundled], "")
    assert offered(has_simulator=False) == (bundled, playing.NO_SIMULATOR)
    assert offered("--task", "push_back", "--dataset_path", "inference/samples/push.npz") == (["push-back", "push"], "")
    assert offered("--dataset_path", "inference/samples/push.npz")[0] == ["push", *PAPER_TASKS]
    monkeypatch.setattr(playing, "ACTION_DIM", 7)
    assert offered("--dataset_path", "inference/samples") == (bundled, playing.OTHER_ROBOT)
    with pytest.raises(UserError, match="takes actions of 4 numbers, the bundled episodes have 7: give --dataset_path"):
        offered()
    with pytest.raises(UserError, match="leave it out"):
        offered("--task", "hammer")


def test_a_robot_of_several_can_be_driven(robots_model, tmp_path, monkeypatch):
    """Nobody had tried: a page without starts, or one that takes the actions of another robot."""
    served = []
    monkeypatch.setattr(playing, "PlayServer", lambda *args: served.append(args) or SimpleNamespace(app=None))
    monkeypatch.setattr(playing, "serve", lambda *args: None)
    write_episode(tmp_path / "0.npz", 4, image=np.zeros((4, 64, 64, 3), np.uint8), action=np.ones((4, 3), np.float32))
    flags = ["--pretrained_model_name_or_path", str(robots_model), "--action_space", "hand", "--device", "cpu"]
    playing.run(parse(play.PlayArgs, [*flags, "--dataset_path", str(tmp_path)]), None, True)
    hand, _, choices, *_ = served[-1]
    game = Game(hand, {choice.key: choice for choice in choices})
    game.reset(choices[0].key, 1)
    for name in ("recorded", "random", "mppi"):
        game.step(autopilot_action(game, name))
    assert game.moments[1].action.tolist() == [1, 1, 1]
    assert game.now.action.shape == (3,)
    assert len(choices) == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dataset_path", "nowhere"], "--dataset_path nowhere: no such file"),
        (["--agent", "nowhere"], "--agent nowhere: no such folder"),
        (["--max_sessions", "0"], "must be at least 1"),
        (["--host", "nowhere.invalid"], "cannot serve on nowhere.invalid"),
        (["--port", "{taken}"], "in use"),
    ],
)
def test_wrong_flags_are_one_line_before_a_model_is_loaded(flags, message, capsys):
    """Loading takes seconds, and a traceback says little."""
    with open_socket(WebArgs(port=0)) as taken:
        argv = [flag.format(taken=taken.getsockname()[1]) for flag in flags]
        with pytest.raises(SystemExit):
            cli(lambda: play.main(argv))
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
