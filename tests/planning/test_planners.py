"""Planners on a point that is pushed along a line, whose best plans are known."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from inference.plan import PlanArgs
from ivideogpt.errors import UserError
from ivideogpt.flags import parse
from ivideogpt.planning import CEM, ICEM, MPPI, PLANNERS, Futures, Objective, Plan, Planner, Reward
from ivideogpt.planning.planners import coloured_noise, correlated, shifted

HORIZON, REACH = 6, 0.1
BOUNDS = {"low": (-1.0, -1.0), "high": (1.0, 1.0), "horizon": HORIZON}
SMALL: dict[str, Planner] = {
    "cem": CEM(**BOUNDS, num_candidates=200, elite_fraction=0.1, num_iterations=8),
    "icem": ICEM(**BOUNDS, num_candidates=64, num_iterations=8),
    "mppi": MPPI(**BOUNDS, num_candidates=200, num_iterations=8, gamma=50.0),
}


class Point:
    """A point in the plane: an action moves it by REACH times itself, a reward is minus the squared distance."""

    def __init__(self, goal: tuple[float, float] = (0.25, -0.1)) -> None:
        self.position, self.goal = torch.zeros(2), torch.tensor(goal)
        self.asked: list[Tensor] = []

    def __call__(self, actions: Tensor) -> Futures:
        self.asked.append(actions)
        places = self.position + REACH * actions.cumsum(1)
        return Futures(rewards=-(places - self.goal).square().sum(-1))

    def optimum(self) -> float:
        """As far as allowed towards the goal in each step, for each axis by itself."""
        to_go = (self.goal - self.position).abs()
        left = [(to_go - REACH * step).clamp(min=0).square().sum() for step in range(1, HORIZON + 1)]
        return -float(sum(left))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def true_score(point: Point, plan: Plan) -> float:
    return float(point(plan.actions[None]).rewards.sum())


@pytest.mark.parametrize("name", PLANNERS)
def test_comes_close_to_the_best_plan(name):
    """A sign or an index off still gives plans, only bad ones."""
    point = Point()
    plan = SMALL[name].plan(point, Reward(), generator())
    still = true_score(point, Plan(torch.zeros(HORIZON, 2), 0.0, 0))
    assert plan.actions.shape == (HORIZON, 2)
    assert plan.actions.abs().max() <= 1
    assert true_score(point, plan) > point.optimum() + 0.1 * still
    assert point.optimum() >= plan.score


@pytest.mark.parametrize("name", PLANNERS)
def test_same_seed_same_plan_whatever_the_global_generator(name):
    """A plan that cannot be had again cannot be debugged."""
    plans = []
    for seed in (0, 0, 1):
        torch.rand(7)
        plans.append(SMALL[name].plan(Point(), Reward(), generator(seed)).actions)
    assert torch.equal(plans[0], plans[1])
    assert not torch.equal(plans[0], plans[2])


class Shuffled:
    """Dynamics that works through the candidates in another order."""

    def __init__(self, point: Point) -> None:
        self.point = point

    def __call__(self, actions: Tensor) -> Futures:
        order = torch.randperm(len(actions))
        rewards = torch.empty(actions.shape[:2])
        rewards[order] = self.point(actions[order]).rewards
        return Futures(rewards=rewards)


@pytest.mark.parametrize("name", PLANNERS)
def test_order_of_work_does_not_matter(name):
    """Scores that are paired with the wrong candidates."""
    plans = [SMALL[name].plan(dynamics, Reward(), generator()) for dynamics in (Point(), Shuffled(Point()))]
    torch.testing.assert_close(plans[0].actions, plans[1].actions)


@pytest.mark.parametrize("name", PLANNERS)
def test_a_plan_goes_on_where_the_last_one_was(name):
    """Without the shift every decision would begin again with the action that was just taken."""
    point = Point()
    planner = replace(SMALL[name], num_iterations=1)
    first = SMALL[name].plan(point, Reward(), generator())
    point.position = REACH * first.actions[:2].sum(0)
    warm = planner.plan(point, Reward(), generator(), first, executed=2)
    cold = planner.plan(point, Reward(), generator())
    assert true_score(point, warm) > true_score(point, cold)


def test_shift_repeats_the_last_action():
    """Zeros at the end would brake."""
    actions = torch.arange(4.0)[:, None]
    assert shifted(actions, 1).flatten().tolist() == [1, 2, 3, 3]
    assert shifted(actions, 9).flatten().tolist() == [3, 3, 3, 3]
    shifted(actions, 0).zero_()
    assert actions[1] == 1


def test_icem_shrinks_its_population_and_scores_elites_again():
    """Elites that are forgotten cost the sample efficiency that the method is for."""
    point = Point()
    planner = replace(SMALL["icem"], num_iterations=3)
    plan = planner.plan(point, Reward(), generator())
    assert [len(asked) for asked in point.asked] == [64, 51 + 3, 41 + 3 + 1]
    assert plan.num_evaluations == 163
    assert plan.elites.shape == (10, HORIZON, 2)
    assert torch.equal(plan.elites[0], plan.actions)
    planner.plan(point, Reward(), generator(1), plan, executed=2)
    again = point.asked[3][64:]
    assert torch.equal(again[:, :-2], plan.elites[:3, 2:])
    assert not torch.equal(again[:, -2:], plan.elites[:3, -2:])


def test_cem_narrows_near_the_bounds():
    """Half of the candidates would lie on a bound."""
    point = Point()
    at_bound = Plan(torch.full((HORIZON, 2), 0.9), 0.0, 0)
    replace(SMALL["cem"], num_iterations=1).plan(point, Reward(), generator(), at_bound, executed=0)
    assert point.asked[0].std() < 0.06


def test_cem_leaves_a_bound_again():
    """Candidates are clamped onto bounds; around an action there was no room for any noise, in all later plans."""
    plan, source = Plan(torch.ones(HORIZON, 2), 0.0, 0), generator()
    anew = SMALL["cem"].plan(Point(), Reward(), source)
    for _ in range(20):
        plan = SMALL["cem"].plan(Point(), Reward(), source, plan)
    assert plan.score > anew.score - 0.01


def test_mppi_is_the_weighted_mean():
    """The formula of the benchmark: weights exp(gamma (score - highest score)), one iteration."""
    point = Point()
    plan = replace(SMALL["mppi"], num_iterations=1, num_candidates=5).plan(point, Reward(), generator())
    scores = point(point.asked[0]).rewards.sum(1)
    weights = torch.exp(50.0 * (scores - scores.max()))
    expected = (weights[:, None, None] * point.asked[0]).sum(0) / weights.sum()
    torch.testing.assert_close(plan.actions, expected)
    assert plan.score == pytest.approx(float(scores.max()))


def test_correlated_noise():
    noise = torch.tensor([1.0, 1.0, -1.0])[None, :, None]
    assert correlated(noise, 0.5).flatten().tolist() == [1.0, 1.0, 0.0]


@pytest.mark.parametrize("horizon", [1, 2, 7, 10])
@pytest.mark.parametrize("exponent", [0.0, 2.0])
def test_coloured_noise(horizon, exponent):
    """Noise of another variance would search too wide or too narrow; its colour is what iCEM is about."""
    noise = coloured_noise(4000, horizon, 2, exponent, generator())
    assert noise.shape == (4000, horizon, 2)
    torch.testing.assert_close(noise.var(dim=0), torch.ones(horizon, 2), rtol=0.15, atol=0)
    if horizon > 2:
        neighbours = (noise[:, 1:] * noise[:, :-1]).mean()
        assert neighbours > 0.5 if exponent else abs(neighbours) < 0.05


def test_budget_of_evaluations():
    """One iteration too many may be minutes of a real model's time."""
    point = Point()
    plan = replace(SMALL["cem"], max_evaluations=599).plan(point, Reward(), generator())
    assert plan.num_evaluations == 400 == sum(map(len, point.asked))
    with pytest.raises(UserError, match="max_evaluations is 199, but the first iteration has 200"):
        replace(SMALL["cem"], max_evaluations=199).plan(point, Reward(), generator())


def test_budget_of_seconds(monkeypatch):
    """The first iteration runs, and none begins that would end too late."""
    clock = iter(range(100))
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    plan = replace(SMALL["mppi"], max_seconds=5.0).plan(Point(), Reward(), generator())
    assert plan.num_evaluations == 5 * 200  # an iteration takes one of these seconds
    plan = replace(SMALL["mppi"], max_seconds=0.0).plan(Point(), Reward(), generator())
    assert plan.num_evaluations == 200


class Partly(Objective):
    """A score that is no number for all candidates but some."""

    def __init__(self, num_good: int, bad: float) -> None:
        self.num_good, self.bad = num_good, bad

    def __call__(self, futures: Futures) -> Tensor:
        scores = Reward()(futures)
        scores[self.num_good :] = self.bad
        return scores


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", PLANNERS)
def test_scores_that_are_not_finite(name, bad):
    """NaN and infinity sort first: a broken prediction would win, or be an elite beside the few that are whole."""
    point = Point()
    plan = replace(SMALL[name], num_iterations=1).plan(point, Partly(3, bad), generator())
    assert plan.actions.isfinite().all()
    assert plan.score == float(point(point.asked[0][:3]).rewards.sum(1).max())
    assert plan.elites is None or len(plan.elites) == 3
    with pytest.raises(UserError, match="no candidate has a finite score"):
        SMALL[name].plan(point, Partly(0, bad), generator())


def test_bad_settings():
    for low, high in ((1.0, -1.0), (-math.inf, math.inf)):
        with pytest.raises(UserError, match="finite low < high"):
            CEM(low=(low,), high=(high,))
    with pytest.raises(UserError, match="init_std has 2 numbers for actions of 1"):
        CEM(low=(-1.0,), high=(1.0,), init_std=(0.5, 0.5))


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        (CEM, "horizon", 0),
        (CEM, "init_std", math.nan),
        (CEM, "elite_fraction", 1.5),
        (ICEM, "decay", 0),
        (ICEM, "num_elites", 0),
        (MPPI, "gamma", -1.0),
        (MPPI, "smoothing", math.nan),
    ],
)
def test_settings_out_of_range(kind, name, value):
    """They gave a division by zero, or plans that were not numbers."""
    with pytest.raises(UserError, match=f"{name} is {value}, must be"):
        kind(low=(-1.0,), high=(1.0,), **{name: value})


def test_a_last_plan_of_another_horizon():
    """Its actions were added to candidates of this horizon: an error of tensors, or a plan of the wrong length."""
    last = replace(SMALL["mppi"], horizon=3).plan(Point(), Reward(), generator())
    with pytest.raises(UserError, match="the last plan is of shape"):
        replace(SMALL["mppi"], horizon=4).plan(Point(), Reward(), generator(), last)


def test_the_command_knows_all_planners():
    """Its flags are read before torch is imported, so it has a list of its own."""
    assert PlanArgs.__dataclass_fields__["planner"].metadata["choices"] == tuple(PLANNERS)


@pytest.mark.parametrize("flag", ["--budget_seconds", "--init_std"])
@pytest.mark.parametrize("value", ["inf", "nan"])
def test_flags_that_are_not_finite(flag, value):
    """They passed, and the settings or the report could not be written as JSON in the end."""
    with pytest.raises(UserError, match=f"{flag} is .*{value}.*: expected a finite number"):
        parse(PlanArgs, [flag, value])
