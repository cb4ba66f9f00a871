"""The agent's environment, with a counting simulator where the arithmetic matters and the real one where bits do."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box
from gymnasium.utils.env_checker import check_env

from ivideogpt.errors import UserError
from mbrl.envs.agent_env import AgentEnv
from mbrl.envs.env_settings import EnvSettings, episode_seed

DURATION = 6
ACTIONS = np.random.default_rng(0).uniform(-1, 1, (DURATION, 4)).astype(np.float32)


class Counting(gymnasium.Env):
    """Frame and reward number the steps; every third one succeeds. Red is the count, green 100 more."""

    observation_space, action_space = Box(0, 255, (8, 8, 3), np.uint8), Box(-1, 1, (4,), np.float32)

    def __init__(self, ends_at: int = -1) -> None:
        self.count, self.ends_at = 0, ends_at

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        return self.frame(), {}

    def step(self, action: np.ndarray):
        self.count += 1
        success = self.count % 3 == 0
        return self.frame(), self.count + 0.5, self.count == self.ends_at, False, {"success": success}

    def snapshot(self) -> dict[str, np.ndarray]:
        return {"count": np.array(self.count)}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        self.count = int(state["count"])

    def frame(self) -> np.ndarray:
        return np.full((8, 8, 3), self.count, np.uint8) + np.array([0, 100, 0], np.uint8)


@pytest.fixture
def counting():
    return AgentEnv(Counting(), duration=4)


def finish(env, actions=ACTIONS):
    return [env.step(action) for action in actions[: env.duration - env.num_steps]]


def test_stacks_start_full_and_move_on_oldest_first(counting):
    stacks = [counting.reset(seed=0)[0]] + [step[0] for step in finish(counting)]
    assert [stack[::3, 0, 0].tolist() for stack in stacks] == [[0, 0, 0], [0, 0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 4]]
    assert stacks[4][:6, 0, 0].tolist() == [2, 102, 2, 3, 103, 3]
    assert stacks[0].shape == (9, 8, 8)
    assert all(stack.dtype == np.uint8 and stack.flags.c_contiguous for stack in stacks)


def test_steps_earn_the_bonus_and_success_does_not_end_the_episode(counting):
    counting.reset(seed=0)
    steps = finish(counting)
    assert [reward for _, reward, *_ in steps] == [1.5, 2.5, 13.5, 4.5]
    assert [info["success"] for *_, info in steps] == [False, False, True, False]
    assert [truncated for *_, truncated, _ in steps] == [False, False, False, True]
    assert not any(terminated for _, _, terminated, *_ in steps)
    assert counting.success


def test_the_episode_holds_what_was_seen_done_and_earned(counting):
    """Bug prevented: actions or rewards one row early; row i holds the action that led to frame i."""
    stacks = [counting.reset(seed=0)[0]] + [step[0] for step in finish(counting)]
    episode = counting.episode()
    np.testing.assert_array_equal(episode.stacks(), stacks)
    np.testing.assert_array_equal(episode.action, np.concatenate([np.zeros((1, 4)), ACTIONS[:4]]))
    assert episode.reward.tolist() == [0, 1.5, 2.5, 13.5, 4.5]
    assert episode.discount.tolist() == [1] * 5
    assert {array.dtype for array in (episode.action, episode.reward, episode.discount)} == {np.dtype(np.float32)}
    counting.reset(seed=1)
    counting.step(ACTIONS[0])
    np.testing.assert_array_equal(episode.stacks(), stacks)


def test_stacks_of_one_frame():
    env = AgentEnv(Counting(), frame_stack=1, duration=2)
    assert env.reset(seed=0)[0].shape == (3, 8, 8)
    finish(env)
    assert env.episode().stacks().shape == (3, 3, 8, 8)


def test_misuse_is_an_error(counting):
    with pytest.raises(AssertionError, match="reset comes first"):
        counting.step(ACTIONS[0])
    counting.reset(seed=0)
    with pytest.raises(AssertionError, match=r"not in \[-1, 1\]"):
        counting.step(np.array([0, 0, np.nan, 0]))
    with pytest.raises(AssertionError, match="0 of 4 steps are done"):
        counting.episode()
    finish(counting)
    with pytest.raises(AssertionError, match="ended after 4 steps"):
        counting.step(ACTIONS[0])


@pytest.mark.filterwarnings("ignore:.*different from the unwrapped version")
def test_gymnasium_accepts_it():
    """Bug prevented: an environment that other code for gymnasium's cannot use."""
    check_env(AgentEnv(Counting(), duration=4), skip_render_check=True)


def test_nothing_happens_after_an_end():
    """Bug prevented: steps of an environment that has terminated, as if nothing had happened; one that a snapshot
    brings back to life."""
    env, restored = AgentEnv(Counting(ends_at=2), duration=4), AgentEnv(Counting(ends_at=2), duration=4)
    env.reset(seed=0)
    steps = finish(env)
    assert [stack[-3, 0, 0] for stack, *_ in steps] == [1, 2, 2, 2]
    assert [reward for _, reward, *_ in steps] == [1.5, 2.5, 0, 0]
    assert [truncated for *_, truncated, _ in steps] == [False, False, False, True]
    env.reset(seed=1)
    finish(env, ACTIONS[:2])
    restored.restore(env.snapshot())
    assert restored.step(ACTIONS[2])[1] == 0
    env.reset(seed=2)
    assert env.step(ACTIONS[0])[1] == 1.5


def test_an_environment_that_cuts_its_episode_off_is_refused():
    """Bug prevented: a limit of steps taken for an end, after which there is no reward."""

    class Limited(Counting):
        def step(self, action: np.ndarray):
            frame, reward, _, _, info = super().step(action)
            return frame, reward, False, self.count == 2, info

    env = AgentEnv(Limited(), duration=4)
    env.reset(seed=0)
    with pytest.raises(UserError, match="cut its episode off after 2 of 4 agent steps"):
        finish(env)


def test_episode_seeds_are_a_pure_function():
    assert episode_seed(1, "train", 5) == episode_seed(1, "train", 5) == 2119006514
    seeds = [episode_seed(seed, use, i) for seed in (0, 1) for use in ("train", "eval") for i in range(50)]
    assert len(set(seeds)) == 200


def test_a_restored_environment_finishes_the_same_episode(tmp_path, renders):
    """Bug prevented: a resumed run whose first episode begins in the middle, or has another stack."""
    settings = EnvSettings("plate-slide", image_size=16, duration=DURATION)
    env, fresh = settings.make(), settings.make()
    for steps_before in (0, 1, 4):
        env.reset(seed=steps_before)
        for action in ACTIONS[:steps_before]:
            env.step(action)
        np.savez(tmp_path / "state.npz", **env.snapshot())
        with np.load(tmp_path / "state.npz", allow_pickle=False) as state:
            fresh.restore(dict(state))
        np.testing.assert_array_equal(fresh.stack, env.stack)
        for expected, step in zip(finish(env, ACTIONS[::-1]), finish(fresh, ACTIONS[::-1]), strict=True):
            np.testing.assert_array_equal(step[0], expected[0])
            assert step[1:] == expected[1:]
        for name, array in vars(env.episode()).items():
            np.testing.assert_array_equal(array, getattr(fresh.episode(), name), err_msg=name)
    env.close()
    fresh.close()
