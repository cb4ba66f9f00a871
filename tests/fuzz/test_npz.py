"""Damaged npz episodes: read, or refused in one line."""

import numpy as np
import pytest

from ivideogpt.data.episodes import open_episode
from tests.data.synthetic import write_episode
from tests.fuzz.mutate import check_mutants


def read_episode(folder):
    episode = open_episode(folder / "episode.npz")
    everything = np.arange(episode.num_frames)
    episode.read(everything)
    episode.actions(everything)
    episode.rewards(everything)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_episodes(tmp_path, num_mutants, save):
    """Anything but a UserError ends a run that was told to skip bad episodes."""
    write_episode(tmp_path / "episode.npz", 6, save=save)
    outcome = check_mutants(tmp_path, read_episode, num_mutants)
    assert outcome.refused > num_mutants // 4
    assert outcome.read
