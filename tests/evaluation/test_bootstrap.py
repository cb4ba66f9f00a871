"""Means over clips: which clips count how often, and how sure a mean is."""

import math

import numpy as np
import pytest

from ivideogpt.evaluation.bootstrap import BootstrapMeans


def means_of(values) -> BootstrapMeans:
    return BootstrapMeans([{"score": value} for value in values], [str(clip) for clip in range(len(values))])


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
    clips = [{"score": 1.0}, {"score": math.nan}, {"score": 3.0}, {"other": 7.0}]
    means = BootstrapMeans(clips, ["0", "1", "2", "3"])
    assert means.interval("score").mean == 2.0
    assert means.interval("score").clips == 2
    assert means.interval("other").mean == 7.0
    assert set(means.keys) == {"score", "other"}
    assert "nothing" not in means


def test_the_order_of_clips_changes_nothing():
    """Clips come in other batches, and from several processes."""
    values, names = list(np.random.default_rng(1).normal(size=20)), [str(clip) for clip in range(20)]
    forwards, backwards = (
        BootstrapMeans([{"score": value} for value in values[::step]], names[::step]).interval("score")
        for step in (1, -1)
    )
    assert vars(backwards) == pytest.approx(vars(forwards), abs=1e-12)


def test_models_are_compared_clip_by_clip():
    """Two models that differ by a constant on clips of very different difficulty differ for sure."""
    difficulty = np.random.default_rng(2).normal(0, 10, size=50)
    one, other = means_of(difficulty), means_of(difficulty + 0.1)
    difference = other.difference("score", "score", one)
    assert (difference.low, difference.mean, difference.high) == pytest.approx((0.1, 0.1, 0.1))


def test_a_difference_is_over_the_clips_that_have_both():
    """Hard clips without the other score turned a gain of 1 on every pair into a loss of 3."""
    clips = [{"ours": 30.0, "theirs": 29.0}] * 3 + [{"ours": 20.0}] * 2
    difference = BootstrapMeans(clips, list("abcde")).difference("ours", "theirs")
    assert (difference.mean, difference.low, difference.high, difference.clips) == (1, 1, 1, 3)
    nothing = BootstrapMeans([{"ours": 1.0}, {"theirs": 1.0}], list("ab")).difference("ours", "theirs")
    assert math.isnan(nothing.mean)


def test_one_clip_has_no_interval_but_its_mean():
    interval = means_of([4.0]).interval("score")
    assert interval.mean == 4.0
    assert np.isnan([interval.low, interval.high]).all()


def test_clips_of_one_episode_are_no_independent_draws():
    """A hundred clips of six episodes are known no better than six."""
    values = np.random.default_rng(3).normal(size=6)
    few = BootstrapMeans([{"score": value} for value in values], [f"episode {number}" for number in range(6)])
    repeated = [({"score": values[clip % 6]}, f"episode {clip % 6}") for clip in range(96)]
    many = BootstrapMeans([clip for clip, _ in repeated], [episode for _, episode in repeated])
    one, other = many.interval("score"), few.interval("score")
    assert (one.clips, other.clips) == (96, 6)
    assert (one.low, one.high) == pytest.approx((other.low, other.high))
