"""Scripted policies of some of RoboDesk's tasks: the end effector goes from waypoint to waypoint, beside an object."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Waypoint = tuple[str, tuple[float, float, float]]  # an object's name, and where to be from it, in metres

REACH = 0.08  # metres that the end effector moves in a step of full speed
NEAR = 0.05  # metres from a waypoint that count as there
PATIENCE = 10  # steps after which a waypoint that is not reached gives way to the next one


def _push_down(button: str) -> tuple[Waypoint, ...]:
    return (button, (0, 0, 0.14)), (button, (0.01, -0.01, 0.04))  # lightly: harder, the finger slides off in the end


WAYPOINTS: dict[str, tuple[Waypoint, ...]] = {
    "push_red": _push_down("red_button"),
    "push_green": _push_down("green_button"),
    "push_blue": _push_down("blue_button"),
    "flat_block_off_table": (
        ("flat_block", (-0.13, 0, 0.2)),
        ("flat_block", (-0.13, 0, 0.02)),
        ("flat_block", (0.3, 0, 0.02)),
    ),
    "open_slide": (
        ("slide_handle", (-0.08, -0.12, 0.02)),
        ("slide_handle", (-0.08, 0, 0)),
        ("slide_handle", (0.3, 0, 0)),
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
        name, offset = self._waypoints[0]
        way = self._place(name) + offset - self._place("end_effector")
        self._steps += 1
        if len(self._waypoints) > 1 and (np.linalg.norm(way) < NEAR or self._steps > PATIENCE):
            del self._waypoints[0]
            self._steps = 0
            return self()
        return np.append(np.clip(way / REACH, -1, 1), (0.0, -1.0))
