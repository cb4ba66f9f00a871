import numpy as np
import torch
from PIL import Image

from ivideogpt.video_io import side_by_side, to_pixels, write_gif, write_png
from tests.parity.formulas import clip


def video(phase: float = 0.0):
    return to_pixels(clip(1, 6, 32, 48, phase)[0])


def test_pixels_round_and_clamp():
    """Truncating instead of rounding darkens every picture; an unclamped 1.01 wraps around to black."""
    frames = torch.tensor([-0.2, 0.0, 0.5, 1.0, 1.01, 254.6 / 255]).expand(3, 2, 6)
    assert to_pixels(frames)[0, :, 0].tolist() == [0, 0, 128, 255, 255, 255]
    assert to_pixels(frames).shape == (2, 6, 3)


def test_gif_plays_all_frames_forever_in_order(tmp_path):
    """Frames, time and looping are what a viewer sees."""
    written = side_by_side([video(), video(0.5)])
    write_gif(tmp_path / "a.gif", written, fps=4)
    with Image.open(tmp_path / "a.gif") as gif:
        assert (gif.size, gif.n_frames, gif.info["loop"], gif.info["duration"]) == ((96, 32), 6, 0, 250)
        for i, frame in enumerate(written):
            gif.seek(i)
            assert np.abs(np.asarray(gif.convert("RGB")).astype(int) - frame).mean() < 6


def test_png_is_exact(tmp_path):
    write_png(tmp_path / "a.png", video()[0])
    assert (np.asarray(Image.open(tmp_path / "a.png")) == video()[0]).all()


def test_gif_keeps_the_colour_of_a_few_pixels(tmp_path):
    """A palette made of what is frequent turns a small bright object grey."""
    written = video().copy()
    written[:, 10:12, 10:12] = (0, 255, 255)
    write_gif(tmp_path / "a.gif", written)
    with Image.open(tmp_path / "a.gif") as gif:
        shown = np.asarray(gif.convert("RGB")).astype(int)
    assert np.abs(shown[10:12, 10:12] - (0, 255, 255)).max() < 20
