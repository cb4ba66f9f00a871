"""Planners: the cross-entropy method, its sample-efficient variant iCEM, and MPPI.

A planner is its settings, and nothing is left on it by a call. Knows actions and scores; knows no frames or models.
Shapes: N candidates, K elites, H planned steps, D action dimension.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ivideogpt.errors import UserError
from ivideogpt.planning.dynamics import Dynamics
from ivideogpt.planning.objectives import Objective

# Settings of all planners, by name: lowest and highest number.
RANGES = dict.fromkeys(("horizon", "num_candidates", "num_iterations", "num_elites", "decay"), (1, math.inf))
RANGES |= dict.fromkeys(("init_std", "noise_exponent", "gamma"), (0, math.inf))
RANGES |= dict.fromkeys(("elite_fraction", "momentum", "kept_fraction", "smoothing"), (0, 1))
WHOLE = ("horizon", "num_candidates", "num_iterations", "num_elites")
LEAST_ROOM = 0.025  # share of the distance between the bounds


@dataclass(frozen=True)
class Plan:
    """Planned actions, on the CPU.

    Attributes:
        actions: (H, D), the first to be executed now.
        score: the best candidate's, as predicted.
        num_evaluations: candidates that were scored.
        elites: (K, H, D) best candidates of the last iteration, best first, for planners that keep them.
    """

    actions: Tensor
    score: float
    num_evaluations: int
    elites: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Planner(ABC):
    """Settings that all planners have.

    Attributes:
        low, high: (D,) bounds of an action.
        num_candidates: scored in an iteration.
        init_std: standard deviation of the first iteration's noise, for all dimensions or for each.
        max_evaluations: no iteration begins that would score more candidates in all.
        max_seconds: no iteration begins that would end later, judged by those before; the first always runs. How many
            run depends on the machine then.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    horizon: int = 10
    num_candidates: int = 200
    num_iterations: int = 3
    init_std: float | tuple[float, ...] = 0.5
    max_evaluations: int | None = None
    max_seconds: float | None = None

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            object.__setattr__(self, name, tuple(map(float, getattr(self, name))))
        bounds = zip(self.low, self.high)
        if len(self.low) != len(self.high) or not all(-math.inf < low < high < math.inf for low, high in bounds):
            raise UserError(
                f"actions are bounded by {self.low} and {self.high}: expected finite low < high in each dimension"
            )
        if isinstance(self.init_std, tuple) and len(self.init_std) != len(self.low):
            raise UserError(f"init_std has {len(self.init_std)} numbers for actions of {len(self.low)}")
        for name in RANGES.keys() & vars(self).keys():
            (lowest, highest), value = RANGES[name], getattr(self, name)
            if not all(lowest <= number <= highest and number < math.inf for number in np.atleast_1d(value)):
                limits = f"at least {lowest}" if highest == math.inf else f"from {lowest} to {highest}"
                raise UserError(f"{name} is {value}, must be {limits}")
            if name in WHOLE and not isinstance(value, int | np.integer):
                raise UserError(f"{name} is {value}, must be a whole number")

    def plan(
        self,
        dynamics: Dynamics,
        objective: Objective,
        generator: torch.Generator,
        previous: Plan | None = None,
        executed: int = 1,
    ) -> Plan:
        """Search for the actions whose predicted outcome scores highest.

        Args:
            generator: on the CPU, the source of all randomness.
            previous: the last plan, of which ``executed`` actions have been taken since: the search begins there, with
                the last action repeated. Without one it begins in the middle of the bounds.

        Raises:
            UserError: the last plan has another shape, dynamics and objective do not fit, no candidate has a finite
                score, or ``max_evaluations`` does not suffice for one iteration.
        """
        shape = (self.horizon, len(self.low))
        if previous is not None and previous.actions.shape != shape:
            raise UserError(f"the last plan is of shape {tuple(previous.actions.shape)}, this planner's are {shape}")
        search, (low, high) = _Search(self, dynamics, objective), self._bounds()
        mean = ((low + high) / 2).expand(self.horizon, -1) if previous is None else shifted(previous.actions, executed)
        actions = self._improve(search, mean, self._kept_elites(previous, executed, generator), generator)
        return Plan(actions, search.best_score, search.num_evaluations, search.elites)

    @abstractmethod
    def _improve(self, search: _Search, mean: Tensor, kept: Tensor, generator: torch.Generator) -> Tensor:
        """Return better actions than ``mean``, (H, D); ``kept`` (n, H, D) are candidates of the last plan."""

    def _kept_elites(self, previous: Plan | None, executed: int, generator: torch.Generator) -> Tensor:
        """Return candidates (n, H, D) of the last plan that are scored again: none."""
        return torch.empty(0, self.horizon, len(self.low))

    def _std(self) -> Tensor:
        return torch.tensor(self.init_std).expand(self.horizon, len(self.low))

    def _bounds(self) -> tuple[Tensor, Tensor]:
        return torch.tensor(self.low), torch.tensor(self.high)


@dataclass(frozen=True, kw_only=True)
class CEM(Planner):
    """Cross-entropy method with independent Gaussian noise; returns the best candidate of all iterations.

    The standard deviation is at most half the distance from the mean to the nearer bound, as in VP2, but never bounded
    to less than ``LEAST_ROOM``: actions of the last plan that lie on a bound would stay there for good.
    """

    elite_fraction: float = 0.05

    @property
    def num_elites(self) -> int:
        return max(1, math.ceil(self.elite_fraction * self.num_candidates))

    def _improve(self, search: _Search, mean: Tensor, kept: Tensor, generator: torch.Generator) -> Tensor:
        low, high = self._bounds()
        std, least_room = self._std(), LEAST_ROOM * (high - low)
        for _ in range(self.num_iterations):
            if not search.has_room(self.num_candidates):
                break
            noise = torch.randn(self.num_candidates, *mean.shape, generator=generator)
            room = torch.minimum(mean - low, high - mean) / 2
            std = torch.minimum(std, torch.maximum(room, least_room))
            elites = search.select((mean + std * noise).clamp(low, high), self.num_elites)
            mean, std = elites.mean(0), elites.std(0, correction=0)
        return search.best_actions


@dataclass(frozen=True, kw_only=True)
class ICEM(Planner):
    """iCEM (Pinneri et al. 2020): coloured noise, a population that shrinks, and elites that stay from step to step.

    Attributes:
        num_elites: at most half of ``num_candidates`` are.
        noise_exponent: noise has a power of 1 / f^exponent along the horizon: 0 is white, 2 smooth.
        decay: each iteration has so many times fewer candidates, down to twice the elites.
        momentum: part of the mean and standard deviation that stays in an iteration.
        kept_fraction: part of the elites that is scored again, in the next iteration and in the next plan.
    """

    num_candidates: int = 64
    num_elites: int = 10
    noise_exponent: float = 2.0
    decay: float = 1.25
    momentum: float = 0.1
    kept_fraction: float = 0.3

    def _improve(self, search: _Search, mean: Tensor, kept: Tensor, generator: torch.Generator) -> Tensor:
        low, high = self._bounds()
        std = self._std()
        for iteration in range(self.num_iterations):
            number = max(round(self.num_candidates / self.decay**iteration), 2 * self._num_elites)
            noise = coloured_noise(number, self.horizon, len(low), self.noise_exponent, generator)
            candidates = torch.cat([(mean + std * noise).clamp(low, high), kept])
            if iteration == self.num_iterations - 1:
                candidates = torch.cat([candidates, mean[None]])
            if not search.has_room(len(candidates)):
                break
            elites = search.select(candidates, self._num_elites)
            kept = elites[: self._num_kept]
            mean = self.momentum * mean + (1 - self.momentum) * elites.mean(0)
            std = self.momentum * std + (1 - self.momentum) * elites.std(0, correction=0)
        return search.best_actions

    @property
    def _num_elites(self) -> int:
        return max(1, min(self.num_elites, self.num_candidates // 2))

    @property
    def _num_kept(self) -> int:
        return math.ceil(self.kept_fraction * self._num_elites)

    def _kept_elites(self, previous: Plan | None, executed: int, generator: torch.Generator) -> Tensor:
        """Return some elites of the last plan, (n, H, D), shifted; what they lack at their end is random."""
        if previous is None or previous.elites is None:
            return super()._kept_elites(previous, executed, generator)
        low, high = self._bounds()
        kept = shifted(previous.elites[: self._num_kept], executed)
        fresh = kept[:, max(self.horizon - executed, 0) :]
        noise = self._std()[: fresh.shape[1]] * torch.randn(fresh.shape, generator=generator)
        fresh.copy_(((low + high) / 2 + noise).clamp(low, high))
        return kept


@dataclass(frozen=True, kw_only=True)
class MPPI(Planner):
    """Model predictive path integral control: the mean of candidates with weights exp(gamma (score - highest score)).

    Attributes:
        gamma: inverse temperature, per unit of the score.
        smoothing: noise of a step is so much the noise of the step before, and the rest new.
    """

    num_iterations: int = 1
    gamma: float = 0.05
    smoothing: float = 0.5

    def _improve(self, search: _Search, mean: Tensor, kept: Tensor, generator: torch.Generator) -> Tensor:
        low, high = self._bounds()
        for _ in range(self.num_iterations):
            if not search.has_room(self.num_candidates):
                break
            noise = self._std() * torch.randn(self.num_candidates, *mean.shape, generator=generator)
            candidates = (mean + correlated(noise, self.smoothing)).clamp(low, high)
            weights = (self.gamma * search.score(candidates)).softmax(0)
            mean = torch.einsum("n,nhd->hd", weights, candidates)
        return mean


PLANNERS: dict[str, type[Planner]] = {"cem": CEM, "icem": ICEM, "mppi": MPPI}


def shifted(actions: Tensor, steps: int) -> Tensor:
    """Drop the first ``steps`` of actions (..., H, D) and repeat the last one instead: a copy of the same shape."""
    horizon = actions.shape[-2]
    index = torch.arange(steps, steps + horizon).clamp(max=horizon - 1)
    return actions[..., index, :]


def correlated(noise: Tensor, smoothing: float) -> Tensor:
    """Smooth noise (N, H, D) along the horizon: e_i = smoothing e_(i-1) + (1 - smoothing) noise_i, e_0 = noise_0."""
    steps = [noise[:, 0]]
    for fresh in noise.unbind(1)[1:]:
        steps.append(smoothing * steps[-1] + (1 - smoothing) * fresh)
    return torch.stack(steps, dim=1)


def coloured_noise(num: int, horizon: int, dim: int, exponent: float, generator: torch.Generator) -> Tensor:
    """Sample Gaussian noise (num, horizon, dim) of variance 1 whose power falls as 1 / f^exponent along the horizon."""
    if horizon == 1:
        return torch.randn(num, 1, dim, generator=generator)
    frequencies = torch.fft.rfftfreq(horizon)
    frequencies[0] = frequencies[1]  # the mean varies like the slowest wave
    amplitudes = frequencies ** (-exponent / 2)
    is_real = torch.zeros(len(frequencies), dtype=torch.bool)
    is_real[0] = True
    is_real[-1] |= horizon % 2 == 0
    real, imaginary = torch.randn(2, num, dim, len(frequencies), generator=generator)
    real = torch.where(is_real, math.sqrt(2) * real, real)  # all the power of its frequency
    spectrum = amplitudes * torch.complex(real, imaginary.masked_fill(is_real, 0))
    std = (amplitudes.square() * torch.where(is_real, 2, 4)).sum().sqrt() / horizon
    return (torch.fft.irfft(spectrum, horizon) / std).transpose(1, 2)


class _Search:
    """Scores candidates within the budget, and remembers the best one and the elites of the last iteration."""

    def __init__(self, planner: Planner, dynamics: Dynamics, objective: Objective) -> None:
        self._planner, self._dynamics, self._objective = planner, dynamics, objective
        self._started = time.monotonic()
        self.num_evaluations = 0
        self.best_score, self.best_actions = -math.inf, torch.empty(0)
        self.elites: Tensor | None = None

    def has_room(self, num_candidates: int) -> bool:
        """Tell whether the budget allows so many more candidates; UserError if it does not allow the first ones."""
        total, limit = self.num_evaluations + num_candidates, self._planner.max_evaluations
        if self.num_evaluations == 0:
            if limit is not None and total > limit:
                raise UserError(f"max_evaluations is {limit}, but the first iteration has {total} candidates")
            return True
        seconds = (time.monotonic() - self._started) * total / self.num_evaluations
        most = math.inf if self._planner.max_seconds is None else self._planner.max_seconds
        return (limit is None or total <= limit) and seconds <= most

    def score(self, candidates: Tensor) -> Tensor:
        """Score candidates (N, H, D): (N,) on the CPU, -inf where the objective gives NaN or infinity."""
        scores = self._objective(self._dynamics(candidates)).detach().float().cpu()
        assert scores.shape == candidates.shape[:1], f"{len(candidates)} candidates have scores {tuple(scores.shape)}"
        scores = scores.where(scores.isfinite(), -math.inf)
        self.num_evaluations += len(candidates)
        highest, best = scores.max(0)
        if not highest.isfinite():
            raise UserError("no candidate has a finite score: the model or the objective gives NaN or infinity")
        if highest > self.best_score:
            self.best_score, self.best_actions = float(highest), candidates[best]
        return scores

    def select(self, candidates: Tensor, number: int) -> Tensor:
        """Score candidates and return the best ones that have a score, best first."""
        scores = self.score(candidates)
        self.elites = candidates[scores.topk(min(number, int(scores.isfinite().sum()))).indices]
        return self.elites
