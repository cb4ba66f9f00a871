"""Rows are the state of an evaluation: what is written is read again, and what is cut off is scored again."""

import math
import shutil

import numpy as np
import pytest

from ivideogpt.evaluation.rows import CLIPS_FILE, ClipRow, ClipRows, RowSummary


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
    rows = [row(0, 20.0), row(1, 1 / 3)]
    ClipRows(tmp_path, {}).add(rows)
    again = ClipRows(tmp_path, {}, with_features=True).rows
    assert [one.as_json() for one in again] == [one.as_json() for one in rows]
    whole, resumed = RowSummary(rows), RowSummary(again)
    assert resumed.columns() == whole.columns()
    assert resumed.curves() == whole.curves()
    assert set(resumed.curves()["prediction"]["moving_psnr"]) == {1}
    assert resumed.fvd() == whole.fvd()
    assert resumed.code_counts("context", 8).tolist() == [1, 1, 0, 0, 0, 2, 0, 0]


@pytest.mark.parametrize("cut", ['{"clip": 1, "sco', "[]", "null"])
def test_half_a_line_is_no_row(cut, tmp_path):
    """A process that is killed leaves half a line, which would spoil the next one."""
    ClipRows(tmp_path, {}).add([row(0, 20.0)])
    with (tmp_path / CLIPS_FILE).open("a") as lines:
        lines.write(cut)
    file = ClipRows(tmp_path, {})
    assert [one.number for one in file.rows] == [0]
    file.add([row(1, 21.0)])
    assert [one.number for one in ClipRows(tmp_path, {}).rows] == [0, 1]


def test_rows_without_their_features_do_not_count_where_fvd_is_wanted(tmp_path):
    """FVD over fewer clips than the report says would be another number."""
    file = ClipRows(tmp_path, {})
    file.add([row(0, 20.0), row(1, 21.0)])
    shutil.copytree(tmp_path, tmp_path / "again")
    (tmp_path / "features" / "1.npz").write_bytes(b"PK")
    assert [one.number for one in ClipRows(tmp_path, {}, with_features=True).rows] == [0]
    assert [one.number for one in ClipRows(tmp_path / "again", {}).rows] == [0, 1]
    file.finish()
    assert {path.name for path in tmp_path.iterdir()} == {CLIPS_FILE, "again"}
