"""One frame of every row at fixed addresses, so that a GPU can replay it as one captured graph.

Thousands of small kernels make up a frame, and launching each costs more than running it. Knows what
:class:`~ivideogpt.transformer.decoder.FrameModel` knows, and how CUDA captures.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ivideogpt.transformer.frame_model import DecodedFrame, FrameModel
from ivideogpt.transformer.llama import KVCache
from ivideogpt.transformer.sampling import RandomStreams

logger = logging.getLogger(__name__)

ALIGNMENT = 16  # positions: attention reads masks in vectors
MAX_IDLE = 2  # graphs that are kept for later sessions of the same shape


class StaticFrames:
    """Buffers that one frame is drawn from and into, for up to ``num_rows`` rows.

    Attributes:
        cache: of all rows; those that a session does not use compute what nobody reads.
    """

    @torch.inference_mode(False)
    @torch.no_grad()
    def __init__(self, model: FrameModel, num_rows: int, capacity: int) -> None:
        llama, layout = model.llama, model.layout
        self.model = model
        self.addresses = addresses_of(model)
        self.num_rows, self.capacity = num_rows, capacity
        self.cache = llama.new_cache(num_rows, -(-capacity // ALIGNMENT) * ALIGNMENT)
        device = llama.device
        entering = 2 if model.joins_last_token else 1
        self.entering = torch.full((num_rows, entering), layout.future_separator, device=device)
        self.action = torch.zeros(num_rows, llama.width, dtype=self.cache.keys.dtype, device=device)
        self.positions = torch.zeros(num_rows, dtype=torch.int64, device=device)
        self.stream_keys = torch.zeros(num_rows, dtype=torch.int64, device=device)
        self.num_draws = torch.zeros((), dtype=torch.int64, device=device)
        self.tokens = torch.zeros(num_rows, layout.step_length, dtype=torch.int64, device=device)
        self.reward = torch.zeros(num_rows, device=device)
        self.graph: torch.cuda.CUDAGraph | None = None

    def load(self, cache: KVCache, streams: RandomStreams, num_draws: int) -> KVCache:
        """Take over a session's rows. Returns their part of the cache here."""
        rows, filled = cache.num_rows, max(cache.lengths)
        parts = []
        for mine, its in ((self.cache.keys, cache.keys), (self.cache.values, cache.values)):
            mine[:, :rows, :, :filled] = its[:, :, :, :filled]
            mine[:, :rows, :, filled:] = 0  # an earlier session's may not be finite
            parts.append(mine[:, :rows, :, : self.capacity])
        self.stream_keys[:rows] = streams.keys
        self.num_draws.fill_(num_draws)
        return KVCache(parts[0], parts[1], list(cache.lengths))

    def place(self, cache: KVCache, waiting: Tensor | None) -> Tensor | None:
        """Note where the rows of a session stand, and the ids (B, 1) that wait to enter; returns where these are."""
        rows = cache.num_rows
        self.positions[:rows] = torch.tensor(cache.lengths, device="cpu").to(self.positions.device, non_blocking=True)
        if waiting is None:
            return None
        self.entering[:rows, :-1] = waiting
        return self.entering[:rows, :-1]

    def draw(self, action: Tensor | None, num_rows: int) -> DecodedFrame:
        """One frame of the first ``num_rows`` rows."""
        if action is not None:
            self.action[:num_rows] = action
        if self.graph is None:
            self.run()
        else:
            self.graph.replay()
        reward = None if self.model.reward_head is None else self.reward[:num_rows].clone()
        return DecodedFrame(self.tokens[:num_rows].clone(), reward)

    def run(self) -> None:
        """Draw a frame from the buffers into the buffers, without a look at the host's numbers."""
        model, start = self.model, self.positions.clone()
        num_passed = 0

        def forward(embeddings: Tensor) -> Tensor:
            nonlocal num_passed
            offsets = torch.arange(num_passed, num_passed + embeddings.shape[1], device=start.device)
            num_passed += embeddings.shape[1]
            # rows that nobody uses run over the end
            positions = (start[:, None] + offsets).clamp_(max=self.capacity - 1)
            return model.llama.forward_at(
                embeddings, self.cache.keys, self.cache.values, positions, self.cache.capacity
            )

        draws = RandomStreams(self.stream_keys).draws(self.num_draws, model.layout.dynamics_tokens)
        frame = model.draw_frame(forward, self.entering, self.action, draws)
        self.tokens.copy_(frame.tokens)
        if frame.reward is not None:
            self.reward.copy_(frame.reward)
        self.entering[:, :-1] = frame.tokens[:, -1:]
        self.positions += num_passed
        self.num_draws += len(draws)

    def capture(self) -> None:
        """Record a run as a CUDA graph. Buffers hold nonsense afterwards."""
        with torch.cuda.device(self.positions.device):
            aside, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                for _ in range(2):  # libraries set themselves up in the first runs, which a capture must not see
                    self.run()
                # other threads, a data loader's for instance, may go on using the device meanwhile
                with torch.cuda.graph(graph, stream=aside, capture_error_mode="thread_local"):
                    self.run()
            torch.cuda.current_stream().wait_stream(aside)
        self.graph = graph


@dataclass
class GraphPool:
    """Captured frames by shape. One is used by one session at a time, and kept for the next."""

    idle: list[StaticFrames] = field(default_factory=list)
    failed: bool = False

    def borrow(self, model: FrameModel, num_rows: int, capacity: int) -> StaticFrames | None:
        """For at least so many rows. None, after one line in the log, where capturing is impossible."""
        if self.failed:
            return None
        num_rows = bucket(num_rows)
        addresses = addresses_of(model)
        self.idle = [frames for frames in self.idle if frames.addresses == addresses]
        for frames in self.idle:
            if (frames.model, frames.num_rows, frames.capacity) == (model, num_rows, capacity):
                self.idle.remove(frames)
                return frames
        try:
            frames = StaticFrames(model, num_rows, capacity)
            frames.capture()
        except RuntimeError as error:
            self.failed = not isinstance(error, torch.OutOfMemoryError)  # a smaller session may fit
            logger.warning("frames are drawn kernel by kernel: no CUDA graph (%s)", error)
            return None
        return frames

    def give_back(self, frames: StaticFrames) -> None:
        self.idle = [frames, *self.idle][:MAX_IDLE]


def addresses_of(model: FrameModel) -> tuple[int, ...]:
    """Where the weights are: a graph reads them there, also when they have moved since."""
    heads = [] if model.reward_head is None else list(model.reward_head.parameters())
    vectors = [] if model.dynamics_vectors is None else [model.dynamics_vectors]
    return (*model.llama.addresses, *(tensor.data_ptr() for tensor in (*heads, *vectors)))


def bucket(num_rows: int) -> int:
    """The next power of two: batches that differ little share a graph."""
    return 1 << (num_rows - 1).bit_length()
