"""Every kind of segment from every kind of source: frames, actions and rewards are those of the same moments."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ivideogpt.data.clips.batches import PackedClips
from ivideogpt.data.clips.dataset import ClipDataset, DataConfig, PickByWeight, PickInOrder, build_sources
from ivideogpt.data.clips.loaders import build_loader
from ivideogpt.data.clips.segments import SegmentSpec
from ivideogpt.errors import UserError
from tests.data.formats import lerobot_folder
from tests.data.formats.sthsth_folder import level, write_frames, write_list
from tests.data.synthetic import write_dataset

SIZE = 8


@dataclass(frozen=True)
class Recorded:
    """A source, and what its clips must look like, by their rewards (or by their frames, where it has none)."""

    config: DataConfig
    num_frames: Callable[[np.ndarray], int]  # of the episode with these rewards
    grey: Callable[[np.ndarray], np.ndarray]
    actions: Callable[[np.ndarray], np.ndarray] | None


def npz(folder, save) -> Recorded:
    write_dataset(folder / "robot", 4, num_frames=30, save=save)
    config = DataConfig(str(folder), "folder:*", image_size=SIZE, cache_mb=1)
    return Recorded(
        config, lambda rewards: 30, lambda rewards: rewards, lambda rewards: np.stack([rewards, -rewards], 1)
    )


def lerobot(folder, stored) -> Recorded:
    root = lerobot_folder.write_folder(folder / "so100", stored)
    return Recorded(
        DataConfig(f"lerobot:{root}@{lerobot_folder.FRONT}", "select", image_size=SIZE),
        lambda rewards: lerobot_folder.LENGTHS[int(rewards[0]) // 100],
        lambda rewards: lerobot_folder.level(rewards // 100, rewards % 100),
        lambda rewards: lerobot_folder.actions(int(rewards[0]) // 100)[rewards.astype(int) % 100],
    )


def something_something(folder) -> Recorded:
    for name in ("a", "b", "c"):
        write_frames(folder / "frames" / name, 26)
    write_list(folder / "lists", "train", ("a", 26, 5), ("b", 26, 5))
    write_list(folder / "lists", "val", ("c", 26, 5))
    (folder / "DATASET.yaml").write_text("somethingv2_lists: lists\n")
    config = DataConfig(
        mix="sthsth",
        image_size=SIZE,
        sthsth_root_path=str(folder / "frames"),
        dataset_yaml=str(folder / "DATASET.yaml"),
    )
    return Recorded(config, lambda frames: 26, level, None)


SOURCES = {
    "npz": lambda folder: npz(folder, np.savez),
    "compressed npz": lambda folder: npz(folder, np.savez_compressed),
    "LeRobot videos": lambda folder: lerobot(folder, "video"),
    "LeRobot images": lambda folder: lerobot(folder, "image"),
    "Something-Something": something_something,
}


@pytest.fixture(scope="module", params=SOURCES)
def recorded(request, tmp_path_factory):
    return SOURCES[request.param](tmp_path_factory.mktemp("source"))


@st.composite
def specs(draw):
    length = draw(st.integers(2, 8))
    return SegmentSpec(
        kind=draw(st.sampled_from(["contiguous", "sparse_future", "shuffled", "goal_first", "leading"])),
        length=length,
        context_length=draw(st.integers(1, length)),
        horizon=draw(st.one_of(st.none(), st.integers(length, 16))),
    )


@settings(deadline=None, max_examples=25)
@given(spec=specs(), stepsize=st.integers(1, 8), number=st.integers(0, 2**40))
def test_clips_are_of_the_moments_that_their_segment_names(recorded, spec, stepsize, number):
    """Actions one row off, or frames of a neighbouring episode, look like data and train a useless model."""
    config = replace(
        recorded.config,
        segment=spec,
        video_stepsize=stepsize,
        load_action=recorded.actions is not None and spec.kind != "goal_first",
        load_reward=recorded.actions is not None,
    )
    clips = ClipDataset(config, PickByWeight(build_sources(config, "train")), seed=0)
    clip = clips[number]
    check(clip, recorded, spec)
    again = clips[number]
    assert torch.equal(clip.pixels, again.pixels)


def check(clip: PackedClips, recorded: Recorded, spec: SegmentSpec) -> None:
    frames = clip.pixels[0].float().mean(dim=(1, 2, 3)).numpy()
    assert len(frames) == spec.length
    rewards = np.round((frames - level(0)) / 8) if clip.rewards is None else clip.rewards[0].numpy()
    np.testing.assert_allclose(frames, recorded.grey(rewards), atol=1.5)
    moments = rewards % 100
    assert 0 <= moments.min() <= moments.max() < recorded.num_frames(rewards)
    if spec.kind == "goal_first":
        assert moments[0] == moments[-1] == moments.max()
    elif spec.kind != "shuffled":
        assert (np.diff(moments) >= 0).all()
    if clip.actions is not None:
        np.testing.assert_allclose(clip.actions[0], recorded.actions(rewards), rtol=1e-6)


def test_a_source_travels_to_workers_and_resumes(recorded):
    config = replace(recorded.config, batch_size=2, segment=SegmentSpec(length=3))
    batches = iter(build_loader(config))
    here = [next(batches).pixels for _ in range(4)]
    away = iter(build_loader(replace(config, num_workers=2)))
    assert all(torch.equal(frames, next(away).pixels) for frames in here)
    loader = build_loader(config)
    loader.load_state_dict({"samples": 6})
    assert torch.equal(next(iter(loader)).pixels, here[3])


def test_dataset_size_keeps_episodes_of_every_source(recorded):
    ((source, _),) = build_sources(replace(recorded.config, dataset_size=1), "train")
    assert len(source.episodes) == 1
    ((test, _),) = build_sources(replace(recorded.config, dataset_size=1), "test")
    assert source.episodes.name(0) != test.episodes.name(0)
    assert PickInOrder([source]).num_episodes == 1


def test_lerobot_folders_are_mixed_and_their_cameras_chosen(tmp_path):
    for name in ("a", "b"):
        lerobot_folder.write_folder(tmp_path / name, "image")
    path = f"lerobot:{tmp_path / 'a'},{tmp_path / 'b'}@{lerobot_folder.WRIST}"
    (first, weight), (second, _) = build_sources(DataConfig(path), "all")
    assert weight == 0.5
    assert first.episodes.name(1) == f"{tmp_path / 'a'}#1"
    one = np.zeros(1, int)
    assert first.episodes.open(0).read(one).mean() - second.episodes.open(0).read(one).mean() == 7
    with pytest.raises(UserError, match="absent: no LeRobot folder"):
        build_sources(DataConfig(f"lerobot:{tmp_path / 'absent'}"), "train")
    with pytest.raises(UserError, match="no camera top"):
        build_sources(DataConfig(f"lerobot:{tmp_path / 'a'}@top"), "train")


def test_lerobot_paths_with_commas_and_at_signs(tmp_path):
    """Bug prevented: a folder below "me@lab, room 2" could not be read; "@" and "," have a meaning there."""
    for name in ("me@lab, room", "b"):
        lerobot_folder.write_folder(tmp_path / name, "image")
    first = f"{tmp_path / 'me@lab, room'}@{lerobot_folder.WRIST}@action=observation.state"
    (one, _), (other, _) = build_sources(DataConfig(f"lerobot:{first},{tmp_path / 'b'}"), "all")
    episode, plain = one.episodes.open(1), other.episodes.open(1)
    assert episode.path == f"{tmp_path / 'me@lab, room'}#1"
    assert (episode.action_dim, plain.action_dim) == (2, 3)
    assert episode.camera.key == lerobot_folder.WRIST
    with pytest.raises(UserError, match="'@' begins a camera, and ',' the next folder"):
        build_sources(DataConfig(f"lerobot:{tmp_path / 'you@lab, room'}"), "all")
    with pytest.raises(UserError, match="'@' begins a choice there"):
        build_sources(DataConfig(f"lerobot:{tmp_path / 'b'}@one@two"), "all")
    with pytest.raises(UserError, match="no action: no feature 'actions' of numbers"):
        build_sources(DataConfig(f"lerobot:{tmp_path / 'b'}@action=actions"), "all")
