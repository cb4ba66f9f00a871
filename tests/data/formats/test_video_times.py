"""Which frame of a video belongs to which row of an episode, where the video's times are not what they should be."""

import os
from pathlib import Path

import av
import numpy as np
import pytest

from ivideogpt.data.formats.lerobot import LeRobotEpisodes, VideoPlace, VideoRows
from ivideogpt.data.formats.video_files import VideoFile
from ivideogpt.errors import UserError
from tests.data.formats.lerobot_folder import FPS, FRONT, LENGTHS, WRIST, level, write_folder
from tests.data.formats.test_lerobot import CODEC_ERROR, copy_of, edit_episodes, shown

REAL = Path(os.environ.get("REAL_DATA", Path(__file__).parents[4] / "shared/real")) / "lerobot_v21_g1"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("times") / "so100")


def rewrite(path: Path, change=lambda frame: frame, keep=lambda frame: True, format="mp4", **options: str) -> None:
    """Give the frames other times, counted in frames, or leave some out; without encoding anew."""
    copy = path.with_name("copy.mp4")
    with av.open(str(path)) as source, av.open(str(copy), "w", format, options) as target:
        stream = source.streams.video[0]
        written = target.add_stream_from_template(stream, opaque=True)
        ticks = 1 / (stream.time_base * FPS)
        for packet in source.demux(stream):
            if packet.dts is None or not keep(round(packet.pts / ticks)):
                continue
            packet.pts, packet.dts = (round(change(time / ticks) * ticks) for time in (packet.pts, packet.dts))
            packet.stream = written
            target.mux(packet)
    copy.replace(path)


def changed(recorded: Path, tmp_path: Path, camera: str, *args, **options) -> LeRobotEpisodes:
    folder = copy_of(recorded, tmp_path)
    for path in (folder / f"videos/{camera}").rglob("*.mp4"):
        rewrite(path, *args, **options)
    return LeRobotEpisodes.open_folder(folder, camera)


def check_all(episodes: LeRobotEpisodes) -> None:
    """Whole episodes, and windows from their middle, which are read by jumping there."""
    for number, length in enumerate(LENGTHS):
        episode = episodes.open(number)
        for indices in (np.arange(length), np.arange(3, 5)):
            wanted = [level(number, int(i), episodes.camera.key) for i in indices]
            np.testing.assert_allclose(shown(episode.read(indices)), wanted, atol=CODEC_ERROR)


def times_of(episodes: LeRobotEpisodes, number: int) -> np.ndarray:
    return VideoFile(episodes.open(number).video.path).times


@pytest.mark.parametrize("camera", [FRONT, WRIST])
def test_times_rise_whatever_the_order_of_storage(recorded, camera):
    """The frames of the first camera are stored out of order, so that their times do not rise in the file."""
    times = times_of(LeRobotEpisodes.open_folder(recorded, camera), 0)
    np.testing.assert_allclose(times, np.arange(sum(LENGTHS[:3])) / FPS)


def test_a_stream_that_does_not_start_at_zero(recorded, tmp_path):
    """Bug prevented: without an edit list frames are shown two later, and clips were two frames off without a word."""
    episodes = changed(recorded, tmp_path, FRONT, use_editlist="0")
    np.testing.assert_allclose(times_of(episodes, 0)[0], 2 / FPS)
    check_all(episodes)


def test_a_late_stream_with_other_frames_than_the_episodes_is_refused(recorded, tmp_path):
    """With a frame more or less nothing says which row the first frame belongs to."""
    folder = copy_of(recorded, tmp_path)
    edit_episodes(folder, {"length": [7, 12, 4, 9, 6]})
    for path in (folder / f"videos/{FRONT}").rglob("*.mp4"):
        rewrite(path, use_editlist="0")
    episodes = LeRobotEpisodes.open_folder(folder)
    with pytest.raises(UserError, match=r"#1: .* is unsure: the video begins at 0.200 s instead of 0.000 s and has 24"):
        episodes.open(1).read(np.arange(2))
    check = episodes.open(3).read(np.arange(9))
    np.testing.assert_allclose(shown(check), [level(3, i) for i in range(9)], atol=CODEC_ERROR)


def test_jitter_below_half_a_frame_is_no_matter(recorded, tmp_path):
    check_all(changed(recorded, tmp_path, WRIST, lambda frame: frame + 0.4 * (round(frame) % 3 == 1)))


def test_drift_beyond_half_a_frame_is_refused(recorded, tmp_path):
    """Bug prevented: by their times alone such rows get the frames of their neighbours."""
    episodes = changed(recorded, tmp_path, WRIST, lambda frame: 1.03 * frame)
    np.testing.assert_allclose(
        shown(episodes.open(0).read(np.arange(7))), [level(0, i, WRIST) for i in range(7)], atol=1.5
    )
    with pytest.raises(UserError, match=r"#1: .* is unsure: row 10 has no frame within half a frame of 1.700 s"):
        episodes.open(1).read(np.arange(2))


def test_a_frame_that_is_missing_is_named(recorded, tmp_path):
    episodes = changed(recorded, tmp_path, WRIST, keep=lambda frame: frame != 3)
    with pytest.raises(UserError, match=r"#0: .* is unsure: row 3 has no frame within half a frame of 0.300 s"):
        episodes.open(0).read(np.arange(2))


def test_a_frame_too_many_at_the_end_is_no_matter(recorded, tmp_path):
    """Recorders stop the camera last."""
    folder = copy_of(recorded, tmp_path)
    columns = {"length": [7, 12, 5, 9, 5], f"videos/{FRONT}/to_timestamp": [0.7, 1.9, 2.4, 0.9, 1.4]}
    edit_episodes(folder, columns)
    check = LeRobotEpisodes.open_folder(folder)
    np.testing.assert_allclose(
        shown(check.open(3).read(np.arange(4))), [level(3, i) for i in range(4)], atol=CODEC_ERROR
    )


@pytest.mark.parametrize(
    ("columns", "refused"),
    [
        ({f"videos/{FRONT}/file_index": [0, 0, 0, 0, 1]}, {0, 1, 3}),  # number 3 is said to begin at 0 there
        ({f"videos/{FRONT}/to_timestamp": [0.7, 1.7, 2.4, 0.9, 1.5]}, {1}),
    ],
)
def test_episodes_whose_limits_leave_them_no_room_are_refused(recorded, tmp_path, columns, refused):
    """Bug prevented: a number of the wrong file showed another episode's frames."""
    folder = copy_of(recorded, tmp_path)
    edit_episodes(folder, columns)
    episodes = LeRobotEpisodes.open_folder(folder)
    for number in refused:
        with pytest.raises(UserError, match=f"#{number}: its times in meta/episodes fit no"):
            episodes.open(number)
    for number in {0, 1, 2, 3, 4} - refused:
        assert episodes.open(number).num_frames == LENGTHS[number]


def place(**changes) -> VideoPlace:
    return VideoPlace(
        **{"chunk": 0, "file": 0, "start": 0.0, "first": 0, "file_start": 0.0, "file_frames": 4, **changes}
    )


def numbers(place: VideoPlace, times, timestamps=(0, 0.1, 0.2, 0.3)) -> list[int]:
    return VideoRows("set#0", "file", place, fps=10).numbers(np.array(times), np.array(timestamps)).tolist()


def test_frames_by_order_and_time():
    """Each kind of times alone: rows of a video of twice the rate, of one whose first episodes are not listed, and one
    that starts late as meta/episodes knows."""
    assert numbers(place(), np.arange(8) / 20) == [0, 2, 4, 6]
    assert numbers(place(start=0.5, file_start=0.5), np.arange(9) / 10) == [5, 6, 7, 8]
    assert numbers(place(start=0.2, file_start=0.2), 0.2 + np.arange(4) / 10) == [0, 1, 2, 3]
    assert numbers(place(start=0.1, first=1, file_frames=5), 0.3 + np.arange(5) / 10) == [1, 2, 3, 4]
    assert numbers(place(file_frames=1), [0.04], [0.0]) == [0]
    with pytest.raises(UserError, match="row 2 has no frame within half a frame of nan s"):
        numbers(place(), np.arange(4) / 10, [0, 0.1, float("nan"), 0.3])
    with pytest.raises(UserError, match="row 1 is frame 1 by its order, but frame 2 by its time"):
        numbers(place(), np.arange(4) / 10, [0, 0.2, 0.3, 0.3])


def test_two_frames_at_one_time_are_refused(recorded, tmp_path):
    path = next((copy_of(recorded, tmp_path) / f"videos/{WRIST}").rglob("*.mp4"))
    rewrite(path, lambda frame: max(frame, 1), format="matroska")
    with pytest.raises(UserError, match=r"\.mp4: shows two frames at the same time"):
        _ = VideoFile(path).times


def test_a_colon_in_a_path(recorded, tmp_path, monkeypatch):
    """Bug prevented: the beginning of a relative path was taken for a protocol."""
    monkeypatch.chdir(tmp_path)
    copy_of(recorded, tmp_path).rename("arm:so100")
    assert len(LeRobotEpisodes.open_folder(Path("arm:so100")).open(0).read(np.arange(3))) == 3


@pytest.mark.skipif(not REAL.is_dir(), reason="no real data here")
def test_recorded_av1_videos():
    """Frames by number are those that decoding from the start gives."""
    video = VideoFile(next((REAL / "videos").rglob("episode_000002.mp4")))
    np.testing.assert_allclose(video.times, np.arange(343) / 30)
    with av.open(video.path) as container:
        decoded = [
            frame.to_ndarray(format="rgb24") for frame, _ in zip(container.decode(video=0), range(60), strict=False)
        ]
    for chosen in ([40, 41, 57], [3, 20], [0]):
        np.testing.assert_array_equal(video.frames_numbered(np.array(chosen)), [decoded[i] for i in chosen])
