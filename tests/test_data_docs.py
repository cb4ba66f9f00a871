"""docs/data.md is what a newcomer follows: its walk-through is run as it stands."""

import os
import re
import shutil
import subprocess

from tests.commands import as_programs
from tests.data.synthetic import record_video
from tests.documented import ROOT, blocks, commands

TEXT = (ROOT / "docs" / "data.md").read_text()
WALK_THROUGH = next(block for block in blocks(TEXT, "bash") if "videos_to_npz.py" in block)


def test_there_are_commands_of_every_kind():
    """What is not mentioned is not found."""
    scripts = {word for command in commands(TEXT) for word in command if word.startswith("datasets/")}
    assert {str(path.relative_to(ROOT)) for path in (ROOT / "datasets").glob("*.py")} == scripts
    assert {command[3] for command in commands(TEXT) if command[1:3] == ["-m", "ivideogpt.data"]} == {
        "inspect", "preview", "validate", "tokenize",
    }  # fmt: skip


def small(script: str) -> str:
    """The same commands with less work."""
    for flag, value in {
        "max_train_steps": 2,
        "disc_start": 9,
        "segment_length": 4,
        "train_batch_size": 1,
        "dataloader_num_workers": 0,
    }.items():
        script = re.sub(rf"--{flag} \d+", f"--{flag} {value}", script)
    script = script.replace("train_tokenizer.py ", "train_tokenizer.py --segment_horizon 6 --skip_first_val ")
    return script.replace("train_gpt.py ", "train_gpt.py --max_eval_iters 1 --skip_first_val ")


def test_the_walk_through(tiny_world_model, tmp_path):
    """From videos to a prediction with a newcomer's model, command by command."""
    (tmp_path / "recordings").mkdir()
    for number in (1, 2, 3):
        record_video(tmp_path / "recordings", f"pick-{number:03d}", number)
    for name in ("train_tokenizer.py", "train_gpt.py", "datasets", "inference", "ivideogpt"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copytree(tiny_world_model, tmp_path / "pretrained_models" / "ivideogpt-metaworld-64-tiny")
    (tmp_path / "configs" / "llama").mkdir(parents=True)
    shutil.copy(tiny_world_model / "transformer" / "config.json", tmp_path / "configs" / "llama" / "config_tiny.json")
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", small(WALK_THROUGH)],
        cwd=tmp_path, env=os.environ | as_programs(tmp_path / "bin"), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "my_robot: 3 episodes, 45 frames read, 0 bad" in done.stdout
    assert "my_robot: 3 episodes, 3 looked at" in done.stdout
    assert len(list((tmp_path / "preview").glob("my_robot-pick-*.png"))) == 3
    assert list((tmp_path / "outputs" / "my_robot").glob("*.gif"))
