"""Scores a list of clips, in batches that are dealt to processes. Knows clips by number; knows no metric."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from ivideogpt.data.batches import ClipBatch
from ivideogpt.data.evaluation_clips import EvaluationClips
from ivideogpt.errors import UserError
from ivideogpt.evaluation.clip_scores import ClipScores, Tally
from ivideogpt.evaluation.processes import Processes

ScoreBatch = Callable[[Sequence[int]], list[ClipScores]]

CLIPS_FILE = "clips.jsonl"


@dataclass(frozen=True)
class Collected:
    """What all clips come to, and their numbers with what they are ranked by, from the worst to the best."""

    tally: Tally
    ranking: list[tuple[float, int]]

    def chosen(self) -> dict[str, tuple[float, int]]:
        """Clips to look at."""
        places = {"best": -1, "median": len(self.ranking) // 2, "worst": 0}
        return {name: self.ranking[place] for name, place in places.items()}


def collect(
    score: ScoreBatch,
    clips: EvaluationClips,
    folder: Path,
    batch_size: int,
    processes: Processes,
    rank_by: tuple[str, str, str],
) -> Collected | None:
    """Score all clips, and write a line of ``folder/clips.jsonl`` for each. All processes call it.

    Args:
        rank_by: column, candidate and metric.

    Returns:
        None but for the main process.
    """
    scored = score_clips(score, len(clips), batch_size, processes)
    if not processes.is_main:
        for _ in scored:  # the main process keeps the scores; this one helps to make them
            pass
        return None
    tally, ranking = Tally(), []
    column, candidate, metric = rank_by
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / CLIPS_FILE).open("w") as lines:
        for clip in tqdm(scored, total=len(clips), desc="clips", unit="clip"):
            tally.add(clip)
            ranking.append((clip.summaries[column][candidate][metric], clip.number))
            lines.write(json.dumps({**clip.as_json(), **asdict(clips.origin(clip.number))}, allow_nan=False) + "\n")
            lines.flush()
    return Collected(tally, sorted(ranking))


def score_clips(score: ScoreBatch, num_clips: int, batch_size: int, processes: Processes) -> Iterator[ClipScores]:
    """Scores of clips 0 .. num_clips - 1 in this order, on all processes, which take turns at batches.

    Raises:
        UserError: on all of them, if a batch of any could not be scored.
    """
    batches = [range(first, min(first + batch_size, num_clips)) for first in range(0, num_clips, batch_size)]
    for first in range(0, len(batches), processes.count):
        for part in processes.gather(_attempt(score, batches[first : first + processes.count], processes.rank)):
            yield from part


def _attempt(score: ScoreBatch, batches: Sequence[range], rank: int) -> list[ClipScores] | UserError:
    """The scores of this rank's batch, if one is left for it; a user's error is everybody's, or others would wait."""
    if rank >= len(batches):
        return []
    try:
        return score(batches[rank])
    except UserError as error:
        return error


def read_with_others(clips: EvaluationClips, numbers: Sequence[int]) -> tuple[ClipBatch, Tensor | None]:
    """These consecutive clips, and for each the actions of the next one of the list: (B, T, D).

    None if there are no actions, or no other clip.
    """
    if len(clips) == 1:
        return clips.read(numbers), None
    batch = clips.read([*numbers, (numbers[-1] + 1) % len(clips)])
    if batch.actions is None:
        return ClipBatch(batch.frames[:-1]), None
    return ClipBatch(batch.frames[:-1], batch.actions[:-1]), batch.actions[1:]
