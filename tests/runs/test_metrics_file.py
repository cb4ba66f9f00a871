"""The record of a run stays readable, whatever ended the run."""

import json

from ivideogpt.runs.metrics_file import append_metrics, cut_back


def test_a_line_that_a_killed_run_cut_off_is_dropped(tmp_path):
    """It must neither stop the run from resuming nor stay in the record."""
    file = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step, "split": "train", "loss": 0.5}) for step in (1, 2, 3)]
    file.write_text("\n".join([lines[0], "\0\0", *lines[1:], lines[1][:15]]))
    cut_back(file, step=2)
    assert file.read_text() == f"{lines[0]}\n{lines[1]}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_what_is_not_finite_is_null(tmp_path):
    """NaN is no JSON: other programs could not read the line."""
    append_metrics(tmp_path / "metrics.jsonl", {"step": 1}, {"loss": float("nan"), "lr": 0.5})
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1, "loss": None, "lr": 0.5}
