from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ivideogpt.commands import preview as preview_episodes
from ivideogpt.errors import UserError
from ivideogpt.evaluation.episode_pictures import BARS_HEIGHT, COLOURS, Curves, Excerpt, episode_film, episode_sheet
from ivideogpt.evaluation.visualize import PADDING, PAPER
from tests.data.synthetic import write_episode


def excerpt(numbers, size=(64, 64)):
    """Frame i is grey of value i."""
    numbers = np.asarray(numbers)
    frames = np.broadcast_to(numbers[:, None, None, None], (len(numbers), *size, 3))
    return Excerpt(numbers, frames.astype(np.uint8))


def bars(sheet, colour):
    """Pixels of this colour in the lowest row of the sheet, by column."""
    below = sheet[-BARS_HEIGHT - 40 :]
    return np.flatnonzero((below == colour).all(axis=-1).any(axis=0))


def test_each_action_stands_under_its_frame():
    """A picture that shifts actions by one would hide the very fault that it is looked at for."""
    actions = np.zeros((40, 2), np.float32)
    actions[22, 1] = 1
    shown = excerpt([20, 21, 22, 23])
    sheet = episode_sheet("title", excerpt([0, 10, 20, 39]), shown, Curves.of(actions))
    columns = bars(sheet, COLOURS[1])
    tall = [x for x in columns if (sheet[-BARS_HEIGHT - 40 :, x] == COLOURS[1]).all(axis=-1).sum() > BARS_HEIGHT / 3]
    under = np.flatnonzero((sheet == 22).all(axis=-1).any(axis=0))
    assert len(tall) > 10
    assert under.min() <= min(tall) <= max(tall) <= under.max()


def test_labels_are_whole_however_wide_their_numbers(tmp_path):
    """Bug prevented: ranges such as -0.00123 to 1.23e+04 began beyond the left edge, long titles ended beyond it."""
    actions = np.stack([np.linspace(-0.00123456, 12345.6, 40), np.linspace(-1.23e-5, 2.34e-5, 40)], axis=1)
    frames = excerpt([0, 10, 20, 39])
    sheet = episode_sheet("a title " * 30, frames, frames, Curves.of(np.repeat(actions, 6, axis=1)))
    edges = np.concatenate([sheet[:, : PADDING // 2], sheet[:, -PADDING // 2 :]], axis=1)
    assert (edges == np.array(PAPER)).all()
    assert (sheet[:, PADDING // 2 : 3 * PADDING] < 100).any(), "and they stand close to it"


def test_the_film_marks_the_present_action():
    film = episode_film(excerpt(range(12)), Curves.of(np.random.default_rng(0).normal(size=(12, 3))))
    assert film.shape[0] == 12
    marks = [np.flatnonzero((frame[-5] < 60).all(axis=-1)).mean() for frame in film]
    assert marks == sorted(marks)
    assert marks[0] < 20
    assert marks[-1] > film.shape[2] - 20


@pytest.mark.parametrize("size", [(64, 64), (480, 640), (300, 20)])
def test_any_size_and_no_actions(size):
    frames = excerpt([0, 1, 2], size)
    assert episode_sheet("title", frames, frames, None).shape[1] > 3 * 8
    assert len(episode_film(frames, None)) == 3


def test_the_command_draws_sheets_and_films(tmp_path, capsys):
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
    with Image.open(out / "set-a.gif") as film:
        assert film.n_frames == 100  # every third of 300


def test_one_file_can_be_previewed(tmp_path):
    file = write_episode(tmp_path / "a.npz")
    preview_episodes.main([str(file), "--output_path", str(tmp_path / "out")])
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"a.png", "a.gif"}
    with pytest.raises(UserError, match="expected a folder"):
        preview_episodes.main([str(file), "--output_path", str(file)])


def test_the_liveliest_frames_are_shown_one_after_another():
    film = excerpt(np.arange(0, 90, 3))
    film.frames[20:] += 100
    numbers = preview_episodes.liveliest(film, 90, 9)
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
