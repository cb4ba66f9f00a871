"""Reports side by side: means, and differences clip by clip where clips are the same."""

import json
import shutil

import pytest

from ivideogpt.commands import evaluate
from ivideogpt.errors import UserError
from ivideogpt.evaluation.comparison import Report


@pytest.fixture(scope="module")
def reports(tiny_world_model, episodes, tmp_path_factory):
    """Of two seeds on the same clips, of other clips, and of a tokenizer."""
    folder = tmp_path_factory.mktemp("reports")
    shared = ["--pretrained_model_name_or_path", str(tiny_world_model), "--dataset_path", str(episodes)]
    shared += ["--split", "all", "--num_clips", "2"]
    evaluate.main([*shared, "--output_path", str(folder / "first")])
    evaluate.main([*shared, "--temperature", "0.1", "--output_path", str(folder / "second")])
    evaluate.main([*shared, "--num_clips", "3", "--output_path", str(folder / "elsewhere")])
    evaluate.main(["tokenizer", *shared, "--output_path", str(folder / "tokenizer")])
    return folder


def test_other_frames_are_not_paired(reports, tmp_path, capsys):
    """Predicted frames of a model with more context are other frames of the same clips."""
    shutil.copytree(reports / "second", tmp_path / "more")
    content = json.loads((tmp_path / "more" / "report.json").read_text())
    content["model"]["metadata"]["context_length"] += 1
    (tmp_path / "more" / "report.json").write_text(json.dumps(content))
    evaluate.main(["compare", str(reports / "first"), str(tmp_path / "more")])
    text = capsys.readouterr().out
    assert "means only" in text
    assert "<br>" not in text


def test_reconstructions_after_another_context_are_not_paired(reports, tmp_path, capsys):
    """They are of other frames: the second frame of a clip is context of one tokenizer, and future of the other."""
    shutil.copytree(reports / "tokenizer", tmp_path / "less")
    content = json.loads((tmp_path / "less" / "report.json").read_text())
    content["model"]["config"]["context_length"] -= 1
    (tmp_path / "less" / "report.json").write_text(json.dumps(content))
    evaluate.main(["compare", str(reports / "tokenizer"), str(tmp_path / "less")])
    assert "means only" in capsys.readouterr().out


def test_the_order_of_lines_changes_nothing(reports, tmp_path):
    """Clips whose features were lost are scored again last, and were compared with other clips."""
    shutil.copytree(reports / "first", tmp_path / "reversed")
    rows = (tmp_path / "reversed" / "clips.jsonl").read_text().splitlines()
    (tmp_path / "reversed" / "clips.jsonl").write_text("\n".join(reversed(rows)))
    key = ("future", "prediction", "psnr")
    difference = Report.read(tmp_path / "reversed").means.difference(key, key, Report.read(reports / "first").means)
    assert (difference.mean, difference.low, difference.high) == (0, 0, 0)


def test_differences_are_of_the_same_clips(reports, capsys, tmp_path):
    names = ["first", "second", "elsewhere"]
    file = tmp_path / "new" / "compare.md"
    evaluate.main(["compare", *(str(reports / name) for name in names), "--output_path", str(file)])
    text = file.read_text()
    assert capsys.readouterr().out.strip() == text.strip()
    assert "the differences to first of second." in text
    table = text.split("## future: prediction")[1].split("##")[0]
    first, second, elsewhere = (line for line in table.splitlines() if line.startswith(tuple(f"| {n}" for n in names)))
    assert "<br>" in second
    assert "<br>" not in first + elsewhere
    means = [
        json.loads((reports / name / "report.json").read_text())["scores"]["future"]["prediction"]["psnr"]["mean"]
        for name in names[:2]
    ]
    assert f"{means[0]:.2f} [" in first
    assert f"<br>{means[1] - means[0]:+.2f} [" in second


def test_equal_baselines_do_not_differ(reports):
    """What has nothing to do with the seed is paired to the last digit."""
    first, second = (Report.read(reports / name) for name in ("first", "second"))
    key = ("future", "copy_last_frame", "psnr")
    difference = second.means.difference(key, key, first.means)
    assert (difference.mean, difference.low, difference.high) == (0, 0, 0)


def test_refusals(reports, tmp_path):
    first = str(reports / "first")
    for argv, message in (
        ([first], "at least two"),
        ([first, str(tmp_path)], "is no report"),
        ([first, str(reports / "tokenizer")], "different things: tokenizer, video prediction"),
        ([first, first, "--what"], "unrecognized arguments"),
        ([first, first, "--output_path", str(tmp_path)], "is a folder: name a .md file"),
    ):
        with pytest.raises(UserError, match=message):
            evaluate.main(["compare", *argv])
