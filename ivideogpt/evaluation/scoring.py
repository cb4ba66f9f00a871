"""Score a list of clips in batches, distributed over processes. Knows clips by number; knows no metric."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from ivideogpt.data.clips.batches import ClipBatch
from ivideogpt.data.clips.evaluation_clips import EvaluationClips
from ivideogpt.errors import UserError
from ivideogpt.evaluation.processes import Processes
from ivideogpt.evaluation.report import JSON_FILE, MARKDOWN_FILE, PACKAGES
from ivideogpt.evaluation.rows import CLIPS_FILE, ClipRow, RowFile, RowSummary
from ivideogpt.versions import versions

ScoreBatch = Callable[[Sequence[int]], list[ClipRow]]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Collected:
    """The rows of all clips, in their order.

    Args:
        rank_by: column, candidate and metric.
    """

    rows: Sequence[ClipRow]
    rank_by: tuple[str, str, str]
    file: RowFile

    @functools.cached_property
    def summary(self) -> RowSummary:
        return RowSummary(self.rows)

    def clip_facts(self, clips: EvaluationClips) -> dict[str, Any]:
        """Return facts for the report. Equal checksums allow comparing scores clip by clip."""
        frames = "".join(row.frames_checksum for row in self.rows)
        checksum = hashlib.blake2b(frames.encode(), digest_size=16).hexdigest()
        return {"number": len(clips), "episodes": clips.num_episodes, "checksum": checksum}

    def finish(self) -> None:
        """Mark the report as written: the same command would score all clips again."""
        self.file.remove_features()

    def chosen(self) -> dict[str, tuple[float, int]]:
        """Choose clips to show: rank -> (score, clip number)."""
        column, candidate, metric = self.rank_by
        ranking = sorted((row.summaries[column][candidate][metric], row.number) for row in self.rows)
        places = {"best": -1, "median": len(ranking) // 2, "worst": 0}
        return {name: ranking[place] for name, place in places.items()}


def collect(
    score: ScoreBatch,
    clips: EvaluationClips,
    folder: Path,
    batch_size: int,
    processes: Processes,
    rank_by: tuple[str, str, str],
    facts: Mapping[str, Any],
    with_features: bool = False,
) -> Collected | None:
    """Score all clips that have no row in ``folder/clips.jsonl`` yet, and add their rows. All processes call it.

    Args:
        rank_by: column, candidate and metric.
        facts: everything that affects the scores; existing rows with other facts are ignored.
        with_features: whether existing rows need their I3D features.

    Returns:
        The rows on the main process, None on the others.
    """
    facts = {**facts, "clips": clips.checksum(), "versions": versions(PACKAGES)}
    evaluation = hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=8).hexdigest()
    file = RowFile(folder, evaluation)
    rows = _begun(file, folder, with_features) if processes.is_main else []
    known, *_ = processes.gather({row.number for row in rows})
    batches = [range(first, min(first + batch_size, len(clips))) for first in range(0, len(clips), batch_size)]
    missing = [numbers for batch in batches if (numbers := [number for number in batch if number not in known])]
    scored = score_batches(score, missing, processes)
    if not processes.is_main:
        for _ in scored:  # only the main process keeps the rows
            pass
        return None
    with tqdm(initial=len(known), total=len(clips), desc="clips", unit="clip") as bar:
        for part in scored:
            new = [replace(row, **asdict(clips.origin(row.number))) for row in part]
            file.append(new)
            rows += new
            bar.update(len(new))
    rows = sorted(rows, key=lambda row: row.number)
    return Collected(rows, rank_by, file)


def _begun(file: RowFile, folder: Path, with_features: bool) -> list[ClipRow]:
    """Return the rows of an interrupted evaluation, none of a finished one, and remove all others from the file."""
    rows: list[ClipRow] = []
    if not (folder / JSON_FILE).exists():
        if file.is_of_another:
            logger.warning("%s is of another evaluation: beginning again", folder / CLIPS_FILE)
        rows = file.read(with_features)
    file.rewrite(rows)
    for name in (JSON_FILE, MARKDOWN_FILE):  # an old report would be mistaken for the new one
        (folder / name).unlink(missing_ok=True)
    return rows


def score_batches(score: ScoreBatch, batches: Sequence[Sequence[int]], processes: Processes) -> Iterator[list[ClipRow]]:
    """Score batches of clips in order, distributed over all processes.

    Raises:
        UserError: on all processes, if one could not score a batch.
    """
    for first in range(0, len(batches), processes.count):
        parts = processes.gather(_attempt(score, batches[first : first + processes.count], processes.rank))
        yield [row for part in parts for row in part]


def _attempt(score: ScoreBatch, batches: Sequence[Sequence[int]], rank: int) -> list[ClipRow] | UserError:
    """Score this rank's batch, if there is one. Errors are returned, to be shared: other ranks would wait forever."""
    if rank >= len(batches):
        return []
    try:
        return score(batches[rank])
    except UserError as error:
        return error


def read_with_others(clips: EvaluationClips, numbers: Sequence[int]) -> tuple[ClipBatch, Tensor | None]:
    """Read clips, and for each the actions (B, T, D) of a clip of another episode.

    The actions are None if there are none, or no other episodes.
    """
    others = [other for number in numbers if (other := clips.next_of_another_episode(number)) is not None]
    if len(others) < len(numbers):
        return clips.read(numbers), None
    to_read = list(dict.fromkeys([*numbers, *others]))
    batch, own = clips.read(to_read), len(numbers)
    if batch.actions is None:
        return ClipBatch(batch.frames[:own]), None
    return ClipBatch(batch.frames[:own], batch.actions[:own]), batch.actions[[to_read.index(other) for other in others]]
