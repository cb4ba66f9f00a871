"""Means over clips: which clips count how often, and how sure a mean is."""

import math

import numpy as np
import pytest

from ivideogpt.evaluation.bootstrap import BootstrapMeans


def means_of(values, num_replicates=1000, first=0) -> BootstrapMeans:
    means = BootstrapMeans(num_replicates)
    for clip, value in enumerate(values, start=first):
        means.add({"score": value}, drawn_as=str(clip))
    return means


def test_interval_is_as_wide_as_theory_says():
    """Weights of another variance than the bootstrap's would make any model look sure, or none."""
    values = np.random.default_rng(0).normal(5.0, 2.0, size=400)
    interval = means_of(values).interval("score")
    assert interval.mean == pytest.approx(values.mean())
    expected = 1.96 * values.std() / 20
    assert interval.high - interval.mean == pytest.approx(expected, rel=0.15)
    assert interval.mean - interval.low == pytest.approx(expected, rel=0.15)
    assert interval.clips == 400


def test_what_a_clip_lacks_does_not_count():
    means = means_of([1.0, math.nan, 3.0])
    means.add({"other": 7.0}, drawn_as="3")
    assert means.interval("score").mean == 2.0
    assert means.interval("score").clips == 2
    assert means.interval("other").mean == 7.0
    assert means.num_clips == 4


def test_order_and_parts_change_nothing():
    """Clips come in other batches, and from several processes."""
    values = np.random.default_rng(1).normal(size=20)
    whole, backwards, merged = means_of(values), BootstrapMeans(), means_of(values[:7])
    for clip in reversed(range(20)):
        backwards.add({"score": values[clip]}, drawn_as=str(clip))
    merged.merge(means_of(values[7:], first=7))
    for other in (backwards, merged):
        for ours, theirs in zip(vars(whole.interval("score")).values(), vars(other.interval("score")).values()):
            assert ours == pytest.approx(theirs, abs=1e-12)


def test_models_are_compared_clip_by_clip():
    """Two models that differ by a constant on clips of very different difficulty differ for sure."""
    difficulty = np.random.default_rng(2).normal(0, 10, size=50)
    one, other = means_of(difficulty), means_of(difficulty + 0.1)
    difference = other.difference("score", "score", one)
    assert (difference.low, difference.mean, difference.high) == pytest.approx((0.1, 0.1, 0.1))


def test_one_clip_has_no_interval_but_its_mean():
    interval = means_of([4.0]).interval("score")
    assert (interval.low, interval.mean, interval.high) == (4.0, 4.0, 4.0)
    assert math.isnan(means_of([4.0], num_replicates=0).interval("score").low)


def test_clips_of_one_episode_are_no_independent_draws():
    """A hundred clips of six episodes are known no better than six."""
    of_episodes = np.random.default_rng(3).normal(size=6)
    repeated, of_six = BootstrapMeans(), BootstrapMeans()
    for clip in range(96):
        repeated.add({"score": of_episodes[clip % 6]}, drawn_as=f"episode {clip % 6}")
    for episode, value in enumerate(of_episodes):
        of_six.add({"score": value}, drawn_as=f"episode {episode}")
    many, few = repeated.interval("score"), of_six.interval("score")
    assert (many.clips, few.clips) == (96, 6)
    assert (many.low, many.high) == pytest.approx((few.low, few.high))
