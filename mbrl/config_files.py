"""Composition of `cfgs/` and the command line into plain values. The only place that knows hydra.

hydra puts the files together and nothing else: it makes no folders, changes no directory and starts no logging.
"""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ivideogpt.errors import UserError, first_line
from ivideogpt.flags import Parser, with_home
from mbrl.envs.env_settings import canonical_task, is_metaworld
from mbrl.run_folder import flat

CFGS = Path(__file__).resolve().parent / "cfgs"
GROUPS_WITHOUT_TASK = ("easy", "medium", "hard", "any")
SCHEDULES = ("linear(", "step_linear(")


@dataclass(frozen=True)
class CommandLine:
    """A training command, as hydra's commands are given."""

    config_name: str  # file in `cfgs/`, without its ending
    runs: list[list[str]]  # the overrides of each run; more than one only with ``--multirun``
    first_run: int  # the one to begin with, counted from 1

    @classmethod
    def read(cls, argv: Sequence[str], config_name: str) -> CommandLine:
        """Separate flags from overrides, and take apart what is to be run with several values.

        Args:
            config_name: what it is unless ``--config-name`` is given.

        Raises:
            UserError: there is no such configuration, or several values are given without ``--multirun``.
        """
        flags = Parser(add_help=False, allow_abbrev=False)
        flags.add_argument("-cn", "--config-name", default=config_name)
        flags.add_argument("-m", "--multirun", action="store_true")
        flags.add_argument("--first-run", type=int, default=1)
        given, overrides = flags.parse_known_args(argv)
        name = given.config_name.removesuffix(".yaml")
        if not (CFGS / f"{name}.yaml").is_file():
            known = ", ".join(sorted(path.stem for path in CFGS.glob("*.yaml")))
            raise UserError(f"--config-name {name}: {CFGS} has {known}; put a file of your own there")
        choices = [_choices(override) for override in overrides]
        several = [override for override, values in zip(overrides, choices, strict=True) if len(values) > 1]
        if several and not given.multirun:
            raise UserError(f"{several[0]}: several values make several runs, one after another, with --multirun (-m)")
        runs = [list(run) for run in itertools.product(*choices)]
        if not 1 <= given.first_run <= len(runs):
            raise UserError(f"--first-run is {given.first_run}: these are {len(runs)} runs")
        return cls(name, runs, given.first_run)


def _choices(override: str) -> list[str]:
    """Split ``seed=1,2`` into ``seed=1`` and ``seed=2``. :func:`compose_config` refuses what cannot be parsed."""
    try:
        parsed = OverridesParser.create().parse_override(_quoted(override))
        if not parsed.is_sweep_override():
            return [override]
        return [f"{parsed.get_key_element()}={value}" for value in parsed.sweep_string_iterator()]
    except HydraException:
        return [override]


def compose_config(name: str, argv: Sequence[str]) -> dict[str, Any]:
    """Compose a file of `cfgs/` with arguments such as ``task=plate_slide`` or ``+preset=cpu_demo``.

    Raises:
        UserError: an argument is not understood, names no setting or no task.
    """
    flags = [argument for argument in argv if argument.startswith("-")]
    if flags:
        raise UserError(
            f"{flags[0]}: settings are given as key=value; of hydra's flags there are --multirun (-m) and "
            "--config-name (-cn), see --help"
        )
    for argument in argv:
        if re.match(r"[+~]*hydra[./=]", argument):
            raise UserError(
                f"{argument}: hydra only puts the settings together here, it makes no folders and starts no jobs; "
                "run_dir= names the run's folder, --multirun makes several runs one after another"
            )
    try:
        with initialize_config_dir(str(CFGS), version_base="1.3"):
            config = compose(name, [part for argument in argv for part in _as_hydra_wants(argument)])
        if OmegaConf.is_missing(config, "task_name"):
            raise UserError("no task is given: add task_name=, or task= with the name of one")
        return _with_home(OmegaConf.to_container(config, resolve=True))
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_reason(error, name)) from error
    except ValueError as error:  # an argument has no key, such as =5
        raise UserError(f"{first_line(error)}; settings are given as key=value, see --help") from error


def _with_home(value: Any) -> Any:
    """Put the home folder in place of ``~`` in every text of a file, as the parser does on the command line."""
    if isinstance(value, dict):
        return {name: _with_home(inner) for name, inner in value.items()}
    return with_home(value) if isinstance(value, str) else value


def help_text(name: str) -> str:
    """Return all settings with their defaults, as the files have them."""
    with initialize_config_dir(str(CFGS), version_base="1.3"):
        return OmegaConf.to_yaml(compose(name))


def _as_hydra_wants(argument: str) -> list[str]:
    """Translate arguments for hydra: ``task=drawer-open`` to a task's file, noise schedules to quoted text."""
    key, _, value = argument.partition("=")
    if key == "task_name":  # however it is written, the run's folder has one name
        return [f"task_name={_underlined(value)}"]
    if value.startswith(SCHEDULES):
        return [_quoted(argument)]
    if key != "task" or value in GROUPS_WITHOUT_TASK:
        return [argument]
    name = value.replace("-", "_")
    if (CFGS / "task" / f"{name}.yaml").is_file():
        return [f"task={name}"]
    return ["task=any", f"task_name={_underlined(value)}"]


def _quoted(argument: str) -> str:
    """Quote a noise schedule, which hydra would take for a function."""
    key, _, value = argument.partition("=")
    return f'{key}="{value}"' if value.startswith(SCHEDULES) else argument


def _underlined(task: str) -> str:
    return canonical_task(task).replace("-", "_") if is_metaworld(task) else task


def _reason(error: Exception, name: str) -> str:
    text = str(error).partition("\n")[0]
    if "preset" in text:
        presets = ", ".join(sorted(path.stem for path in (CFGS / "preset").glob("*.yaml")))
        return f"{text}; a preset is given as +preset=, and there are {presets}"
    if match := re.match(r"Could not override '([\w.]+)'", text):
        with initialize_config_dir(str(CFGS), version_base="1.3"):
            known = flat(OmegaConf.to_container(compose(name)))  # type: ignore[arg-type]
        near = difflib.get_close_matches(match[1], known, n=1)
        return f"no setting named {match[1]!r}; " + (f"did you mean {near[0]}?" if near else "--help lists them all")
    return f"{text}; settings are given as key=value, see --help"
