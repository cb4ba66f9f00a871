"""Two real processes: the same training as one with twice the batch, and resumed to the bit."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.commands import run_in_two_processes
from tests.training.gradients import gradients_of
from tests.training.runs import build_gpt, build_tokenizer, fit, metrics_of

WITH_HEADS = ["--action_conditioned", "--reward_prediction", "--action_recon", "0.1"]


def in_two_processes(what: str, folder: Path, commands: list[tuple[str, list[str]]]) -> None:
    for script, _ in commands:
        (folder / script).mkdir(parents=True)
    (folder / "commands.json").write_text(json.dumps(commands))
    script = Path(__file__).with_name("two_processes.py")
    env = {"ACCELERATE_USE_CPU": "true"} if torch.cuda.is_available() else {}  # a single GPU is too few for two
    done = run_in_two_processes(script, what, folder, folder / "commands.json", env=env)
    assert done.returncode == 0, done.stderr


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")  # gradients_of keeps the optimizer from it
def test_gradients_are_those_of_one_process_with_twice_the_batch(tokenizer_command, gpt_command, tmp_path):
    """Else more GPUs train another model. Accumulation exchanges gradients once, and loses none."""
    tokenizer = [*tokenizer_command, "--restart_dead_codes", "0", "--cross_attention_dropout", "0", "--no_aug"]
    tokenizer += ["--disc_start", "1", "--max_train_steps", "4", "--gradient_accumulation_steps", "2"]
    gpt = [*gpt_command, *WITH_HEADS, "--llama_attn_drop", "0", "--max_train_steps", "2", "--max_grad_norm", "1"]
    gpt += ["--gradient_accumulation_steps", "2"]
    in_two_processes("gradients", tmp_path, [("train_tokenizer.py", tokenizer), ("train_gpt.py", gpt)])
    for script, trainer in (
        ("train_tokenizer.py", build_tokenizer([*tokenizer, "--train_batch_size", "2"])),
        ("train_gpt.py", build_gpt([*gpt, "--per_device_train_batch_size", "2"])),
    ):
        expected, found = gradients_of(trainer), torch.load(tmp_path / script / f"{script}.pt")
        assert len({name.partition(".")[0] for name in expected}) == (2 if script == "train_tokenizer.py" else 1)
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(
                found[name], gradient, atol=1e-5, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
            )


def test_resumed_runs_equal_the_uninterrupted_ones(tokenizer_command, gpt_command, tmp_path):
    """To the bit, from every phase: each process has random numbers, data and counts of its own."""
    tokenizer = [*tokenizer_command, "--disc_start", "2", "--max_train_steps", "5", "--use_ema"]
    gpt = [*gpt_command, *WITH_HEADS, "--max_train_steps", "3"]
    commands = [(script, [*argv, "--checkpointing_steps", "1"]) for script, argv in
                (("train_tokenizer.py", tokenizer), ("train_gpt.py", gpt))]  # fmt: skip
    in_two_processes("resume", tmp_path, commands)
    assert_resumed(tmp_path / "train_tokenizer.py", 4, "diffusion_pytorch_model.safetensors")
    assert_resumed(tmp_path / "train_gpt.py", 2, "model.safetensors")


def assert_resumed(folder: Path, steps: int, weights: str) -> dict[str, torch.Tensor]:
    """Runs from each of ``steps`` checkpoints have ended as the uninterrupted one, whose weights are returned."""
    (whole,) = (folder / "whole").iterdir()
    resumed = [run for started in sorted(folder.glob("from-*")) for run in started.iterdir()]
    assert len(resumed) == steps
    assert json.loads((whole / "run.json").read_text())["num_processes"] == 2
    expected = load_file(whole / weights)
    for run in resumed:
        assert metrics_of(run) == metrics_of(whole)
        assert all(torch.equal(tensor, expected[name]) for name, tensor in load_file(run / weights).items())
    return expected


def test_sharded_weights_train_as_those_of_one_process_are_saved_whole_and_resumed(gpt_command, tmp_path):
    """A checkpoint of one process's part would load nowhere, and moments of one part would continue another run."""
    argv = [*gpt_command, *WITH_HEADS, "--max_train_steps", "3", "--max_grad_norm", "1", "--llama_attn_drop", "0"]
    sharded = [*argv, "--checkpointing_steps", "1", "--use_frame_metrics"]
    in_two_processes("resume-sharded", tmp_path, [("train_gpt.py", sharded)])
    weights = assert_resumed(tmp_path / "train_gpt.py", 2, "model.safetensors")
    one = fit(build_gpt([*argv, "--per_device_train_batch_size", "2"]))
    for name, tensor in load_file(one / "model.safetensors").items():
        torch.testing.assert_close(weights[name], tensor, atol=2e-4, rtol=1e-3)
