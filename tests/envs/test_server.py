"""The served environment on real sockets: the same episodes as in this process, and what nobody can do to it."""

from __future__ import annotations

import http.client
import io
import re
import signal
import socket
import subprocess
import sys
import threading
import tracemalloc
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ivideogpt import web
from ivideogpt.commands import serve_env
from ivideogpt.envs import RemoteEnv
from ivideogpt.envs.messages import MAX_ARRAYS, unpack
from ivideogpt.envs.server import MAX_SIDE, MAX_TEXT
from ivideogpt.errors import UserError, cli
from ivideogpt.web import WebArgs, open_socket
from tests.commands import ROOT
from tests.envs.conftest import BRIGHT, HORIZON, NUM_SERVED, running
from tests.play.serving import PATIENCE, wait_until

NUM_ENVS, ACTION_DIM = NUM_SERVED, 4
CHUNK = np.random.default_rng(1).uniform(-1, 1, (NUM_ENVS, HORIZON, ACTION_DIM)).astype(np.float32)
STILL = np.zeros((NUM_ENVS, 1, ACTION_DIM), np.float32)


def ask(server: SimpleNamespace, path: str, body: bytes, **headers: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
    connection.request("POST", path, body, headers)
    response = connection.getresponse()
    content = response.read()
    connection.close()
    return response.status, "" if response.status == 200 else content.decode()


def expect_same(ours: Any, theirs: Any) -> None:
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys()
        for name in theirs:
            expect_same(ours[name], theirs[name])
    elif isinstance(theirs, torch.Tensor):
        assert ours.dtype == theirs.numpy().dtype
        np.testing.assert_array_equal(ours, theirs.numpy())
    elif isinstance(theirs, list | tuple) and not isinstance(theirs[0], str):
        for mine, other in zip(ours, theirs, strict=True):
            expect_same(mine, other)
    else:
        assert ours == theirs


@pytest.mark.parametrize("auto_reset", [True, False])
def test_a_remote_environment_is_the_one_in_this_process(make_env, frames, auto_reset):
    """An array that is transposed, rounded or of another episode on its way trains another policy."""
    local = make_env(**BRIGHT, auto_reset=auto_reset)
    with running(make_env(**BRIGHT, auto_reset=auto_reset)) as served:
        remote = RemoteEnv(served.address)
        for name in ("num_envs", "auto_reset", "ignore_terminations", "is_start"):
            assert getattr(remote, name) == getattr(local, name)
        assert (remote.horizon, remote.action_dim, remote.resolution, remote.num_start_frames) == (HORIZON, 4, 64, 2)
        both = [remote, local]
        expect_same(*(env.reset(seed=5) for env in both))
        expect_same(remote.chunk_step(CHUNK), local.chunk_step(torch.from_numpy(CHUNK)))
        assert (remote.is_start, local.is_start) == (False, False)
        expect_same(remote.elapsed_steps, local.elapsed_steps)
        given = dict(seed=[3, 4], contexts=frames[3:, :, :48], task_descriptions=["reach", "grasp é"])
        observations = [env.reset(**given)[0] for env in both]
        expect_same(*observations)
        one = dict(reset_mask=np.array([False, True]), task_descriptions=["lift"], contexts=frames[:1])
        observations = [env.reset(**one)[0] for env in both]
        expect_same(*observations)
        assert observations[0]["task_descriptions"] == ["reach", "lift"]
        np.testing.assert_array_equal(observations[0]["main_images"][1], frames[0, -1])
        expect_same(remote.step(STILL[:, 0]), local.step(torch.from_numpy(STILL[:, 0])))
        remote.close()


def test_tensors_and_arrays_begin_the_same_episodes(make_env, frames):
    """RLinf's trainers keep masks and frames as tensors, on any device."""
    arrays = dict(contexts=frames[:1], reset_mask=np.array([False, True]))
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    observations = []
    for given in (arrays, tensors):
        env = make_env()
        env.reset(seed=1)
        observations.append(env.reset(**given)[0]["main_images"])
    assert torch.equal(*observations)


def npz(save: Callable[..., None] = np.savez, **arrays: Any) -> bytes:
    file = io.BytesIO()
    save(file, **arrays)
    return file.getvalue()


def zipped(compression: int = zipfile.ZIP_STORED, **members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return file.getvalue()


def npy(array: Any, *replaced: bytes) -> bytes:
    """Write an npy file in which the first of two texts, equally long, is replaced by the other."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue().replace(*replaced) if replaced else file.getvalue()


ACTIONS = npy(STILL)
WRONG_STEPS = {
    "nothing": (b"", "not an npz file"),
    "pickled": (npz(actions=np.array([[None]])), "type object"),
    "no zip": (ACTIONS, "not an npz file"),
    "cut off": (npz(actions=STILL)[:-9], "not an npz file"),
    "a shape that is not there": (zipped(actions=npy(STILL, b"(2, 1, 4)", b"(2, 9e9,)")), "not an npz file"),
    "terabytes that are not there": (zipped(actions=npy(np.zeros(8), b"(8,), }      ", b"(8000000000,)")), "not an"),
    "a negative shape": (zipped(actions=npy(STILL, b"(2, 1, 4)", b"(-2,-1,4)")), "claims shape"),
    "a structure": (npz(actions=np.zeros(2, [("a", "f4"), ("b", "f4")])), "an array of type"),
    "bz2": (zipped(zipfile.ZIP_BZIP2, actions=ACTIONS), "compression method 12"),
    "lzma": (zipped(zipfile.ZIP_LZMA, actions=ACTIONS), "compression method 14"),
    "many arrays": (npz(**{f"a{number}": STILL for number in range(MAX_ARRAYS + 1)}), "more than 32 arrays"),
    "another name": (npz(actions=STILL, action=STILL), "an array 'action' was given, expected actions"),
    "no actions": (npz(), "actions are missing"),
    "complex": (npz(actions=STILL + 1j), "array of type complex"),
    "texts": (npz(actions=np.full(STILL.shape, "1")), "expected numbers"),
    "bools": (npz(actions=STILL > 0), "expected numbers"),
    "one step": (npz(actions=STILL[:, 0]), r"shape \(2, 4\), expected numbers of shape \(rows"),
    "rows": (npz(actions=STILL[:1]), r"shape \(1, 1, 4\), expected \(2, steps, 4\)"),
    "no steps": (npz(actions=STILL[:, :0]), r"\(2, 0, 4\)"),
    "dimensions": (npz(actions=STILL[..., :3]), r"shape \(2, 1, 3\)"),
    "long chunk": (npz(actions=STILL.repeat(HORIZON + 1, 1)), "a chunk of 4 steps, an episode has 3"),
    "nan": (npz(actions=STILL * np.nan), "not finite"),
    "infinity": (npz(actions=STILL + np.inf), "not finite"),
    "too large for 32 bits": (npz(actions=STILL.astype(np.float64) + 1e300), "not finite"),
}  # fmt: skip
START = np.zeros((NUM_ENVS, 2, 8, 8, 3), np.uint8)
MASK, TEXTS = np.array([True, False]), np.array(["ab", "b"])
WRONG_RESETS = {
    "no character": (zipped(task_descriptions=npy(TEXTS, b"a\0\0\0", b"\xff" * 4)), "no characters"),
    "half a character": (zipped(task_descriptions=npy(TEXTS, b"a\0\0\0", b"\0\xd8\0\0")), "no characters"),
    "texts for others": (npz(task_descriptions=np.array(["a"])), "1 task_descriptions were given for 2 rows"),
    "masked texts": (npz(task_descriptions=TEXTS, reset_mask=MASK), "2 .* were given for 1 rows"),
    "a long text": (npz(task_descriptions=np.array(["a" * (MAX_TEXT + 1)] * 2)), "at most 1000 characters"),
    "no text": (npz(task_descriptions=np.zeros(2)), "task_descriptions is float64"),
    "seeds": (npz(seed=np.arange(3)), "3 seeds were given for 2 rows"),
    "seed": (npz(seed=np.array(-1)), "seed is int64"),
    "fraction": (npz(seed=np.array(0.5)), "seed is float64"),
    "mask": (npz(reset_mask=np.array([1, 0])), "reset_mask is"),
    "empty mask": (npz(reset_mask=~MASK & MASK), "reset_mask is"),
    "long mask": (npz(reset_mask=np.ones(3, bool)), "reset_mask is"),
    "one start": (npz(contexts=START[:1]), "1 contexts were given for 2 rows"),
    "no shape": (npz(contexts=np.uint8(1)), r"shape \(\)"),
    "short": (npz(contexts=START[:, :1]), "contexts of 1 frames were given"),
    "floats": (npz(contexts=START / 255), "contexts are float64"),
    "grey": (npz(contexts=START[..., :1]), "contexts are uint8 of shape"),
    "no pixels": (npz(contexts=START[:, :, :0]), "contexts are uint8 of shape"),
    "wide": (npz(contexts=np.zeros((2, 2, 1, MAX_SIDE + 1, 3), np.uint8)), "at most 1024 along each axis"),
    "states": (npz(states=np.zeros((2, 3))), "an array 'states' was given, expected contexts, reset_mask, seed, task"),
}


def test_wrong_requests_are_one_line_and_change_nothing(server, make_env):
    """One of them would end the server, take its memory, or move the episodes of whoever uses it."""
    remote, local = RemoteEnv(server.address), make_env(**BRIGHT)
    for env in (remote, local):
        env.reset(seed=5, task_descriptions=["a", "b"])
    for path, wrong in (("/chunk_step", WRONG_STEPS), ("/reset", WRONG_RESETS)):
        for name, (body, message) in wrong.items():
            status, text = ask(server, path, body)
            assert (status, text.count("\n")) == (400, 1), name
            assert re.search(message, text), (name, text)
    expect_same(remote.chunk_step(CHUNK), local.chunk_step(torch.from_numpy(CHUNK)))


def test_arrays_of_other_programs_are_read(server):
    """Big-endian, Fortran order and compression are what other languages and numpy's other function write."""
    turned = np.asfortranarray(CHUNK.astype(">f8"))
    for body in (npz(actions=CHUNK), npz(np.savez_compressed, actions=turned)):
        np.testing.assert_array_equal(unpack(body, 1 << 20)["actions"].astype(np.float32), CHUNK)
        assert RemoteEnv(server.address).reset(seed=1)
        assert ask(server, "/chunk_step", body) == (200, "")


def test_a_small_file_that_unpacks_to_gigabytes_is_refused_unread():
    """A few kilobytes would take the machine's memory, whether they say how much they become or not."""
    zeros = npy(np.zeros(50_000_000, np.uint8))
    bomb = zipped(zipfile.ZIP_DEFLATED, actions=zeros)
    claim = np.uint32(len(zeros)).tobytes()
    assert len(bomb) < 100_000
    assert bomb.count(claim) == 2
    file = io.BytesIO(zipped(actions=npy(np.zeros(1000))))
    with zipfile.ZipFile(file, "a") as archive:  # two entries with the same content
        archive.filelist.append(archive.filelist[0])
        archive.NameToInfo["b"], archive._didModify = archive.filelist[0], True
    tracemalloc.start()
    for forged, message in ((bomb, "bytes of arrays, at most 9000"), (bomb.replace(claim, b"\0\1\0\0"), "CRC|claims")):
        with pytest.raises(UserError, match=message):
            unpack(forged, 9000)
    with pytest.raises(UserError, match="bytes of arrays, at most 9000"):
        unpack(file.getvalue(), 9000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000


def test_a_body_of_any_size_is_refused(server):
    """It would be kept in memory until it is complete."""
    limit = server.app.max_bytes
    remote = RemoteEnv(server.address)
    with pytest.raises(UserError, match=f"takes at most {limit}"):
        remote.reset(contexts=np.zeros((limit, 1, 1, 1, 3), np.uint8))
    with socket.create_connection(("127.0.0.1", server.port), PATIENCE) as connection:
        connection.sendall(f"POST /reset HTTP/1.1\r\nHost: localhost\r\nContent-Length: {10**13}\r\n\r\n".encode())
        assert b" 413 " in connection.recv(1000)
    with socket.create_connection(("127.0.0.1", server.port), PATIENCE) as connection:
        connection.sendall(b"POST /reset HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        part = b"%x\r\n%s\r\n" % (1 << 16, bytes(1 << 16))
        for _ in range(limit // (1 << 16) + 1):
            connection.sendall(part)
        assert b" 413 " in connection.recv(1000)
    assert remote.reset()


def test_others_are_refused(server, make_env):
    """A page from elsewhere could make its reader's browser step; beyond this machine, so could the neighbours."""
    assert ask(server, "/reset", npz(), Origin="http://attacker.example")[0] == 403
    assert ask(server, "/reset", npz(), Host="attacker.example")[0] == 403
    assert [ask(server, path, npz())[0] for path in ("/health", "/", "/reset/..")] == [405, 404, 404]
    with running(make_env(), token="correct123") as guarded:
        for token in (None, "wrong12345"):
            with pytest.raises(UserError, match="token is missing or wrong"):
                RemoteEnv(guarded.address, token)
        assert ask(guarded, "/reset", npz())[0] == 403
        assert RemoteEnv(f"{guarded.address}/?token=correct123").reset()
        assert RemoteEnv(guarded.address, "correct123").reset()


def test_two_clients_take_turns(server):
    """Steps of two threads in one session would mix their frames, or end it."""
    RemoteEnv(server.address).reset(seed=0)
    clients, num_each = [RemoteEnv(server.address) for _ in range(2)], 6
    with ThreadPoolExecutor(2) as threads:
        taken = [threads.submit(client.chunk_step, STILL) for _ in range(num_each) for client in clients]
    elapsed, ended = np.zeros(NUM_ENVS, int), 0
    for answer in (future.result() for future in taken):
        assert len(answer[0]) == 1
        ended += (answer[2] | answer[3]).sum()
        elapsed += 1
    assert ended >= NUM_ENVS * 2 * num_each // HORIZON
    assert elapsed.tolist() == [2 * num_each] * NUM_ENVS


def test_a_full_server_says_so(make_env):
    """Requests that wait would take memory without a bound."""
    with running(make_env(), max_requests=1) as small:
        with socket.create_connection(("127.0.0.1", small.port), PATIENCE) as slow:
            slow.sendall(b"POST /reset HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n")
            wait_until(lambda: small.app._slots.taken)
            status, text = ask(small, "/reset", npz())
            assert (status, text.startswith("all 1 places are taken")) == (503, True)
        wait_until(lambda: not small.app._slots.taken)  # its end makes room
        assert RemoteEnv(small.address).reset()


def test_a_failure_does_not_end_the_server(make_env):
    """A trainer of days must be able to begin again, and learn that it has to."""
    env = make_env(reward=lambda frames: frames.mean((1, 2, 3)) * (torch.nan if failing else 1))
    failing = True
    with running(env) as served:
        remote = RemoteEnv(served.address)
        with pytest.raises(UserError, match="no episode has begun"):
            remote.chunk_step(STILL)
        remote.reset(seed=0)
        with pytest.raises(RuntimeError, match=r"the world model gives NaN .*: reset all rows"):
            remote.chunk_step(STILL)
        failing = False
        remote.reset(seed=0)
        assert remote.chunk_step(STILL)[1].all()
    with pytest.raises(UserError, match=r"does not answer .* is it running\?"):
        remote.reset()


def test_the_end_is_said_to_clients(make_env, monkeypatch, capfd):
    """A traceback at Ctrl-C, and a client that waits for an answer for ever."""
    monkeypatch.setattr(web, "PATIENCE", 0.1)
    is_stepping, may_go_on = threading.Event(), threading.Event()

    def reward(frames: torch.Tensor) -> torch.Tensor:
        is_stepping.set()
        may_go_on.wait(PATIENCE)
        return frames.mean((1, 2, 3))

    with ThreadPoolExecutor(1) as client:
        with running(make_env(reward=reward)) as served:
            remote = RemoteEnv(served.address)
            remote.reset()
            answer = client.submit(remote.chunk_step, STILL)
            assert is_stepping.wait(PATIENCE)
        with pytest.raises(UserError, match="the server ends"):
            answer.result(PATIENCE)
        may_go_on.set()
    assert "Traceback" not in capfd.readouterr().err


def test_addresses_of_clients():
    for address in ("127.0.0.1:8765", "ftp://localhost", "http://", "http://localhost:port", "http://["):
        with pytest.raises(UserError, match="expected one such as http://"):
            RemoteEnv(address)


USE = """
import sys
from ivideogpt.envs import RemoteEnv
env = RemoteEnv(sys.argv[1])
env.reset(seed=1)
_, rewards, _, truncations, _ = env.chunk_step([[[0.0] * 3] * 2] * 2)
assert rewards.shape == (2, 2) and truncations.sum() == 2, (rewards, truncations)
assert "torch" not in sys.modules
"""


def test_the_command_serves_a_trainer_without_torch(robots_model, tmp_path):
    """Trainers load their own torch, or none; a server that leaves a traceback at Ctrl-C looks broken.

    The actions are those of the chosen robot, of a model of two.
    """
    (tmp_path / "brightness.py").write_text("def reward(frames):\n    return frames.mean(dim=(1, 2, 3))\n")
    flags = f"""
        --pretrained_model_name_or_path {robots_model} --dataset_path {ROOT / "inference" / "samples"} --num_envs 2
        --functions {tmp_path / "brightness.py"} --horizon 2 --ignore_terminations --port 0
        --action_space hand
    """
    command = [sys.executable, "-m", "ivideogpt.envs", "serve", *flags.split()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as server:
        line = server.stdout.readline()
        address = line.split()[1] if line else ""
        done = subprocess.run([sys.executable, "-c", USE, address], capture_output=True, text=True, cwd=ROOT)
        server.send_signal(signal.SIGINT)
        rest, errors = server.communicate(timeout=PATIENCE)
    assert line.startswith("environment: http://127.0.0.1:"), errors
    assert done.returncode == 0, done.stderr
    assert (rest, errors, server.returncode) == ("", "stopped\n", 0)


def test_wrong_flags_are_one_line_before_a_model_is_loaded(capsys):
    """Loading takes seconds, and a traceback says little."""
    needed = ["--pretrained_model_name_or_path", "nowhere", "--dataset_path", "nowhere"]
    with open_socket(WebArgs(port=0)) as taken, pytest.raises(SystemExit):
        cli(lambda: serve_env.main([*needed, "--port", str(taken.getsockname()[1])]))
    (line,) = capsys.readouterr().err.splitlines()
    assert "in use" in line
    with pytest.raises(UserError, match="--num_envs is 0"):
        serve_env.main([*needed, "--num_envs", "0"])
