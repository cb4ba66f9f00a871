"""The transformer computes what the released implementation computes (``tests/parity``)."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ivideogpt.layout import TokenLayout
from ivideogpt.pretrained import build_transformer, read_llama_config
from ivideogpt.transformer import (
    FrameDecoder,
    FrameModel,
    HeadModelWithAction,
    LlamaConfig,
    LlamaForCausalLM,
    RandomStreams,
    Sampling,
    open_backend,
)
from tests.parity.formulas import actions, assert_close, assert_record, assert_state_dict_matches, fill, golden


class Case:
    """A golden transformer case and its tokens, those of the tokenizer case of the same context length."""

    def __init__(self, name: str) -> None:
        self.record = golden()["transformer"][name]
        self.tokens = torch.tensor(golden()["tokenizer"][f"{name}_64"]["tokens"])
        codebooks = golden()["tokenizer"][f"{name}_64"]["config"]
        layout = TokenLayout(int(name[-1]), 0, codebooks["num_vq_embeddings"], codebooks["num_dyn_embeddings"])
        self.layout = layout.with_future_frames(layout.future_frames_in(self.tokens.shape[1]))
        self.prompt = self.tokens[:, : layout.prompt_length]
        self.labels = self.layout.labels(self.tokens)
        self.action_dim = self.record["act_cond"]["action_dim"]
        self.actions = actions(len(self.tokens), self.layout.num_frames, self.action_dim)

    def llm(self) -> LlamaForCausalLM:
        return fill(LlamaForCausalLM(LlamaConfig(**self.record["config"])))

    def action_model(self, **heads: Any) -> HeadModelWithAction:
        config = LlamaConfig(**self.record["config"])
        return fill(build_transformer(config, self.layout, self.action_dim, **heads))


@pytest.fixture(params=["ctx1", "ctx2"])
def case(request):
    return Case(request.param)


def test_action_free_forward(case):
    with torch.no_grad():
        outputs = case.llm()(case.tokens, labels=case.labels)
    assert_close(outputs.loss, case.record["act_free"]["loss"])
    assert_record(outputs.logits[:, -1], case.record["act_free"]["logits_last"])


def test_action_free_greedy_with_sampled_separators(case, kernels):
    model = FrameModel(open_backend("auto", case.llm()), case.layout, Sampling(greedy=True, separators="sampled"))
    decoder = FrameDecoder(model, RandomStreams.of_clips(0, torch.arange(len(case.prompt))))
    decoder.prefill(case.prompt)
    tokens = decoder.rollout(case.layout.future_frames).tokens
    assert tokens[:, 1:].tolist() == case.record["act_free"]["greedy_new_tokens"]


def test_action_conditioned_forward_with_both_heads(case):
    expected = case.record["act_cond"]
    model = case.action_model(reward_prediction=True, action_recon=expected["action_recon_weight"])
    with torch.no_grad():
        outputs, rewards = model(case.tokens, labels=case.labels, action=case.actions)
    assert_close(outputs.loss, expected["loss"])
    assert_close(model.action_recon_loss, expected["action_recon_loss"])
    assert rewards.shape == (*torch.tensor(expected["reward_pred"]).shape, 1)
    assert_close(rewards[..., 0], expected["reward_pred"])
    assert_record(outputs.logits[:, -1], expected["logits_last"])


def test_action_conditioned_without_heads(case):
    model = case.action_model()
    with torch.no_grad():
        outputs = model(case.tokens, labels=case.labels, action=case.actions)
    assert_close(outputs.loss, case.record["act_cond"]["ce_loss"])
    tokens = model.generate(case.prompt, do_sample=False, action=case.actions)
    assert torch.equal(tokens[:, : case.layout.prompt_length], case.prompt)
    assert tokens[:, case.layout.prompt_length :].tolist() == case.record["act_cond"]["greedy_new_tokens"]


@pytest.mark.parametrize(
    ("released", "config", "action_dim", "heads"),
    [
        ("transformer-small", "config.json", None, {}),
        ("transformer-medium", "config_medium.json", None, {}),
        ("transformer-small-action4", "config.json", 4, {}),
        ("transformer-small-action5", "config.json", 5, {}),
        (
            "transformer-small-action4-reward-actionrecon",
            "config.json",
            4,
            {"reward_prediction": True, "action_recon": 0.5},
        ),
    ],
)
def test_names_and_shapes_of_released_checkpoints(released, config, action_dim, heads):
    layout = TokenLayout(2, 14, context_codes=8192, dynamics_codes=8192)
    with torch.device("meta"):
        model = build_transformer(read_llama_config(f"configs/llama/{config}"), layout, action_dim, **heads)
    assert_state_dict_matches(model, released)
