import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ivideogpt.data.clips.segments import SegmentSpec, Windows, segment_kind
from ivideogpt.errors import UserError

lengths = st.integers(2, 12)
steps = st.integers(1, 9)
episodes = st.integers(1, 120)
seeds = st.integers(0, 2**32)
quick = settings(deadline=None, max_examples=200)


def strategy_of(kind, length, context_length=1, horizon=None, step=1):
    return SegmentSpec(kind, length, context_length, horizon).strategy(step)


def rng(seed=0):
    return np.random.default_rng(seed)


def shrunk(step, horizon, num_frames):
    """The rule of the paper's loaders, written plainly."""
    return max(1, num_frames // horizon) if step * horizon > num_frames else step


@st.composite
def specs(draw):
    length = draw(lengths)
    return SegmentSpec(
        kind=draw(st.sampled_from(["contiguous", "sparse_future", "shuffled", "goal_first", "leading"])),
        length=length,
        context_length=draw(st.integers(1, length)),
        horizon=draw(st.one_of(st.none(), st.integers(length, 3 * length))),
    )


@quick
@given(specs(), steps, episodes, seeds)
def test_every_kind_gives_frames_of_the_episode_and_the_same_ones_again(spec, step, num_frames, seed):
    strategy = spec.strategy(step)
    indices = strategy(num_frames, rng(seed))
    assert indices.shape == (spec.length,)
    assert indices.dtype == np.int64
    assert indices.min() >= 0
    assert indices.max() < num_frames
    np.testing.assert_array_equal(indices, strategy(num_frames, rng(seed)))


@quick
@given(lengths, steps, episodes, seeds)
def test_contiguous_is_evenly_spaced_until_the_last_frame_repeats(length, step, num_frames, seed):
    indices = strategy_of("contiguous", length, step=step)(num_frames, rng(seed))
    expected = indices[0] + shrunk(step, length, num_frames) * np.arange(length)
    np.testing.assert_array_equal(indices, np.minimum(expected, num_frames - 1))
    if num_frames >= length:
        assert len(set(indices)) == length, "frames repeat only in episodes that are too short"


@quick
@given(lengths, st.data(), steps, episodes, seeds)
def test_sparse_future_keeps_the_context_and_the_order_of_time(length, data, step, num_frames, seed):
    context = data.draw(st.integers(1, length))
    horizon = data.draw(st.integers(length, 2 * length))
    indices = strategy_of("sparse_future", length, context, horizon, step)(num_frames, rng(seed))
    step = shrunk(step, horizon, num_frames)
    start = indices[0]
    np.testing.assert_array_equal(indices[:context], np.minimum(start + step * np.arange(context), num_frames - 1))
    if num_frames >= step * horizon:
        future = indices[context:]
        assert (np.diff(indices) > 0).all()
        assert (future >= start + step * context).all()
        assert (future < start + step * horizon).all()


def test_sparse_future_takes_any_native_frame_not_only_multiples_of_the_step():
    strategy = strategy_of("sparse_future", 4, 2, 8, step=3)
    drawn = {int(i) for seed in range(300) for i in strategy(24, rng(seed))[2:]}
    assert drawn == set(range(6, 24))


@quick
@given(lengths, st.integers(0, 10), steps, episodes, seeds)
def test_shuffled_takes_distinct_steps_of_the_horizon(length, extra, step, num_frames, seed):
    horizon = length + extra
    indices = strategy_of("shuffled", length, horizon=horizon, step=step)(num_frames, rng(seed))
    step = shrunk(step, horizon, num_frames)
    if num_frames >= step * horizon:
        assert len(set(indices)) == length
        assert len(set(indices % step)) == 1
        assert np.ptp(indices) <= step * (horizon - 1)


def test_frames_are_chosen_among_those_that_exist():
    """An episode of 10 frames under a horizon of 16 repeated its last frame in half of the future places."""
    strategy = strategy_of("sparse_future", 8, 2, 16)
    drawn = np.stack([strategy(10, rng(seed)) for seed in range(400)])
    assert all(len(set(row)) == 8 for row in drawn.tolist())
    assert (drawn[:, 2:] == 9).mean() == pytest.approx(6 / 8 / 6, abs=0.01)


@quick
@given(lengths, st.data(), steps, episodes, seeds)
def test_random_choices_repeat_the_last_frame_only_where_frames_are_too_few(length, data, step, num_frames, seed):
    context = data.draw(st.integers(1, length))
    horizon = data.draw(st.integers(length, 3 * length))
    future = strategy_of("sparse_future", length, context, horizon, step)(num_frames, rng(seed))[context:].tolist()
    assert len(set(future)) >= min(len(future), max(num_frames - context, 0))
    order = strategy_of("shuffled", length, horizon=horizon, step=step)(num_frames, rng(seed)).tolist()
    assert len(set(order)) == min(length, num_frames)
    assert all(order.count(frame) == 1 for frame in order if frame != num_frames - 1)


def test_shuffled_is_in_random_order():
    strategy = strategy_of("shuffled", 5, horizon=5)
    assert len({tuple(strategy(5, rng(seed))) for seed in range(50)}) > 20


@quick
@given(lengths, steps, episodes, seeds)
def test_goal_first_copies_the_last_frame_to_the_front(length, step, num_frames, seed):
    indices = strategy_of("goal_first", length, step=step)(num_frames, rng(seed))
    assert indices[0] == indices[-1]
    assert (np.diff(indices[1:]) >= 0).all()
    assert indices[0] - indices[1] <= shrunk(step, length - 1, num_frames) * (length - 2)


def test_leading_starts_at_the_first_frame_and_repeats_the_last():
    np.testing.assert_array_equal(strategy_of("leading", 5)(3, rng()), [0, 1, 2, 2, 2])


@pytest.mark.parametrize(
    ("num_frames", "step", "starts"), [(20, 1, range(11)), (20, 2, [0]), (25, 2, range(6)), (4, 1, [0])]
)
def test_all_starts_that_fit_are_drawn(num_frames, step, starts):
    """Leaving out the last start would keep the end of every episode from being trained on."""
    strategy = strategy_of("contiguous", 10, step=step)
    assert {int(strategy(num_frames, rng(seed))[0]) for seed in range(400)} == set(starts)


@quick
@given(lengths, steps, episodes, st.integers(1, 5))
def test_windows_are_the_contiguous_segments_at_every_stride(length, step, num_frames, stride):
    found = np.stack(list(Windows(num_frames, length, step, stride)))
    assert (found[:, 0] % stride == 0).all()
    assert (found < num_frames).all()
    step = shrunk(step, length, num_frames)
    assert len(found) == max(num_frames - step * length, 0) // stride + 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(kind="backwards"), "unknown kind"),
        (dict(kind="goal_first", length=1), "too short"),
        (dict(length=16, horizon=12), "no room"),
        (dict(kind="sparse_future", length=4, context_length=5), "context_length 5"),
    ],
)
def test_impossible_segments_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        SegmentSpec(**options)


def test_historical_switches_name_one_kind():
    assert segment_kind() == "contiguous"
    assert segment_kind(rand_select=True) == "sparse_future"
    assert segment_kind(rand_shuffle=True) == "shuffled"
    assert segment_kind(goal_conditioned=True) == "goal_first"
    with pytest.raises(UserError, match="exclude each other"):
        segment_kind(rand_select=True, rand_shuffle=True)
