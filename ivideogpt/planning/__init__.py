"""Planning: search for actions whose predicted outcome scores best.

A planner (:mod:`~ivideogpt.planning.planners`) proposes candidates, a :class:`~ivideogpt.planning.dynamics.Dynamics`
predicts what each leads to, an :class:`~ivideogpt.planning.objectives.Objective` scores the predictions. None of the
three knows the other two's inside; only :class:`~ivideogpt.planning.dynamics.SessionDynamics` knows the world model.
"""

from ivideogpt.planning.dynamics import Dynamics, Futures, SessionDynamics
from ivideogpt.planning.objectives import Classifier, LatentError, Objective, Reward, SquaredError, Success
from ivideogpt.planning.planners import CEM, ICEM, MPPI, PLANNERS, Plan, Planner

__all__ = [
    "CEM", "ICEM", "MPPI", "PLANNERS", "Classifier", "Dynamics", "Futures", "LatentError", "Objective", "Plan",
    "Planner", "Reward", "SessionDynamics", "SquaredError", "Success",
]  # fmt: skip
