"""What tests run in two real processes, through torchrun: ``two_processes.py gradients|resume <folder> <argv.json>``.

``argv.json`` holds the commands ``[[script, flags], ...]``.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState

from tests.training.gradients import gradients_of
from tests.training.runs import build_gpt, build_tokenizer, fit

BUILD = {"train_tokenizer.py": build_tokenizer, "train_gpt.py": build_gpt}


def save_gradients(folder: Path, script: str, argv: list[str]) -> None:
    trainer = BUILD[script](argv)
    assert trainer.run.accelerator.num_processes == 2
    gradients = gradients_of(trainer)
    if trainer.run.is_main_process:
        torch.save(gradients, folder / f"{script}.pt")
    PartialState().wait_for_everyone()


def run_and_resume(folder: Path, script: str, argv: list[str]) -> None:
    """One whole run in ``whole``, and one resumed from each of its checkpoints in ``from-<step>``."""
    is_main = PartialState(cpu=True).is_main_process
    whole = fit(BUILD[script]([*argv, "--output_dir", str(folder / "whole")]))
    for checkpoint in sorted(whole.rglob("checkpoint[-_]*"))[:-1]:
        AcceleratorState._reset_state()
        output = folder / f"from-{checkpoint.name[11:]}"
        if is_main:
            shutil.copytree(whole, output / whole.name)
        PartialState(cpu=True).wait_for_everyone()
        at = output / whole.name / checkpoint.relative_to(whole)
        fit(BUILD[script]([*argv, "--output_dir", str(output), "--resume_from_checkpoint", str(at)]))
    AcceleratorState._reset_state()


if __name__ == "__main__":
    PartialState.destroy_process_group = lambda *_: None  # one connection for all runs
    what, folder, commands = sys.argv[1], Path(sys.argv[2]), json.loads(Path(sys.argv[3]).read_text())
    for script, argv in commands:
        {"gradients": save_gradients, "resume": run_and_resume}[what](folder / script, script, argv)
