from __future__ import annotations

import inspect

import pytest
import torch

from ivideogpt.layout import TokenLayout
from ivideogpt.transformer import HeadModelWithAction, LlamaForCausalLM
from tests.parity.formulas import actions, fill
from tests.parity.networks import llama_config

LAYOUT = TokenLayout(2, 3, context_codes=64, dynamics_codes=48)
GENERATOR = torch.Generator().manual_seed(0)
TOKENS = torch.randint(112, (2, LAYOUT.sequence_length), generator=GENERATOR)
PROMPT = TOKENS[:, : LAYOUT.prompt_length]
ACTIONS = actions(2, 5, 4)


def model(**options) -> HeadModelWithAction:
    arguments = dict(action_dim=4, prelude_tokens_num=513, tokens_num_per_dyna=16, context=2, segment_length=5)
    return fill(HeadModelWithAction(LlamaForCausalLM(llama_config()), **arguments | options))


def test_signatures_that_other_code_relies_on():
    constructor = list(inspect.signature(HeadModelWithAction).parameters)
    assert constructor == [
        *["llm", "action_dim", "prelude_tokens_num", "tokens_num_per_dyna", "context", "segment_length"],
        *["model_type", "reward_prediction", "action_recon", "success_prediction", "ignored"],
    ]
    assert (
        inspect.signature(HeadModelWithAction).parameters["success_prediction"].kind is inspect.Parameter.KEYWORD_ONLY
    )
    forward = list(inspect.signature(HeadModelWithAction.forward).parameters)[1:]
    assert forward == ["input_ids", "attention_mask", "labels", "position_ids", "action", "past_key_values"]
    assert model().token_for_sdf == 113
    assert model().get_input_embeddings(TOKENS).shape == (*TOKENS.shape, 64)


@pytest.mark.parametrize("action_recon", [None, False, 0, 0.0])
def test_no_reconstruction_is_asked_for_in_four_ways(action_recon):
    """A head that 0 or False had made would not be in the checkpoint, and loading is strict."""
    network = model(action_recon=action_recon)
    assert network.action_recon_linear is None
    assert network(TOKENS, labels=TOKENS, action=ACTIONS).action_recon_loss is None


def test_actions_start_without_effect():
    """Fine-tuning starts from what the action-free model knows."""
    fresh = HeadModelWithAction(LlamaForCausalLM(llama_config()), 4, 513, 16, 2, 5)
    assert not any(parameter.any() for parameter in fresh.action_linear.parameters())


@pytest.mark.parametrize("step", range(5))
def test_an_action_changes_what_follows_it_and_nothing_before(step):
    """An offset by one step goes unnoticed otherwise: action[t - 1 + k] must act from the separator of frame k on."""
    changed = ACTIONS.clone()
    changed[:, step] += 1
    network = model()
    with torch.no_grad():
        before, after = (network(TOKENS, action=a).logits for a in (ACTIONS, changed))
    differs = (before - after).abs().amax((0, 2)) > 1e-6
    frame = step - 1
    if 0 <= frame < 3:
        position = LAYOUT.action_positions[frame]
        assert not differs[:position].any()
        assert differs[position]
    else:
        assert not differs.any()


def test_segment_length_may_change_between_calls():
    network = model()
    network.segment_length = 4
    assert network.generate(PROMPT, do_sample=False, action=ACTIONS).shape == (2, LAYOUT.prompt_length + 33)
    network.segment_length = 5
    whole = network.generate(PROMPT, do_sample=False, action=ACTIONS)
    assert torch.equal(network.generate(PROMPT, do_sample=False, max_new_tokens=33, action=ACTIONS), whole[:, :-17])


def test_generate_returns_the_rewards_that_forward_predicts():
    """The released generate read its rewards from wrong positions."""
    network = model(reward_prediction=True)
    tokens, rewards = network.generate(PROMPT, do_sample=False, action=ACTIONS)
    with torch.no_grad():
        _, expected = network(tokens, action=ACTIONS)
    assert rewards.shape == (2, 3)
    torch.testing.assert_close(rewards, expected[..., 0], atol=1e-4, rtol=1e-4)


def test_generate_without_action_is_the_language_model_alone():
    network = model()
    tokens = network.generate_without_action(PROMPT, do_sample=False)
    network.action_linear.bias.data.zero_()
    assert torch.equal(tokens, network.generate(PROMPT, do_sample=False, action=torch.zeros(2, 5, 4)))
    sampled = network.generate_without_action(PROMPT, do_sample=False, separators="sampled")
    assert sampled.shape == tokens.shape == (2, LAYOUT.prompt_length + 50)


def test_manual_seed_decides_the_samples_unless_a_generator_is_given():
    network = model()

    def generate(seed: int, generator: torch.Generator | None = None) -> torch.Tensor:
        torch.manual_seed(seed)
        return network.generate(PROMPT, action=ACTIONS, generator=generator)

    assert torch.equal(generate(1), generate(1))
    assert not torch.equal(generate(1), generate(2))
    assert torch.equal(generate(1, torch.Generator().manual_seed(5)), generate(2, torch.Generator().manual_seed(5)))


def test_generation_ignores_training_mode_and_keeps_it():
    network = model().train()
    network.llm.config.attention_dropout = 0.9
    for layer in network.llm.model.layers:
        layer.self_attn.attention_dropout = 0.9
    tokens = network.generate(PROMPT, do_sample=False, action=ACTIONS)
    assert all(module.training for module in network.modules())
    assert torch.equal(tokens, network.eval().generate(PROMPT, do_sample=False, action=ACTIONS))


def test_attention_dropout_of_the_config_acts_in_training():
    network = HeadModelWithAction(LlamaForCausalLM(llama_config(attention_dropout=0.5)), 4, 513, 16, 2, 5)
    fill(network).train()
    with torch.no_grad():
        assert not torch.equal(network(TOKENS, action=ACTIONS).logits, network(TOKENS, action=ACTIONS).logits)


def test_gradients_reach_every_part():
    network = model(reward_prediction=True, action_recon=0.5)
    outputs, rewards = network(TOKENS, labels=LAYOUT.labels(TOKENS), action=ACTIONS)
    (outputs.loss + rewards.square().mean()).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_bfloat16_autocast_trains():
    network = model(reward_prediction=True, action_recon=0.5)
    with torch.autocast("cpu", torch.bfloat16):
        outputs, _ = network(TOKENS, labels=LAYOUT.labels(TOKENS), action=ACTIONS)
    outputs.loss.backward()
    assert outputs.loss.isfinite()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m(TOKENS), "needs action"),
        (lambda m: m(TOKENS, action=ACTIONS[:, :3]), r"shape \(2, 3, 4\)"),
        (lambda m: m(TOKENS, action=ACTIONS[..., :3]), r"shape \(2, 5, 3\)"),
        (lambda m: m(TOKENS[:, :-3], action=ACTIONS), "no whole number of frames"),
        (lambda m: m.generate(PROMPT, max_new_tokens=17, action=ACTIONS), "max_new_tokens is 17"),
        (lambda m: m.generate(PROMPT[:, :-1], action=ACTIONS), "513 tokens, expected 514"),
        (lambda m: model(model_type="gpt2"), "gpt2"),
        (lambda m: model(prelude_tokens_num=257), "prelude_tokens_num is 257"),
    ],
)
def test_misuse_says_what_was_expected(call, message):
    with pytest.raises(ValueError, match=message):
        call(model())


def test_ignored_arguments_are_named():
    with pytest.warns(UserWarning, match="special_token"):
        model(special_token=True)
