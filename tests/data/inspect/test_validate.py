import json
from pathlib import Path

import numpy as np
import pytest

from ivideogpt.data.inspect import validate as validate_episodes
from tests.commands import run_python
from tests.data.formats.lerobot_folder import FRONT, LENGTHS, write_folder
from tests.data.synthetic import write_dataset, write_episode

ROOT = Path(__file__).parents[3]


@pytest.fixture
def validate(capsys):
    """Runs the command; returns its exit code and the bad files of all datasets with their causes."""

    def run(*argv):
        code = 0
        try:
            validate_episodes.main([*map(str, argv), "--json"])
        except SystemExit as stop:
            code = stop.code
        return code, dict(bad for found in json.loads(capsys.readouterr().out) for bad in found["bad"])

    return run


def flip_a_byte(path, place=0.5):
    content = bytearray(path.read_bytes())
    content[int(len(content) * place)] ^= 0xFF
    path.write_bytes(content)


def test_good_episodes(validate, tmp_path):
    write_dataset(tmp_path / "a")
    write_dataset(tmp_path / "b", save=np.savez_compressed, num_frames=1)
    assert validate(tmp_path) == (0, {})


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("workers", [1, 2])
def test_each_bad_file_is_listed_with_its_cause(validate, tmp_path, save, workers):
    """What is only read when its frames happen to be drawn would end a run days later."""
    expected = {}

    def bad(name, cause, **arrays):
        expected[str(write_episode(tmp_path / f"{name}.npz", size=(32, 32), save=save, **arrays))] = cause
        return tmp_path / f"{name}.npz"

    write_dataset(tmp_path, 4, size=(32, 32), save=save)
    nan = np.zeros((20, 2))
    nan[7] = np.nan
    noise = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    bad("nan", "first in row 7", action=nan)
    bad("inf", "NaN or infinite", reward=np.full(20, np.inf))
    bad("short", "15 rows for 20 frames", action=np.zeros((15, 2)))
    bad("dims", "actions of 3 dimensions, unlike most", action=np.zeros((20, 3)))
    bad("free", "no actions, unlike most", action=None)
    bad("objects", "pickled Python objects", action=np.array([None] * 20))
    bad("range", "values from 0 to 300", image=np.linspace(0, 300, 20 * 48).reshape(20, 4, 4, 3).astype(np.int64))
    bad("missing", "no image array 'image'", image=None)
    flip_a_byte(bad("flipped", "damaged", image=noise))
    truncated = bad("truncated", "truncated", image=noise)
    truncated.write_bytes(truncated.read_bytes()[:-2000])
    code, found = validate(tmp_path, "--num_workers", workers)
    assert code == 1
    assert found.keys() == expected.keys()
    assert [name for name, cause in found.items() if expected[name] not in cause] == []


def test_lerobot(validate, tmp_path):
    folder = write_folder(tmp_path / "so100")
    assert validate(f"lerobot:{folder}") == (0, {})
    video = folder / f"videos/{FRONT}/chunk-000/file-001.mp4"
    video.write_bytes(video.read_bytes()[:300])
    code, found = validate(f"lerobot:{folder}")
    assert code == 1
    assert set(found) == {f"{folder}#{i}" for i in (3, 4)}
    assert len(LENGTHS) == 5


def test_the_command(tmp_path):
    """The exit code is what a script asks."""
    write_episode(tmp_path / "good.npz")
    write_episode(tmp_path / "bad.npz", action=np.full((20, 2), np.nan))
    done = run_python("-m", "ivideogpt.data", "validate", tmp_path)
    assert done.returncode == 1
    assert done.stdout.splitlines()[0] == f"{tmp_path.name}: 2 episodes, 20 frames read, 1 bad"
    assert done.stdout.splitlines()[1].startswith(f"  {tmp_path}/bad.npz: array 'action' holds NaN")
