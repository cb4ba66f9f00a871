"""The cached decoder against Hugging Face's forward on the whole sequence, which is the slow obvious version."""

from __future__ import annotations

import itertools

import pytest
import torch

from ivideogpt.errors import UserError
from ivideogpt.layout import TokenLayout
from ivideogpt.transformer import (
    DecodeBackend,
    FrameDecoder,
    FrameModel,
    LlamaForCausalLM,
    LlamaWeights,
    RandomStreams,
    Sampling,
    TorchBackend,
    open_backend,
)
from tests.parity.formulas import fill
from tests.parity.networks import llama_config

LAYOUT = TokenLayout(1, 3, context_codes=64, dynamics_codes=48)
PROMPT = torch.randint(64, (2, LAYOUT.prompt_length), generator=torch.Generator().manual_seed(0))
PROMPT[:, -1] = LAYOUT.future_separator


VECTORS = torch.randn(48, 5, generator=torch.Generator().manual_seed(1))
EXPECTED = Sampling(temperature=0.5, rule="expected_code")


def llm(**changes) -> LlamaForCausalLM:
    return fill(LlamaForCausalLM(llama_config(**changes)))


def decoder_of(
    model: LlamaForCausalLM, sampling: Sampling, num_samples: int = 1, backend: DecodeBackend | None = None, **options
) -> FrameDecoder:
    streams = RandomStreams.of_clips(0, torch.arange(len(PROMPT)), num_samples)
    decoder = FrameDecoder(FrameModel(backend or open_backend("auto", model), LAYOUT, sampling, **options), streams)
    decoder.prefill(PROMPT)
    return decoder


def likeliest(logits: torch.Tensor) -> torch.Tensor:
    return logits.argmax(-1)


def expected_id(logits: torch.Tensor) -> torch.Tensor:
    """What EXPECTED chooses, (B,), worked out in float64."""
    mean = (logits[:, 64 : 64 + 48].double() / EXPECTED.temperature).softmax(-1) @ VECTORS.double()
    return 64 + (mean[:, None] - VECTORS.double()).norm(dim=-1).argmin(-1)


@torch.no_grad()
def naive(model: LlamaForCausalLM, num_frames: int, forced: bool, choose=likeliest) -> torch.Tensor:
    """Deterministic, no cache. Returns the tokens from the prompt's last one on."""
    ids = PROMPT
    for k in range(num_frames):
        for position in range(LAYOUT.step_length if k else LAYOUT.dynamics_tokens):
            if forced and k and position == 0:
                new = ids.new_full((len(ids), 1), LAYOUT.future_separator)
            else:
                new = choose(model(ids).logits[:, -1])[:, None]
            ids = torch.cat([ids, new], dim=1)
    return ids[:, LAYOUT.prompt_length - 1 :]


@pytest.mark.parametrize("changes", [{}, {"num_key_value_heads": 2}], ids=["multi-head", "grouped-query"])
def test_cached_forward_equals_hugging_face(changes, kernels):
    """In pieces of any size: the prefill, two positions (a last token and a separator), single ones."""
    model = llm(**changes)
    ids = torch.randint(114, (2, 60), generator=torch.Generator().manual_seed(1))
    backend = open_backend("auto", model)
    cache = backend.new_cache(batch=2, capacity=64)
    with torch.no_grad():
        embeddings = backend.weights.embed(ids).split([40, 2, 1, 1, 16], dim=1)
        pieces = [backend.forward(piece, cache) for piece in embeddings]
        actual, expected = backend.logits(torch.cat(pieces, dim=1)), model(ids).logits
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("separators", ["forced", "sampled"])
def test_greedy_tokens_equal_those_of_the_naive_loop(separators, kernels):
    model = llm()
    decoded = decoder_of(model, Sampling(greedy=True, separators=separators)).rollout(3)
    assert decoded.tokens.shape == (2, 3 * LAYOUT.step_length)
    assert decoded.rewards is None
    assert torch.equal(decoded.tokens, naive(model, 3, forced=separators == "forced"))


def test_expected_codes_equal_those_of_the_naive_loop(kernels):
    """Ids of the dynamics codebook only, and neither the likeliest ones nor another codebook's."""
    model = llm()
    tokens = decoder_of(model, EXPECTED, dynamics_vectors=VECTORS).rollout(3).tokens
    assert torch.equal(tokens, naive(model, 3, forced=True, choose=expected_id))
    assert not torch.equal(tokens, naive(model, 3, forced=True))


@pytest.mark.parametrize(
    ("sampling", "heads", "expected"),
    [
        (Sampling(), [], [16, 16, 16]),
        (Sampling(), ["reward_head"], [17, 17, 17]),
        (Sampling(), ["success_head"], [17, 17, 17]),
        (Sampling(), ["reward_head", "success_head"], [17, 17, 17]),
        (Sampling(separators="sampled"), [], [16, 17, 17]),
    ],
)
def test_passes_per_frame(sampling, heads, expected):
    """One pass more a frame would be 6 % of the time."""
    own_heads = {name: fill(torch.nn.Linear(64, 1)) for name in heads}
    num_passes = 0

    class Counting(TorchBackend):
        def forward(self, *args):
            nonlocal num_passes
            num_passes += 1
            return super().forward(*args)

    decoder = decoder_of(llm(), sampling, backend=Counting(LlamaWeights(llm())), **own_heads)
    num_passes = 0  # without the prompt's
    totals = [0]
    for _ in expected:
        decoder.step()
        totals.append(num_passes)
    assert [after - before for before, after in itertools.pairwise(totals)] == expected


def test_reward_head_changes_no_token_and_reads_the_last_token(kernels):
    model, head = llm(), fill(torch.nn.Linear(64, 1))
    with_rewards = decoder_of(model, Sampling(greedy=True), reward_head=head).rollout(3)
    assert torch.equal(with_rewards.tokens, decoder_of(model, Sampling(greedy=True)).rollout(3).tokens)
    sequence = torch.cat([PROMPT[:, :-1], with_rewards.tokens], dim=1)
    with torch.no_grad():
        hidden = model(sequence, output_hidden_states=True).hidden_states[-1]
        expected = head(hidden[:, LAYOUT.reward_positions])[..., 0]
    torch.testing.assert_close(with_rewards.rewards, expected, atol=1e-4, rtol=1e-4)


def test_expand_shares_one_prefill_and_may_come_late(kernels):
    """Expanding before or between frames equals starting with repeated prompts."""
    model = llm()
    once = decoder_of(model, Sampling(greedy=True), num_samples=3)
    once.expand(3)
    twice = decoder_of(model, Sampling(greedy=True))
    first = twice.step().tokens.repeat_interleave(3, dim=0)
    twice.expand(3)
    twice.streams = once.streams
    expected = decoder_of(model, Sampling(greedy=True)).rollout(2).tokens.repeat_interleave(3, dim=0)
    assert torch.equal(once.rollout(2).tokens, expected)
    assert torch.equal(torch.cat([first, twice.step().tokens], dim=1), expected)


def test_dynamics_only_keeps_to_the_dynamics_codebook():
    tokens = decoder_of(llm(), Sampling(temperature=9.0, top_k=None, dynamics_only=True)).rollout(3).tokens
    frames = tokens.unflatten(1, (3, LAYOUT.step_length))
    assert (frames[:, :, 0] == LAYOUT.future_separator).all()
    assert ((frames[:, :, 1:] >= 64) & (frames[:, :, 1:] < 64 + 48)).all()


def test_room():
    model = llm(max_position_embeddings=LAYOUT.sequence_length)
    decoder = decoder_of(model, Sampling())
    assert decoder.frames_left == 3
    decoder.rollout(3)
    assert decoder.frames_left == 0
    assert set(decoder.cache.lengths) == {LAYOUT.sequence_length - 1}, "the last token of all has not entered"
    decoder.prefill(PROMPT, max_frames=2)
    assert (decoder.frames_left, decoder.cache.capacity) == (2, LAYOUT.with_future_frames(2).sequence_length)


def test_refresh_reads_weights_that_changed_in_place():
    """Model-based RL trains the weights between rollouts; stale joined projections would go unnoticed."""
    model = llm()
    backend = open_backend("auto", model)
    address = backend.weights.layers[0].qkv.data_ptr()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.data.mul_(1.1)
    assert open_backend("auto", model, backend) is backend
    assert backend.weights.layers[0].qkv.data_ptr() == address, "captured graphs rely on fixed addresses"
    ids = PROMPT[:, :20]
    with torch.no_grad():
        actual = backend.logits(backend.forward(backend.weights.embed(ids), backend.new_cache(2, 20)))
        torch.testing.assert_close(actual, model(ids).logits, atol=1e-4, rtol=1e-4)


def test_refresh_after_a_start_inside_inference_mode():
    """A joined projection made inside could never be written to outside: every later rollout would fail."""
    with torch.inference_mode():
        weights = LlamaWeights(llm())
    weights.refresh()
    with torch.inference_mode():
        weights.refresh()
    assert not weights.layers[0].qkv.is_inference()


@pytest.mark.parametrize("inside_first", [True, False])
def test_a_rollout_may_enter_and_leave_inference_mode(inside_first):
    """A notebook that prefills inside and steps outside, or the other way round, writes to the same cache."""
    model = llm()
    with torch.inference_mode(inside_first):
        decoder = decoder_of(model, Sampling(greedy=True), num_samples=2)
        decoder.expand(2)
        first = decoder.step()
    with torch.inference_mode(not inside_first):
        second = decoder.step()
    expected = decoder_of(model, Sampling(greedy=True)).rollout(2).tokens.repeat_interleave(2, dim=0)
    assert torch.equal(torch.cat([first.tokens, second.tokens], dim=1), expected)


def test_frames_without_positions_are_refused():
    """An assertion would come after the whole prefill, or in the middle of the rollout."""
    model = FrameModel(open_backend("auto", llm(max_position_embeddings=200)), LAYOUT, Sampling())
    short = FrameDecoder(model, RandomStreams.of_clips(0, torch.arange(2)))
    with pytest.raises(UserError, match="not one frame fits after 1 context frames into 200 positions"):
        short.prefill(PROMPT)
    with pytest.raises(UserError, match="4 frames do not fit, 3 do"):
        decoder_of(llm(max_position_embeddings=LAYOUT.sequence_length), Sampling()).rollout(4)


def test_adapters_must_be_merged_first():
    """A LoRA layer also has a ``weight``: reading that would silently decode without the adapter."""

    class Adapted(torch.nn.Linear):
        pass

    model = llm()
    model.model.layers[0].self_attn.o_proj = Adapted(64, 64, bias=False)
    with pytest.raises(ValueError, match="merge adapters"):
        open_backend("auto", model)


@pytest.mark.parametrize("num_samples", [1, 3])
@pytest.mark.parametrize("has_reward_head", [False, True])
def test_rows_begin_anew_while_others_go_on(num_samples, has_reward_head, kernels):
    """A row's tokens and rewards are those of a rollout of its own, whatever the rows beside it do."""
    model, options = llm(), {}
    if has_reward_head:
        options["reward_head"] = fill(torch.nn.Linear(64, 1))
    greedy = Sampling(greedy=True)
    together = decoder_of(model, greedy, num_samples, **options)
    together.expand(num_samples)
    together.step()
    together.step()
    new_prompt = PROMPT.flip(1)[:1].clone()
    new_prompt[:, -1] = LAYOUT.future_separator
    rows = torch.arange(num_samples, 2 * num_samples)
    together.reset_rows(rows, new_prompt)
    assert together.full_rows().tolist() == []
    third = together.step()

    alone = decoder_of(model, greedy, **options)
    of_first_row = alone.rollout(3)
    alone.prefill(new_prompt.repeat(2, 1))
    of_new_row = alone.rollout(1)
    step = LAYOUT.step_length
    expected = torch.stack([of_first_row.tokens[0, -step:], of_new_row.tokens[0]]).repeat_interleave(num_samples, dim=0)
    assert torch.equal(third.tokens, expected)
    if has_reward_head:
        rewards = torch.stack([of_first_row.rewards[0, -1], of_new_row.rewards[0, 0]]).repeat_interleave(num_samples)
        torch.testing.assert_close(third.reward, rewards, atol=1e-4, rtol=1e-4)


def test_dropped_rows_change_nothing_for_the_others(kernels):
    model, sampling = llm(), Sampling(top_k=20)
    whole, fewer = (decoder_of(model, sampling, num_samples=2) for _ in range(2))
    for decoder in (whole, fewer):
        decoder.expand(2)
        decoder.step()
    fewer.keep_rows(torch.tensor([2, 3]))
    assert torch.equal(fewer.step().tokens, whole.step().tokens[2:])


def test_rows_with_sampled_separators_keep_step():
    decoder = decoder_of(llm(), Sampling(separators="sampled"))
    with pytest.raises(UserError, match="separators='sampled'"):
        decoder.reset_rows(torch.tensor([0]), PROMPT[:1])
