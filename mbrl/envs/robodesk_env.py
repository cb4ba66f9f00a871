"""RoboDesk's tasks as a ``gymnasium.Env`` of frames, as the benchmark VP2 uses them.

Two corrections of that benchmark are part of it. Positions of blocks at the reset are copied: the package keeps views
of the present ones, from which no block ever differs. The state has the positions of objects, where the package has
their velocities once more.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium
import numpy as np
from PIL import Image

from ivideogpt.errors import UserError
from mbrl.envs.offscreen import select_backend
from mbrl.envs.robodesk_scripts import WAYPOINTS, WaypointPolicy

TASKS = (
    "push_red",
    "push_green",
    "push_blue",
    "upright_block_off_table",
    "flat_block_off_table",
    "open_slide",
    "open_drawer",
)
NUM_JOINTS = 9  # the robot has so many, its fingers included
BLOCKS = ("flat_block", "upright_block", "ball")


class RoboDeskEnv(gymnasium.Env):
    """One of VP2's seven tasks. After `reset(seed=...)` the same actions give the same frames. Close it after use.

    Observations are frames (H, W, 3) uint8. Actions are end-effector x, y, z, wrist and gripper in [-1, 1]. A reward is
    the package's dense one, summed over the repeats; ``info["success"]`` tells whether the task is done after the step.
    Episodes have no end of their own.

    Args:
        fast_rendering: no shadows and no antialiasing: 20 times as fast in software, but other pictures than those that
            published models were trained on.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 5}

    def __init__(
        self,
        task: str = "push_red",
        image_size: int = 64,
        action_repeat: int = 50,
        fast_rendering: bool = False,
        render_mode: str = "rgb_array",
    ) -> None:
        if task not in TASKS:
            raise UserError(f"no RoboDesk task named {task!r}; there are {', '.join(TASKS)}")
        select_backend()  # before the package imports mujoco
        self.observation_space = gymnasium.spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
        self.action_space = gymnasium.spaces.Box(-1, 1, (5,), np.float32)
        self.render_mode, self.task = render_mode, task
        self._desk = _robodesk().RoboDesk(task, "dense", action_repeat, episode_length=None, image_size=image_size)
        if fast_rendering:
            quality = self._desk.physics.model.vis.quality
            quality.offsamples = quality.shadowsize = 0  # read when the first picture is made

    @property
    def state(self) -> np.ndarray:
        """State (73,) in VP2's order: positions and velocities of the robot (9 each), of the objects (29 and 26)."""
        positions, velocities = self._desk.physics.data.qpos, self._desk.physics.data.qvel
        robot, objects = slice(NUM_JOINTS), slice(NUM_JOINTS, None)
        return np.concatenate([positions[robot], velocities[robot], positions[objects], velocities[objects]])

    def place(self, name: str) -> np.ndarray:
        """Return the place (3,) of a body, a geom or a site, by its name in the model."""
        data = self._desk.physics.named.data
        for places in (data.xpos, data.geom_xpos, data.site_xpos):
            if name in places.axes.row.names:
                return places[name].copy()
        raise UserError(f"nothing on the desk is named {name!r}")

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Place robot and objects at random, by the seed or by one that is sampled, and return the first frame."""
        super().reset(seed=seed)
        with _seeded(int(self.np_random.integers(2**31)) if seed is None else seed):
            self._desk.reset()
        self._note_positions()
        return self.render(), {}

    def reset_to(self, state: np.ndarray) -> np.ndarray:
        """Begin an episode in a state (73,), at rest apart from its velocities, and return its frame."""
        physics, objects = self._desk.physics, 2 * NUM_JOINTS
        num_positions = physics.model.nq - NUM_JOINTS
        physics.reset()
        physics.data.qpos[:] = np.concatenate([state[:NUM_JOINTS], state[objects : objects + num_positions]])
        physics.data.qvel[:] = np.concatenate([state[NUM_JOINTS:objects], state[objects + num_positions :]])
        physics.forward()
        self._desk.physics_copy.data.qpos[:] = physics.data.qpos
        self._note_positions()
        return self.render()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        observation, reward, _, _ = self._desk.step(action)
        success = bool(self._desk._get_task_reward(self.task, "success"))
        return observation["image"], float(reward), False, False, {"success": success}

    def scripted_policy(self) -> WaypointPolicy:
        """Return the policy that does the task from the last reset on; UserError if there is none for it."""
        if self.task not in WAYPOINTS:
            raise UserError(f"there is no scripted policy for {self.task}; there is for {', '.join(WAYPOINTS)}")
        return WaypointPolicy(WAYPOINTS[self.task], self.place)

    def render(self) -> np.ndarray:
        return self._desk.render()

    def snapshot(self) -> dict[str, np.ndarray]:
        """Return everything that the future depends on."""
        start = {f"start.{name}": np.array(place) for name, place in self._desk.original_pos.items()}
        return {"task": np.array(self.task), "physics": self._integration_state(), **start}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Continue from a snapshot; UserError if it belongs to another task."""
        if str(state["task"]) != self.task:
            raise UserError(f"a snapshot of {state['task']} cannot be restored in an environment of {self.task}")
        import mujoco

        physics, kind = self._desk.physics, mujoco.mjtState.mjSTATE_INTEGRATION
        model, data = physics.model.ptr, physics.data.ptr
        mujoco.mj_setState(model, data, state["physics"], kind)
        mujoco.mj_forward(model, data)
        mujoco.mj_setState(model, data, state["physics"], kind)  # forward has moved the solver's warm start
        self._desk.physics_copy.data.qpos[:] = physics.data.qpos
        self._desk.original_pos = {name: state[f"start.{name}"].copy() for name in BLOCKS}

    def close(self) -> None:
        self._desk.physics.free()

    def _integration_state(self) -> np.ndarray:
        import mujoco

        physics, kind = self._desk.physics, mujoco.mjtState.mjSTATE_INTEGRATION
        state = np.empty(mujoco.mj_stateSize(physics.model.ptr, kind))
        mujoco.mj_getState(physics.model.ptr, physics.data.ptr, state, kind)
        return state

    def _note_positions(self) -> None:
        self._desk.original_pos = {name: self._desk.physics.named.data.xpos[name].copy() for name in BLOCKS}
        self._desk.drawer_opened = False


def _robodesk() -> Any:
    """Import the package, which is older than gymnasium and pillow 10; UserError if it is not installed."""
    logging.getLogger("absl").setLevel(logging.ERROR)  # inverse kinematics at the edge of its reach
    sys.modules.setdefault("gym", gymnasium)  # it uses Env and spaces
    if not hasattr(Image, "ANTIALIAS"):
        Image.ANTIALIAS = Image.Resampling.LANCZOS  # type: ignore[attr-defined]
    try:
        import robodesk
    except ImportError as error:
        raise UserError(
            f"no RoboDesk here ({error}): pip install -e '.[robodesk]' and pip install --no-deps robodesk==1.0.0"
        ) from error
    return robodesk


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed NumPy's global generator, from which the package draws, and put it back."""
    before = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(before)


for _task in TASKS:  # ivideogpt/RoboDesk-push_red-v0, and ivideogpt/RoboDesk-push_red-fast-v0
    for _suffix, _fast in (("", False), ("-fast", True)):
        gymnasium.register(
            f"ivideogpt/RoboDesk-{_task}{_suffix}-v0",
            RoboDeskEnv,
            kwargs={"task": _task, "fast_rendering": _fast},
            disable_env_checker=True,
            order_enforce=False,
        )
