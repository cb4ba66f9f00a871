"""Sessions against a naive loop that knows no cache: Hugging Face's forward on the whole sequence for every token."""

from __future__ import annotations

import copy
import gc
import inspect
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from ivideogpt import Sampling, Session, WorldModel
from ivideogpt import session as session_module
from ivideogpt.errors import UserError
from ivideogpt.metadata import ActionNormalization, ModelMetadata
from ivideogpt.precision import BFLOAT16_SWITCH
from ivideogpt.pretrained import build_transformer, language_model
from ivideogpt.transformer import HeadModelWithAction
from tests.parity.formulas import actions, assert_close, assert_record, clip, fill, golden
from tests.parity.networks import SEGMENT_LENGTH, golden_tokenizer, llama_config, tokenizer, world_model
from tests.transformer.naive_random import NaiveRandom

GREEDY = Sampling(greedy=True)
SAMPLED = Sampling(temperature=1.2, top_k=20)


@torch.no_grad()
def naive_rollout(
    model: WorldModel,
    context: Tensor,
    num_samples: int,
    num_frames: int,
    sampling: Sampling,
    random: NaiveRandom | None = None,
    action: Tensor | None = None,
) -> Tensor:
    """Tokens (B N, L) of ``num_frames`` future frames; ``action`` is (B N, F, D)."""
    llm, layout = language_model(model.transformer), model.layout
    with_dummy_future = torch.cat([context, context[:, -1:]], dim=1)
    ids, _ = model.tokenizer.tokenize(with_dummy_future, layout.context_frames)
    ids = ids[:, : layout.prompt_length].repeat_interleave(num_samples, dim=0)
    drawn = 0
    while ids.shape[1] < layout.with_future_frames(num_frames).sequence_length:
        is_separator = drawn % layout.step_length == layout.dynamics_tokens
        if is_separator and sampling.separators == "forced":
            new = ids.new_full((len(ids),), layout.future_separator)
        else:
            embeddings = llm.get_input_embeddings()(ids)
            for k, position in enumerate(range(layout.prompt_length - 1, ids.shape[1], layout.step_length)):
                if isinstance(model.transformer, HeadModelWithAction):
                    embeddings[:, position] += model.transformer.action_linear(action[:, k])
            logits = llm(inputs_embeds=embeddings, logits_to_keep=1).logits[:, -1]
            new = logits.argmax(-1) if sampling.greedy else random.token(logits, sampling)
        ids = torch.cat([ids, new[:, None]], dim=1)
        drawn += 1
    return ids


@torch.no_grad()
def naive_frames(model: WorldModel, tokens: Tensor) -> Tensor:
    """(B N, L) tokens to the future frames (B N, F, C, H, W)."""
    context_length = model.layout.context_frames
    return model.tokenizer.detokenize(tokens, context_length)[:, context_length:].clamp(0, 1)


def context_of(length: int, batch: int = 2) -> Tensor:
    return clip(batch, length, 64, 64).clamp(0, 1)


# ---- equality


@pytest.mark.parametrize(
    ("context_length", "action_dim", "sampling"),
    [(1, None, SAMPLED), (1, 4, GREEDY), (2, None, GREEDY), (2, 4, SAMPLED), (3, 4, GREEDY)],
)
def test_prediction_equals_the_naive_loop(context_length, action_dim, sampling):
    model = world_model(context_length, action_dim)
    context, horizon, num_samples = context_of(context_length), 2, 1 if sampling.greedy else 2
    action = None if action_dim is None else actions(2, horizon, action_dim)
    rollout = model.predict(context, action, horizon, num_samples, sampling=sampling, seed=7)

    per_sample = None if action is None else action.repeat_interleave(num_samples, dim=0)
    random = NaiveRandom(7, num_samples=num_samples)
    tokens = naive_rollout(model, context, num_samples, horizon, sampling, random, per_sample)
    assert torch.equal(rollout.tokens.flatten(0, 1), tokens)
    torch.testing.assert_close(rollout.frames.flatten(0, 1), naive_frames(model, tokens), atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        first_row = model.tokenizer.detokenize(tokens[::num_samples], context_length)[:, :context_length]
    torch.testing.assert_close(rollout.context, first_row.clamp(0, 1), atol=1e-4, rtol=1e-4)
    assert rollout.rewards is None


@pytest.mark.usefixtures("kernels")
def test_sampled_separators_equal_the_naive_loop():
    model = world_model()
    sampling = replace(SAMPLED, separators="sampled")
    rollout = model.predict(context_of(2), horizon=3, sampling=sampling, seed=1)
    tokens = naive_rollout(model, context_of(2), 1, 3, sampling, NaiveRandom(1))
    assert torch.equal(rollout.tokens.flatten(0, 1), tokens)
    torch.testing.assert_close(rollout.frames.flatten(0, 1), naive_frames(model, tokens), atol=1e-4, rtol=1e-4)


@pytest.mark.usefixtures("kernels")
def test_an_action_for_every_sample_equals_the_naive_loop():
    model = world_model(action_dim=4)
    action = actions(4, 2, 4)
    rollout = model.predict(context_of(2), action.unflatten(0, (2, 2)), num_samples=2, sampling=GREEDY)
    assert torch.equal(rollout.tokens.flatten(0, 1), naive_rollout(model, context_of(2), 2, 2, GREEDY, action=action))
    assert not torch.equal(rollout.tokens[:, 0], rollout.tokens[:, 1])


class NearestToTheMean:
    """Chooses the dynamics id nearest to the softmax's mean vector, as the naive loop's ``random``."""

    def __init__(self, model: WorldModel) -> None:
        self.vectors = model.tokenizer.dynamics_quantize.embedding.weight.double()
        self.first = model.layout.context_codes

    def token(self, logits: Tensor, sampling: Sampling) -> Tensor:
        of_dynamics = logits[:, self.first : self.first + len(self.vectors)].double() / sampling.temperature
        mean = of_dynamics.softmax(-1) @ self.vectors
        return self.first + (mean[:, None] - self.vectors).norm(dim=-1).argmin(-1)


def test_expected_codes_are_read_in_the_tokenizers_codebook_of_future_frames():
    """Vectors of the context codebook, or ids that begin at 0, would also give pictures. Nothing random is used up."""
    sampling = Sampling(temperature=0.5, rule="expected_code")
    model = world_model(generation=sampling)
    state = torch.get_rng_state()
    rollout = model.predict(context_of(2), horizon=2, num_samples=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(rollout.tokens[:, 0], rollout.tokens[:, 1])
    expected = naive_rollout(model, context_of(2), 1, 2, sampling, NearestToTheMean(model))
    assert torch.equal(rollout.tokens[:, 0], expected)


@pytest.mark.parametrize("goal_conditioned", [False, True], ids=["plain", "goal-first"])
def test_a_full_session_goes_on_from_its_last_frames(goal_conditioned):
    """Two frames fit. Afterwards the last t frames of each sample are the context; a goal stays in front of them."""
    model = world_model(action_dim=4, frames_that_fit=2, goal_conditioned=goal_conditioned)
    context, action = context_of(2, batch=1), actions(1, 5, 4)
    rollout = model.predict(context, action, num_samples=2, sampling=SAMPLED, seed=3)

    random, action = NaiveRandom(3, clips=[0], num_samples=2), action.repeat_interleave(2, dim=0)
    goal, recent, num_samples = context[:, :1].repeat_interleave(2, dim=0), context, 2
    expected = []
    for first in (0, 2, 4):
        num_frames = min(2, 5 - first)
        of_steps = action[:, first : first + num_frames]
        tokens = naive_rollout(model, recent, num_samples, num_frames, SAMPLED, random, of_steps)
        expected.append(naive_frames(model, tokens))
        recent, num_samples = expected[-1][:, -2:], 1
        if goal_conditioned:
            recent = torch.cat([goal, recent[:, -1:]], dim=1)
    torch.testing.assert_close(rollout.frames.flatten(0, 1), torch.cat(expected, dim=1), atol=1e-4, rtol=1e-4)
    assert rollout.tokens.shape == (1, 2, model.tokenizer.layout(5).sequence_length)


def test_stepping_equals_predicting(tiny_world_model, every_mode):
    """In the precision of any machine: passes of several frames and of one must round alike."""
    model = WorldModel.from_pretrained(tiny_world_model, dtype="auto")
    assert {model.tokenizer.dtype, language_model(model.transformer).dtype} == {every_mode}
    action = actions(1, 2, 4)
    rollout = model.predict(context_of(2, batch=1), action, num_samples=2, seed=5)
    session = model.start(context_of(2, batch=1), num_samples=2, seed=5)
    steps = [session.step(action[:, k]) for k in range(2)]
    assert torch.equal(torch.stack([step.frames for step in steps], dim=2), rollout.frames)
    assert torch.equal(session.context, rollout.context)
    assert torch.equal(
        torch.cat([session.prompt[:, None, :-1].expand(-1, 2, -1), *(step.tokens for step in steps)], dim=2),
        rollout.tokens,
    )


@pytest.mark.parametrize("reward_prediction", [False, True], ids=["plain", "reward head"])
def test_a_rewound_session_draws_the_same_again(reward_prediction):
    """A cache, a number of draws or a last frame that stayed behind would change what follows, also after sliding."""
    model = world_model(action_dim=4, frames_that_fit=3, reward_prediction=reward_prediction)
    action, options = actions(2, 5, 4), {"num_samples": 2, "sampling": SAMPLED, "seed": 1}
    expected = model.predict(context_of(2), action, **options).frames
    session = model.start(context_of(2), **options)
    marks = [session.mark()]
    for k in (0, 1):
        session.step(action[:, k])
        marks.append(session.mark())
    for mark, first in ((marks[1], 1), (marks[0], 0)):
        session.rewind(mark)
        session.step(-action[:, first])
        session.rewind(mark)
        again = [session.step(action[:, k]).frames for k in range(first, 3)]
        assert torch.equal(torch.stack(again, dim=2), expected[:, :, first:3])
    rest = [session.step(action[:, k]).frames for k in (3, 4)]
    assert torch.equal(torch.stack(rest, dim=2), expected[:, :, 3:])
    assert not session.can_rewind(marks[1])
    with pytest.raises(UserError, match="a context was read since this mark"):
        session.rewind(marks[1])


def test_marks_end_where_the_session_went_another_way():
    """Searches go back and forth: behind a mark of the branch that was left, the cache holds another branch's past."""
    model, action = world_model(action_dim=4), actions(1, 2, 4)
    session = model.start(context_of(2, batch=1), seed=1)
    root = session.mark()
    session.step(action[:, 0])
    left = session.mark()
    session.rewind(left)
    session.rewind(root)
    assert not session.can_rewind(left)
    session.step(action[:, 1])
    with pytest.raises(UserError, match="went another way"):
        session.rewind(left)
    session.rewind(root)


def test_frames_belong_to_whoever_gets_them():
    """A reward function that scales in place, or a buffer that is filled again, would change what the model sees."""
    model, action = world_model(action_dim=4, frames_that_fit=1), actions(1, 3, 4)
    expected = model.predict(context_of(2, batch=1), action, seed=1).frames
    context = context_of(2, batch=1)
    session = model.start(context, seed=1)
    context.zero_()
    for k in range(3):
        frames = session.step(action[:, k]).frames
        assert torch.equal(frames, expected[:, :, k])
        frames.zero_()


@pytest.mark.parametrize("value", ["yes", "2"])
def test_a_mistyped_precision_switch_is_an_error(value, tiny_world_model, monkeypatch):
    """Read as "no" it would change results in silence."""
    monkeypatch.setenv(BFLOAT16_SWITCH, value)
    with pytest.raises(UserError, match=f"IVIDEOGPT_BFLOAT16 is '{value}', expected 1"):
        WorldModel.from_pretrained(tiny_world_model, dtype="auto")


def test_rollout_of_the_released_reinforcement_learning_code():
    """``mbrl_rollout`` of the golden numbers: three stacked frames, rewards predicted in symlog space."""
    record = golden()["mbrl_rollout"]
    tok = golden_tokenizer()
    config = golden()["transformer"]["ctx2"]["act_cond"]
    transformer = build_transformer(
        llama_config(),
        tok.layout(future_frames=4),
        config["action_dim"],
        reward_prediction=True,
        action_recon=config["action_recon_weight"],
    )
    model = WorldModel(tok, fill(transformer))
    model.metadata = replace(model.metadata, symlog=True)
    stack = (clip(record["B"], 3, 64, 64) * 255).round() / 255
    action = actions(record["B"], record["horizon"], config["action_dim"])
    rollout = model.predict(stack[:, 1:], action, sampling=GREEDY)

    frames = torch.cat([stack, rollout.frames[:, 0]], dim=1)
    observations = [frames[:, k : k + 3].flatten(1, 2) for k in range(record["horizon"] + 1)]
    assert_record(torch.stack(observations, dim=1), record["obs"])
    assert_close(rollout.rewards[:, 0], torch.tensor(record["reward"])[:, 1:])


# ---- state


def test_modes_are_restored_and_dropout_is_off():
    """In training mode the released models rolled out with dropout on."""
    model = world_model(action_dim=4)
    model.tokenizer.train()
    model.tokenizer.cond_encoder.eval()
    model.transformer.train()
    modules = [*model.tokenizer.modules(), *model.transformer.modules()]
    modes = [module.training for module in modules]
    noisy = model.predict(context_of(2), actions(2, 2, 4), sampling=GREEDY)
    assert [module.training for module in modules] == modes
    model.tokenizer.eval()
    model.transformer.eval()
    quiet = model.predict(context_of(2), actions(2, 2, 4), sampling=GREEDY)
    assert torch.equal(noisy.frames, quiet.frames)


def test_a_mode_is_restored_after_an_error():
    model = world_model()
    model.tokenizer.train()
    session = model.start(context_of(2))
    model.tokenizer.decode_dynamics = lambda *_: 1 / 0
    with pytest.raises(ZeroDivisionError):
        session.step()
    assert model.tokenizer.training


def test_sessions_of_one_model_do_not_disturb_each_other():
    model = world_model(action_dim=4)
    alone = model.predict(context_of(2), actions(2, 2, 4), sampling=GREEDY)
    first = model.start(context_of(2), sampling=GREEDY)
    second = model.start(1 - context_of(2), num_samples=2, sampling=SAMPLED)
    frames = []
    for k in range(2):
        frames.append(first.step(actions(2, 2, 4)[:, k]).frames)
        second.step(actions(2, 2, 4)[:, k])
    assert torch.equal(torch.stack(frames, dim=2), alone.frames)


def test_a_session_leaves_nothing_on_the_modules():
    model = world_model(action_dim=4)
    modules = dict(model.tokenizer.named_modules()) | dict(model.transformer.named_modules())
    before = {name: set(vars(module)) for name, module in modules.items()}
    rollout = model.predict(context_of(2), actions(2, 2, 4))
    assert {name: set(vars(module)) for name, module in modules.items()} == before
    assert not rollout.frames.requires_grad


def test_a_session_sees_weights_that_were_trained_since_the_last():
    model = world_model(action_dim=4)
    before = model.predict(context_of(2), actions(2, 1, 4), sampling=GREEDY)
    with torch.no_grad():
        for parameter in model.transformer.parameters():
            parameter.data.copy_(parameter.flip(0))
    after = model.predict(context_of(2), actions(2, 1, 4), sampling=GREEDY)
    assert not torch.equal(before.tokens, after.tokens)


@pytest.mark.parametrize("seed", [3, "generator"])
def test_seeds(seed):
    model = world_model()

    def predict(number: int, global_seed: int) -> Tensor:
        torch.manual_seed(global_seed)
        source = torch.Generator().manual_seed(number) if seed == "generator" else number
        return model.predict(context_of(2, batch=1), horizon=1, num_samples=2, seed=source).tokens

    assert torch.equal(predict(3, 0), predict(3, 1))
    assert not torch.equal(predict(3, 0), predict(4, 0))


def test_without_a_seed_the_global_generator_decides():
    model = world_model()

    def predict(global_seed: int) -> Tensor:
        torch.manual_seed(global_seed)
        return model.predict(context_of(2, batch=1), horizon=1).tokens

    assert torch.equal(predict(1), predict(1))
    assert not torch.equal(predict(1), predict(2))


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("reward_prediction", [True, False])
def test_a_session_may_enter_and_leave_inference_mode(inside, reward_prediction):
    """One prediction inside used to break the model for good, and a session could not change sides."""
    model = world_model(action_dim=4, reward_prediction=reward_prediction)
    action = actions(2, 2, 4)
    expected = model.predict(context_of(2), action, num_samples=2, sampling=GREEDY)
    with torch.inference_mode(inside):
        session = model.start(context_of(2), num_samples=2, sampling=GREEDY)
        steps = [session.step(action[:, 0])]
    with torch.inference_mode(not inside):
        steps.append(session.step(action[:, 1]))
        session.reset_rows(torch.tensor([True, False]), context_of(2)[:1])
        anew = session.step(action[:, 0])
    assert torch.equal(torch.stack([step.frames for step in steps], dim=2), expected.frames)
    torch.testing.assert_close(anew.frames[:1], expected.frames[:1, :, 0], atol=1e-4, rtol=1e-4)
    assert torch.equal(model.predict(context_of(2), action, num_samples=2, sampling=GREEDY).frames, expected.frames)


# ---- shapes, units, defaults


def test_shapes_and_range():
    model = world_model(action_dim=4, reward_prediction=True)
    rollout = model.predict(context_of(2), actions(2, 3, 4), num_samples=2)
    assert rollout.context.shape == (2, 2, 3, 64, 64)
    assert rollout.frames.shape == (2, 2, 3, 3, 64, 64)
    assert rollout.rewards.shape == (2, 2, 3)
    assert rollout.tokens.shape == (2, 2, model.tokenizer.layout(3).sequence_length)
    for frames in (rollout.context, rollout.frames):
        assert frames.dtype == torch.float32
        assert frames.amin() >= 0
        assert frames.amax() <= 1
    step = model.start(context_of(2), num_samples=2).step(torch.zeros(2, 4))
    assert step.frames.shape == (2, 2, 3, 64, 64)
    assert step.reward.shape == (2, 2)
    assert step.tokens.shape == (2, 2, 17)


@pytest.mark.parametrize("reward_prediction", [False, True])
def test_successes_are_the_head_s_probabilities(reward_prediction, tmp_path):
    """Of the frame that has arrived, as its reward is; the head changes no token, and is saved and loaded."""
    plain = world_model(action_dim=4, reward_prediction=reward_prediction)
    model = world_model(action_dim=4, reward_prediction=reward_prediction, success_prediction=True)
    model.save_pretrained(tmp_path)
    model = WorldModel.from_pretrained(tmp_path)
    assert model.metadata.success_prediction
    context, taken = context_of(2), actions(2, 3, 4)
    rollout, without = (each.predict(context, taken, sampling=GREEDY) for each in (model, plain))
    assert torch.equal(rollout.tokens, without.tokens)
    assert (rollout.rewards is not None) == reward_prediction
    assert without.successes is None
    whole = torch.cat([torch.zeros(2, 1, 4), taken], dim=1)
    with torch.no_grad():
        outputs = model.transformer(rollout.tokens[:, 0], action=whole)
    logits = (outputs[0] if reward_prediction else outputs).success_logits
    torch.testing.assert_close(rollout.successes[:, 0], logits[..., 0].sigmoid(), atol=1e-4, rtol=1e-4)
    assert rollout.successes.std() > 0
    step = model.start(context, num_samples=2).step(taken[:, 0])
    assert step.success.shape == (2, 2)


def test_horizon_defaults():
    free, conditioned = world_model(), world_model(action_dim=4)
    assert free.predict(context_of(2), sampling=GREEDY).frames.shape[2] == SEGMENT_LENGTH - 2
    assert conditioned.predict(context_of(2), actions(2, 1, 4)).frames.shape[2] == 1


def test_rewards_come_in_environment_units():
    raw, in_symlog = (world_model(action_dim=4, reward_prediction=True, symlog=symlog) for symlog in (False, True))
    rewards, expanded = (
        model.predict(context_of(2), actions(2, 2, 4), sampling=GREEDY).rewards for model in (raw, in_symlog)
    )
    torch.testing.assert_close(expanded, rewards.sign() * (rewards.abs().exp() - 1))


def test_actions_are_normalised_as_in_training():
    plain = world_model(action_dim=4)
    scaled = world_model(action_dim=4, action_normalization=ActionNormalization((1.0,) * 4, (2.0,) * 4))
    expected = plain.predict(context_of(2), actions(2, 2, 4), sampling=GREEDY)
    actual = scaled.predict(context_of(2), 1 + 2 * actions(2, 2, 4), sampling=GREEDY)
    assert torch.equal(actual.tokens, expected.tokens)


def test_a_model_that_has_predicted_can_be_copied():
    """Bug prevented: compiled kernels, which the first prediction opens, belong to a process and cannot be pickled."""
    model = world_model(action_dim=4)
    expected = model.predict(context_of(2), actions(2, 2, 4), sampling=GREEDY)
    unpickled = pickle.loads(pickle.dumps(model))  # noqa: S301
    for copied in (copy.deepcopy(model), unpickled):
        assert torch.equal(copied.predict(context_of(2), actions(2, 2, 4), sampling=GREEDY).tokens, expected.tokens)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"goal_conditioned": True, "context_length": 1}, "goal_conditioned needs a context_length of at least 2"),
        ({"action_normalization": ActionNormalization((0.0,) * 4, (1.0, 1.0, 1.0, 0.0))}, "has a std of 0 or less"),
    ],
)
def test_metadata_that_mean_nothing_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        ModelMetadata(**({"resolution": 64, "context_length": 2, "action_dim": 4} | change))


def test_the_checkpoints_own_sampling_is_the_default():
    model = world_model(generation=GREEDY)
    assert torch.equal(model.predict(context_of(2)).tokens, model.predict(context_of(2), sampling=GREEDY).tokens)


def test_memory_is_reserved_for_what_is_asked():
    model = world_model()
    session = model.start(context_of(2), max_frames=2, sampling=GREEDY)
    assert session._decoder.cache.capacity == model.tokenizer.layout(2).sequence_length
    assert model.start(context_of(2))._decoder.cache.capacity == 1024


def test_signatures_that_other_code_relies_on():
    assert list(inspect.signature(WorldModel.from_pretrained).parameters)[:3] == ["path_or_hub_id", "device", "dtype"]
    start, predict = (list(inspect.signature(method).parameters) for method in (WorldModel.start, WorldModel.predict))
    assert start[:3] == ["self", "context", "num_samples"]
    assert predict[:5] == ["self", "context", "actions", "horizon", "num_samples"]
    assert list(inspect.signature(Session.step).parameters) == ["self", "action"]


# ---- bad input


def test_a_session_that_may_not_slide_says_when_it_is_full():
    model = world_model(frames_that_fit=2)
    session = model.start(context_of(2), on_full="error")
    session.step()
    session.step()
    with pytest.raises(ValueError, match="1 more frames do not fit, 0 do"):
        session.step()
    with pytest.raises(ValueError, match="3 more frames do not fit, 2 do"):
        model.predict(context_of(2), horizon=3, on_full="error")


@pytest.mark.parametrize(("context_length", "frames_that_fit"), [(2, 0), (4, None)])
def test_a_context_that_leaves_no_position_is_refused(context_length, frames_that_fit):
    """Four context frames alone are 1028 tokens."""
    model = world_model(context_length, frames_that_fit=frames_that_fit)
    with pytest.raises(UserError, match=f"not one frame fits after {context_length} context frames"):
        model.start(context_of(context_length))


def frames_with(value: float) -> Tensor:
    frames = context_of(2)
    frames[0, 0, 0, 0, 0] = value
    return frames


@pytest.mark.parametrize(
    ("action_dim", "call", "message"),
    [
        (None, lambda m: m.start(context_of(3)), r"\(2, 3, 3, 64, 64\), expected .* 2, 3, 64, 64\)"),
        (None, lambda m: m.start(context_of(2)[0]), "expected"),
        (None, lambda m: m.start(context_of(2)[..., :32]), "expected"),
        (None, lambda m: m.start((context_of(2) * 255).byte()), "divide 8-bit frames by 255"),
        (None, lambda m: m.start(context_of(2) * 255), r"lie in \[0.02\d*, 254.\d*\], expected floats in \[0, 1\]"),
        (None, lambda m: m.start(frames_with(float("nan"))), "NaN"),
        (None, lambda m: m.start(context_of(2), num_samples=0), "num_samples is 0"),
        (None, lambda m: m.start(context_of(2), on_full="stop"), "on_full is 'stop'"),
        (None, lambda m: m.start(context_of(2), max_frames=0), "max_frames is 0"),
        (None, lambda m: m.predict(context_of(2), actions(2, 2, 4)), "action-free"),
        (None, lambda m: m.predict(context_of(2), horizon=0), "horizon is 0"),
        (4, lambda m: m.predict(context_of(2)), "action-conditioned"),
        (4, lambda m: m.predict(context_of(2), actions(2, 2, 3)), r"shape \(2, 2, 3\), expected \(2, 2, 4\)"),
        (4, lambda m: m.predict(context_of(2), actions(3, 2, 4)), r"shape \(3, 2, 4\), expected \(2, 2, 4\)"),
        (
            4,
            lambda m: m.predict(context_of(2), actions(2, 2, 4), horizon=3),
            r"shape \(2, 2, 4\), expected \(2, 3, 4\)",
        ),
        (4, lambda m: m.predict(context_of(2), actions(2, 2, 4)[0]), r"shape \(2, 4\), expected"),
        (4, lambda m: m.predict(context_of(2), actions(2, 2, 4) / 0), "NaN"),
        (4, lambda m: m.predict(context_of(2)[0], actions(1, 2, 4)), r"context frames have shape \(2, 3, 64, 64\)"),
        (4, lambda m: m.start(context_of(2), 3).step(torch.zeros(2, 2, 4)), r"expected \(2, 4\) or, .* \(2, 3, 4\)"),
        (4, lambda m: m.start(context_of(2)).step(), "action-conditioned"),
        (4, lambda m: m.start(context_of(2)[:0]), "expected"),
        (4, lambda m: m.start(context_of(2), sampling=Sampling(separators="sampled")), "action-free models"),
    ],
)
def test_misuse_says_what_was_expected(action_dim, call, message):
    with pytest.raises(ValueError, match=message):
        call(world_model(action_dim=action_dim))


def test_parts_that_do_not_belong_together_are_refused():
    free, conditioned = world_model(), world_model(action_dim=4)
    other = fill(build_transformer(llama_config(), replace(free.layout, dynamics_codes=64)))
    with pytest.raises(ValueError, match="vocabulary is 130, the tokenizer's 114"):
        WorldModel(free.tokenizer, other)
    with pytest.raises(ValueError, match="metadata"):
        WorldModel(free.tokenizer, free.transformer, conditioned.metadata)
    with pytest.raises(ValueError, match=r"resolution, context_length, action_dim = \(128, 2, None\)"):
        WorldModel(free.tokenizer, free.transformer, replace(free.metadata, resolution=128))
    with pytest.raises(ValueError, match="2 context frames, the tokenizer 1"):
        WorldModel(tokenizer(context_length=1), conditioned.transformer)
    assert isinstance(WorldModel(free.tokenizer, free.transformer).metadata, ModelMetadata)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu():
    """Context and actions may come from anywhere; results stay on the device and repeat by seed."""
    model = world_model(action_dim=4, reward_prediction=True).to("cuda")
    first, second = (model.predict(context_of(2), actions(2, 2, 4), num_samples=2, seed=1) for _ in range(2))
    assert first.frames.device.type == first.rewards.device.type == "cuda"
    assert torch.equal(first.tokens, second.tokens)


def test_frames_that_are_not_wanted_are_not_kept():
    """A session that slides decodes them for itself; planners over a long horizon held all of them."""
    model = world_model(action_dim=4, frames_that_fit=2, reward_prediction=True)
    rollout = model.predict(context_of(2, 1), actions(1, 4, 4), with_frames=False)
    assert rollout.frames.shape == (1, 1, 4, 0, 64, 64)
    with pytest.raises(UserError, match="actions are ndarray, expected a tensor"):
        model.start(context_of(2)).step(np.zeros((1, 4)))
    with pytest.raises(UserError, match="context frames are ndarray, expected a tensor"):
        model.start(np.zeros((1, 2, 3, 64, 64)))


# ---- rows of a session


@pytest.mark.parametrize("num_samples", [1, 2])
def test_clips_begin_anew_one_by_one(num_samples):
    """Two frames fit: the clip that began anew slides later than its neighbour, and neither notices the other."""
    model = world_model(action_dim=4, frames_that_fit=2, reward_prediction=True)
    first, second, third = context_of(2, batch=3).split(1)
    action = actions(2, 4, 4)
    session = model.start(torch.cat([first, second]), num_samples, sampling=GREEDY)
    steps = [session.step(action[:, 0])]
    session.reset_rows(torch.tensor([False, True]), third)
    steps += [session.step(action[:, k]) for k in range(1, 4)]

    undisturbed = model.predict(first, action[:1], num_samples=num_samples, sampling=GREEDY)
    anew = model.predict(third, action[1:, 1:], num_samples=num_samples, sampling=GREEDY)
    frames, rewards = (torch.stack([getattr(step, name) for step in steps], dim=2) for name in ("frames", "reward"))
    close = {"atol": 1e-4, "rtol": 1e-4}
    torch.testing.assert_close(frames[:1], undisturbed.frames, **close)
    torch.testing.assert_close(frames[1:, :, 1:], anew.frames, **close)
    torch.testing.assert_close(rewards[1:, :, 1:], anew.rewards, **close)
    torch.testing.assert_close(session.context, torch.cat([undisturbed.context, anew.context]), **close)
    assert session.prompt.shape == (2, model.layout.prompt_length)


@pytest.mark.parametrize("before_sliding", [True, False])
def test_dropped_clips_change_nothing_for_the_others(before_sliding):
    model = world_model(action_dim=4, frames_that_fit=2)
    context, action = context_of(2, batch=3), actions(3, 5, 4)
    expected = model.predict(context, action, num_samples=2, sampling=SAMPLED, seed=4).frames
    session = model.start(context, 2, sampling=SAMPLED, seed=4)
    num_steps = 1 if before_sliding else 3
    for k in range(num_steps):
        session.step(action[:, k])
    session.drop_rows(torch.tensor([True, False, False]))
    frames = torch.stack([session.step(action[1:, k]).frames for k in range(num_steps, 5)], dim=2)
    torch.testing.assert_close(frames, expected[1:, :, num_steps:], atol=1e-4, rtol=1e-4)


def test_what_a_clip_draws_depends_on_its_number_alone():
    """Evaluations in batches of any size, on any number of processes, give the same samples."""
    model = world_model()
    context = context_of(2, batch=3)
    together = model.predict(context, horizon=2, num_samples=3, sampling=SAMPLED, seed=2, clip_numbers=[10, 11, 12])
    alone = model.predict(context[1:2], horizon=2, num_samples=2, sampling=SAMPLED, seed=2, clip_numbers=[11])
    assert torch.equal(together.tokens[1:2, :2], alone.tokens)


def test_deterministic_futures_leave_the_global_generator_alone():
    model = world_model()
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    model.predict(context_of(2), horizon=1, sampling=GREEDY)
    assert torch.equal(torch.rand(1), expected)


def test_a_refused_reset_changes_nothing():
    session = world_model().start(context_of(2), sampling=replace(SAMPLED, separators="sampled"))
    before = session.prompt.clone()
    with pytest.raises(UserError, match="separators='sampled'"):
        session.reset_rows(torch.tensor([True, False]), 1 - context_of(2, batch=1))
    assert torch.equal(session.prompt, before)


def test_numbers_of_any_library_are_seeds():
    model = world_model()
    expected, actual = (model.predict(context_of(2), horizon=1, seed=seed).tokens for seed in (3, np.int64(3)))
    assert torch.equal(actual, expected)


def test_masks_that_do_not_fit_are_refused():
    session = world_model(action_dim=4).start(context_of(2))
    with pytest.raises(UserError, match=r"expected bool of shape \(2,\)"):
        session.reset_rows(torch.tensor([True]), context_of(2, batch=1))
    with pytest.raises(UserError, match=r"expected .* = \(1, 2, 3, 64, 64\)"):
        session.reset_rows(torch.tensor([True, False]), context_of(2, batch=2))
    with pytest.raises(UserError, match="would leave no clip"):
        session.drop_rows(torch.tensor([True, True]))
    with pytest.raises(UserError, match="1 clip_numbers were given for 2 clips"):
        world_model().start(context_of(2), clip_numbers=[3])


def test_many_frames_are_decoded_in_parts(monkeypatch):
    model = world_model()
    expected = model.predict(context_of(2), horizon=2, num_samples=3, sampling=GREEDY)
    monkeypatch.setitem(session_module.PIXELS_AT_ONCE, "cpu", 2 * 64**2)
    in_parts = model.predict(context_of(2), horizon=2, num_samples=3, sampling=GREEDY)
    torch.testing.assert_close(in_parts.frames, expected.frames, atol=1e-5, rtol=1e-5)


def test_a_long_session_takes_no_more_memory_than_a_short_one():
    """Over many slides, with samples that part and clips that begin anew."""
    model = world_model(action_dim=4, frames_that_fit=2)
    session = model.start(context_of(2), num_samples=2, sampling=SAMPLED, seed=0)

    def tensor_bytes_after(num_steps: int) -> int:
        for _ in range(num_steps):
            session.step(torch.zeros(2, 4))
        session.reset_rows(torch.tensor([True, False]), context_of(2, batch=1))
        gc.collect()
        return sum(item.untyped_storage().nbytes() for item in gc.get_objects() if type(item) is Tensor)

    tensor_bytes_after(3)
    after_few = tensor_bytes_after(5)
    assert tensor_bytes_after(11) <= after_few
