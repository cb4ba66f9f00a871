"""``python -m ivideogpt.data inspect PATH``: describe recorded episodes and their probable faults.

Shapes: N frames, H W pixels, D action dimension.
"""

from __future__ import annotations

import dataclasses
import json
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ivideogpt.data.formats.episodes import Episode, StoredArray, chunks
from ivideogpt.data.formats.registry import EpisodesArgs, NamedEpisodes, sample
from ivideogpt.data.inspect.action_spaces import check_new_file, share_spaces, table
from ivideogpt.data.inspect.alignment import SHIFTS, Alignment, estimate_alignment
from ivideogpt.errors import UserError
from ivideogpt.flags import option, parse

BLACK = 16  # maximum pixel value of a black frame
FLAT = 4  # pixels of a frame of one colour differ by less
FAR_OUT = 15  # standard deviations from the mean: larger actions are probably recording errors
MANY_REPEATED = 0.1  # share of frames; a camera slower than the recording, or an idle simulator, repeats more
_THUMBNAIL = 32  # size of the pictures that motion is measured on: averaging removes noise
_NAMED = 3  # number of examples in a message


@dataclass(frozen=True, kw_only=True)
class InspectArgs(EpisodesArgs):
    """Describe recorded episodes and their probable faults."""

    max_episodes: int = option(50, "episodes to inspect per dataset, chosen by the seed", minimum=1)
    max_frames: int = option(500, "frames to inspect per episode, from its start", minimum=1)
    seed: int = option(0, "random seed of the choice of episodes", minimum=0)
    json: bool = option(False, "print JSON")
    write_action_spaces: str | None = option(
        None, "file to write: the action spaces of these datasets, for --action_spaces of tokenize and train_gpt.py"
    )

    def validate(self) -> None:
        if self.write_action_spaces is not None:
            check_new_file(Path(self.write_action_spaces))


# ---- facts of an episode that point to faults


@dataclass(frozen=True)
class EpisodeFacts:
    """Facts of an episode, the last five of its first n frames, which are given by number."""

    name: str
    num_frames: int
    frame_size: tuple[int, int]
    arrays: tuple[StoredArray, ...]
    actions: NDArray[np.float32] | None  # (N, D)
    remarks: tuple[str, ...]
    motion: NDArray[np.float64]  # (n - 1,) mean |difference| of a frame and the next, in 0..255
    black: tuple[int, ...]
    flat: tuple[int, ...]  # frames of one colour, but not black
    repeated: tuple[int, ...]  # frames identical to the one before
    brightest: int
    action_names: tuple[str, ...] | None = None


def inspect_episode(episode: Episode, name: str, max_frames: int) -> EpisodeFacts:
    """Read the first ``max_frames`` frames, and all actions, rewards and successes.

    Raises:
        UserError: something in it cannot be read or does not fit, NaN included.
    """
    everything = np.arange(episode.num_frames)
    actions, _, _ = (read(everything) for read in (episode.actions, episode.rewards, episode.successes))
    motion: list[NDArray[np.float64]] = []
    low: list[NDArray[np.uint8]] = []
    high: list[NDArray[np.uint8]] = []
    repeated: list[int] = []
    joined: NDArray[np.uint8] | None = None  # the frames of a chunk, after the last one of the chunk before
    for indices in chunks(episode, min(max_frames, episode.num_frames)):
        frames = episode.read(indices)
        low.append(frames.min(axis=(1, 2, 3)))
        high.append(frames.max(axis=(1, 2, 3)))
        joined = frames if joined is None else np.concatenate([joined[-1:], frames])
        motion.append(np.abs(np.diff(_thumbnails(joined), axis=0)).mean(axis=(1, 2, 3)))
        first = int(indices[-1]) + 2 - len(joined)  # number of the second frame of `joined`
        repeated += [first + i for i in range(len(joined) - 1) if np.array_equal(joined[i], joined[i + 1])]
    lows, highs = np.concatenate(low).astype(int), np.concatenate(high).astype(int)
    black = highs < BLACK
    return EpisodeFacts(
        *(name, episode.num_frames, episode.frame_size, episode.describe(), actions, episode.remarks()),
        motion=np.concatenate(motion),
        black=tuple(np.flatnonzero(black).tolist()),
        flat=tuple(np.flatnonzero(~black & (highs - lows < FLAT)).tolist()),
        repeated=tuple(repeated),
        brightest=int(highs.max()),
        action_names=episode.action_names,
    )


def _thumbnails(frames: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Average frames (n, H, W, 3) over squares of pixels."""
    num_frames, height, width, _ = frames.shape
    side = max(min(height, width) // _THUMBNAIL, 1)
    rows, columns = height // side, width // side
    squares = frames[:, : rows * side, : columns * side].reshape(num_frames, rows, side, columns, side, 3)
    return squares.mean(axis=(2, 4))


# ---- facts of a dataset


@dataclass(frozen=True)
class DimensionStatistics:
    """Statistics of one action dimension, without each episode's last row, which has no successor frame."""

    mean: float
    std: float
    min: float
    max: float


@dataclass(frozen=True)
class DatasetReport:
    """Report on one dataset. Arrays are the most common ones."""

    name: str
    num_episodes: int
    num_inspected: int
    lengths: tuple[int, int, int] | None  # shortest, median, longest
    frame_sizes: dict[str, int]  # height x width -> number of episodes
    arrays: tuple[StoredArray, ...]
    actions: tuple[DimensionStatistics, ...]
    alignment: Alignment | None
    suspicious: tuple[str, ...]
    unreadable: tuple[str, ...]
    spoiling: tuple[str, ...] = ()  # lines of suspicious that no training can make up for
    action_names: tuple[str, ...] | None = None


def summarise(
    name: str, num_episodes: int, facts: Sequence[EpisodeFacts], unreadable: Sequence[str] = ()
) -> DatasetReport:
    lengths = sorted(fact.num_frames for fact in facts)
    dims = Counter(fact.actions.shape[1] for fact in facts if fact.actions is not None)
    usual = dims.most_common(1)[0][0] if dims else 0
    paired = [(fact.motion, fact.actions) for fact in facts if fact.actions is not None]
    paired = [(motion, actions) for motion, actions in paired if actions.shape[1] == usual]
    statistics = _statistics([actions for _, actions in paired])
    alignment = estimate_alignment([motion for motion, _ in paired], [actions for _, actions in paired])
    remarks = dict.fromkeys(remark for fact in facts for remark in fact.remarks)
    arrays = Counter(fact.arrays for fact in facts).most_common(1)
    spoiling = tuple(_spoiling(facts, alignment))
    return DatasetReport(
        name=name,
        num_episodes=num_episodes,
        num_inspected=len(facts) + len(unreadable),
        lengths=(lengths[0], lengths[len(lengths) // 2], lengths[-1]) if lengths else None,
        frame_sizes=dict(Counter("{}x{}".format(*fact.frame_size) for fact in facts).most_common()),
        arrays=arrays[0][0] if arrays else (),
        actions=statistics,
        alignment=alignment,
        suspicious=(*_odd_sets(facts), *_odd_frames(facts), *_odd_actions(statistics), *spoiling, *remarks),
        unreadable=tuple(unreadable),
        spoiling=spoiling,
        action_names=next((fact.action_names for fact in facts if fact.action_names), None),
    )


def _statistics(actions: Sequence[NDArray[np.float32]]) -> tuple[DimensionStatistics, ...]:
    rows = [own[:-1].astype(np.float64) for own in actions]
    columns = np.concatenate(rows).T if sum(map(len, rows)) else ()
    return tuple(
        DimensionStatistics(*map(float, (column.mean(), column.std(), column.min(), column.max())))
        for column in columns
    )


# ---- probable faults


def _spoiling(facts: Sequence[EpisodeFacts], alignment: Alignment | None) -> Iterator[str]:
    """Yield messages on faults that spoil a model: it would learn other actions or pictures than those of the robot."""
    dims = ("none" if fact.actions is None else str(fact.actions.shape[1]) for fact in facts)
    yield from _differing("action dimension", dims)
    dark = [fact for fact in facts if 0 < fact.brightest <= 1]
    if dark:
        yield f"no pixel is above 1 in {_episodes(dark)}: were colours in 0..1 stored as uint8? {_names(dark)}"
    if alignment is not None and alignment.is_wrong:
        yield alignment.verdict


def _differing(what: str, values: Iterable[str]) -> Iterator[str]:
    counts = Counter(values)
    if len(counts) > 1:
        listed = "; ".join(f"{name} in {number}" for name, number in counts.most_common(_NAMED))
        yield f"episodes differ in {what}: {listed}"


def _odd_sets(facts: Sequence[EpisodeFacts]) -> Iterator[str]:
    """Yield messages on episodes that differ from the others."""
    yield from _differing("frame size", ("{}x{}".format(*fact.frame_size) for fact in facts))
    yield from _differing("arrays", (", ".join(sorted(array.name for array in fact.arrays)) for fact in facts))
    short = [fact for fact in facts if fact.num_frames == 1]
    if short:
        yield f"{_episodes(short)} of a single frame: {_names(short)}"


def _odd_frames(facts: Sequence[EpisodeFacts]) -> Iterator[str]:
    for what, value in (("black", lambda fact: fact.black), ("of one colour", lambda fact: fact.flat)):
        having = [fact for fact in facts if value(fact)]
        if having:
            yield f"frames are {what} in {_episodes(having)}: {_names(having, value)}"
    num_pairs = sum(len(fact.motion) for fact in facts)
    num_repeated = sum(len(fact.repeated) for fact in facts)
    if num_repeated > MANY_REPEATED * num_pairs:
        worst = sorted(facts, key=lambda fact: -len(fact.repeated) / max(len(fact.motion), 1))
        yield (
            f"{num_repeated / num_pairs:.0%} of the frames repeat the one before exactly; most in "
            f"{_names(worst[:1], lambda fact: fact.repeated)}"
        )


def _odd_actions(dimensions: Sequence[DimensionStatistics]) -> Iterator[str]:
    constant = [i for i, values in enumerate(dimensions) if values.min == values.max]
    if constant:
        listed = ", ".join(f"{i} (always {dimensions[i].mean:g})" for i in constant)
        yield f"action dimensions that never change: {listed}"
    for i, values in enumerate(dimensions):
        extreme = max((values.min, values.max), key=lambda value: abs(value - values.mean))
        if values.std and abs(extreme - values.mean) > FAR_OUT * values.std:
            deviations = abs(extreme - values.mean) / values.std
            yield f"action dimension {i} reaches {extreme:g}, {deviations:.0f} standard deviations from its mean"


def _episodes(facts: Sequence[EpisodeFacts]) -> str:
    return f"{len(facts)} episode{'s' * (len(facts) > 1)}"


def _names(facts: Sequence[EpisodeFacts], value: Callable[[EpisodeFacts], tuple[int, ...]] | None = None) -> str:
    """List the first few episodes; with the frames that ``value`` returns as ``a.npz (3 of 90: 3, 4, 5)``."""
    listed = []
    for fact in facts[:_NAMED]:
        frames = () if value is None else value(fact)
        shown = ", ".join(map(str, frames[:_NAMED])) + ", ..." * (len(frames) > _NAMED)
        listed.append(fact.name + f" ({len(frames)} of {fact.num_frames}: {shown})" * bool(frames))
    return ", ".join(listed) + f" and {len(facts) - _NAMED} more" * (len(facts) > _NAMED)


# ---- the command


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
        alignment, indent = report.alignment, " " * 12
        lines += [
            f"  alignment |image[i+1] - image[i]| against the {alignment.signal} of action[i+k], correlation by k:",
            indent + "   ".join(f"k={shift}: {alignment.correlations[shift]:.2f}" for shift in SHIFTS),
            f"{indent}best k={alignment.best_shift}, confidence {alignment.confidence:.1%}",
            *textwrap.wrap(alignment.verdict, 120, initial_indent=indent, subsequent_indent=indent),
        ]
    lines += [f"  ! {line}" for line in report.suspicious]
    lines += [f"  ! unreadable: {line}" for line in report.unreadable]
    if not report.suspicious and not report.unreadable:
        lines.append("  nothing looks wrong")
    return "\n".join(lines)


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
    if args.write_action_spaces is not None:
        spaces = share_spaces(reports)
        spaces.write(Path(args.write_action_spaces))
        if not args.json:
            print(f"\n{table(spaces, reports)}\naction spaces: {args.write_action_spaces}")
