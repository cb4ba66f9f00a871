"""Compare episodes of policies in a world model with those in reality, from the same starts.

Knows numbers by name; knows no policies and no environments.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ivideogpt.errors import UserError
from ivideogpt.evaluation.bootstrap import NUM_REPLICATES, BootstrapMeans, Interval, interval_of
from ivideogpt.evaluation.report import DPI, MARKDOWN_FILE, markdown_table
from ivideogpt.files import ADVICE, KeptRows, atomic_file, write_text

FIGURE_FILE = "policies.png"
QUANTITIES = {"return": 1, "success": 2}  # name -> decimals
COLUMNS = ("real_success", "imagined_success", "real_return", "imagined_return")


@dataclass(frozen=True)
class EpisodeRow:
    """One start, played by one policy in the simulator and in the world model."""

    policy: str
    episode: int
    sees_frames: bool  # it acted in the world model, too; else its actions in the simulator were repeated there
    real_return: float  # sums of rewards, without discount or bonus
    imagined_return: float  # sums of rewards, without discount or bonus
    real_success: bool  # whether any step succeeded
    imagined_success: bool  # whether any step succeeded


PolicyRows = KeptRows[EpisodeRow]


def read_rows(folder: Path, settings: Mapping[str, Any]) -> PolicyRows:
    """Return the state of an evaluation: policies that are there are not played again.

    Raises:
        UserError: the folder holds another evaluation, damaged rows, or some episodes of a policy only.
    """
    rows = KeptRows(folder, EpisodeRow, settings)
    numbers = {row.policy: [other.episode for other in rows.rows if other.policy == row.policy] for row in rows.rows}
    num_episodes = settings.get("episodes") or len(rows.rows) // max(len(numbers), 1)
    if any(found != [*range(num_episodes)] for found in numbers.values()):
        raise UserError(f"{rows.path}: lines are missing; {ADVICE}")
    return rows


def pearson(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Return the correlation of two series, NaN where one of them does not vary; that of two points says nothing."""
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    return float(np.corrcoef(x, y)[0, 1])


def spearman(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Return the correlation of ranks; equal values share the mean of theirs."""
    return pearson(_ranks(x), _ranks(y))


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def correlate(
    real: NDArray[np.float64],
    imagined: NDArray[np.float64],
    coefficient: Callable[[NDArray[np.float64], NDArray[np.float64]], float],
) -> Interval:
    """Correlate the policies' means of (policies, episodes); the bootstrap resamples episodes, which policies share."""
    rng, num_episodes = np.random.default_rng(0), real.shape[1]
    choices = rng.integers(num_episodes, size=(NUM_REPLICATES, num_episodes))
    replicates = np.array([coefficient(real[:, some].mean(1), imagined[:, some].mean(1)) for some in choices])
    return interval_of(coefficient(real.mean(1), imagined.mean(1)), replicates)


def matrix(rows: Sequence[EpisodeRow], name: str) -> NDArray[np.float64]:
    """Return a quantity of all rows as (policies, episodes), in their order."""
    policies = list(dict.fromkeys(row.policy for row in rows))
    return np.array([[float(getattr(row, name)) for row in rows if row.policy == policy] for policy in policies])


EXPLANATION = """Every policy plays the same starts in the simulator and in the world model. A policy that sees frames
chooses its actions in both. One that needs the simulator's state cannot act in the world model: its real actions are
repeated there (marked *repeated*). Returns are sums of rewards without discount, a success is an episode with at least
one successful step, numbers in brackets hold 95 % of bootstrap replicates over episodes."""


WORST = """## Where the world model was most wrong

Real left, imagined right: the episode of each policy whose return differs most."""


def write_report(rows: PolicyRows, videos: Sequence[str]) -> str:
    """Write report.md and policies.png, and return the text."""
    text = "\n\n".join(
        [
            "# Policies, imagined and real",
            EXPLANATION,
            _policy_table(rows.rows),
            f"![imagined over real]({FIGURE_FILE})",
            _correlation_table(rows.rows),
            _agreement(rows.rows),
            WORST,
            *(f"{name}\n\n![{name}]({name}.gif)" for name in videos),
            "## Made with",
            "\n".join(f"- {name}: `{value}`" for name, value in rows.settings.items()),
        ]
    )
    draw(rows.folder / FIGURE_FILE, rows.rows)
    write_text(rows.folder / MARKDOWN_FILE, text + "\n")
    return text


def _policy_table(rows: Sequence[EpisodeRow]) -> str:
    lines = []
    for policy in dict.fromkeys(row.policy for row in rows):
        played = [row for row in rows if row.policy == policy]
        means = BootstrapMeans(
            [{name: float(getattr(row, name)) for name in COLUMNS} for row in played],
            [str(row.episode) for row in played],
        )
        cells = [means.interval(name).text(QUANTITIES[name.split("_")[1]]) for name in COLUMNS]
        lines.append([policy, "own" if played[0].sees_frames else "repeated", str(len(played)), *cells])
    header = ["policy", "actions", "episodes", *(name.replace("_", " ") for name in COLUMNS)]
    return markdown_table(header, lines)


def _correlation_table(rows: Sequence[EpisodeRow]) -> str:
    lines = []
    for name in QUANTITIES:
        real, imagined = matrix(rows, f"real_{name}"), matrix(rows, f"imagined_{name}")
        across = [correlate(real, imagined, coefficient).text(2) for coefficient in (pearson, spearman)]
        single = pearson(real.flatten(), imagined.flatten())
        lines.append([name, *across, "-" if np.isnan(single) else f"{single:.2f}"])
    header = ["", "policies: Pearson", "policies: Spearman (ranks)", "single episodes: Pearson"]
    return "## Correlation of imagined with real\n\n" + markdown_table(header, lines)


def _agreement(rows: Sequence[EpisodeRow]) -> str:
    counted = Counter((row.real_success, row.imagined_success) for row in rows)
    lines = [
        [f"{word} in reality", str(counted[real, True]), str(counted[real, False])]
        for real, word in ((True, "succeeded"), (False, "failed"))
    ]
    return "## Single episodes\n\n" + markdown_table(["", "imagined as a success", "as a failure"], lines)


def draw(path: Path, rows: Sequence[EpisodeRow]) -> None:
    """Plot imagined over real means of each policy, one panel for returns and one for success."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.2, 4.2), layout="constrained")
    policies = list(dict.fromkeys(row.policy for row in rows))
    for panel, name in zip(figure.subplots(1, 2), ("success", "return"), strict=True):
        real, imagined = matrix(rows, f"real_{name}"), matrix(rows, f"imagined_{name}")
        for policy, x, y in zip(policies, real, imagined, strict=True):
            error_x, error_y = (1.96 * values.std(ddof=1) / np.sqrt(len(values)) for values in (x, y))
            panel.errorbar(x.mean(), y.mean(), error_y, error_x, marker="o", capsize=2, label=policy)
        limits = [min(real.mean(1).min(), imagined.mean(1).min()), max(real.mean(1).max(), imagined.mean(1).max())]
        panel.plot(limits, limits, color="0.8", zorder=0)
        panel.set(xlabel=f"real {name}", ylabel=f"imagined {name}")
        panel.grid(alpha=0.3)
    figure.axes[1].legend(fontsize="small")
    with atomic_file(path) as file:
        figure.savefig(file, format="png", dpi=DPI)
