"""A folder belongs to one process, and to nobody once that is gone, however it ended."""

import os
import signal
import subprocess
import sys

import pytest

from ivideogpt.errors import UserError
from ivideogpt.runs.locks import locked

HOLD = """
import os, pathlib, sys, time
from ivideogpt.runs.locks import locked
with locked(pathlib.Path(sys.argv[1]), "go"):
    worker = os.fork()
    if not worker:  # it has closed its copy by now
        print(os.getpid(), flush=True)
    time.sleep(600)
"""


def test_a_killed_process_holds_nothing(tmp_path):
    """Two processes trained into one folder. Neither a lock file left by a kill nor its data workers are in the way."""
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        worker = int(holder.stdout.readline())
        with (
            pytest.raises(UserError, match=r"another process is running in .*: wait for it, or go"),
            locked(tmp_path, "go"),
        ):
            pass
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    try:
        with locked(tmp_path, "go"):
            assert [path.name for path in tmp_path.iterdir()] == ["lock"]
    finally:
        os.kill(worker, signal.SIGKILL)
