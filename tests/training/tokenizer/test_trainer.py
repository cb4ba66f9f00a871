"""Tokenizer training from beginning to end on a tiny model."""

import inspect
import json
import os
import shutil
import signal
import tempfile
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import VQModel
from PIL import Image
from safetensors.torch import load_file, save_file

from ivideogpt.errors import UserError
from ivideogpt.precision import full_float32
from ivideogpt.pretrained import load_tokenizer
from ivideogpt.training.tokenizer.trainer import TokenizerTrainer
from tests.parity.networks import tokenizer
from tests.training.runs import build_tokenizer, fit, metrics_of, without

STEPS = 5  # generator phases at steps 1, 3 and 5, the discriminator's at step 4


def complete_command(command, output_dir):
    return [
        *command,
        "--max_train_steps",
        str(STEPS),
        "--disc_start",
        "2",
        "--use_ema",
        "--output_dir",
        str(output_dir),
    ]


@pytest.fixture(scope="module")
def runs():
    """Folder of the one uninterrupted run that several tests look at."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@pytest.fixture
def finished_run(tokenizer_command, runs):
    if not any(runs.iterdir()):
        fit(build_tokenizer([*complete_command(tokenizer_command, runs), "--checkpointing_steps", "1"]))
    (run,) = runs.iterdir()
    return run


def test_what_a_run_leaves_behind(finished_run):
    """Documented paths: other commands are given them."""
    assert finished_run.name[20:] == "toy"
    for folder in (finished_run, finished_run / "unwrapped_model", finished_run / "checkpoint-5" / "unwrapped_model"):
        tokenizer = load_tokenizer(folder)
        assert tokenizer.context_length == 2
    assert not list(finished_run.rglob("*unfinished*"))
    picture = np.asarray(Image.open(finished_run / "images" / "validation-0000001.png"))
    assert picture.std() > 10
    assert (finished_run / "images" / "train-0000004.png").is_file()
    lines = metrics_of(finished_run)
    assert [(line["step"], line["split"]) for line in lines] == [
        (1, "train"), (1, "validation"), (3, "train"), (4, "train"), (5, "train"), (5, "validation"),
    ]  # fmt: skip
    assert {"loss", "recon", "commit", "lr", "grad_norm", "context_usage", "dynamics_perplexity"} <= set(lines[0])
    assert {"psnr_context", "psnr_future"} <= set(lines[1])
    assert [{"gan", "gan_scale"} <= set(line) for line in lines] == [False, False, True, False, True, False]
    assert [{"disc_loss", "disc_lr", "disc_grad_norm"} <= set(line) for line in lines].index(True) == 3


@pytest.mark.parametrize("step", [1, 2, 3, 4])
def test_resumed_run_equals_the_uninterrupted_one(finished_run, tokenizer_command, tmp_path, step):
    """To the bit, at every phase of the alternation: dropout, data order, moments, schedule, means, codebook counts.

    It goes back in a run that went on, so the checkpoints and metrics of the rest are there and must not be mixed in.
    """
    interrupted = tmp_path / "again" / finished_run.name
    shutil.copytree(finished_run, interrupted)
    argv = complete_command(tokenizer_command, interrupted.parent)
    resumed = fit(build_tokenizer([*argv, "--resume_from_checkpoint", str(interrupted / f"checkpoint-{step}")]))
    assert resumed == interrupted
    later = range(step + 1, STEPS + 1)
    assert {path.name for path in resumed.glob("rolled-back-*")} == {f"rolled-back-checkpoint-{n}" for n in later}
    assert metrics_of(resumed) == metrics_of(finished_run)
    weights = [load_file(run / "diffusion_pytorch_model.safetensors") for run in (finished_run, resumed)]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--channels_last"], r"--channels_last True \(was False\)"),
        (["--seed", "1", "--learning_rate", "1"], r"--learning_rate 1.0 \(was 0.0001\), --seed 1 \(was 0\)"),
        (["--mixed_precision", "bf16"], r"--mixed_precision bf16 \(was no\)"),
    ],
)
def test_a_resumed_run_keeps_its_settings(finished_run, tokenizer_command, runs, flags, message):
    """Moments of another memory layout, or another loss, would spoil a run without a word."""
    argv = [*complete_command(tokenizer_command, runs), "--resume_from_checkpoint", "latest"]
    with pytest.raises(UserError, match=message):
        build_tokenizer([*argv, *flags])
    AcceleratorState._reset_state(reset_partial_state=True)
    assert build_tokenizer([*argv, "--log_steps", "7", "--dataloader_num_workers", "1"]).run.checkpoint is not None


def test_a_new_learning_rate_on_purpose(tokenizer_command, tmp_path):
    """The scheduler's and the optimizer's saved rates won over the flag, without a word."""
    argv = [*complete_command(tokenizer_command, tmp_path), "--max_train_steps", "4"]
    run = fit(build_tokenizer(argv))
    AcceleratorState._reset_state(reset_partial_state=True)
    changed = [*argv, "--resume_from_checkpoint", "latest", "--max_train_steps", "6", "--learning_rate", "3e-5"]
    with pytest.raises(UserError, match=r"--learning_rate 3e-05 \(was 0.0001\).*, or add --resume_with_changes"):
        build_tokenizer(changed)
    AcceleratorState._reset_state(reset_partial_state=True)
    trainer = build_tokenizer([*changed, "--resume_with_changes"])
    assert fit(trainer) == run
    expected = 3e-5 * trainer.scheduler.lr_lambdas[0](trainer.scheduler.last_epoch)
    assert [group["lr"] for group in trainer.optimizer.param_groups] == [expected]
    record = json.loads((run / "run.json").read_text())
    assert record["changes"] == [{"step": 4, "learning_rate": {"before": 1e-4, "now": 3e-5}}]
    assert record["args"]["learning_rate"] == 3e-5


def test_a_signal_saves_and_stops(tokenizer_command, monkeypatch):
    """A pre-empted run loses at most one step, and is not taken for a finished one."""
    phase = TokenizerTrainer.run_phase

    def run_phase(trainer):
        if trainer.progress.step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        phase(trainer)

    monkeypatch.setattr(TokenizerTrainer, "run_phase", run_phase)
    handler = signal.getsignal(signal.SIGTERM)
    trainer = build_tokenizer([*tokenizer_command, "--max_train_steps", "100"])
    run = fit(trainer)
    assert trainer.run.exit_code == 128 + signal.SIGTERM
    assert (run / "checkpoint-2" / "state.pt").is_file()
    assert not (run / "unwrapped_model").exists()
    assert signal.getsignal(signal.SIGTERM) is handler


def test_idle_phases_load_no_batch(tokenizer_command):
    """Before the discriminator starts, half of the batches would be read for nothing."""
    trainer = build_tokenizer([*tokenizer_command, "--max_train_steps", "6", "--restart_dead_codes", "0"])
    fit(trainer)
    assert trainer.clips.state_dict() == {"samples": 3}
    assert trainer.progress.clips == 3


def test_the_discriminator_learns_from_batches_of_its_own_and_the_tokenizer_rests(tokenizer_command):
    argv = [*tokenizer_command, "--max_train_steps", "4", "--disc_start", "0", "--lr_warmup_steps", "0"]
    trainer = build_tokenizer(argv)
    trainer.run_phase()
    tokenizer = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    discriminator = [parameter.detach().clone() for parameter in trainer.gan_loss.discriminator.parameters()]
    assert all(parameter.grad is None for parameter in trainer.gan_loss.discriminator.parameters())
    trainer.progress.step = 1
    trainer.run_phase()
    assert trainer.clips.state_dict() == {"samples": 2}
    assert all(map(torch.equal, trainer.model.parameters(), tokenizer))
    assert not torch.equal(next(trainer.gan_loss.discriminator.parameters()), discriminator[0])


def test_a_checkpoint_without_discriminator_is_refused_by_a_run_with_one(tokenizer_command):
    run = fit(build_tokenizer([*tokenizer_command, "--max_train_steps", "1", "--checkpointing_steps", "1"]))
    argv = [*tokenizer_command, "--max_train_steps", "300", "--resume_from_checkpoint", str(run)]
    with pytest.raises(UserError, match=r"checkpoint-1 lacks discriminator, .*; resume it with the settings"):
        fit(build_tokenizer(argv))


def test_accumulation_takes_the_mean_over_batches(tokenizer_command):
    """Two batches of one must move the weights as one batch of two."""
    argv = [*tokenizer_command, "--max_train_steps", "1", "--no_aug", "--learning_rate", "1e-3", "--skip_first_val"]
    argv += ["--restart_dead_codes", "0", "--lr_scheduler", "constant"]
    argv[argv.index("--train_batch_size") + 1] = "2"
    gradients = []
    for flags in ([], ["--gradient_accumulation_steps", "2", "--train_batch_size", "1"]):
        trainer = build_tokenizer([*argv, *flags])
        trainer.model.eval()  # dropout draws other numbers for another batch size
        keep_gradients(trainer, gradients)
        trainer.generator_phase()
    assert torch.allclose(gradients[0], gradients[1], atol=1e-4 * gradients[0].abs().max())


def keep_gradients(trainer, kept):
    update = trainer.update

    def keeping(loss):
        kept.append(torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None]))
        return update(loss)

    trainer.update = keeping


def test_selected_params_freezes_the_codebooks(tokenizer_command):
    """Frozen codebooks must not collect gradients that enter the clip norm."""
    argv = [*tokenizer_command, "--restart_dead_codes", "0", "--selected_params", "--max_train_steps", "1"]
    trainer = build_tokenizer([*argv, "--lr_scheduler", "constant"])
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    loss = trainer.loss_of(trainer.next_frames())[0].total
    loss.backward()
    assert trainer.model.quantize.embedding.weight.grad is None
    trainer.update(loss)
    same = {name for name, parameter in trainer.model.named_parameters() if torch.equal(parameter, before[name])}
    assert same == {"quantize.embedding.weight", "dynamics_quantize.embedding.weight"}


def test_decoders_only_keeps_the_tokens(tokenizer_command, tmp_path):
    """Bug prevented: stored tokens, and a transformer trained on them, mean other frames after the fine-tuning."""
    tokenizer().save_pretrained(tmp_path / "start")
    argv = [*tokenizer_command, "--restart_dead_codes", "0", "--cross_attention_dropout", "0", "--decoders_only"]
    argv += ["--pretrained_model_name_or_path", str(tmp_path / "start"), "--max_train_steps", "2"]
    trainer = build_tokenizer([*argv, "--lr_scheduler", "constant"])
    start = load_tokenizer(tmp_path / "start")
    trained = load_tokenizer(fit(trainer) / "unwrapped_model")
    before = dict(start.named_parameters())
    changed = {name.split(".")[0] for name, tensor in trained.named_parameters() if not tensor.equal(before[name])}
    assert changed == {"post_quant_conv", "decoder", "post_quant_linear", "cond_decoder"}
    frames = torch.rand(2, 4, 3, 64, 64)
    assert torch.equal(trained.tokenize(frames, 2)[0], start.tokenize(frames, 2)[0])


def test_gradient_norms_are_those_of_the_update(tokenizer_command):
    """Before clipping, gradients of 16-bit training are still multiplied by 65536."""
    argv = [*tokenizer_command, "--max_train_steps", "1", "--max_grad_norm", "0.01", "--log_grad_norm_steps", "1"]
    metrics = build_tokenizer([*argv, "--restart_dead_codes", "0"]).generator_phase()
    norms = torch.tensor([norm for name, norm in metrics.items() if name.startswith("grad_norm/")])
    assert metrics["grad_norm"] > 0.02
    assert norms.norm() == pytest.approx(0.01, rel=1e-3)


def test_gradient_checkpointing_gives_the_same_gradients(tokenizer_command):
    """Also through dropout, which must draw the same numbers when it is computed again."""
    argv = [*tokenizer_command, "--max_train_steps", "1", "--restart_dead_codes", "0"]
    gradients, calls = [], []
    for flags in ([], ["--gradient_checkpointing"]):
        torch.manual_seed(0)
        trainer = build_tokenizer([*argv, *flags])
        block, calls_of_block = trainer.model.cond_encoder.mid_block, []
        block.register_forward_pre_hook(lambda *_, calls=calls_of_block: calls.append(None))
        keep_gradients(trainer, gradients)
        trainer.generator_phase()
        calls.append(len(calls_of_block))
    assert calls == [1, 2]
    assert torch.allclose(gradients[0], gradients[1], atol=1e-5 * gradients[0].abs().max())


def test_channels_last_trains_the_same_model(tokenizer_command):
    """A memory format is not a different model: same losses after updates, and weights that anyone can load."""
    losses = []
    for flags in ([], ["--channels_last"]):
        argv = [*tokenizer_command, "--max_train_steps", "5", "--skip_first_val", "--restart_dead_codes", "0"]
        argv += ["--lr_scheduler", "constant", "--learning_rate", "1e-3", "--validation_steps", "100"]
        run = fit(build_tokenizer([*argv, *flags]))
        losses.append([line["loss"] for line in metrics_of(run)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)  # updates of new moments magnify rounding
    assert losses[0][-1] < 0.9 * losses[0][0]
    assert load_tokenizer(run).quant_conv.weight.is_contiguous()


def test_codebooks_start_from_data(tokenizer_command):
    """Codes drawn near zero are never used: hundreds of them died in a trial."""
    trainer = build_tokenizer([*tokenizer_command, "--max_train_steps", "1"])
    latents = next(trainer.latents_of_batches())

    def distances():
        books = (trainer.codebooks.context, trainer.codebooks.dynamics)
        pairs = zip(latents, books, strict=True)
        return torch.stack([torch.cdist(some, book.vectors.detach()).amin(dim=1).mean() for some, book in pairs])

    before = distances()
    trainer.start()
    assert (distances() < 0.7 * before).all()


def test_between_batches_of_latents_the_model_trains(tokenizer_command):
    """A generator that pauses in eval mode, without gradients, leaves its caller there."""
    trainer = build_tokenizer([*tokenizer_command, "--max_train_steps", "1"])
    batches = trainer.latents_of_batches()
    next(batches)
    assert trainer.model.training
    assert torch.is_grad_enabled()


def test_start_from_pretrained_weights_with_less_context(tokenizer_command, tiny_world_model):
    argv = without(tokenizer_command, "--model_config_name_or_path")
    argv += ["--pretrained_model_name_or_path", str(tiny_world_model), "--context_length", "1"]
    trainer = build_tokenizer([*argv, "--max_train_steps", "1"])
    assert trainer.model.context_length == 1
    assert trainer.model.training


@pytest.fixture
def aligned_command(tokenizer_command, tiny_world_model):
    return [
        *without(tokenizer_command, "--model_config_name_or_path"),
        *["--pretrained_model_name_or_path", str(tiny_world_model), "--align_to_context", "--max_train_steps", "1"],
    ]


def test_a_run_with_averaged_weights_ends_with_them(finished_run):
    """And goes on training with its own: the average lags behind them."""
    trained, averaged, final = (
        load_tokenizer(folder).quant_conv.weight
        for folder in (
            finished_run / "checkpoint-5" / "unwrapped_model",
            finished_run / "checkpoint-5" / "ema_model",
            finished_run,
        )
    )
    assert torch.equal(averaged, final)
    assert not torch.equal(trained, final)
    earlier = [
        load_tokenizer(finished_run / f"checkpoint-{step}" / "unwrapped_model").quant_conv.weight for step in (1, 3)
    ]
    # Decay 0 at the first update, 1 / 10 at the second, 2 / 11 at the third.
    expected = (earlier[0] * 1 / 10 + earlier[1] * 9 / 10) * 2 / 11 + trained * 9 / 11
    torch.testing.assert_close(final, expected)


def test_start_from_an_ordinary_vqvae(tokenizer_command, tokenizer_config, tmp_path, caplog):
    """The public aMUSEd weights have only what context frames need; what future frames share with it begins equal."""
    config = json.loads(tokenizer_config.read_text())
    names = inspect.signature(VQModel.__init__).parameters
    plain = VQModel(**{name: config[name] for name in names & config.keys()})
    plain.save_pretrained(tmp_path / "vqvae")
    argv = [*tokenizer_command, "--pretrained_model_name_or_path", str(tmp_path / "vqvae"), "--max_train_steps", "1"]
    with caplog.at_level("INFO"):
        trainer = build_tokenizer(argv)
    model, expected = trainer.model, plain.state_dict()
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in expected.items())
    shared = [name for name in expected if name.startswith(("encoder.", "decoder."))]
    assert all(torch.equal(model.state_dict()[f"cond_{name}"], expected[name]) for name in shared)
    assert "cond_encoder.mid_block.attentions, quant_linear, dynamics_quantize, post_quant_linear" in caplog.text
    dynamics = model.dynamics_quantize.embedding.weight.detach().clone()
    trainer.start()
    assert torch.equal(model.quantize.embedding.weight, expected["quantize.embedding.weight"])
    assert not torch.equal(model.dynamics_quantize.embedding.weight, dynamics)


def test_the_aligned_start_is_where_a_run_starts_not_where_it_resumes(aligned_command):
    """Aligned again, it would lose what it has learned."""

    def place_code(trainer):
        return trainer.model.cond_decoder.cross_att_blocks[0].q_pos_emb.detach().clone()

    trainer = build_tokenizer([*aligned_command, "--checkpointing_steps", "1"])
    before = place_code(trainer)
    run = fit(trainer)
    learned = place_code(trainer)
    assert not torch.allclose(learned, before, atol=0.1)
    resumed = build_tokenizer([*aligned_command, "--resume_from_checkpoint", "latest"])
    assert resumed.run.directory == run
    resumed.start()
    assert torch.equal(place_code(resumed), learned)


def test_still_patches_have_no_part_in_the_codebook(aligned_command):
    """They are most of all patches, and would take up the codes that motion needs."""
    trainer = build_tokenizer([*aligned_command, "--still_weight", "0.1", "--codebook_decay", "0.9"])
    trainer.start()
    assert not trainer.model.dynamics_quantize.embedding.weight[0].any()
    metrics = trainer.generator_phase()
    assert metrics["still"] > 0
    num_patches = trainer.args.train_batch_size * 3 * 16  # two future frames and the still one
    assert 0 < trainer.codebooks.dynamics._counts_since_log.sum() < num_patches / 2
    assert not trainer.model.dynamics_quantize.embedding.weight[0].any()


def test_training_without_the_files_of_lpips_is_refused(tokenizer_command, tmp_path):
    """A run of weeks had learned without its perceptual loss; one line of the log had said so."""
    argv = [*without(tokenizer_command, "--perc_weight"), "--max_train_steps", "1", "--lpips_path", str(tmp_path)]
    with pytest.raises(UserError, match=r"vgg16-397923af\.pth .* and vgg\.pth .* --perc_weight 0$"):
        build_tokenizer(argv)
    assert not (tmp_path / "runs").exists()
    assert build_tokenizer([*argv, "--perc_weight", "0"]).loss.lpips is None


def test_a_discriminator_starts_from_what_a_run_or_anyone_has_written(finished_run, tokenizer_command, tmp_path):
    """The released code writes a file without suffix, which was taken for safetensors."""
    written = finished_run / "checkpoint-5" / "unwrapped_model" / "discriminator"
    weights = torch.load(written)
    assert torch.equal(
        weights["shuffle.bias"], torch.load(finished_run / "unwrapped_model/discriminator")["shuffle.bias"]
    )
    torch.save(weights, tmp_path / "old", _use_new_zipfile_serialization=False)
    save_file(weights, tmp_path / "new.bin")
    argv = [*tokenizer_command, "--max_train_steps", "4", "--disc_start", "0"]
    for file in (written, tmp_path / "old", tmp_path / "new.bin"):
        trainer = build_tokenizer([*argv, "--discriminator_config_name_or_path", str(file)])
        found = trainer.gan_loss.discriminator.state_dict()
        assert found.keys() == weights.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in weights.items())
    (tmp_path / "empty").touch()
    with pytest.raises(UserError, match="empty is no safetensors file"):
        build_tokenizer([*argv, "--discriminator_config_name_or_path", str(tmp_path / "empty")])


@pytest.mark.parametrize("asked", [False, True])
def test_convolutions_keep_the_tf32_that_pytorch_gives_them(tokenizer_command, asked):
    """It was switched off unless ``--allow_tf32`` asked for it, and training was slower for it."""
    with full_float32():  # puts back what it found
        torch.backends.cudnn.allow_tf32 = True
        build_tokenizer([*tokenizer_command, "--max_train_steps", "1", *(["--allow_tf32"] if asked else [])])
        assert torch.backends.cudnn.allow_tf32
        assert torch.backends.cuda.matmul.allow_tf32 == asked


def test_validation_clips_are_the_same_every_time(tokenizer_command):
    trainer = build_tokenizer([*tokenizer_command, "--max_train_steps", "1"])
    first, again = (next(islice(trainer.validation_clips.first(1), 1)).pixels for _ in range(2))
    assert torch.equal(first, again)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dataset_path", "nowhere"], "nowhere"),
        (["--resolution", "32"], "resolution"),
        (["--model_config_name_or_path", "nowhere.json"], "nowhere.json"),
        (["--resume_from_checkpoint", "nowhere"], "no complete checkpoint"),
        (["--context_length", "3", "--pretrained_model_name_or_path", "MODEL"], "choose 1 to 2"),
    ],
)
def test_bad_input_is_refused_and_leaves_nothing(tokenizer_command, tiny_world_model, tmp_path, flags, message):
    flags = [flag.replace("MODEL", str(tiny_world_model)) for flag in flags]
    with pytest.raises(UserError, match=message):
        fit(build_tokenizer([*tokenizer_command, *flags, "--max_train_steps", "1"]))
    assert not (tmp_path / "runs").exists()
