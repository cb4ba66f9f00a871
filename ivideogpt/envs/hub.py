"""Environments as folders, as LeRobot's EnvHub loads them: ``env.py`` beside all that it needs.

::

    env.py             make_env(n_envs=1, use_async_envs=False)
    environment.json   settings
    model/             the world model
    contexts.npz       frames (E, M, H, W, 3) uint8 that episodes begin with
    functions.py       reward(frames) and success(frames) in place of the model's heads, if there are some
    README.md  requirements.txt
"""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode

from ivideogpt.envs.contexts import Contexts, GivenContexts, start_sampler
from ivideogpt.envs.registration import load_model
from ivideogpt.envs.settings import FrameFunction
from ivideogpt.envs.vector_env import WorldModelVectorEnv
from ivideogpt.errors import UserError
from ivideogpt.files import atomic_path, read_json, write_json, write_text

SETTINGS, MODEL, CONTEXTS, FUNCTIONS = "environment.json", "model", "contexts.npz", "functions.py"
ENV_PY = '''"""Episodes in a world model. README.md says how to use them."""

from pathlib import Path

from ivideogpt.envs.hub import open_folder


def make_env(n_envs=1, use_async_envs=False):
    """Make a vector environment. Its rows are one batch of one model, so `use_async_envs` changes nothing."""
    return open_folder(Path(__file__).parent, n_envs)
'''
REQUIREMENTS = "# and ivideogpt itself: pip install -e '.[envs]' in a checkout of it\ngymnasium>=1.1.1\n"
README = """# {task}

Episodes in an iVideoGPT world model: {resolution} x {resolution} pixels, actions of {action_dim} numbers, {horizon}
steps. After `pip install -r requirements.txt`:

```python
from env import make_env

envs = make_env(n_envs=4)
observations, infos = envs.reset(seed=0)  # {{"pixels": (4, {resolution}, {resolution}, 3) uint8}}
```

`envs` is a `gymnasium.vector.VectorEnv` that resets in the same step. There is no `agent_pos`: the world model has no
proprioception. `infos["final_info"]["is_success"]` tells whether an episode that has ended succeeded.
"""


def write_folder(
    folder: Path, env: WorldModelVectorEnv, contexts: Contexts, num_contexts: int, seed: int, functions: Path | None
) -> None:
    """Write an environment, with ``num_contexts`` starts sampled from the contexts, into a new or empty folder."""
    model, task = env.model, env.settings.task
    sample = start_sampler(contexts, model, model.tokenizer.context_length)
    starts = [sample(np.random.default_rng([seed, number])).movedim(1, -1).numpy() for number in range(num_contexts)]
    facts = dict(resolution=model.metadata.resolution, action_dim=model.action_dim, horizon=env.horizon)
    with atomic_path(folder) as partial:
        model.save_pretrained(partial / MODEL)
        np.savez_compressed(partial / CONTEXTS, frames=np.stack(starts))
        chosen = {} if model.action_space is None else {"action_space": model.action_space}
        write_json(partial / SETTINGS, {"horizon": env.horizon, "task": task, **chosen})
        write_text(partial / "env.py", ENV_PY)
        write_text(partial / "README.md", README.format(task=task or "Episodes in a world model", **facts))
        write_text(partial / "requirements.txt", REQUIREMENTS)
        if functions is not None:
            shutil.copyfile(functions, partial / FUNCTIONS)


def open_folder(folder: Path, num_envs: int) -> WorldModelVectorEnv:
    """Make the environment that :func:`write_folder` has written, as LeRobot's evaluation expects it."""
    functions = read_functions(folder / FUNCTIONS) if (folder / FUNCTIONS).exists() else {}
    with np.load(folder / CONTEXTS) as file:
        contexts = GivenContexts(file["frames"])
    settings = read_json(folder / SETTINGS)
    return WorldModelVectorEnv(
        load_model(str(folder / MODEL), action_space=settings.pop("action_space", None)),
        contexts,
        num_envs,
        observation_key="pixels",
        autoreset_mode=AutoresetMode.SAME_STEP,
        render_mode="rgb_array",
        **settings,
        **functions,
    )


def read_functions(path: Path) -> dict[str, FrameFunction]:
    """Run a Python file and return its functions ``reward`` and ``success``, those that it has, by name.

    Raises:
        UserError: there is no such file, or none of the functions in it.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected a Python file with a function reward(frames)")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path}: expected a Python file, whose name ends in .py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (ImportError, SyntaxError) as error:
        raise UserError(f"{path}: it cannot be imported ({error})") from error
    found: dict[str, Any] = {name: getattr(module, name) for name in ("reward", "success") if hasattr(module, name)}
    if not found:
        raise UserError(f"{path}: it has neither a function reward(frames) nor success(frames)")
    return found
