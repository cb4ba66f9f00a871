"""Summarise the facts of a dataset's episodes, and list probable faults. Knows facts of episodes, no files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ivideogpt.data.formats.episodes import StoredArray
from ivideogpt.data.inspect.alignment import Alignment, estimate_alignment
from ivideogpt.data.inspect.facts import EpisodeFacts

FAR_OUT = 15  # standard deviations from the mean: larger actions are probably recording errors
MANY_REPEATED = 0.1  # share of frames; a camera slower than the recording, or an idle simulator, repeats more
_NAMED = 3  # number of examples in a message


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


def summarise(
    name: str, num_episodes: int, facts: Sequence[EpisodeFacts], unreadable: Sequence[str] = ()
) -> DatasetReport:
    lengths = sorted(fact.num_frames for fact in facts)
    dims = Counter(fact.actions.shape[1] for fact in facts if fact.actions is not None)
    with_actions = _with_actions(facts, dims.most_common(1)[0][0]) if dims else []
    statistics = _statistics(with_actions)
    alignment = estimate_alignment(
        [fact.frames.motion for fact in with_actions],
        [fact.actions for fact in with_actions if fact.actions is not None],
    )
    remarks = dict.fromkeys(remark for fact in facts for remark in fact.remarks)
    arrays = Counter(fact.arrays for fact in facts).most_common(1)
    return DatasetReport(
        name=name,
        num_episodes=num_episodes,
        num_inspected=len(facts) + len(unreadable),
        lengths=(lengths[0], lengths[len(lengths) // 2], lengths[-1]) if lengths else None,
        frame_sizes=dict(Counter("{}x{}".format(*fact.frame_size) for fact in facts).most_common()),
        arrays=arrays[0][0] if arrays else (),
        actions=statistics,
        alignment=alignment,
        suspicious=(
            *_odd_sets(facts),
            *_odd_frames(facts),
            *_odd_actions(statistics),
            *_odd_alignment(alignment),
            *remarks,
        ),
        unreadable=tuple(unreadable),
    )


def _with_actions(facts: Sequence[EpisodeFacts], dim: int) -> list[EpisodeFacts]:
    return [fact for fact in facts if fact.actions is not None and fact.actions.shape[1] == dim]


def _statistics(facts: Sequence[EpisodeFacts]) -> tuple[DimensionStatistics, ...]:
    rows = [fact.actions[:-1].astype(np.float64) for fact in facts if fact.actions is not None]
    if not sum(map(len, rows)):
        return ()
    columns: NDArray[np.float64] = np.concatenate(rows).T
    return tuple(
        DimensionStatistics(float(column.mean()), float(column.std()), float(column.min()), float(column.max()))
        for column in columns
    )


# ---- probable faults


def _odd_sets(facts: Sequence[EpisodeFacts]) -> Iterator[str]:
    """Yield messages on episodes that differ from the others."""
    for what, value in (
        ("frame size", lambda fact: "{}x{}".format(*fact.frame_size)),
        ("action dimension", lambda fact: "none" if fact.actions is None else str(fact.actions.shape[1])),
        ("arrays", lambda fact: ", ".join(sorted(array.name for array in fact.arrays))),
    ):
        counts = Counter(value(fact) for fact in facts)
        if len(counts) > 1:
            listed = "; ".join(f"{name} in {number}" for name, number in counts.most_common(_NAMED))
            yield f"episodes differ in {what}: {listed}"
    short = [fact for fact in facts if fact.num_frames == 1]
    if short:
        yield f"{_episodes(short)} of a single frame: {_names(short)}"


def _odd_frames(facts: Sequence[EpisodeFacts]) -> Iterator[str]:
    for what, value in (("black", lambda fact: fact.frames.black), ("of one colour", lambda fact: fact.frames.flat)):
        having = [fact for fact in facts if value(fact)]
        if having:
            yield f"frames are {what} in {_episodes(having)}: {_places(having, value)}"
    dark = [fact for fact in facts if 0 < fact.frames.brightest <= 1]
    if dark:
        yield f"no pixel is above 1 in {_episodes(dark)}: were colours in 0..1 stored as uint8? {_names(dark)}"
    num_pairs = sum(len(fact.frames.motion) for fact in facts)
    num_repeated = sum(len(fact.frames.repeated) for fact in facts)
    if num_repeated > MANY_REPEATED * num_pairs:
        worst = sorted(facts, key=lambda fact: -len(fact.frames.repeated) / max(len(fact.frames.motion), 1))
        yield (
            f"{num_repeated / num_pairs:.0%} of the frames repeat the one before exactly; most in "
            f"{_places(worst[:1], lambda fact: fact.frames.repeated)}"
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


def _odd_alignment(alignment: Alignment | None) -> Iterator[str]:
    if alignment is not None and alignment.is_wrong:
        yield alignment.verdict


def _episodes(facts: Sequence[EpisodeFacts]) -> str:
    return f"{len(facts)} episode{'s' * (len(facts) > 1)}"


def _names(facts: Sequence[EpisodeFacts]) -> str:
    more = f" and {len(facts) - _NAMED} more" if len(facts) > _NAMED else ""
    return ", ".join(fact.name for fact in facts[:_NAMED]) + more


def _places(facts: Sequence[EpisodeFacts], value: Callable[[EpisodeFacts], tuple[int, ...]]) -> str:
    """List the first few episodes as ``a.npz (3 of 90: 3, 4, 5)``."""
    listed = []
    for fact in facts[:_NAMED]:
        frames = value(fact)
        dots = ", ..." if len(frames) > _NAMED else ""
        listed.append(f"{fact.name} ({len(frames)} of {fact.num_frames}: {', '.join(map(str, frames[:_NAMED]))}{dots})")
    more = f" and {len(facts) - _NAMED} more" if len(facts) > _NAMED else ""
    return ", ".join(listed) + more
