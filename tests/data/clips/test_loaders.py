import inspect
import multiprocessing
import subprocess
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch

from ivideogpt.data import EvalDataLoader, SimpleRoboticDataLoaderv2
from ivideogpt.data.clips.dataset import DataConfig
from ivideogpt.data.clips.loaders import build_loader
from ivideogpt.data.clips.segments import SegmentSpec
from ivideogpt.data.clips.transforms import Augmentation
from ivideogpt.errors import UserError
from tests.data.synthetic import numbered_frames, write_dataset, write_episode

SEGMENT = SegmentSpec("contiguous", length=4)


@pytest.fixture
def folder(tmp_path):
    write_dataset(tmp_path / "a", 5, num_frames=30)
    write_dataset(tmp_path / "b", 4, num_frames=20)
    return tmp_path


@pytest.fixture
def config(folder):
    return DataConfig(str(folder), "folder:*", SEGMENT, image_size=8, batch_size=3, load_action=True, load_reward=True)


def take(loader, number):
    return finished(islice(loader, number))


def finished(batches):
    return [batch.to("cpu") for batch in batches]


def assert_same(batches, others):
    for batch, other in zip(batches, others, strict=True):
        assert torch.equal(batch.frames, other.frames)
        assert torch.equal(batch.actions, other.actions)
        assert torch.equal(batch.rewards, other.rewards)


@pytest.mark.parametrize("kind", ["contiguous", "sparse_future", "shuffled"])
def test_frames_actions_and_rewards_belong_together(config, kind):
    """Actions one row off look like data and train a model that cannot be steered."""
    config = replace(config, segment=SegmentSpec(kind, length=4, context_length=2, horizon=6))
    for batch in take(build_loader(config), 5):
        assert batch.frames.shape == (3, 4, 3, 8, 8)
        assert batch.frames.dtype == torch.float32
        numbers = (batch.frames * 255).round()
        assert (numbers == numbers[..., :1, :1, :1]).all()
        assert torch.equal(batch.rewards, numbers[:, :, 0, 0, 0])
        assert torch.equal(batch.actions, torch.stack([batch.rewards, -batch.rewards], dim=-1))


def test_resized_frames_are_floats_in_the_unit_range(config):
    (batch,) = take(build_loader(replace(config, image_size=16)), 1)
    assert batch.frames.shape[-2:] == (16, 16)
    torch.testing.assert_close(batch.frames[:, :, 0, 0, 0] * 255, batch.rewards)


def test_datasets_of_two_native_sizes_share_a_batch(folder, config):
    write_dataset(folder / "b", 4, num_frames=20, size=(12, 10))
    for batch in take(build_loader(config), 3):
        torch.testing.assert_close(batch.frames.mean(dim=(2, 3, 4)) * 255, batch.rewards)


def test_the_stream_depends_on_the_seed_only(config):
    torch.manual_seed(1)
    first = take(build_loader(config, seed=0), 4)
    torch.manual_seed(2)
    assert_same(first, take(build_loader(config, seed=0), 4))
    assert not torch.equal(first[0].rewards, take(build_loader(config, seed=1), 1)[0].rewards)


def test_workers_do_not_change_the_stream(config):
    """Workers that share a random state feed the same clips several times."""
    config = replace(config, augmentation=Augmentation())
    assert_same(take(build_loader(config), 4), take(build_loader(replace(config, num_workers=2)), 4))


def test_workers_obey_their_trainer_only(config):
    """A scheduler's signal to all processes must not take the last checkpoint; a worker that nobody can end hangs."""
    others = set(multiprocessing.active_children())
    batches = iter(build_loader(replace(config, num_workers=1)))
    next(batches)
    (worker,) = set(multiprocessing.active_children()) - others
    for name in ("-TERM", "-INT"):
        subprocess.run(["kill", name, str(worker.pid)], check=True)
    assert len(take(batches, 5)) == 5
    worker.terminate()
    worker.join(timeout=60)
    assert worker.exitcode == 0


def test_ranks_share_one_stream(config):
    together = take(build_loader(config), 6)
    apart = [take(build_loader(config, rank=rank, world_size=2), 3) for rank in range(2)]
    assert_same(together, [apart[i % 2][i // 2] for i in range(6)])


@pytest.mark.parametrize("augmentation", [None, Augmentation()])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_resuming_goes_on_with_the_next_sample(config, num_workers, augmentation):
    """Prefetched batches that were never used must come again."""
    config = replace(config, num_workers=num_workers, augmentation=augmentation)
    loader = build_loader(config)
    take(loader, 2)
    state = loader.state_dict()
    resumed = build_loader(config)
    resumed.load_state_dict(state)
    assert_same(take(loader, 3), take(resumed, 3))
    assert resumed.state_dict() == {"samples": 5 * 3}


def test_resuming_on_other_ranks_skips_what_was_used(config):
    loader = build_loader(config, rank=0, world_size=2)
    take(loader, 3)
    resumed = build_loader(config)
    resumed.load_state_dict(loader.state_dict())
    assert_same(take(resumed, 1), take(build_loader(config), 7)[6:])


def test_iterating_leaves_the_global_generators_alone(config):
    """A data loader that draws from torch's generator makes a resumed run differ from an uninterrupted one."""
    before = torch.get_rng_state()
    take(build_loader(config), 2)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("num_workers", [0, 1])
def test_validation_batches_are_the_same_every_time(config, num_workers):
    loader = build_loader(replace(config, num_workers=num_workers), "test", seed=3)
    first = finished(loader.first(2))
    take(loader, 3)
    assert_same(first, finished(loader.first(2)))
    assert len(first) == 2
    assert loader.state_dict() == {"samples": 9}


def test_only_the_training_split_is_augmented(config):
    config = replace(config, augmentation=Augmentation())
    assert len(take(build_loader(config, "test"), 1)[0].frames[0, 0].unique()) == 1
    brightness = take(build_loader(config), 1)[0]
    assert not torch.equal((brightness.frames[:, :, 0, 0, 0] * 255).round(), brightness.rewards)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_augmented_clips_travel_small(config, num_workers):
    """Native frames, or floats, would be many times the bytes between processes and to a GPU."""
    config = replace(config, image_size=4, augmentation=Augmentation(), num_workers=num_workers)
    packed = next(iter(build_loader(config)))
    assert packed.pixels.dtype == torch.uint8
    assert packed.pixels.shape == (3, 4, 3, 4, 4)
    assert packed.colour.factors.shape == packed.colour.order.shape == (3, 4)
    assert next(iter(build_loader(config, "test"))).colour is None


def test_clips_of_an_augmented_batch_differ_in_colour(config):
    """One draw for a whole batch, or the same one on every rank, would pass for augmentation."""
    config = replace(config, augmentation=Augmentation())
    draws = [next(iter(build_loader(config, rank=rank, world_size=2))).colour.factors for rank in range(2)]
    assert len(np.unique(np.concatenate(draws), axis=0)) == 6


def test_training_never_sees_test_episodes(tmp_path):
    write_dataset(tmp_path / "a", 3, num_frames=6)
    write_episode(tmp_path / "a" / "00000.npz", 6, reward=np.full(6, -1.0))
    config = DataConfig(str(tmp_path), "folder:a", SEGMENT, image_size=8, batch_size=8, load_reward=True)
    assert all((batch.rewards >= 0).all() for batch in take(build_loader(config), 5))
    assert all((batch.rewards < 0).all() for batch in take(build_loader(config, "test"), 2))


def test_datasets_are_drawn_by_weight(folder):
    for name, value in [("a", 0), ("b", 1)]:
        write_dataset(folder / name, 5, num_frames=5, reward=np.full(5, value))
    config = DataConfig(str(folder), (("a", 3.0), ("b", 1.0)), SEGMENT, image_size=8, batch_size=400, load_reward=True)
    share = next(iter(build_loader(config))).rewards.mean()
    assert 0.18 < share < 0.32


def test_short_episodes_repeat_their_last_frame_and_its_action(tmp_path):
    write_dataset(tmp_path / "a", 2, num_frames=3)
    config = DataConfig(str(tmp_path), "folder:a", SEGMENT, image_size=8, batch_size=1, load_action=True)
    (batch,) = take(build_loader(config), 1)
    assert (batch.frames[0, :, 0, 0, 0] * 255).round().tolist() == [0, 1, 2, 2]
    assert batch.actions[0, :, 0].tolist() == [0, 1, 2, 2]


def test_native_steps_follow_the_catalog(tmp_path):
    write_dataset(tmp_path / "bridge", 2, num_frames=30)
    config = DataConfig(str(tmp_path), "folder:bridge", SEGMENT, image_size=8, batch_size=1, load_reward=True)
    assert next(iter(build_loader(config))).rewards[0].diff().tolist() == [2, 2, 2]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_bad_episode_stops_the_run_with_one_line(folder, config, num_workers):
    write_episode(folder / "b" / "00002.npz", 20, action=np.full((20, 2), np.nan))
    config = replace(config, mix="folder:b", num_workers=num_workers)
    with pytest.raises(UserError, match=r"00002\.npz: array 'action' holds NaN") as error:
        take(build_loader(config), 20)
    assert "\n" not in str(error.value)


def test_what_does_not_fit_is_found_before_training(folder, config):
    for problem, message in [
        (dict(action_dim=4), "2 dimensions, expected 4"),
        (dict(mix="sthsth"), "dataset 'sthsth' needs sthsth_root_path"),
        (dict(cache_mb=-1), "cache_mb must be at least 0"),
        (dict(mix="select_sthsth"), "no folder"),
        (dict(batch_size=0), "batch_size must be at least 1"),
        (dict(segment=SegmentSpec("goal_first", 4)), "carry no actions"),
        (dict(mix="viola"), "unknown mix"),
    ]:
        with pytest.raises(UserError, match=message):
            build_loader(replace(config, **problem))
    write_dataset(folder / "b", 4, reward=None)
    with pytest.raises(UserError, match="no array 'reward'"):
        build_loader(config)


def test_action_dimensions_that_differ_within_a_mix_are_refused(folder, config):
    write_dataset(folder / "b", 4, action=np.ones((20, 3)))
    with pytest.raises(UserError, match=r"actions of \[2, 3\] dimensions"):
        take(build_loader(config), 10)


def test_the_released_loader_yields_frames_then_actions_then_rewards(folder):
    options = dict(batch_size=2, num_workers=0, image_size=8, segment_length=4, no_aug=True, seed=0)
    frames = next(iter(SimpleRoboticDataLoaderv2(str(folder), [["a", 1.0]], **options)))
    assert frames.shape == (2, 4, 3, 8, 8)
    loader = SimpleRoboticDataLoaderv2(str(folder), [["a", 1.0]], **options)
    num_episodes = len(loader.loader.clips.pick.sources[0].episodes)
    assert len(loader) == -(-num_episodes // 2) > 0
    assert len(take(loader, len(loader) + 1)) == len(loader) + 1, "it is endless"
    pair = next(iter(SimpleRoboticDataLoaderv2(str(folder), "folder:*", load_action=True, **options)))
    options["load_reward"] = True
    triple = next(iter(SimpleRoboticDataLoaderv2(str(folder), "folder:*", load_action=True, **options)))
    assert [part.shape for part in triple] == [(2, 4, 3, 8, 8), (2, 4, 2), (2, 4)]
    assert torch.equal(pair[1], triple[1])


def test_the_released_loader_yields_finished_frames(folder, config):
    """It has no trainer behind it that would do the colours."""
    loader = SimpleRoboticDataLoaderv2(str(folder), "folder:*", num_workers=0, image_size=8, segment_length=4, seed=0)
    config = replace(config, augmentation=Augmentation(), batch_size=2, load_action=False, load_reward=False)
    frames = next(iter(loader))
    assert frames.dtype == torch.float32
    assert torch.equal(frames, take(build_loader(config), 1)[0].frames)


def test_the_released_loaders_keywords():
    """Other people's scripts call it by these names."""
    keywords = {
        *("parent_dir", "datasets", "batch_size", "num_workers", "train", "maxsize", "image_size", "sthsth_root_path"),
        *("brightness", "contrast", "saturation", "hue", "random_resized_crop_scale", "random_resized_crop_ratio"),
        *("no_aug", "random_selection", "random_shuffle", "goal_conditioned", "segment_length", "context_length"),
        *("stepsize", "segment_horizon", "load_action", "load_reward"),
    }
    assert keywords <= set(inspect.signature(SimpleRoboticDataLoaderv2).parameters)
    keywords = ["dataset_name", "segment_length", "image_size", "batch_size", "num_workers", "load_action"]
    assert list(inspect.signature(EvalDataLoader).parameters)[:6] == keywords


def test_the_released_loader_follows_torch_manual_seed(folder):
    def draw():
        torch.manual_seed(7)
        return next(iter(SimpleRoboticDataLoaderv2(str(folder), "folder:*", num_workers=0, image_size=8)))

    assert torch.equal(draw(), draw())


def test_the_evaluation_loader_reads_every_test_episode_once_from_its_first_frame(tmp_path):
    for i in range(5):
        arrays = dict(image=None, aux1_image=numbered_frames(6), action=np.full((6, 4), i))
        write_episode(tmp_path / "bair" / f"{i}.npz", 6, **arrays)
    file = tmp_path / "DATASET.yaml"
    file.write_text("bair_test_dataset: bair\nrobosuite_dataset: vp2\n")
    loader = EvalDataLoader("bair", 3, 8, batch_size=2, num_workers=0, load_action=True, dataset_yaml=file)
    batches = list(loader)
    assert len(batches) == len(loader) == 3
    assert torch.cat([actions[:, 0, 0] for _, actions in batches]).tolist() == [0, 1, 2, 3, 4]
    assert all(((frames[:, :, 0, 0, 0] * 255).round() == torch.arange(3)).all() for frames, _ in batches)
    write_episode(tmp_path / "vp2" / "validation" / "0.npz", 200)
    starts = [next(iter(EvalDataLoader("vp2_robosuite", 3, 8, num_workers=0, dataset_yaml=file)))[0, 0, 0, 0, 0]] * 2
    assert starts[0] == starts[1] > 0
    with pytest.raises(UserError, match="no evaluation episodes are defined for 'bridge'"):
        EvalDataLoader("bridge", 3, 8)
