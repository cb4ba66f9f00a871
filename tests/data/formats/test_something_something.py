import os
import pickle
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image

from ivideogpt.data.clips.dataset import DataConfig
from ivideogpt.data.clips.loaders import build_loader
from ivideogpt.data.clips.segments import SegmentSpec
from ivideogpt.data.clips.transforms import Augmentation
from ivideogpt.data.formats.something_something import find_videos
from ivideogpt.errors import UserError
from tests.data.formats.sthsth_folder import level, write_frames, write_list
from tests.data.synthetic import write_dataset

USED, OTHER = 5, 2  # labels in and outside of the table


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("sthsth") / "frames"
    for name, num_frames in [("78687", 12), ("100", 9), ("99", 5), ("7", 20), ("8", 6)]:
        write_frames(root / name, num_frames)
    return root


@pytest.fixture
def dataset_yaml(tmp_path):
    write_list(tmp_path / "lists", "train", ("78687", 12, USED), ("100", 9, OTHER), ("99", 5, USED), ("7", 20, 173))
    write_list(tmp_path / "lists", "val", ("8", 6, USED))
    (tmp_path / "DATASET.yaml").write_text("somethingv2_lists: lists\n")
    return tmp_path / "DATASET.yaml"


@pytest.fixture
def config(root, dataset_yaml):
    return DataConfig(
        mix="sthsth",
        segment=SegmentSpec(length=4),
        image_size=16,
        batch_size=4,
        sthsth_root_path=str(root),
        dataset_yaml=str(dataset_yaml),
    )


def first_frames(config, seed=0):
    return next(iter(build_loader(config, seed=seed))).to("cpu").frames


def names(episodes):
    return [os.path.basename(episodes.name(i)) for i in range(len(episodes))]


def test_frames_count_from_the_file_numbered_one(root, dataset_yaml):
    episodes = find_videos(str(root), dataset_yaml.parent / "lists", "train", 6)
    assert names(episodes) == ["78687", "7"], "short videos and other classes are left out, the lists' order is kept"
    episode = pickle.loads(pickle.dumps(episodes)).open(0)  # noqa: S301
    assert (episode.num_frames, episode.frame_size) == (12, (24, 32))
    assert (episode.action_dim, episode.has_rewards, episode.actions(np.arange(2))) == (None, False, None)
    wanted = np.array([11, 0, 0, 4])
    np.testing.assert_allclose(episode.read(wanted).mean(axis=(1, 2, 3)), [level(i) for i in wanted], atol=1)


def test_validation_videos_are_the_test_split(root, dataset_yaml):
    lists = dataset_yaml.parent / "lists"
    assert names(find_videos(str(root), lists, "test", 4)) == ["8"]
    assert names(find_videos(str(root), lists, "all", 5)) == ["78687", "99", "7", "8"]
    with pytest.raises(UserError, match=r"val_video_folder\.txt: no video of the 95 classes in use has 7 frames"):
        find_videos(str(root), lists, "test", 7)


@pytest.mark.parametrize(
    ("segment", "expected"),
    [
        (SegmentSpec("contiguous", 12), ["78687", "7"]),
        (SegmentSpec("goal_first", 13), ["78687", "7"]),
        (SegmentSpec("sparse_future", 4, 1, horizon=13), ["7"]),
        (SegmentSpec("shuffled", 4, 1, horizon=5), ["78687", "99", "7"]),
    ],
)
def test_videos_are_as_long_as_the_horizon(root, dataset_yaml, segment, expected):
    episodes = find_videos(str(root), dataset_yaml.parent / "lists", "train", segment.num_frames_spanned)
    assert names(episodes) == expected


@pytest.mark.parametrize("num_workers", [0, 1])
def test_clips_are_mixed_with_others_and_never_augmented(config, tmp_path, num_workers):
    """The published tokenizers were trained on unchanged videos of Something-Something v2."""
    write_dataset(tmp_path / "robot", 2, size=(8, 8))
    config = replace(config, dataset_path=str(tmp_path), mix=(("sthsth", 0.5), ("robot", 0.5)), num_workers=num_workers)
    plain, other = first_frames(config), first_frames(config, seed=1)
    assert plain.shape == (4, 4, 3, 16, 16)
    steps = {round(float(step)) for clip in torch.cat([plain, other]) for step in clip.mean(dim=(1, 2, 3)).diff() * 255}
    assert steps == {1, 8}, "clips of both datasets, at neighbouring frames"
    augmented = first_frames(replace(config, augmentation=Augmentation()))
    changes = [float((one - other).abs().max()) for one, other in zip(plain, augmented, strict=True)]
    videos = [round(float(clip.mean(dim=(1, 2, 3)).diff()[0] * 255)) == 8 for clip in plain]
    assert 0 < sum(videos) < 4
    assert max(change for change, is_video in zip(changes, videos, strict=True) if is_video) < 1e-6
    assert max(change for change, is_video in zip(changes, videos, strict=True) if not is_video) > 0.003


def test_it_trains(root, dataset_yaml, trains):
    trains(oxe_data_mixes_type="sthsth", dataset_yaml=dataset_yaml, sthsth_root_path=root)


def test_the_step_stays_one(config):
    frames = first_frames(replace(config, video_stepsize=6))
    assert ((frames.mean(dim=(2, 3, 4)).diff(dim=1) * 255).round() == 8).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(sthsth_root_path=None), "needs sthsth_root_path"),
        (dict(sthsth_root_path="/absent"), "no folder /absent; set sthsth_root_path"),
        (dict(load_action=True), "no array 'action'"),
    ],
)
def test_what_is_missing_is_named_before_training(config, change, message):
    with pytest.raises(UserError, match=message):
        build_loader(replace(config, **change))


def test_missing_or_broken_lists_are_named(config, dataset_yaml):
    path = dataset_yaml.parent / "lists" / "train_video_folder.txt"
    path.write_text("78687 12 5\n\n100 9\n")
    with pytest.raises(UserError, match=r"train_video_folder\.txt, line 3: '100 9'; expected '<id>"):
        build_loader(config)
    path.unlink()
    with pytest.raises(UserError, match=r"train_video_folder\.txt: cannot be read .*somethingv2_lists"):
        build_loader(config)
    dataset_yaml.write_text("somethingv2_lists:\n")
    with pytest.raises(UserError, match=r"DATASET\.yaml has no somethingv2_lists"):
        build_loader(config)


def test_a_root_without_the_frames_is_found_at_the_start(config, tmp_path):
    with pytest.raises(UserError, match=r"78687/000001\.jpg: not a readable JPEG file \(no such file"):
        build_loader(replace(config, sthsth_root_path=str(tmp_path)))


def damage_size(folder):
    Image.new("RGB", (10, 10)).save(folder / "000003.jpg")


def damage_cut(folder):
    file = folder / "000003.jpg"
    file.write_bytes(file.read_bytes()[:-200])


def damage_missing(folder):
    (folder / "000003.jpg").unlink()


def damage_format(folder):
    Image.new("RGB", (32, 24)).save(folder / "000003.jpg", format="GIF")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_size, r"8: frames of different sizes \[\(10, 10\), \(24, 32\)\]"),
        (damage_cut, r"000003\.jpg: not a readable JPEG file \(.*truncated"),
        (damage_missing, r"000003\.jpg: .*no such file.* promises 6 frames"),
        (damage_format, r"000003\.jpg: not a readable JPEG"),
    ],
)
def test_damaged_videos_are_named_and_can_be_skipped(dataset_yaml, config, tmp_path, damage, message):
    frames = tmp_path / "copies"
    write_frames(frames / "8", 6)
    write_frames(frames / "9", 6)
    write_list(tmp_path / "lists", "train", ("9", 6, USED), ("8", 6, USED))
    damage(frames / "8")
    config = replace(config, sthsth_root_path=str(frames))
    with pytest.raises(UserError, match=message):
        list(islice(build_loader(config), 5))
    loader = build_loader(replace(config, on_bad_episode="skip"))
    list(islice(loader, 5))
    assert list(loader.bad_episodes) == [str(frames / "8")]
