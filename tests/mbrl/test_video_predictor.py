"""The world model in the loop: alignment of actions and rewards, ranges of pixels, modes, what an update may change."""

import io
import shutil
from dataclasses import replace

import pytest
import torch

from ivideogpt.action_spaces import ActionSpace, ActionSpaces
from ivideogpt.errors import UserError
from ivideogpt.losses import LossTerms
from ivideogpt.metadata import ActionNormalization, ModelMetadata
from ivideogpt.pretrained import save_transformer
from ivideogpt.transformer import Sampling
from ivideogpt.world_model import WorldModel, symlog
from mbrl import build_video_predictor as build
from mbrl import video_predictor
from mbrl.build_video_predictor import build_video_predictor
from mbrl.replay.replay_buffer import Segments
from mbrl.settings import WorldModelConfig
from mbrl.video_predictor import comparison_video
from tests.mbrl.runs import SEGMENT_LENGTH
from tests.parity.formulas import actions as formula_actions
from tests.parity.formulas import clip, golden
from tests.parity.networks import golden_tokenizer, llama_config, transformer

CPU = torch.device("cpu")


@pytest.fixture
def predictor(config):
    """In float32 throughout, whatever the processor is fast in, like all that it is compared with here."""
    return build_video_predictor(config, CPU, seed=0)


def segments(batch: int = 2, length: int = SEGMENT_LENGTH, seed: int = 0) -> Segments:
    generator = torch.Generator().manual_seed(seed)
    return Segments(
        torch.randint(0, 256, (batch, length, 3, 64, 64), generator=generator, dtype=torch.uint8),
        torch.rand(batch, length, 4, generator=generator) * 2 - 1,
        torch.rand(batch, length, generator=generator) * 10,
    )


def starts(batch: int = 2) -> torch.Tensor:
    return segments(batch, 3).frames.flatten(1, 2)


def parameters_of(predictor) -> dict[str, torch.Tensor]:
    halves = {"tokenizer": predictor.tokenizer, "transformer": predictor.transformer}
    return {f"{half}.{name}": p.clone() for half, network in halves.items() for name, p in network.named_parameters()}


def changed(before: dict, after: dict) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


# ---- learning


def test_each_half_learns_by_its_own_update_and_codebooks_never(predictor):
    before = parameters_of(predictor)
    metrics = predictor.update_tokenizer(segments())
    after = parameters_of(predictor)
    assert {name.split(".")[0] for name in changed(before, after)} == {"tokenizer"}
    assert not [name for name in changed(before, after) if "quantize.embedding" in name]
    assert {"loss", "recon", "dyn_commit", "grad_norm"} <= metrics.keys()
    assert not [p for name, p in predictor.tokenizer.named_parameters() if "quantize" in name and p.grad is not None]

    metrics = predictor.update_transformer(segments())
    assert {name.split(".")[0] for name in changed(after, parameters_of(predictor))} == {"transformer"}
    assert {"ce", "reward", "grad_norm"} <= metrics.keys()
    assert not any(value.requires_grad for value in metrics.values())


def test_rewards_are_learned_from_the_action_that_led_on(predictor):
    """A counting episode: one step late, the first imagined reward would be that of the second action."""
    seen = {}
    given = segments()
    given = replace(given, rewards=torch.arange(SEGMENT_LENGTH).float().expand(2, -1))
    original = video_predictor.transformer_loss

    def spy(model, tokens, layout, actions, rewards, weight):
        seen.update(actions=actions, rewards=rewards)
        return original(model, tokens, layout, actions, rewards, weight)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(video_predictor, "transformer_loss", spy)
        with torch.no_grad():
            predicted = predicted_rewards(predictor, given)
        metrics = predictor.update_transformer(given)
    assert torch.equal(seen["actions"], given.actions)
    torch.testing.assert_close(seen["rewards"], symlog(given.rewards))
    # frame k of the future is reached by action t - 1 + k, whose reward is that of the same place
    expected = (predicted - symlog(torch.tensor([1.0, 2.0, 3.0]))).square().mean()
    torch.testing.assert_close(metrics["reward"], expected, atol=1e-4, rtol=1e-4)


def predicted_rewards(predictor, given: Segments) -> torch.Tensor:
    """(B, F) of the head, without dropout, which the test configuration has none of."""
    for layer in predictor.transformer.llm.model.layers:
        layer.self_attn.attention_dropout = 0.0
    tokens, _ = predictor.tokenizer.tokenize(given.frames.float() / 255, 2)
    _, rewards = predictor.transformer(input_ids=tokens, action=given.actions)
    return rewards.squeeze(-1)


def test_dropout_acts_in_updates_of_the_transformer_alone(predictor):
    """Left in training mode, every imagined future would be drawn from another network (fault 2)."""
    modes = []
    predictor.transformer.llm.model.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    predictor.tokenizer.encoder.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    predictor.update_transformer(segments())
    assert modes == [False, True]
    predictor.update_tokenizer(segments())
    assert modes[2:] == [False]
    assert not any(module.training for module in (*predictor.tokenizer.modules(), *predictor.transformer.modules()))


@pytest.mark.parametrize("half", ["tokenizer", "transformer"])
def test_a_bad_update_is_skipped_and_counted(predictor, half):
    """One NaN in a segment ended all imagination of a run hours later."""
    before = parameters_of(predictor)
    update, network = getattr(predictor, f"update_{half}"), getattr(predictor, half)
    with pytest.MonkeyPatch.context() as patch:
        total = sum(parameter.sum() for parameter in network.parameters() if parameter.requires_grad) * float("nan")
        patch.setattr(predictor, "_tokenizer_loss", lambda *_: LossTerms(total))
        patch.setattr(video_predictor, "transformer_loss", lambda *_: LossTerms(total))
        assert update(segments())["skipped_updates"] == 1
    assert not changed(before, parameters_of(predictor))
    assert update(segments())["skipped_updates"] == 0
    assert changed(before, parameters_of(predictor))


def test_updates_go_on_bit_for_bit(config, predictor):
    """Of both halves: models, moments and the choice of future frames."""
    predictor.update_tokenizer(segments())
    file = io.BytesIO()
    torch.save(predictor.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    again = build_video_predictor(config, torch.device("cpu"), seed=5)
    again.load_state_dict(state)
    for one in (predictor, again):
        torch.manual_seed(3)  # dropout
        for seed in range(2):
            one.update_tokenizer(segments(seed=seed))
            one.update_transformer(segments(seed=seed))
    assert not changed(parameters_of(predictor), parameters_of(again))


# ---- imagining


def test_the_policy_sees_stacks_as_in_reality(predictor):
    """In [0, 1] it would act on a nearly blank picture (fault 19)."""
    seen = []

    def act(stacks):
        seen.append(stacks.clone())
        return torch.full((2, 4), 0.1 * len(seen))

    begun = starts()
    imagined = predictor.imagine(begun, act, horizon=3, seed=0)
    assert [stack.dtype for stack in seen] == [torch.uint8] * 3
    assert torch.equal(seen[0], begun)
    assert torch.equal(seen[1][:, :6], begun[:, 3:])
    assert torch.equal(seen[2][:, 3:6], seen[1][:, 6:])
    assert torch.equal(seen[1][:, 6:], imagined.frames[:, 1])
    assert imagined.frames.shape == (2, 4, 3, 64, 64)
    assert torch.equal(torch.cat([imagined.earlier, imagined.frames[:, :1]], dim=1).flatten(1, 2), begun)
    torch.testing.assert_close(imagined.action[0, :, 0], torch.tensor([0.0, 0.1, 0.2, 0.3]))
    assert (imagined.reward[:, 0] == 0).all()


def test_numbers_of_the_released_implementation(predictor):
    """``mbrl_rollout``: frames, which ours rounds to 8 bits, and rewards in the environment's units."""
    record = golden()["mbrl_rollout"]
    tok = golden_tokenizer()
    model = WorldModel(tok, transformer(tok, 4, reward_prediction=True, action_recon=0.5).eval())
    metadata = replace(model.metadata, symlog=True, generation=Sampling(greedy=True))
    predictor.model = WorldModel(model.tokenizer, model.transformer, metadata)
    begun = (clip(2, 3, 64, 64) * 255).round().clamp(0, 255).to(torch.uint8).flatten(1, 2)
    given = iter(formula_actions(2, record["horizon"], 4).unbind(1))
    imagined = predictor.imagine(begun, lambda _: next(given), record["horizon"], seed=0)
    torch.testing.assert_close(imagined.reward, torch.tensor(record["reward"]), atol=1e-3, rtol=1e-3)
    stored = torch.cat([imagined.earlier, imagined.frames], dim=1)
    stacks = [stored[:, row : row + 3].flatten(1, 2) for row in range(record["horizon"] + 1)]
    values = torch.stack(stacks, dim=1).flatten()[record["obs"]["at"]].float() / 255
    torch.testing.assert_close(values, torch.tensor(record["obs"]["values"]), atol=0.5 / 255 + 1e-4, rtol=0)


def test_a_model_that_gives_no_numbers_stops_imagination(predictor):
    """As 8-bit pixels NaN would be black, and go into the buffer."""
    with torch.no_grad():
        predictor.tokenizer.cond_decoder.conv_out.bias.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="NaN or infinity"):
        predictor.imagine(starts(), lambda stacks: torch.zeros(2, 4), horizon=2, seed=0)


def test_validation_compares_what_belongs_together(predictor):
    given = segments()
    metrics, videos = predictor.validate(given, seed=0)
    frames = given.frames.float() / 255
    rollout = predictor.model.predict(frames[:, :2], given.actions[:, 1:4], seed=0)
    assert metrics["frame_mse"] == pytest.approx((rollout.frames[:, 0] - frames[:, 2:]).square().mean().item())
    errors = (rollout.rewards[:, 0] - given.rewards[:, 1:4]).square().mean().item()
    assert metrics["reward_mse"] == pytest.approx(errors)
    assert [video.shape for video in videos] == [(3, 2 * 64 + 18, 2 * 3 * 64, 3)] * 2


def test_comparison_videos_show_truth_prediction_and_error():
    truth = torch.full((2, 8, 8, 3), 200, dtype=torch.uint8).numpy()
    video = comparison_video(truth, truth, [1.0, 2.0], [1.0, 2.0])
    assert (video[:, :16, :32] == 200).all()
    assert (video[:, :16, 32:] == 0).all()


# ---- where it starts


def test_from_scratch(config, tmp_path):
    (tmp_path / "config.json").write_text(llama_config().to_json_string())
    new = replace(config, load_pretrained_model=False, config_name=str(tmp_path))
    predictor = build_video_predictor(new, torch.device("cpu"), seed=0)
    assert (predictor.transformer.action_linear.weight == 0).all()
    again = build_video_predictor(new, torch.device("cpu"), seed=0)
    assert not changed(parameters_of(predictor), parameters_of(again))


def test_a_missing_checkpoint_is_named(config):
    for key in ("pretrained_model_name_or_path", "pretrained_transformer_path"):
        with pytest.raises(ValueError, match="no-such-model"):
            build_video_predictor(replace(config, **{key: "no-such-model"}), torch.device("cpu"), seed=0)


@pytest.mark.parametrize("key", ["pretrained_model_name_or_path", "pretrained_transformer_path"])
def test_where_the_published_checkpoint_would_be(config, key, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "here_or_in_project", lambda path: tmp_path / path)
    published = getattr(WorldModelConfig(), key)
    with pytest.raises(UserError, match=f"no checkpoint folder {published}: put the files of thuml/ivideogpt-oxe-64"):
        build_video_predictor(replace(config, **{key: published}), torch.device("cpu"), seed=0)


def test_one_robot_of_a_model_of_several(config, tmp_path):
    """Post-training has to encode the environment's actions as the model learned them, and to hand the spaces on."""
    spaces = ActionSpaces((ActionSpace("arm", 4, (1.0,) * 4, (2.0,) * 4), ActionSpace("hand", 3)))
    save_transformer(transformer(golden_tokenizer(), spaces.length, llama_config()), tmp_path / "transformer")
    metadata = ModelMetadata(64, 2, SEGMENT_LENGTH, action_dim=spaces.length, action_spaces=spaces)
    shutil.copytree(config.pretrained_model_name_or_path, tmp_path / "tokenizer")
    metadata.write(tmp_path)
    config = replace(config, pretrained_transformer_path=str(tmp_path / "transformer"), action_space="arm")
    predictor = build_video_predictor(config, CPU, seed=0)
    assert predictor.model.action_dim == 4
    assert predictor.model.metadata.action_spaces == spaces
    seen = {}
    predictor.transformer.action_linear.register_forward_hook(lambda _, given, __: seen.update(given=given[0]))
    predictor.update_transformer(batch := segments())
    expected = spaces.encode(batch.actions, "arm")[:, 1:-1]
    assert torch.allclose(seen["given"].float(), expected, atol=1e-2)
    with pytest.raises(UserError, match=r"hand \(3 numbers\): set it to 3"):
        build_video_predictor(replace(config, action_space="hand"), CPU, seed=0)


def test_the_transformer_s_folder_says_how_frames_are_drawn(config, tmp_path):
    """Bug prevented: a model that was trained here, in folders of its two runs, was sampled like a published one."""
    normalization = ActionNormalization((0.0,) * 4, (2.0,) * 4)
    stated = ModelMetadata(64, 2, action_dim=4, action_normalization=normalization, generation=Sampling(top_k=1))
    shutil.copytree(config.pretrained_transformer_path, tmp_path / "checkpoint-3")
    stated.write(tmp_path / "checkpoint-3")
    ours = replace(config, pretrained_transformer_path=str(tmp_path / "checkpoint-3"))
    metadata = build_video_predictor(ours, torch.device("cpu"), seed=0).model.metadata
    assert (metadata.generation, metadata.action_normalization) == (stated.generation, normalization)
    assert metadata.reward_prediction
    fresh = build_video_predictor(replace(ours, load_pretrained_model=False), torch.device("cpu"), seed=0)
    assert fresh.model.metadata.generation == Sampling()


def test_a_reward_head_keeps_its_space(config, predictor, tmp_path):
    """Bug prevented: rewards that were learned as they are come out as their exponentials."""
    save_transformer(predictor.transformer, tmp_path)
    ModelMetadata(64, 2, action_dim=4, reward_prediction=True, symlog=False).write(tmp_path)
    ours = replace(config, pretrained_transformer_path=str(tmp_path), load_internal_llm=False)
    message = r"world_model.symlog is true, but .* learned rewards without it: set it to false"
    with pytest.raises(UserError, match=message):
        build_video_predictor(ours, torch.device("cpu"), seed=0)
    build_video_predictor(replace(ours, symlog=False), torch.device("cpu"), seed=0)
    build_video_predictor(replace(ours, load_internal_llm=True), torch.device("cpu"), seed=0)  # with a new head


def test_a_new_tokenizer_needs_its_codebooks_trained(config, tmp_path, caplog):
    (tmp_path / "config.json").write_text(llama_config().to_json_string())
    new = replace(config, pretrained_model_name_or_path=None, load_pretrained_model=False, config_name=str(tmp_path))
    build_video_predictor(replace(new, selected_params=False), torch.device("cpu"), seed=0)
    assert "codebooks" not in caplog.text
    build_video_predictor(new, torch.device("cpu"), seed=0)
    assert "the codebooks of a new tokenizer stay random" in caplog.text


def test_the_optimizers_are_those_of_the_settings(config):
    settings = dict(tok_lr=1e-3, tok_wd=0.1, tok_beta1=0.5, tok_beta2=0.8, model_lr=1e-2, model_wd=0.2)
    predictor = build_video_predictor(replace(config, **settings), torch.device("cpu"), seed=0)
    (of_tokenizer,), of_transformer = (
        predictor._optimizers[half].param_groups for half in ("tokenizer", "transformer")
    )
    assert (of_tokenizer["lr"], of_tokenizer["weight_decay"], of_tokenizer["betas"]) == (1e-3, 0.1, (0.5, 0.8))
    assert {group["lr"] for group in of_transformer} == {1e-2}
    assert {group["weight_decay"] for group in of_transformer} <= {0.0, 0.2}
    assert max(group["weight_decay"] for group in of_transformer) == 0.2
    plain = build_video_predictor(config, torch.device("cpu"), seed=0)
    groups = [group for optimizer in plain._optimizers.values() for group in optimizer.param_groups]
    assert {group["weight_decay"] for group in groups} == {0.0}


def test_less_context_than_the_checkpoint_has(config):
    """One frame of context, where the file was made with two."""
    predictor = build_video_predictor(replace(config, context_length=1), torch.device("cpu"), seed=0)
    assert predictor.tokenizer.context_length == predictor.transformer.context == 1
    predictor.update_transformer(segments())
    assert predictor.imagine(starts(), lambda stacks: torch.zeros(len(stacks), 4), 2, seed=0).frames.shape[1] == 3


def test_the_perceptual_loss_is_not_left_out_in_silence(config, tmp_path, caplog):
    """Bug prevented: a world model of lesser quality than the paper's, for two files that were not there."""
    with pytest.raises(UserError, match=r"put vgg16-397923af.pth .* and vgg.pth .*: world_model.without_lpips=true"):
        build_video_predictor(replace(config, without_lpips=False), CPU, seed=0, lpips_path=tmp_path)
    assert build_video_predictor(config, CPU, seed=0)._tokenizer_loss.lpips is None
    assert "WITHOUT the perceptual loss, as world_model.without_lpips=true says" in caplog.text


def test_no_limit_of_gradients_and_the_dropout_of_the_architecture(config, tmp_path):
    """Null in the published configuration: gradients stay as they are, and dropout is what the architecture says."""
    llama = llama_config()
    llama.attention_dropout = 0.25
    (tmp_path / "config.json").write_text(llama.to_json_string())
    given = replace(config, config_name=str(tmp_path), llama_attn_drop=None)
    free = build_video_predictor(replace(given, max_grad_norm=None), CPU, seed=0)
    assert free.transformer.llm.config.attention_dropout == 0.25
    clipped = build_video_predictor(replace(given, max_grad_norm=0.01), CPU, seed=0)
    norms = {}
    for name, one in (("free", free), ("clipped", clipped)):
        torch.manual_seed(0)  # dropout
        metrics = one.update_transformer(segments())
        left = [parameter.grad for parameter in one.transformer.parameters() if parameter.grad is not None]
        norms[name] = metrics["grad_norm"].item(), torch.nn.utils.get_total_norm(left).item()
    assert norms["free"][0] == pytest.approx(norms["clipped"][0])
    assert norms["free"][1] == pytest.approx(norms["free"][0])
    assert norms["free"][0] > 0.1
    assert norms["clipped"][1] == pytest.approx(0.01, rel=1e-3)


def test_what_does_not_go_together_is_refused_at_once(config):
    with pytest.raises(
        UserError,
        match=r"is for 64 px, not 128: the environment's frames need another world_model.pretrained_model_name",
    ):
        build_video_predictor(config, torch.device("cpu"), seed=0, image_size=128)
    with pytest.raises(UserError, match=r"segment_length 400 takes \d+ tokens.*at most \d+ frames fit"):
        build_video_predictor(replace(config, segment_length=400), torch.device("cpu"), seed=0)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("max_grad_norm", 0.0, "must be more than 0"),
        ("max_grad_norm", -1.0, "must be more than 0"),
        ("tok_lr", -1e-4, "must be at least 0"),
        ("reward_weight", -1.0, "must be at least 0"),
        ("tok_beta1", 1.0, "must be less than 1"),
        ("llama_attn_drop", 1.5, "must be less than 1"),
    ],
)
def test_numbers_out_of_their_range(name, value, message):
    with pytest.raises(UserError, match=rf"world_model.{name} is {value}: it {message}"):
        WorldModelConfig(**{name: value})


def test_the_loss_does_not_change_in_the_middle_of_a_run(predictor):
    state = predictor.state_dict()
    with pytest.raises(UserError, match=r"with the perceptual loss: set world_model.without_lpips=false again"):
        predictor.load_state_dict(state | {"perceptual_loss": True})
    predictor.load_state_dict(state)
