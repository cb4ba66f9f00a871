"""Environments as folders: written by the command, opened by a process that knows nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from ivideogpt.commands.export_env import main
from ivideogpt.envs import hub
from ivideogpt.errors import UserError
from tests.commands import ROOT, run_python

FUNCTIONS = "def reward(frames):\n    return frames.mean(dim=(1, 2, 3))\n"
USE = """
import importlib.util, sys
import numpy as np

spec = importlib.util.spec_from_file_location("env", sys.argv[1] + "/env.py")
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
envs = module.make_env(n_envs=2)
observations, _ = envs.reset(seed=0)
np.save(sys.argv[2], observations["pixels"])
_, rewards, _, truncations, infos = envs.step(np.zeros((2, 4), np.float32))
assert (rewards > 0).all() and truncations.all(), rewards
assert infos["final_info"]["is_success"].shape == (2,)
"""


@pytest.fixture
def flags(tiny_world_model, tmp_path):
    (tmp_path / "brightness.py").write_text(FUNCTIONS)
    return (
        f"--pretrained_model_name_or_path {tiny_world_model} --dataset_path {ROOT / 'inference' / 'samples'} "
        f"--output {tmp_path / 'exported'} --num_contexts 3 --horizon 1"
    ).split()


def test_another_process_makes_the_environment(flags, tmp_path):
    """A path of this machine, a forgotten file or an import from the checkout would show only at the user's."""
    main([*flags, "--functions", str(tmp_path / "brightness.py")])
    folder = (tmp_path / "exported").rename(tmp_path / "elsewhere")
    (tmp_path / "use.py").write_text(USE)
    done = run_python(tmp_path / "use.py", folder, tmp_path / "seen.npy", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    seen, kept = np.load(tmp_path / "seen.npy"), np.load(folder / hub.CONTEXTS)["frames"]
    assert kept.shape == (3, 2, 64, 64, 3)
    assert all(any(np.array_equal(frame, start[-1]) for start in kept) for frame in seen)


def test_what_cannot_be_exported(flags, tmp_path):
    """The folder must not be begun before it is known that the environment can be made."""
    with pytest.raises(UserError, match="no reward head"):
        main(flags)
    (tmp_path / "empty.py").touch()
    (tmp_path / "functions.txt").write_text(FUNCTIONS)
    with pytest.raises(UserError, match=r"ends in \.py"):
        main([*flags, "--functions", str(tmp_path / "functions.txt")])
    with pytest.raises(UserError, match=r"neither a function reward\(frames\)"):
        main([*flags, "--functions", str(tmp_path / "empty.py")])
    assert not (tmp_path / "exported").exists()
    (tmp_path / "exported").mkdir()
    (tmp_path / "exported" / "mine.txt").touch()
    with pytest.raises(UserError, match=r"--output .* exists"):
        main(flags)
