"""Codebook maintenance: usage statistics, initialisation from data, and restarts of dead codes.

Knows latents, codes and the optimizer's moments of the code vectors; knows no images.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor
from torch.optim import Optimizer

from ivideogpt.errors import UserError
from ivideogpt.vq_model import CompressiveVQOutput
from ivideogpt.vq_model.quantizer import code_usage

KMEANS_ITERATIONS = 10
VECTORS_PER_CODE = 8  # data that a codebook is initialised from
MAX_BATCHES_TO_START = 1000  # clips in which little moves give few vectors
VECTORS_AT_A_TIME = 4096
FORGOTTEN = 1e-6  # a running mean of so little weight is rounding error


class Tensors:
    """Tensors that change in place, as one piece of state."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors

    def state_dict(self) -> dict[str, Tensor]:
        return {name: tensor.cpu() for name, tensor in self._tensors.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for name, tensor in self._tensors.items():
            tensor.copy_(state[name])


class Codebook:
    """One codebook and what it has been used for.

    ``means`` are the same in all processes, ``counts`` are each one's own.

    Args:
        name: prefix of its metrics.
        vectors: (codes, d), the quantizer's embedding.
        accelerator: all processes end up with the same vectors.
        decay: of the running means of their latents that the vectors are set to after every batch (van den Oord et al.
            2017, appendix A.1); ``None`` leaves them to the optimizer.
        keep_zero: the first vector is zero and stays so, whatever it stands for.
    """

    def __init__(
        self, name: str, vectors: Tensor, accelerator: Accelerator, decay: float | None = None, keep_zero: bool = False
    ) -> None:
        self.name, self.vectors, self.accelerator = name, vectors, accelerator
        self.decay, self.keep_zero = decay, keep_zero
        self._weights = torch.ones(len(vectors), device=vectors.device)
        self._sums = vectors.detach().clone()  # sums of latents, weighted like _weights
        self._counts_since_log = torch.zeros(len(vectors), dtype=torch.int64, device=vectors.device)
        self._counts_since_restart = self._counts_since_log.clone()
        self.means = Tensors({"weights": self._weights, "sums": self._sums})
        self.counts = Tensors({"since_log": self._counts_since_log, "since_restart": self._counts_since_restart})

    def observe(self, codes: Tensor, latents: Tensor) -> None:
        """Count the codes of a training batch, any shape, and add up their latents (..., d)."""
        counts = torch.bincount(codes.flatten(), minlength=len(self.vectors))
        self._counts_since_log += counts
        self._counts_since_restart += counts
        if self.decay is not None:
            self._follow(codes.flatten(), counts, latents.flatten(0, -2).float())

    @torch.no_grad()
    def _follow(self, codes: Tensor, counts: Tensor, latents: Tensor) -> None:
        """Move every vector towards the mean of its latents. One that had none keeps its place."""
        assert self.decay is not None
        counts = self.accelerator.reduce(counts.float(), "sum")
        sums = self.accelerator.reduce(torch.zeros_like(self._sums).index_add_(0, codes, latents), "sum")
        sound = sums.isfinite().all()  # non-finite latents cause no update
        counts, sums = torch.where(sound, counts, self._weights), torch.where(sound, sums, self._sums)
        self._weights.lerp_(counts, 1 - self.decay)
        self._sums.lerp_(sums, 1 - self.decay)
        weights = self._weights.unsqueeze(1)
        self._set_vectors(torch.where(weights > FORGOTTEN, self._sums / weights, self.vectors))

    def take_statistics(self) -> dict[str, float]:
        """Return the share of codes in use and their perplexity since the last call."""
        counts = self.accelerator.reduce(self._counts_since_log, "sum")
        self._counts_since_log.zero_()
        return {f"{self.name}_{name}": value for name, value in code_usage(counts).items()} if counts.any() else {}

    def has_enough(self, parts: Sequence[Tensor]) -> bool:
        """Return whether the latents suffice for :meth:`initialise`."""
        return sum(map(len, parts)) >= VECTORS_PER_CODE * len(self.vectors)

    @torch.no_grad()
    def initialise(self, latents: Tensor) -> None:
        """Move the code vectors to cluster centres of ``latents`` (n, d), or of some of them if they are many."""
        if not len(latents):
            raise UserError(
                f"the {self.name} codebook cannot start from data: nothing moves in {MAX_BATCHES_TO_START} batches of "
                "clips; give longer clips or larger steps between frames, or leave out --restart_dead_codes"
            )
        some = latents[torch.randperm(len(latents))[: VECTORS_PER_CODE * len(self.vectors)].to(latents.device)]
        self._set_vectors(broadcast(kmeans(some.float(), len(self.vectors), KMEANS_ITERATIONS).to(self.vectors)))
        self._begin_means_anew(torch.arange(len(self.vectors)))

    @torch.no_grad()
    def restart_dead_codes(self, latents: Tensor, optimizer: Optimizer) -> dict[str, Tensor | float]:
        """Move codes unused since the last time to some of ``latents`` (..., d), preferably badly represented ones.

        The optimizer forgets what it knew of them. Returns their number, as a metric.
        """
        dead = self.accelerator.reduce(self._counts_since_restart, "sum") == 0
        if self.keep_zero:
            dead[0] = False
        self._counts_since_restart.zero_()
        rows = dead.nonzero().flatten()
        vectors = self.vectors.detach().clone()
        new = badly_represented(latents.flatten(0, -2).float(), vectors, num=len(rows))
        vectors[rows[: len(new)]] = new.to(vectors)
        self._set_vectors(broadcast(vectors))
        for moment in ("exp_avg", "exp_avg_sq"):
            if moment in optimizer.state.get(self.vectors, {}):
                optimizer.state[self.vectors][moment][rows] = 0
        self._begin_means_anew(rows)
        return {f"{self.name}_dead_codes": float(len(rows))}

    @torch.no_grad()
    def _set_vectors(self, vectors: Tensor) -> None:
        self.vectors.copy_(vectors)
        if self.keep_zero:
            self.vectors[0] = 0

    def _begin_means_anew(self, rows: Tensor) -> None:
        self._weights[rows] = 1
        self._sums[rows] = self.vectors.detach()[rows]


@dataclass(frozen=True)
class Codebooks:
    """Both codebooks of a tokenizer."""

    context: Codebook
    dynamics: Codebook

    def observe(self, output: CompressiveVQOutput, moving: Tensor | None = None) -> None:
        """Observe a training batch's forward pass; dynamics only where ``moving`` (B F, 16), if given."""
        self.context.observe(output.context_codes, output.context_latents)
        chosen = slice(None) if moving is None else moving
        self.dynamics.observe(output.dynamics_codes[chosen], output.dynamics_latents.detach()[chosen])

    def take_statistics(self) -> dict[str, float]:
        return self.context.take_statistics() | self.dynamics.take_statistics()

    def restart_dead_codes(
        self, output: CompressiveVQOutput, optimizer: Optimizer, moving: Tensor | None = None
    ) -> dict[str, Tensor | float]:
        context = self.context.restart_dead_codes(output.context_latents, optimizer)
        dynamics_latents = output.dynamics_latents if moving is None else output.dynamics_latents[moving]
        return context | self.dynamics.restart_dead_codes(dynamics_latents, optimizer)

    def initialise(self, batches: Iterable[tuple[Tensor, Tensor]], names: Collection[str]) -> None:
        """Initialise the named codebooks from pairs of context and dynamics latents, as many as needed."""
        books = [book for book in (self.context, self.dynamics) if book.name in names]
        collected: dict[Codebook, list[Tensor]] = {book: [] for book in books}
        for context, dynamics in islice(batches, MAX_BATCHES_TO_START):
            for book, parts in collected.items():
                if not book.has_enough(parts):
                    parts.append(context if book is self.context else dynamics)
            if all(book.has_enough(parts) for book, parts in collected.items()):
                break
        for book, parts in collected.items():
            book.initialise(torch.cat(parts))


def kmeans(vectors: Tensor, num_centres: int, iterations: int) -> Tensor:
    """Run Lloyd's algorithm from random distinct vectors. A centre that loses all its vectors stays where it is."""
    distinct = torch.unique(vectors, dim=0)
    chosen = torch.randperm(len(distinct))[:num_centres].to(vectors.device)
    centres = distinct[chosen]
    if len(centres) < num_centres:  # fewer distinct vectors than codes: the rest starts near some of them
        extra = centres[torch.randint(len(centres), (num_centres - len(centres),)).to(vectors.device)]
        centres = torch.cat([centres, extra + 0.01 * vectors.std() * torch.randn_like(extra)])
    for _ in range(iterations):
        parts = vectors.split(VECTORS_AT_A_TIME)
        nearest = torch.cat([torch.cdist(part, centres).argmin(dim=1) for part in parts])
        sums = torch.zeros_like(centres).index_add_(0, nearest, vectors)
        counts = torch.bincount(nearest, minlength=num_centres).unsqueeze(1)
        centres = torch.where(counts > 0, sums / counts.clamp(min=1), centres)
    return centres


def badly_represented(latents: Tensor, vectors: Tensor, num: int) -> Tensor:
    """Sample at most ``num`` distinct latents as k-means++ samples its centres.

    The probability is proportional to the squared distance from the nearest code vector.
    """
    distinct = torch.unique(latents[latents.isfinite().all(dim=1)], dim=0)
    errors = torch.cdist(distinct, vectors).amin(dim=1).square()
    num = min(num, int((errors > 0).sum()))
    if num == 0:
        return latents[:0]
    return distinct[torch.multinomial(errors.cpu(), num).to(latents.device)]
