"""``python -m ivideogpt.data validate PATH``: read every byte of every episode, and list the bad ones."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from tqdm import tqdm

from ivideogpt.data.convert.workers import worker_pool
from ivideogpt.data.formats.episodes import Episodes
from ivideogpt.data.formats.registry import EpisodesArgs, NamedEpisodes
from ivideogpt.errors import UserError
from ivideogpt.flags import option, parse

_WORTH_A_PROCESS = 200  # episodes: reading this many small ones takes as long as starting a worker


@dataclass(frozen=True, kw_only=True)
class ValidateArgs(EpisodesArgs):
    """Read everything in recorded episodes; list the bad ones and why. Exit code 1 if there are any."""

    num_workers: int | None = option(None, "processes (default: all cores, fewer for few episodes)", minimum=1)
    json: bool = option(False, "print JSON")


@dataclass(frozen=True)
class Checked:
    """Result for one episode: the problem of a bad one, else the properties that all should share."""

    problem: str | None
    num_frames: int = 0
    action_dim: int | None = None


@dataclass(frozen=True)
class Validation:
    """Result for one dataset. Bad episodes are pairs of name and cause."""

    name: str
    num_episodes: int
    num_frames: int
    bad: tuple[tuple[str, str], ...]


_episodes: Episodes  # the ones that this process checks


def _begin(episodes: Episodes) -> None:
    global _episodes
    _episodes = episodes


def check_episode(number: int) -> Checked:
    try:
        episode = _episodes.open(number)
        episode.verify()
        return Checked(None, episode.num_frames, episode.action_dim)
    except UserError as error:
        return Checked(" ".join(str(error).split()))


def validate_dataset(dataset: NamedEpisodes, num_workers: int) -> Validation:
    episodes = dataset.episodes
    with worker_pool(num_workers, _begin, episodes) as run:
        outcomes = run(check_episode, range(len(episodes)))
        checked = list(tqdm(outcomes, total=len(episodes), desc=dataset.name, unit="episode"))
    dims = Counter(episode.action_dim for episode in checked if episode.problem is None)
    usual = dims.most_common(1)[0][0] if dims else None
    # mixed dimensions in a batch would end a training run
    unlike = f"unlike most episodes of the dataset ({_actions(usual)}); leave it out"
    problems = [
        episode.problem or (f"{_actions(episode.action_dim)}, {unlike}" if episode.action_dim != usual else None)
        for episode in checked
    ]
    bad = tuple((episodes.name(i), problem) for i, problem in enumerate(problems) if problem)
    return Validation(dataset.name, len(episodes), sum(episode.num_frames for episode in checked), bad)


def _actions(dim: int | None) -> str:
    return "no actions" if dim is None else f"actions of {dim} dimension{'s' * (dim > 1)}"


def as_text(validation: Validation) -> str:
    counts = f"{validation.num_episodes} episodes, {validation.num_frames} frames read, {len(validation.bad)} bad"
    lines = [f"{validation.name}: {counts}"]
    lines += [f"  {cause}" if cause.startswith(name) else f"  {name}: {cause}" for name, cause in validation.bad]
    return "\n".join(lines)


def main(argv: Sequence[str]) -> None:
    args = parse(ValidateArgs, argv)
    validations = []
    for dataset in args.find():
        fitting = 1 + len(dataset.episodes) // _WORTH_A_PROCESS
        num_workers = args.num_workers or min(os.cpu_count() or 1, fitting)
        validations.append(validate_dataset(dataset, num_workers))
    if args.json:
        print(json.dumps([vars(validation) for validation in validations], indent=2))
    else:
        print("\n".join(as_text(validation) for validation in validations))
    if any(validation.bad for validation in validations):
        sys.exit(1)
