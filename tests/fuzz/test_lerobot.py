"""Damaged LeRobot folders: read, or refused in one line."""

import numpy as np
import pytest

from ivideogpt.data.convert.conversion import StoredSize
from ivideogpt.data.formats.lerobot import LeRobotEpisodes
from ivideogpt.data.formats.video_files import VideoFile
from ivideogpt.errors import UserError
from tests.data.formats.lerobot_folder import write_folder
from tests.data.formats.lerobot_v2_folder import write_v2_folder
from tests.datasets.scripts import load_script
from tests.fuzz.mutate import check_mutants

converter = load_script("videos_to_npz")


def read_folder(folder):
    """Everything in it; what is wrong with one episode does not keep the others from being tried."""
    episodes = LeRobotEpisodes.open_folder(folder)
    problem = None
    for index in range(len(episodes)):
        try:
            episode = episodes.open(index)
            every = np.arange(episode.num_frames)
            episode.actions(every)
            episode.rewards(every)
            episode.series("state")
            episode.texts()
            episode.read(every)
        except UserError as error:
            problem = error
    if problem is not None:
        raise problem


def read_video(folder):
    """In order, as the converter of videos reads them."""
    converter.decode(VideoFile(folder / "video.mp4"), 0, StoredSize())


@pytest.mark.parametrize(
    ("damaged", "stored", "share"), [("info.json", "video", 4), ("*.parquet", "image", 3), ("*.mp4", "video", 4)]
)
def test_lerobot_folders(tmp_path, num_mutants, damaged, stored, share):
    """Anything but a UserError ends a conversion or a run that was told to skip bad episodes."""
    folder = write_folder(tmp_path / "so100", stored)
    outcome = check_mutants(folder, read_folder, num_mutants // share, damaged)
    assert outcome.refused > num_mutants // share // 4
    assert outcome.read


@pytest.mark.parametrize("damaged", ["info.json", "*.jsonl"])
def test_folders_of_version_2(tmp_path, num_mutants, damaged):
    """The same for the lists of the older version."""
    folder = write_v2_folder(tmp_path / "so100")
    outcome = check_mutants(folder, read_folder, num_mutants // 6, damaged)
    assert outcome.refused > num_mutants // 6 // 5
    assert outcome.read


def test_videos(tmp_path, num_mutants):
    """The same for videos that are converted without a LeRobot folder around them."""
    source = next(write_folder(tmp_path / "so100").rglob("*.mp4"))
    (tmp_path / "alone").mkdir()
    source.rename(tmp_path / "alone/video.mp4")
    outcome = check_mutants(tmp_path / "alone", read_video, num_mutants // 6)
    assert outcome.refused > num_mutants // 6 // 4
