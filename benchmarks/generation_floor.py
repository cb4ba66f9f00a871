"""The least time that a rollout can take on a machine: bytes that must be read, operations that must be done.

A part of a rollout takes no less than its bytes over the machine's bandwidth, nor than its operations over its rate of
matrix products; both are measured. Counted are weights, keys and values, and matrix products; activations are not.
The prompt's keys and values are counted once a clip, whatever the number of its samples. What fits into a cache may be
read faster than from memory, so that small models can beat this floor.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ivideogpt.layout import TokenLayout
from ivideogpt.pretrained import language_model
from ivideogpt.vq_model import CompressiveVQModel
from ivideogpt.world_model import WorldModel

BYTES_READ = {"cuda": 2**31, "cpu": 2**29}  # more than caches hold
MATRIX = {"cuda": 8192, "cpu": 1024}
TIMES = 5  # the fastest counts


@dataclass(frozen=True)
class Work:
    bytes: float
    flops: float


@dataclass(frozen=True)
class Rates:
    """What a machine does in a second with numbers of one type."""

    bytes: float
    flops: float

    def seconds(self, work: Work) -> float:
        return max(work.bytes / self.bytes, work.flops / self.flops)


# ---- the machine


def measure_rates(device: torch.device, dtype: torch.dtype) -> Rates:
    """Measured once. TF32 is on for float32 products, as it is in convolutions."""
    return _measure_rates(torch.empty(0, device=device).device, dtype)  # cuda and cuda:0 are one


@cache
def _measure_rates(device: torch.device, dtype: torch.dtype) -> Rates:
    numbers = torch.ones(BYTES_READ[device.type] // dtype.itemsize, dtype=dtype, device=device)
    copy = torch.empty_like(numbers)
    of_reading = numbers.nbytes / _fastest(numbers.sum, device)
    of_copying = 2 * numbers.nbytes / _fastest(partial(copy.copy_, numbers), device)
    size = MATRIX[device.type]
    matrix = torch.randn(size, size, device=device).to(dtype)
    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        flops = 2 * size**3 / _fastest(partial(torch.mm, matrix, matrix), device)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed
    if dtype != torch.float32:  # numbers may be widened where that is faster
        flops = max(flops, _measure_rates(device, torch.float32).flops)
    return Rates(max(of_reading, of_copying), flops)


def _fastest(call: Callable[[], object], device: torch.device) -> float:
    seconds = []
    for _ in range(TIMES + 1):
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


# ---- the rollout


def floor(world_model: WorldModel, clips: int, samples: int, frames: int) -> dict[str, float]:
    """Seconds that each part of a rollout takes at least, in the types that the networks have."""
    tokenizer, llm = world_model.tokenizer, language_model(world_model.transformer)
    of_tokenizer = measure_rates(world_model.device, tokenizer.quant_conv.weight.dtype)
    of_transformer = measure_rates(world_model.device, llm.lm_head.weight.dtype)
    encode, frame = tokenizer_work(tokenizer, clips, samples)
    layout = tokenizer.layout(frames)
    prefill, passes = Transformer.of(world_model).work(layout, clips, samples)
    return {
        "encode": of_tokenizer.seconds(encode),
        "prefill": of_transformer.seconds(prefill),
        "passes": sum(map(of_transformer.seconds, passes)),
        "frames": frames * of_tokenizer.seconds(frame),
    }


@torch.no_grad()
def tokenizer_work(tokenizer: CompressiveVQModel, clips: int, samples: int) -> tuple[Work, Work]:
    """Encoding and decoding a context, and decoding one frame of every sample."""
    device, side = tokenizer.device, tokenizer.config.resolution
    context = torch.rand(1, tokenizer.context_length, 3, side, side, device=device)
    with FlopCounterMode(display=False) as of_context:
        codes = tokenizer.context_codes(context)
        decoded = tokenizer.decode_context(codes)
    frame_codes = torch.zeros(1, 1, tokenizer.layout(1).dynamics_tokens, dtype=torch.int64, device=device)
    with FlopCounterMode(display=False) as of_frame:
        tokenizer.decode_dynamics(frame_codes, decoded.features)
    plain: list[nn.Module] = [
        tokenizer.encoder,
        tokenizer.quant_conv,
        tokenizer.quantize,
        tokenizer.post_quant_conv,
        tokenizer.decoder,
    ]
    conditional: list[nn.Module] = [tokenizer.post_quant_linear, tokenizer.cond_decoder]
    return (
        Work(weight_bytes(plain), clips * of_context.get_total_flops()),
        Work(weight_bytes(conditional), clips * samples * of_frame.get_total_flops()),
    )


@dataclass(frozen=True)
class Transformer:
    """What counts of a LLaMA. Sizes of all layers together."""

    layer_weights: int
    head_weights: int
    query_width: int
    key_value_width: int  # of both
    itemsize: int

    @classmethod
    def of(cls, world_model: WorldModel) -> Transformer:
        llm = language_model(world_model.transformer)
        config = llm.config
        return cls(
            layer_weights=num_weights([llm.model.layers]),
            head_weights=num_weights([llm.lm_head]),
            query_width=config.num_hidden_layers * config.num_attention_heads * config.head_dim,
            key_value_width=2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim,
            itemsize=llm.lm_head.weight.element_size(),
        )

    def work(self, layout: TokenLayout, clips: int, samples: int) -> tuple[Work, list[Work]]:
        """The prefill, and sixteen passes a frame: a frame's last token and the next separator enter together."""
        prompt = layout.prompt_length - 1
        prefill = Work(
            self.itemsize * (self.layer_weights + clips * prompt * self.key_value_width),
            clips * (2 * prompt * self.layer_weights + self._attention(range(1, prompt + 1))),
        )
        passes = [
            self._one_pass(clips, samples, prompt, prompt + frame * layout.step_length + token + 1, entering)
            for frame in range(layout.future_frames)
            for token in range(layout.dynamics_tokens)
            for entering in [2 if frame > 0 and token == 0 else 1]
        ]
        return prefill, passes

    def _one_pass(self, clips: int, samples: int, prompt: int, length: int, entering: int) -> Work:
        """``entering`` positions become the last of ``length``, and the very last gets logits."""
        rows = clips * samples
        positions_read = clips * prompt + rows * (length - prompt)
        weights = self.layer_weights + self.head_weights
        attention = self._attention(range(length - entering + 1, length + 1))
        return Work(
            self.itemsize * (weights + positions_read * self.key_value_width),
            rows * (2 * entering * self.layer_weights + attention + 2 * self.head_weights),
        )

    def _attention(self, lengths: Iterable[int]) -> int:
        """Operations of one row's queries that look at so many positions each."""
        return 4 * self.query_width * sum(lengths)


def num_weights(modules: Iterable[nn.Module]) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def weight_bytes(modules: Iterable[nn.Module]) -> int:
    return sum(parameter.nbytes for module in modules for parameter in module.parameters())
