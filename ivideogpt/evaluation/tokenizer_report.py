"""Report on a tokenizer's reconstructions, by dataset, and on the codes that it uses.

Dimension keys: B clips, T = t + F frames, t context frames, F future frames.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ivideogpt.data.clips.evaluation_clips import EvaluationClips
from ivideogpt.data.tokens.token_store import state_checksum
from ivideogpt.devices import versions
from ivideogpt.evaluation.report import (
    MARKDOWN_FILE,
    PACKAGES,
    candidate_table,
    candidates_as_json,
    headline,
    in_order,
    label,
    made_with,
    markdown_table,
    with_interval,
)
from ivideogpt.evaluation.rows import ClipRow, frames_checksum
from ivideogpt.evaluation.scoring import Collected, Processes, collect
from ivideogpt.evaluation.video_prediction import reconstruct
from ivideogpt.evaluation.visualize import contact_sheet, sample_rows
from ivideogpt.metrics.frame_metrics import FrameScorer
from ivideogpt.video_io import to_pixels, write_png
from ivideogpt.vq_model import CompressiveVQModel
from ivideogpt.vq_model.quantizer import code_usage

KIND = "tokenizer"
ALL = "all datasets"
CONTEXT, FUTURE = "context", "future"


@dataclass(frozen=True)
class ReconstructionScorer:
    """Score reconstructions of context and future frames separately, for all datasets and for the clip's own."""

    tokenizer: CompressiveVQModel
    clips: EvaluationClips
    scorer: FrameScorer

    def __call__(self, numbers: Sequence[int]) -> list[ClipRow]:
        frames = self.clips.read(numbers).frames.to(self.tokenizer.device)
        made = reconstruct(self.tokenizer, frames)
        scores = self.scorer(frames, made.frames[:, None])
        t = self.tokenizer.context_length
        rows = []
        for row, number in enumerate(numbers):
            parts = {
                part: {metric: float(values[row, 0, span].mean()) for metric, values in scores.items()}
                for part, span in ((CONTEXT, slice(0, t)), (FUTURE, slice(t, None)))
            }
            summaries = {ALL: parts, self.clips.origin(number).dataset: parts}
            codes = {CONTEXT: made.context_codes[row], FUTURE: made.dynamics_codes[row]}
            numbered = {part: ids.tolist() for part, ids in codes.items()}
            rows.append(ClipRow(number, summaries, frames_checksum(frames[row]), codes=numbered))
        return rows


def evaluate_reconstructions(
    score: ReconstructionScorer, folder: Path, settings: Mapping[str, Any], batch_size: int, processes: Processes
) -> None:
    """Score the reconstructions and write the report. All processes call it; the main one writes."""
    facts = {**settings, "weights": state_checksum(score.tokenizer.state_dict()), "lpips": bool(score.scorer.lpips)}
    rank_by = ALL, FUTURE, "psnr"
    collected = collect(score, score.clips, folder, batch_size, processes, KIND, rank_by, facts)
    if collected is None:
        return
    for rank, which in collected.chosen().items():
        _show(folder, score, rank, *which)
    report = build_report(score, collected, settings)
    text = as_markdown(report, collected)
    collected.write(report, text)
    print(text.split("## Clips")[0])
    print(f"report: {folder / MARKDOWN_FILE}")


def _show(folder: Path, score: ReconstructionScorer, rank: str, psnr: float, number: int) -> None:
    frames, origin = score.clips.read([number]).frames.to(score.tokenizer.device), score.clips.origin(number)
    pixels = to_pixels(frames[0]), to_pixels(reconstruct(score.tokenizer, frames).frames[0])
    title = f"{rank} clip: {number}, {origin.dataset}/{origin.episode}, future frames {psnr:.2f} dB"
    sheet = contact_sheet([sample_rows(*pixels, "reconstruction")], score.tokenizer.context_length, title)
    write_png(folder / f"clip-{rank}.png", sheet)


def build_report(score: ReconstructionScorer, collected: Collected, settings: Mapping[str, Any]) -> dict[str, Any]:
    tokenizer, summary = score.tokenizer, collected.summary
    sizes = {CONTEXT: tokenizer.num_vq_embeddings, FUTURE: tokenizer.num_dyn_embeddings}
    usage = {part: code_usage(torch.from_numpy(summary.code_counts(part, size))) for part, size in sizes.items()}
    config = {name: value for name, value in tokenizer.config.items() if not name.startswith("_")}  # added on loading
    return {
        "kind": KIND,
        "settings": dict(settings),
        "model": {"tokenizer_checksum": state_checksum(tokenizer.state_dict()), "config": config},
        "clips": collected.clip_facts(score.clips),
        "versions": versions(PACKAGES),
        "scores": {dataset: candidates_as_json(parts) for dataset, parts in summary.columns().items()},
        "codes": {part: {"size": size, **usage[part]} for part, size in sizes.items()},
        "left_out": [] if score.scorer.lpips else ["LPIPS: its weights were not there"],
    }


def as_markdown(report: Mapping[str, Any], collected: Collected) -> str:
    columns = collected.summary.columns()
    all_clips = columns.pop(ALL)
    codes = [
        [part, str(book["size"]), f"{book['usage']:.1%}", f"{book['perplexity']:.0f}"]
        for part, book in report["codes"].items()
    ]
    futures = {name: scores[FUTURE] for name, scores in sorted(columns.items())}
    metrics = in_order(metric for scores in futures.values() for metric in scores)
    datasets = [
        [name, str(scores["psnr"].clips), *(with_interval(metric, scores[metric]) for metric in metrics)]
        for name, scores in futures.items()
    ]
    sections = [
        headline(report, "Tokenizer"),
        candidate_table(all_clips, {}),
        "## Codebooks\n\n" + markdown_table(["", "codes", "in use", "perplexity"], codes),
        "## By dataset, future frames\n\n" + markdown_table(["", "clips", *map(label, metrics)], datasets),
        *(f"Left out: {line}." for line in report["left_out"]),
        "## Clips\n\n" + "\n\n".join(f"![{rank} clip](clip-{rank}.png)" for rank in collected.chosen()),
        made_with(report),
    ]
    return "\n\n".join(sections) + "\n"
