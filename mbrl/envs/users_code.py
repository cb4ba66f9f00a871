"""Errors in functions and environments of users: UserErrors that name the line. Knows no policy and no simulator."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

import gymnasium

from ivideogpt.errors import UserError, first_line

STEP = ("observation", "reward", "terminated", "truncated", "info")
METHODS: dict[str, tuple[str, tuple[str, ...]]] = {  # arguments, and results where there are several
    "reset": ("seed= and options=", ("observation", "info")),
    "reset_to": ("a state", ()),
    "step": ("an action", STEP),
    "render": ("nothing", ()),
    "scripted_policy": ("nothing", ()),
}


def users_function(name: str, function: Callable[..., Any], given: str) -> Callable[..., Any]:
    """Return the function with UserErrors that say what it raised, and in which line.

    Args:
        name: begins the message, such as "policy my_policies:act".
        given: its arguments in words, as a wrong signature is the usual reason.
    """

    def call(*arguments: Any, **named: Any) -> Any:
        try:
            return function(*arguments, **named)
        except UserError:
            raise
        except gymnasium.error.DependencyNotInstalled as error:  # says by itself what to do
            raise UserError(f"{name}: {first_line(error)}") from error
        except Exception as error:
            inside = traceback.extract_tb(error.__traceback__)[1:]
            own = [frame for frame in inside if frame.filename == inside[0].filename]  # not the libraries it calls
            place = f" in line {own[-1].lineno} of {own[-1].filename}" if own else ""
            raise UserError(
                f"{name}: {type(error).__name__}: {first_line(error)}{place}; it is called with {given}"
            ) from error

    return call


def guard_environment(name: str, env: Any) -> None:
    """Let the methods of an environment raise UserErrors, also for results as of the old gym."""
    for method, (given, results) in METHODS.items():
        if hasattr(env, method):
            call = users_function(f"environment {name}, {method}", getattr(env, method), given)
            setattr(env, method, _returning(results, call, f"environment {name}, {method}") if results else call)


def _returning(results: tuple[str, ...], function: Callable[..., Any], name: str) -> Callable[..., Any]:
    def call(*arguments: Any, **named: Any) -> Any:
        found = function(*arguments, **named)
        if not isinstance(found, tuple) or len(found) != len(results):
            kind = f"{len(found)} values" if isinstance(found, tuple) else type(found).__name__
            raise UserError(f"{name} returned {kind}, expected {', '.join(results)}")
        return found

    return call
