"""The language model computes what Hugging Face's class computes, and starts from the same weights for a seed."""

from __future__ import annotations

import pytest
import torch
import transformers

from ivideogpt.transformer import KeysAndValues, LlamaConfig, LlamaForCausalLM

SIZES = {
    "vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64,
}  # fmt: skip
LINEAR_ROPE = {"rope_theta": 500.0, "rope_type": "linear", "factor": 2.0}


def both(**changes) -> tuple[LlamaForCausalLM, transformers.LlamaForCausalLM]:
    torch.manual_seed(0)
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES | changes))
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES | changes)), theirs


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_key_value_heads": 2},
        {"head_dim": 16, "rope_theta": 500.0},
        {"rope_parameters": LINEAR_ROPE},
    ],
    ids=["plain", "grouped", "options", "linear-rope"],
)
@pytest.mark.parametrize("padded", [False, True])
def test_same_weights_outputs_and_gradients_as_hugging_face(changes, padded):
    """Released weights would give other tokens, and old seeds other trainings."""
    ours, theirs = both(**changes)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor), name
    ids = torch.randint(50, (2, 12))
    inputs = {"input_ids": ids, "labels": ids[:, -7:], "logits_to_keep": 7}
    if padded:
        inputs["attention_mask"] = torch.ones(2, 12, dtype=torch.int64).index_fill(1, torch.arange(3), 0)
    outputs, expected = ours(**inputs), theirs(**inputs)
    torch.testing.assert_close(outputs.logits, expected.logits)
    torch.testing.assert_close(outputs.loss, expected.loss)
    outputs.loss.backward()
    expected.loss.backward()
    gradients = {name: parameter.grad for name, parameter in ours.named_parameters()}
    assert gradients
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad)


@torch.no_grad()
def test_a_cached_prefix_changes_nothing():
    """Positions or masks that forget the cache give the logits of another sequence."""
    ours, _ = both(num_key_value_heads=2)
    ids, cache = torch.randint(50, (2, 12)), KeysAndValues()
    whole = ours(ids).logits
    ours(ids[:, :5], past_key_values=cache)
    torch.testing.assert_close(ours(ids[:, 5:], past_key_values=cache).logits, whole[:, 5:])
    cache.crop(-2)
    assert cache.get_seq_length() == 10
    torch.testing.assert_close(ours(ids[:, 10:11], past_key_values=cache).logits, whole[:, 10:11])


def test_gradient_checkpointing_changes_no_gradient():
    """Dropout that is sampled again in the backward pass gives gradients of another network."""
    ids, gradients = torch.randint(50, (2, 12)), []
    for checkpointing in (False, True):
        ours, _ = both(attention_dropout=0.3)
        if checkpointing:
            ours.gradient_checkpointing_enable()
        torch.manual_seed(1)
        ours(ids, labels=ids).loss.backward()
        gradients.append(ours.model.embed_tokens.weight.grad)
    torch.testing.assert_close(*gradients)
