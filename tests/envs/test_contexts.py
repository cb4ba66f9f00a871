"""Beginnings of episodes from every kind of source."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ivideogpt.envs.contexts import RecordedContexts, as_contexts, start_sampler
from ivideogpt.errors import UserError
from ivideogpt.metadata import ModelMetadata
from ivideogpt.world_model import WorldModel
from tests.data.formats import lerobot_folder

METADATA = ModelMetadata(resolution=64, context_length=2, dataset_step=3, action_dim=4)


@pytest.fixture
def counting(tmp_path):
    """Folder of two datasets; frame i of an episode of the first is grey at i, of the second at 100 + i."""
    for number, name in enumerate(("low", "high")):
        (tmp_path / name).mkdir()
        images = np.broadcast_to(np.uint8(100 * number + np.arange(40))[:, None, None, None], (40, 64, 64, 3))
        np.savez(tmp_path / name / "0.npz", image=images, action=np.zeros((40, 4), np.float32))
    return tmp_path


def test_a_mistyped_split_is_not_all_episodes(counting):
    with pytest.raises(UserError, match="there is no split 'tst': give one of train, test, all"):
        RecordedContexts(str(counting), split="tst").sampler(METADATA, 3)


def levels(source: RecordedContexts, seed: int, num_frames: int = 3) -> list[int]:
    frames = source.sampler(METADATA, num_frames)(np.random.default_rng(seed))
    assert frames.shape == (num_frames, 3, 64, 64)
    return frames[:, 0, 0, 0].tolist()


def test_recorded_frames_are_as_far_apart_as_in_training(counting):
    """Frames next to each other would show the model a robot three times as slow as any it has seen."""
    sampled = [levels(RecordedContexts(str(counting)), seed) for seed in range(20)]
    assert all(np.diff(frames).tolist() == [3, 3] for frames in sampled)
    assert {frames[0] >= 100 for frames in sampled} == {True, False}
    assert len({frames[0] for frames in sampled}) > 10
    assert sampled[:3] == [levels(RecordedContexts(str(counting)), seed) for seed in range(3)]


def test_datasets_are_named_as_in_training(counting):
    """A mix, or the folder of episodes itself."""
    for source in (RecordedContexts(str(counting), "folder:high"), as_contexts(counting / "high")):
        assert all(levels(source, seed)[0] >= 100 for seed in range(8))
    with pytest.raises(UserError, match="not a folder"):
        as_contexts(str(counting / "nothing")).sampler(METADATA, 2)


def test_lerobot(tmp_path):
    """Other formats come in by the registry, with frames of another size."""
    folder = lerobot_folder.write_folder(tmp_path / "robot", stored="image")
    sampler = as_contexts(f"lerobot:{folder}@observation.images.front").sampler(replace(METADATA, dataset_step=1), 2)
    frames = sampler(np.random.default_rng(0))
    assert frames.shape == (2, 3, 64, 64)
    assert int(frames[1, 0, 0, 0]) - int(frames[0, 0, 0, 0]) == 3


@pytest.mark.parametrize(("robot", "is_high"), [("arm", False), ("hand", True)])
def test_a_model_of_several_robots_begins_with_its_own(counting, robots_model, robot, is_high):
    """A hand that is shown an arm's frames would act in a picture of another robot."""
    (counting / "low").rename(counting / "arm-data")
    (counting / "high").rename(counting / "hand-data")
    model = WorldModel.from_pretrained(robots_model, action_space=robot)
    for contexts in (counting, RecordedContexts(str(counting))):
        sample = start_sampler(contexts, model, 2)
        frames = [int(sample(np.random.default_rng(seed))[0, 0, 0, 0]) for seed in range(12)]
        assert all((level >= 100) == is_high for level in frames)
    other = counting / ("arm-data" if is_high else "hand-data")
    with pytest.raises(UserError, match=f"{other.name}.*another robot than action space {robot}"):
        start_sampler(other, model, 2)
    with pytest.raises(UserError, match="no action space was chosen"):
        RecordedContexts(str(counting)).sampler(model.metadata, 2)
