"""Named results of a network, readable as attributes, by key and by position, as Hugging Face's are."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

from torch.utils import _pytree


class Output(OrderedDict[str, Any]):
    """Base of classes that declare what they hold by annotations; entries that are None are absent.

    A mapping that PyTorch can take apart: DDP, FSDP and accelerate look in it for the tensors to work on.
    """

    _names: frozenset[str] = frozenset()

    def __init_subclass__(cls) -> None:
        cls._names = cls._names | frozenset(cls.__annotations__)
        _pytree.register_pytree_node(
            cls,
            lambda output: (list(output.values()), list(output)),
            lambda values, names: cls(zip(names, values, strict=True)),
            serialized_type_name=f"{cls.__module__}.{cls.__name__}",
        )

    def __init__(self, values: Mapping[str, Any] | Iterable[tuple[str, Any]] = (), /, **named: Any) -> None:
        entries = dict(values, **named)
        super().__init__((name, value) for name, value in entries.items() if value is not None)

    def __getattr__(self, name: str) -> Any:
        if name in self._names:
            return self.get(name)
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self._names:
            self[name] = value
        else:
            super().__setattr__(name, value)

    def __getitem__(self, key: str | int) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else tuple(self.values())[key]
