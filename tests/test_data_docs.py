"""docs/data.md is what a newcomer follows: its walk-through is run as it stands."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import av
import numpy as np

from tests.commands import as_programs
from tests.documented import ROOT, blocks, commands

TEXT = (ROOT / "docs" / "data.md").read_text()
WALK_THROUGH = blocks(TEXT, "bash")[0]


def test_there_are_commands_of_every_kind():
    """What is not mentioned is not found."""
    scripts = {word for command in commands(TEXT) for word in command if word.startswith("datasets/")}
    assert {str(path.relative_to(ROOT)) for path in (ROOT / "datasets").glob("*.py")} == scripts
    assert {command[3] for command in commands(TEXT) if command[1:3] == ["-m", "ivideogpt.data"]} == {
        "inspect", "preview", "validate", "tokenize",
    }  # fmt: skip


def record(folder: Path, name: str, seed: int) -> None:
    """A video at 10 frames per second of a square that follows the first two of four numbers."""
    rng = np.random.default_rng(seed)
    moves = rng.integers(-3, 4, (30, 2))
    place = np.array([40, 40])
    with av.open(str(folder / f"{name}.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for move in moves:
            frame = np.full((96, 128, 3), 60, np.uint8)
            frame[place[0] : place[0] + 20, place[1] : place[1] + 20] = (250, 120, 30)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            place = np.clip(place + move, 0, 70)
        container.mux(stream.encode())
    rows = np.concatenate([moves, np.zeros((30, 1)), rng.integers(0, 2, (30, 1))], axis=1)
    np.savetxt(folder / f"{name}.csv", rows, delimiter=",", header="x,y,z,grip", comments="")


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
        record(tmp_path / "recordings", f"pick-{number:03d}", number)
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
