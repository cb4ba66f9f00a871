"""Transformer training from beginning to end on a tiny model."""

import errno
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file, save_file

from ivideogpt.data import catalog
from ivideogpt.data.tokens.token_store import TokenBatch, TokenStore
from ivideogpt.errors import UserError
from ivideogpt.layout import TokenLayout
from ivideogpt.metadata import ActionNormalization
from ivideogpt.metrics.frame_metrics import frame_psnr
from ivideogpt.pretrained import load_transformer, save_transformer
from ivideogpt.training import export
from ivideogpt.training.common.checkpoints import Checkpoints, SaveError
from ivideogpt.training.common.optim import weight_decay_groups
from ivideogpt.training.transformer import sampled_validation, tokenize_command
from ivideogpt.training.transformer.trainer import GptTrainer, accuracy
from ivideogpt.world_model import WorldModel
from tests.data.synthetic import write_episode
from tests.metrics.test_fvd import StandIn
from tests.parity.networks import tokenizer, transformer, world_model
from tests.training.runs import build_gpt, fit, metrics_of, without

STEPS = 4
WITH_ACTIONS = ["--action_conditioned", "--reward_prediction", "--action_recon", "0.1"]


@pytest.fixture
def seedless_command(gpt_command):
    """The run draws its own seed."""
    return [*without(gpt_command, "--seed"), *WITH_ACTIONS, "--max_train_steps", str(STEPS)]


@pytest.fixture
def finished_run(seedless_command):
    return fit(build_gpt([*seedless_command, "--checkpointing_steps", "1"]))


def test_run_resume_and_use(finished_run, seedless_command, tiny_world_model, tmp_path):
    """One life of a run: it leaves what is documented, resumes to the bit, and its result is a world model."""
    lines = metrics_of(finished_run)
    assert [line["step"] for line in lines if line["split"] == "validation"] == [1, 3, 4]
    last = lines[-1]
    assert last["loss"] == pytest.approx(last["ce"] + last["reward"] + 0.1 * last["action_recon"], rel=1e-4)
    assert last["perplexity"] == pytest.approx(math.exp(last["ce"]))
    assert 0 <= last["accuracy"] <= 1
    assert (finished_run / "images" / "validation-0000003.png").is_file()
    assert (finished_run / "checkpoints" / "checkpoint_2" / "model.safetensors").is_file()

    interrupted = tmp_path / "again" / finished_run.name
    shutil.copytree(finished_run, interrupted)
    for step in (3, 4):
        shutil.rmtree(interrupted / "checkpoints" / f"checkpoint_{step}")
    argv = [*seedless_command, "--output_dir", str(tmp_path / "again")]
    resumed = fit(build_gpt([*argv, "--resume_from_checkpoint", "latest"]))
    assert resumed == interrupted
    assert metrics_of(resumed) == lines
    weights = [load_file(run / "model.safetensors") for run in (finished_run, resumed)]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())

    folders = [
        "--tokenizer",
        str(tiny_world_model),
        "--transformer",
        str(finished_run),
        "--output",
        str(tmp_path / "m"),
    ]
    export.main([*folders, "--dtype", "float16", "--sampling_rule", "expected_code"])
    model = WorldModel.from_pretrained(tmp_path / "m")
    assert model.metadata.segment_length == 4
    assert model.metadata.reward_prediction
    assert model.metadata.generation.rule == "expected_code"
    rollout = model.predict(torch.rand(1, 2, 3, 64, 64), torch.rand(1, 2, 4))
    assert rollout.frames.shape == (1, 1, 2, 3, 64, 64)
    assert rollout.rewards.shape == (1, 1, 2)


def test_a_success_head_learns_from_pixels_and_stores_alike(gpt_command, clips, tiny_world_model, tmp_path):
    """It is trained like the reward head, and every success belongs to the frame of its action."""
    for path in (clips / "squares").iterdir():
        with np.load(path) as episode:
            write_episode(tmp_path / "data" / "squares" / path.name, **episode, success=episode["action"][:, 0] > 0)
    argv = [*without(gpt_command, "--dataset_path"), "--action_conditioned", "--success_prediction"]
    argv += ["--max_train_steps", "2"]
    pixels = ["--dataset_path", str(tmp_path / "data")]
    run = fit(build_gpt([*argv, *pixels]))
    last = metrics_of(run)[-1]
    assert last["loss"] == pytest.approx(last["ce"] + last["success"], rel=1e-4)
    assert {"success_linear.weight", "success_linear.bias"} <= load_file(run / "model.safetensors").keys()
    with pytest.raises(UserError, match="no array 'success'"):
        build_gpt([*argv, "--dataset_path", str(clips)])

    model = ["--pretrained_model_name_or_path", str(tiny_world_model)]
    for split in ("train", "test"):
        output = ["--split", split, "--output", str(tmp_path / split), "--device", "cpu"]
        tokenize_command.main([*model, *pixels, "--segment_length", "4", "--stride", "3", *output])
    store = TokenStore(tmp_path / "train")
    batch = store.read(np.arange(len(store)))
    assert torch.equal(batch.successes, (batch.actions[..., 0] > 0).float())
    stores = ["--token_store", str(tmp_path / "train"), "--eval_token_store", str(tmp_path / "test")]
    argv = without(argv, "--oxe_data_mixes_type", "--dataloader_num_workers")
    assert metrics_of(fit(build_gpt([*argv, *stores])))[-1]["success"] > 0


def test_a_model_of_fewer_context_frames_than_its_tokenizer_is_exported(gpt_command, tiny_world_model, tmp_path):
    """Bug prevented: training shrinks the tokenizer, export read it as it was and refused what was trained."""
    run = fit(build_gpt([*gpt_command, "--context_length", "1", "--max_train_steps", "1"]))
    export.main(["--tokenizer", str(tiny_world_model), "--transformer", str(run), "--output", str(tmp_path / "model")])
    model = WorldModel.from_pretrained(tmp_path / "model")
    assert model.metadata.context_length == model.tokenizer.context_length == 1
    assert model.predict(torch.rand(1, 1, 3, 64, 64), horizon=2).frames.shape[2] == 2


def test_token_store_in_place_of_pixels(gpt_command, clips, tiny_world_model, tmp_path):
    """A store of other clips, or made by another tokenizer, would train a transformer that fits nothing."""
    tokens = ["--pretrained_model_name_or_path", str(tiny_world_model), "--dataset_path", str(clips)]
    for split in ("train", "test"):
        output = ["--split", split, "--output", str(tmp_path / split), "--device", "cpu"]
        tokenize_command.main([*tokens, "--segment_length", "4", "--stride", "3", *output])
    from_tokens = without(gpt_command, "--dataset_path", "--oxe_data_mixes_type", "--dataloader_num_workers")
    from_tokens += ["--token_store", str(tmp_path / "train"), "--eval_token_store", str(tmp_path / "test")]
    run = fit(build_gpt([*from_tokens, "--max_train_steps", "1", "--action_conditioned"]))
    assert [line["split"] for line in metrics_of(run)] == ["train", "validation"]
    short = ["--segment_length", "3", "--stride", "3", "--output", str(tmp_path / "short"), "--device", "cpu"]
    tokenize_command.main([*tokens, *short])
    both = ["--token_store", f"{tmp_path / 'train'},{tmp_path / 'short'}", "--segment_length", "3"]
    run = fit(build_gpt([*from_tokens, "--max_train_steps", "1", "--action_conditioned", *both]))
    assert [line["split"] for line in metrics_of(run)] == ["train", "validation"]
    with pytest.raises(UserError, match="--context_length or --segment_length"):
        build_gpt([*from_tokens, "--max_train_steps", "1", "--segment_length", "5"])
    with pytest.raises(UserError, match="not --action_dim 3"):
        build_gpt([*from_tokens, "--max_train_steps", "1", "--action_conditioned", "--action_dim", "3"])
    other = tmp_path / "other"
    shutil.copytree(tiny_world_model / "tokenizer", other)
    weights = load_file(other / "diffusion_pytorch_model.safetensors")
    weights["quant_conv.bias"] += 1
    save_file(weights, other / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="another tokenizer"):
        build_gpt([*from_tokens, "--max_train_steps", "1", "--pretrained_model_name_or_path", str(other)])
    with pytest.raises(UserError, match="was trained on tokens of another tokenizer; name that one"):
        export.main(["--tokenizer", str(other), "--transformer", str(run), "--output", str(tmp_path / "model")])
    weights = load_file(tiny_world_model / "tokenizer" / "diffusion_pytorch_model.safetensors")
    weights["post_quant_conv.bias"] += 1  # as --decoders_only trains it
    save_file(weights, other / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    build_gpt([*from_tokens, "--max_train_steps", "1", "--pretrained_model_name_or_path", str(other)])
    export.main(["--tokenizer", str(other), "--transformer", str(run), "--output", str(tmp_path / "model")])


def test_a_refused_resume_leaves_the_run_as_it_was(finished_run, seedless_command):
    """Its later checkpoints were set aside, its lines cut, and its record said what it had never trained with."""
    before = {path: path.read_bytes() for path in finished_run.rglob("*.json*")}
    again = ["--resume_from_checkpoint", str(finished_run / "checkpoints" / "checkpoint_1"), "--resume_with_changes"]
    trainer = build_gpt([*seedless_command, *again, "--embed_no_wd", "--weight_decay", "0.1"])
    with pytest.raises(UserError, match="the optimizer that was saved does not fit these flags"):
        fit(trainer)
    assert {path: path.read_bytes() for path in finished_run.rglob("*.json*")} == before


def test_final_weights_need_no_last_checkpoint(seedless_command, monkeypatch, caplog):
    """The disk had room for them and not for the optimizer's state: hours of training were lost."""

    def fail(checkpoints, step):
        raise SaveError("no room")

    monkeypatch.setattr(Checkpoints, "save", fail)
    run = fit(build_gpt([*seedless_command, "--max_train_steps", "1"]))
    assert (run / "model.safetensors").is_file()
    assert "no room; going on without" in caplog.text
    with pytest.raises(UserError, match="has ended and has no checkpoints any more: its weights are in"):
        build_gpt([*seedless_command, "--resume_from_checkpoint", "latest"])


def test_a_full_disk_costs_a_gif(seedless_command, monkeypatch, caplog):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sampled_validation, "write_gif", fail)
    assert (fit(build_gpt([*seedless_command, "--max_train_steps", "1"])) / "model.safetensors").is_file()
    assert "No space left on device; going on without" in caplog.text


def test_tied_embeddings_are_refused_before_training(gpt_command):
    """They cannot be saved: it was said after the last step."""
    place = Path(gpt_command[gpt_command.index("--config_name") + 1])
    place.write_text(json.dumps(json.loads(place.read_text()) | {"tie_word_embeddings": True}))
    with pytest.raises(UserError, match="tie_word_embeddings is true"):
        build_gpt([*gpt_command, "--max_train_steps", "1"])


def test_a_start_with_other_rewards_or_actions_is_pointed_out(gpt_command, tmp_path, caplog):
    """Heads and layers went on with numbers of another kind, in silence."""
    model = world_model(action_dim=4, reward_prediction=True)
    normalised = ActionNormalization(mean=(0.0,) * 4, std=(2.0,) * 4)
    model.metadata = replace(model.metadata, symlog=True, action_normalization=normalised)
    model.save_pretrained(tmp_path / "start")
    flags = ["--action_conditioned", "--reward_prediction", "--max_train_steps", "1"]
    build_gpt([*gpt_command, *flags, "--pretrained_transformer_path", str(tmp_path / "start")])
    assert "the start's reward head was trained with --symlog" in caplog.text
    assert "the start has learned from normalised actions" in caplog.text


def test_action_free_start_inside_an_action_model(gpt_command, tmp_path):
    """``load_internal_llm``: the language model is loaded, the action input starts fresh."""
    small = transformer(tokenizer())
    save_transformer(small, tmp_path / "act-free")
    start = ["--pretrained_transformer_path", str(tmp_path / "act-free"), "--action_conditioned"]
    trainer = build_gpt([*gpt_command, *start, "--load_internal_llm", "--max_train_steps", "1"])
    assert torch.equal(trainer.model.llm.lm_head.weight, small.lm_head.weight)
    assert (trainer.model.action_linear.weight == 0).all()
    with pytest.raises(UserError, match="load_internal_llm"):
        build_gpt([*gpt_command, *start, "--max_train_steps", "1"])


def test_adapters_train_beside_frozen_weights(gpt_command, tmp_path):
    """The result is an ordinary model, its adapter one that peft reads, and a resumed run equals the uninterrupted."""
    base = transformer(tokenizer())
    save_transformer(base, tmp_path / "act-free")
    argv = [*gpt_command, *WITH_ACTIONS, "--max_train_steps", "3", "--checkpointing_steps", "1", "--lora"]
    argv += ["--lora_r", "2", "--pretrained_transformer_path", str(tmp_path / "act-free"), "--load_internal_llm"]
    trainer = build_gpt(argv)
    run = fit(trainer)
    tensors = load_file(run / "model.safetensors")
    assert tensors.keys() == transformer(tokenizer(), 4, reward_prediction=True, action_recon=0.1).state_dict().keys()
    own = trainer.model.llm.model.layers[0].mlp.up_proj.base_layer.weight
    assert torch.equal(own, base.model.layers[0].mlp.up_proj.weight)
    assert not torch.equal(own, tensors["llm.model.layers.0.mlp.up_proj.weight"])
    assert tensors["action_linear.weight"].any()

    published = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "act-free")
    adapted = PeftModel.from_pretrained(published, run / "adapter").eval()
    merged = load_transformer(run, trainer.layout).llm
    ids = torch.randint(0, 16, (1, 12))
    with torch.no_grad():
        torch.testing.assert_close(adapted(input_ids=ids).logits, merged(input_ids=ids).logits, atol=1e-5, rtol=1e-4)

    resumed = fit(build_gpt([*argv, "--resume_from_checkpoint", str(run / "checkpoints" / "checkpoint_1")]))
    assert resumed == run
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in load_file(run / "model.safetensors").items())


def test_validation_scores_sampled_futures(gpt_command, tmp_path):
    """Beside copying the last frame; parts of a batch and networks that are missing change nothing else."""
    torch.jit.script(StandIn()).save(tmp_path / "i3d.pt")
    argv = [*gpt_command, "--action_conditioned", "--max_train_steps", "1", "--use_frame_metrics", "--use_fvd"]
    argv += ["--per_device_eval_batch_size", "3", "--eval_generate_times", "2", "--i3d_path", str(tmp_path / "i3d.pt")]
    trainer = build_gpt([*argv, "--max_generate_batchsize", "2"])
    run = fit(trainer)
    (line,) = (line for line in metrics_of(run) if line["split"] == "validation")
    assert {"psnr", "ssim", "mse", "future_psnr", "copy_psnr", "fvd", "accuracy"} <= line.keys()
    assert "lpips" not in line
    assert [path.name for path in (run / "images").glob("*.gif")] == ["validation-0000001-clip-000.gif"]

    (batch,) = trainer.validation_batches.first(1)
    clips = trainer.clips_of(batch.to("cpu"))
    copied = clips.frames[:, 1:2].expand(-1, 2, -1, -1, -1)
    assert line["copy_psnr"] == pytest.approx(frame_psnr(clips.frames[:, 2:], copied).mean().item(), rel=1e-5)


def test_every_validation_shows_a_sampled_future(gpt_command):
    """``--log_gif_interval`` did nothing unless futures were scored, too."""
    argv = [*gpt_command, "--action_conditioned", "--max_train_steps", "3", "--validation_steps", "2"]
    run = fit(build_gpt([*argv, "--max_eval_iters", "3", "--log_gif_interval", "2"]))
    names = sorted(path.name for path in (run / "images").glob("*.gif"))
    assert names == [f"validation-000000{step}-clip-{batch}.gif" for step in (1, 3) for batch in ("000", "002")]


def test_lora_alpha_may_be_a_fraction(gpt_command, tmp_path):
    """The released flag reads 32.0, as peft does."""
    save_transformer(transformer(tokenizer()), tmp_path / "start")
    argv = [*gpt_command, "--lora", "--pretrained_transformer_path", str(tmp_path / "start"), "--max_train_steps", "1"]
    trainer = build_gpt([*argv, "--lora_alpha", "32.0", "--lora_r", "16"])
    assert trainer.model.model.layers[0].mlp.up_proj.scaling == {"default": 2.0}


def test_evaluation_alone_writes_a_report(gpt_command, tmp_path):
    """Needs no training data loader; smaller last batches count as what they are."""
    save_transformer(transformer(tokenizer(), 4), tmp_path / "trained")
    argv = [
        *gpt_command,
        "--action_conditioned",
        "--pretrained_transformer_path",
        str(tmp_path / "trained"),
        "--eval_only",
    ]
    argv += ["--use_frame_metrics", "--per_device_eval_batch_size", "3", "--eval_generate_times", "2"]
    trainer = build_gpt([*argv, "--max_eval_iters", "2"])
    assert trainer.batches is None
    with trainer.run:
        trainer.evaluate()
    validation, evaluation = metrics_of(trainer.run.directory)
    assert "ce" in validation
    assert "psnr" not in validation
    report = json.loads((trainer.run.directory / "evaluation" / "report.json").read_text())
    assert report["clips"]["number"] == report["clips"]["episodes"] <= 6
    assert set(report["scores"]) == {"paper", "future", "late", "future_best"}
    assert report["settings"]["eval_generate_times"] == 2
    assert evaluation["psnr"] == report["scores"]["paper"]["prediction"]["psnr"]["mean"]
    assert evaluation["future_mse"] == report["scores"]["future"]["prediction"]["mse"]["mean"]


def test_validation_on_a_benchmark(gpt_command, clips, tmp_path, monkeypatch):
    """Every evaluation episode once and in order, from its first frame."""
    for path in (clips / "squares").iterdir():
        episode = dict(np.load(path))
        write_episode(tmp_path / "bair" / path.name, aux1_image=episode.pop("image"), image=None, **episode)
    listing = tmp_path / "DATASET.yaml"
    listing.write_text("bair_train_dataset: bair\nbair_test_dataset: bair\n")
    monkeypatch.setattr(catalog, "DATASET_YAML", listing)
    argv = [*without(gpt_command, "--dataset_path", "--oxe_data_mixes_type"), "--oxe_data_mixes_type", "bair"]
    argv += ["--use_eval_dataset", "--max_train_steps", "1", "--per_device_eval_batch_size", "3"]
    trainer = build_gpt([*argv, "--max_eval_iters", "100"])
    batches = [batch.to("cpu").frames for batch in trainer.validation_batches.first(100)]
    assert [len(batch) for batch in batches] == [3, 1]
    first = np.load(clips / "squares" / "0.npz")["image"][:4]
    torch.testing.assert_close(batches[0][0], torch.from_numpy(first).movedim(-1, 1) / 255)
    with pytest.raises(UserError, match="no evaluation episodes are defined for 'folder:"):
        build_gpt([*gpt_command, "--use_eval_dataset", "--max_train_steps", "1"])


def test_goal_conditioned_clips_start_with_their_last_frame(gpt_command):
    trainer = build_gpt([*gpt_command, "--goal_conditioned", "--max_train_steps", "1"])
    frames = next(trainer.batches).frames
    assert torch.equal(frames[:, 0], frames[:, -1])
    assert trainer.metadata.goal_conditioned


def test_the_tokenizer_is_frozen_and_never_drops_out(gpt_command):
    trainer = build_gpt([*gpt_command, "--max_train_steps", "1"])
    frozen = trainer.tokenizer
    assert not frozen.training
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    clips = next(trainer.batches)
    assert torch.equal(trainer.tokens_of(clips).tokens, trainer.tokens_of(clips).tokens)


def test_tokens_of_a_bf16_run_are_those_of_float32(gpt_command):
    """Autocast around the tokenizer trained on other tokens than sessions, evaluation and token stores see."""
    trainer = build_gpt([*gpt_command, "--max_train_steps", "1", "--mixed_precision", "bf16"])
    clips = next(trainer.batches)
    expected, _ = trainer.tokenizer.tokenize(clips.frames, 2)
    with trainer.accelerator.autocast():
        wrong, _ = trainer.tokenizer.tokenize(clips.frames, 2)
        found = trainer.tokens_of(clips).tokens
    assert not torch.equal(wrong, expected)
    assert torch.equal(found, expected)
    assert torch.equal(trainer.tokens_of(clips).tokens, expected)


def test_gradient_checkpointing_gives_the_same_gradients(gpt_command):
    gradients, calls = [], []
    for flags in ([], ["--gradient_checkpointing"]):
        trainer = build_gpt([*gpt_command, *flags, "--llama_attn_drop", "0", "--max_train_steps", "1"])
        layer, calls_of_layer = trainer.model.model.layers[0].mlp, []
        layer.register_forward_pre_hook(lambda *_, calls=calls_of_layer: calls.append(None))
        trainer.loss_of(trainer.next_tokens()).total.backward()
        gradients.append(layer.up_proj.weight.grad)
        calls.append(len(calls_of_layer))
    assert calls == [1, 2]
    assert torch.allclose(gradients[0], gradients[1], atol=1e-6)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--segment_length", "40"], "at most 32 frames fit"),
        (["--action_conditioned", "--action_dim", "5"], "5"),
        (["--resolution", "256"], "give --resolution 64"),
        (["--pretrained_model_name_or_path", "nowhere"], "nowhere"),
    ],
)
def test_bad_input_is_refused_and_leaves_nothing(gpt_command, tmp_path, flags, message):
    with pytest.raises(UserError, match=message):
        fit(build_gpt([*gpt_command, *flags, "--max_train_steps", "1"]))
    assert not (tmp_path / "runs").exists()


# ---- parts


def test_accuracy_looks_at_the_next_token():
    """Off by one, and the accuracy of a perfect model is that of chance."""
    layout = TokenLayout(1, 1, context_codes=2, dynamics_codes=2, context_tokens=2, dynamics_tokens=2)
    tokens = torch.tensor([[0, 1, 5, 2, 3]])
    logits = torch.nn.functional.one_hot(tokens.roll(-1, dims=1), 6).float()
    assert accuracy(logits, layout.labels(tokens)) == 1
    logits[0, 2] = torch.nn.functional.one_hot(torch.tensor(0), 6)  # the prediction of the token at position 3
    assert accuracy(logits, layout.labels(tokens)) == 0.5


def test_conditioning_withholds_what_was_not_asked_for():
    """A store has actions whether or not the model reads them."""
    batch = TokenBatch(torch.zeros(1, 3), torch.ones(1, 2, 4), torch.tensor([[-1.0, 3.0]]))
    flags = dict.fromkeys(("action_conditioned", "reward_prediction", "success_prediction", "symlog"), False)
    trainer = SimpleNamespace(args=SimpleNamespace(**flags))
    free = GptTrainer.tokens_of(trainer, batch)
    assert (free.actions, free.rewards) == (None, None)
    vars(trainer.args).update(dict.fromkeys(flags, True))
    full = GptTrainer.tokens_of(trainer, batch)
    assert full.actions is batch.actions
    assert torch.allclose(full.rewards, torch.tensor([[-1.0, 3.0]]).sign() * torch.log(torch.tensor([[2.0, 4.0]])))


def test_only_clips_that_are_shown_are_decoded():
    """A validation batch of pixels may not fit beside the transformer."""
    model = tokenizer()
    tokens, _ = model.eval().tokenize(torch.rand(3, 4, 3, 64, 64), 2)
    whole = model.detokenize(tokens, 2).clamp(0, 1)
    decoded = []
    model.decode_context, decode = lambda codes: decoded.append(len(codes)) or decode(codes), model.decode_context
    clips = GptTrainer.clips_of(SimpleNamespace(tokenizer=model), TokenBatch(tokens, torch.ones(3, 4, 4)), 2)
    assert decoded == [2]
    assert clips.actions.shape == (2, 4, 4)
    torch.testing.assert_close(clips.frames, whole[:2])


def test_weight_decay_groups():
    """embed_no_wd exempts biases, norms and the input embedding; output head, action input and heads decay."""
    model = transformer(tokenizer(), action_dim=4, reward_prediction=True)
    names = {parameter: name for name, parameter in model.named_parameters()}
    decaying, exempt = ({names[p] for p in group["params"]} for group in weight_decay_groups(model, 0.1, True))
    assert {"llm.lm_head.weight", "action_linear.weight", "reward_linear.weight"} <= decaying
    assert {"llm.model.embed_tokens.weight", "llm.model.norm.weight", "action_linear.bias"} <= exempt
    assert all(name.endswith((".bias", "norm.weight", "layernorm.weight", "embed_tokens.weight")) for name in exempt)
    assert decaying | exempt == set(names.values())
    (everything,) = weight_decay_groups(model, 0.1, False)
    assert len(everything["params"]) == len(names)
