"""Evaluate a world model on a list of clips: scores, baselines, curves, pictures.

Knows models and clips; the caller knows flags and datasets.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import torch

from ivideogpt.data.clips.evaluation_clips import EvaluationClips
from ivideogpt.data.tokens.token_store import state_checksum
from ivideogpt.devices import versions
from ivideogpt.evaluation.protocols import COLUMNS, PROTOCOLS
from ivideogpt.evaluation.report import (
    PACKAGES,
    candidate_table,
    candidates_as_json,
    curves_as_json,
    draw_curves,
    headline,
    made_with,
    markdown_table,
    with_interval,
    without_interval,
)
from ivideogpt.evaluation.rows import PREDICTION, SHUFFLED, ClipRow, RowSummary
from ivideogpt.evaluation.scoring import Collected, Processes, collect, read_with_others
from ivideogpt.evaluation.video_prediction import COPY, PredictionScorer, reconstruct_future, sample_futures
from ivideogpt.evaluation.visualize import Row, contact_sheet, error_frames, sample_rows
from ivideogpt.metrics.table import METRICS
from ivideogpt.video_io import side_by_side, to_pixels, write_gif, write_png
from ivideogpt.world_model import WorldModel

KIND = "video prediction"
CURVES_FILE = "curves.png"
FEWEST_EPISODES = 5  # minimum for a meaningful bootstrap interval
# Settings without effect on the scores of a clip.
NO_MATTER = ("batch_size", "max_generate_batchsize", "max_decode_batchsize", "protocol")
RANKED_BY = ("future", PREDICTION, "psnr")  # score that ranks the clips
Parts = Mapping[str, RowSummary]  # rows of a report by a name that they share
QUESTIONS = {
    COPY: "Is it better than copying the last context frame?",
    SHUFFLED: "Does it listen to actions: is it better than under another episode's?",
}


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

    ``settings`` are stored in the report; ``protocol`` is the key of ``PROTOCOLS`` that selects its columns. A clip
    that cannot be read and a model that predicts NaN are UserErrors.
    """
    processes = processes or Processes()

    def score(numbers: Sequence[int]) -> list[ClipRow]:
        found = {number: clips.next_of_another_episode(number) for number in numbers}
        others = {number: other for number, other in found.items() if other is not None}
        alone = [number for number in numbers if number not in others]
        rows: list[ClipRow] = []
        for group, their_others in ((list(others), list(others.values())), (alone, [])):
            if group:
                rows += scorer(group, *read_with_others(clips, group, their_others))
        return rows

    depend_on = {name: value for name, value in settings.items() if name not in NO_MATTER}
    facts = {**depend_on, **model_facts(scorer.model), **space_facts(clips), "left_out": left_out(scorer)}
    collected = collect(score, clips, folder, batch_size, processes, KIND, RANKED_BY, facts, scorer.i3d is not None)
    if collected is None:
        return None
    shown = [_show(folder, scorer, clips, rank, *which) for rank, which in collected.chosen().items()]
    parts = {
        "action_space": parts_by(lambda row: clips.action_space(row.number), collected.rows),
        "dataset": parts_by(lambda row: row.dataset, collected.rows),
    }
    report = build_report(scorer, clips, collected, settings, PROTOCOLS[protocol], shown, parts)
    draw_curves(folder / CURVES_FILE, collected.summary.curves(), scorer.model.metadata.context_length)
    text = as_markdown(report, collected.summary, PROTOCOLS[protocol], scorer.num_samples, parts)
    collected.write(report, text)
    return report


def _show(
    folder: Path, scorer: PredictionScorer, clips: EvaluationClips, rank: str, psnr: float, number: int
) -> dict[str, Any]:
    """Write the pictures of a clip; return what the report says of it."""
    model, origin = scorer.model, clips.origin(number)
    clip = clips.read([number]).to(model.device)
    rollout = sample_futures(model, clip, scorer.seed, clip_numbers=[number])
    truth = to_pixels(clip.frames[0])
    predicted = to_pixels(torch.cat([rollout.context[0], rollout.frames[0, 0]]))
    reconstructed = to_pixels(torch.cat([rollout.context[0], reconstruct_future(model, clip.frames)[0]]))
    groups = [[*sample_rows(truth, predicted, "prediction"), Row("reconstruction", reconstructed)]]
    shown_psnr = f"{psnr:.2f} dB" if scorer.num_samples == 1 else f"{psnr:.2f} dB in the mean, sample 0 shown"
    title = f"{rank} clip: {number}, {origin}, {shown_psnr}"
    sheet, gif = f"clip-{rank}.png", f"clip-{rank}.gif"
    write_png(folder / sheet, contact_sheet(groups, model.metadata.context_length, title))
    write_gif(folder / gif, side_by_side([truth, predicted, error_frames(truth, predicted)]))
    return {"rank": rank, "clip": number, **asdict(origin), "psnr": psnr, "sheet": sheet, "gif": gif}


def build_report(
    scorer: PredictionScorer,
    clips: EvaluationClips,
    collected: Collected,
    settings: Mapping[str, Any],
    columns: Sequence[str],
    shown: Sequence[Mapping[str, Any]],
    parts: Mapping[str, Parts],
) -> dict[str, Any]:
    summary = collected.summary
    distances = summary.fvd()

    def scores(summary: RowSummary) -> dict[str, Any]:
        means = summary.columns()
        return {column: candidates_as_json(means[column]) for column in columns if column in means}

    return {
        "kind": KIND,
        "settings": dict(settings),
        "model": {**model_facts(scorer.model), **space_facts(clips)},
        "clips": collected.clip_facts(clips),
        "versions": versions(PACKAGES),
        "scores": scores(summary),
        "fvd": {column: distance for column, distance in distances.items() if column in columns},
        **{f"by_{kind}": {name: scores(part) for name, part in each.items()} for kind, each in parts.items()},
        "findings": [
            {**finding, "difference": finding["difference"].as_json()}
            for finding in findings(summary, clips.num_episodes)
        ],
        "per_frame": curves_as_json(summary.curves()),
        "left_out": left_out(scorer),
        "shown": shown,
    }


def model_facts(model: WorldModel) -> dict[str, Any]:
    return {
        "tokenizer_checksum": state_checksum(model.tokenizer.state_dict()),
        "transformer_checksum": state_checksum(model.transformer.state_dict()),
        "metadata": model.metadata.as_json(),
    }


def space_facts(clips: EvaluationClips) -> dict[str, Any]:
    """Return what the report says of action spaces, if the model has several."""
    spaces = clips.action_spaces
    return {} if spaces is None else {"action_spaces": asdict(spaces)}


def parts_by(key: Callable[[ClipRow], str | None], rows: Sequence[ClipRow]) -> Parts:
    """Divide rows by a name, in the order of names; no part where all rows have the same, or one has none."""
    parts: dict[str, list[ClipRow]] = {}
    for row in rows:
        parts.setdefault(key(row) or "", []).append(row)
    return {name: RowSummary(parts[name]) for name in sorted(parts)} if len(parts) > 1 and "" not in parts else {}


def left_out(scorer: PredictionScorer) -> list[str]:
    missing = {
        "LPIPS: its weights were not there": scorer.scorer.lpips is None,
        "FVD: the I3D network was not there, or not asked for": scorer.i3d is None,
    }
    return [line for line, is_missing in missing.items() if is_missing]


def findings(summary: RowSummary, num_episodes: int) -> list[dict[str, Any]]:
    """Answer questions by differences of the prediction to its baselines, clip by clip, on predicted frames.

    Where little moves, copying is hard to beat over all pixels, so moving pixels are also scored separately.
    """
    found = []
    for (name, question), metric in product(QUESTIONS.items(), ("psnr", "moving_psnr")):
        ours, theirs = (RANKED_BY[0], PREDICTION, metric), (RANKED_BY[0], name, metric)
        if ours not in summary.means or theirs not in summary.means:
            continue
        difference = summary.means.difference(ours, theirs)
        answer = "yes" if difference.low > 0 else "no" if difference.high < 0 else "not shown: the interval holds 0"
        if num_episodes < FEWEST_EPISODES:
            answer = f"not to be said of fewer than {FEWEST_EPISODES} episodes"
        facts = {"question": question, "candidate": name, "metric": metric, "difference": difference}
        found.append({**facts, "num_episodes": num_episodes, "answer": answer})
    return found


def dataset_table(parts: Parts, columns: Sequence[str]) -> str:
    """Return a table with one row per dataset: PSNR, and how far it is ahead of copying, clip by clip."""
    scored = next(iter(parts.values())).columns()
    shown = [column for column in ("future", "late", "paper") if column in columns and column in scored][:2]
    spans = [COLUMNS[column].title.partition(",")[0] for column in shown]
    heads = [f"{span}: {what}" for span in spans for what in ("PSNR", "ahead of copying")]
    rows = []
    for name, part in parts.items():
        means, cells = part.columns(), []
        for column in shown:
            ahead = part.means.difference((column, PREDICTION, "psnr"), (column, COPY, "psnr"))
            text = with_interval if part.num_episodes >= FEWEST_EPISODES else without_interval
            cells += [text("psnr", interval) for interval in (means[column][PREDICTION]["psnr"], ahead)]
        rows.append([name, str(part.num_episodes), *cells])
    return markdown_table(["", "episodes", *heads], rows)


def as_markdown(
    report: Mapping[str, Any],
    summary: RowSummary,
    columns: Sequence[str],
    num_samples: int,
    parts: Mapping[str, Parts],
) -> str:
    means, by_space = summary.columns(), {name: part.columns() for name, part in parts["action_space"].items()}
    answers = [
        [x["question"], METRICS[x["metric"]].label, with_interval(x["metric"], x["difference"]), x["answer"]]
        for x in findings(summary, report["clips"]["episodes"])
    ]
    sections = [headline(report, "Video prediction"), markdown_table(["", "by", "difference, dB", ""], answers)]
    for column in columns:
        if column in means:
            table = candidate_table(means[column], report["fvd"].get(column, {}))
            sections.append(f"## {COLUMNS[column].title}\n\n{table}")
            sections += [
                f"### Action space {name}\n\n{candidate_table(own[column], {})}"
                for name, own in by_space.items()
                if column in own
            ]
    if report["fvd"] and num_samples > 1:
        sections.append(
            f"FVD of the prediction is over {num_samples} futures of each clip, that of the others over one: it is the "
            "larger for fewer videos."
        )
    if parts["dataset"]:
        sections.append(f"## By dataset\n\n{dataset_table(parts['dataset'], columns)}")
    sections += [f"Left out: {line}." for line in report["left_out"]]
    sections += [f"## Frame by frame\n\n![scores of every frame]({CURVES_FILE})", "## Clips"]
    for shown in report["shown"]:
        psnr = "-" if math.isnan(shown["psnr"]) else f"{shown['psnr']:.2f} dB"
        origin = f"clip {shown['clip']}, {shown['dataset']}/{shown['episode']}"
        animation = f"[animation]({shown['gif']}) of truth, prediction, error"
        sections.append(f"**{shown['rank'].capitalize()}** ({origin}, {psnr}; {animation})")
        sections.append(f"![{shown['rank']}]({shown['sheet']})")
    return "\n\n".join([*sections, made_with(report)]) + "\n"
