from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ivideogpt.layout import TokenLayout
from ivideogpt.pretrained import build_transformer
from ivideogpt.transformer import causal_dropout
from ivideogpt.transformer.causal_dropout import BLOCK, GROUP, causal_attention
from tests.parity.networks import llama_config

LENGTH = 2 * BLOCK + 7
DROPOUT = 0.25


def inputs(rows: int = GROUP + 3, length: int = LENGTH, size: int = 16) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, rows, length, size, generator=generator, requires_grad=True) for _ in range(3)]


def gradients(attended: torch.Tensor, tensors: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    weight = torch.randn(attended.shape, generator=torch.Generator().manual_seed(1))
    return torch.autograd.grad(attended, tensors, weight)


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("length", [1, BLOCK, LENGTH])
def test_without_dropout_it_is_torch_s_own(length):
    tensors = inputs(length=length)
    expected = F.scaled_dot_product_attention(*tensors, is_causal=True)
    actual = causal_attention(*tensors, dropout=0.0)
    close(actual, expected)
    for ours, theirs in zip(gradients(actual, tensors), gradients(expected, tensors), strict=True):
        close(ours, theirs)


def weights_of(queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    scores = queries @ keys.transpose(-1, -2) * queries.shape[-1] ** -0.5
    return scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), float("-inf")).softmax(-1)


def test_dropped_weights_are_gone_in_values_and_gradients():
    """Values that are an identity show the weights, hence which are dropped; then plain formulas must agree."""
    queries, keys, values = inputs(size=LENGTH)
    weights = weights_of(queries, keys)
    torch.manual_seed(5)
    shown = causal_attention(queries, keys, torch.eye(LENGTH).expand_as(values), DROPOUT)
    kept = shown != 0
    close(shown, weights * kept / (1 - DROPOUT))
    visible = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    assert kept[..., visible].float().mean().item() == pytest.approx(1 - DROPOUT, abs=0.002)
    assert not kept[..., ~visible].any()

    torch.manual_seed(5)
    actual = causal_attention(queries, keys, values, DROPOUT)
    expected = (weights * kept / (1 - DROPOUT)) @ values
    close(actual, expected)
    tensors = [queries, keys, values]
    for ours, plain in zip(gradients(actual, tensors), gradients(expected, tensors), strict=True):
        close(ours, plain)


def test_draws_are_even_and_from_the_global_generator():
    torch.manual_seed(3)
    drawn = causal_dropout._random_levels(torch.empty(1000, 401))
    again = causal_dropout._random_levels(torch.empty(1000, 401))
    torch.manual_seed(3)
    assert torch.equal(drawn, causal_dropout._random_levels(torch.empty(1000, 401)))
    assert not torch.equal(drawn, again)
    for lane in range(4):  # of a 64-bit word
        of_lane = drawn.flatten()[lane::4].float() / 2**16
        assert of_lane.mean().item() == pytest.approx(-0.5 / 2**16, abs=0.005)
        assert of_lane.std().item() == pytest.approx(12**-0.5, abs=0.005)


@pytest.fixture
def calls(monkeypatch) -> list[float]:
    seen: list[float] = []

    def spy(queries, keys, values, dropout):
        seen.append(dropout)
        return causal_attention(queries, keys, values, dropout)

    monkeypatch.setattr(causal_dropout, "causal_attention", spy)
    return seen


def test_a_transformer_uses_it_only_while_it_drops(calls):
    layout = TokenLayout(1, 1, context_codes=64, dynamics_codes=48)
    config = llama_config()
    config.attention_dropout = DROPOUT
    model = build_transformer(config, layout)
    tokens = torch.randint(layout.vocab_size, (2, 12), generator=torch.Generator().manual_seed(0))
    evaluated = model.eval()(tokens).logits
    assert not calls
    trained = model.train()(tokens).logits
    assert calls == [DROPOUT] * config.num_hidden_layers
    assert not torch.allclose(evaluated, trained, atol=1e-4)
    padded = model(tokens, attention_mask=torch.tensor([[1] * 12, [0] * 3 + [1] * 9])).logits
    assert len(calls) == config.num_hidden_layers
    assert padded.isfinite().all()


def test_mixed_precision_computes_attention_in_float32(calls):
    """Rotary embeddings give float32 queries and keys, projections bfloat16 values: all of them arrive here."""
    config = llama_config()
    config.attention_dropout = DROPOUT
    model = build_transformer(config, TokenLayout(1, 1, context_codes=64, dynamics_codes=48)).train()
    tokens = torch.randint(64, (2, 12), generator=torch.Generator().manual_seed(0))

    def loss_and_gradients(mixed: bool) -> tuple[torch.Tensor, list[torch.Tensor]]:
        torch.manual_seed(7)
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            loss = model(tokens, labels=tokens).loss
        return loss.detach(), list(torch.autograd.grad(loss, list(model.parameters())))

    expected, expected_gradients = loss_and_gradients(mixed=False)
    loss, gradients_ = loss_and_gradients(mixed=True)
    assert len(calls) == 2 * config.num_hidden_layers
    torch.testing.assert_close(loss, expected, rtol=0.01, atol=0)
    for ours, exact in zip(gradients_, expected_gradients, strict=True):
        assert ours.dtype == torch.float32
        assert (ours - exact).norm() < 0.05 * exact.norm()


def test_fewer_heads_of_keys_than_of_queries_go_to_torch(calls):
    config = llama_config()
    config.attention_dropout, config.num_key_value_heads = DROPOUT, 1
    model = build_transformer(config, TokenLayout(1, 1, context_codes=64, dynamics_codes=48)).train()
    model(torch.zeros(1, 5, dtype=torch.long)).logits.sum().backward()
    assert not calls
