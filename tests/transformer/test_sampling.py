from __future__ import annotations

import pytest
import torch

from ivideogpt.transformer import Sampling, sample

LOGITS = torch.tensor([[0.0, 3.0, 1.0, 2.0]]).repeat(4000, 1)


def frequencies(sampling: Sampling) -> torch.Tensor:
    ids = sample(LOGITS, sampling, torch.Generator().manual_seed(0))
    return torch.bincount(ids, minlength=4) / len(ids)


def test_frequencies_follow_the_tempered_distribution():
    for temperature in (0.5, 1.0, 2.0):
        expected = (LOGITS[0] / temperature).softmax(-1)
        actual = frequencies(Sampling(temperature=temperature, top_k=None))
        torch.testing.assert_close(actual, expected, atol=0.03, rtol=0)


def test_top_k_keeps_the_likeliest_and_renormalises():
    actual = frequencies(Sampling(top_k=2))
    expected = torch.zeros(4)
    expected[[1, 3]] = LOGITS[0, [1, 3]].softmax(-1)
    torch.testing.assert_close(actual, expected, atol=0.03, rtol=0)


def test_greedy_takes_the_likeliest():
    assert (sample(LOGITS, Sampling(greedy=True)) == 1).all()


def test_draws_are_those_of_multinomial():
    """The race of exponential clocks stands in for torch.multinomial, draw for draw."""
    torch.manual_seed(3)
    expected = torch.multinomial(LOGITS.softmax(-1), 1)[:, 0]
    torch.manual_seed(3)
    assert torch.equal(sample(LOGITS, Sampling(top_k=None)), expected)


@pytest.mark.parametrize("options", [{"temperature": 0}, {"temperature": -1.0}, {"top_k": 0}, {"separators": "none"}])
def test_impossible_options_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Sampling(**options)
