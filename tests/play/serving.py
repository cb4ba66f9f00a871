"""A real server on a free port of this machine, in a thread of the tests' own process."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from websockets.sync.client import ClientConnection, connect

from ivideogpt.play.server import PlayServer
from ivideogpt.web import WebArgs, make_server, open_socket
from tests.play.worlds import CHOICES, model

PATIENCE = 60  # seconds, on a machine that does other things


class Running:
    """A server that can be stopped and started again on its port."""

    def __init__(self, **flags: Any) -> None:
        self.args = WebArgs(**flags)
        self.start(0)

    def start(self, port: int) -> None:
        args = WebArgs(**vars(self.args) | {"port": port})
        self.play = PlayServer(model(), "tiny", CHOICES, args.max_sessions, "a note")
        bound = open_socket(args)
        self.port: int = bound.getsockname()[1]
        self.server = make_server(self.play.app, args, bound, "play")
        self.thread = threading.Thread(target=self.server.run, args=([bound],), daemon=True)
        self.thread.start()
        wait_until(lambda: self.server.started)

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive()

    @contextmanager
    def player(self, query: str = "", **options: Any) -> Iterator[Player]:
        with connect(f"ws://127.0.0.1:{self.port}/play{query}", max_size=None, **options) as connection:
            yield Player(connection)


class Player:
    """The page's side of a websocket."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection

    def ask(self, **message: Any) -> tuple[dict[str, Any], bytes]:
        self.connection.send(json.dumps(message))
        return self.receive()

    def receive(self) -> tuple[dict[str, Any], bytes]:
        """Return a header and what is behind it, as the page reads them."""
        data = self.connection.recv(PATIENCE)
        if isinstance(data, str):
            return json.loads(data), b""
        length = int.from_bytes(data[:4], "little")
        return json.loads(data[4 : 4 + length]), data[4 + length :]

    def begin(self) -> dict[str, Any]:
        """Take the welcome, and begin at the first start."""
        welcome, _ = self.receive()
        moment, _ = self.ask(type="reset", start=welcome["first"], seed=1)
        assert moment["type"] == "moment", moment
        return welcome


def wait_until(is_true: Any) -> None:
    end = time.monotonic() + PATIENCE
    while not is_true():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)
