"""The protocol, on real sockets: what a page gets, and what nobody can do to it."""

from __future__ import annotations

import asyncio
import io
import json
import socket
import urllib.error
import urllib.request

import numpy as np
import pytest
from PIL import Image
from websockets.exceptions import ConnectionClosed, InvalidStatus

from ivideogpt.data.formats.registry import find_episodes
from ivideogpt.data.inspect.validate import validate_dataset
from ivideogpt.errors import UserError
from ivideogpt.flags import parse
from ivideogpt.play.messages import Goal, Save, Seek, Step
from ivideogpt.play.server import MAX_WAITING, Inbox
from ivideogpt.web import MAX_FRAME, MAX_MESSAGE, WebArgs, open_socket
from tests.play.serving import Running, wait_until
from tests.play.worlds import ACTIONS, FRAMES

STEP = {"type": "step", "action": [0.5, 0, 0, 0]}


def test_a_game_over_the_wire(server, tmp_path):
    """What the page needs: pixels behind a header, the same frame after going back, files that training reads."""
    with server.player() as player:
        welcome = player.begin()
        assert (welcome["action_dim"], welcome["first"], welcome["note"]) == (4, "episode:noise", "a note")
        assert set(welcome["autopilots"]) >= {"recorded", "scripted", "random"}
        once, pixels = player.ask(**STEP)
        assert (once["position"], once["last"], once["num_samples"], once["has_real"]) == (1, 1, 1, False)
        assert once["autopilots"] == ["recorded", "random", "mppi"]
        assert len(pixels) == 64 * 64 * 3
        player.ask(type="seek", position=0)
        recorded, both = player.ask(type="step", autopilot="recorded")
        assert recorded["has_real"]
        assert both[len(pixels) :] == FRAMES[2].tobytes()
        goal, three = player.ask(type="goal", source="end")
        assert (goal["has_goal"], three) == (True, both + FRAMES[-1].tobytes())
        player.ask(type="goal", source="none")
        player.ask(type="seek", position=0)
        assert player.ask(**STEP)[1] == pixels
        changed, _ = player.ask(type="change", num_samples=2, temperature=1.0, top_k=50, rule="sample")
        assert changed["position"] == 1
        two, _ = player.ask(**STEP)
        assert (two["num_samples"], len(two["reward"])) == (2, 2)
        assert all(0 <= probability <= 1 for probability in two["success"])
        player.ask(type="select", sample=1)
        header, content = player.ask(type="save", format="npz", view="split", fps=10)
        (tmp_path / header["name"]).write_bytes(content)
        header, content = player.ask(type="save", format="gif", view="split", fps=10)
    assert header["name"] == "noise-played.gif"
    assert Image.open(io.BytesIO(content)).n_frames == 2 + 2
    (dataset,) = find_episodes(str(tmp_path))
    checked = validate_dataset(dataset, 1)
    assert (checked.num_episodes, checked.num_frames, checked.bad) == (1, 4, ())
    with np.load(tmp_path / "noise-played.npz") as saved:
        assert np.array_equal(saved["image"][:2], FRAMES[:2])
        assert saved["action"].tolist() == [ACTIONS[0].tolist(), [0.5, 0, 0, 0], [0.5, 0, 0, 0], [0, 0, 0, 0]]


WRONG = {
    "no json": "hello",
    "a list": "[1]",
    "nested": "[" * 10_000,
    "nan": '{"type": "step", "action": [NaN, 0, 0, 0]}',
    "infinity": '{"type": "step", "action": [Infinity, 0, 0, 0]}',
    "overflow": '{"type": "step", "action": [1e999, 0, 0, 0]}',
    "huge": '{"type": "step", "action": [1e30, 0, 0, 0]}',
    "endless": '{"type": "step", "action": [1' + "0" * 400 + ", 0, 0, 0]}",
    "text": '{"type": "step", "action": ["1", 0, 0, 0]}',
    "bool": '{"type": "step", "action": [true, 0, 0, 0]}',
    "short": '{"type": "step", "action": [0, 0]}',
    "no action": '{"type": "step"}',
    "autopilot": '{"type": "step", "autopilot": "scripted"}',
    "kind": '{"type": "shutdown"}',
    "kind of kind": '{"type": ["step"]}',
    "field": '{"type": "seek", "position": 0, "more": 1}',
    "missing": '{"type": "seek"}',
    "past": '{"type": "seek", "position": -1}',
    "future": '{"type": "seek", "position": 99}',
    "fraction": '{"type": "seek", "position": 0.5}',
    "start": '{"type": "reset", "start": "episode:/etc/passwd", "seed": 0}',
    "samples": '{"type": "change", "num_samples": 900, "temperature": 1, "top_k": 1, "rule": "sample"}',
    "goal": '{"type": "goal", "source": "elsewhere"}',
    "rule": '{"type": "change", "num_samples": 1, "temperature": 1, "top_k": 1, "rule": "best"}',
    "cold": '{"type": "change", "num_samples": 1, "temperature": 0, "top_k": 1, "rule": "sample"}',
    "format": '{"type": "save", "format": "exe", "view": "dream", "fps": 10}',
    "fps": '{"type": "save", "format": "gif", "view": "dream", "fps": 0}',
    "real": '{"type": "save", "format": "gif", "view": "real", "fps": 10}',
    "binary": b"\x00\xff",
    "long": json.dumps({"type": "step", "action": [0] * MAX_MESSAGE}),
}


def test_wrong_messages_are_answered_and_change_nothing(server):
    """One of them would end the game, or the server, of whoever sends it."""
    with server.player() as player:
        assert player.receive()[0]["type"] == "welcome"
        for early in (
            {"type": "seek", "position": 0},
            STEP,
            {"type": "save", "format": "gif", "view": "dream", "fps": 1},
        ):
            assert "has not begun" in player.ask(**early)[0]["message"]
        player.ask(type="reset", start="episode:noise", seed=1)
        before = player.ask(**STEP)
        for name, message in WRONG.items():
            player.connection.send(message)
            answer, _ = player.receive()
            assert answer["type"] == "error", name
            assert answer["message"], name
            assert "server failed" not in answer["message"], name
        after = player.ask(type="seek", position=1)
        assert (after[0]["position"], after[0]["last"], after[1]) == (1, 1, before[1])


def test_a_message_of_any_size_ends_one_connection_at_most(server):
    """A gigabyte in one message would be kept in memory until it is complete."""
    with server.player() as other:
        other.begin()
        with server.player() as player:
            player.receive()
            player.connection.send("x" * (MAX_FRAME + 1))
            with pytest.raises(ConnectionClosed) as closed:
                player.receive()
        assert closed.value.rcvd.code == 1009
        assert other.ask(**STEP)[0]["position"] == 1


def test_two_players_do_not_meet_and_those_who_leave_make_room(server):
    """Games share a model and a thread; a page that was closed must not hold a place."""
    with server.player() as first, server.player() as second, server.player() as third:
        for player in (first, second):
            player.begin()
        alone = [first.ask(**STEP)[1], first.ask(**STEP)[1]]
        assert second.ask(**STEP)[1] == alone[0]
        assert first.ask(type="seek", position=1)[1] == alone[0]
        assert second.ask(**STEP)[1] == alone[1]
        third.receive()
        with server.player() as fourth:
            assert "all 3 places are taken" in fourth.receive()[0]["message"]
            with pytest.raises(ConnectionClosed):
                fourth.receive()
    wait_until(lambda: not server.play.games)
    with server.player() as fifth:
        fifth.begin()


def test_a_fast_player_is_answered_for_the_newest_action_alone(server):
    """A queue of actions would let the arm move on for minutes after the key was let go."""
    with server.player() as player:
        player.begin()
        for _ in range(300):
            player.connection.send(json.dumps(STEP))
        player.connection.send(json.dumps({"type": "seek", "position": 0}))
        positions = [player.receive()[0]["position"]]
        while positions[-1] != 0:
            positions.append(player.receive()[0]["position"])
        assert len(positions) < 100


def test_a_player_who_reads_nothing_holds_up_nobody(server):
    """Frames that a sleeping tab does not take must not fill the thread that all games share."""
    with server.player() as sleeping, server.player() as player:
        sleeping.begin()
        sleeping.connection.send(json.dumps(STEP))
        player.begin()
        assert player.ask(**STEP)[0]["position"] == 1
        sleeping.connection.socket.shutdown(socket.SHUT_RDWR)
    wait_until(lambda: not server.play.games)


def status_of(address: str, **headers: str) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(address, headers=headers)) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_other_pages_and_other_names_are_refused(server):
    """A page from elsewhere, or a name that points here, could make a reader's browser play."""
    local = f"127.0.0.1:{server.port}"
    address = f"http://{local}/"
    assert status_of(address) == status_of(address, Host=f"localhost:{server.port}") == 200
    assert [status_of(address, Host=host) for host in ("attacker.example", "[", "")] == [403] * 3
    assert status_of(f"{address}nothing") == 404
    with server.player(origin=f"http://{local}"):
        pass
    for origin in ("http://attacker.example", "null", "http://[", f"http://localhost:{server.port}"):
        with pytest.raises(InvalidStatus) as refused, server.player(origin=origin):
            pass
        assert refused.value.response.status_code == 403


def test_beyond_this_machine_a_token_is_needed(capfd):
    """Whoever is in the same network could play otherwise."""
    running = Running(host="0.0.0.0")
    try:
        (line,) = capfd.readouterr().out.splitlines()
        token = line.split("?token=")[1].split()[0]
        assert len(token) == 32
        address = f"http://127.0.0.1:{running.port}/"
        for wrong in ("", "?token=", "?token=x", f"?token={token}x", "?token=%FF"):
            assert status_of(address + wrong) == 403
            with pytest.raises(InvalidStatus), running.player(wrong):
                pass
        assert status_of(f"{address}?token={token}", Host="robot.example") == 200
        with running.player(f"?token={token}") as player:
            player.begin()
    finally:
        running.stop()


def test_addresses_that_cannot_be_served_are_one_line():
    with open_socket(WebArgs(port=0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"127.0.0.1:{port} \(.*in use.*choose another --port"):
            open_socket(WebArgs(port=port))
    with pytest.raises(UserError, match=r"cannot serve on 192\.0\.2\.1"):
        open_socket(WebArgs(host="192.0.2.1"))
    with pytest.raises(UserError, match=r"cannot serve on a\.\.b"):  # an empty label
        open_socket(WebArgs(host="a..b"))
    with pytest.raises(UserError, match="at most 65535"):
        parse(WebArgs, ["--port", "70000"])
    with pytest.raises(UserError, match="at least 8 letters"):
        parse(WebArgs, ["--token", "a b"])


def test_the_end_is_said_to_players():
    """A server that waits for its players would never end."""
    running = Running()
    with running.player() as player:
        player.begin()
        running.stop()
        with pytest.raises(ConnectionClosed) as closed:
            player.receive()
    assert closed.value.rcvd.code == 1012
    with pytest.raises(ConnectionRefusedError), running.player():
        pass


def test_a_goal_is_the_frame_that_was_gone_to_before():
    """While the server was busy, a later seek took the earlier one's place, behind the goal."""
    inbox = Inbox()
    sent = [Step(), Seek(4), Seek(5), Goal("shown"), Step(), Seek(0), Step(), Step()]
    for message in sent:
        inbox.put(message)
    got = [asyncio.run(inbox.get()) for _ in range(4)]
    assert got == [Seek(5), Goal("shown"), Seek(0), Step()]
    files = [Save("gif", "dream", 10), Save("npz", "dream", 10)]
    for message in files:
        inbox.put(message)
    assert [asyncio.run(inbox.get()) for _ in files] == files
    for _ in range(2 * MAX_WAITING):
        inbox.put(Goal("shown"))
        inbox.put(Seek(0))
    assert len(inbox._waiting) == MAX_WAITING
