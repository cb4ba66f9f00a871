"""Serve one environment over HTTP: GET /health, POST /reset, POST /chunk_step. Arrays come and go as npz bytes.

All clients share the environment; its one thread answers one request after another.

Shapes: N rows, M frames of a start, T steps of a chunk, D action dimension, H W pixels.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ivideogpt.envs.messages import Arrays, pack, unpack
from ivideogpt.envs.rlinf import IMAGES, TASKS, RLinfEnv
from ivideogpt.errors import UserError, first_line
from ivideogpt.session import UnsoundModel
from ivideogpt.web import Slots

logger = logging.getLogger(__name__)

MAX_SIDE = 1024  # pixels of a given frame's side: resizing takes memory for its square
FRAME_BYTES = 1 << 20  # room for each given frame: enough for 480 x 640 pixels
MAX_TEXT = 1000  # characters of a task description
PATIENCE = 60  # seconds for a request to arrive


class EnvServer:
    """ASGI application.

    Attributes:
        max_bytes: limit of a request, decompressed.
    """

    def __init__(self, env: RLinfEnv, max_requests: int) -> None:
        from starlette.applications import Starlette
        from starlette.routing import Route

        self.env = env
        self.max_bytes = (1 << 20) + env.num_envs * env.envs.num_start_frames * FRAME_BYTES
        self._slots = Slots(max_requests)
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="environment")

        async def health(request: Any) -> Any:
            from starlette.responses import JSONResponse

            return JSONResponse(self._facts())

        async def reset(request: Any) -> Any:
            return await self._answer(request, self._reset)

        async def chunk_step(request: Any) -> Any:
            return await self._answer(request, self._chunk_step)

        posts = [Route("/reset", reset, methods=["POST"]), Route("/chunk_step", chunk_step, methods=["POST"])]
        self.app = Starlette(routes=[Route("/health", health), *posts])

    def _facts(self) -> dict[str, Any]:
        envs = self.env.envs
        return {
            "num_envs": envs.num_envs,
            "action_dim": envs.model.action_dim,
            "resolution": envs.model.metadata.resolution,
            "horizon": envs.horizon,
            "num_start_frames": envs.num_start_frames,
            "auto_reset": envs.auto_reset,
            "ignore_terminations": envs.ignore_terminations,
            "max_request_bytes": self.max_bytes,
        }

    async def _answer(self, request: Any, answer: Callable[[Arrays], Arrays]) -> Any:
        """Return a response with arrays, or with one line of text that says why there are none."""
        from starlette.requests import ClientDisconnect
        from starlette.responses import PlainTextResponse, Response

        status = 503  # if a UserError is raised now
        try:
            with self._slots.take():
                status = 413
                body = await asyncio.wait_for(self._receive(request), PATIENCE)
                status = 400
                content = await asyncio.get_running_loop().run_in_executor(
                    self._worker, lambda: pack(answer(unpack(body, self.max_bytes)))
                )
        except UnsoundModel as error:
            return PlainTextResponse(f"{first_line(error)}: reset all rows\n", 500)
        except UserError as error:
            return PlainTextResponse(f"{first_line(error)}\n", status)
        except (TimeoutError, ClientDisconnect):
            return PlainTextResponse(f"the request did not arrive within {PATIENCE} seconds\n", 408)
        except asyncio.CancelledError:  # by uvicorn, which does not wait long at the end
            return PlainTextResponse("the server ends\n", 503)
        except Exception:
            logger.exception("a request failed")
            return PlainTextResponse("the server failed, its log says why: reset all rows\n", 500)
        return Response(content, media_type="application/octet-stream")

    async def _receive(self, request: Any) -> bytes:
        """Return the body of a request; UserError as soon as it is, or says that it is, too long."""
        body, announced = bytearray(), request.headers.get("content-length", "")
        size = int(announced) if announced.isdecimal() else 0
        if size <= self.max_bytes:
            async for part in request.stream():
                body += part
                if (size := len(body)) > self.max_bytes:
                    break
            else:
                return bytes(body)
        raise UserError(f"a request of {size} bytes or more, expected at most {self.max_bytes}")

    # ---- in the thread of the environment

    def _reset(self, arrays: Arrays) -> Arrays:
        _check_names(arrays, {"seed", "reset_mask", "contexts", TASKS})
        contexts = arrays.get("contexts")
        if contexts is not None and max(contexts.shape, default=0) > MAX_SIDE:
            raise UserError(f"contexts have shape {contexts.shape}, at most {MAX_SIDE} along each axis is taken")
        observation, _ = self.env.reset(
            seed=_seed(arrays.get("seed")),
            reset_mask=arrays.get("reset_mask"),
            contexts=contexts,
            task_descriptions=_texts(arrays.get(TASKS)),
        )
        return self._as_arrays({IMAGES: observation[IMAGES]})

    def _chunk_step(self, arrays: Arrays) -> Arrays:
        _check_names(arrays, {"actions"})
        actions = _actions(arrays.get("actions"), self.env.envs.horizon)
        observations, *outcomes, infos = self.env.chunk_step(torch.from_numpy(actions))
        answer = dict(zip(("rewards", "terminations", "truncations"), outcomes))
        answer[IMAGES] = torch.stack([observation[IMAGES] for observation in observations])
        answer["is_success"] = torch.stack([info["is_success"] for info in infos], dim=1)
        answer |= {f"episode_{name}": values for name, values in infos[-1]["episode"].items()}
        if "final_obs" in infos[-1]:
            answer |= {"final_obs": infos[-1]["final_obs"][IMAGES], "_final_obs": infos[-1]["_final_obs"]}
        return self._as_arrays(answer)

    def _as_arrays(self, answer: dict[str, torch.Tensor]) -> Arrays:
        answer["elapsed_steps"] = self.env.elapsed_steps
        arrays = {name: values.cpu().numpy() for name, values in answer.items()}
        return {**arrays, TASKS: np.array(self.env.task_descriptions)}


def _check_names(arrays: Arrays, known: set[str]) -> None:
    if unknown := arrays.keys() - known:
        raise UserError(f"an array {min(unknown)!r:.50} was given, expected {', '.join(sorted(known))}")


def _seed(values: NDArray[Any] | None) -> int | list[int] | None:
    if values is None:
        return None
    if values.dtype.kind not in "iu" or values.ndim > 1 or (values < 0).any():
        raise UserError(f"seed is {values.dtype} of shape {values.shape}, expected whole numbers from 0, one or N")
    seed: int | list[int] = values.tolist()
    return seed


def _texts(values: NDArray[Any] | None) -> list[str] | None:
    if values is None:
        return None
    if values.dtype.kind != "U" or values.ndim != 1 or values.dtype.itemsize > 4 * MAX_TEXT:
        found = f"{values.dtype} of shape {values.shape}"
        raise UserError(f"{TASKS} is {found}, expected texts of at most {MAX_TEXT} characters")
    texts: list[str] = values.tolist()
    return texts


def _actions(values: NDArray[Any] | None, horizon: int) -> NDArray[np.float32]:
    if values is None or values.dtype.kind not in "iuf" or values.ndim != 3:
        found = "missing" if values is None else f"{values.dtype} of shape {values.shape}"
        raise UserError(f"actions are {found}, expected numbers of shape (rows, steps, dimensions)")
    if values.shape[1] > horizon:
        raise UserError(f"actions are a chunk of {values.shape[1]} steps, an episode has {horizon}")
    with np.errstate(over="ignore"):
        actions = values.astype(np.float32)
    if not np.isfinite(actions).all():
        raise UserError("actions hold a number that is not finite")
    return actions
