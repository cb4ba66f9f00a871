"""What the command line says about `cfgs/`, as plain values. The only place that knows hydra.

hydra puts the files together and nothing else: it makes no folders, changes no directory and starts no logging.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ivideogpt.errors import UserError
from mbrl.metaworld_env import canonical_task

CFGS = Path(__file__).resolve().parent / "cfgs"
GROUPS_WITHOUT_TASK = ("easy", "medium", "hard", "any")


def compose_config(name: str, argv: Sequence[str]) -> dict[str, Any]:
    """
    Args:
        name: of the file in `cfgs/`.
        argv: such as ``task=plate_slide`` or ``+preset=cpu_demo``.

    Raises:
        UserError: an argument is not understood, names no setting or no task.
    """
    flags = [argument for argument in argv if argument.startswith("-")]
    if flags:
        raise UserError(f"{flags[0]}: settings are given as key=value, see --help")
    try:
        with initialize_config_dir(str(CFGS), version_base="1.3"):
            config = compose(name, [part for argument in argv for part in _as_hydra_wants(argument)])
        _check_complete(config)
        return OmegaConf.to_container(config, resolve=True)  # type: ignore[return-value]
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_reason(error, name)) from error


def help_text(name: str) -> str:
    """All settings with their defaults, as the files have them."""
    with initialize_config_dir(str(CFGS), version_base="1.3"):
        return OmegaConf.to_yaml(compose(name))


def _as_hydra_wants(argument: str) -> list[str]:
    """``task=drawer-open`` works like the tasks that have a file, and a noise schedule needs no quotes."""
    key, _, value = argument.partition("=")
    if key == "task_name":  # however it is written, the run's folder has one name
        return [f"task_name={_underlined(value)}"]
    if value.startswith("linear("):
        return [f'{key}="{value}"']
    if key != "task" or value in GROUPS_WITHOUT_TASK:
        return [argument]
    name = value.replace("-", "_")
    if (CFGS / "task" / f"{name}.yaml").is_file():
        return [f"task={name}"]
    return ["task=any", f"task_name={_underlined(value)}"]


def _underlined(task: str) -> str:
    return canonical_task(task).replace("-", "_")


def _check_complete(config: Any) -> None:
    if OmegaConf.is_missing(config, "task_name"):
        raise UserError("no task is given: add task_name=, or task= with the name of one")


def _reason(error: Exception, name: str) -> str:
    text = str(error).partition("\n")[0]
    if "preset" in text:
        presets = ", ".join(sorted(path.stem for path in (CFGS / "preset").glob("*.yaml")))
        return f"{text}; a preset is given as +preset=, and there are {presets}"
    if match := re.match(r"Could not override '([\w.]+)'", text):
        with initialize_config_dir(str(CFGS), version_base="1.3"):
            known = list(_keys(OmegaConf.to_container(compose(name))))
        near = difflib.get_close_matches(match[1], known, n=1)
        return f"no setting named {match[1]!r}; " + (f"did you mean {near[0]}?" if near else "--help lists them all")
    return f"{text}; settings are given as key=value, see --help"


def _keys(config: Any, prefix: str = "") -> list[str]:
    return [
        key
        for name, value in config.items()
        for key in (f"{prefix}{name}", *(_keys(value, f"{prefix}{name}.") if isinstance(value, dict) else ()))
    ]
