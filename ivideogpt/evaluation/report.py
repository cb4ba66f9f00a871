"""Results of an evaluation as report.json and report.md. Knows numbers by name, folders, versions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ivideogpt.evaluation.bootstrap import Interval
from ivideogpt.files import atomic_file
from ivideogpt.metrics.table import METRICS

JSON_FILE, MARKDOWN_FILE = "report.json", "report.md"
PACKAGES = ("ivideogpt", "torch", "transformers", "numpy")

Candidates = Mapping[str, Mapping[str, Interval]]  # candidate -> metric -> mean over clips
Curves = Mapping[str, Mapping[str, Mapping[int, Interval]]]  # candidate -> metric -> frame -> mean over clips

PANEL_INCHES, DPI = (4.6, 3.4), 110


def candidates_as_json(candidates: Candidates) -> dict[str, dict[str, dict[str, float | int | None]]]:
    return {name: {metric: row[metric].as_json() for metric in row} for name, row in candidates.items()}


def curves_as_json(curves: Curves) -> dict[str, dict[str, dict[str, list[Any]]]]:
    """Return candidate -> metric -> frames, with mean, low and high of each."""
    result: dict[str, dict[str, dict[str, list[Any]]]] = {name: {} for name in curves}
    for name, metrics in curves.items():
        for metric, curve in metrics.items():
            points = [curve[frame].as_json() for frame in sorted(curve)]
            parts = {part: [point[part] for point in points] for part in ("mean", "low", "high")}
            result[name][metric] = {"frames": sorted(curve), **parts}
    return result


def number(metric: str, value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.{METRICS[metric].decimals}f}"


def with_interval(metric: str, interval: Interval) -> str:
    return interval.text(METRICS[metric].decimals)


def without_interval(metric: str, interval: Interval) -> str:
    return number(metric, interval.mean)


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


def draw_curves(path: Path, curves: Curves, num_context: int) -> None:
    """Plot one panel per metric, one line per candidate with its interval; context frames have a grey background."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    metrics = [name for name in METRICS if METRICS[name].in_curves and any(name in row for row in curves.values())]
    figure = Figure(figsize=(PANEL_INCHES[0] * len(metrics), PANEL_INCHES[1]), layout="constrained")
    panels = figure.subplots(1, len(metrics), squeeze=False)[0]
    for panel, metric in zip(panels, metrics, strict=True):
        for name, row in curves.items():
            frames = sorted(row.get(metric, {}))
            points = [row[metric][frame] for frame in frames]
            (line,) = panel.plot(frames, [point.mean for point in points], label=name.replace("_", " "))
            bounds = [point.low for point in points], [point.high for point in points]
            panel.fill_between(frames, *bounds, color=line.get_color(), alpha=0.2, linewidth=0)
        panel.axvspan(-0.5, num_context - 0.5, color="0.92", zorder=0)
        panel.set(title=METRICS[metric].title, xlabel="frame of the clip")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.grid(alpha=0.3)
    panels[0].legend(fontsize="small")
    with atomic_file(path) as file:
        figure.savefig(file, format="png", dpi=DPI)
