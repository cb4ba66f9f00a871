"""A format that is registered from outside the package is read by every command and by training."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from ivideogpt.data import __main__ as commands
from ivideogpt.data.catalog import DatasetPaths
from ivideogpt.data.clips.dataset import DataConfig
from ivideogpt.data.clips.loaders import build_loader
from ivideogpt.data.clips.segments import SegmentSpec
from ivideogpt.data.dataset_mixes import resolve_mix
from ivideogpt.data.formats import registry
from ivideogpt.data.formats.episodes import Episode, StoredArray
from ivideogpt.data.formats.npz_arrays import InflatedArrays
from ivideogpt.data.formats.registry import Dataset, find_episodes, open_episodes, register
from ivideogpt.errors import UserError
from tests.data.synthetic import numbered_frames, write_episode


@dataclass(frozen=True)
class RawEpisode(Episode):
    """Frames of 8 x 8 pixels, one after the other."""

    frame_size = (8, 8)

    @property
    def num_frames(self) -> int:
        return Path(self.path).stat().st_size // 192

    def read(self, indices):
        data = np.fromfile(self.path, np.uint8)
        if data.size % 192:
            raise UserError(f"{self.path}: not a whole number of frames")
        return data.reshape(-1, 8, 8, 3)[indices]


@dataclass(frozen=True)
class RawEpisodes:
    files: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.files)

    def open(self, index: int) -> RawEpisode:
        return RawEpisode(self.files[index])

    def name(self, index: int) -> str:
        return self.files[index]


class RawFormat:
    def matches(self, path: str) -> bool:
        return path.startswith("raw:")

    def datasets(self, path: str) -> list[Dataset]:
        files = tuple(sorted(map(str, Path(path.removeprefix("raw:")).glob("*.raw"))))
        return [Dataset("toy", lambda: RawEpisodes(files), "toy")]


@pytest.fixture
def raw_path(tmp_path, monkeypatch) -> str:
    monkeypatch.setattr(registry, "_added", [])
    register(RawFormat())
    for number in range(3):
        frames = np.full((6, 8, 8, 3), number, np.uint8) + np.arange(6, dtype=np.uint8)[:, None, None, None]
        frames.tofile(tmp_path / f"{number}.raw")
    return f"raw:{tmp_path}"


def test_inspect_and_validate(raw_path, tmp_path, capsys, monkeypatch):
    """Commands that knew the formats by their types would take another for something else."""
    monkeypatch.setattr("sys.argv", ["data", "inspect", raw_path])
    commands.main()
    text = capsys.readouterr().out
    assert "toy: 3 episodes, 3 looked at" in text
    assert str(StoredArray("frames", (8, 8, 3), "uint8", "decoded")) in text
    with (tmp_path / "1.raw").open("ab") as file:
        file.write(b"cut")
    monkeypatch.setattr("sys.argv", ["data", "validate", raw_path, "--num_workers", "1"])
    with pytest.raises(SystemExit):
        commands.main()
    assert "1.raw: not a whole number of frames" in capsys.readouterr().out


def test_training_reads_it(raw_path):
    assert resolve_mix("folder:*", raw_path) == resolve_mix("folder:toy", raw_path) == (("toy", 1.0),)
    with pytest.raises(UserError, match=f"{raw_path} has no train; it has toy"):  # all were trained on
        resolve_mix("folder:train", raw_path)
    with pytest.raises(UserError, match="--image_key wrist chooses an array of npz files, which"):
        find_episodes(raw_path, "wrist")
    config = DataConfig(
        dataset_path=raw_path,
        mix=resolve_mix("folder:*", raw_path),
        segment=SegmentSpec("contiguous", length=4),
        image_size=8,
        load_action=False,
        batch_size=2,
        num_workers=0,
    )
    batch = next(iter(build_loader(config, "train"))).to("cpu")
    assert batch.frames.shape == (2, 4, 3, 8, 8)


def test_a_benchmarks_test_episodes_are_not_trained_on(raw_path, monkeypatch):
    """Its list names npz files: by another format it would be split like any other set, and leak."""
    monkeypatch.setattr(RawFormat, "datasets", lambda self, path: [Dataset("robo_net", lambda: None, "")])
    with pytest.raises(UserError, match="robo_net holds test episodes of a benchmark"):
        build_loader(DataConfig(dataset_path=raw_path, mix="folder:*", load_action=False), "train", seed=0)


@pytest.mark.parametrize(
    ("name", "arrays", "rows"),
    [("roboturk", (), 8), ("roboturk", ("front_rgb",), 16), ("viola", (), 8), ("own", ("front_rgb",), 8)],
)
def test_frames_of_a_listed_name_may_be_called_image(tmp_path, name, arrays, rows):
    """Converters of LeRobot and of videos write ``image``, whatever the data set is called. The listed array wins."""
    others = {array: numbered_frames(20, (16, 16)) for array in arrays}
    write_episode(tmp_path / name / "0.npz", **others)
    trained = open_episodes(name, "all", str(tmp_path), DatasetPaths(), InflatedArrays())
    for episodes in (trained, find_episodes(str(tmp_path))[0].episodes):
        assert episodes.open(0).frame_size == (rows, rows)
    with pytest.raises(UserError, match="no image array 'wrist'"):
        find_episodes(str(tmp_path), "wrist")[0].episodes.open(0)
