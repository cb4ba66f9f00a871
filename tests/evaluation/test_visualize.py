import numpy as np

from ivideogpt.evaluation.visualize import contact_sheet, error_frames, sample_rows
from ivideogpt.video_io import to_pixels
from tests.parity.formulas import clip


def test_contact_sheet_holds_every_frame_of_every_sample():
    """Each frame is somewhere on the sheet, enlarged, and in the order of the columns."""
    truth, prediction = (to_pixels(clip(1, 4, 64, 64, phase)[0]) for phase in (0.0, 0.4))
    sheet = contact_sheet(
        [sample_rows(truth, prediction, "sample 0"), sample_rows(truth, truth, "sample 1")], 2, "title"
    )
    assert sheet.shape[0] > 6 * 128
    assert sheet.shape[1] > 4 * 128
    lefts = [find(sheet, frame.repeat(2, axis=0).repeat(2, axis=1))[1] for frame in prediction]
    assert lefts == sorted(lefts)
    assert lefts[2] - lefts[1] > lefts[1] - lefts[0] == lefts[3] - lefts[2], "a gap sets the context apart"


def find(sheet: np.ndarray, picture: np.ndarray) -> tuple[int, int]:
    """Row and column of a picture inside the sheet."""
    windows = np.argwhere((sheet == picture[0, 0]).all(axis=-1))
    height, width = picture.shape[:2]
    return next((y, x) for y, x in windows if np.array_equal(sheet[y : y + height, x : x + width], picture))


def test_error_does_not_wrap_around():
    """Differences of unsigned bytes wrap: 0 - 1 would shine as 255."""
    truth, prediction = np.full((1, 2, 2, 3), 10, np.uint8), np.full((1, 2, 2, 3), 11, np.uint8)
    assert (error_frames(truth, prediction) == error_frames(prediction, truth)).all()
    assert error_frames(truth, prediction).max() == 3
    assert error_frames(truth, truth + 200).min() == 255
