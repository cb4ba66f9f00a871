"""Read a network's config.json, and check types and ranges of its values before anything is built. Knows no network."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from ivideogpt.errors import UserError, first_line
from ivideogpt.files import read_json

CONFIG_FILE = "config.json"
MAX_BLOCKS = 16


class Kind(NamedTuple):
    """A test of a value, and what it is expected to be, for the message."""

    fits: Callable[[Any], bool]
    expected: str


def _whole(low: int, high: int) -> Kind:
    return Kind(lambda value: type(value) is int and low <= value <= high, f"a whole number from {low} to {high}")


def _number(low: float, high: float) -> Kind:
    fits: Callable[[Any], bool] = lambda value: type(value) in (int, float) and low <= value <= high  # noqa: E731
    return Kind(fits, f"a number from {low:g} to {high:g}")


def _or_null(kind: Kind) -> Kind:
    return Kind(lambda value: value is None or kind.fits(value), f"{kind.expected}, or null")


def _blocks(kind: Kind) -> Kind:
    def fits(value: Any) -> bool:
        return isinstance(value, list) and len(value) <= MAX_BLOCKS and all(map(kind.fits, value))

    return Kind(fits, f"a list of up to {MAX_BLOCKS}, each {kind.expected}")


_TEXT = Kind(lambda value: isinstance(value, str), "a text")
_SWITCH = Kind(lambda value: isinstance(value, bool), "true or false")
_OBJECT = Kind(lambda value: isinstance(value, dict), "an object")

# Values of tokenizers, then of transformers. Ranges go far beyond any model of this kind: what is larger is damaged, or
# meant to fill a machine.
KINDS: dict[str, Kind] = {
    **dict.fromkeys(("in_channels", "out_channels", "patch_size"), _whole(1, 64)),
    **dict.fromkeys(("num_vq_embeddings", "num_dyn_embeddings"), _whole(1, 2**22)),
    **dict.fromkeys(("sample_size", "resolution"), _whole(1, 2**16)),
    "latent_channels": _whole(1, 4096),
    "vq_embed_dim": _or_null(_whole(1, 4096)),
    "layers_per_block": _whole(1, 16),
    "norm_num_groups": _whole(1, 2**14),
    "context_length": _whole(1, 1024),
    "max_att_resolution": _whole(0, 2**16),
    "block_out_channels": _blocks(_whole(1, 2**14)),
    **dict.fromkeys(("down_block_types", "up_block_types"), _blocks(_TEXT)),
    "scaling_factor": _number(1e-9, 1e9),
    **dict.fromkeys(("mid_block_add_attention", "lookup_from_codebook", "force_upcast"), _SWITCH),
    **dict.fromkeys(("act_fn", "norm_type"), _TEXT),
    "vocab_size": _whole(1, 2**24),
    "hidden_size": _whole(1, 2**17),
    "intermediate_size": _whole(1, 2**20),
    "num_hidden_layers": _whole(1, 512),
    "num_attention_heads": _whole(1, 4096),
    "num_key_value_heads": _or_null(_whole(1, 4096)),
    "head_dim": _or_null(_whole(1, 2**16)),
    "max_position_embeddings": _whole(1, 2**24),
    "initializer_range": _number(0, 1e3),
    "rms_norm_eps": _number(0, 1),
    "rope_theta": _number(1, 1e15),
    "attention_dropout": _number(0, 1),
    "hidden_act": _TEXT,
    **dict.fromkeys(("attention_bias", "mlp_bias", "tie_word_embeddings"), _SWITCH),
    **dict.fromkeys(("rope_scaling", "rope_parameters"), _or_null(_OBJECT)),
}


def config_file(path: str | Path) -> Path:
    """Return a config file as it is, and ``config.json`` of a folder."""
    return Path(path) / CONFIG_FILE if Path(path).is_dir() else Path(path)


def read_config(path: str | Path) -> dict[str, Any]:
    """Return the values in a config file, or in ``config.json`` of a folder.

    A UserError names the file, and the first value that has another type than expected or is out of its range.
    """
    file = config_file(path)
    values = read_json(file)
    for name, value in values.items():
        if name in KINDS and not KINDS[name].fits(value):
            raise UserError(f"{file}: {name} is {reprlib.repr(value)}, expected {KINDS[name].expected}")
    return values


@contextmanager
def described_by(file: Path) -> Iterator[None]:
    """Turn what building a network raises into a UserError: values that are sound alone need not go together."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    except Exception as error:  # libraries raise nearly anything for a config that they cannot build
        raise UserError(
            f"{file} describes no network that can be built ({type(error).__name__}: {first_line(error)}); take it "
            "from where the weights are from"
        ) from error
