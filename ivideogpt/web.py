"""Serve a small ASGI application to people one trusts: address, token, origins, sizes, number of sessions, the end.

Knows nothing of models. Starlette and uvicorn are imported where they are used: they are the extra `play`.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
import secrets
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, parse_qs, urlsplit

from ivideogpt.errors import UserError, first_line, require
from ivideogpt.flags import option

MAX_MESSAGE = 16 * 1024  # bytes of a message that is read
MAX_FRAME = 1 << 20  # bytes of a message that is received at all; a longer one ends the connection
PATIENCE = 3  # seconds for connections to end after Ctrl-C


@dataclass(frozen=True, kw_only=True)
class WebArgs:
    """Flags of all commands that serve."""

    host: str = option("127.0.0.1", "address to serve on; beyond this machine, a token is needed")
    port: int = option(8765, "port; 0 takes a free one", minimum=0)
    token: str | None = option(None, "secret in the page's address (default: none on this machine, else a new one)")
    max_sessions: int = option(4, "connections at a time", minimum=1)

    def validate(self) -> None:
        if self.port > 65535:
            raise UserError(f"--port is {self.port}: it must be at most 65535")
        if self.token is not None and not (self.token.isascii() and self.token.isalnum() and len(self.token) >= 8):
            raise UserError("--token must be at least 8 letters and digits")


def is_loopback(host: str) -> bool:
    """Whether an address or a name is this machine's own, which others cannot reach."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


class Guard:
    """An ASGI application that lets through only what comes from its own page, with the token if there is one.

    A web page from elsewhere could otherwise make its reader's browser talk to this server: its Origin gives it away,
    or the Host if its name was made to point here.
    """

    def __init__(self, app: Any, token: str | None) -> None:
        self.app, self.token = app, token

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        refusal = None if scope["type"] == "lifespan" else self.refusal(scope)
        if refusal is None:
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008, "reason": refusal})  # before it is accepted: a 403
        else:
            from starlette.responses import PlainTextResponse

            await PlainTextResponse(f"{refusal}\n", status_code=403)(scope, receive, send)

    def refusal(self, scope: Any) -> str | None:
        """Return why a request is refused; None if it is not."""
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get("host", "")
        if self.token is None and not is_loopback(_address(f"//{host}").hostname or ""):
            return f"the Host {host!r} is not this machine: open the address that was printed"
        origin = headers.get("origin")
        if origin is not None and _address(origin).netloc != host:
            return f"the Origin {origin!r} is another page"
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        if self.token is not None and not hmac.compare_digest(given.encode(), self.token.encode()):
            return "the token is missing or wrong: open the address that was printed, with its ?token="
        return None


def _address(text: str) -> SplitResult:
    try:
        return urlsplit(text)
    except ValueError:
        return urlsplit("")


class Slots:
    """Places for sessions, so many at a time."""

    def __init__(self, number: int) -> None:
        self.number, self.taken = number, 0

    @contextmanager
    def take(self) -> Iterator[None]:
        """Hold a place; UserError if there is none."""
        if self.taken >= self.number:
            raise UserError(
                f"all {self.number} places are taken: wait, close another page, or start with --max_sessions"
            )
        self.taken += 1
        try:
            yield
        finally:
            self.taken -= 1


def parse_message(message: Any) -> dict[str, Any]:
    """Read the JSON object in a received ASGI message; UserError for anything else, NaN included."""
    text = message.get("text")
    if text is None:
        raise UserError("a binary message was received, expected JSON text")
    if len(text) > MAX_MESSAGE:
        raise UserError(f"a message of {len(text)} characters was received, expected at most {MAX_MESSAGE}")
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise UserError("a message is not JSON, or holds NaN or infinity") from error
    if not isinstance(value, dict):
        raise UserError("a message is not a JSON object")
    return value


def _refuse_constant(name: str) -> Any:
    raise ValueError(name)


def open_socket(args: WebArgs) -> socket.socket:
    """Bind the address; UserError if it is taken or not this machine's."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            args.host, args.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen()  # an address that another server waits on is found out here
    except (OSError, UnicodeError) as error:  # a host with an empty label is a UnicodeError
        reason = getattr(error, "strerror", None) or first_line(error)
        raise UserError(
            f"cannot serve on {args.host}:{args.port} ({reason}): choose another --port, 0 for a free one, or --host"
        ) from error
    return bound


def check_web_packages() -> None:
    require("starlette", "uvicorn", "websockets", extra="play")


def make_server(app: Any, args: WebArgs, bound: socket.socket, name: str) -> Any:
    """Make the uvicorn server of an application. It prints one line with the address once it is ready."""
    import uvicorn

    token = args.token or (None if is_loopback(args.host) else secrets.token_hex(16))
    address = address_of(args.host, bound.getsockname()[1], token)

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            print(f"{name}: {address} (Ctrl-C ends)", flush=True)

    config = uvicorn.Config(
        Guard(app, token), log_level="warning", access_log=False, server_header=False, ws="websockets-sansio",
        ws_max_size=MAX_FRAME, ws_per_message_deflate=False, timeout_graceful_shutdown=PATIENCE,
    )  # fmt: skip
    return Server(config)


def address_of(host: str, port: int, token: str | None) -> str:
    """Return the address of the page; for a server on all addresses, by the name of this machine."""
    shown = socket.gethostname() if host in ("0.0.0.0", "::", "") else host
    return f"http://{f'[{shown}]' if ':' in shown else shown}:{port}/" + (f"?token={token}" if token else "")


def serve(app: Any, args: WebArgs, bound: socket.socket, name: str) -> None:
    """Serve until Ctrl-C, then end in a few seconds."""
    with suppress(KeyboardInterrupt):  # a process that was started in the background gets none
        make_server(app, args, bound, name).run(sockets=[bound])
    print("stopped", file=sys.stderr)
