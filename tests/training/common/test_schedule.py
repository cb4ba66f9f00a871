"""Counting: whose turn it is, when things are due, how long a schedule is."""

from functools import partial

import pytest
import torch
from transformers import get_scheduler

from ivideogpt.training.common.args import SCHEDULES
from ivideogpt.training.common.schedule import (
    build_scheduler,
    discriminator_steps,
    generator_steps,
    validates_at,
    within_phase_pair,
)


@pytest.mark.parametrize("max_steps", [7, 8])
@pytest.mark.parametrize("first_step", [0, 1, 2, 3])
@pytest.mark.parametrize("disc_start", [0, 3, 4, 100])
def test_updates_are_those_that_happen(max_steps, first_step, disc_start):
    """A decaying schedule that is too long or too short by a factor of two is easy to miss."""
    steps = range(first_step, max_steps)
    assert [*generator_steps(first_step, max_steps)] == [step for step in steps if step % 2 == 0]
    expected = [step for step in steps if step % 2 == 1 and step >= disc_start]
    assert [*discriminator_steps(first_step, max_steps, disc_start)] == expected


def test_validation_steps():
    assert [step for step in range(1, 20) if validates_at(step, 6, skip_first=False)] == [1, 7, 13, 19]
    assert [step for step in range(1, 20) if validates_at(step, 6, skip_first=True)] == [7, 13, 19]
    assert all(validates_at(step, 1, skip_first=False) for step in range(1, 4))


@pytest.mark.parametrize("interval", [1, 2, 3, 4, 500])
def test_within_phase_pair(interval):
    """Work that needs a generator phase's tensors may be due at the idle step that follows it."""
    for step in range(1, 1001, 2):  # steps at which a generator phase has finished
        assert within_phase_pair(step, interval) == (step % interval == 0 or (step + 1) % interval == 0)


def test_warm_up_and_decay_count_updates():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    scheduler = build_scheduler("cosine", optimizer, warmup_updates=2, updates=10)
    rates = []
    for _ in range(10):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert rates[:3] == [0, 0.5, 1]
    assert scheduler.get_last_lr()[0] == pytest.approx(0)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("warmup", [0, 3])
def test_schedules_are_those_of_transformers(name, warmup):
    """Published recipes name them."""
    rates = []
    for build in (partial(build_scheduler, warmup_updates=warmup, updates=9),
                  partial(get_scheduler, num_warmup_steps=warmup, num_training_steps=9)):  # fmt: skip
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=3e-4)
        scheduler = build(name, optimizer)
        rates.append([])
        for _ in range(9):
            optimizer.step()
            scheduler.step()
            rates[-1] += scheduler.get_last_lr()
    assert rates[0] == pytest.approx(rates[1], rel=1e-12, abs=1e-18)
