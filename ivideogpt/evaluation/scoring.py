"""Scores a list of clips, in batches that are dealt to processes. Knows clips by number; knows no metric."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from torch import Tensor
from tqdm import tqdm

from ivideogpt.data.clips.batches import ClipBatch
from ivideogpt.data.clips.evaluation_clips import EvaluationClips
from ivideogpt.errors import UserError
from ivideogpt.evaluation.clip_scores import ClipScores, Tally
from ivideogpt.evaluation.processes import Processes
from ivideogpt.evaluation.report import JSON_FILE, MARKDOWN_FILE, PACKAGES
from ivideogpt.evaluation.unfinished import Unfinished
from ivideogpt.versions import versions

ScoreBatch = Callable[[Sequence[int]], list[ClipScores]]

CLIPS_FILE = "clips.jsonl"


@dataclass(frozen=True)
class Collected:
    """What all clips come to.

    Attributes:
        ranking: their numbers with what they are ranked by, from the worst to the best.
        checksum: of their true frames, in their order.
    """

    tally: Tally
    ranking: list[tuple[float, int]]
    checksum: str
    unfinished: Unfinished

    def clip_facts(self, clips: EvaluationClips) -> dict[str, Any]:
        """What a report says of the clips. Scores of lists with equal checksums may be compared clip by clip."""
        return {"number": len(clips), "episodes": clips.num_episodes, "checksum": self.checksum}

    def finish(self) -> None:
        """The report is written: the same command would begin anew."""
        self.unfinished.remove()

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
    facts: Mapping[str, Any],
) -> Collected | None:
    """Score all clips, and write a line of ``folder/clips.jsonl`` for each. All processes call it.

    An interrupted evaluation goes on with the batch that it was at; :meth:`Collected.finish` says that it is over.

    Args:
        rank_by: column, candidate and metric.
        facts: all that the scores depend on: sums of an evaluation with other facts are not continued.

    Returns:
        None but for the main process.
    """
    unfinished = Unfinished(folder, {**facts, "clips": clips.checksum(), "versions": versions(PACKAGES)})
    tally = (_begun(unfinished, folder / CLIPS_FILE) if processes.is_main else None) or Tally()
    first_clip, *_ = processes.gather(tally.means.num_clips)
    scored = score_clips(score, first_clip, len(clips), batch_size, processes)
    if not processes.is_main:
        for _ in scored:  # the main process keeps the scores; this one helps to make them
            pass
        return None
    folder.mkdir(parents=True, exist_ok=True)
    for of_before in (JSON_FILE, MARKDOWN_FILE):  # which would be taken for that of the clips now scored
        (folder / of_before).unlink(missing_ok=True)
    with (
        _opened_after(folder / CLIPS_FILE, first_clip) as lines,
        tqdm(initial=first_clip, total=len(clips), desc="clips", unit="clip") as bar,
    ):
        for of_batches in scored:
            for clip in of_batches:
                tally.add(clip, drawn_as=str(clips.origin(clip.number)))
                lines.write(json.dumps({**clip.as_json(), **asdict(clips.origin(clip.number))}, allow_nan=False) + "\n")
            lines.flush()
            unfinished.write(tally)
            bar.update(len(of_batches))
    of_clips = [json.loads(line) for line in (folder / CLIPS_FILE).read_text().splitlines()]
    column, candidate, metric = rank_by
    ranking = sorted((of["scores"][column][candidate][metric], of["clip"]) for of in of_clips)
    checksum = hashlib.blake2b("".join(of["frames"] for of in of_clips).encode(), digest_size=16).hexdigest()
    return Collected(tally, ranking, checksum, unfinished)


def _begun(unfinished: Unfinished, lines: Path) -> Tally | None:
    """Sums to continue, if the lines of the clips in them are there, too."""
    tally = unfinished.read()
    if tally is None or not lines.is_file() or lines.read_text().count("\n") < tally.means.num_clips:
        return None
    return tally


def _opened_after(path: Path, num_lines: int) -> TextIO:
    """The file, to be written to after so many lines."""
    file = path.open("r+" if num_lines else "w")
    for _ in range(num_lines):
        file.readline()
    file.seek(file.tell())
    file.truncate()
    return file


def score_clips(
    score: ScoreBatch, first_clip: int, num_clips: int, batch_size: int, processes: Processes
) -> Iterator[list[ClipScores]]:
    """Scores of clips ``first_clip`` .. num_clips - 1 in this order, on all processes, which take turns at batches.

    Raises:
        UserError: on all of them, if a batch of any could not be scored.
    """
    batches = [range(first, min(first + batch_size, num_clips)) for first in range(first_clip, num_clips, batch_size)]
    for first in range(0, len(batches), processes.count):
        parts = processes.gather(_attempt(score, batches[first : first + processes.count], processes.rank))
        yield [clip for part in parts for clip in part]


def _attempt(score: ScoreBatch, batches: Sequence[range], rank: int) -> list[ClipScores] | UserError:
    """The scores of this rank's batch, if one is left for it; a user's error is everybody's, or others would wait."""
    if rank >= len(batches):
        return []
    try:
        return score(batches[rank])
    except UserError as error:
        return error


def read_with_others(clips: EvaluationClips, numbers: Sequence[int]) -> tuple[ClipBatch, Tensor | None]:
    """These clips, and for each the actions of another episode's clip: (B, T, D).

    None if there are no actions, or no other episodes.
    """
    others = [other for number in numbers if (other := clips.next_of_another_episode(number)) is not None]
    if len(others) < len(numbers):
        return clips.read(numbers), None
    to_read = list(dict.fromkeys([*numbers, *others]))
    batch, own = clips.read(to_read), len(numbers)
    if batch.actions is None:
        return ClipBatch(batch.frames[:own]), None
    return ClipBatch(batch.frames[:own], batch.actions[:own]), batch.actions[[to_read.index(other) for other in others]]
