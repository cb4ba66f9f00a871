"""Histories of a model's own: what leaks from the truth, or moves a target, would go unnoticed in the loss."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from ivideogpt.errors import UserError
from ivideogpt.layout import FrameTokens, TokenLayout
from ivideogpt.losses import transformer_loss
from ivideogpt.pretrained import TOKENIZER_WEIGHTS, build_transformer, language_model
from ivideogpt.training.additions.history_corruption import (
    OwnHistory,
    evaluate_own_history,
    find_still_code,
    own_history,
    read_context,
    sample_first_frames,
    standing_still,
)
from ivideogpt.transformer import FrameDecoder, FrameModel, RandomStreams, Sampling, open_backend
from tests.parity.formulas import actions, fill
from tests.parity.networks import llama_config
from tests.training.runs import build_gpt, fit, metrics_of, without

LAYOUT = TokenLayout(context_frames=1, future_frames=2, context_codes=30, dynamics_codes=40)
STILL = 7
FIRST = torch.tensor([0, 1, 2])
ACTIONS = actions(3, 3, 4)
TEACHER = 2  # the clip whose future is the true one
CODEBOOK = torch.randn(40, 5, generator=torch.Generator().manual_seed(2))


def model(action_dim=None, **heads):
    return fill(build_transformer(llama_config(), LAYOUT, action_dim, **heads))


@pytest.fixture
def tokens():
    return LAYOUT.pack(FrameTokens(torch.randint(30, (3, 1, 256)), torch.randint(40, (3, 2, 16))))


@pytest.fixture(params=[None, 4], ids=["action-free", "actions"])
def network_and_actions(request):
    return model(request.param), None if request.param is None else ACTIONS


def history_of(network, tokens, taken, settings, first=FIRST):
    return own_history(network, read_context(network, tokens, LAYOUT, taken), tokens, LAYOUT, taken, first, settings)


@torch.no_grad()
def naive_history(network, tokens, taken, settings):
    """One position at a time, each from a pass over the whole sequence without a cache."""
    own = [(clip, frame) for clip, first in enumerate(FIRST.tolist()) for frame in range(first, LAYOUT.future_frames)]
    history = tokens.clone()
    for clip, frame in own:
        codes = LAYOUT.unpack(tokens).dynamics[clip, 0] if FIRST[clip] == 1 else torch.full((16,), STILL)
        history[clip, 257 + 17 * frame : 273 + 17 * frame] = LAYOUT.context_codes + codes
    for _ in range(settings.passes):
        before = history.clone()
        for clip, frame in own:
            row = slice(clip, clip + 1)
            conditions = {} if taken is None else {"action": taken[row]}
            for position in range(257 + 17 * frame, 273 + 17 * frame):
                later = torch.zeros_like(before[row, position:])  # nothing that comes later may count
                logits = network(torch.cat([before[row, :position], later], dim=1), **conditions).logits
                history[clip, position] = 30 + settings.choose(logits[0, position - 1, 30:70])
    return history


@pytest.mark.parametrize("codebook", [None, CODEBOOK], ids=["likeliest", "expected_code"])
def test_a_history_holds_the_models_own_choices(network_and_actions, tokens, codebook):
    """A choice read one position too early or too late would be the truth shifted, or a leak."""
    network, taken = network_and_actions
    settings = OwnHistory(STILL, passes=2, codebook=codebook)
    history = history_of(network, tokens, taken, settings)
    assert torch.equal(history, naive_history(network, tokens, taken, settings))
    assert torch.equal(history[TEACHER], tokens[TEACHER])
    assert torch.equal(history[1, : -LAYOUT.dynamics_tokens], tokens[1, : -LAYOUT.dynamics_tokens])


def test_with_enough_passes_it_is_the_rollout(tokens):
    """Each pass makes one more position final."""
    network = model()
    history = history_of(network, tokens, None, OwnHistory(STILL, passes=32), torch.zeros(3, dtype=torch.int64))
    sampling = Sampling(greedy=True, dynamics_only=True)
    decoder = FrameDecoder(
        FrameModel(open_backend("auto", network), LAYOUT, sampling), RandomStreams.of_clips(0, torch.arange(3))
    )
    decoder.prefill(tokens[:, : LAYOUT.prompt_length])
    assert torch.equal(history[:, LAYOUT.prompt_length - 1 :], decoder.rollout(2).tokens)


def test_true_tokens_do_not_leak_into_it(tokens):
    """The future of a clip that is wholly the model's own may be anything."""
    network, settings = model(), OwnHistory(STILL)
    other = tokens.clone()
    other[0, LAYOUT.prompt_length :] = tokens[1, LAYOUT.prompt_length :]
    histories = [history_of(network, some, None, settings) for some in (tokens, other)]
    assert not torch.equal(tokens[0], other[0])
    assert torch.equal(histories[0][0], histories[1][0])


def test_a_true_history_is_teacher_forcing():
    """The loss, its terms and its gradients, through a context that was read before."""
    torch.manual_seed(1)
    tokens = LAYOUT.pack(FrameTokens(torch.randint(30, (3, 1, 256)), torch.randint(40, (3, 2, 16))))
    rewards, losses, gradients = torch.randn(3, 3), [], []
    for is_own in (False, True):
        network = model(4, reward_prediction=True, action_recon=0.1)
        inputs = context = None
        if is_own:
            context = read_context(network, tokens, LAYOUT, ACTIONS)
            nothing = torch.full((3,), LAYOUT.future_frames)
            settings = OwnHistory(STILL, passes=0)
            inputs = own_history(network, context, tokens, LAYOUT, ACTIONS, nothing, settings)
            assert torch.equal(inputs, tokens)
        terms = transformer_loss(network, tokens, LAYOUT, ACTIONS, rewards, inputs=inputs, past_key_values=context)
        terms.total.backward()
        losses.append(terms.detached())
        gradients.append({name: parameter.grad for name, parameter in network.named_parameters()})
    assert losses[0].keys() == {"loss", "ce", "action_recon", "reward"}
    torch.testing.assert_close(losses[1], losses[0])
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-5, rtol=1e-4)


def test_targets_are_the_true_tokens_whatever_is_read(network_and_actions, tokens):
    """With a cache and without one the same loss, that of the true labels."""
    network, taken = network_and_actions
    history = history_of(network, tokens, taken, OwnHistory(STILL))
    context = read_context(network, tokens, LAYOUT, taken)
    cached = transformer_loss(network, tokens, LAYOUT, taken, inputs=history, past_key_values=context).total
    with torch.no_grad():
        logits = network(history, **({} if taken is None else {"action": taken})).logits
    start = LAYOUT.prompt_length
    expected = torch.nn.functional.cross_entropy(logits[:, start - 1 : -1].flatten(0, 1), tokens[:, start:].flatten())
    assert cached.item() == pytest.approx(expected.item(), rel=1e-5)
    own_only = history_of(network, tokens, taken, OwnHistory(STILL), torch.zeros(3, dtype=torch.int64))
    expected = transformer_loss(network, tokens, LAYOUT, taken, inputs=own_only).total
    actual = evaluate_own_history(network, tokens, LAYOUT, taken, OwnHistory(STILL))
    assert actual.item() == pytest.approx(expected.item(), rel=1e-5)


def test_choices_are_made_without_dropout_and_modes_come_back(tokens):
    network = build_transformer(llama_config(attention_dropout=0.5), LAYOUT)
    fill(network).train()
    network.model.layers[0].eval()
    with torch.no_grad():
        losses = [evaluate_own_history(network, tokens, LAYOUT, None, OwnHistory(STILL)) for _ in range(2)]
    assert losses[0] == losses[1]
    assert network.training
    assert not network.model.layers[0].training


def test_a_still_future_repeats_the_last_true_frame():
    dynamics = torch.arange(3 * 2 * 16).reshape(3, 2, 16)
    still = standing_still(dynamics, FIRST, STILL)
    assert (still[0] == STILL).all()
    assert torch.equal(still[1], dynamics[1, :1].expand(2, -1))
    assert torch.equal(still[TEACHER], dynamics[TEACHER])


def test_a_share_of_clips_is_wholly_the_models_own():
    layout = LAYOUT.with_future_frames(4)
    first = sample_first_frames(4000, layout, OwnHistory(STILL, from_start=0.6), torch.device("cpu"))
    shares = torch.bincount(first, minlength=4) / len(first)
    torch.testing.assert_close(shares, torch.tensor([0.7, 0.1, 0.1, 0.1]), atol=0.03, rtol=0)


def test_the_still_code_is_the_zero_vector():
    codebook = torch.ones(5, 3)
    assert find_still_code(codebook) is None
    codebook[2] = 0
    assert find_still_code(codebook) == 2


# ---- runs


@pytest.fixture
def still_tokenizer(tiny_world_model, tmp_path):
    folder = tmp_path / "still"
    shutil.copytree(tiny_world_model / "tokenizer", folder)
    weights = load_file(folder / TOKENIZER_WEIGHTS)
    weights["dynamics_quantize.embedding.weight"][0] = 0
    save_file(weights, folder / TOKENIZER_WEIGHTS, metadata={"format": "pt"})
    return folder


@pytest.fixture
def command(gpt_command, still_tokenizer):
    argv = [*without(gpt_command, "--pretrained_model_name_or_path"), "--history", "own", "--action_conditioned"]
    return [*argv, "--pretrained_model_name_or_path", str(still_tokenizer), "--reward_prediction"]


def test_a_run_resumes_to_the_bit(command, tmp_path):
    """First frames come from the generator that a checkpoint holds."""
    argv = [*command, "--history_rule", "expected_code", "--gradient_accumulation_steps", "2", "--max_train_steps", "3"]
    run = fit(build_gpt([*argv, "--checkpointing_steps", "1"]))
    lines = metrics_of(run)
    validation = [line for line in lines if line["split"] == "validation"]
    assert [line["step"] for line in validation] == [1, 3]
    assert all(line["own_history_ce"] > 0 for line in validation)
    resumed = tmp_path / "again" / run.name
    shutil.copytree(run, resumed)
    for step in (2, 3):
        shutil.rmtree(resumed / "checkpoints" / f"checkpoint_{step}")
    fit(build_gpt([*argv, "--output_dir", str(tmp_path / "again"), "--resume_from_checkpoint", "latest"]))
    assert metrics_of(resumed) == lines
    weights = load_file(resumed / "model.safetensors")
    assert all(torch.equal(tensor, weights[name]) for name, tensor in load_file(run / "model.safetensors").items())


def test_autocast_trains_all_weights(command):
    """Weights that autocast has rounded without gradient must not be used again with one."""
    argv = [*command, "--mixed_precision", "bf16", "--llama_attn_drop", "0", "--max_train_steps", "1"]
    trainer = build_gpt(argv)
    batch = trainer.next_tokens()
    trainer.training_loss(batch).total.backward()
    llm = language_model(trainer.transformer)
    assert llm.lm_head.weight.grad.norm() > 0
    own = {name: parameter.grad.clone() for name, parameter in llm.model.layers.named_parameters()}
    assert min(gradient.norm() for gradient in own.values()) > 0


def test_what_cannot_have_own_histories_says_so(gpt_command):
    with pytest.raises(UserError, match="train it with --still_weight"):
        build_gpt([*gpt_command, "--history", "own", "--max_train_steps", "1"])
