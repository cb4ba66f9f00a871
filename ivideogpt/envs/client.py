"""The trainer's side of ``python -m ivideogpt.envs serve``. Knows numpy and HTTP; needs neither torch nor a model.

Shapes: N rows, M frames of a start, T steps of a chunk, D action dimension, H W pixels.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any
from urllib.parse import SplitResult, parse_qs, urlencode, urlsplit

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ivideogpt.envs.messages import Arrays, pack, unpack
from ivideogpt.errors import UserError, first_line

Observation = dict[str, Any]  # main_images (N, H, W, 3) uint8; task_descriptions, a text for each row
Infos = dict[str, Any]
CONNECTIONS = {"http": HTTPConnection, "https": HTTPSConnection}
SERVER_FAULT = 500


class RemoteEnv:
    """An environment in another process, with the interface of :class:`~ivideogpt.envs.rlinf.RLinfEnv`, in arrays.

    Nothing is kept open between calls, and no call is repeated by itself.

    Attributes:
        num_envs, action_dim, resolution, horizon, num_start_frames, auto_reset, ignore_terminations: as served.
        elapsed_steps: (N,) of the present episodes.
        is_start: whether this client has not begun an episode yet; trainers may set it.
    """

    def __init__(self, address: str, token: str | None = None, timeout: float = 600) -> None:
        """
        Args:
            address: as the server prints it.
            token: as ``?token=`` at the end of the address.
            timeout: seconds to wait for an answer.

        Raises:
            UserError: nothing answers there, or the token is wrong. So do the other methods; a RuntimeError says
                that the server failed.
        """
        self._parts, self._timeout = _split(address), timeout
        given = token or parse_qs(self._parts.query).get("token", [None])[0]
        self._query = f"?{urlencode({'token': given})}" if given else ""
        facts = json.loads(self._ask("GET", "/health"))
        self.num_envs: int = facts["num_envs"]
        self.action_dim: int = facts["action_dim"]
        self.resolution: int = facts["resolution"]
        self.horizon: int = facts["horizon"]
        self.num_start_frames: int = facts["num_start_frames"]
        self.auto_reset: bool = facts["auto_reset"]
        self.ignore_terminations: bool = facts["ignore_terminations"]
        self._max_bytes: int = facts["max_request_bytes"]
        self.elapsed_steps = np.zeros(self.num_envs, np.int64)
        self.is_start = True

    def reset(
        self,
        *,
        seed: int | Sequence[int] | None = None,
        reset_mask: ArrayLike | None = None,
        contexts: NDArray[np.uint8] | None = None,
        task_descriptions: Sequence[str] | None = None,
    ) -> tuple[Observation, Infos]:
        """Begin all episodes anew, or those of the rows in ``reset_mask`` (N,).

        Args:
            seed: of row i, seed + i; or one for each row.
            contexts: frames (rows that begin anew, M, H, W, 3) to begin with; else the server samples recorded ones.
            task_descriptions: texts of the rows that begin anew, which observations repeat.
        """
        given = dict(seed=seed, reset_mask=reset_mask, contexts=contexts, task_descriptions=task_descriptions)
        answer = self._post("/reset", {name: np.asarray(value) for name, value in given.items() if value is not None})
        self.is_start = False
        return _observation(answer, answer["main_images"]), {}

    def step(self, actions: ArrayLike) -> tuple[Observation, NDArray, NDArray, NDArray, Infos]:
        """Take actions (N, D), as a chunk of one step."""
        observations, rewards, terminations, truncations, infos = self.chunk_step(np.asarray(actions)[:, None])
        return observations[0], rewards[:, 0], terminations[:, 0], truncations[:, 0], infos[0]

    def chunk_step(self, actions: ArrayLike) -> tuple[list[Observation], NDArray, NDArray, NDArray, list[Infos]]:
        """Take actions (N, T, D), T at most the horizon.

        Returns:
            T observations; rewards, terminations and truncations (N, T); and T infos, as ``RLinfEnv`` returns them.
        """
        answer = self._post("/chunk_step", {"actions": np.asarray(actions, np.float32)})
        infos: list[Infos] = [{"is_success": success} for success in answer["is_success"].T]
        infos[-1]["episode"] = {name: answer[f"episode_{name}"] for name in ("return", "success_once", "length")}
        if "final_obs" in answer:
            infos[-1] |= {"final_obs": _observation(answer, answer["final_obs"]), "_final_obs": answer["_final_obs"]}
        observations = [_observation(answer, images) for images in answer["main_images"]]
        return observations, answer["rewards"], answer["terminations"], answer["truncations"], infos

    def close(self) -> None:
        """Do nothing; trainers call it. The server goes on."""

    def _post(self, path: str, arrays: Arrays) -> Arrays:
        body = pack(arrays)
        if len(body) > self._max_bytes:  # a server that refuses it in the middle may not be heard
            raise UserError(f"a request of {len(body)} bytes, {self._name} takes at most {self._max_bytes}")
        content = self._ask("POST", path, body)
        answer = unpack(content, len(content))
        self.elapsed_steps = answer["elapsed_steps"]
        return answer

    def _ask(self, method: str, path: str, body: bytes | None = None) -> bytes:
        parts = self._parts
        connection = CONNECTIONS[parts.scheme](parts.hostname or "", parts.port, timeout=self._timeout)
        try:
            connection.request(method, parts.path.rstrip("/") + path + self._query, body)
            response = connection.getresponse()
            content = response.read()
        except (OSError, HTTPException) as error:
            raise UserError(f"{self._name} does not answer ({first_line(error)}): is it running?") from error
        finally:
            connection.close()
        if response.status == 200:
            return content
        message = f"{self._name}: {content.decode(errors='replace').strip()}"
        raise RuntimeError(message) if response.status == SERVER_FAULT else UserError(message)

    @property
    def _name(self) -> str:
        return f"{self._parts.scheme}://{self._parts.netloc}"


def _split(address: str) -> SplitResult:
    try:
        parts = urlsplit(address)
        if parts.scheme in CONNECTIONS and parts.hostname and parts.port != 0:
            return parts
    except ValueError:  # from a port that is no number
        pass
    raise UserError(f"the address is {address!r}, expected one such as http://127.0.0.1:8765")


def _observation(answer: Arrays, images: NDArray[np.uint8]) -> Observation:
    return {"main_images": images, "task_descriptions": answer["task_descriptions"].tolist()}
