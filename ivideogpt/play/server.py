"""The web server of the page: a game for each websocket, all of them stepped by one thread."""

from __future__ import annotations

import asyncio
import logging
import tempfile
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

from ivideogpt.data.convert.conversion import write_episode
from ivideogpt.errors import UserError, first_line
from ivideogpt.files import file_stem
from ivideogpt.play.autopilots import autopilot_action
from ivideogpt.play.game import Game, Settings
from ivideogpt.play.messages import (
    Change,
    Goal,
    Message,
    Reset,
    Save,
    Seek,
    Select,
    Step,
    moment_message,
    pack,
    read_action,
    read_message,
    welcome,
)
from ivideogpt.play.starts import StartChoice
from ivideogpt.video_io import side_by_side, write_gif
from ivideogpt.web import Slots, parse_message
from ivideogpt.world_model import WorldModel

logger = logging.getLogger(__name__)

MAX_WAITING = 100  # messages; more are a flood, of which the oldest are dropped

PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "connect-src 'self' ws: wss:; img-src data: blob:; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


class Inbox:
    """Messages in their order, but the newest step alone: someone who sends faster than the model steps is not queued.

    Of others of one kind in a row the newest is kept, but all files that are asked for. Those behind another kind stay:
    that one may depend on them, as a goal does on the frame that is shown.
    """

    def __init__(self) -> None:
        self._waiting: deque[Message] = deque(maxlen=MAX_WAITING)
        self._arrived = asyncio.Event()
        self.is_closed = False

    def put(self, message: Message) -> None:
        if isinstance(message, Step | Reset | Seek):  # steps before it are of the past
            for step in [waiting for waiting in self._waiting if isinstance(waiting, Step)]:
                self._waiting.remove(step)
        if self._waiting and type(self._waiting[-1]) is type(message) and not isinstance(message, Save):
            self._waiting.pop()
        self._waiting.append(message)
        self._arrived.set()

    def close(self) -> None:
        self.is_closed = True
        self._arrived.set()

    async def get(self) -> Message | None:
        """Return the message that has waited longest; None once the connection has ended."""
        await self._arrived.wait()
        if self.is_closed:
            return None
        message = self._waiting.popleft()
        if not self._waiting:
            self._arrived.clear()
        return message


class PlayServer:
    """ASGI application with the page at ``/`` and games at ``/play``.

    Args:
        note: said on the page, such as why there is no real view.
        at_end: called in the thread of the games, after the last of them.

    Attributes:
        games: those being played.
    """

    def __init__(
        self,
        model: WorldModel,
        model_name: str,
        choices: Sequence[StartChoice],
        max_sessions: int,
        note: str = "",
        at_end: Callable[[], None] | None = None,
    ) -> None:
        from starlette.applications import Starlette
        from starlette.responses import HTMLResponse
        from starlette.routing import Route, WebSocketRoute

        self.model, self.model_name, self.note = model, model_name, note
        self.choices = {choice.key: choice for choice in choices}
        self.games: list[Game] = []
        self._slots = Slots(max_sessions)
        # one: models and OpenGL contexts are for one thread at a time, and games take turns frame by frame
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="game")
        html = files("ivideogpt.play").joinpath("page.html").read_text(encoding="utf-8")

        async def page(request: Any) -> HTMLResponse:
            return HTMLResponse(html, headers=PAGE_HEADERS)

        @asynccontextmanager
        async def lifespan(app: Any) -> AsyncIterator[None]:
            yield
            if at_end is not None:  # where games were stepped: OpenGL contexts are closed by their own thread
                await self._in_worker(at_end)

        self.app = Starlette(routes=[Route("/", page), WebSocketRoute("/play", self.play)], lifespan=lifespan)

    async def play(self, websocket: Any) -> None:
        """Play one game for as long as its page is open."""
        await websocket.accept()
        try:
            with self._slots.take():
                await self._play(websocket)
        except UserError as error:
            await self._send(websocket, {"type": "refused", "message": str(error)})
            await websocket.close(1013)

    async def _play(self, websocket: Any) -> None:
        game, inbox = Game(self.model, self.choices), Inbox()
        self.games.append(game)
        reader = asyncio.create_task(self._read(websocket, inbox))
        try:
            await self._send(websocket, welcome(game, self.model_name, next(iter(self.choices)), self.note))
            while (message := await inbox.get()) is not None:
                await self._answer(websocket, game, message)
        finally:
            reader.cancel()
            self.games.remove(game)
            await asyncio.shield(self._in_worker(game.close))

    async def _answer(self, websocket: Any, game: Game, message: Message) -> None:
        try:
            if isinstance(message, Save):
                name, content = await asyncio.to_thread(save, game, message)
                answer = pack({"type": "file", "name": name}, content)
            else:
                answer = await self._in_worker(advance, game, message)
        except UserError as error:
            await self._send(websocket, {"type": "error", "message": first_line(error)})
        except Exception:
            logger.exception("a game failed")
            await self._send(websocket, {"type": "error", "message": "the server failed; its log says why"})
        else:
            await self._send(websocket, answer)

    async def _read(self, websocket: Any, inbox: Inbox) -> None:
        """Put messages into the inbox until the connection ends; answer those that are wrong."""
        while (received := await websocket.receive())["type"] != "websocket.disconnect":
            try:
                inbox.put(read_message(parse_message(received)))
            except UserError as error:
                await self._send(websocket, {"type": "error", "message": first_line(error)})
        inbox.close()

    async def _send(self, websocket: Any, message: dict[str, Any] | bytes) -> None:
        """Send a message; one to a page that has gone is dropped, its end arrives at the reader."""
        from starlette.websockets import WebSocketDisconnect

        try:
            await (websocket.send_bytes(message) if isinstance(message, bytes) else websocket.send_json(message))
        except (WebSocketDisconnect, RuntimeError, OSError):
            logger.debug("a page has gone")

    async def _in_worker(self, function: Any, *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._worker, function, *args)


def advance(game: Game, message: Message) -> bytes:
    """Do what a message asks for and return the moment to show; UserError if it cannot be done."""
    started = time.perf_counter()
    if isinstance(message, Reset):
        game.reset(message.start, message.seed)
    game.check_begun()
    if isinstance(message, Change):
        game.change(Settings(**asdict(message)))
    elif isinstance(message, Select):
        game.selected = message.sample
    elif isinstance(message, Goal):
        game.choose_goal(message.source)
    elif isinstance(message, Seek):
        game.seek(message.position)
    elif isinstance(message, Step):
        given, pilot = message.action, message.autopilot
        if pilot is None:
            game.step(game.from_controls(read_action(given, game.action_dim)))
        else:
            game.step(autopilot_action(game, pilot))
    return moment_message(game, 1000 * (time.perf_counter() - started))


def save(game: Game, message: Save) -> tuple[str, bytes]:
    """Return the name and the content of a file with the game up to the shown moment."""
    game.check_begun()
    real = game.real_frames(game.position)
    dream = game.frames(game.position, game.selected)
    if game.has_goal:  # the first frame is where the episode is to end, not where it began
        real, dream = None if real is None else real[1:], dream[1:]
    if message.view == "real" and real is None:
        raise UserError("what really happened is not known here: save the dream")
    frames = real if real is not None and message.view == "real" else dream
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"{file_stem(game.title)}-played.{message.format}")
        if message.format == "npz":
            actions = {"action": game.actions(game.position)} if game.action_dim else {}
            write_episode(path, {"image": frames, **actions}, compress=True)
        else:
            is_double = message.view in ("split", "difference") and real is not None
            write_gif(path, side_by_side([dream, real]) if is_double and real is not None else frames, message.fps)
        return path.name, path.read_bytes()
