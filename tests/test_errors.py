from __future__ import annotations

import errno
import resource
import shlex
import subprocess
import sys
import threading

import pytest
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from ivideogpt.errors import UserError, cli


def raising(error: BaseException):
    def main() -> None:
        raise error

    return main


@pytest.mark.parametrize("error", [UserError("no such\nthing"), FileNotFoundError("no such thing")])
def test_a_users_error_is_one_line_and_exit_code_2(capsys, error):
    with pytest.raises(SystemExit) as exit_:
        cli(raising(error))
    assert exit_.value.code == 2
    assert capsys.readouterr().err == "error: no such thing\n"


def test_ctrl_c_is_one_line(capsys):
    with pytest.raises(SystemExit) as exit_:
        cli(raising(KeyboardInterrupt()))
    assert exit_.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize(
    ("error", "line"), [(UserError("no such clip"), "error: no such clip"), (KeyboardInterrupt(), "interrupted")]
)
def test_the_line_begins_under_open_progress_bars(error, line, capsys):
    """It stood behind a bar, where nobody looks for it: `clips: 25%|##  | 1/4 [..]error: no such clip`."""

    def main() -> None:
        episodes, clips = tqdm(total=4, desc="episodes"), tqdm(total=4, desc="clips")
        clips.update()
        episodes.update()
        raise error

    with pytest.raises(SystemExit):
        cli(main)
    assert capsys.readouterr().err.replace("\r", "\n").endswith(f"\n{line}\n")


def test_the_line_needs_no_progress_bars():
    code = "import sys; from ivideogpt import errors; errors._report('error'); print('tqdm' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("False\n", "error\n")


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ValueError, match="ours"):
        cli(raising(ValueError("ours")))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/data/a.npz"), "No space left on device: '/data/a.npz'"),
        (PermissionError(errno.EACCES, "Permission denied", "/root"), "Permission denied: '/root'"),
    ],
)
def test_what_the_system_refuses_is_one_line(error, message, capsys):
    """A full disk printed a traceback of forty lines."""

    with pytest.raises(SystemExit) as exit_:
        cli(raising(error))
    assert exit_.value.code == 2
    assert capsys.readouterr().err == f"error: [Errno {error.errno}] {message}\n"


def test_a_reader_that_has_seen_enough_is_no_error():
    """``inspect ... | head`` ended in a traceback of BrokenPipeError."""
    code = "from ivideogpt.errors import cli; cli(lambda: [print('line') for _ in range(100_000)])"
    command = f"{shlex.quote(sys.executable)} -c {shlex.quote(code)} | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("line\n", "")


def test_tensorboard_on_a_full_disk_is_one_line(tmp_path, capsys, monkeypatch):
    """Its thread printed a traceback of its own above the command's line."""
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)

    def main() -> None:
        writer = SummaryWriter(str(tmp_path))
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limit[1]))
        try:
            for step in range(20):
                writer.add_scalar("loss", 1.0, step)
                writer.flush()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)

    with pytest.raises(SystemExit) as exit_:
        cli(main)
    assert exit_.value.code == 2
    assert capsys.readouterr().err == "error: [Errno 27] File too large\n"
