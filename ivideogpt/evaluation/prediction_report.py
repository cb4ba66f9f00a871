"""Evaluate a world model on a list of clips: scores, baselines, curves, pictures.

Knows models and clips; the caller knows flags and datasets.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ivideogpt.data.clips.evaluation_clips import EvaluationClips
from ivideogpt.data.tokens.token_store import state_checksum
from ivideogpt.evaluation.bootstrap import Interval
from ivideogpt.evaluation.curves import draw_curves
from ivideogpt.evaluation.processes import Processes
from ivideogpt.evaluation.protocols import COLUMNS, PROTOCOLS
from ivideogpt.evaluation.report import (
    JSON_FILE,
    MARKDOWN_FILE,
    PACKAGES,
    candidate_table,
    candidates_as_json,
    curves_as_json,
    headline,
    interval_as_json,
    made_with,
    markdown_table,
    with_interval,
)
from ivideogpt.evaluation.rows import PREDICTION, SHUFFLED, ClipRow, RowSummary
from ivideogpt.evaluation.scoring import Collected, collect, read_with_others
from ivideogpt.evaluation.video_prediction import COPY, PredictionScorer, reconstruct_future, sample_futures
from ivideogpt.evaluation.visualize import Row, contact_sheet, error_frames, sample_rows
from ivideogpt.files import write_json, write_text
from ivideogpt.metrics.table import METRICS
from ivideogpt.versions import versions
from ivideogpt.video_io import side_by_side, to_pixels, write_gif, write_png
from ivideogpt.world_model import WorldModel

KIND = "video prediction"
CURVES_FILE = "curves.png"
FEWEST_EPISODES = 5  # minimum for a meaningful bootstrap interval
NO_MATTER = (
    "batch_size",
    "max_generate_batchsize",
    "max_decode_batchsize",
    "protocol",
)  # settings without effect on the scores of a clip
RANKED_BY = ("future", PREDICTION, "psnr")  # score that ranks the clips
QUESTIONS = {
    COPY: "Is it better than copying the last context frame?",
    SHUFFLED: "Does it listen to actions: is it better than under another episode's?",
}


@dataclass(frozen=True)
class Finding:
    """A question about the model, answered by a difference of means with its interval."""

    question: str
    candidate: str
    metric: str
    difference: Interval
    num_episodes: int

    @property
    def answer(self) -> str:
        if self.num_episodes < FEWEST_EPISODES:
            return f"not to be said of fewer than {FEWEST_EPISODES} episodes"
        if self.difference.low > 0:
            return "yes"
        return "no" if self.difference.high < 0 else "not shown: the interval holds 0"


def evaluate_predictions(
    scorer: PredictionScorer,
    clips: EvaluationClips,
    folder: Path,
    settings: Mapping[str, Any],
    protocol: str = "both",
    batch_size: int = 10,
    processes: Processes | None = None,
) -> dict[str, Any] | None:
    """Score every clip and write the report into ``folder``. All processes call it; the main one gets the report.

    Args:
        settings: settings of the evaluation, stored in the report.
        protocol: key of ``PROTOCOLS``, which selects the columns.

    Raises:
        UserError: a clip cannot be read, or the model predicts NaN.
    """
    processes = processes or Processes()

    def score(numbers: Sequence[int]) -> list[ClipRow]:
        return scorer(numbers, *read_with_others(clips, numbers))

    depend_on = {name: value for name, value in settings.items() if name not in NO_MATTER}
    facts = {**depend_on, **model_facts(scorer.model), "left_out": left_out(scorer)}
    collected = collect(score, clips, folder, batch_size, processes, RANKED_BY, facts, scorer.i3d is not None)
    if collected is None:
        return None
    summary = collected.summary
    shown = [_show(folder, scorer, clips, rank, *which) for rank, which in collected.chosen().items()]
    report = build_report(scorer, clips, collected, settings, PROTOCOLS[protocol], shown)
    draw_curves(folder / CURVES_FILE, summary.curves(), scorer.model.metadata.context_length)
    write_json(folder / JSON_FILE, report)
    write_text(folder / MARKDOWN_FILE, as_markdown(report, summary, PROTOCOLS[protocol], scorer.num_samples))
    collected.finish()
    return report


# ---- pictures


@dataclass(frozen=True)
class ShownClip:
    rank: str
    clip: int
    dataset: str
    episode: str
    psnr: float
    sheet: str
    gif: str


def _show(
    folder: Path, scorer: PredictionScorer, clips: EvaluationClips, rank: str, psnr: float, number: int
) -> ShownClip:
    model, origin = scorer.model, clips.origin(number)
    clip = clips.read([number]).to(model.device)
    rollout = sample_futures(model, clip, scorer.seed, clip_numbers=[number])
    truth = to_pixels(clip.frames[0])
    predicted = to_pixels(torch.cat([rollout.context[0], rollout.frames[0, 0]]))
    reconstructed = to_pixels(torch.cat([rollout.context[0], reconstruct_future(model, clip.frames)[0]]))
    groups = [[*sample_rows(truth, predicted, "prediction"), Row("reconstruction", reconstructed)]]
    shown_psnr = f"{psnr:.2f} dB" if scorer.num_samples == 1 else f"{psnr:.2f} dB in the mean, sample 0 shown"
    title = f"{rank} clip: {number}, {origin}, {shown_psnr}"
    shown = ShownClip(rank, number, origin.dataset, origin.episode, psnr, f"clip-{rank}.png", f"clip-{rank}.gif")
    write_png(folder / shown.sheet, contact_sheet(groups, model.metadata.context_length, title))
    write_gif(folder / shown.gif, side_by_side([truth, predicted, error_frames(truth, predicted)]))
    return shown


# ---- the report


def build_report(
    scorer: PredictionScorer,
    clips: EvaluationClips,
    collected: Collected,
    settings: Mapping[str, Any],
    columns: Sequence[str],
    shown: Sequence[ShownClip],
) -> dict[str, Any]:
    summary = collected.summary
    means, distances = summary.columns(), summary.fvd()
    return {
        "kind": KIND,
        "settings": dict(settings),
        "model": model_facts(scorer.model),
        "clips": collected.clip_facts(clips),
        "versions": versions(PACKAGES),
        "scores": {column: candidates_as_json(means[column]) for column in columns if column in means},
        "fvd": {column: distance for column, distance in distances.items() if column in columns},
        "findings": [
            {**asdict(finding), "difference": interval_as_json(finding.difference), "answer": finding.answer}
            for finding in findings(summary, clips.num_episodes)
        ],
        "per_frame": curves_as_json(summary.curves()),
        "left_out": left_out(scorer),
        "shown": [asdict(clip) for clip in shown],
    }


def model_facts(model: WorldModel) -> dict[str, Any]:
    return {
        "tokenizer_checksum": state_checksum(model.tokenizer.state_dict()),
        "transformer_checksum": state_checksum(model.transformer.state_dict()),
        "metadata": asdict(model.metadata),
    }


def left_out(scorer: PredictionScorer) -> list[str]:
    missing = []
    if scorer.scorer.lpips is None:
        missing.append("LPIPS: its weights were not there")
    if scorer.i3d is None:
        missing.append("FVD: the I3D network was not there, or not asked for")
    return missing


def findings(summary: RowSummary, num_episodes: int) -> list[Finding]:
    """Compare the prediction with its baselines, clip by clip, on predicted frames.

    Where little moves, copying is hard to beat over all pixels, so moving pixels are also scored separately.
    """
    found = []
    for name, question in QUESTIONS.items():
        for metric in ("psnr", "moving_psnr"):
            ours, theirs = (RANKED_BY[0], PREDICTION, metric), (RANKED_BY[0], name, metric)
            if ours in summary.means and theirs in summary.means:
                found.append(Finding(question, name, metric, summary.means.difference(ours, theirs), num_episodes))
    return found


def as_markdown(report: Mapping[str, Any], summary: RowSummary, columns: Sequence[str], num_samples: int) -> str:
    means = summary.columns()
    sections = [
        headline(report, "Video prediction"),
        _findings_table(findings(summary, report["clips"]["episodes"])),
    ]
    for column in columns:
        if column in means:
            table = candidate_table(means[column], report["fvd"].get(column, {}))
            sections.append(f"## {COLUMNS[column].title}\n\n{table}")
    if report["fvd"] and num_samples > 1:
        sections.append(
            f"FVD of the prediction is over {num_samples} futures of each clip, that of the others over one: it is the "
            "larger for fewer videos."
        )
    sections += [f"Left out: {line}." for line in report["left_out"]]
    sections.append(f"## Frame by frame\n\n![scores of every frame]({CURVES_FILE})")
    sections.append("## Clips\n\n" + "\n\n".join(map(_clip_section, report["shown"])))
    sections.append(made_with(report))
    return "\n\n".join(sections) + "\n"


def _findings_table(found: Sequence[Finding]) -> str:
    rows = [[x.question, METRICS[x.metric].label, with_interval(x.metric, x.difference), x.answer] for x in found]
    return markdown_table(["", "by", "difference, dB", ""], rows)


def _clip_section(shown: Mapping[str, Any]) -> str:
    psnr = "-" if math.isnan(shown["psnr"]) else f"{shown['psnr']:.2f} dB"
    origin = f"clip {shown['clip']}, {shown['dataset']}/{shown['episode']}"
    animation = f"[animation]({shown['gif']}) of truth, prediction, error"
    return f"**{shown['rank'].capitalize()}** ({origin}, {psnr}; {animation})\n\n![{shown['rank']}]({shown['sheet']})"
