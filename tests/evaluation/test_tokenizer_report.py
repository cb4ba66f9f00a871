"""``python -m ivideogpt.evaluation tokenizer``: which frames and which codes are counted."""

import json
from pathlib import Path

import pytest
import torch

from ivideogpt.commands import evaluate
from ivideogpt.commands.evaluate import TokenizerEvaluationArgs
from ivideogpt.commands.run_evaluation import clip_config
from ivideogpt.data.clips.evaluation_clips import build_evaluation_clips
from ivideogpt.flags import parse
from ivideogpt.metadata import ModelMetadata
from ivideogpt.metrics.frame_metrics import frame_psnr
from ivideogpt.pretrained import load_tokenizer
from tests.commands import run_python

ROOT = Path(__file__).parents[2]


@pytest.fixture
def flags(tiny_world_model, episodes) -> list[str]:
    required = ["--pretrained_model_name_or_path", str(tiny_world_model / "tokenizer"), "--dataset_path", str(episodes)]
    return [*required, *["--split", "all", "--num_clips", "4", "--batch_size", "3", "--dtype", "float32"]]


def test_report(flags, tmp_path):
    evaluate.main(["tokenizer", *flags, "--output_path", str(tmp_path)])
    report = json.loads((tmp_path / "report.json").read_text())
    args = parse(TokenizerEvaluationArgs, flags)
    tokenizer = load_tokenizer(args.pretrained_model_name_or_path, torch.float32)
    clips = build_evaluation_clips(clip_config(args, ModelMetadata(64, 2, 5)), "all", 4, args.seed)
    frames = clips.read(range(4)).frames
    tokens, _ = tokenizer.eval().tokenize(frames, 2)
    again = tokenizer.detokenize(tokens, 2).clamp(0, 1)
    scores = report["scores"]["all datasets"]
    for part, span in (("context", slice(0, 2)), ("future", slice(2, None))):
        expected = frame_psnr(frames[:, span], again[:, span]).mean().item()
        assert scores[part]["psnr"]["mean"] == pytest.approx(expected, rel=1e-5)
    assert set(report["scores"]) == {"all datasets", "left", "right"}
    by_dataset = [report["scores"][name]["future"]["psnr"] for name in ("left", "right")]
    assert sum(of["clips"] for of in by_dataset) == 4
    total = sum(of["clips"] * of["mean"] for of in by_dataset)
    assert total / 4 == pytest.approx(scores["future"]["psnr"]["mean"])

    codes = tokenizer.layout(3).unpack(tokens)
    for part, used, size in (("context", codes.context, 64), ("future", codes.dynamics, 48)):
        assert report["codes"][part]["size"] == size
        assert report["codes"][part]["usage"] == pytest.approx(len(used.unique()) / size)
        counts = used.flatten().bincount().double()
        shares = counts[counts > 0] / counts.sum()
        perplexity = (-(shares * shares.log()).sum()).exp().item()
        assert report["codes"][part]["perplexity"] == pytest.approx(perplexity)
    assert {path.name for path in tmp_path.glob("*.png")} == {
        f"clip-{rank}.png" for rank in ("best", "median", "worst")
    }


def test_command(flags, tmp_path):
    """The same command gives the same report."""
    for name in ("a", "b"):
        done = run_python("-m", "ivideogpt.evaluation", "tokenizer", *flags, "--output_path", tmp_path / name)
        assert done.returncode == 0, done.stderr
    assert "## Codebooks" in done.stdout
    assert (tmp_path / "a" / "report.json").read_bytes() == (tmp_path / "b" / "report.json").read_bytes()
