"""The timeline of a game: what is the same after going back, what is replaced, what is known of the real world."""

from __future__ import annotations

import io
import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from ivideogpt.action_spaces import ActionSpace, ActionSpaces
from ivideogpt.data.convert.conversion import check_arrays
from ivideogpt.errors import UserError
from ivideogpt.metadata import ModelMetadata
from ivideogpt.planning import Reward, SquaredError
from ivideogpt.play import autopilots, planner, starts
from ivideogpt.play.autopilots import autopilot_action
from ivideogpt.play.game import Game, Settings
from ivideogpt.play.messages import Save, Step
from ivideogpt.play.server import advance, save
from ivideogpt.play.starts import RecordedWorld, Start, StartChoice, find_starts
from tests.parity.networks import world_model
from tests.play.worlds import ACTION_DIM, ACTIONS, CHOICES, FRAMES, FRAMES_THAT_FIT, model, new_game

SEVERAL = Settings(num_samples=3, temperature=1.0, top_k=50, rule="sample")


@pytest.fixture
def game() -> Game:
    return new_game()


def go(game: Game, *numbers: int) -> list[np.ndarray]:
    """Step under these of the recorded actions, counted from the first future frame."""
    frames = []
    for number in numbers:
        game.step(ACTIONS[1 + number % 6])
        frames.append(game.now.dream)
    return frames


def test_going_back_is_exact_and_branches_replace_what_came_after(game):
    """A cache or a random number left over from the abandoned future would show in the next one."""
    game.change(SEVERAL)
    before = go(game, 0, 1, 2)
    game.seek(1)
    assert np.array_equal(game.now.dream, before[0])
    branch = go(game, 4)
    assert len(game.moments) == 3
    assert not np.array_equal(branch[0], before[1])
    game.seek(1)
    assert all(map(np.array_equal, go(game, 1, 2), before[1:]))
    game.seek(0)
    assert all(map(np.array_equal, go(game, 0, 1, 2), before))


def test_a_model_that_gives_no_numbers_is_said_so():
    """The page showed black frames."""
    broken = world_model(action_dim=ACTION_DIM)
    with torch.no_grad():
        broken.tokenizer.cond_decoder.conv_out.bias.fill_(torch.nan)
    game = Game(broken, {choice.key: choice for choice in CHOICES})
    game.reset("episode:noise", 3)
    with pytest.raises(UserError, match="gives NaN or infinity"):
        go(game, 0)
    assert game.position == 0


def test_older_frames_than_the_context_are_read_again(game):
    """The model's positions were used up in between; its caches of then are gone, and so are the marks."""
    game.change(SEVERAL)
    go(game, *range(FRAMES_THAT_FIT + 2))
    assert [moment.mark is None for moment in game.moments] == [True] * (FRAMES_THAT_FIT + 1) + [False, False]
    game.seek(1)
    once = go(game, 1)
    game.seek(1)
    assert np.array_equal(go(game, 1)[0], once[0])
    assert once[0].shape == (3, 64, 64, 3)
    assert len({frame.tobytes() for frame in once[0]}) > 1


def test_settings_change_in_the_middle(game):
    """More futures begin at the selected one; fewer are those that were there."""
    go(game, 0)
    game.change(SEVERAL)
    game.selected = 2
    assert [len(frames) for frames in go(game, 1, 2)] == [3, 3]
    game.change(replace(SEVERAL, num_samples=1))
    selected = game.frames(2, 2)
    assert go(game, 3)[0].shape[0] == 1
    assert np.array_equal(game.frames(2, 2), selected)
    assert len(game.frames(4, 2)) == 2 + 4


def test_settings_change_at_the_start(game):
    """The frames after it were dropped at once, at any other one with the next step."""
    go(game, 0, 1)
    game.seek(0)
    game.change(SEVERAL)
    assert [len(moment.dream) for moment in game.moments] == [3, 1, 1]
    assert [len(frames) for frames in go(game, 2)] == [3]
    assert len(game.moments) == 2


def test_the_real_world_is_known_as_long_as_the_recorded_actions_are_repeated(game):
    """A recorded frame beside another action's dream would be a lie."""
    for k in (2, 3):
        game.step(autopilot_action(game, "recorded"))
        assert np.array_equal(game.now.real.frame, FRAMES[k])
    game.step(np.zeros(ACTION_DIM, np.float32))
    assert game.now.real.frame is None
    assert game.real_frames(3) is None
    assert np.array_equal(game.real_frames(2), FRAMES[:4])
    game.seek(2)
    for _ in range(3):
        game.step(autopilot_action(game, "recorded"))
    assert np.array_equal(game.real_frames(5), FRAMES)
    with pytest.raises(UserError, match="the recording has ended"):
        autopilot_action(game, "recorded")


def test_what_is_saved_is_an_episode_with_each_action_at_the_frame_it_was_taken_at(game):
    """An action that is off by one frame trains a model of another world."""
    go(game, 0, 1)
    frames, actions = game.frames(2, 0), game.actions(2)
    check_arrays({"image": frames, "action": actions})
    assert np.array_equal(frames[:2], FRAMES[:2])
    assert np.array_equal(frames[3], game.now.dream[0])
    assert np.array_equal(actions, [*ACTIONS[:3], np.zeros(ACTION_DIM)])


def test_random_actions_are_the_same_after_going_back(game):
    """A person who goes back to look again would see another ride."""
    first = autopilot_action(game, "random")
    game.step(first)
    game.seek(0)
    assert np.array_equal(autopilot_action(game, "random"), first)


@pytest.fixture
def plans(monkeypatch) -> list[tuple[bool, int]]:
    """Makes plans small, and notes for each whether it began at another, and how many of its steps were taken."""
    made, make_plan = [], planner.make_plan
    bounds = new_game().model.action_bounds
    small = replace(planner.planner(*bounds), horizon=planner.REPLAN_EVERY + 1, num_candidates=2, num_iterations=1)
    monkeypatch.setattr(planner, "planner", lambda low, high: small)

    def noted(game, previous, executed):
        made.append((previous is not None, executed))
        return make_plan(game, previous, executed)

    monkeypatch.setattr(planner, "make_plan", noted)
    return made


def test_planning_leaves_the_game_where_it_is(game, plans):
    """Candidates that step the game's own session, or take its random numbers, would show in the next frame."""
    game.change(SEVERAL)
    before = go(game, 0, 1)
    game.seek(0)
    go(game, 0)
    random_state = torch.get_rng_state()
    autopilot_action(game, "mppi")
    assert torch.equal(torch.get_rng_state(), random_state)
    assert np.array_equal(go(game, 1)[0], before[1])


def test_a_plan_is_followed_for_some_steps_and_then_improved(game, plans):
    """A plan from before another action, or for another goal, leads elsewhere; one that starts anew forgets."""
    for _ in range(planner.REPLAN_EVERY + 1):
        game.step(autopilot_action(game, "mppi"))
    assert plans == [(False, 0), (True, planner.REPLAN_EVERY)]
    last = game.plan.plan.actions.numpy()
    assert np.array_equal(game.now.action, last[0])
    assert np.array_equal(autopilot_action(game, "mppi"), last[1])
    go(game, 0)
    autopilot_action(game, "mppi")
    game.choose_goal("shown")
    autopilot_action(game, "mppi")
    game.reset("episode:noise", 3)
    autopilot_action(game, "mppi")
    game.change(replace(game.settings, num_samples=2))
    autopilot_action(game, "mppi")
    game.selected = 1
    autopilot_action(game, "mppi")
    assert plans[2:] == 5 * [(False, 0)]


def test_what_is_planned_for(game):
    """The picked frame, else the reward; a planner that has neither must say so."""
    assert isinstance(planner.objective(game), Reward)
    (dream,) = go(game, 0)
    game.choose_goal("shown")
    game.reset("episode:noise", 4)
    chosen = planner.objective(game)
    assert isinstance(chosen, SquaredError)
    assert np.allclose(255 * chosen.goal.permute(1, 2, 0), dream[0], atol=1e-3)
    game.choose_goal("end")
    assert np.array_equal(game.goal, FRAMES[-1])
    game.choose_goal("none")
    assert isinstance(planner.objective(game), Reward)
    game.model = world_model(action_dim=ACTION_DIM)
    with pytest.raises(UserError, match="the planner has no goal"):
        autopilot_action(game, "mppi")


def test_a_policy_sees_the_latest_frames_in_their_order(game):
    """Stacks that are reversed, or too short at the start, are none that it was trained on."""
    seen = []
    pilot = autopilots.policy_on_frames("Policy", lambda stacks: seen.append(stacks) or 2 * torch.ones(1, 4), 3)
    assert pilot.act(game).tolist() == [1] * ACTION_DIM
    dreams = go(game, 0, 1)
    pilot.act(game)
    for stacks, frames in zip(seen, ([*FRAMES[[0, 0, 1]]], [FRAMES[1], dreams[0][0], dreams[1][0]]), strict=True):
        assert np.array_equal(stacks.unflatten(1, (3, 3))[0].permute(0, 2, 3, 1), np.stack(frames))


def test_another_autopilot_is_a_line_of_the_table(game, monkeypatch):
    pilot = autopilots.Autopilot("Backwards", lambda game: -np.ones(game.action_dim, np.float32))
    monkeypatch.setitem(autopilots.AUTOPILOTS, "backwards", pilot)
    assert autopilot_action(game, "backwards").tolist() == [-1] * ACTION_DIM


def test_memory_of_a_game_is_bounded(game, monkeypatch):
    """A page that is left running would fill the memory of the machine."""
    monkeypatch.setattr("ivideogpt.play.game.MAX_BYTES", 4 * FRAMES[0].nbytes)
    go(game, 0, 1)
    with pytest.raises(UserError, match="this game is full \\(2 steps\\)"):
        go(game, 2)


def test_controls_reach_what_a_robot_does():
    """Keys, bars, random actions and plans in [-1, 1] were 400 standard deviations of a robot that counts in metres."""
    arm = ActionSpace("arm", ACTION_DIM, (0.5, 300.0, 0.0, -1.0), (0.25, 100.0, 0.0025, 1.0))
    spaces = ActionSpaces((arm, ActionSpace("hand", 2)))
    robots = world_model(action_dim=spaces.length, reward_prediction=True, action_spaces=spaces)
    robots.action_space = "arm"
    game = Game(robots, {choice.key: choice for choice in CHOICES})
    game.reset("episode:noise", 3)
    advance(game, Step(action=[1, -1, 0.5, 0]))
    np.testing.assert_allclose(game.now.action, [1, 100, 0.0025, -1], rtol=1e-6)
    np.testing.assert_allclose(game.to_controls(game.now.action), [1, -1, 0.5, 0], atol=1e-6)
    controls = [game.to_controls(autopilot_action(game, name)) for name in ("random", "mppi")]
    assert all(0 < np.abs(each).max() <= 1 + 1e-5 for each in controls)
    plain = new_game()
    assert np.array_equal(plain.from_controls(ACTIONS[0]), ACTIONS[0])


def test_models_without_actions_dream_by_themselves():
    """Their files have no actions: an array of width 0 is none that training knows."""
    world = RecordedWorld(FRAMES[1:], np.zeros((len(FRAMES) - 1, 0), np.float32))
    start = Start(FRAMES[:2], np.zeros((1, 0), np.float32), world)
    game = Game(
        world_model(), {"episode:noise": StartChoice("episode:noise", "a/b: noise", "Tests", lambda seed: start)}
    )
    game.reset("episode:noise", 0)
    game.step(np.zeros(0, np.float32))
    assert np.array_equal(game.now.real.frame, FRAMES[2])
    assert not [name for name, pilot in autopilots.AUTOPILOTS.items() if pilot.is_offered(game)]
    name, content = save(game, Save("npz", "dream", 10))
    assert name == "a-b-noise-played.npz"
    with np.load(io.BytesIO(content)) as saved:
        assert {key: array.shape for key, array in saved.items()} == {"image": (3, 64, 64, 3)}


def test_bundled_episodes_are_starts_for_models_of_any_kind():
    """A goal-conditioned model gets the last frame first; an action-free one no actions."""
    plain = model().metadata
    choice = find_starts("inference/samples", plain, "samples")[0]
    assert (choice.title, choice.group) == ("drawer-open", "samples")
    start = choice.open(0)
    assert (start.context.shape, start.actions.shape) == ((2, 64, 64, 3), (1, ACTION_DIM))
    free = replace(plain, action_dim=None, goal_conditioned=True)
    goal = find_starts("inference/samples", free)[0].open(0)
    assert np.array_equal(goal.context[1], start.context[0])
    assert not np.array_equal(goal.context[0], start.context[1])
    assert goal.actions.shape == (0, 0)


def test_a_saved_episode_begins_without_the_goal():
    """Bug prevented: an episode to train on that jumps from its end to its beginning."""
    goal_model = world_model(goal_conditioned=True)
    choice = find_starts("inference/samples", goal_model.metadata)[0]
    game = Game(goal_model, {choice.key: choice})
    game.reset(choice.key, 0)
    game.step(np.zeros(0, np.float32))
    with np.load(io.BytesIO(save(game, Save("npz", "dream", 10))[1])) as saved:
        assert np.array_equal(saved["image"], [choice.open(0).context[1], game.now.dream[0]])


def test_names_that_are_no_utf8_are_shown(tmp_path):
    """Bug prevented: one such file, and no page could be opened."""
    folder = tmp_path / "arm"
    folder.mkdir()
    np.savez(folder / "0.npz", image=np.zeros((3, 64, 64, 3), np.uint8), action=np.zeros((3, ACTION_DIM), np.float32))
    (folder / "0.npz").rename(os.fsdecode(os.fsencode(folder) + b"/\xff.npz"))
    (choice,) = find_starts(str(tmp_path), model().metadata)
    assert choice.title == "\N{REPLACEMENT CHARACTER}"
    assert choice.open(0).context.shape == (2, 64, 64, 3)


def test_a_long_episode_ends_with_its_last_frame(tmp_path, monkeypatch):
    """The goal "end" was the last frame that had been read."""
    frames = np.broadcast_to(np.arange(8, dtype=np.uint8)[:, None, None, None], (8, 64, 64, 3))
    (tmp_path / "arm").mkdir()
    np.savez(tmp_path / "arm" / "0.npz", image=frames, action=np.zeros((8, ACTION_DIM), np.float32))
    monkeypatch.setattr(starts, "MAX_RECORDED", 4)
    world = find_starts(str(tmp_path), model().metadata)[0].open(0).real
    assert world.end[0, 0, 0] == 7
    goal = replace(model().metadata, goal_conditioned=True)
    assert find_starts(str(tmp_path), goal)[0].open(0).context[0, 0, 0, 0] == 7


def test_starts_of_other_robots_are_left_out(tmp_path, robots_model):
    frames = np.zeros((6, 64, 64, 3), np.uint8)
    for name, dim in (("arm-data/train", 4), ("hand-data", 3), ("new-data", 3)):
        (tmp_path / name).mkdir(parents=True)
        np.savez(tmp_path / name / "0.npz", image=frames, action=np.zeros((6, dim), np.float32))
    metadata = ModelMetadata.read(robots_model)
    groups = [choice.group for choice in find_starts(str(tmp_path), metadata, action_space="hand")]
    assert groups == ["hand-data", "new-data"]
    (tmp_path / "new-data" / "0.npz").unlink()
    (tmp_path / "hand-data" / "0.npz").rename(tmp_path / "arm-data" / "train" / "1.npz")
    with pytest.raises(UserError, match=r"arm-data/train.*another robot than action space hand"):
        find_starts(str(tmp_path), metadata, action_space="hand")
    np.savez(tmp_path / "hand-data" / "0.npz", image=frames, action=np.zeros((6, 3), np.float32))
    start = find_starts(str(tmp_path), metadata, action_space="hand")[0].open(0)
    assert start.actions.shape == (1, 3)
