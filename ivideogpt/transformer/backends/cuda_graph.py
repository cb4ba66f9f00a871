"""One frame of every row at fixed addresses, captured as one CUDA graph that a GPU replays.

Thousands of small kernels make up a frame, and launching each costs more than running it.
"""

from __future__ import annotations

import logging
from dataclasses import replace

import torch
from torch import Tensor

from ivideogpt.transformer.backends.torch import TorchBackend
from ivideogpt.transformer.decoder import DecodedFrame, FrameModel
from ivideogpt.transformer.llama import KVCache, LlamaWeights
from ivideogpt.transformer.sampling import RandomStreams

logger = logging.getLogger(__name__)

ALIGNMENT = 16  # positions: attention reads masks in vectors
MAX_IDLE = 2  # graphs that are kept for later sessions of the same shape


class CudaGraphFrame:
    """Buffers that one frame is drawn from and into, for up to ``num_rows`` rows.

    Attributes:
        cache: of all rows; those that a session does not use compute what nobody reads.
    """

    @torch.inference_mode(False)
    @torch.no_grad()
    def __init__(self, model: FrameModel, passes: TorchBackend, num_rows: int, capacity: int) -> None:
        weights, layout = passes.weights, model.layout
        self.model, self.passes = model, passes
        self.addresses = addresses_of(model)
        self.num_rows, self.capacity = num_rows, capacity
        self.cache = passes.new_cache(num_rows, -(-capacity // ALIGNMENT) * ALIGNMENT)
        device = weights.device
        entering = 2 if model.joins_last_token else 1
        self.entering = torch.full((num_rows, entering), layout.future_separator, device=device)
        self.action = torch.zeros(num_rows, weights.width, dtype=self.cache.keys.dtype, device=device)
        self.positions = torch.zeros(num_rows, dtype=torch.int64, device=device)
        self.stream_keys = torch.zeros(num_rows, dtype=torch.int64, device=device)
        self.num_draws = torch.zeros((), dtype=torch.int64, device=device)
        self.tokens = torch.zeros(num_rows, layout.step_length, dtype=torch.int64, device=device)
        self.reward, self.success = torch.zeros(2, num_rows, device=device)
        self.graph: torch.cuda.CUDAGraph | None = None

    def load(self, cache: KVCache) -> KVCache:
        """Take over a session's rows. Returns their part of this frame's cache."""
        rows, filled = cache.num_rows, max(cache.lengths)
        parts = []
        for mine, theirs in ((self.cache.keys, cache.keys), (self.cache.values, cache.values)):
            mine[:, :rows, :, :filled] = theirs[:, :, :, :filled]
            mine[:, :rows, :, filled:] = 0  # an earlier session's may not be finite
            parts.append(mine[:, :rows, :, : self.capacity])
        return KVCache(parts[0], parts[1], list(cache.lengths))

    def place(self, cache: KVCache, streams: RandomStreams, waiting: Tensor | None, num_draws: int) -> Tensor | None:
        """Store the rows' positions, streams, draws so far, and ids (B, 1) that wait; returns the buffer of the ids."""
        rows = cache.num_rows
        self.stream_keys[:rows] = streams.keys
        self.num_draws.fill_(num_draws)
        self.positions[:rows] = torch.tensor(cache.lengths, device="cpu").to(self.positions.device, non_blocking=True)
        if waiting is None:
            return None
        self.entering[:rows, :-1] = waiting
        return self.entering[:rows, :-1]

    def draw(self, action: Tensor | None, num_rows: int) -> DecodedFrame:
        """Draw one frame of the first ``num_rows`` rows, under embedded actions (B, D)."""
        if action is not None:
            self.action[:num_rows] = action
        if self.graph is None:
            self.run()
        else:
            self.graph.replay()
        reward = None if self.model.reward_head is None else self.reward[:num_rows].clone()
        success = None if self.model.success_head is None else self.success[:num_rows].clone()
        return DecodedFrame(self.tokens[:num_rows].clone(), reward, success)

    def run(self) -> None:
        """Draw a frame from the buffers into the buffers, without synchronising with the host."""
        model, start = self.model, self.positions.clone()
        num_passed = 0

        def forward(embeddings: Tensor) -> Tensor:
            nonlocal num_passed
            offsets = torch.arange(num_passed, num_passed + embeddings.shape[1], device=start.device)
            num_passed += embeddings.shape[1]
            # rows that nobody uses run over the end
            positions = (start[:, None] + offsets).clamp_(max=self.capacity - 1)
            return self.passes.forward_at(
                embeddings, self.cache.keys, self.cache.values, positions, self.cache.capacity
            )

        draws = RandomStreams(self.stream_keys).draws(self.num_draws, model.layout.dynamics_tokens)
        frame = model.draw_frame(forward, self.entering, self.action, draws)
        self.tokens.copy_(frame.tokens)
        for buffer, values in ((self.reward, frame.reward), (self.success, frame.success)):
            if values is not None:
                buffer.copy_(values)
        self.entering[:, :-1] = frame.tokens[:, -1:]
        self.positions += num_passed
        self.num_draws += len(draws)

    def capture(self) -> None:
        """Record a run as a CUDA graph. The contents of the buffers are undefined afterwards."""
        with torch.cuda.device(self.positions.device):
            stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(2):  # libraries set themselves up in the first runs, which a capture must not see
                    self.run()
                # other threads, a data loader's for instance, may go on using the device meanwhile
                with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                    self.run()
            torch.cuda.current_stream().wait_stream(stream)
        self.graph = graph


class CudaGraphBackend(TorchBackend):
    """Frames as captured graphs, cached by shape: a graph serves one decoder at a time and is kept for the next.

    Prefill, and sampled separators, go through torch pass by pass.
    """

    def __init__(self, weights: LlamaWeights) -> None:
        super().__init__(weights)
        # Frames know this one: if they knew the backend that keeps them, their memory would wait for the collector.
        self._passes = TorchBackend(weights)
        self._idle: list[CudaGraphFrame] = []
        self._failed = False

    @classmethod
    def refusal(cls, weights: LlamaWeights) -> str | None:
        return None if weights.device.type == "cuda" else f"the model is on {weights.device}"

    def borrow_buffers(self, model: FrameModel, num_rows: int, capacity: int) -> CudaGraphFrame | None:
        """Return a frame for at least so many rows; None, after one line in the log, where capturing is impossible."""
        if self._failed or model.sampling.separators == "sampled":
            return None
        model, num_rows = replace(model, backend=self._passes), bucket(num_rows)
        addresses = addresses_of(model)
        self._idle = [frame for frame in self._idle if frame.addresses == addresses]
        for frame in self._idle:
            if (frame.model, frame.num_rows, frame.capacity) == (model, num_rows, capacity):
                self._idle.remove(frame)
                return frame
        try:
            frame = CudaGraphFrame(model, self._passes, num_rows, capacity)
            frame.capture()
        except RuntimeError as error:
            self._failed = not isinstance(error, torch.OutOfMemoryError)  # a smaller session may fit
            logger.warning("frames are drawn kernel by kernel: no CUDA graph (%s)", error)
            return None
        return frame

    def give_back(self, buffers: CudaGraphFrame) -> None:
        self._idle = [buffers, *self._idle][:MAX_IDLE]


def addresses_of(model: FrameModel) -> tuple[int, ...]:
    """Return the addresses of all weights: a captured graph goes on reading them there after they have moved."""
    weights = model.backend.weights
    tensors = [*weights.tensors, weights.cos, weights.sin]
    for head in (model.reward_head, model.success_head):
        tensors += [] if head is None else list(head.parameters())
    tensors += [] if model.dynamics_vectors is None else [model.dynamics_vectors]
    return tuple(tensor.data_ptr() for tensor in tensors)


def bucket(num_rows: int) -> int:
    """Round up to a power of two, so that batches that differ little share a graph."""
    return 1 << (num_rows - 1).bit_length()
