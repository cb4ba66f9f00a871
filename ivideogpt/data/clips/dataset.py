"""Map-style dataset of clips: choose an episode, choose frames, preprocess. Combines the parts of this package.

Sample k of a stream depends on the seed and k alone, in any process, also if a bad episode is replaced.
Shapes: B batch, T frames, H W pixels, D action dimension.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import compress
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import Dataset

from ivideogpt.action_spaces import ActionSpaces
from ivideogpt.data.catalog import SOMETHING_SOMETHING, DatasetInfo, DatasetPaths, Split, dataset_info
from ivideogpt.data.clips.batches import BadEpisode, PackedClips
from ivideogpt.data.clips.segments import Indices, SegmentSpec, SegmentStrategy, fitting_step
from ivideogpt.data.clips.transforms import Augmentation, Preprocess
from ivideogpt.data.dataset_mixes import Mix, resolve_mix
from ivideogpt.data.formats.episodes import Episode, Episodes, check_carries, first_readable, keep_some
from ivideogpt.data.formats.npz_arrays import InflatedArrays
from ivideogpt.data.formats.registry import open_episodes
from ivideogpt.errors import UserError

SERIES = ("actions", "rewards", "successes")  # arrays of numbers, a row a frame
OnBadEpisode = Literal["error", "skip"]
MAX_BAD_IN_A_ROW = 100  # limit before a source counts as unusable

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DataConfig:
    """Configuration of clips: source, episodes, frames and preprocessing."""

    # Folder of <dataset>/*.npz, lerobot:<folder>[@<camera>],... or lance:<uri>,...; the sets of DATASET.yaml need none.
    dataset_path: str | None = None
    mix: str | Mix = "frac"  # see resolve_mix
    segment: SegmentSpec = field(default_factory=SegmentSpec)
    video_stepsize: int = 1
    image_size: int = 64
    batch_size: int = 16
    num_workers: int = 0
    augmentation: Augmentation | None = None  # for the training split only
    dataset_size: int | None = None  # number of training episodes to keep per dataset
    load_action: bool = False
    load_reward: bool = False
    load_success: bool = False
    action_dim: int | None = None  # expected dimension; others are refused
    action_spaces: ActionSpaces | None = None  # encode actions, each dataset's by its space
    dataset_yaml: str | None = None  # default: DATASET.yaml of the checkout
    sthsth_root_path: str | None = None
    on_bad_episode: OnBadEpisode = "error"  # skip: sample another one of its dataset
    whole_clips: bool = False  # refuse episodes shorter than a clip; otherwise their last frame is repeated
    cache_mb: int = 64  # memory per worker for inflated arrays of compressed episodes

    @property
    def series(self) -> tuple[str, ...]:
        """Return the series to load, out of :data:`SERIES`."""
        return tuple(compress(SERIES, (self.load_action, self.load_reward, self.load_success)))

    def __post_init__(self) -> None:
        for name, least in dict(video_stepsize=1, image_size=1, batch_size=1, cache_mb=0).items():
            if getattr(self, name) < least:
                raise UserError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.segment.kind == "goal_first" and self.load_action:
            raise UserError("goal-conditioned clips carry no actions; drop action_conditioned or goal_conditioned")


@dataclass(frozen=True)
class Source:
    """The episodes of one dataset's split and how clips are cut from them."""

    info: DatasetInfo
    episodes: Episodes
    segments: SegmentStrategy
    preprocess: Preprocess
    action_spaces: ActionSpaces | None = None

    def check(
        self,
        episode: Episode,
        actions: bool = False,
        rewards: bool = False,
        action_dim: int | None = None,
        successes: bool = False,
    ) -> None:
        """Check an episode as :func:`check_carries` does, its actions by the dataset's action space if it has one."""
        spaces = self.action_spaces
        check_carries(episode, actions, rewards, action_dim if spaces is None else None, successes)
        if spaces is not None and actions:
            spaces.find_for(self.info.name).check_dim(episode.action_dim, episode.path)

    def cut(self, episode: Episode, indices: Indices, rng: np.random.Generator, series: Iterable[str]) -> PackedClips:
        """Read and preprocess these frames, with series out of :data:`SERIES`; return a batch of one."""
        pixels, colour = self.preprocess(episode.read(indices), rng), self.preprocess.colour(rng)
        read: dict[str, Any] = {name: torch.from_numpy(getattr(episode, name)(indices))[None] for name in series}
        if self.action_spaces is not None and "actions" in read:
            space = self.action_spaces.find_for(self.info.name)
            read["actions"] = self.action_spaces.encode(read["actions"], space.name)
        return PackedClips(pixels[None], colour, **read)


def build_sources(config: DataConfig, split: Split) -> list[tuple[Source, float]]:
    """Build the mix's datasets with their weights. The first episode of each is checked, and its first frame read."""
    sources, action_names = [], {}
    paths, arrays = DatasetPaths.load(config.dataset_yaml), InflatedArrays(config.cache_mb << 20)
    min_frames = config.segment.num_frames_spanned
    for name, weight in resolve_mix(config.mix, config.dataset_path):
        if config.action_spaces is not None and config.load_action:
            config.action_spaces.find_for(name)  # a missing name is no bad episode
        info = dataset_info(name)
        episodes = open_episodes(name, split, config.dataset_path, paths, arrays, config.sthsth_root_path, min_frames)
        augmented = split == "train" and name != SOMETHING_SOMETHING  # as the published tokenizers saw it
        source = Source(
            info,
            keep_some(episodes, config.dataset_size) if split == "train" else episodes,
            config.segment.strategy(info.step(config.video_stepsize)),
            Preprocess(config.image_size, info.square_crop, config.augmentation if augmented else None),
            config.action_spaces if config.load_action else None,
        )
        action_names[name] = _check_first(source, config)
        sources.append((source, weight))
    if config.load_action and config.action_spaces is None:
        _check_same_actions({name: names for name, names in action_names.items() if names is not None})
    return sources


def _check_same_actions(action_names: Mapping[str, tuple[str, ...]]) -> None:
    """Raise UserError if the dimensions of the actions have other names, or another order, in one dataset."""
    first = next(iter(action_names), "")
    for name, names in action_names.items():
        if names != action_names[first]:
            raise UserError(
                f"{name}: its actions are {','.join(names)}, those of {first} are {','.join(action_names[first])}; "
                "read one of the two, or both with --action_spaces, whose file says what belongs together"
            )


def _check_first(source: Source, config: DataConfig) -> tuple[str, ...] | None:
    """Return the names of the action's dimensions in the first episode, as far as they are known.

    Raises:
        UserError: it is bad, and where bad ones are skipped, so are the next ones.
    """

    def read_first_frame(index: int) -> tuple[str, ...] | None:
        episode = source.episodes.open(index)
        _check(episode, source, config)
        episode.read(np.zeros(1, dtype=np.int64))
        return episode.action_names

    tried = range(min(len(source.episodes), 1 if config.on_bad_episode == "error" else MAX_BAD_IN_A_ROW))
    try:
        return first_readable(read_first_frame, tried)
    except UserError as error:
        raise error if len(tried) == 1 else _all_bad(len(tried), error) from error


def _all_bad(number: int, cause: UserError) -> UserError:
    return UserError(f"{number} episodes in a row are bad, so skipping stops; the first: {cause}")


def _check(episode: Episode, source: Source, config: DataConfig) -> None:
    source.check(episode, config.load_action, config.load_reward, config.action_dim, config.load_success)
    if config.whole_clips:
        _check_length(episode, source, config)


def _check_length(episode: Episode, source: Source, config: DataConfig) -> None:
    """Raise UserError for an episode that is shorter than a clip; warn if its frames will be closer together."""
    length, step = config.segment.num_frames_spanned, source.info.step(config.video_stepsize)
    if episode.num_frames < length:
        raise UserError(
            f"{episode.path} has {episode.num_frames} frames, fewer than the {length} of a "
            "clip: ask for shorter clips with --segment_length, or take the episode out"
        )
    if fitting_step(step, length, episode.num_frames) < step:
        _warn_of_smaller_step(source.info.name, length, step)


@cache
def _warn_of_smaller_step(name: str, length: int, step: int) -> None:
    logger.warning("%s: in episodes with too few frames for %d that are %d apart they are closer", name, length, step)


# From the number of a sample to the dataset and the episode that it is cut from.
Pick = Callable[[int, np.random.Generator], tuple[Source, int]]


class PickByWeight:
    """Sample a dataset by weight, then one of its episodes uniformly."""

    def __init__(self, sources: list[tuple[Source, float]]) -> None:
        self.sources = [source for source, _ in sources]
        self._cumulative = np.cumsum([weight for _, weight in sources])

    def __call__(self, number: int, rng: np.random.Generator) -> tuple[Source, int]:
        chosen = np.searchsorted(self._cumulative, rng.random() * self._cumulative[-1], side="right")
        source = self.sources[chosen]
        return source, int(rng.integers(len(source.episodes)))


class PickInOrder:
    """Cycle through the episodes of all datasets in order."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = sources
        self.ends = np.cumsum([len(source.episodes) for source in sources])
        self.num_episodes = int(self.ends[-1])

    def __call__(self, number: int, rng: np.random.Generator | None = None) -> tuple[Source, int]:
        number %= self.num_episodes
        chosen = int(np.searchsorted(self.ends, number, side="right"))
        source = self.sources[chosen]
        return source, number - int(self.ends[chosen]) + len(source.episodes)


class ClipDataset(Dataset[Any]):
    """Clips by their number in the stream. The worker that reads the frames also collates the batch."""

    def __init__(self, config: DataConfig, pick: Pick, seed: int) -> None:
        self.config, self.pick, self.seed = config, pick, seed

    def __getitem__(self, number: int) -> PackedClips:
        """Return sample ``number`` as a batch of one."""
        rng = np.random.default_rng((self.seed, number))
        source, index = self.pick(number, rng)
        bad: list[BadEpisode] = []
        while True:
            try:
                episode = source.episodes.open(index)
                _check(episode, source, self.config)
                indices = source.segments(episode.num_frames, rng)
                clip = source.cut(episode, indices, rng, self.config.series)
                return replace(clip, skipped=tuple(bad))
            except UserError as error:
                if self.config.on_bad_episode == "error":
                    raise
                bad.append(BadEpisode(source.episodes.name(index), str(error)))
                if len(bad) == MAX_BAD_IN_A_ROW:
                    raise _all_bad(len(bad), error) from error
            # A new generator, so that the failed attempt has no effect on it. The same source, so that it keeps its
            # weight in the mix.
            rng = np.random.default_rng((self.seed, number, len(bad)))
            index = int(rng.integers(len(source.episodes)))

    def __getitems__(self, numbers: list[int]) -> PackedClips | UserError:
        """Return the batch of these samples, or the error: raised in a worker it would arrive inside a traceback."""
        try:
            return PackedClips.concatenate([self[number] for number in numbers])
        except UserError as error:
            return error
