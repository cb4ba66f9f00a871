"""What is not finite spoils no weights, no average, no codebook, no file and no record."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from ivideogpt.errors import UserError
from ivideogpt.training.common import optim
from ivideogpt.training.common.optim import SoundUpdates, build_adamw
from ivideogpt.training.tokenizer.codebooks import badly_represented
from ivideogpt.training.tokenizer.trainer import TokenizerTrainer
from ivideogpt.training.transformer.trainer import GptTrainer
from tests.training.runs import build_gpt, build_tokenizer, fit

NAN = float("nan")


def strict_lines(run):
    """The record, read as JSON is defined: Python's reader takes NaN, others do not."""

    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights_in(folder, name="model.safetensors"):
    return load_file(folder / name)


def assert_same(some, others):
    assert some.keys() == others.keys()
    for name, tensor in some.items():
        assert torch.equal(tensor, others[name]), name


@pytest.fixture
def spoil_losses(monkeypatch):
    """Makes the transformer's training losses of some steps NaN."""

    def spoil(steps):
        loss_of = GptTrainer.loss_of

        def spoiled(trainer, batch, *history):
            terms = loss_of(trainer, batch, *history)
            bad = trainer.model.training and trainer.progress.step + 1 in steps
            return type(terms)(terms.total * NAN, terms.parts) if bad else terms

        monkeypatch.setattr(GptTrainer, "loss_of", spoiled)

    return spoil


def test_a_bad_update_of_the_transformer_is_skipped_and_counted(gpt_command, spoil_losses):
    """One NaN made all checkpoints and the final model NaN, with exit code 0 and a record that was no JSON."""
    spoil_losses({2})
    argv = [*gpt_command, "--max_train_steps", "3", "--checkpointing_steps", "1", "--skip_first_val"]
    trainer = build_gpt([*argv, "--lr_scheduler_type", "constant", "--validation_steps", "100"])
    run = fit(trainer)
    before, skipped, after = (run / "checkpoints" / f"checkpoint_{step}" for step in (1, 2, 3))
    assert_same(weights_in(before), weights_in(skipped))
    assert not torch.equal(weights_in(after)["lm_head.weight"], weights_in(skipped)["lm_head.weight"])
    assert all(tensor.isfinite().all() for tensor in weights_in(run).values())
    moments = [torch.load(folder / "state.pt")["optimizer"]["state"][0] for folder in (before, skipped, after)]
    assert [float(moment["step"]) for moment in moments] == [1, 1, 2]
    assert_same(moments[0], moments[1])
    lines = [line for line in strict_lines(run) if line["split"] == "train"]
    assert [line["skipped_updates"] for line in lines] == [0, 1, 0]
    assert [line["loss"] is None for line in lines] == [False, True, False]


def test_bad_updates_in_a_row_end_the_run_with_what_was_good(gpt_command, spoil_losses, monkeypatch):
    monkeypatch.setattr(optim, "MAX_SKIPPED", 3)
    spoil_losses(range(2, 100))
    argv = [*gpt_command, "--max_train_steps", "100", "--checkpointing_steps", "1", "--validation_steps", "100"]
    trainer = build_gpt([*argv, "--skip_first_val"])
    with pytest.raises(UserError, match=r"last 3 updates of the transformer .* not finite and were skipped"):
        fit(trainer)
    run = trainer.run.directory
    assert not (run / "model.safetensors").exists()
    good = weights_in(run / "checkpoints" / "checkpoint_3")
    assert all(tensor.isfinite().all() for tensor in good.values())
    assert_same(good, weights_in(run / "checkpoints" / "checkpoint_1"))


def test_a_run_without_one_good_update_is_no_success(gpt_command, spoil_losses):
    """It is over before the bound is reached."""
    spoil_losses(range(1, 100))
    with pytest.raises(UserError, match="last 2 updates of the transformer"):
        fit(build_gpt([*gpt_command, "--max_train_steps", "2", "--skip_first_val", "--validation_steps", "100"]))


def test_bad_frames_leave_tokenizer_discriminator_average_and_codebooks_as_they_were(tokenizer_command, monkeypatch):
    """Codebooks follow latents before any gradient is known, and codes are restarted at latents."""
    next_frames = TokenizerTrainer.next_frames
    monkeypatch.setattr(
        TokenizerTrainer,
        "next_frames",
        lambda trainer: next_frames(trainer) * (NAN if trainer.progress.step + 1 in (3, 4) else 1),
    )
    argv = [*tokenizer_command, "--max_train_steps", "6", "--disc_start", "0", "--checkpointing_steps", "1"]
    argv += ["--use_ema", "--codebook_decay", "0.9", "--validation_steps", "100", "--skip_first_val"]
    run = fit(build_tokenizer([*argv, "--lr_scheduler", "constant", "--discr_lr_scheduler", "constant"]))
    file = "diffusion_pytorch_model.safetensors"
    for folder in ("unwrapped_model", "ema_model"):
        before, bad, after = (weights_in(run / f"checkpoint-{step}" / folder, file) for step in (2, 3, 5))
        assert_same(without_codebooks(before), without_codebooks(bad))  # dead codes are restarted at good latents
        assert all(tensor.isfinite().all() for tensor in bad.values())
        assert not torch.equal(bad["quant_conv.weight"], after["quant_conv.weight"])
    states = [torch.load(run / f"checkpoint-{step}" / "state.pt") for step in (3, 4, 6)]
    assert all(sums.isfinite().all() for state in states for sums in state["dynamics_means"].values())
    names = [name for name in states[0]["discriminator"] if name.endswith(("weight_orig", "bias"))]
    assert len(names) > 8
    assert all(torch.equal(states[0]["discriminator"][name], states[1]["discriminator"][name]) for name in names)
    assert not all(torch.equal(states[1]["discriminator"][name], states[2]["discriminator"][name]) for name in names)
    lines = strict_lines(run)
    assert [line["skipped_updates"] for line in lines if "skipped_updates" in line] == [0, 1, 0]
    assert [line["disc_skipped_updates"] for line in lines if "disc_skipped_updates" in line] == [0, 1, 0]


def without_codebooks(weights):
    return {name: tensor for name, tensor in weights.items() if "embedding" not in name}


def test_codes_are_restarted_at_finite_latents_alone():
    latents = torch.full((4, 2), NAN)
    assert len(badly_represented(latents, torch.zeros(3, 2), num=2)) == 0
    latents[1] = 5
    assert badly_represented(latents, torch.zeros(3, 2), num=2).tolist() == [[5, 5]]


# ---- the guard


def parameter_with(gradient):
    weight = torch.nn.Parameter(torch.ones(2))
    weight.grad = torch.full((2,), gradient)
    return weight


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(
    ("loss", "gradient", "skips"), [(1.0, 1.0, 0), (NAN, 1.0, 1), (1.0, NAN, 1), (float("inf"), 1.0, 1)]
)
def test_losses_and_gradients_count(fused, loss, gradient, skips):
    weight = parameter_with(gradient)
    sound = SoundUpdates("thing", torch.optim.AdamW([weight], lr=0.1, fused=fused))
    assert sound.step(torch.tensor(loss), weight.grad.norm()) == skips
    assert (weight == 1).all() == bool(skips)


def test_processes_skip_together():
    """What is finite here need not be so there, and weights that differ never meet again."""
    weight = parameter_with(1.0)
    others = SimpleNamespace(num_processes=2, scaler=None, reduce=lambda flag, how: flag + 1)
    sound = SoundUpdates("thing", build_adamw([weight], 0.1), others)
    assert sound.step(torch.tensor(1.0), weight.grad.norm()) == 1
    assert (weight == 1).all()


def test_a_gradient_scaler_skips_by_itself():
    """It has to see the step to lower its factor, and takes its own notes on the optimizer."""
    weight = parameter_with(NAN)
    optimizer = build_adamw([weight], 0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(torch.ones(()))  # as the backward pass does
    wrapped = SimpleNamespace(optimizer=optimizer, step=lambda: (scaler.step(optimizer), scaler.update()))
    accelerator = SimpleNamespace(num_processes=1, scaler=scaler)
    assert SoundUpdates("thing", wrapped, accelerator).step(torch.tensor(1.0), torch.tensor(NAN)) == 1
    assert (weight == 1).all()
    assert scaler.get_scale() == 2


def test_good_updates_between_bad_ones_go_on_for_ever(monkeypatch):
    monkeypatch.setattr(optim, "MAX_SKIPPED", 2)
    weight = parameter_with(1.0)
    sound = SoundUpdates("thing", build_adamw([weight], 0.1))
    skipped = [float(sound.step(torch.tensor(loss), weight.grad.norm())) for loss in (NAN, 1.0, NAN, 1.0, NAN)]
    assert skipped == [1, 0, 1, 0, 1]
    sound.check_end()
    with pytest.raises(UserError, match="last 2 updates of the thing"):
        sound.step(torch.tensor(NAN), weight.grad.norm())
