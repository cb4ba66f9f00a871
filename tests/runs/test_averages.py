"""Averages of metrics are the same whether a run was interrupted or not."""

import pytest
import torch

from ivideogpt.runs.averages import MetricAverager


@pytest.mark.parametrize("saved", [1.0, torch.tensor(1.0)])
def test_sums_of_a_checkpoint_are_continued_in_float32(saved):
    """Some accelerators have no float64; model-based RL saved tensors, training saved numbers."""
    averager = MetricAverager()
    averager.load_state_dict({"sums": {"loss": saved}, "counts": {"loss": 1}})
    averager.add({"loss": 2.0})
    mean = averager.means()["loss"]
    assert (mean.item(), mean.dtype) == (1.5, torch.float32)
    assert averager.take() == {"loss": 1.5}
    assert averager.take() == {}


def test_means_over_items_count_by_their_number():
    """The last batch of a validation is smaller, and counted as much as a full one."""
    averager = MetricAverager()
    averager.add({"loss": torch.tensor(1.0)}, count=3)
    averager.add({"loss": torch.tensor(5.0)})
    assert averager.take() == {"loss": 2.0}


def test_a_buffer_that_is_reused_is_not_summed_into():
    """CUDA graphs write every loss into one tensor."""
    averager, loss = MetricAverager(), torch.tensor(1.0)
    averager.add({"loss": loss})
    loss.fill_(9.0)
    assert averager.take() == {"loss": 1.0}
