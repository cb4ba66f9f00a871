"""Exact float32 where it matters, and the environment variable that fixes the precision ``"auto"``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from ivideogpt.errors import UserError

BFLOAT16_SWITCH = "IVIDEOGPT_BFLOAT16"  # 1: "auto" is bfloat16 on every machine; 0: float32


def precision(name: str) -> torch.dtype | Literal["auto"]:
    """Return the precision of a name such as "float32"; "auto" stays what it is. UserError for other names."""
    dtype = getattr(torch, name, None)
    if name != "auto" and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise UserError(f"dtype is {name!r}, expected 'float32', 'bfloat16', 'float16' or 'auto'")
    return "auto" if dtype is None else dtype


def forced_bfloat16() -> bool | None:
    """Return what IVIDEOGPT_BFLOAT16 says of the precision "auto"; None if it is not set and the device decides."""
    value = os.environ.get(BFLOAT16_SWITCH)
    if not value:
        return None
    if value not in ("0", "1"):
        raise UserError(f"{BFLOAT16_SWITCH} is {value!r}, expected 1 (always) or 0 (never), or leave it unset")
    return value == "1"


@contextmanager
def full_float32() -> Iterator[None]:
    """Switch TF32 off for the duration, in products and in convolutions: it has no more mantissa than float16."""
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    before = products.allow_tf32, convolutions.allow_tf32
    products.allow_tf32 = convolutions.allow_tf32 = False
    try:
        yield
    finally:
        products.allow_tf32, convolutions.allow_tf32 = before
