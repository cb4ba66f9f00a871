"""The whole state of a Meta-World task as arrays, so that a fresh one goes on with it bit for bit. Knows no agent.

Four places hold it: MuJoCo's integration state, the positions of bodies and sites in the model (tasks move them), the
Python attributes of the task, and its generator. `get_env_state` of Meta-World has the first in part only.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

State = dict[str, np.ndarray]  # flat, no objects: np.savez writes it, np.load reads it without pickle

MOVED_BY_TASKS = ("body_pos", "site_pos")  # fields of the model
GENERATOR = "_np_random"
ATTRIBUTE = "attribute."  # before the names of Python attributes
PLAIN = (bool, int, float, np.generic)


def simulator_state(env: Any) -> State:
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
        **{ATTRIBUTE + name: np.array(value) for name, value in _attributes(env).items()},
    }


def set_simulator_state(env: Any, state: State) -> None:
    """Continue from a state of the same task, whatever this one has done before."""
    import mujoco

    # A reset makes all attributes, among them those that are views of MuJoCo's memory, and gives numbers their types.
    env.seed(0)
    env.reset()
    for key, saved in state.items():
        if key.startswith(ATTRIBUTE):
            name = key.removeprefix(ATTRIBUTE)
            setattr(env, name, saved.copy() if saved.ndim else _like(getattr(env, name), saved[()]))
    getattr(env, GENERATOR).bit_generator.state = json.loads(str(state["generator"]))
    for field in MOVED_BY_TASKS:
        getattr(env.model, field)[:] = state[f"model.{field}"]
    kind = mujoco.mjtState.mjSTATE_INTEGRATION
    mujoco.mj_setState(env.model, env.data, state["physics"], kind)
    mujoco.mj_forward(env.model, env.data)  # computes what depends on the state: positions of bodies, contacts, forces
    mujoco.mj_setState(env.model, env.data, state["physics"], kind)  # forward has moved the solver's warm start


def _attributes(env: Any) -> dict[str, Any]:
    """Return numbers and arrays of the task itself; views of MuJoCo's memory come with the physics."""
    return {
        name: value
        for name, value in vars(env).items()
        if isinstance(value, PLAIN) or (isinstance(value, np.ndarray) and not _belongs_to_mujoco(value))
    }


def _like(present: Any, number: Any) -> Any:
    """Convert to the type of the present value: only floats fail on division by zero. Bin-picking starts with None."""
    return number if present is None else type(present)(number)


def _belongs_to_mujoco(array: np.ndarray) -> bool:
    owner: Any = array
    while isinstance(owner, np.ndarray):
        owner = owner.base
    return owner is not None
