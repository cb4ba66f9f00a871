"""The first signal is a request, the second one an order."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ivideogpt.runs import signals
from ivideogpt.runs.signals import Interrupted, StopSignal


def test_a_second_signal_ends_at_once(caplog, monkeypatch):
    """A step that hangs could be ended by SIGKILL alone."""
    before = signal.getsignal(signal.SIGTERM)
    stop = StopSignal()
    with stop.listening():
        stop.check()
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Interrupted):
            stop.check()
        assert stop.number == signal.SIGTERM
        assert "SIGTERM: ending after this step" in caplog.text
        os.kill(os.getpid(), signal.SIGTERM)  # passed on by a launcher that the same signal has reached
        monkeypatch.setattr(signals, "SAME_SIGNAL", 0)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) == before


CHILD = """
import sys, time
from ivideogpt.runs.signals import StopSignal

stop = StopSignal()
with stop.listening():
    print("ready", flush=True)
    while not stop.number:
        time.sleep(0.01)
    print("asked to stop", flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_a_launcher_that_ends_ends_its_run():
    """``accelerate launch`` died of SIGTERM, and the training went on without it, with the GPU."""
    launcher = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {CHILD!r}])"
    environment = os.environ | {"ACCELERATE_MIXED_PRECISION": "no", "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(
        [sys.executable, "-c", launcher], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout.readline() == "ready\n"
        process.terminate()
        assert process.stdout.readline() == "asked to stop\n"


@pytest.mark.parametrize(("signalled", "code"), [(True, 143), (False, 1)])
def test_a_job_that_was_asked_to_stop_says_so(signalled, code, tmp_path):
    """torchrun's launcher ends with 1 whatever happened, and SLURM's job was never put into the queue again."""
    accelerate = tmp_path / "accelerate"
    waiting = "while :; do sleep 0.1; done" if signalled else ""
    accelerate.write_text(f"#!/bin/sh\ntrap 'exit 1' TERM\necho ready\n{waiting}\nexit 1\n")
    accelerate.chmod(0o755)
    slurm = {"SLURM_NNODES": "1", "SLURM_NODEID": "0", "MAIN_ADDRESS": "here", "MAIN_PORT": "1"}
    environment = os.environ | slurm | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    launch = Path(__file__).parents[2] / "scripts" / "slurm" / "launch.sh"
    with subprocess.Popen(["bash", launch, "1", "train_gpt.py"], stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout.readline() == b"ready\n"
        if signalled:
            process.terminate()
        assert process.wait() == code
