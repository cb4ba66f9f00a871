"""``python -m ivideogpt.data inspect PATH``: describe recorded episodes and their probable faults."""

from __future__ import annotations

import dataclasses
import json
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from ivideogpt.data.formats.find_episodes import EpisodesArgs, NamedEpisodes, sample
from ivideogpt.data.inspect.alignment import SHIFTS, Alignment
from ivideogpt.data.inspect.facts import inspect_episode
from ivideogpt.data.inspect.report import DatasetReport, summarise
from ivideogpt.errors import UserError
from ivideogpt.flags import option, parse


@dataclass(frozen=True, kw_only=True)
class InspectArgs(EpisodesArgs):
    """Describe recorded episodes and their probable faults."""

    max_episodes: int = option(50, "episodes to inspect per dataset, chosen by the seed", minimum=1)
    max_frames: int = option(500, "frames to inspect per episode, from its start", minimum=1)
    seed: int = option(0, "random seed of the choice of episodes", minimum=0)
    json: bool = option(False, "print JSON")


def inspect_dataset(dataset: NamedEpisodes, args: InspectArgs) -> DatasetReport:
    episodes = dataset.episodes
    numbers = sample(len(episodes), args.max_episodes, args.seed)
    facts, unreadable = [], []
    for number in tqdm(numbers, desc=dataset.name, unit="episode"):
        try:
            facts.append(inspect_episode(episodes.open(number), episodes.name(number), args.max_frames))
        except UserError as error:
            unreadable.append(" ".join(str(error).split()))
    return summarise(dataset.name, len(episodes), facts, unreadable)


def as_text(report: DatasetReport) -> str:
    lines = [f"{report.name}: {report.num_episodes} episodes, {report.num_inspected} looked at"]
    if report.lengths is not None:
        shortest, median, longest = report.lengths
        lines += [
            f"  frames    {shortest}" + (f" to {longest}, median {median}" if shortest < longest else " in each"),
            f"  size      {', '.join(report.frame_sizes)}",
            *(f"  {'arrays' if not i else '':<9} {array}" for i, array in enumerate(report.arrays)),
        ]
    if report.actions:
        lines.append(f"  actions   {'':<5}{'mean':>10}{'std':>10}{'min':>10}{'max':>10}")
        for i, values in enumerate(report.actions):
            lines.append(f"{'':<12}{i:<5}{values.mean:>10.4g}{values.std:>10.4g}{values.min:>10.4g}{values.max:>10.4g}")
    if report.alignment is not None:
        lines += _alignment_lines(report.alignment)
    lines += [f"  ! {line}" for line in report.suspicious]
    lines += [f"  ! unreadable: {line}" for line in report.unreadable]
    if not report.suspicious and not report.unreadable:
        lines.append("  nothing looks wrong")
    return "\n".join(lines)


def _alignment_lines(alignment: Alignment) -> list[str]:
    fits = "   ".join(f"k={shift}: {alignment.correlations[shift]:.2f}" for shift in SHIFTS)
    return [
        f"  alignment |image[i+1] - image[i]| against the {alignment.signal} of action[i+k], correlation by k:",
        f"            {fits}",
        f"            best k={alignment.best_shift}, confidence {alignment.confidence:.1%}",
        *textwrap.wrap(alignment.verdict, 120, initial_indent=" " * 12, subsequent_indent=" " * 12),
    ]


def as_json(report: DatasetReport) -> dict[str, Any]:
    content = dataclasses.asdict(report)
    if report.alignment is not None:
        content["alignment"] |= {"verdict": report.alignment.verdict, "is_wrong": report.alignment.is_wrong}
    return content


def main(argv: Sequence[str]) -> None:
    args = parse(InspectArgs, argv)
    reports = [inspect_dataset(dataset, args) for dataset in args.find()]
    if args.json:
        print(json.dumps([as_json(report) for report in reports], indent=2))
    else:
        print("\n\n".join(as_text(report) for report in reports))
