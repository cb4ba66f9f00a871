"""Frames in buffers at fixed addresses. On a CPU they run without a capture: the same code, kernel by kernel."""

from __future__ import annotations

import gc

import pytest
import torch

from ivideogpt.transformer import FrameDecoder, FrameModel, LlamaWeights, RandomStreams, Sampling, TorchBackend
from ivideogpt.transformer.backends.cuda_graph import CudaGraphBackend, CudaGraphFrame, bucket
from tests.parity.formulas import fill
from tests.transformer.test_decoder import EXPECTED, LAYOUT, PROMPT, VECTORS, decoder_of, llm


@pytest.fixture(autouse=True)
def uncaptured(monkeypatch):
    monkeypatch.setattr(CudaGraphFrame, "capture", lambda self: None)


@pytest.mark.parametrize(
    "sampling", [Sampling(greedy=True), Sampling(top_k=20), EXPECTED], ids=["greedy", "sampled", "expected"]
)
@pytest.mark.parametrize("has_reward_head", [False, True])
@pytest.mark.parametrize("num_samples", [1, 3])
def test_tokens_and_rewards_are_those_without_buffers(sampling, has_reward_head, num_samples):
    """Six rows in buffers for eight."""
    options = {"reward_head": fill(torch.nn.Linear(64, 1))} if has_reward_head else {}
    options["dynamics_vectors"] = VECTORS
    actions = torch.randn(2 * num_samples, 3, 64, generator=torch.Generator().manual_seed(0))
    results = []
    for kind in (TorchBackend, CudaGraphBackend):
        decoder = decoder_of(llm(), sampling, num_samples, kind(LlamaWeights(llm())), **options)
        decoder.expand(num_samples)
        results.append(decoder.rollout(3, actions))
    assert torch.equal(results[0].tokens, results[1].tokens)
    if has_reward_head:
        torch.testing.assert_close(results[0].rewards, results[1].rewards, atol=1e-4, rtol=1e-4)


def test_rows_may_begin_anew_part_or_leave():
    """All that a session does between frames, in and out of the buffers."""
    results = []
    for kind in (TorchBackend, CudaGraphBackend):
        decoder = decoder_of(llm(), Sampling(top_k=20), num_samples=2, backend=kind(LlamaWeights(llm())))
        decoder.expand(2)
        mark = decoder.mark()
        frames = [decoder.step(), decoder.step()]
        decoder.rewind(mark)
        frames += [decoder.step(), decoder.step()]
        assert torch.equal(frames[1].tokens, frames[3].tokens)
        decoder.reset_rows(torch.tensor([0, 1]), PROMPT[1:].repeat(2, 1), RandomStreams.of_clips(3, torch.arange(2)))
        frames.append(decoder.step())
        decoder.keep_rows(torch.tensor([0, 1]))
        frames.append(decoder.step())
        results.append(torch.cat([frame.tokens for frame in frames]))
        decoder.prefill(PROMPT)
        results[-1] = torch.cat([results[-1], decoder.step().tokens])
    assert torch.equal(*results)


def test_rows_that_nobody_uses_may_run_on_for_ever():
    """Six rows in buffers for eight; the other two never begin anew, and must stay within the model's positions."""
    backend = CudaGraphBackend(LlamaWeights(llm(max_position_embeddings=LAYOUT.sequence_length)))
    decoder = decoder_of(backend.weights.llm, Sampling(greedy=True), 3, backend)
    decoder.expand(3)
    expected = decoder.step().tokens
    for _ in range(7):
        decoder.step()
        decoder.step()
        decoder.reset_rows(torch.arange(6), PROMPT.repeat_interleave(3, dim=0))
        assert torch.equal(decoder.step().tokens, expected)


def test_buffers_are_shared_by_sessions_one_after_the_other_only():
    model = llm()
    frame_model = FrameModel(CudaGraphBackend(LlamaWeights(model)), LAYOUT, Sampling(greedy=True))

    def start() -> FrameDecoder:
        decoder = FrameDecoder(frame_model, RandomStreams.of_clips(0, torch.arange(2)))
        decoder.prefill(PROMPT)
        return decoder

    expected = decoder_of(model, Sampling(greedy=True)).rollout(2).tokens
    first, second = start(), start()
    frames = [first.step(), second.step(), first.step(), second.step()]
    assert first.cache.keys.data_ptr() != second.cache.keys.data_ptr()
    assert torch.equal(torch.cat([frames[0].tokens, frames[2].tokens], dim=1), expected)
    assert torch.equal(torch.cat([frames[1].tokens, frames[3].tokens], dim=1), expected)
    address = first.cache.keys.data_ptr()
    del first
    gc.collect()
    third = start()
    assert torch.equal(third.rollout(2).tokens, expected)
    assert third.cache.keys.data_ptr() == address


def test_graphs_of_weights_that_have_moved_are_not_used():
    backend = CudaGraphBackend(LlamaWeights(llm()))
    frame_model = FrameModel(backend, LAYOUT, Sampling())
    frame = backend.borrow_buffers(frame_model, 2, 64)
    backend.give_back(frame)
    norm = backend.weights.llm.model.norm
    norm.weight.data = norm.weight.data.clone()
    backend.weights.refresh()
    assert backend.borrow_buffers(frame_model, 2, 64) is not frame


def test_graphs_of_another_codebook_are_not_used():
    """Two tokenizers may share a transformer's shape, and a captured frame reads code vectors where it found them."""
    backend = CudaGraphBackend(LlamaWeights(llm()))
    first, second = (FrameModel(backend, LAYOUT, EXPECTED, dynamics_vectors=v) for v in (VECTORS, VECTORS.clone()))
    frame = backend.borrow_buffers(first, 2, 64)
    backend.give_back(frame)
    assert backend.borrow_buffers(first, 2, 64) is frame
    backend.give_back(frame)
    assert backend.borrow_buffers(second, 2, 64) is not frame


def test_sampled_separators_are_drawn_pass_by_pass():
    """A row's first frame takes another number of passes than its later ones: no graph can hold both."""
    backend = CudaGraphBackend(LlamaWeights(llm()))
    assert backend.borrow_buffers(FrameModel(backend, LAYOUT, Sampling(separators="sampled")), 2, 64) is None


def test_where_capturing_fails_frames_are_drawn_all_the_same(monkeypatch, caplog):
    def fail(self):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(CudaGraphFrame, "capture", fail)
    backend = CudaGraphBackend(LlamaWeights(llm()))
    tokens = decoder_of(backend.weights.llm, Sampling(greedy=True), backend=backend).rollout(2).tokens
    decoder_of(backend.weights.llm, Sampling(greedy=True), backend=backend).rollout(1)
    assert torch.equal(tokens, decoder_of(llm(), Sampling(greedy=True)).rollout(2).tokens)
    assert [record.message.split(" (")[0] for record in caplog.records] == [
        "frames are drawn kernel by kernel: no CUDA graph"
    ]


def test_batches_that_differ_little_share_a_bucket():
    assert [bucket(rows) for rows in (1, 2, 3, 5, 8, 33)] == [1, 2, 4, 8, 8, 64]
