"""Results of an evaluation as report.json and report.md. Knows numbers by name, folders, versions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ivideogpt.evaluation.bootstrap import Interval
from ivideogpt.evaluation.curves import Curves
from ivideogpt.metrics.table import METRICS

JSON_FILE, MARKDOWN_FILE = "report.json", "report.md"
PACKAGES = ("ivideogpt", "torch", "transformers", "numpy")

Candidates = Mapping[str, Mapping[str, Interval]]  # candidate -> metric -> mean over clips


# ---- numbers


def interval_as_json(interval: Interval) -> dict[str, float | int | None]:
    return {name: None if math.isnan(value) else value for name, value in asdict(interval).items()}


def candidates_as_json(candidates: Candidates) -> dict[str, dict[str, dict[str, float | int | None]]]:
    return {
        name: {metric: interval_as_json(value) for metric, value in row.items()} for name, row in candidates.items()
    }


def curves_as_json(curves: Curves) -> dict[str, dict[str, dict[str, list[Any]]]]:
    """Return candidate -> metric -> frames, with mean, low and high of each."""
    return {
        name: {metric: _curve_as_json(curve) for metric, curve in metrics.items()} for name, metrics in curves.items()
    }


def _curve_as_json(curve: Mapping[int, Interval]) -> dict[str, list[Any]]:
    frames = sorted(curve)
    points = [interval_as_json(curve[frame]) for frame in frames]
    return {"frames": frames, **{part: [point[part] for point in points] for part in ("mean", "low", "high")}}


# ---- text


def number(metric: str, value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.{METRICS[metric].decimals}f}"


def with_interval(metric: str, interval: Interval) -> str:
    return f"{number(metric, interval.mean)} [{number(metric, interval.low)}, {number(metric, interval.high)}]"


def label(metric: str) -> str:
    return METRICS[metric].heading


def in_order(metrics: Iterable[str]) -> list[str]:
    known = set(metrics)
    return [metric for metric in METRICS if metric in known]


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def candidate_table(candidates: Candidates, fvd: Mapping[str, float]) -> str:
    """Return a table with one row per candidate, one column per metric; FVD is one number over all clips."""
    metrics = in_order(metric for row in candidates.values() for metric in row)
    rows = []
    for name, row in candidates.items():
        cells = [with_interval(metric, row[metric]) if metric in row else "-" for metric in metrics]
        cells += [number("fvd", fvd.get(name, math.nan))] if fvd else []
        rows.append([name.replace("_", " "), *cells])
    return markdown_table(["", *map(label, metrics), *([label("fvd")] if fvd else [])], rows)


def headline(report: Mapping[str, Any], kind: str) -> str:
    clips = report["clips"]
    counted = f"{clips['number']} clips of {clips['episodes']} episodes."
    intervals = "Numbers in brackets hold 95 % of bootstrap replicates over episodes."
    return f"# {kind}: {report['settings']['model']}\n\n{counted} {intervals}"


def made_with(report: Mapping[str, Any]) -> str:
    """Return the settings, versions and files that are needed to make the report again."""
    checksums = {name: value for name, value in report["model"].items() if name.endswith("_checksum")}
    facts = {**report["settings"], **checksums, "clips_checksum": report["clips"]["checksum"], **report["versions"]}
    lines = [f"- {name}: `{value}`" for name, value in facts.items() if value is not None]
    return "## Made with\n\n" + "\n".join(lines)
