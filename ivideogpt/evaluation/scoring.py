"""Scores a list of clips, in batches that are dealt to processes. Knows clips by number; knows no metric."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from torch import Tensor

from ivideogpt.data.batches import ClipBatch
from ivideogpt.data.evaluation_clips import EvaluationClips
from ivideogpt.errors import UserError
from ivideogpt.evaluation.clip_scores import ClipScores
from ivideogpt.evaluation.processes import Processes

ScoreBatch = Callable[[Sequence[int]], list[ClipScores]]


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
