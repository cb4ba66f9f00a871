"""The recorder as a command, on the real simulator, with episodes of five steps at 16 pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ivideogpt.data.clips.dataset import DataConfig
from ivideogpt.data.clips.loaders import build_loader
from ivideogpt.data.clips.segments import SegmentSpec
from ivideogpt.errors import UserError
from ivideogpt.flags import parse
from mbrl.envs.metaworld_env import MetaWorldEnv
from tests.datasets.scripts import command, load_script

LENGTH = 5
TINY = ["--episode_length", str(LENGTH), "--image_size", "16", "--seed", "7"]


recorder = load_script("record_metaworld")


def record(output, *flags):
    """The command in this process, which saves its start."""
    config = parse(recorder.RecordArgs, ["--output_path", str(output), "--num_workers", "1", *TINY, *flags])
    recorder.prepare_output(config)
    recorder.record_all(config)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.npz"))}


@pytest.fixture(scope="module")
def recording(tmp_path_factory, renders):
    """Two tasks, two episodes each, recorded by the command in two processes from another directory."""
    cwd = tmp_path_factory.mktemp("elsewhere")
    flags = ["--tasks", "door_lock", "reach-v3", "--num_episodes", 2, "--num_workers", 2, "--output_path", "out", *TINY]
    done = command(cwd, "record_metaworld", *flags)
    assert done.returncode == 0, done.stderr
    assert "4/4" in done.stderr  # the progress bar
    return cwd / "out"


def test_files_and_arrays(recording):
    assert list(contents(recording)) == [
        f"{task}/eps_{number:08d}.npz" for task in ("door-lock", "reach") for number in (0, 1)
    ]
    with np.load(recording / "reach" / "eps_00000001.npz", allow_pickle=False) as episode:
        shapes = {name: (array.shape, str(array.dtype)) for name, array in episode.items()}
        assert np.abs(episode["action"]).max() <= 1
        assert not episode["action"][-1].any()
        assert episode["reward"][-1] == 0
        assert not episode["success"][-1]
        assert np.abs(episode["action"][:-1]).min(axis=1).all()
    assert shapes == {
        "image": ((LENGTH + 1, 16, 16, 3), "uint8"),
        "action": ((LENGTH + 1, 4), "float32"),
        "reward": ((LENGTH + 1,), "float32"),
        "success": ((LENGTH + 1,), "bool"),
    }


def test_loaders_read_it(recording):
    wanted = dict(load_action=True, load_reward=True, load_success=True)
    batch = next(iter(build_loader(DataConfig(str(recording), "folder:*", SegmentSpec(length=3), **wanted)))).to("cpu")
    assert (batch.frames.shape[1:3], batch.actions.shape[1:]) == ((3, 3), (3, 4))
    assert batch.rewards.shape == batch.successes.shape == batch.actions.shape[:2]


def test_actions_are_taken_at_their_image_and_rewards_are_what_they_earned(recording):
    """Bug prevented: actions or rewards off by one row. They are replayed in a fresh environment."""
    with np.load(recording / "door-lock" / "eps_00000001.npz") as file:
        episode = dict(file)
    env = MetaWorldEnv("door-lock", image_size=16)
    env_seed = int(recorder.episode_rng(7, "door-lock", 1).integers(2**31))
    np.testing.assert_array_equal(env.reset(seed=env_seed)[0], episode["image"][0])
    for i in range(LENGTH):
        frame, reward, _, _, info = env.step(episode["action"][i])
        np.testing.assert_array_equal(frame, episode["image"][i + 1])
        assert np.float32(reward) == episode["reward"][i]
        assert info["success"] == episode["success"][i]
    env.close()


def test_bit_for_bit_whatever_the_number_of_workers_and_episodes(recording, tmp_path, monkeypatch):
    """Bug prevented: content that depends on which process recorded an episode, or on what it recorded before.

    One simulator is open at a time: each takes 130 MB, and fifty tasks would fill the memory.
    """
    close, closed = MetaWorldEnv.close, []
    monkeypatch.setattr(MetaWorldEnv, "close", lambda env: (closed.append(env.task), close(env)))
    record(tmp_path, "--tasks", "reach", "door-lock", "--num_episodes", "3")
    assert "reach" in closed
    again = contents(tmp_path)
    assert {name: again[name] for name in contents(recording)} == contents(recording)
    assert len(set(again.values())) == 6


def test_resuming_records_only_what_is_missing(recording, tmp_path):
    record(tmp_path, "--tasks", "reach", "--num_episodes", "2")
    folder = tmp_path / "reach"
    whole = contents(tmp_path)
    kept = (folder / "eps_00000000.npz").stat().st_mtime_ns
    (folder / "eps_00000001.npz").unlink()
    (folder / ".eps_00000001.npz.partial").write_bytes(b"left by a killed process")
    record(tmp_path, "--tasks", "reach", "--num_episodes", "2")
    assert contents(tmp_path) == whole
    assert (folder / "eps_00000000.npz").stat().st_mtime_ns == kept
    assert sorted(path.name for path in folder.iterdir()) == ["eps_00000000.npz", "eps_00000001.npz"]


def test_other_settings_in_the_same_folder_are_refused(recording):
    """Bug prevented: files of another seed counted as recorded, in silence."""
    before = contents(recording)
    with pytest.raises(UserError, match="seed was 7, is 8"):
        record(recording, "--tasks", "reach", "--num_episodes", "4", "--seed", "8")
    assert contents(recording) == before


def test_compressed_files_hold_the_same(recording, tmp_path):
    record(tmp_path, "--tasks", "reach", "--num_episodes", "1", "--compress")
    name = Path("reach") / "eps_00000000.npz"
    assert (tmp_path / name).stat().st_size < (recording / name).stat().st_size
    with np.load(tmp_path / name) as small, np.load(recording / name) as large:
        for key in large:
            np.testing.assert_array_equal(small[key], large[key])


def test_demonstrations_are_successful_and_numbered(recording, tmp_path):
    flags = ["--tasks", "handle-press", "--num_episodes", "2", "--episode_length", "30", "--demo"]
    record(tmp_path, *flags)
    files = sorted((tmp_path / "handle-press").iterdir())
    assert [path.stem.split("_")[1:] for path in files] == [["0", "30"], ["1", "30"]]
    for path in files:
        with np.load(path, allow_pickle=False) as replay:
            assert replay["observation"].shape == (31, 9, 16, 16)
            assert replay["reward"].max() > 10  # the success bonus
            assert (replay["task"], replay["action_repeat"], replay["camera"]) == ("handle-press", 2, "corner")
            assert (replay["duration"], replay["success_bonus"]) == (30, 10)
            assert replay["seed"] == recorder.episode_rng(7, "handle-press", int(path.stem.split("_")[1])).integers(
                2**31
            )
            assert np.abs(replay["action"]).max() <= 1
            assert not replay["action"][0].any()
    before = contents(tmp_path)
    record(tmp_path, *flags)
    assert contents(tmp_path) == before


def test_demonstrations_that_never_succeed_end_in_an_error(recording, tmp_path):
    with pytest.raises(UserError, match="reach: 0 of 1 demonstrations succeeded in 20 attempts"):
        record(tmp_path, "--tasks", "reach", "--num_episodes", "1", "--episode_length", "1", "--demo")
    assert not contents(tmp_path)


def test_defaults_of_demonstrations_have_no_noise():
    plain = parse(recorder.RecordArgs, ["--output_path", "x"]).noted
    demo = parse(recorder.RecordArgs, ["--output_path", "x", "--demo"]).noted
    assert (plain["noise"], plain["random_fraction"], plain["wander"]) == ((0.0, 0.2, 0.5, 1.0), 0.25, True)
    assert (demo["noise"], demo["random_fraction"], demo["wander"]) == ((0.0,), 0.0, False)
    chosen = parse(recorder.RecordArgs, ["--output_path", "x", "--noise", "0.1", "0.3", "--no-wander"]).noted
    assert (chosen["noise"], chosen["wander"]) == ((0.1, 0.3), False)


def test_the_reward_of_the_simulator_can_be_recorded():
    episode = parse(recorder.RecordArgs, ["--output_path", "x", "--no-paper_reward"])
    assert not episode.env("button-press-topdown-wall").paper_reward
    assert parse(recorder.RecordArgs, ["--output_path", "x"]).env("hammer").paper_reward


def test_task_groups():
    assert len(recorder.find_tasks(["all"])) == 50
    assert recorder.find_tasks(["hammer", "paper"])[0] == "hammer"
    assert len(recorder.find_tasks(["hammer", "paper"])) == 6


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tasks", "hamer"], "did you mean hammer"),
        (["--num_episodes", "0"], "--num_episodes is 0: it must be at least 1"),
        (["--noise", "0.1", "-1"], "--noise -1.0"),
        (["--noise", "nan"], "--noise is .*nan.*: expected a finite number"),
        (["--random_fraction", "1.5"], "--random_fraction is 1.5: it must be at most 1"),
        (["--camera", "corner9"], "--camera: invalid choice: 'corner9'"),
        (["--seed", "-1"], "it must be at least 0"),
        (["--frame_stack", "0", "--demo"], "--frame_stack is 0: it must be at least 1"),
        (["--succ_bonus", "nan", "--demo"], "--succ_bonus is nan: expected a finite number"),
        (["--succ_bonus", "0"], "--succ_bonus concerns demonstrations alone: add --demo"),
    ],
)
def test_bad_flags_are_named(flags, message):
    with pytest.raises(UserError, match=message):
        parse(recorder.RecordArgs, ["--output_path", "x", *flags])


def test_an_output_path_that_is_a_file_is_one_error(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(UserError, match=r"--output_path: .*out is a file, expected a folder"):
        parse(recorder.RecordArgs, ["--output_path", str(tmp_path / "out"), "--tasks", "reach"])
