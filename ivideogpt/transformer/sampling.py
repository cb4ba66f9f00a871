"""Sampling of the next token from logits. Knows no network."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from ivideogpt.errors import UserError
from ivideogpt.flags import SAMPLING_RULES
from ivideogpt.precision import full_float32

MIN_TEMPERATURE = 1e-6  # logits divided by less may overflow


@dataclass(frozen=True)
class Sampling:
    """Generation options.

    Attributes:
        temperature: divides the logits.
        top_k: keep that many of the likeliest ids; ``None`` keeps all. Without meaning to the rule "expected_code".
        greedy: take the likeliest id; temperature and top-k play no part then.
        separators: "forced" appends the separator after every frame; "sampled" draws it like any token, as the released
            action-free generation did.
        dynamics_only: restrict frame positions to ids of the dynamics codebook.
        rule: "sample" draws ids; "expected_code" takes the dynamics code nearest to the mean code vector of the softmax
            over all dynamics codes, at each position. Nothing is random then.
    """

    temperature: float = 1.0
    top_k: int | None = 100
    greedy: bool = False
    separators: Literal["forced", "sampled"] = "forced"
    dynamics_only: bool = False
    rule: Literal["sample", "expected_code"] = "sample"

    @property
    def is_deterministic(self) -> bool:
        """Whether all samples of a context are the same."""
        return self.greedy or self.top_k == 1 or self.rule == "expected_code"

    def with_flags(self, **flags: Any) -> Sampling:
        """Return these options with those of a command line that are not None.

        A ``top_k`` (0: all) draws samples, whatever the rule was; with the rule "expected_code" it is a UserError. So
        is a temperature where the likeliest ids are taken, which it does not change.
        """
        chosen = {name: value for name, value in flags.items() if value is not None}
        if chosen.keys() & {"top_k", "rule"}:
            chosen.setdefault("greedy", False)
        if "top_k" in chosen:
            if chosen.setdefault("rule", "sample") == "expected_code":
                raise UserError("--top_k does nothing with --sampling_rule expected_code: give one of them")
            chosen["top_k"] = chosen["top_k"] or None
        sampling = replace(self, **chosen)
        takes_likeliest = sampling.greedy or (sampling.top_k == 1 and sampling.rule == "sample")
        if takes_likeliest and sampling.temperature != self.temperature:
            raise UserError("--temperature does nothing where the likeliest tokens are taken: give --top_k 100, too")
        return sampling

    def __post_init__(self) -> None:
        if not self.temperature >= MIN_TEMPERATURE:
            raise UserError(
                f"temperature is {self.temperature}, must be at least {MIN_TEMPERATURE}; for the likeliest tokens use "
                "greedy=True"
            )
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top_k is {self.top_k}, must be at least 1, or None to keep all ids")
        if self.separators not in ("forced", "sampled"):
            raise UserError(f"separators is {self.separators!r}, must be 'forced' or 'sampled'")
        if self.rule not in SAMPLING_RULES:
            raise UserError(f"rule is {self.rule!r}, must be one of {', '.join(map(repr, SAMPLING_RULES))}")
        if self.rule == "expected_code" and self.greedy:
            raise UserError("greedy=True and rule='expected_code' are two ways to choose ids: give one of them")
        if self.rule == "expected_code" and self.separators == "sampled":
            raise UserError("rule='expected_code' needs separators='forced': separators have no code vectors")


@dataclass(frozen=True)
class RandomStreams:
    """A stream of random numbers for each row: a hash of the row's key, the number of the draw and the token's id.

    What a row draws depends on nothing but its key: not on the other rows of the batch, the device, or the order in
    which rows are worked on.

    Attributes:
        keys: (B,) int64.
    """

    keys: Tensor

    @classmethod
    def of_clips(
        cls, seed: int, clips: Tensor, num_samples: int = 1, first_sample: int = 0, common: bool = False
    ) -> RandomStreams:
        """Make the streams of every sample of clips with these numbers, (B,) int64; rows are ordered clip by clip.

        The samples are numbers ``first_sample``, ``first_sample + 1``, ...; with ``common`` all have the stream of the
        first one.
        """
        wrapped = (seed + 2**63) % 2**64 - 2**63
        seed_hash = _mixed(torch.tensor(wrapped, dtype=torch.int64, device=clips.device))
        clip_hashes = _mixed(seed_hash + clips)[:, None]
        samples = first_sample + torch.arange(num_samples, device=clips.device) * (not common)
        return cls(_mixed(clip_hashes + samples).flatten())

    def to(self, device: torch.device) -> RandomStreams:
        return RandomStreams(self.keys.to(device))

    def restarted(self, rows: Tensor, streams: RandomStreams, num_draws: int) -> RandomStreams:
        """Give some rows other streams, whose first draw is draw number ``num_draws`` of these rows."""
        return RandomStreams(self.keys.index_copy(0, rows, streams.keys - num_draws))

    def draws(self, first: int | Tensor, count: int) -> Tensor:
        """Return a hash for each of ``count`` draws from number ``first`` on, (count, B) int64, for :func:`sample`."""
        numbers = torch.arange(count, device=self.keys.device)[:, None] + first
        return _mixed(self.keys + numbers)


def drawn_seed(generator: torch.Generator | None, sampling: Sampling) -> int:
    """Draw a seed from a generator, by default torch's global one; nothing is drawn for deterministic sampling."""
    if sampling.is_deterministic:
        return 0
    device = "cpu" if generator is None else generator.device
    return int(torch.randint(2**62, (), generator=generator, device=device))


def sample(logits: Tensor, sampling: Sampling, draw: Tensor | None = None) -> Tensor:
    """Sample one id a row, (B,) int64, from logits (B, V). Temperature first, then top-k. Never waits for the device.

    Each id gets Gumbel noise, a hash of the id and the row's ``draw`` (B,) (see :meth:`RandomStreams.draws`): the
    highest sum is drawn with the softmax's probability. ``draw`` may be None where sampling is deterministic.
    """
    if sampling.is_deterministic:
        return logits.argmax(-1)
    assert draw is not None
    logits = logits.float() / sampling.temperature
    if sampling.top_k is None or sampling.top_k >= logits.shape[-1]:
        ids = torch.arange(logits.shape[-1], device=logits.device).expand_as(logits)
    else:
        logits, ids = logits.topk(sampling.top_k, dim=-1)
    winner = (logits + _gumbel(draw[:, None] ^ ids)).argmax(-1, keepdim=True)
    return ids.gather(-1, winner).squeeze(-1)


def expected_codes(logits: Tensor, vectors: Tensor) -> Tensor:
    """Return the codes (...) whose vectors are nearest to the mean vector of the softmax of logits (..., codes).

    ``vectors`` (codes, d) are those of the codebook. Never waits for the device.
    """
    with torch.autocast(logits.device.type, enabled=False), full_float32():
        vectors = vectors.float()
        mean = logits.float().softmax(-1) @ vectors
        # half the squared distance, less what all codes have in common
        return (vectors.square().sum(-1) / 2 - mean @ vectors.T).argmin(-1)


def _gumbel(x: Tensor) -> Tensor:
    """Convert int64 numbers to Gumbel-distributed float32 ones."""
    uniform = _shifted(_mixed(x), 41).float().add_(0.5).mul_(2.0**-23)  # 23 bits and a half: exact, never 0 nor 1
    return uniform.log_().neg_().log_().neg_()


def _mixed(x: Tensor) -> Tensor:
    """Apply SplitMix64's output function to int64, whose products wrap around as unsigned ones do."""
    x = x + -0x61C8864680B583EB
    x = (x ^ _shifted(x, 30)) * -0x40A7B892E31B1A47
    x = (x ^ _shifted(x, 27)) * -0x6B2FB644ECCEEE15
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Shift logically to the right; int64's own shift repeats the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
