"""``python -m ivideogpt.envs serve``: its flags. Cheap to import."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ivideogpt.commands.export_env import EnvFlags
from ivideogpt.devices import DEVICES
from ivideogpt.errors import require
from ivideogpt.flags import option, parse, redefine
from ivideogpt.web import WebArgs, check_web_packages, open_socket, serve


@dataclass(frozen=True, kw_only=True)
class ServeEnvArgs(EnvFlags, WebArgs):
    """Serve episodes in a world model over HTTP, to trainers in other processes that act in chunks."""

    token: str | None = redefine(WebArgs, "token", None, "secret of clients (default: none on this machine, else new)")
    max_sessions: int = redefine(WebArgs, "max_sessions", 4, "requests at a time; they take turns")
    num_envs: int = option(1, "episodes at a time, which are one batch", minimum=1)
    auto_reset: bool = option(True, "begin episodes that have ended anew after their chunk", negatable=True)
    ignore_terminations: bool = option(False, "let episodes go on to the horizon after a success")
    success_threshold: float = option(0.5, "probability from which on a step is a success", minimum=0)
    device: str = option("auto", "device of the model", choices=DEVICES)
    dtype: str = option("auto", "precision of the model", choices=("auto", "float32", "bfloat16", "float16"))


def main(argv: Sequence[str]) -> None:
    args = parse(ServeEnvArgs, argv)
    check_web_packages()
    require("gymnasium", extra="envs")
    bound = open_socket(args)  # before a model is loaded
    from ivideogpt.envs.rlinf import RLinfEnv, rlinf_settings
    from ivideogpt.envs.server import EnvServer

    env = args.make_env(
        args.num_envs,
        args.device,
        args.dtype,
        ignore_terminations=args.ignore_terminations,
        success_threshold=args.success_threshold,
        **rlinf_settings(args.auto_reset),
    )
    serve(EnvServer(RLinfEnv(env), args.max_sessions).app, args, bound, "environment")
