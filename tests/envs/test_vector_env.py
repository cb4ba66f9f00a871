"""The vector environment beside gymnasium's own one of single environments, and what only it has."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics

from ivideogpt.envs import WorldModelEnv, WorldModelVectorEnv
from ivideogpt.envs.imagination import Imagination
from ivideogpt.errors import UserError
from tests.envs.conftest import BRIGHT, HORIZON, actions, brightness
from tests.parity.networks import world_model

NUM_ENVS = 2


@pytest.mark.parametrize(("mode", "key"), [*zip(AutoresetMode, (None, "pixels", None))])
def test_it_does_what_gymnasium_does_with_single_environments(envs, single, mode, key):
    """Rows that end at different times: a reset too late or too early, or infos in a form of our own."""
    settings = dict(BRIGHT, observation_key=key)
    ours = envs(NUM_ENVS, autoreset_mode=mode, **settings)
    theirs = SyncVectorEnv([lambda: single(**settings)] * NUM_ENVS, autoreset_mode=mode)
    assert ours.metadata["autoreset_mode"] is theirs.metadata["autoreset_mode"]
    assert ours.observation_space == theirs.observation_space
    assert ours.action_space == theirs.action_space
    expect_same(ours.reset(seed=5), theirs.reset(seed=5))
    ends = []
    for step_actions in actions(ours):
        answer = ours.step(step_actions)
        expect_same(answer, theirs.step(step_actions))
        assert answer[0] in ours.observation_space
        ended = answer[2] | answer[3]
        ends.append(ended)
        if mode is AutoresetMode.DISABLED and ended.any():
            expect_same(*(env.reset(options={"reset_mask": ended.copy()}) for env in (ours, theirs)))
    assert len({tuple(ended) for ended in ends}) > 2  # rows did not end together


@pytest.mark.parametrize("mode", AutoresetMode)
def test_episodes_of_a_model_that_samples(sampling_model, frames, mode):
    """They depended on the steps of all rows, and in DISABLED on seeds of earlier episodes: no seed gave one again."""
    settings = dict(BRIGHT, reward=brightness, horizon=HORIZON)
    env = WorldModelVectorEnv(sampling_model, frames, NUM_ENVS, autoreset_mode=mode, **settings)
    theirs = SyncVectorEnv([lambda: WorldModelEnv(sampling_model, frames, **settings)] * NUM_ENVS, autoreset_mode=mode)
    expect_same(env.reset(seed=5), theirs.reset(seed=5))
    for number, step_actions in enumerate(actions(env)):
        answer = env.step(step_actions)
        expect_same(answer, theirs.step(step_actions))
        ended = answer[2] | answer[3]
        if mode is AutoresetMode.DISABLED and ended.any():
            options = {"seed": number, "options": {"reset_mask": ended.copy()}}
            expect_same(*(each.reset(**options) for each in (env, theirs)))


def expect_same(ours: Any, theirs: Any) -> None:
    """Compare what a reset or a step returns; a batch of another size may round the last bit of a frame otherwise."""
    assert type(ours) is type(theirs)
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        ours, theirs = tuple(ours.values()), tuple(theirs[key] for key in ours)
    if ours is None:
        return
    if isinstance(ours, tuple) or ours.dtype == object:
        for mine, other in zip(ours, theirs, strict=True):
            expect_same(mine, other)
    elif isinstance(ours, np.ndarray):
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        tolerance = 1 if ours.dtype == np.uint8 else 1e-3
        error = np.abs(ours.astype(float) - theirs.astype(float)).max()
        assert error <= tolerance


def test_a_row_does_not_depend_on_the_others(envs):
    """One generator for all rows would change an episode when another row ends earlier."""
    env, alone = envs(2, **BRIGHT), envs(1, **BRIGHT)
    env.reset(seed=[7, 8])
    alone.reset(seed=8)
    for step_actions in actions(env):
        both, one = env.step(step_actions), alone.step(step_actions[1:])
        expect_same(*(tuple(values[row : row + 1] for values in answer[:4]) for row, answer in ((1, both), (0, one))))


def test_seeds(envs):
    """A second reset with the seed must repeat everything; one without must not; a list must reach its rows."""
    env = envs(3)
    first, _ = env.reset(seed=3)
    further, _ = env.reset()
    np.testing.assert_array_equal(env.reset(seed=3)[0], first)
    np.testing.assert_array_equal(env.reset()[0], further)
    np.testing.assert_array_equal(env.reset(seed=[5, 4, 3])[0][2], first[0])
    assert not np.array_equal(first, further)
    with pytest.raises(UserError, match="2 seeds were given for 3 rows"):
        env.reset(seed=[1, 2])


def test_stacks_hold_the_last_frames_oldest_first(envs):
    """In the wrong order an agent would see all movement backwards."""
    env = envs(2, frame_stack=3, render_mode="rgb_array")
    observation, _ = env.reset(seed=0)
    for step_actions in actions(env)[:HORIZON]:
        before, (observation, *_) = observation, env.step(step_actions)
        np.testing.assert_array_equal(observation[..., :6], before[..., 3:])
        np.testing.assert_array_equal(observation[..., 6:], env.render())


def test_a_buffer_of_starts_may_be_filled_again(rewarding_model, frames):
    """Bug prevented: the stack was a view of the caller's tensor, and its next frames became the agent's past."""
    starts = torch.from_numpy(frames).permute(0, 1, 4, 2, 3).clone()
    imagination = Imagination(rewarding_model, starts, num_stacked=3, seed=0)
    before = imagination.stacks.clone()
    starts.zero_()
    imagination.step(torch.zeros(len(starts), 4))
    assert torch.equal(imagination.stacks[:, :2], before[:, 1:])


def test_contexts_of_the_callers_choice(envs, frames):
    """A dream beside a simulator begins with the simulator's own frames."""
    env = envs(2, autoreset_mode=AutoresetMode.DISABLED, render_mode="rgb_array")
    observation, _ = env.reset(options={"contexts": frames[3:]})
    np.testing.assert_array_equal(observation, frames[3:, -1])
    options = {"contexts": frames[:1], "reset_mask": np.array([False, True])}
    np.testing.assert_array_equal(env.reset(options=options)[0], frames[[3, 0], -1])
    np.testing.assert_array_equal(env.render(), frames[[3, 0], -1])
    with pytest.raises(UserError, match="1 contexts were given for 2 rows"):
        env.reset(options={"contexts": frames[:1]})


def test_success_ends_an_episode_if_asked_for(envs, rewarding_model):
    """Without is_success in final_info, LeRobot's evaluation fails; ended by a success, agents may avoid it."""
    threshold = 0.0  # of the model's head: every step is a success
    ending = envs(2, success_threshold=threshold, autoreset_mode=AutoresetMode.SAME_STEP)
    ending.reset(seed=0)
    _, _, terminations, truncations, infos = ending.step(actions(ending)[0])
    assert terminations.all()
    assert not truncations.any()
    assert infos["final_info"]["is_success"].all()
    going_on = envs(2, success_threshold=threshold, ignore_terminations=True)
    going_on.reset(seed=0)
    for step_actions in actions(going_on)[:HORIZON]:
        _, _, terminations, truncations, infos = going_on.step(step_actions)
        assert not terminations.any()
        assert infos["is_success"].all()
    assert truncations.all()


def test_rewards_of_a_function(envs):
    """A model without a reward head; the function sees the frames of the step, in [0, 1]."""
    env = envs(2, reward=brightness)
    env.reset(seed=0)
    observation, rewards, *_ = env.step(actions(env)[0])
    np.testing.assert_allclose(rewards, observation.mean((1, 2, 3)) / 255, atol=1e-3)
    wrong = envs(2, reward=torch.mean)
    wrong.reset(seed=0)
    with pytest.raises(UserError, match=r"reward= returned a tensor of shape \(\), expected .* \(2,\)"):
        wrong.step(actions(env)[0])


def test_what_cannot_be_an_environment(envs, frames):
    """Each would fail in the first step, or worse, go on without a meaning."""
    with pytest.raises(UserError, match="no reward head: give reward="):
        WorldModelVectorEnv(world_model(2, 4), frames)
    with pytest.raises(UserError, match="action-free"):
        WorldModelVectorEnv(world_model(2), frames, reward=brightness)
    with pytest.raises(UserError, match="contexts of 1 frames were given, at least 2"):
        WorldModelVectorEnv(world_model(2, 4), frames[:, :1], reward=brightness)
    with pytest.raises(UserError, match=r"contexts are float64 .* expected an array of uint8"):
        WorldModelVectorEnv(world_model(2, 4), frames / 255, reward=brightness)
    for listed in (list(frames), torch.from_numpy(frames)):
        with pytest.raises(UserError, match=r"contexts are (list|torch.uint8) of shape .*, expected an array"):
            WorldModelVectorEnv(world_model(2, 4), listed, reward=brightness)
    with pytest.raises(UserError, match="a seed is -1, must be a whole number, at least 0"):
        envs(2).reset(seed=-1)
    for settings, message in (
        ({"horizon": 0}, "horizon is 0"),
        ({"horizon": 2.5}, "horizon is 2.5, must be a whole number"),
        ({"success_threshold": math.nan}, "success_threshold is nan"),
        ({"action_bounds": (1, -1)}, "action_bounds are .1, -1., must be two numbers"),
        ({"action_bounds": 1.0}, "action_bounds are 1.0, must be two numbers"),
        ({"autoreset_mode": "Sometimes"}, "autoreset_mode is 'Sometimes', must be one of NextStep, SameStep, Disabled"),
    ):
        with pytest.raises(UserError, match=message):
            envs(2, **settings)
    for seed in (1.5, [0, "1"]):
        with pytest.raises(UserError, match="must be a whole number"):
            envs(2).reset(seed=seed)
    assert envs(2, autoreset_mode="SameStep").metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    env = envs(2, autoreset_mode=AutoresetMode.DISABLED, horizon=1)
    with pytest.raises(UserError, match="no episode has begun"):
        env.step(actions(env)[0])
    env.reset()
    with pytest.raises(UserError, match=r"actions have shape \(2, 3\), expected \(2, 4\)"):
        env.step(actions(env)[0, :, :3])
    env.step(actions(env)[0])
    with pytest.raises(UserError, match=r"rows \[0, 1\] have ended"):
        env.step(actions(env)[0])
    with pytest.raises(UserError, match="reset_mask is"):
        env.reset(options={"reset_mask": [True, False]})


def test_a_model_that_gives_no_numbers_is_noticed(frames):
    """As 8-bit pixels NaN would be black, and train an agent."""
    model = world_model(2, 4, reward_prediction=True)
    with torch.no_grad():
        model.tokenizer.cond_decoder.conv_out.bias.fill_(torch.nan)
    env = WorldModelVectorEnv(model, frames)
    env.reset(seed=0)
    with pytest.raises(FloatingPointError, match="NaN or infinity"):
        env.step(np.zeros((1, 4)))


def test_a_success_head_that_gives_no_numbers_is_noticed(frames):
    """NaN is below any threshold: an agent would never have succeeded."""
    model = world_model(2, 4, reward_prediction=True, success_prediction=True)
    with torch.no_grad():
        model.success_head.bias.fill_(torch.nan)
    env = WorldModelVectorEnv(model, frames)
    env.reset(seed=0)
    with pytest.raises(UserError, match="expected finite frames, rewards and successes"):
        env.step(np.zeros((1, 4)))


def test_gymnasiums_wrappers_fit(envs):
    """Statistics of episodes are what every trainer wraps around its environments."""
    env = RecordEpisodeStatistics(envs(2))
    env.reset(seed=0)
    rewards = []
    for step_actions in actions(env)[:HORIZON]:
        _, reward, *_, infos = env.step(step_actions)
        rewards.append(reward)
    np.testing.assert_allclose(infos["episode"]["r"], np.sum(rewards, axis=0), rtol=1e-6)


def test_what_lerobot_asks_for(envs):
    """Its evaluation reads the length of episodes, the task and pictures of the rows through these."""
    env = envs(2, task="push the puck", render_mode="rgb_array")
    env.reset(seed=0)
    assert env.call("_max_episode_steps") == (HORIZON, HORIZON)
    assert env.call("task_description") == ("push the puck",) * 2
    assert [row.task_description for row in env.envs] == ["push the puck"] * 2
    assert np.stack(env.call("render")).shape == (2, 64, 64, 3)
    assert env.unwrapped.metadata["render_fps"] > 0


# ---- chunks


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED])
def test_chunks(envs, mode):
    """The rest of a chunk belongs to the episode that has ended, and must not move or reward the next one."""
    num_envs = 3
    chunked, stepped = envs(num_envs, autoreset_mode=mode, **BRIGHT), envs(num_envs, **BRIGHT)
    chunked.reset(seed=5)
    stepped.reset(seed=5)
    chunk = actions(chunked)[:HORIZON]
    expected = [stepped.step(step_actions) for step_actions in chunk]
    observations, rewards, terminations, truncations, infos = chunked.chunk_step(
        torch.from_numpy(chunk).transpose(0, 1)
    )
    assert rewards.shape == terminations.shape == truncations.shape == (num_envs, HORIZON)
    ended = terminations | truncations
    assert (ended.sum(1) == 1).all()
    lengths = ended.int().argmax(1) + 1
    assert len(set(lengths.tolist())) > 1
    for row, length in enumerate(lengths.tolist()):
        for step in range(length):
            observation, reward, terminated, truncated, info = (values for values in expected[step])
            np.testing.assert_allclose(rewards[row, step], reward[row], rtol=1e-5)
            assert (terminations[row, step], truncations[row, step]) == (terminated[row], truncated[row])
            assert infos[step]["is_success"][row] == info["is_success"][row]
            if step < HORIZON - 1:
                np.testing.assert_array_equal(observations[step][row], observation[row])
        assert not rewards[row, length:].any()
        assert all(torch.equal(shown[row], observations[length - 1][row]) for shown in observations[length:-1])
    episode = infos[-1]["episode"]
    assert torch.equal(episode["length"], lengths)
    torch.testing.assert_close(episode["return"], rewards.sum(1))
    assert torch.equal(episode["success_once"], terminations.any(1))
    with pytest.raises(UserError, match=r"shape \(3, 0, 4\), expected \(3, steps, 4\)"):
        chunked.chunk_step(torch.zeros(num_envs, 0, 4))
    if mode is AutoresetMode.DISABLED:
        with pytest.raises(UserError, match="have ended"):
            chunked.chunk_step(torch.zeros(num_envs, 2, 4))
        return
    assert infos[-1]["_final_obs"].all()
    assert not torch.equal(observations[-1], infos[-1]["final_obs"])
    assert not chunked.elapsed_steps.any()
    _, rewards, *_ = chunked.chunk_step(torch.zeros(num_envs, 1, 4))
    assert rewards.all()
