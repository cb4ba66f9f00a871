"""Scripted policies of some of RoboDesk's tasks: the end effector goes from waypoint to waypoint, beside an object."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

REACH = 0.08  # metres that the end effector moves in a step of full speed
NEAR = 0.05  # metres from a waypoint that count as there


class Waypoint(NamedTuple):
    """A place beside an object, wherever that is by then."""

    name: str
    offset: tuple[float, float, float]  # metres from the object
    patience: int = 10  # steps after which it gives way to the next one, reached or not


def _push_down(button: str) -> tuple[Waypoint, ...]:
    # Lightly, as the finger slides off in the end if it presses harder.
    return Waypoint(button, (0, 0, 0.14)), Waypoint(button, (0.01, -0.01, 0.04))


def _push_sideways(block: str, y: float, z: float) -> tuple[Waypoint, ...]:
    """Go to the left of a block that lies, from ``z`` above its middle, and push it off the right edge of the table."""
    return Waypoint(block, (-0.13, y, z)), Waypoint(block, (-0.13, y, 0.02)), Waypoint(block, (0.3, y, 0.02))


WAYPOINTS: dict[str, tuple[Waypoint, ...]] = {
    "push_red": _push_down("red_button"),
    "push_green": _push_down("green_button"),
    "push_blue": _push_down("blue_button"),
    "flat_block_off_table": _push_sideways("flat_block", 0, 0.2),
    "upright_block_off_table": (
        Waypoint("upright_block", (-0.12, 0.01, 0.12)),
        Waypoint("upright_block", (-0.12, 0.01, 0)),
        Waypoint("upright_block", (0.3, 0.01, 0), patience=2),  # it falls over
        *_push_sideways("upright_block", 0.01, 0.12),
    ),
    "open_slide": (
        Waypoint("slide_handle", (-0.08, -0.12, 0.02)),
        Waypoint("slide_handle", (-0.08, 0, 0)),
        Waypoint("slide_handle", (0.3, 0, 0)),
    ),
}


class WaypointPolicy:
    """Goes through waypoints, gripper closed, and stays with the last one.

    Args:
        place: returns the place (3,) of an object, or of "end_effector".
    """

    def __init__(self, waypoints: tuple[Waypoint, ...], place: Callable[[str], np.ndarray]) -> None:
        self._waypoints, self._place = list(waypoints), place
        self._steps = 0

    def __call__(self) -> np.ndarray:
        """Return the next action, (5,) in [-1, 1]."""
        name, offset, patience = self._waypoints[0]
        way = self._place(name) + offset - self._place("end_effector")
        self._steps += 1
        if len(self._waypoints) > 1 and (np.linalg.norm(way) < NEAR or self._steps > patience):
            del self._waypoints[0]
            self._steps = 0
            return self()
        return np.append(np.clip(way / REACH, -1, 1), (0.0, -1.0))
