"""Environments in processes must differ from those in this one by nothing but speed, and fail in one clear message."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from ivideogpt.errors import UserError
from mbrl.envs.env_settings import EnvSettings
from mbrl.envs.offscreen import select_backend
from mbrl.envs.vector_env import LostEnvironment, evaluate, make_vector_env

pytestmark = pytest.mark.usefixtures("renders")

ROOT = Path(__file__).resolve().parents[3]
SETTINGS = EnvSettings("plate-slide", image_size=16, duration=5)
FULL_DISK = "tests.mbrl.toy_env:FullDisk-v0"
SEEDS = [11, 12, 13, 14, 15]


@pytest.fixture(scope="module")
def here():
    envs = make_vector_env(SETTINGS, 2, in_processes=False)
    yield envs
    envs.close()


@pytest.fixture(scope="module")
def spread():
    envs = make_vector_env(SETTINGS, 3, in_processes=True)
    yield envs
    envs.close()


def by_brightness(stacks: np.ndarray) -> np.ndarray:
    """A policy that looks: one wrong row would change all that follows. Row by row, whatever the batch."""
    return np.stack([np.sin(stack.astype(np.float64).sum() * np.arange(1, 5)) for stack in stacks]).astype(np.float32)


def test_shapes(spread):
    stacks, _ = spread.reset(seed=SEEDS[:3])
    assert (stacks.shape, stacks.dtype) == ((3, 9, 16, 16), np.uint8)
    following, rewards, terminated, truncated, info = spread.step(by_brightness(stacks))
    assert (following.shape, rewards.shape, info["success"].shape) == ((3, 9, 16, 16), (3,), (3,))
    assert not (terminated | truncated).any()
    np.testing.assert_array_equal(following[:, :6], stacks[:, 3:])


def test_results_depend_on_seeds_alone(here, spread):
    """Bug prevented: goals, order or frames that depend on the number of workers or environments, and so on waves."""
    results = {envs: evaluate(envs, by_brightness, SEEDS, record=range(1, 4)) for envs in (here, spread)}
    for one, other in zip(results[here], results[spread], strict=True):
        assert (one.total_reward, one.success) == (other.total_reward, other.success)
        np.testing.assert_array_equal(one.frames, other.frames)
    assert [result.frames is not None for result in results[here]] == [False, True, True, True, False]
    assert len({result.total_reward for result in results[here]}) == 5
    last_alone = evaluate(spread, by_brightness, SEEDS[4:])
    assert last_alone[0].total_reward == results[here][4].total_reward


def test_the_policy_sees_no_environment_that_only_fills_a_wave(spread):
    """Bug prevented: actions that differ in their last bits with the size of the batch, and so with the processors."""
    sizes = set()

    def noting(stacks):
        sizes.add(len(stacks))
        return by_brightness(stacks)

    evaluate(spread, noting, SEEDS)
    assert sizes == {3, 2}


def test_episodes_are_bitwise_equal(here, spread):
    for envs in (here, spread):
        evaluate(envs, by_brightness, SEEDS[:2])
    for one, other in zip(here.call("episode"), spread.call("episode"), strict=False):
        for name, array in vars(one).items():
            np.testing.assert_array_equal(array, getattr(other, name), err_msg=name)


def test_a_failing_environment_is_one_error_and_no_process_is_left():
    """Bug prevented: waiting for ever for a worker that has failed, or that goes on unseen."""
    envs = make_vector_env(SETTINGS, 2, in_processes=True)
    processes = [process.pid for process in envs.processes]
    envs.reset(seed=SEEDS[:2])
    with pytest.raises(AssertionError, match=r"is not in \[-1, 1\]") as caught:
        envs.step(np.array([[0, 0, 0, 0], [0, 0, 2, 0]], np.float32))
    assert "agent_env.py" in caught.value.__notes__[0]  # where in the worker
    envs.close()
    assert not any(map(is_running, processes))


@pytest.mark.parametrize("in_processes", [False, True])
def test_an_environment_s_error_is_one_line(in_processes, capfd):
    """Bug prevented: gymnasium prints the traceback of each process, above the line that says what to do."""
    envs = make_vector_env(EnvSettings(FULL_DISK, duration=5), 2, in_processes)
    policy = lambda stacks: np.zeros((len(stacks), 2), np.float32)  # noqa: E731
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(LostEnvironment, match=r"failed in an evaluation.*No space left on device") as caught:
            evaluate(envs, policy, SEEDS[:2])
    assert "\n" not in str(caught.value)
    envs.close()
    assert capfd.readouterr().err == ""


def test_a_killed_worker_is_one_error(capfd):
    """Bug prevented: a traceback of a pipe for every process, when the system has killed one for its memory."""
    envs = make_vector_env(SETTINGS, 2, in_processes=True)
    processes = [process.pid for process in envs.processes]
    os.kill(processes[1], signal.SIGKILL)
    with pytest.raises(LostEnvironment, match=r"ended by itself \(exit code -9\).*fewer processors"):
        evaluate(envs, by_brightness, SEEDS[:2])
    assert not any(map(is_running, processes))
    envs.close()
    assert capfd.readouterr().err == ""


def test_workers_leave_sigterm_to_their_parent(spread):
    """Bug prevented: a batch system ends a run in an evaluation, and without workers it ends before it has saved."""
    stacks, _ = spread.reset(seed=SEEDS[:3])
    os.kill(spread.processes[0].pid, signal.SIGTERM)
    assert spread.step(by_brightness(stacks))[0].shape == (3, 9, 16, 16)


NEVER_CLOSED = """
from mbrl.envs.env_settings import EnvSettings
from mbrl.envs.vector_env import make_vector_env
if __name__ == "__main__":
    envs = make_vector_env(EnvSettings("plate-slide", image_size=16), 1, in_processes=True)
    print(envs.processes[0].pid, flush=True)
"""


def test_environments_that_nobody_closed_end_with_their_process(tmp_path):
    """Bug prevented: Python waits at its end for workers that wait for it."""
    script = tmp_path / "script.py"
    script.write_text(NEVER_CLOSED)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert not is_running(int(done.stdout))


@pytest.mark.parametrize(
    ("settings", "library", "message"),
    [
        (EnvSettings("plate-slid", image_size=16), None, "did you mean plate-slide"),
        (SETTINGS, "directx", "off-screen rendering does not work here.*apt-get install libegl1"),
    ],
)
def test_what_cannot_be_made_is_the_users_error(settings, library, message, monkeypatch):
    if library:
        monkeypatch.setenv("MUJOCO_GL", library)
        monkeypatch.setattr("mbrl.envs.metaworld_env.select_backend", select_backend.__wrapped__)
    with pytest.raises(UserError, match=message) as caught:
        make_vector_env(settings, 1, in_processes=True)
    assert "\n" not in str(caught.value)


STEP_FOR_EVER = """
import signal, time
import gymnasium
import numpy as np
from gymnasium.spaces import Box
from mbrl.envs.env_settings import EnvSettings
from mbrl.envs.vector_env import make_vector_env
class Still(gymnasium.Env):
    observation_space, action_space = Box(0, 255, (16, 16, 3), np.uint8), Box(-1, 1, (4,), np.float32)
    def __init__(self, image_size, action_repeat):
        self.frame = np.zeros((16, 16, 3), np.uint8)
    def reset(self, seed=None, options=None):
        return self.frame, {}
    def step(self, action):
        return self.frame, 0.0, False, False, {"success": False}
gymnasium.register("Still-v0", Still)
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which jobs in the background are born without
    envs = make_vector_env(EnvSettings("script:Still-v0", image_size=16, duration=10**6), 1, in_processes=True)
    envs.reset(seed=[0])
    print(envs.processes[0].pid, flush=True)
    while True:
        envs.step(np.zeros((1, 4), np.float32))
        time.sleep(0.1)  # costs no processor time while the other one starts
"""


def test_workers_end_with_their_parent(tmp_path):
    """Bug prevented: processes left behind by Ctrl-C, kill or a closed terminal."""
    script = tmp_path / "script.py"
    script.write_text(STEP_FOR_EVER)
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    parents = [subprocess.Popen([sys.executable, script], env=environment, **output) for _ in range(2)]
    workers = [int(parent.stdout.readline()) for parent in parents]
    try:
        for parent, number in zip(parents, (signal.SIGINT, signal.SIGKILL), strict=True):
            parent.send_signal(number)
            parent.wait(timeout=60)
        deadline = time.monotonic() + 60
        while any(map(is_running, workers)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not any(map(is_running, workers))
    finally:
        for parent in parents:
            parent.kill()
        for worker in workers:
            with suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)


def is_running(pid: int) -> bool:
    """A process that nobody has waited for yet counts as ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
