"""``metrics.jsonl``: one JSON object a line, in which what is not finite is null."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

from ivideogpt.files import append_line, write_text

METRICS = "metrics.jsonl"


def finite_or_none(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """Return metrics for JSON, which has no word for NaN and infinity."""
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}


def append_metrics(file: Path, place: Mapping[str, int | str], metrics: Mapping[str, float]) -> None:
    """Append a line: where in the run it stands (split, step), then the metrics."""
    append_line(file, json.dumps({**place, **finite_or_none(metrics)}, allow_nan=False))


def cut_back(file: Path, step: int) -> None:
    """Remove lines after ``step``: a run that is resumed from there will write them again."""
    if file.exists():
        lines = file.read_text().splitlines()
        write_text(file, "".join(f"{line}\n" for line in lines if _is_until(line, step)))


def _is_until(line: str, step: int) -> bool:
    try:
        return json.loads(line)["step"] <= step
    except ValueError:  # the run was killed while it wrote the line
        return False
