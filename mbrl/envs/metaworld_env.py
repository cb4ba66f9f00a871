"""Meta-World tasks as a ``gymnasium.Env``: one camera picture per agent step, a new goal in every episode.

The protocol of the paper (action repeat, zero-action step after reset, reward) without frame stacking and without
the success bonus: those belong to the replay format.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np

from ivideogpt.errors import UserError
from mbrl.envs.collection_policies import scripted_policy
from mbrl.envs.env_settings import ACTION_DIM, METAWORLD, canonical_task
from mbrl.envs.looks import Looks
from mbrl.envs.offscreen import OffscreenRenderer, select_backend

MOVED_BY_TASKS = ("body_pos", "site_pos")  # fields of the model
GENERATOR = "_np_random"
ATTRIBUTE = "attribute."  # before the names of Python attributes
PLAIN = (bool, int, float, np.generic)
METADATA = {"render_modes": ["rgb_array"], "render_fps": 20}


class MetaWorldEnv(gymnasium.Env):
    """After `reset(seed=...)` the same actions give the same frames and rewards, bit for bit. Close it after use.

    Observations are frames (H, W, 3) uint8; a reward is the sum over the repeats of an action, and ``info["success"]``
    tells whether any of them succeeded. Episodes have no end of their own.

    Args:
        paper_reward: concerns button-press-topdown-wall alone, whose reward has changed since the paper.
        vary: factors of the looks that are new in each episode (`looks.py`).
    """

    metadata = METADATA

    def __init__(
        self,
        task: str,
        image_size: int = 64,
        action_repeat: int = 2,
        camera: str = "corner",
        paper_reward: bool = True,
        vary: Sequence[str] = (),
        render_mode: str = "rgb_array",
    ) -> None:
        select_backend()  # before Meta-World imports mujoco
        self.observation_space = gymnasium.spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
        self.action_space = gymnasium.spaces.Box(-1, 1, (ACTION_DIM,), np.float32)
        self.render_mode = render_mode
        self.task = canonical_task(task)
        self.action_repeat, self.camera = action_repeat, camera
        self._env = _make_task(self.task)
        if paper_reward and self.task == "button-press-topdown-wall":
            self._env.compute_reward = paper_button_reward(self._env.compute_reward)
        self._looks, self._looks_seed = Looks(self._env.model, vary) if vary else None, 0
        self._renderer = OffscreenRenderer(self._env.model, image_size, camera)
        self.state = np.zeros(39)  # full simulator observation, goal included: for scripted policies, not for agents

    @property
    def workspace(self) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper corner of the box that the hand can be sent to."""
        return self._env.mocap_low, self._env.mocap_high

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Sample goal and object from the seed, or one that is sampled, and return the first frame."""
        super().reset(seed=seed)
        seed = int(self.np_random.integers(2**31)) if seed is None else seed
        self._vary(seed)
        self._env.seed(seed)
        self._env.reset()
        self.state, *_ = self._env.step(np.zeros(ACTION_DIM, np.float32))
        return self.render(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        reward, success = 0.0, False
        for _ in range(self.action_repeat):
            self.state, step_reward, _, _, info = self._env.step(action)
            reward += float(step_reward)
            success = success or bool(info["success"])
        return self.render(), reward, False, False, {"success": success}

    def scripted_policy(self) -> Callable[[], np.ndarray]:
        """Return the policy that does the task from the last reset on: the action (4,) at the present state."""
        policy = scripted_policy(self.task)
        return lambda: policy(self.state)

    def _vary(self, seed: int) -> None:
        self._looks_seed = seed
        if self._looks is not None:
            self._looks.vary(seed)

    def render(self) -> np.ndarray:
        # The camera hangs upside-down and OpenGL's rows go upwards: together they give the upright, mirrored picture
        # of the published demonstrations.
        return self._renderer.render(self._env.data)

    def snapshot(self) -> dict[str, np.ndarray]:
        """Return everything that the future depends on, about 5 KB; possible from the first reset on."""
        looks = {} if self._looks is None else {"looks": np.array(self._looks_seed)}
        return {"task": np.array(self.task), "observation": self.state.copy(), **looks, **simulator_state(self._env)}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Continue from a snapshot, bit for bit; UserError if it belongs to another task."""
        if str(state["task"]) != self.task:
            raise UserError(f"a snapshot of {state['task']} cannot be restored in an environment of {self.task}")
        if "looks" in state:
            self._vary(int(state["looks"]))
        set_simulator_state(self._env, state)
        self.state = state["observation"].copy()

    def close(self) -> None:
        self._renderer.close()


gymnasium.register(METAWORLD.partition(":")[2], MetaWorldEnv, disable_env_checker=True, order_enforce=False)


def _make_task(task: str) -> Any:
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    env = ALL_V3_ENVIRONMENTS[f"{task}-v3"]()
    env._set_task_called = True
    env._freeze_rand_vec = False  # a new goal and object position in every episode
    env.seeded_rand_vec = True  # drawn from env.seed, not from numpy's global state
    env._partially_observable = False
    del env.sawyer_observation_space  # cached when the goal was hidden; observations are clipped to it
    env.max_path_length = sys.maxsize  # whoever steps decides how long an episode is
    return env


def paper_button_reward(compute_reward: Callable[..., tuple[float, ...]]) -> Callable[..., tuple[float, ...]]:
    """Reward a closed gripper in button-press-topdown-wall, as the paper's version did; Meta-World 3.1 wants it open.

    3.1 uses `max(obs[3], 0)` where the older one had `1 - obs[3]`, so we hand it that.
    """

    def compute_paper_reward(action: np.ndarray, obs: np.ndarray) -> tuple[float, ...]:
        inverted = obs.copy()
        inverted[3] = 1.0 - obs[3]
        reward, to_object, _, *rest = compute_reward(action, inverted)
        return reward, to_object, obs[3], *rest

    return compute_paper_reward


# ---- the whole state, so that a fresh environment goes on with it bit for bit
#
# Four places hold it: MuJoCo's integration state, the positions of bodies and sites in the model (tasks move them), the
# Python attributes of the task, and its generator. `get_env_state` of Meta-World has the first in part only.


def simulator_state(env: Any) -> dict[str, np.ndarray]:
    """Return copies of everything that the future of a Meta-World task depends on, after its first reset."""
    import mujoco

    kind = mujoco.mjtState.mjSTATE_INTEGRATION
    physics = np.empty(mujoco.mj_stateSize(env.model, kind))
    mujoco.mj_getState(env.model, env.data, physics, kind)
    generator = json.dumps(getattr(env, GENERATOR).bit_generator.state)
    return {
        "physics": physics,
        "generator": np.array(generator),
        **{f"model.{field}": getattr(env.model, field).copy() for field in MOVED_BY_TASKS},
        **{ATTRIBUTE + name: np.array(value) for name, value in vars(env).items() if _is_state(value)},
    }


def set_simulator_state(env: Any, state: dict[str, np.ndarray]) -> None:
    """Continue from a state of the same task, whatever this one has done before."""
    import mujoco

    # A reset makes all attributes, among them those that are views of MuJoCo's memory, and gives numbers their types.
    env.seed(0)
    env.reset()
    for key, saved in state.items():
        if key.startswith(ATTRIBUTE):
            name = key.removeprefix(ATTRIBUTE)
            present = getattr(env, name)
            if saved.ndim:
                setattr(env, name, saved.copy())
            else:  # numbers keep their type, as only Python's floats fail on division by zero; bin-picking's are None
                setattr(env, name, saved[()] if present is None else type(present)(saved[()]))
    getattr(env, GENERATOR).bit_generator.state = json.loads(str(state["generator"]))
    for field in MOVED_BY_TASKS:
        getattr(env.model, field)[:] = state[f"model.{field}"]
    kind = mujoco.mjtState.mjSTATE_INTEGRATION
    mujoco.mj_setState(env.model, env.data, state["physics"], kind)
    mujoco.mj_forward(env.model, env.data)  # computes what depends on the state: positions of bodies, contacts, forces
    mujoco.mj_setState(env.model, env.data, state["physics"], kind)  # forward has moved the solver's warm start


def _is_state(value: Any) -> bool:
    """Tell numbers and arrays of the task itself from views of MuJoCo's memory, which come with the physics."""
    while isinstance(value, np.ndarray):
        if value.base is None:
            return True
        value = value.base
    return isinstance(value, PLAIN)
