"""Compare runs of several methods and seeds: success rates over frames, with intervals over the seeds.

    python mbrl/tools/compare_runs.py log_mbrl/drq/* log_mbrl/mbpo/* --output report.md

Runs of one experiment (exp_name) and task that differ by their seeds are one curve. Unfinished ones are drawn as far as
they have come; numbers of a task end where its shortest run does. Writes the report, its picture and its numbers.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that it runs from any directory

import numpy as np
from numpy.typing import NDArray

from ivideogpt.errors import UserError, cli
from ivideogpt.evaluation.bootstrap import CONFIDENCE, Interval
from ivideogpt.files import check_folder_can_be_written, read_json
from ivideogpt.flags import Parser
from mbrl.run_folder import RULES, RunFolder, flat

FREE_SETTINGS = (RULES.may_change - {"world_model.without_lpips"}) | {"seed", "task_name", "demo_path_prefix"}
SHOWN_SETTINGS = ("num_seed_frames", "num_eval_episodes", "demo", "batch_size", "lr", "agent_update_times")


@dataclass(frozen=True)
class Run:
    """Scores of one run."""

    path: Path
    settings: Mapping[str, Any]
    record: Mapping[str, Any]  # the whole run.json
    success: Mapping[int, float]  # frame -> mean of an evaluation's episodes
    reward: Mapping[int, float]  # frame -> mean of an evaluation's episodes
    hours: float  # until the last evaluation, its own time included

    @property
    def group(self) -> tuple[str, str]:
        """Task and method."""
        return self.settings["task_name"], self.settings["exp_name"]

    def decides_training(self) -> dict[str, Any]:
        """Return settings, contents of weights, and what was changed on the way, by name."""
        settings = {name: value for name, value in flat(self.settings).items() if name not in FREE_SETTINGS}
        contents = {f"the contents of {name}": digest for name, digest in self.record.get("contents", {}).items()}
        changes = [
            {name: change for name, change in changed.items() if name not in FREE_SETTINGS}
            for changed in self.record.get("changes", [])
        ]
        on_the_way = [changed for changed in changes if changed.keys() - {"step"}]
        return settings | contents | {"settings that were changed on the way": on_the_way}

    @classmethod
    def read(cls, path: Path) -> Run:
        """Read a folder; UserError if it is none of a run, or the run has evaluated nothing yet."""
        folder, table = RunFolder(path), path / "eval.csv"
        settings = folder.settings()
        rows = list(csv.DictReader(table.read_text().splitlines())) if table.is_file() else []
        if rows and not rows[-1]["hours"]:  # the run was killed while it wrote this row
            rows.pop()
        if not rows:
            raise UserError(f"{path} holds no evaluation yet")
        return cls(
            path,
            settings,
            read_json(folder.record),
            success={int(row["frame"]): float(row["success_rate"]) for row in rows},
            reward={int(row["frame"]): float(row["episode_reward"]) for row in rows},
            hours=float(rows[-1]["hours"]),
        )


def over_seeds(values: Sequence[float]) -> Interval:
    """Return a mean over seeds and the interval that Student's t gives it; NaN bounds for a single seed."""
    from scipy import stats

    mean, half = float(np.mean(values)), math.nan
    if len(values) > 1:
        quantile = stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)
        half = float(quantile * np.std(values, ddof=1) / math.sqrt(len(values)))
    return Interval(mean, mean - half, mean + half)


Groups = Mapping[tuple[str, str], Sequence[Run]]


def grouped(runs: Iterable[Run]) -> Groups:
    """Group runs by task and method.

    Raises:
        UserError: runs of a method differ in what decides training, or two have one seed.
    """
    groups: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for run in runs:
        groups[run.group].append(run)
    first_run: dict[str, Run] = {}
    for (task, method), members in sorted(groups.items()):
        seeds = [run.settings["seed"] for run in members]
        if len(set(seeds)) < len(seeds):
            raise UserError(f"two runs of {method} on {task} have one seed ({sorted(seeds)}): name one of them only")
        for run in members:
            first = first_run.setdefault(method, run)
            one, two = first.decides_training(), run.decides_training()
            names = one.keys() | two.keys()
            if differing := sorted(name for name in names if one.get(name) != two.get(name)):
                raise UserError(
                    f"{first.path} and {run.path} are runs of {method} that differ in {', '.join(differing)}: all "
                    "runs of a method share them; give each variant an exp_name of its own, or compare them one "
                    "variant at a time"
                )
    return {group: sorted(groups[group], key=lambda run: run.settings["seed"]) for group in sorted(groups)}


def curve(runs: Sequence[Run]) -> dict[int, Interval]:
    """Estimate success rates at the frames at which all runs were evaluated."""
    return {frame: over_seeds([run.success[frame] for run in runs]) for frame in common_frames(runs)}


def common_frames(runs: Sequence[Run]) -> list[int]:
    return sorted(set.intersection(*(set(run.success) for run in runs)))


def compared_frames(groups: Groups, task: str) -> list[int]:
    """Return the frame counts at which all runs of a task were evaluated; UserError if there are none."""
    frames = common_frames([run for (name, _), runs in groups.items() if name == task for run in runs])
    if not frames:
        raise UserError(f"the runs of {task} were never evaluated at the same frame: compare runs of one schedule")
    return frames


# ---- report


def draw(path: Path, groups: Groups) -> None:
    """Plot a panel a task, a line a method with its interval, thin lines of the single runs."""
    from matplotlib.figure import Figure

    tasks = sorted({task for task, _ in groups})
    figure = Figure(figsize=(5 * len(tasks), 3.6), layout="constrained")
    panels: NDArray[Any] = figure.subplots(1, len(tasks), squeeze=False)[0]
    for panel, task in zip(panels, tasks, strict=True):
        for (name, method), runs in groups.items():
            if name != task:
                continue
            points = curve(runs)
            seeds = f"{len(runs)} seed{'s' * (len(runs) > 1)}"
            (line,) = panel.plot(points.keys(), [point.mean for point in points.values()], label=f"{method}, {seeds}")
            color, bounds = line.get_color(), [(point.low, point.high) for point in points.values()]
            panel.fill_between(points.keys(), *np.clip(bounds, 0, 1).T, color=color, alpha=0.15, linewidth=0)
            for run in runs:
                panel.plot(run.success.keys(), run.success.values(), color=color, alpha=0.4, linewidth=0.7)
        panel.set(title=task, xlabel="frames", ylabel="success rate", ylim=(-0.03, 1.03))
        panel.grid(alpha=0.3)
        panel.legend(fontsize="small", loc="upper left")
    figure.savefig(path, dpi=110)


EXPLANATION = f"""Means over seeds, and in brackets {CONFIDENCE:.0%} intervals by Student's t over the seeds: wide for
few of them, and of no width where all agree. Numbers are of the frames at which all runs of a task were evaluated; the
later half are those from the middle on. Thin lines in the picture are single runs, hours are those of whole runs on the
machine that they were made on.
"""
COLUMNS = ("success, later half", "success, last", "reward, later half", "hours a run")


def results(runs: Sequence[Run], frames: Sequence[int]) -> dict[str, Interval]:
    """Estimate the columns of the report from the runs of one task and method, at these frames."""
    later = [frame for frame in frames if frame >= frames[-1] / 2]
    columns = (
        [float(np.mean([run.success[frame] for frame in later])) for run in runs],
        [run.success[frames[-1]] for run in runs],
        [float(np.mean([run.reward[frame] for frame in later])) for run in runs],
        [run.hours for run in runs],
    )
    return {name: over_seeds(values) for name, values in zip(COLUMNS, columns, strict=True)}


def report(groups: Groups, picture: str) -> str:
    lines = [
        "# Runs compared\n",
        EXPLANATION,
        f"![success rates]({picture})\n",
        f"| task | method | seeds | frames | {' | '.join(COLUMNS)} |",
        f"|---|---|---:|---:|{'---:|' * len(COLUMNS)}",
    ]
    for (task, method), runs in groups.items():
        frames = compared_frames(groups, task)
        seeds = ", ".join(str(run.settings["seed"]) for run in runs)
        cells = [made.text(2 if "reward" not in name else 0) for name, made in results(runs, frames).items()]
        lines.append(f"| {task} | {method} | {seeds} | {frames[-1]} | {' | '.join(cells)} |")
    lines.append("\n## Settings")
    for method in sorted({method for _, method in groups}):
        settings = next(runs[0].settings for (_, name), runs in groups.items() if name == method)
        lines.append(f"- {method}: " + ", ".join(f"{key} {settings[key]}" for key in SHOWN_SETTINGS))
    return "\n".join(lines) + "\n"


def as_json(groups: Groups) -> str:
    runs = [
        {
            **{key: run.settings[key] for key in ("task_name", "exp_name", "seed")},
            "success_rate": {str(frame): value for frame, value in run.success.items()},
            "episode_reward": {str(frame): value for frame, value in run.reward.items()},
            "hours": run.hours,
            "settings": {key: value for key, value in flat(run.settings).items() if key not in FREE_SETTINGS},
        }
        for members in groups.values()
        for run in members
    ]
    return json.dumps(runs, indent=1) + "\n"


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs")
    parser.add_argument("--output", type=Path, default=Path("mbrl_report.md"), help="the report, a .md file")
    args = parser.parse_args(argv)
    if args.output.suffix != ".md":
        raise UserError(f"--output is {args.output}: name a .md file")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    check_folder_can_be_written(args.output.parent, "--output")
    groups = grouped([Run.read(path) for path in args.runs])
    args.output.parent.mkdir(parents=True, exist_ok=True)
    picture = args.output.with_suffix(".png")
    draw(picture, groups)
    args.output.with_suffix(".json").write_text(as_json(groups))
    args.output.write_text(report(groups, picture.name))
    print(f"{sum(map(len, groups.values()))} runs compared in {args.output}")


if __name__ == "__main__":
    cli(main)
