"""Codebooks: usage is counted right, dead codes move to data, living ones do not."""

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from ivideogpt.training.tokenizer import codebooks
from ivideogpt.training.tokenizer.codebooks import Codebook, badly_represented, kmeans
from ivideogpt.vq_model.quantizer import code_usage


@pytest.fixture
def codebook():
    return Codebook("context", nn.Parameter(torch.randn(8, 3)), Accelerator(cpu=True))


def test_usage_and_perplexity():
    assert code_usage(torch.tensor([5, 5, 0, 0])) == pytest.approx({"usage": 0.5, "perplexity": 2.0})
    assert code_usage(torch.tensor([1, 1, 1, 1])) == pytest.approx({"usage": 1.0, "perplexity": 4.0})


def test_statistics_start_again_after_every_log_line(codebook):
    codebook.observe(torch.tensor([[0, 1], [1, 1]]), torch.zeros(2, 2, 3))
    assert codebook.take_statistics()["context_usage"] == 2 / 8
    assert codebook.take_statistics() == {}


def test_kmeans_finds_clusters(monkeypatch):
    """Two clusters are found from any start, also when vectors are looked at a few at a time."""
    monkeypatch.setattr(codebooks, "VECTORS_AT_A_TIME", 7)
    clusters = torch.tensor([[0.0, 0.0], [10.0, 0.0]])[:, None] + torch.randn(2, 50, 2)
    found = kmeans(clusters.flatten(0, 1), 2, iterations=10)
    torch.testing.assert_close(found[found[:, 0].argsort()], clusters.mean(dim=1))


def test_a_start_from_data_looks_at_some_of_it(codebook, monkeypatch):
    """All latents of a batch against all codes of a large codebook do not fit into memory."""
    seen = []
    monkeypatch.setattr(codebooks, "kmeans", lambda vectors, *rest: seen.append(vectors) or kmeans(vectors, *rest))
    latents = torch.arange(1000.0)[:, None].expand(-1, 3)
    codebook.initialise(latents)
    assert seen[0].shape == (codebooks.VECTORS_PER_CODE * 8, 3)
    assert seen[0].mean() > 200  # not just the first ones
    assert codebook.vectors.detach().std() > 100


def test_kmeans_with_fewer_distinct_vectors_than_centres():
    """Encoder outputs of still backgrounds repeat."""
    assert kmeans(torch.ones(20, 2), 4, iterations=2).isfinite().all()


def test_dead_codes_move_to_data_and_others_stay(codebook):
    """A restart that touches living codes undoes training."""
    optimizer = torch.optim.AdamW([codebook.vectors], lr=0.1)
    codebook.vectors.sum().backward()
    optimizer.step()
    before = codebook.vectors.detach().clone()
    latents = 10 + torch.randn(2, 16, 3)
    codebook.observe(torch.tensor([0, 2, 4, 6]), torch.zeros(4, 3))
    assert codebook.restart_dead_codes(latents, optimizer) == {"context_dead_codes": 4.0}
    after = codebook.vectors.detach()
    assert torch.equal(after[::2], before[::2])
    assert torch.cdist(after[1::2], latents.flatten(0, 1)).amin(dim=1).max() < 1e-3
    assert len(after.unique(dim=0)) == 8
    for moment in ("exp_avg", "exp_avg_sq"):
        assert (optimizer.state[codebook.vectors][moment][1::2] == 0).all()
        assert (optimizer.state[codebook.vectors][moment][::2] != 0).all()


def test_all_codes_are_dead_again_after_a_restart(codebook):
    optimizer = torch.optim.AdamW([codebook.vectors])
    codebook.observe(torch.arange(8), torch.zeros(8, 3))
    assert codebook.restart_dead_codes(torch.randn(32, 3), optimizer)["context_dead_codes"] == 0
    assert codebook.restart_dead_codes(torch.randn(32, 3), optimizer)["context_dead_codes"] == 8


def test_fewer_latents_than_dead_codes():
    assert len(badly_represented(torch.ones(5, 3), torch.zeros(8, 3), num=4)) == 1
    assert len(badly_represented(torch.zeros(5, 3), torch.zeros(8, 3), num=4)) == 0


def test_counts_survive_a_checkpoint(codebook):
    codebook.observe(torch.tensor([0, 0, 3]), torch.ones(3, 3))
    other = Codebook("context", codebook.vectors, codebook.accelerator)
    other.counts.load_state_dict(codebook.counts.state_dict())
    assert other.take_statistics() == codebook.take_statistics()


def test_what_processes_share_is_apart_from_what_is_their_own(codebook):
    """Counts of one process, given to all on resuming, would be reduced to a multiple of themselves."""
    assert set(codebook.means.state_dict()) == {"weights", "sums"}
    assert set(codebook.counts.state_dict()) == {"since_log", "since_restart"}


def test_vectors_follow_the_means_of_their_latents():
    """With a decay, a vector moves to the mean of the latents that chose it; one that none chose stays."""
    start = torch.randn(4, 3)
    codebook = Codebook("context", nn.Parameter(start.clone(), requires_grad=False), Accelerator(cpu=True), decay=0.5)
    codebook.observe(torch.tensor([0, 0, 2]), torch.tensor([[1.0, 0, 0], [3.0, 0, 0], [0, 5.0, 0]]))
    weights, sums = 0.5 + 0.5 * 2, 0.5 * start[0] + 0.5 * torch.tensor([4.0, 0, 0])
    torch.testing.assert_close(codebook.vectors[0], sums / weights)
    torch.testing.assert_close(codebook.vectors[[1, 3]], start[[1, 3]])
    for _ in range(20):
        codebook.observe(torch.tensor([2]), torch.tensor([[0, 5.0, 0]]))
    torch.testing.assert_close(codebook.vectors[2], torch.tensor([0, 5.0, 0]), atol=1e-3, rtol=0)
    torch.testing.assert_close(codebook.vectors[1], start[1], atol=1e-3, rtol=0)


def test_running_means_survive_a_checkpoint():
    """Means that begin anew on resuming would jump to the next batch."""
    make = lambda: Codebook("context", nn.Parameter(torch.ones(4, 3)), Accelerator(cpu=True), decay=0.9)  # noqa: E731
    codebook, other = make(), make()
    codebook.observe(torch.tensor([0, 1, 1]), torch.randn(3, 3))
    other.means.load_state_dict(codebook.means.state_dict())
    latents = torch.randn(2, 3)
    for each in (codebook, other):
        each.observe(torch.tensor([1, 3]), latents)
    assert torch.equal(codebook.vectors, other.vectors)


def test_the_code_for_nothing_moves_stays_at_zero():
    """It stands for all still patches; pulled away from zero or restarted, it would say something of its own."""
    vectors = nn.Parameter(torch.randn(4, 3), requires_grad=False)
    codebook = Codebook("dynamics", vectors, Accelerator(cpu=True), decay=0.5, keep_zero=True)
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))])
    codebook.initialise(torch.randn(64, 3))
    assert not vectors[0].any()
    codebook.observe(torch.tensor([0, 1]), torch.ones(2, 3))
    assert not vectors[0].any()
    assert codebook.restart_dead_codes(torch.randn(8, 3), optimizer)["dynamics_dead_codes"] == 2  # 2 and 3
    assert codebook.restart_dead_codes(torch.randn(8, 3), optimizer)["dynamics_dead_codes"] == 3  # not 0
    assert not vectors[0].any()
    assert vectors[1:].any(dim=1).all()
