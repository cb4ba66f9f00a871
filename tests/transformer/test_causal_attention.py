from __future__ import annotations

import weakref

import pytest
import torch
import torch.nn.functional as F

from ivideogpt.layout import TokenLayout
from ivideogpt.pretrained import build_transformer
from ivideogpt.transformer import KeysAndValues
from ivideogpt.transformer import causal_attention as module
from ivideogpt.transformer.causal_attention import BLOCKS, GROUP, attention, causal_attention
from tests.parity.networks import llama_config

BLOCK = BLOCKS[torch.float32]
LENGTH = 2 * BLOCK + 7
DROPOUT = 0.25


def inputs(rows: int = GROUP + 3, length: int = LENGTH, size: int = 16, past: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    lengths = length, past + length, past + length
    return [torch.randn(1, rows, each, size, generator=generator, requires_grad=True) for each in lengths]


def gradients(attended: torch.Tensor, tensors: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    weight = torch.randn(attended.shape, generator=torch.Generator().manual_seed(1))
    return torch.autograd.grad(attended, tensors, weight)


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def torch_s_own(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    past = keys.shape[2] - queries.shape[2]
    visible = torch.ones(queries.shape[2], keys.shape[2], dtype=torch.bool).tril(past)
    return F.scaled_dot_product_attention(queries, keys, values, visible)


@pytest.mark.parametrize("past", [0, 1, BLOCK + 5])
@pytest.mark.parametrize("length", [1, BLOCK, LENGTH])
def test_without_dropout_it_is_torch_s_own(length, past):
    tensors = inputs(length=length, past=past)
    expected = torch_s_own(*tensors)
    actual = causal_attention(*tensors, dropout=0.0)
    close(actual, expected)
    for ours, theirs in zip(gradients(actual, tensors), gradients(expected, tensors), strict=True):
        close(ours, theirs)


@pytest.mark.parametrize("past", [0, 37])
def test_in_bfloat16_it_is_as_exact_as_its_numbers(past):
    exact = inputs(length=BLOCKS[torch.bfloat16] + 9, past=past)
    tensors = [tensor.detach().bfloat16().requires_grad_() for tensor in exact]
    expected, actual = torch_s_own(*exact), causal_attention(*tensors, dropout=0.0)
    assert actual.dtype == torch.bfloat16
    assert (actual - expected).norm() < 0.01 * expected.norm()
    for ours, theirs in zip(gradients(actual.float(), tensors), gradients(expected, exact), strict=True):
        assert ours.dtype == torch.bfloat16
        assert (ours - theirs).norm() < 0.01 * theirs.norm()


@pytest.mark.parametrize("past", [0, 4])
def test_grouped_heads_are_torch_s_own(past):
    """Causal also after a prefix, where torch's flag would look at the first keys alone."""
    queries, keys, values = inputs(length=9, past=past)
    keys, values = keys[:, :1], values[:, :1]
    expected = torch_s_own(
        queries, keys.expand(-1, queries.shape[1], -1, -1), values.expand(-1, queries.shape[1], -1, -1)
    )
    close(attention(queries, keys, values, None, 0.0), expected)


@pytest.mark.parametrize("trains", [False, True])
def test_weights_are_kept_for_gradients_alone(monkeypatch, trains):
    """Validation and the passes of own histories would hold a square of weights a layer."""
    draws, alive = [], []

    def spy(like):
        alive.append(sum(drawn() is not None for drawn in draws))
        drawn = random_levels(like)
        draws.append(weakref.ref(drawn))
        return drawn

    random_levels = module._random_levels
    monkeypatch.setattr(module, "_random_levels", spy)
    causal_attention(*(tensor.detach().requires_grad_(trains) for tensor in inputs()), dropout=DROPOUT)
    assert alive == (list(range(6)) if trains else [0, 1, 1, 1, 1, 1])


@pytest.mark.parametrize("units", [False, True])
def test_bfloat16_goes_in_blocks_where_the_processor_has_it(monkeypatch, calls, units):
    monkeypatch.setattr(module, "has_bfloat16_units", lambda: units)
    tensors = inputs(length=9, past=4)
    with torch.autocast("cpu", torch.bfloat16):
        attended = attention(*tensors, None, 0.0)
    assert calls == [0.0] * units
    assert attended.dtype == torch.bfloat16
    assert (attended - torch_s_own(*tensors)).norm() < 0.02 * attended.norm()
    close(attention(*tensors, None, 0.0), torch_s_own(*tensors))  # in float32 torch's own is as fast
    assert calls == [0.0] * units


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
    drawn = module._random_levels(torch.empty(1000, 401))
    again = module._random_levels(torch.empty(1000, 401))
    torch.manual_seed(3)
    assert torch.equal(drawn, module._random_levels(torch.empty(1000, 401)))
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

    monkeypatch.setattr(module, "causal_attention", spy)
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


@pytest.mark.parametrize("units", [False, True])
def test_mixed_precision(monkeypatch, calls, units):
    """Rotary embeddings give float32 queries and keys, projections bfloat16 values: all of them arrive here."""
    monkeypatch.setattr(module, "has_bfloat16_units", lambda: units)
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


@pytest.mark.parametrize("mixed", [False, True])
def test_a_prefix_that_was_read_before_changes_nothing(monkeypatch, mixed):
    monkeypatch.setattr(module, "has_bfloat16_units", lambda: True)
    model = build_transformer(llama_config(), TokenLayout(1, 1, context_codes=64, dynamics_codes=48)).eval()
    tokens = torch.randint(64, (2, 12), generator=torch.Generator().manual_seed(0))

    def loss_and_gradients(prefix: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
        cache = KeysAndValues()
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            first = model(tokens[:, :prefix], past_key_values=cache).logits
            logits = torch.cat([first, model(tokens[:, prefix:], past_key_values=cache).logits], dim=1)
        loss = F.cross_entropy(logits.float().flatten(0, 1), tokens.flatten())
        return loss.detach(), list(torch.autograd.grad(loss, list(model.parameters())))

    loss, ours = loss_and_gradients(prefix=5)
    expected, exact = loss_and_gradients(prefix=11)
    torch.testing.assert_close(loss, expected, rtol=1e-2 if mixed else 1e-5, atol=0)
    for one, other in zip(ours, exact, strict=True):
        assert (one - other).norm() < (0.05 if mixed else 1e-4) * other.norm()
