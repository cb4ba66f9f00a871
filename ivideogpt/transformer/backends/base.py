"""The interface between decoders and backends, and the registry of backends by name.

A backend runs the passes of one language model on one kind of hardware. To add one::

    class Mine(TorchBackend):
        def forward(self, embeddings, cache): ...

    register_backend("mine", Mine)
    WorldModel.from_pretrained(folder, backend="mine")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from ivideogpt.errors import UserError
from ivideogpt.transformer.language_model import LlamaForCausalLM
from ivideogpt.transformer.llama import KVCache, LlamaWeights
from ivideogpt.transformer.sampling import Sampling

if TYPE_CHECKING:
    from ivideogpt.transformer.backends.cuda_graph import CudaGraphFrame
    from ivideogpt.transformer.decoder import FrameModel


class DecodeBackend(Protocol):
    """Passes over one set of weights. It holds no cache of a rollout, so that one instance serves many.

    Shapes: B rows, n new positions of each, D width, V vocabulary.
    """

    weights: LlamaWeights

    def __init__(self, weights: LlamaWeights) -> None: ...

    @classmethod
    def refusal(cls, weights: LlamaWeights) -> str | None:
        """Return why these weights cannot be decoded here; None if they can."""
        return None

    def refresh(self) -> None:
        """Handle that the weights have been read again and may have other addresses."""
        return

    def new_cache(self, batch: int, capacity: int) -> KVCache:
        """Return an empty cache for rollouts of this backend."""

    def forward(self, embeddings: Tensor, cache: KVCache) -> Tensor:
        """Append n positions (B, n, D) to the cache and return their last hidden states after the final norm."""

    def logits(self, hidden: Tensor) -> Tensor:
        """Convert hidden states (..., D) to logits (..., V)."""

    def sample(self, logits: Tensor, sampling: Sampling, draw: Tensor | None) -> Tensor:
        """Sample one id a row, as :func:`ivideogpt.transformer.sampling.sample` does."""

    def borrow_buffers(self, model: FrameModel, num_rows: int, capacity: int) -> CudaGraphFrame | None:
        """Return buffers that draw whole frames, for one decoder at a time; None: frames are drawn pass by pass."""
        return None

    def give_back(self, buffers: CudaGraphFrame) -> None:
        """Take back buffers that a decoder no longer uses."""
        return


AUTO = "auto"
AUTO_ORDER = ("cuda_graph", "cpu_kernels", "torch")  # the first that can run the weights is taken
_BACKENDS: dict[str, type[DecodeBackend]] = {}


def register_backend(name: str, backend: type[DecodeBackend]) -> None:
    """Register a backend under a name that any ``backend`` argument then accepts."""
    _BACKENDS[name] = backend


def check_backend(name: str) -> None:
    """Make sure that there is a backend of this name, or that it is "auto".

    Raises:
        UserError: there is none.
    """
    if name not in (known := (AUTO, *_BACKENDS)):
        raise UserError(f"backend is {name!r}, must be one of {', '.join(map(repr, known))}")


def open_backend(name: str, llm: LlamaForCausalLM, earlier: DecodeBackend | None = None) -> DecodeBackend:
    """Return a backend for a language model's weights as they are now.

    Args:
        earlier: what an earlier call returned; it is refreshed and returned where it still fits.

    Raises:
        UserError: there is no such backend, or it cannot run these weights.
    """
    check_backend(name)
    if earlier is not None and earlier.weights.llm is llm:
        weights = earlier.weights
        weights.refresh()
    else:
        weights, earlier = LlamaWeights(llm), None
    if name == AUTO:
        kind = next(_BACKENDS[each] for each in AUTO_ORDER if _BACKENDS[each].refusal(weights) is None)
    else:
        kind = _BACKENDS[name]
        if (reason := kind.refusal(weights)) is not None:
            raise UserError(f"backend {name!r} cannot decode here: {reason}; 'auto' takes one that can")
    if earlier is None or type(earlier) is not kind:
        return kind(weights)
    earlier.refresh()
    return earlier
