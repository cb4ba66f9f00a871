"""Rows are the state of an evaluation: what is written is read again, and what is cut off is scored again."""

import math

import numpy as np
import pytest

from ivideogpt.evaluation.rows import CLIPS_FILE, ClipRow, RowFile, RowSummary


def row(number: int, psnr: float) -> ClipRow:
    features = {("paper", name): np.full((1, 2), psnr, np.float32) for name in ("truth", "prediction")}
    return ClipRow(
        number,
        {"future": {"prediction": {"psnr": psnr, "moving_psnr": math.nan}}},
        "checksum",
        {"prediction": {"psnr": [psnr, psnr + 1], "moving_psnr": [math.nan, psnr]}},
        features,
        {"context": [number, 5]},
        "dataset",
        f"{number}.npz",
    )


def test_rows_come_back_with_everything_a_report_needs(tmp_path):
    """A report of an evaluation that was stopped in between must equal that of one which was not."""
    rows, file = [row(0, 20.0), row(1, 1 / 3)], RowFile(tmp_path, "this")
    file.rewrite(rows[:1])
    file.append(rows)
    again = file.read(with_features=True)
    assert [one.as_json() for one in again] == [one.as_json() for one in rows]
    whole, resumed = RowSummary(rows), RowSummary(again)
    assert resumed.columns() == whole.columns()
    assert resumed.curves() == whole.curves()
    assert set(resumed.curves()["prediction"]["moving_psnr"]) == {1}
    assert resumed.fvd() == whole.fvd()
    assert resumed.code_counts("context", 8).tolist() == [1, 1, 0, 0, 0, 2, 0, 0]


@pytest.mark.parametrize("cut", ['{"clip": 1, "sco', "[]", '{"clip": 1, "evaluation": "this"}', "null"])
def test_damaged_lines_are_no_rows(cut, tmp_path):
    """A process that is killed leaves half a line."""
    file = RowFile(tmp_path, "this")
    file.rewrite([row(0, 20.0)])
    with (tmp_path / CLIPS_FILE).open("a") as lines:
        lines.write(cut)
    assert [one.number for one in file.read()] == [0]


def test_rows_without_their_features_do_not_count_where_fvd_is_wanted(tmp_path):
    """FVD over fewer clips than the report says would be another number."""
    file = RowFile(tmp_path, "this")
    file.rewrite([])
    file.append([row(0, 20.0), row(1, 21.0)])
    (tmp_path / "features" / "1.npz").write_bytes(b"PK")
    assert [one.number for one in file.read(with_features=True)] == [0]
    file.remove_features()
    assert file.read(with_features=True) == []
    assert [one.number for one in file.read()] == [0, 1]


def test_rows_of_another_evaluation_do_not_count(tmp_path):
    RowFile(tmp_path, "this").rewrite([row(0, 20.0)])
    other = RowFile(tmp_path, "other")
    assert other.read() == []
    assert other.is_of_another
    assert not RowFile(tmp_path, "this").is_of_another
