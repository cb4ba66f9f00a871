"""Demonstrations as files: what is refused, what is recorded on first use, and whether replaying notices mistakes."""

from __future__ import annotations

import logging
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ivideogpt.errors import UserError
from mbrl.envs.env_settings import EnvSettings
from mbrl.replay import demonstrations
from mbrl.replay.demonstrations import (
    Demonstration,
    ensure_demonstrations,
    load_demonstrations,
    recording_command,
)
from mbrl.replay.episodes import ReplayEpisode
from mbrl.tools import check_demonstrations
from mbrl.tools.check_demonstrations import replay
from tests.commands import run_python

ROOT = Path(__file__).resolve().parents[3]
SETTINGS = EnvSettings("handle_press", image_size=16, duration=30)  # a task that is done in few steps
LENGTH = 4


def arrays(**changes) -> dict[str, np.ndarray]:
    """As published: the four keys alone."""
    rng = np.random.default_rng(0)
    plain = {
        "observation": rng.integers(0, 256, (LENGTH + 1, 9, 16, 16), dtype=np.uint8),
        "action": rng.uniform(-1, 1, (LENGTH + 1, 4)).astype(np.float32),
        "reward": rng.uniform(0, 20, (LENGTH + 1, 1)).astype(np.float32),
        "discount": np.ones((LENGTH + 1, 1), np.float32),
    }
    return {**plain, **changes}


@pytest.fixture
def prefix(tmp_path):
    """A function that writes a demonstration and returns the folder of the tasks."""

    def write(number=0, **changes):
        (tmp_path / "handle-press").mkdir(exist_ok=True)
        np.savez(tmp_path / "handle-press" / f"20260101T000000_{number}_{LENGTH}.npz", **arrays(**changes))
        return tmp_path

    return write


@pytest.fixture(scope="module")
def recorded(tmp_path_factory, renders):
    """Two demonstrations, recorded on first use."""
    prefix = tmp_path_factory.mktemp("demonstrations") / "not there yet"
    ensure_demonstrations(prefix, SETTINGS, num=2)
    return prefix


def test_published_files_load_in_the_order_of_their_names(prefix):
    prefix(number=1, reward=np.full((LENGTH + 1, 1), 2.0))
    folder = prefix(number=0, reward=np.full((LENGTH + 1, 1), 1.0))
    episodes = load_demonstrations(folder, SETTINGS)
    assert [episode.reward[0] for episode in episodes] == [1, 2]
    plain = arrays()
    assert episodes[0].num_steps == LENGTH
    np.testing.assert_array_equal(episodes[0].frames, plain["observation"][:, 6:])
    np.testing.assert_array_equal(episodes[0].action, plain["action"])


def test_actions_are_clipped_and_one_line_says_so(prefix, caplog):
    action = arrays()["action"]
    action[2, 1], action[3, 0] = 24.8, -1.5
    folder = prefix(action=action)
    with caplog.at_level(logging.INFO):
        episode = load_demonstrations(folder, SETTINGS)[0]
    np.testing.assert_array_equal(episode.action, np.clip(action, -1, 1))
    assert [record.message.split(": ")[1] for record in caplog.records] == [
        "2 of 20 values of actions clipped to [-1, 1], up to 24.8"
    ]


def test_none_at_all_names_the_command_that_records_them(tmp_path):
    with pytest.raises(UserError) as caught:
        load_demonstrations(tmp_path / "my demos", replace(SETTINGS, camera="corner2"))
    assert str(caught.value).endswith(
        f"record some: python datasets/record_metaworld.py --tasks handle-press --output_path '{tmp_path}/my demos' "
        "--num_episodes 5 --demo --compress --image_size 16 --camera corner2 --episode_length 30"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"observation": np.zeros((LENGTH + 1, 9, 8, 8), np.uint8)}, "image_size 8, this run has 16"),
        ({"observation": np.zeros((LENGTH + 1, 9, 8, 16), np.uint8)}, "8x16 pixels, expected square"),
        ({"observation": np.zeros((LENGTH + 1, 12, 16, 16), np.uint8)}, "frame_stack 4, this run has 3"),
        ({"action": np.zeros((LENGTH + 1, 7), np.float32)}, "actions have 7 dimensions"),
        ({"task": np.array("hammer")}, "task hammer, this run has handle-press"),
        ({"camera": np.array("topview")}, "camera topview, this run has corner"),
        ({"duration": np.array(50)}, "duration 50, this run has 30: change the run, or name another demo_path_prefix"),
        ({"paper_reward": np.array(False)}, "paper_reward False, this run has True"),
        ({"success_bonus": np.array(0.0)}, r"success_bonus 0.0, this run has 10.0"),
        ({"reward": np.full((LENGTH + 1, 1), np.nan)}, "reward holds NaN"),
        ({"discount": np.ones((LENGTH, 1))}, "do not go with 5 observations"),
    ],
)
def test_what_does_not_fit_is_refused(prefix, changes, message):
    with pytest.raises(UserError, match=message) as caught:
        load_demonstrations(prefix(**changes), SETTINGS)
    assert "20260101T000000_0_4.npz" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 cut short"])
def test_a_damaged_file_is_named(prefix, content):
    folder = prefix()
    (folder / "handle-press" / "damaged.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"damaged\.npz: truncated or not an npz"):
        load_demonstrations(folder, SETTINGS)


def test_recording_on_first_use(recorded, caplog):
    folder = recorded / "handle-press"
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    with caplog.at_level(logging.INFO):
        ensure_demonstrations(recorded, SETTINGS, num=5)
    assert not caplog.records
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert [path.name for path in recorded.iterdir()] == ["handle-press"]
    episodes = load_demonstrations(recorded, SETTINGS)
    assert [episode.num_steps for episode in episodes] == [30, 30]
    assert all(episode.reward.max() > SETTINGS.success_bonus for episode in episodes)


def test_an_interrupted_recording_leaves_nothing(tmp_path, monkeypatch):
    """Bug prevented: a run that goes on with two demonstrations of five, as the folder is there already."""

    def interrupted(command, **options):
        prefix = Path(command[command.index("--output_path") + 1])
        (prefix / "handle-press").mkdir()
        np.savez(prefix / "handle-press" / "first.npz", **arrays())
        raise KeyboardInterrupt

    monkeypatch.setattr(demonstrations.subprocess, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ensure_demonstrations(tmp_path, SETTINGS)
    assert not list(tmp_path.iterdir())


def test_two_runs_that_record_at_once_share_the_first_ones(tmp_path, monkeypatch):
    def record(command, **options):
        prefix = Path(command[command.index("--output_path") + 1])
        for place, name in ((prefix, "ours.npz"), (tmp_path, "theirs.npz")):
            (place / "handle-press").mkdir()
            np.savez(place / "handle-press" / name, **arrays())
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(demonstrations.subprocess, "run", record)
    ensure_demonstrations(tmp_path, SETTINGS)
    assert [path.name for path in tmp_path.rglob("*.npz")] == ["theirs.npz"]


def test_a_recording_that_fails_says_why(tmp_path):
    message = r"recording demonstrations failed: argument --camera: invalid choice: 'corner9' .*; by hand: python data"
    with pytest.raises(UserError, match=message):
        ensure_demonstrations(tmp_path, replace(SETTINGS, camera="corner9"))
    assert not list(tmp_path.iterdir())


def test_replaying_earns_the_same_rewards(recorded):
    """Bug prevented: seeds, actions or rewards a row off. The wrong seed and a changed action must be noticed."""
    demonstration = Demonstration.from_file(min((recorded / "handle-press").iterdir()))
    assert replay(demonstration, SETTINGS) == (0, 0)
    action = demonstration.episode.action.copy()
    action[10] *= -1
    error, num_frames = replay(replace(demonstration, episode=replace(demonstration.episode, action=action)), SETTINGS)
    assert error > check_demonstrations.TOLERANCE
    assert 0 < num_frames <= 21


def test_the_check_as_a_command(recorded, tmp_path):
    script = ROOT / "mbrl" / "tools" / "check_demonstrations.py"
    done = run_python(script, recorded, "--tasks", "handle_press", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("rewards differ by 0 at most, 0 frames differ\n") == 2


def test_the_check_tells_of_wrong_ones(recorded, tmp_path, capsys):
    demonstration = Demonstration.from_file(min((recorded / "handle-press").iterdir()))
    (tmp_path / "handle-press").mkdir()
    np.savez(tmp_path / "handle-press" / "changed.npz", **replace(demonstration, seed=0).arrays())
    with pytest.raises(UserError, match="1 of 1 demonstrations do not earn their rewards again"):
        check_demonstrations.main([str(tmp_path)])
    assert "changed.npz: rewards differ by" in capsys.readouterr().out


def test_what_cannot_be_checked_is_an_error(prefix):
    with pytest.raises(UserError, match=r"_4\.npz holds no seed"):
        check_demonstrations.main([str(prefix())])
    with pytest.raises(UserError, match="no demonstrations in"):
        check_demonstrations.main([str(prefix()), "--tasks", "hammer"])


def test_arrays_are_what_was_read(prefix):
    path = next((prefix() / "handle-press").iterdir())
    episode = ReplayEpisode.from_file(path)
    np.savez(path.with_name("again.npz"), **episode.arrays())
    again = ReplayEpisode.from_file(path.with_name("again.npz"))
    for name, array in vars(again).items():
        np.testing.assert_array_equal(array, getattr(episode, name))


def test_recorded_as_the_run_wants_them(recorded, tmp_path):
    """Bug prevented: demonstrations with a bonus, stack or length of the recorder's own."""
    settings = replace(SETTINGS, frame_stack=4, success_bonus=0.5, duration=25)
    ensure_demonstrations(tmp_path, settings, num=1)
    (episode,) = load_demonstrations(tmp_path, settings)
    assert (len(episode.earlier), episode.num_steps) == (3, 25)
    usual = load_demonstrations(recorded, SETTINGS)[0].reward[:26]  # of the same seed
    succeeded = usual > SETTINGS.success_bonus
    assert succeeded.any()
    np.testing.assert_allclose(episode.reward, usual - 9.5 * succeeded, atol=1e-5)
    with pytest.raises(UserError, match=r"duration 25, this run has 30"):
        load_demonstrations(tmp_path, replace(settings, duration=30))


def test_the_usual_settings_need_no_flags():
    assert recording_command(Path("demos"), EnvSettings("hammer"))[-1] == "--compress"


def test_the_reward_of_the_simulator_is_a_flag():
    settings = EnvSettings("button-press-topdown-wall", paper_reward=False)
    assert recording_command(Path("demos"), settings)[-2:] == ["--compress", "--no-paper_reward"]
