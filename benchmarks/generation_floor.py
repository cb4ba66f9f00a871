"""Estimate the minimum time of a rollout on a machine from the bytes to read and the operations to compute.

Each part takes at least its bytes over the memory bandwidth, and at least its operations over the rate of matrix
products; both rates are measured. Weights, keys, values and products with weights are counted. Data in a cache is read
faster than from memory, so small models can beat this floor.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache, partial

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ivideogpt.pretrained import language_model
from ivideogpt.vq_model import CompressiveVQModel
from ivideogpt.world_model import WorldModel

BYTES_READ = {"cuda": 2**31, "cpu": 2**29}  # larger than caches
MATRIX = {"cuda": 8192, "cpu": 1024}
TIMES = 5  # repetitions, of which the fastest counts

Rates = tuple[float, float]  # bytes and operations a second


@cache
def measure_rates(device: torch.device, dtype: torch.dtype) -> Rates:
    numbers = torch.ones(BYTES_READ[device.type] // dtype.itemsize, dtype=dtype, device=device)
    matrix = torch.randn(MATRIX[device.type], MATRIX[device.type], device=device).to(dtype)
    num_bytes = numbers.nbytes / _fastest(numbers.sum, device)
    flops = 2 * len(matrix) ** 3 / _fastest(partial(torch.mm, matrix, matrix), device)
    if dtype != torch.float32:  # narrow types may be widened where that is faster
        flops = max(flops, measure_rates(device, torch.float32)[1])
    return num_bytes, flops


def _fastest(call: Callable[[], object], device: torch.device) -> float:
    seconds = []
    for _ in range(TIMES + 1):
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def floor(world_model: WorldModel, clips: int, samples: int, frames: int) -> float:
    """Return the minimum seconds of a rollout, in the networks' types."""
    tokenizer, llm = world_model.tokenizer, language_model(world_model.transformer)
    layout, layers, config = tokenizer.layout(frames), num_weights(llm.model.layers), llm.config
    tokenizer_rates = measure_rates(world_model.device, tokenizer.quant_conv.weight.dtype)
    rates = measure_rates(world_model.device, llm.lm_head.weight.dtype)
    encode, decode = tokenizer_flops(tokenizer)
    total = _seconds(tokenizer_rates, 4 * num_weights(tokenizer.encoder), clips * encode)
    total += frames * _seconds(tokenizer_rates, 4 * num_weights(tokenizer.cond_decoder), clips * samples * decode)
    prompt, size = layout.prompt_length - 1, llm.lm_head.weight.element_size()
    total += _seconds(rates, size * layers, 2 * clips * prompt * layers)
    weights = layers + num_weights(llm.lm_head)
    key_value_width = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    for length in range(layout.future_frames * layout.dynamics_tokens):  # the last token enters with the separator
        kept = key_value_width * clips * (prompt + samples * length)
        total += _seconds(rates, size * (weights + kept), 2 * clips * samples * weights)
    return total


def _seconds(rates: Rates, num_bytes: float, flops: float) -> float:
    return max(num_bytes / rates[0], flops / rates[1])


@torch.no_grad()
def tokenizer_flops(tokenizer: CompressiveVQModel) -> tuple[int, int]:
    """Count the operations of encoding and decoding one clip's context, and of decoding one frame."""
    side = tokenizer.config.resolution
    context = torch.rand(1, tokenizer.context_length, 3, side, side, device=tokenizer.device)
    with FlopCounterMode(display=False) as context_counter:
        decoded = tokenizer.decode_context(tokenizer.context_codes(context))
    codes = torch.zeros(1, 1, tokenizer.layout(1).dynamics_tokens, dtype=torch.int64, device=tokenizer.device)
    with FlopCounterMode(display=False) as frame_counter:
        tokenizer.decode_dynamics(codes, decoded.features)
    return context_counter.get_total_flops(), frame_counter.get_total_flops()


def num_weights(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
