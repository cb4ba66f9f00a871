"""Curves of scores over the frames of a clip. Knows numbers by name; knows no pixels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ivideogpt.evaluation.bootstrap import Interval
from ivideogpt.files import atomic_file
from ivideogpt.metrics.table import METRICS

Curves = Mapping[str, Mapping[str, Mapping[int, Interval]]]  # candidate -> metric -> frame -> mean over clips

PANEL_INCHES, DPI = (4.6, 3.4), 110


def draw_curves(path: Path, curves: Curves, num_context: int) -> None:
    """Plot one panel per metric, one line per candidate with its interval; context frames have a grey background."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    metrics = [
        name for name, metric in METRICS.items() if metric.in_curves and any(name in row for row in curves.values())
    ]
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
