from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ivideogpt.commands import preview as preview_episodes
from ivideogpt.commands.preview import Excerpt, plot_sheet, render_video
from ivideogpt.errors import UserError
from tests.data.synthetic import write_episode


def excerpt(numbers, size=(64, 64)):
    """Frame i is grey of value i."""
    numbers = np.asarray(numbers)
    frames = np.broadcast_to(numbers[:, None, None, None], (len(numbers), *size, 3))
    return Excerpt(numbers, frames.astype(np.uint8))


def test_each_action_stands_under_its_frame():
    """A picture that shifts actions by one would hide the very fault that it is looked at for."""
    actions = np.zeros((40, 2), np.float32)
    actions[22, 1] = 1
    figure = plot_sheet("title", excerpt([0, 10, 20, 39]), excerpt([20, 21, 22, 23]), actions)
    figure.draw_without_rendering()
    frames = {axes.images[0].get_array()[0, 0, 0]: axes for axes in figure.axes if axes.images}
    bars = {axes.get_xlabel(): axes for axes in figure.axes if axes.get_xlabel()}
    for number in (20, 21, 22, 23):
        axes, frame = bars[f"action[{number}]"], frames[number]
        assert [bar.get_height() for bar in axes.patches] == [0, number == 22]
        left, right = (axes.get_position().x0, axes.get_position().x1)
        assert left < (frame.get_position().x0 + frame.get_position().x1) / 2 < right
        assert axes.get_position().y1 < frame.get_position().y0


def test_the_video_marks_the_present_action():
    video = render_video(excerpt(range(12)), np.random.default_rng(0).normal(size=(12, 3)))
    assert video.shape[0] == 12
    marks = [np.flatnonzero((frame[-120:] == 0).all(axis=(0, 2))).mean() for frame in video]
    assert marks == sorted(marks)
    assert marks[0] < 20
    assert marks[-1] > video.shape[2] - 20


@pytest.mark.parametrize("size", [(64, 64), (480, 640), (300, 20)])
def test_any_size_and_no_actions(size):
    frames = excerpt([0, 1, 2], size)
    assert len(plot_sheet("title", frames, frames, None).axes) == 6
    assert len(render_video(frames, None)) == 3


def test_the_command_draws_sheets_and_videos(tmp_path, capsys):
    write_episode(tmp_path / "set" / "a.npz", 300, size=(16, 24))
    write_episode(tmp_path / "set" / "b.npz", 2, action=None)
    write_episode(tmp_path / "set" / "c.npz", 1, action=np.zeros((0, 2)))
    write_episode(tmp_path / "set" / "d.npz", 12, action=np.zeros((12, 40)))
    out = tmp_path / "out"
    preview_episodes.main([str(tmp_path / "set"), "--output_path", str(out), "--num_episodes", "4"])
    names = {f"set-{name}" for name in "abcd"}
    assert {path.name for path in out.iterdir()} == {f"{name}{kind}" for name in names for kind in (".png", ".gif")}
    lines = capsys.readouterr().out.splitlines()
    assert [Path(line.split()[0]).stem for line in lines] == sorted(names)
    with Image.open(out / "set-a.gif") as video:
        assert video.n_frames == 100  # every third of 300


def test_one_file_can_be_previewed(tmp_path):
    file = write_episode(tmp_path / "a.npz")
    preview_episodes.main([str(file), "--output_path", str(tmp_path / "out")])
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"a.png", "a.gif"}
    with pytest.raises(UserError, match="expected a folder"):
        preview_episodes.main([str(file), "--output_path", str(file)])


def test_the_liveliest_frames_are_shown_one_after_another():
    video = excerpt(np.arange(0, 90, 3))
    video.frames[20:] += 100
    numbers = preview_episodes.liveliest(video, 90, 9)
    assert (np.diff(numbers) == 1).all()
    assert len(numbers) == 9
    assert numbers[0] <= 57 < 60 <= numbers[-1] + 1


def test_unreadable_episodes_are_named_and_the_others_drawn(tmp_path, capsys):
    write_episode(tmp_path / "set" / "good.npz")
    (tmp_path / "set" / "bad.npz").write_bytes(b"nothing")
    preview_episodes.main([str(tmp_path / "set"), "--output_path", str(tmp_path / "out")])
    assert "bad.npz: truncated or not an npz file" in capsys.readouterr().err
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"set-good.png", "set-good.gif"}
    (tmp_path / "set" / "good.npz").unlink()
    with pytest.raises(UserError, match="none of the chosen episodes"):
        preview_episodes.main([str(tmp_path / "set"), "--output_path", str(tmp_path / "out")])
