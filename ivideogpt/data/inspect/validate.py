"""``python -m ivideogpt.data validate PATH``: read every byte of every episode, and list the bad ones."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass

from tqdm import tqdm

from ivideogpt.data.convert.workers import start_worker, worker_pool
from ivideogpt.data.formats.episodes import Episodes
from ivideogpt.data.formats.find_episodes import EpisodesArgs, NamedEpisodes
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


def check_episode(episodes: Episodes, number: int) -> Checked:
    try:
        episode = episodes.open(number)
        episode.verify()
        return Checked(None, episode.num_frames, episode.action_dim)
    except UserError as error:
        return Checked(" ".join(str(error).split()))


def validate_dataset(dataset: NamedEpisodes, num_workers: int) -> Validation:
    episodes = dataset.episodes
    with closing(_check_all(episodes, num_workers)) as outcomes:
        checked = list(tqdm(outcomes, total=len(episodes), desc=dataset.name, unit="episode"))
    problems = [episode.problem or _unlike_the_others(episode, _usual_action_dim(checked)) for episode in checked]
    bad = tuple((episodes.name(i), problem) for i, problem in enumerate(problems) if problem)
    return Validation(dataset.name, len(episodes), sum(episode.num_frames for episode in checked), bad)


def _check_all(episodes: Episodes, num_workers: int) -> Generator[Checked, None, None]:
    if num_workers == 1:
        yield from (check_episode(episodes, i) for i in range(len(episodes)))
        return
    with worker_pool(num_workers, _start_checking, episodes) as run:
        yield from run(_check_in_worker, range(len(episodes)))


_episodes: Episodes | None = None  # set in worker processes


def _start_checking(episodes: Episodes) -> None:
    global _episodes
    start_worker()
    _episodes = episodes


def _check_in_worker(number: int) -> Checked:
    assert _episodes is not None
    return check_episode(_episodes, number)


def _usual_action_dim(checked: Sequence[Checked]) -> int | None:
    counts = Counter(episode.action_dim for episode in checked if episode.problem is None)
    return counts.most_common(1)[0][0] if counts else None


def _unlike_the_others(checked: Checked, usual: int | None) -> str | None:
    """Return a message if the action dimension is unusual: mixed dimensions in a batch would end a training run."""
    if checked.action_dim == usual:
        return None
    return f"{_actions(checked.action_dim)}, unlike most episodes of the dataset ({_actions(usual)}); leave it out"


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
