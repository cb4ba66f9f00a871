"""Score a list of clips in batches, distributed over the processes. Knows clips by number; knows no metric."""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, distributed
from tqdm import tqdm

from ivideogpt.data.clips.batches import ClipBatch
from ivideogpt.data.clips.evaluation_clips import EvaluationClips
from ivideogpt.devices import versions
from ivideogpt.errors import UserError
from ivideogpt.evaluation.report import JSON_FILE, MARKDOWN_FILE, PACKAGES
from ivideogpt.evaluation.rows import ClipRow, ClipRows, RowSummary
from ivideogpt.files import ADVICE, SETTINGS_FILE, check_settings, read_json, write_json, write_text

T = TypeVar("T")

PATIENCE = timedelta(days=7)
ScoreBatch = Callable[[Sequence[int]], list[ClipRow]]

logger = logging.getLogger(__name__)


class Processes:
    """The processes of an evaluation; one, unless a launcher started several."""

    def __init__(self) -> None:
        several = distributed.is_available() and distributed.is_initialized()
        self.rank = distributed.get_rank() if several else 0
        self.count = distributed.get_world_size() if several else 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def gather(self, part: T | UserError) -> list[T]:
        """Gather the parts of all ranks, in order. All processes call it; a part that is an error is raised on all."""
        parts: list[T | UserError | None] = [part]
        if self.count > 1:
            parts = [None] * self.count
            distributed.all_gather_object(parts, part, group=_patient_group())
        for gathered in parts:
            if isinstance(gathered, UserError):
                raise gathered
        return parts  # type: ignore[return-value]


@functools.cache
def _patient_group() -> distributed.ProcessGroup | None:
    """Create a group of all processes with a long timeout: others may sample for hours."""
    return distributed.new_group(backend="gloo", timeout=PATIENCE)


@dataclass(frozen=True)
class Collected:
    """The rows of all clips, in their order. ``rank_by`` is a column, a candidate and a metric."""

    rows: Sequence[ClipRow]
    rank_by: tuple[str, str, str]
    file: ClipRows

    @functools.cached_property
    def summary(self) -> RowSummary:
        return RowSummary(self.rows)

    def clip_facts(self, clips: EvaluationClips) -> dict[str, Any]:
        """Return facts for the report. Equal checksums allow comparing scores clip by clip."""
        frames = "".join(row.frames_checksum for row in self.rows)
        checksum = hashlib.blake2b(frames.encode(), digest_size=16).hexdigest()
        return {"number": len(clips), "episodes": clips.num_episodes, "checksum": checksum}

    def write(self, report: Mapping[str, Any], markdown: str) -> None:
        """Write the report, which ends the evaluation: the same command would score all clips again."""
        write_json(self.file.folder / JSON_FILE, report)
        write_text(self.file.folder / MARKDOWN_FILE, markdown)
        self.file.finish()

    def chosen(self) -> dict[str, tuple[float, int]]:
        """Choose clips to show: rank -> (score, clip number)."""
        column, candidate, metric = self.rank_by
        ranking = sorted((row.summaries[column][candidate][metric], row.number) for row in self.rows)
        return {"best": ranking[-1], "median": ranking[len(ranking) // 2], "worst": ranking[0]}


def collect(
    score: ScoreBatch,
    clips: EvaluationClips,
    folder: Path,
    batch_size: int,
    processes: Processes,
    kind: str,
    rank_by: tuple[str, str, str],
    facts: Mapping[str, Any],
    with_features: bool = False,
) -> Collected | None:
    """Score all clips that have no row in ``folder/clips.jsonl`` yet, and add their rows. All processes call it.

    Returns the rows on the main process, None on the others.

    Args:
        kind: of the report.
        rank_by: column, candidate and metric.
        facts: everything that affects the scores; existing rows with other facts are ignored.
        with_features: whether existing rows need their I3D features.
    """
    facts = {"kind": kind, **facts, "clips": clips.checksum(), "versions": versions(PACKAGES)}
    file, scored = None, set[int]()
    if processes.is_main:
        try:
            file = _begun(folder, kind, facts, with_features)
            scored = {row.number for row in file.rows}
        except UserError as error:
            processes.gather(error)  # raises it on all: other ranks would wait forever
    known, *_ = processes.gather(scored)
    batches = [range(first, min(first + batch_size, len(clips))) for first in range(0, len(clips), batch_size)]
    missing = [numbers for batch in batches if (numbers := [number for number in batch if number not in known])]
    with tqdm(initial=len(known), total=len(clips), desc="clips", unit="clip", disable=file is None) as bar:
        for part in score_batches(score, missing, processes):
            if file is not None:  # the main process alone keeps the rows
                file.add([replace(row, **asdict(clips.origin(row.number))) for row in part])
                bar.update(len(part))
    return None if file is None else Collected(sorted(file.rows, key=lambda row: row.number), rank_by, file)


def _begun(folder: Path, kind: str, facts: Mapping[str, Any], with_features: bool) -> ClipRows:
    """Return the rows of an interrupted evaluation, none of a finished one or of another, whose report is removed.

    Raises:
        UserError: the folder is of another command, or of an evaluation of another kind.
    """
    for path in (folder / SETTINGS_FILE, folder / JSON_FILE):
        content = read_json(path, ADVICE) if path.exists() else None
        if content is not None and (not {"clips", "versions"} <= content.keys() or content.get("kind", kind) != kind):
            raise UserError(f"{path} is of something else than {kind}: name another folder, or remove this one")
    try:
        check_settings(folder / SETTINGS_FILE, facts)
    except UserError as error:
        logger.warning("beginning again: %s", error)
        (folder / SETTINGS_FILE).unlink()
    for name in (JSON_FILE, MARKDOWN_FILE):  # an old report would be mistaken for the new one
        (folder / name).unlink(missing_ok=True)
    return ClipRows(folder, facts, with_features)


def score_batches(score: ScoreBatch, batches: Sequence[Sequence[int]], processes: Processes) -> Iterator[list[ClipRow]]:
    """Score batches of clips in order, distributed over all processes, which share the UserError of one."""
    for first in range(0, len(batches), processes.count):
        part: list[ClipRow] | UserError
        try:
            part = [row for batch in batches[first + processes.rank :][:1] for row in score(batch)]
        except UserError as error:  # to be shared: other ranks would wait forever
            part = error
        yield [row for gathered in processes.gather(part) for row in gathered]


def read_with_others(
    clips: EvaluationClips, numbers: Sequence[int], others: Sequence[int]
) -> tuple[ClipBatch, Tensor | None]:
    """Read clips, and the actions (B, T, D) of as many others, which are None without others or actions."""
    to_read = list(dict.fromkeys([*numbers, *others]))
    batch, own = clips.read(to_read), len(numbers)
    if batch.actions is None:
        return ClipBatch(batch.frames[:own]), None
    other_actions = batch.actions[[to_read.index(other) for other in others]] if others else None
    return ClipBatch(batch.frames[:own], batch.actions[:own]), other_actions
