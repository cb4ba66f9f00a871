"""Command-line flags from a frozen dataclass: one field a flag, its help beside it.

A flag may be *inert* (historical, does nothing any more): it warns when given. Nothing is ignored in silence.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import math
import os
import re
import sys
import types
import typing
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeVar

from ivideogpt.errors import UserError


class Flags(Protocol):
    """A dataclass whose fields are :func:`option`."""

    def validate(self) -> None:
        """Raise UserError if the flags do not fit together."""


Args = TypeVar("Args", bound=Flags)


REQUIRED = dataclasses.MISSING  # in place of a default

# Of flags that several commands share.
SAMPLING_RULES = ("sample", "expected_code")
ACTION_SPACE_HELP = "robot of a model of several: the name of its action space (not needed with one)"
ACTION_SPACES_HELP = "file of action spaces of a mix of robots: python -m ivideogpt.data inspect --write_action_spaces"
ADAPTERS_HELP = "give each action space columns of its own, that is, a linear layer of its own"
BACKEND_HELP = "what decodes tokens: torch, cpu_kernels, cuda_graph; auto: the fastest that runs on this device"


def option(
    default: Any,
    help: str,
    choices: Sequence[str] = (),
    minimum: float | None = None,
    maximum: float | None = None,
    inert: bool = False,
    positional: bool = False,
    negatable: bool = False,
) -> Any:
    """A dataclass field that is a command-line flag, or an argument without one; negatable: with ``--no-`` too."""
    facts: dict[str, Any] = dict(help=help, choices=choices, minimum=minimum, maximum=maximum)
    facts |= dict(inert=inert, positional=positional, negatable=negatable)
    return dataclasses.field(default=default, metadata=facts)


def redefine(base: type, name: str, default: Any, help: str | None = None) -> Any:
    """A flag of a base class with another default, and another help if that is given."""
    metadata = base.__dataclass_fields__[name].metadata  # type: ignore[attr-defined]
    return dataclasses.field(default=default, metadata=metadata if help is None else {**metadata, "help": help})


def parse(kind: type[Args], argv: Sequence[str] | None = None) -> Args:
    """Read flags into ``kind`` and check them before anything expensive starts; UserError if they do not fit."""
    parser = Parser(_program(argv), description=kind.__doc__, formatter_class=HelpFormatter, allow_abbrev=False)
    hints = typing.get_type_hints(kind)
    known = dataclasses.fields(kind)  # type: ignore[arg-type]
    for field in known:
        _add_flag(parser, field, hints[field.name])
    given = vars(parser.parse_args(argv)).items()
    args = kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in given})
    for field in known:
        value, minimum, maximum = getattr(args, field.name), field.metadata["minimum"], field.metadata["maximum"]
        numbers = [number for number in (value if isinstance(value, tuple) else (value,)) if isinstance(number, float)]
        if not all(map(math.isfinite, numbers)):
            raise UserError(f"--{field.name} is {value}: expected a finite number")
        if minimum is not None and value is not None and value < minimum:
            raise UserError(f"--{field.name} is {value}: it must be at least {minimum}")
        if maximum is not None and value is not None and value > maximum:
            raise UserError(f"--{field.name} is {value}: it must be at most {maximum}")
    args.validate()
    for field in known:
        if field.metadata["inert"] and getattr(args, field.name) != field.default:
            warnings.warn(f"--{field.name} has no effect ({field.metadata['help']})", stacklevel=2)
    return args


def run_command(program: str, commands: Mapping[str, tuple[str, str]], argv: Sequence[str]) -> None:
    """Run ``main`` of the module of the command that the first word names. It is imported only then.

    Args:
        commands: module and purpose of each command, by name.
    """
    name = argv[0] if argv else ""
    if name in ("-h", "--help"):
        lines = [f"  {name:<10}{purpose}" for name, (_, purpose) in commands.items()]
        hint = f"{program} COMMAND --help lists a command's flags"
        print("\n".join([f"usage: {program} COMMAND ...", "", *lines, "", hint]))
        return
    if name not in commands:
        raise UserError(f"unknown command {name!r}; expected {program} {{{','.join(commands)}}} ...")
    module, _ = commands[name]
    importlib.import_module(module).main(argv[1:])


def _program(argv: Sequence[str] | None) -> str:
    """Return what the user typed before these flags."""
    spec, words, flags = sys.modules["__main__"].__spec__, sys.argv[1:], list(argv or [])
    start = len(words) - len(flags)
    command = words[:start] if argv is not None and words[start:] == flags else []
    return " ".join([f"python -m {spec.name.removesuffix('.__main__')}" if spec else Path(sys.argv[0]).name, *command])


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Adds a flag's default, unless its help says it or there is none."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, ()) or "(default: " in (action.help or ""):
            return action.help
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """Reports a wrong command line in one line, without the list of all flags, and knows ``~`` as the home folder."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        words = sys.argv[1:] if args is None else args
        return super().parse_known_args([with_home(word) for word in words], namespace)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see --help)")


def with_home(word: str) -> str:
    """Put the home folder in place of ``~``, also where shells do not: ``--flag=~/x``, ``key=~/x``, ``lance:~/x``."""
    return re.sub(r"(?<![^=,:])~[\w.-]*(?=[/,]|$)", lambda found: os.path.expanduser(found[0]), word)


def _add_flag(parser: argparse.ArgumentParser, field: dataclasses.Field[Any], kind: Any) -> None:
    if isinstance(kind, types.UnionType):  # int | None
        kind = next(part for part in typing.get_args(kind) if part is not type(None))
    settings: dict[str, Any] = {"help": field.metadata["help"].replace("%", "%%")}
    if field.metadata["positional"]:
        parser.add_argument(field.name, type=kind, **settings)
        return
    if field.default is REQUIRED:
        settings["required"] = True
    else:
        settings["default"] = field.default
    if field.metadata["negatable"]:
        settings["action"] = argparse.BooleanOptionalAction
    elif typing.get_origin(kind) is tuple:  # several words
        settings |= {"nargs": "+", "type": typing.get_args(kind)[0]}
    elif kind is bool:  # a switch, which may also be given as --flag True or --flag False
        settings |= {"nargs": "?", "const": True, "type": _parse_bool}
    else:
        settings |= {"type": kind, "choices": field.metadata["choices"] or None}
    parser.add_argument(f"--{field.name}", **settings)


def _parse_bool(text: str) -> bool:
    if text.lower() not in ("true", "false", "1", "0"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False")
    return text.lower() in ("true", "1")
