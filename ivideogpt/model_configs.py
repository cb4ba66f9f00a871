"""Types and ranges of the values in a network's config.json, checked before anything is built. Knows no network."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ivideogpt.errors import UserError, first_line

Range = tuple[float, float]

# Far beyond any model of this kind: what is larger is damaged, or meant to fill a machine.
TOKENIZER_NUMBERS: dict[str, Range] = {
    **dict.fromkeys(("in_channels", "out_channels", "patch_size"), (1, 64)),
    **dict.fromkeys(("latent_channels", "vq_embed_dim"), (1, 4096)),
    **dict.fromkeys(("num_vq_embeddings", "num_dyn_embeddings"), (1, 2**22)),
    **dict.fromkeys(("sample_size", "resolution"), (1, 2**16)),
    "layers_per_block": (1, 16),
    "norm_num_groups": (1, 2**14),
    "context_length": (1, 1024),
    "max_att_resolution": (0, 2**16),
}
TOKENIZER_LISTS: dict[str, Range | None] = {  # lists of strings, or of numbers in a range
    "block_out_channels": (1, 2**14),
    "down_block_types": None,
    "up_block_types": None,
}
MAX_BLOCKS = 16
LLAMA_NUMBERS: dict[str, Range] = {
    "vocab_size": (1, 2**24),
    "hidden_size": (1, 2**17),
    "intermediate_size": (1, 2**20),
    "num_hidden_layers": (1, 512),
    "num_attention_heads": (1, 4096),
    "num_key_value_heads": (1, 4096),
    "head_dim": (1, 2**16),
    "max_position_embeddings": (1, 2**24),
}
SHARES: dict[str, Range] = {  # numbers that need not be whole
    "scaling_factor": (1e-9, 1e9),
    "initializer_range": (0, 1e3),
    "rms_norm_eps": (0, 1),
    "rope_theta": (1, 1e15),
    "attention_dropout": (0, 1),
}
TEXTS = ("act_fn", "norm_type", "hidden_act")
SWITCHES = (
    *("mid_block_add_attention", "lookup_from_codebook", "force_upcast"),
    *("attention_bias", "mlp_bias", "tie_word_embeddings"),
)
OPTIONAL = ("vq_embed_dim", "num_key_value_heads", "head_dim")  # may be null
TABLES = ("rope_scaling", "rope_parameters")
CHECKED = {*TOKENIZER_NUMBERS, *TOKENIZER_LISTS, *LLAMA_NUMBERS, *SHARES, *TEXTS, *SWITCHES, *TABLES}


def check_tokenizer_config(values: Mapping[str, Any], file: Path) -> None:
    """Raise UserError naming the first value that has another type than expected, or is out of its range."""
    _check_values(values, TOKENIZER_NUMBERS, file)
    for name, limits in TOKENIZER_LISTS.items():
        parts = values.get(name, [])
        fits = isinstance(parts, list) and len(parts) <= MAX_BLOCKS
        if not fits or not all(isinstance(part, str) if limits is None else _in_range(part, limits) for part in parts):
            kind = "texts" if limits is None else f"whole numbers from {limits[0]} to {limits[1]}"
            raise UserError(f"{file}: {name} is {reprlib.repr(parts)}, expected a list of up to {MAX_BLOCKS} {kind}")


def check_llama_config(values: Mapping[str, Any], file: Path) -> None:
    """Raise UserError naming the first value that has another type than expected, or is out of its range."""
    _check_values(values, LLAMA_NUMBERS, file)
    for name in TABLES:
        table = values.get(name)
        if table is not None and not isinstance(table, dict):
            raise UserError(f"{file}: {name} is {reprlib.repr(table)}, expected an object or null")


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


def _check_values(values: Mapping[str, Any], whole: Mapping[str, Range], file: Path) -> None:
    for name, value in values.items():
        if value is None and name in OPTIONAL:
            continue
        if name in whole and not _in_range(value, whole[name]):
            expected = "a whole number from {} to {}".format(*whole[name])
        elif name in SHARES and not _in_range(value, SHARES[name], (int, float)):
            expected = "a number from {:g} to {:g}".format(*SHARES[name])
        elif name in TEXTS and not isinstance(value, str):
            expected = "a text"
        elif name in SWITCHES and not isinstance(value, bool):
            expected = "true or false"
        else:
            continue
        raise UserError(f"{file}: {name} is {reprlib.repr(value)}, expected {expected}")


def _in_range(value: Any, limits: Range, kinds: tuple[type, ...] = (int,)) -> bool:
    return type(value) in kinds and limits[0] <= value <= limits[1]
