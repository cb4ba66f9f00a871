"""Action spaces of several robots in one model: vectors of one length that also say whose action they are.

::

    shared columns    arm of 2 numbers   [a b 0 | 1 0]        adapters    [a b 0 0 0 | 1 0]
                      arm of 3 numbers   [a b c | 0 1]                    [0 0 a b c | 0 1]

The numbers behind the line give each space a bias of its own in a linear layer. With adapters each space has columns of
its own too, so that one matrix holds one linear layer a space. Knows tensors and JSON; knows no model and no episode.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ivideogpt.errors import UserError
from ivideogpt.files import check_fields, read_json, write_json
from ivideogpt.paths import folder_name

if TYPE_CHECKING:
    from torch import Tensor

WRITE = "python -m ivideogpt.data inspect PATH --write_action_spaces FILE.json"
MAX_DIM = 2**20


@dataclass(frozen=True)
class ActionSpace:
    """Actions of one kind of robot.

    Attributes:
        dim: length of an action.
        mean, std: actions become ``(action - mean) / std``; None: they are taken as they are.
        dimensions: meaning of each number, if known.
        datasets: data sets, by the name of their folder, whose actions are of this kind.
    """

    name: str
    dim: int
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    dimensions: tuple[str, ...] | None = None
    datasets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self, {"dim": 1}, MAX_DIM)
        for name in ("mean", "std", "dimensions"):
            values = getattr(self, name)
            if values is not None and len(values) != self.dim:
                raise UserError(f"action space {self.name!r}: {len(values)} values of {name}, but dim is {self.dim}")
        if (self.mean is None) != (self.std is None):
            raise UserError(f"action space {self.name!r}: give both mean and std, or null for both")
        numbers = (*(self.mean or ()), *(self.std or ()))
        if not all(type(number) in (int, float) and math.isfinite(number) for number in numbers):
            raise UserError(f"action space {self.name!r}: mean and std are {reprlib.repr(numbers)}, expected numbers")
        if min(self.std or (1.0,)) <= 0:
            raise UserError(f"action space {self.name!r}: a std is {min(self.std or ())}: give 1 to what never changes")
        if not all(isinstance(text, str) for text in (*(self.dimensions or ()), *self.datasets)):
            raise UserError(f"action space {self.name!r}: dimensions and datasets are lists of names")

    def __str__(self) -> str:
        return f"{self.name} ({self.dim} numbers)"

    def check_dim(self, dim: int | None, path: str) -> None:
        """Raise UserError unless the actions of the episode at ``path`` have this space's dimension."""
        if dim != self.dim:
            raise UserError(
                f"{path}: actions have {dim} dimensions, but action space {self.name!r} has {self.dim}: put its data "
                f"set into another space, or write the file again ({WRITE})"
            )


@dataclass(frozen=True)
class ActionSpaces:
    """The action spaces of a model, or of the data that it is trained on.

    Attributes:
        adapters: give each space columns of its own; otherwise all share the first ones.
    """

    spaces: tuple[ActionSpace, ...]
    adapters: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        for kind, names in (
            ("no two action spaces have one name", [space.name for space in self.spaces]),
            ("a data set has one action space", [name for space in self.spaces for name in space.datasets]),
        ):
            if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
                raise UserError(f"{kind}, but {', '.join(twice)} is named twice: name it once")
        if not self.spaces:
            raise UserError("spaces is empty: expected one action space at least")

    @property
    def length(self) -> int:
        """Length of an encoded action."""
        dims = [space.dim for space in self.spaces]
        return (sum(dims) if self.adapters else max(dims)) + len(dims)

    def find(self, name: str | None) -> ActionSpace:
        """Return the space with this name; without a name the only one. UserError lists the spaces."""
        found = [space for space in self.spaces if name in (None, space.name)]
        if len(found) != 1:
            given = "no action space was chosen" if name is None else f"there is no action space {name!r}"
            raise UserError(f"{given}; give action_space as one of {self}")
        return found[0]

    def find_for(self, dataset: str) -> ActionSpace:
        """Return the space of a data set, given by its name or by a path such as ``<folder>[@<camera>]``."""
        found = self._naming([dataset, dataset.rstrip("/").rpartition("/")[2], folder_name(dataset)])
        if found is None:
            raise UserError(f"data set {dataset!r} is in no action space: add it to the datasets of one of {self}")
        return found

    def of_robot(self, datasets: Sequence[str], name: str | None, path: str) -> list[str]:
        """Return those of the data sets at a path that are not in another space than ``name``, not even by a folder.

        Raises:
            UserError: all are of other robots.
        """
        space = self.find(name)
        owners = {each: self._naming([each, *reversed(each.partition("@")[0].split("/"))]) for each in datasets}
        kept = [dataset for dataset in datasets if owners[dataset] in (None, space)]
        if datasets and not kept:
            raise UserError(
                f"{path}: all of its data sets ({', '.join(datasets)}) are of another robot than action space {space}: "
                "give episodes of this one"
            )
        return kept

    def _naming(self, names: Iterable[str]) -> ActionSpace | None:
        """Return the space that has the first of the names that is in one."""
        return next((space for name in names for space in self.spaces if name in space.datasets), None)

    def with_datasets(self, datasets: Iterable[str], name: str | None) -> ActionSpaces:
        """Add those of the data sets that are in no space yet to the space ``name``; if there is only one, to that.

        Raises:
            UserError: there is no such space, or nothing to add to it.
        """
        known = {dataset for space in self.spaces for dataset in space.datasets}
        names = map(folder_name, datasets)
        new = tuple(dict.fromkeys(dataset for dataset in names if dataset not in known))
        if name is None and len(self.spaces) > 1 and new:
            raise UserError(f"data set {new[0]!r} is in no action space: give --action_space, one of {self}")
        if name is None and not new:
            return self
        chosen = self.find(name)
        if not new:
            raise UserError(f"action_space {name!r} does nothing: every data set is in a space; leave it out")
        added = replace(chosen, datasets=(*chosen.datasets, *new))
        return replace(self, spaces=tuple(added if space is chosen else space for space in self.spaces))

    def encode(self, actions: Tensor, name: str | None) -> Tensor:
        """Encode actions (..., D) of the space ``name``: (..., length)."""
        space = self.find(name)
        number = self.spaces.index(space)
        first = sum(earlier.dim for earlier in self.spaces[:number]) if self.adapters else 0
        if space.mean is not None and space.std is not None:
            actions = (actions - actions.new_tensor(space.mean)) / actions.new_tensor(space.std)
        encoded = actions.new_zeros(*actions.shape[:-1], self.length)
        encoded[..., first : first + space.dim] = actions
        encoded[..., self.length - len(self.spaces) + number] = 1
        return encoded

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ActionSpaces:
        """Invert :func:`dataclasses.asdict` of what JSON returns."""
        try:
            listed: list[dict[str, Any]] = [
                {key: tuple(value) if isinstance(value, list) else value for key, value in space.items()}
                for space in values["spaces"]
            ]
            return cls(**{**values, "spaces": tuple(ActionSpace(**space) for space in listed)})
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"no action spaces ({error}); expected what this writes: {WRITE}") from error

    @classmethod
    def read(cls, path: str | Path, adapters: bool = False) -> ActionSpaces:
        """Read a file of action spaces, or the ``ivideogpt.json`` of a model that has some; ``adapters`` adds them."""
        values = read_json(path, f"make one with {WRITE}")
        try:
            spaces = cls.from_json(values.get("action_spaces") or values)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        return replace(spaces, adapters=True) if adapters else spaces

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, asdict(self))

    def __str__(self) -> str:
        return ", ".join(map(str, self.spaces))


def usable_std(std: float, largest: float) -> float:
    """Return what to divide a number by: ``std``, or 1 if it never changes but by rounding. ``largest`` bounds it."""
    return std if std > 1e-6 * largest else 1.0


def same_encoding(one: ActionSpaces | None, other: ActionSpaces | None) -> bool:
    """Return whether both encode actions alike, whatever data sets they name."""
    if one is None or other is None:
        return one is other
    return _without_datasets(one) == _without_datasets(other)


def with_all_datasets(several: Sequence[ActionSpaces | None]) -> ActionSpaces | None:
    """Return spaces that encode alike as one, with the data sets of all."""
    first = several[0]
    if first is None:
        return None
    listed = zip(*(spaces.spaces for spaces in several if spaces is not None), strict=True)
    names = [dict.fromkeys(name for space in same for name in space.datasets) for same in listed]
    spaces = (replace(space, datasets=tuple(own)) for space, own in zip(first.spaces, names, strict=True))
    return replace(first, spaces=tuple(spaces))


def _without_datasets(spaces: ActionSpaces) -> ActionSpaces:
    return replace(spaces, spaces=tuple(replace(space, datasets=()) for space in spaces.spaces))
