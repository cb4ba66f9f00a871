"""The documented commands as a user types them, one each; everything else is tested within this process."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from ivideogpt.runs.checkpoints import complete_checkpoints
from ivideogpt.training.common.checkpoints import TOKENIZER_CHECKPOINTS
from tests.commands import run_python
from tests.training.runs import without

ROOT = Path(__file__).parents[2]


def test_train_tokenizer(tokenizer_command, tmp_path):
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", "--mixed_precision", "bf16"]
    flags = ["--max_train_steps", "2", "--report_to", "tensorboard", "--dataloader_num_workers", "1"]
    command = [*launch, "train_tokenizer.py", *without(tokenizer_command, "--mixed_precision"), *flags]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    assert (folder / "unwrapped_model" / "config.json").is_file()
    assert '"mixed_precision": "bf16"' in (folder / "run.json").read_text()
    assert list((folder / "logs").rglob("events.out.tfevents*"))


def test_a_signal_to_all_processes_saves_and_says_so(tokenizer_command, tmp_path):
    """Schedulers signal data workers too: those must not take the checkpoint with them. 143 is no success."""
    flags = ["--max_train_steps", "10000", "--disc_start", "10000", "--skip_first_val", "--dataloader_num_workers", "1"]
    command = [sys.executable, "train_tokenizer.py", *tokenizer_command, *flags]
    log = tmp_path / "log"
    with log.open("w") as file:
        process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file, start_new_session=True)
    try:
        while process.poll() is None and not list(tmp_path.glob("runs/*/metrics.jsonl")):
            time.sleep(0.1)
        assert process.poll() is None, log.read_text()
        os.killpg(process.pid, signal.SIGTERM)
        assert process.wait(timeout=120) == 128 + signal.SIGTERM, log.read_text()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    (folder,) = (tmp_path / "runs").iterdir()
    assert len(complete_checkpoints(folder, TOKENIZER_CHECKPOINTS)) == 1


def test_train_gpt(gpt_command, tmp_path):
    done = run_python("train_gpt.py", *gpt_command, "--max_train_steps", "2", "--mixed_precision", "bf16")
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    assert {"config.json", "model.safetensors", "ivideogpt.json", "run.json"} <= {
        path.name for path in folder.iterdir()
    }


def test_wrong_flags():
    done = run_python("train_gpt.py", "--pretrained_model_name_or_path", "tokenizer", "--symlog")
    assert (done.returncode, done.stderr) == (
        2, "error: --symlog transforms rewards: it needs --reward_prediction\n",
    )  # fmt: skip
