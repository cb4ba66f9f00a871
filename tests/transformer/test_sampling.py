from __future__ import annotations

import pytest
import torch

from ivideogpt.errors import UserError
from ivideogpt.transformer import LlamaForCausalLM, RandomStreams, Sampling, expected_codes, open_backend
from tests.parity.networks import llama_config
from tests.transformer.naive_random import BITS, NaiveRandom, split_mix

LOGITS = torch.tensor([[0.0, 3.0, 1.0, 2.0]]).repeat(20000, 1)
STREAMS = RandomStreams.of_clips(seed=0, clips=torch.arange(len(LOGITS)))


@pytest.fixture
def sample(kernels):
    """Sampling by torch, and by compiled code."""
    return open_backend("auto", LlamaForCausalLM(llama_config(num_hidden_layers=1))).sample


def frequencies(ids: torch.Tensor) -> torch.Tensor:
    return torch.bincount(ids, minlength=4) / len(ids)


def test_frequencies_follow_the_tempered_distribution(sample):
    for temperature in (0.5, 1.0, 2.0):
        expected = (LOGITS[0] / temperature).softmax(-1)
        actual = sample(LOGITS, Sampling(temperature=temperature, top_k=None), STREAMS.draws(0, 1)[0])
        torch.testing.assert_close(frequencies(actual), expected, atol=0.012, rtol=0)


def test_draws_of_one_row_follow_the_distribution_too(sample):
    """A hash that is good from row to row may still be poor from draw to draw."""
    draws = RandomStreams.of_clips(seed=5, clips=torch.tensor([3])).draws(0, 20000)[:, 0]
    actual = sample(LOGITS, Sampling(top_k=None), draws)
    torch.testing.assert_close(frequencies(actual), LOGITS[0].softmax(-1), atol=0.012, rtol=0)
    again = torch.stack([actual[:-1], actual[1:]])[:, actual[:-1] == 1]
    torch.testing.assert_close(frequencies(again[1]), LOGITS[0].softmax(-1), atol=0.015, rtol=0)


def test_top_k_keeps_the_likeliest_and_renormalises(sample):
    expected = torch.zeros(4)
    expected[[1, 3]] = LOGITS[0, [1, 3]].softmax(-1)
    actual = sample(LOGITS, Sampling(top_k=2), STREAMS.draws(7, 1)[0])
    torch.testing.assert_close(frequencies(actual), expected, atol=0.012, rtol=0)


@pytest.mark.parametrize("sampling", [Sampling(greedy=True), Sampling(top_k=1)])
def test_the_likeliest_needs_no_random_numbers(sampling, sample):
    assert (sample(LOGITS, sampling, None) == 1).all()


@pytest.mark.parametrize("sampling", [Sampling(top_k=20), Sampling(temperature=0.7, top_k=None)])
def test_draws_are_those_of_the_naive_hash(sampling, sample):
    logits = torch.randn(6, 300, generator=torch.Generator().manual_seed(0))
    streams, naive = RandomStreams.of_clips(11, torch.tensor([4, 0, 9]), num_samples=2), NaiveRandom(11, (4, 0, 9), 2)
    for draw in streams.draws(0, 5):
        assert torch.equal(sample(logits, sampling, draw), naive.token(logits, sampling))


def unmixed(x: int) -> int:
    """What SplitMix64 turns into x."""
    for shift, factor in ((31, 0x94D049BB133111EB), (27, 0xBF58476D1CE4E5B9), (30, None)):
        y = x
        while shift < 64:
            y = x ^ (y >> shift)
            if y ^ (y >> shift) == x:
                break
        x = y if factor is None else y * pow(factor, -1, 2**64) & BITS
    return (x - 0x9E3779B97F4A7C15) & BITS


@pytest.mark.parametrize("hashed", [0, BITS])
def test_noise_is_finite_at_both_ends(hashed, sample):
    """Rounded to 1 the uniform number would make its id win whatever the logits: once in 16 million draws."""
    draw = unmixed(hashed)
    assert split_mix(draw) == hashed
    logits = torch.tensor([[0.0, 100.0, 0.0]])
    signed = torch.tensor([draw - 2**64 if draw >= 2**63 else draw])
    assert sample(logits, Sampling(top_k=None), signed).item() == 1


@pytest.mark.parametrize("seed", [0, -3, 2**63 + 5, 2**64 - 1])
def test_any_64_bits_are_a_seed(seed):
    keys = RandomStreams.of_clips(seed, torch.arange(2)).keys
    assert [key % 2**64 for key in keys.tolist()] == NaiveRandom(seed & BITS).keys


def test_what_a_row_draws_does_not_depend_on_the_others():
    together = RandomStreams.of_clips(2, torch.tensor([7, 8]), num_samples=3)
    alone = RandomStreams.of_clips(2, torch.tensor([8]), num_samples=2)
    assert torch.equal(together.draws(4, 3)[:, 3:5], alone.draws(4, 3))
    assert len(set(together.draws(0, 50).flatten().tolist())) == 300, "rows and draws are told apart"


def test_the_expected_code_lies_between_the_likely_ones():
    """Half left, half right, hardly anything in the middle: the middle it is."""
    vectors = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [0.1, 0.0], [0.0, 5.0]])
    logits = torch.tensor([[2.0, 2.0, -9.0, -9.0], [9.0, 0.0, 0.0, 0.0]])
    assert expected_codes(logits, vectors).tolist() == [2, 0]
    assert expected_codes(logits.bfloat16()[:, None], vectors.half()).tolist() == [[2], [0]]


IMPOSSIBLE = [
    {"temperature": 0},
    {"temperature": 1e-38},
    {"temperature": -1.0},
    {"top_k": 0},
    {"separators": "none"},
    {"rule": "mean"},
    {"greedy": True, "rule": "expected_code"},
    {"separators": "sampled", "rule": "expected_code"},
]


@pytest.mark.parametrize("options", IMPOSSIBLE)
def test_impossible_options_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Sampling(**options)


def test_flags_that_sample_change_the_rule():
    """A --top_k beside a checkpoint's rule that draws nothing was an error in one command and ignored in another."""
    stated = Sampling(rule="expected_code", top_k=1)
    assert stated.with_flags(temperature=None, top_k=None, rule=None) == stated
    assert stated.with_flags(temperature=0.5, top_k=None) == Sampling(0.5, 1, rule="expected_code")
    assert stated.with_flags(top_k=20) == Sampling(top_k=20)
    assert stated.with_flags(top_k=0).top_k is None
    with pytest.raises(UserError, match="--top_k does nothing with --sampling_rule expected_code: give one"):
        stated.with_flags(top_k=20, rule="expected_code")
    greedy = Sampling(greedy=True)
    assert greedy.with_flags(top_k=20) == Sampling(top_k=20)
    assert greedy.with_flags(rule="expected_code") == Sampling(rule="expected_code")
    assert greedy.with_flags(temperature=1.0) == greedy
    for likeliest, flags in ((greedy, {}), (Sampling(), {"top_k": 1})):
        with pytest.raises(UserError, match="--temperature does nothing where the likeliest tokens are taken"):
            likeliest.with_flags(temperature=5.0, **flags)
