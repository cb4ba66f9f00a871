"""Compiled passes of few positions, and compiled sampling; torch does the matrix products of many positions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ivideogpt.transformer.backends.cpu_kernels import kernels
from ivideogpt.transformer.backends.torch import Attention, AttentionFrom, TorchBackend
from ivideogpt.transformer.llama import KVCache, LayerWeights, LlamaWeights
from ivideogpt.transformer.sampling import Sampling, sample


@dataclass
class SharedPromptCache(KVCache):
    """A cache that keeps the prompt of samples once. Unfilled positions may hold anything: kernels do not read them.

    ``owners`` (B,) int32, if given, are the rows that hold the first ``shared_length`` positions of each row.
    """

    owners: Tensor | None = None
    shared_length: int = 0

    def expand(self, n: int) -> SharedPromptCache:
        owners, shared, filled = self.owners, self.shared_length, max(self.lengths)
        if owners is None:
            owners, shared = torch.arange(self.num_rows, dtype=torch.int32, device="cpu"), min(self.lengths)
        assert min(self.lengths) >= shared, "rows that began again have left what is shared"
        parts = []
        for part in (self.keys, self.values):
            expanded = self._empty_like(part, self.num_rows * n)
            expanded[:, ::n, :, :shared] = part[:, :, :, :shared]
            expanded[:, :, :, shared:filled] = part[:, :, :, shared:filled].repeat_interleave(n, dim=1)
            parts.append(expanded)
        lengths = [length for length in self.lengths for _ in range(n)]
        return SharedPromptCache(parts[0], parts[1], lengths, owners.repeat_interleave(n) * n, shared)

    def select(self, rows: Tensor) -> KVCache:
        selected = super().select(rows)
        if self.owners is None:
            return selected
        assert isinstance(selected, SharedPromptCache)
        new_number = torch.full((self.num_rows,), -1, dtype=torch.int32, device="cpu")
        new_number[rows.cpu()] = torch.arange(len(rows), dtype=torch.int32, device="cpu")
        owners = new_number[self.owners[rows.cpu()].long()]
        assert (owners >= 0).all(), "a prompt's owner must stay with the rows that read it"
        selected.owners = owners
        return selected

    def overwrite(self, rows: Tensor, prompts: KVCache) -> None:
        super().overwrite(rows, prompts)
        if self.owners is not None:  # they read their own memory from now on
            self.owners = self.owners.index_copy(0, rows.cpu(), rows.cpu().to(torch.int32))

    def _empty_like(self, part: Tensor, num_rows: int) -> Tensor:
        with torch.inference_mode(False):  # see LlamaWeights
            return part.new_empty(part.shape[0], num_rows, *part.shape[2:])


class CpuKernelsBackend(TorchBackend):
    """Compiled passes where at most :data:`kernels.MAX_LANES` positions are new; prefill is torch's."""

    def __init__(self, weights: LlamaWeights) -> None:
        super().__init__(weights)
        self.refresh()

    @classmethod
    def refusal(cls, weights: LlamaWeights) -> str | None:
        if weights.device.type != "cpu":
            return f"the model is on {weights.device}"
        if not kernels.supports(weights):
            return "CPU kernels need float32 or bfloat16 weights of one type, with widths that are multiples of 16"
        if kernels.library() is None:
            return f"there are no compiled CPU kernels ({kernels.SWITCH}=0, or no C++ compiler)"
        return None

    def refresh(self) -> None:
        library = kernels.library()
        assert library is not None
        self._library, self._pass = library, kernels.NativePass(library, self.weights)
        # Without units for bfloat16, products of many rows are faster in float32; kernels widen in registers.
        self._widens = self.weights.head.dtype == torch.bfloat16 and not kernels.multiplies_bfloat16()

    def new_cache(self, batch: int, capacity: int) -> SharedPromptCache:
        keys, values = (self.weights.cache_tensor(batch, capacity, is_zero=False) for _ in range(2))
        return SharedPromptCache(keys, values, [0] * batch)

    def logits(self, hidden: Tensor) -> Tensor:
        head = self.weights.head
        if hidden[..., 0].numel() <= kernels.MAX_LANES:
            return self._pass.linear(hidden, head)
        head = head.float() if self._widens else head
        return F.linear(hidden.to(head.dtype), head)

    def sample(self, logits: Tensor, sampling: Sampling, draw: Tensor | None) -> Tensor:
        if sampling.is_deterministic:
            return sample(logits, sampling)
        assert draw is not None
        return kernels.sample(self._library, logits, draw, sampling.temperature, sampling.top_k)

    def forward(self, embeddings: Tensor, cache: KVCache) -> Tensor:
        assert isinstance(cache, SharedPromptCache)
        n = embeddings.shape[1]
        if cache.common_length == 0:
            cache.advance(n)
            dtype = torch.float32 if self._widens else None
            return self._multiply(embeddings, AttentionFrom(self.weights, cache, 0, n, dtype))
        lanes = kernels.Lanes(cache.keys, cache.values, cache.positions(n), cache.owners, cache.shared_length)
        cache.advance(n)
        if lanes.count <= kernels.MAX_LANES:
            return self._pass.forward(embeddings, lanes)
        return self._multiply(embeddings, lambda layer, qkv: self._pass.attend(layer, qkv, lanes))

    def _multiply(self, embeddings: Tensor, attention: Attention) -> Tensor:
        """Run the layers with products by torch, in float32 where that is faster."""
        if self._widens:
            return self.run_layers(embeddings.float(), attention, _widened(self.weights.layers))
        return self.run_layers(embeddings, attention)


def _widened(layers: list[LayerWeights]) -> Iterator[LayerWeights]:
    """Yield the layers in float32, one after the other in the same memory: allocating takes longer than copying."""
    room = LayerWeights(*(torch.empty_like(tensor, dtype=torch.float32) for tensor in layers[0].tensors))
    for layer in layers:
        for wide, tensor in zip(room.tensors, layer.tensors, strict=True):
            wide.copy_(tensor)
        yield room
