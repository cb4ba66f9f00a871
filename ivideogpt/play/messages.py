"""Messages between the page and the server. The page sends JSON; pictures and files come back as bytes behind JSON.

A binary message is the length of its JSON header in 4 bytes (little-endian), the header, and the rest: for "moment" the
pixels (H, W, 3) of every sample and, if the header says so, of the real frame and the planner's goal; for "file" the
file.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ivideogpt.errors import UserError
from ivideogpt.files import check_fields
from ivideogpt.play.autopilots import AUTOPILOTS
from ivideogpt.play.game import Game, GoalSource, Numbers
from ivideogpt.play.starts import Floats, StartChoice

LARGEST = 1e3  # absolute value of a number of an action
View = Literal["dream", "real", "split", "difference"]


@dataclass(frozen=True)
class Reset:
    start: str
    seed: int


@dataclass(frozen=True)
class Step:
    """One step: by an action of D numbers, or by an autopilot."""

    action: list | None = None
    autopilot: str | None = None


@dataclass(frozen=True)
class Seek:
    position: int


@dataclass(frozen=True)
class Change:
    num_samples: int
    temperature: float
    top_k: int
    rule: str


@dataclass(frozen=True)
class Select:
    """Select the sample that is continued from and saved."""

    sample: int


@dataclass(frozen=True)
class Goal:
    """Choose what the planner makes for."""

    source: GoalSource


@dataclass(frozen=True)
class Save:
    format: Literal["gif", "npz"]
    view: View
    fps: float


MESSAGES: dict[str, Any] = dict(reset=Reset, step=Step, seek=Seek, change=Change, select=Select, goal=Goal, save=Save)
Message = Reset | Step | Seek | Change | Select | Goal | Save


def read_message(fields: dict[str, Any]) -> Message:
    """Make a message of a JSON object; UserError for unknown kinds, and for missing, unknown or wrong fields."""
    fields = dict(fields)
    kind = fields.pop("type", None)
    if not isinstance(kind, str) or kind not in MESSAGES:
        raise UserError(f"the type of a message is {kind!r:.50}, expected one of {', '.join(MESSAGES)}")
    try:
        message: Message = MESSAGES[kind](**fields)
    except TypeError as error:
        known = ", ".join(field.name for field in dataclasses.fields(MESSAGES[kind]))
        raise UserError(f"a message {kind!r} has other fields than {known}") from error
    check_fields(message, {"fps": 1}, highest=2**31 - 1)
    return message


def read_action(values: list | None, action_dim: int) -> Floats:
    """Check an action's numbers; UserError if they are not D finite ones of a sensible size."""
    given = [] if values is None else values
    are_numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in given)
    if len(given) != action_dim or not are_numbers:
        raise UserError(f"the action is not a list of {action_dim} numbers")
    if not all(abs(value) <= LARGEST for value in given):  # neither NaN is, nor an integer too large for a float
        raise UserError(f"the action holds a number that is not between -{LARGEST:g} and {LARGEST:g}")
    return np.array(given, np.float32)


def pack(header: dict[str, Any], content: bytes) -> bytes:
    text = json.dumps(header, allow_nan=False).encode()
    return len(text).to_bytes(4, "little") + text + content


def moment_message(game: Game, milliseconds: float) -> bytes:
    """Pack what the page shows of the present moment."""
    moment, real = game.now, game.now.real
    header = {
        "type": "moment",
        "start": game.key,
        "position": game.position,
        "last": len(game.moments) - 1,
        "size": moment.dream.shape[1:3],
        "num_samples": len(moment.dream),
        "has_real": real.frame is not None,
        "has_goal": game.goal is not None,
        "action": [round(float(value), 4) for value in game.to_controls(moment.action)],
        "reward": _numbers(moment.reward),
        "success": _numbers(moment.success),
        "real_reward": real.reward,
        "real_success": real.success,
        "autopilots": [name for name, pilot in AUTOPILOTS.items() if pilot.is_offered(game)],
        "milliseconds": round(milliseconds, 1),
    }
    pictures = (moment.dream, real.frame, game.goal)
    return pack(header, b"".join(picture.tobytes() for picture in pictures if picture is not None))


def _numbers(values: Numbers | None) -> list[float | None] | None:
    """Return numbers as JSON has them, which knows no NaN."""
    return None if values is None else [round(float(each), 3) if math.isfinite(each) else None for each in values]


def welcome(game: Game, model_name: str, first: str, note: str) -> dict[str, Any]:
    """Return what the page needs to know before the first moment."""
    return {
        "type": "welcome",
        "model": model_name,
        "action_dim": game.action_dim,
        "first": first,
        "starts": [_listed(choice) for choice in game.choices.values()],
        "autopilots": {name: pilot.label for name, pilot in AUTOPILOTS.items()},
        "predicts_reward": game.model.reward_head is not None,
        "settings": vars(game.settings),
        "note": note,
    }


def _listed(choice: StartChoice) -> dict[str, str]:
    return {"key": choice.key, "title": choice.title, "group": choice.group}
