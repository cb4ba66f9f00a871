"""A folder belongs to one process, and to nobody once that is gone, however it ended."""

import signal
import subprocess
import sys

import pytest

from ivideogpt.errors import UserError
from ivideogpt.locks import locked

HOLD = """
import pathlib, sys, time
from ivideogpt.locks import locked
with locked(pathlib.Path(sys.argv[1]), "go"):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_killed_process_holds_nothing(tmp_path):
    """Two processes trained into one folder; a lock file left by a kill must not be in the way either."""
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(UserError, match=r"another process is running in .*: wait for it, or go"),
            locked(tmp_path, "go"),
        ):
            pass
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with locked(tmp_path, "go"):
        assert [path.name for path in tmp_path.iterdir()] == ["lock"]
