"""Commands as users run them, in processes forked from one that has imported torch.

A fork begins in a tenth of a second; a fresh interpreter spends three seconds of processor time on imports. Tests of
imports, launchers and signals start interpreters of their own.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PRELOADED = ("ivideogpt.evaluation.report", "ivideogpt.training.transformer.build", "mbrl.build_trainer")
Environment = Mapping[str, str]
LONGEST = 600  # seconds that a command may take
_started: list[Any] = []  # processes and folders: they end with this process


def run_python(*argv: object, cwd: Path = ROOT, env: Environment | None = None) -> subprocess.CompletedProcess[str]:
    """Run ``python <argv>``, a script or ``-m`` and a module, in this process's environment and ``env``."""
    return _run(argv, cwd, [env or {}])


def run_in_two_processes(*argv: object, env: Environment | None = None) -> subprocess.CompletedProcess[str]:
    """Run it as ``torch.distributed.run --nproc_per_node 2`` does; if one process fails, the other is ended."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    shared = {**(env or {}), "TORCHELASTIC_RUN_ID": "none", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return _run(argv, ROOT, [{**shared, "WORLD_SIZE": "2", "RANK": rank, "LOCAL_RANK": rank} for rank in "01"])


def _run(argv: tuple[object, ...], cwd: Path, envs: list[Environment]) -> subprocess.CompletedProcess[str]:
    words = [str(word) for word in argv]
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as server:
        outputs = [str(Path(folder, name)) for name in ("stdout", "stderr")]
        commands = [{"argv": words, "cwd": str(cwd), "env": {**os.environ, **env}, "outputs": outputs} for env in envs]
        server.settimeout(LONGEST)
        server.connect(_server())
        server.sendall(json.dumps(commands).encode() + b"\n")
        status = server.makefile().readline()
        assert status, "the process that commands are forked from has ended"
        printed = [Path(path).read_text() for path in outputs]
    return subprocess.CompletedProcess([sys.executable, *words], int(status), *printed)


# ---- the process to fork from


@cache
def _server() -> str:
    """Return its socket. It is started when first asked for, and ends when this process does."""
    folder = tempfile.TemporaryDirectory(prefix="commands-", ignore_cleanup_errors=True)
    path = str(Path(folder.name, "socket"))
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    server = subprocess.Popen([sys.executable, "-m", "tests.commands", path], cwd=ROOT, **pipes)
    _started.append((server, folder))
    assert server.stdout.readline() == b"ready\n"
    return path


def _serve(path: str) -> dict[str, Any]:
    """Fork a child for every command and answer with their exit status. Returns in the children, with their command."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        print("ready", flush=True)
        while sys.stdin not in select.select([sys.stdin, server], [], [])[0]:
            connection, _ = server.accept()
            with connection:
                children = set()
                for command in json.loads(connection.makefile().readline()):
                    child = os.fork()
                    if child == 0:
                        return command
                    children.add(child)
                connection.sendall(b"%d\n" % _exit_code(children))
    sys.exit()


def _exit_code(children: set[int]) -> int:
    """Wait for all; the first that fails ends the others."""
    failed = 0
    while children:
        child, status = os.wait()
        children.remove(child)
        if status and not failed:
            failed = os.waitstatus_to_exitcode(status)
            for other in children:
                os.kill(other, signal.SIGKILL)
    return failed


def _become(argv: list[str], cwd: str, env: dict[str, str], outputs: list[str]) -> None:
    """Run a command in this process as a fresh interpreter would."""
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    for number, path in enumerate([os.devnull, *outputs]):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND), number)
    is_module = argv[0] == "-m"
    sys.argv = argv[1:] if is_module else argv
    sys.path[0] = cwd if is_module else str(Path(argv[0]).resolve().parent)
    if is_module:
        runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(argv[0], run_name="__main__")


if __name__ == "__main__":
    for name in PRELOADED:
        importlib.import_module(name)
    _become(**_serve(sys.argv[1]))
