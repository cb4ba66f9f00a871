"""Causal attention on a CPU where PyTorch's own is slow or multiplies the whole square: in bfloat16, and with dropout.

Knows queries, keys and values; knows no models. Queries are taken in blocks, each with the keys before its end: half of
the square, in pieces that stay in a core's cache. Their weights are kept for the backward pass, where PyTorch's fused
kernel computes them again. Random bits for dropout are drawn 16 at a time.

Shapes: N rows times heads, L positions after P earlier ones, d head dimension.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.amp import custom_bwd, custom_fwd
from torch.autograd.function import once_differentiable

from ivideogpt.devices import has_bfloat16_units

BLOCKS = {torch.float32: 64, torch.bfloat16: 128}  # queries of a block
GROUP = 16  # rows that are multiplied at once
LEVELS = 2**16  # values of a 16-bit random number


def attention(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """Attend from (B, H, L, d) to keys and values (B, G, P + L, d), causally if there is no mask."""
    length, num_keys = queries.shape[2], keys.shape[2]
    is_causal = mask is None and length > 1
    is_grouped = queries.shape[1] != keys.shape[1]
    if is_causal and not is_grouped and (dtype := _dtype_in_blocks(queries, dropout)) is not None:
        return causal_attention(queries.to(dtype), keys.to(dtype), values.to(dtype), dropout)
    if is_causal and length < num_keys:
        mask = torch.ones(length, num_keys, dtype=torch.bool, device=queries.device).tril_(num_keys - length)
    return F.scaled_dot_product_attention(
        queries, keys, values, mask, dropout, is_causal and mask is None, enable_gqa=is_grouped
    )


def _dtype_in_blocks(queries: Tensor, dropout: float) -> torch.dtype | None:
    """Return what to compute in, or None where PyTorch's own attention is as fast."""
    if queries.device.type != "cpu" or torch.compiler.is_compiling():
        return None
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else queries.dtype
    if dtype == torch.bfloat16 and has_bfloat16_units():
        return dtype
    return torch.float32 if dropout > 0 and queries.dtype == torch.float32 else None


def causal_attention(queries: Tensor, keys: Tensor, values: Tensor, dropout: float) -> Tensor:
    """Return ``softmax(queries keys^T / sqrt(d))`` over positions that are not later, with dropout, times values.

    Queries are (..., L, d), keys and values (..., P + L, d), all float32 or all bfloat16, and autocast changes nothing.
    Dropout draws from torch's global generator; its probability is rounded to a multiple of 2^-16.
    """
    flat = [tensor.flatten(0, -3).contiguous() for tensor in (queries, keys, values)]
    with torch.autocast("cpu", enabled=False):
        attended: Tensor = _CausalAttention.apply(*flat, dropout, queries.shape[-1] ** -0.5)
    return attended.view(queries.shape)


class _CausalAttention(torch.autograd.Function):
    @staticmethod
    @custom_fwd(device_type="cpu")  # the backward pass is without autocast, too
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, dropout: float, scaling: float) -> Tensor:
        threshold = round(dropout * LEVELS)
        ctx.scaling, ctx.threshold, ctx.share = scaling, threshold, 1 - threshold / LEVELS
        past = k.shape[1] - q.shape[1]
        q = q * scaling
        out = torch.empty_like(q)
        weights, draws = list[Tensor](), list[Tensor]()
        is_kept = any(ctx.needs_input_grad)
        for rows, first, end in _blocks(q):
            scores = torch.bmm(q[rows, first:end], k[rows, : past + end].transpose(1, 2))
            later = torch.ones(end - first, end - first, dtype=torch.bool).triu_(1)
            scores[:, :, past + first :].masked_fill_(later, float("-inf"))
            kept = softmax = torch.softmax(scores, dim=-1, out=scores)
            if threshold:
                drawn = _random_levels(softmax)
                kept = _kept(drawn, threshold, q.dtype).mul_(softmax)
                draws += [drawn] * is_kept
            weights += [softmax] * is_kept
            torch.bmm(kept, v[rows, : past + end], out=out[rows, first:end])
        if threshold:
            out /= ctx.share
        ctx.save_for_backward(q, k, v, out, *weights, *draws)
        return out

    @staticmethod
    @custom_bwd(device_type="cpu")
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, *saved = ctx.saved_tensors  # queries are scaled
        past = k.shape[1] - q.shape[1]
        blocks = _blocks(q)
        weights, draws = saved[: len(blocks)], saved[len(blocks) :]
        grad = grad.contiguous()
        dq, dk, dv = torch.empty_like(q), torch.zeros(k.shape), torch.zeros(v.shape)  # sums in float32
        inner = (grad * out).sum(-1, keepdim=True)  # sum over keys of weight times gradient, per query
        if draws:
            grad = grad / ctx.share
        for block, (rows, first, end) in enumerate(blocks):
            seen = past + end
            block_grad, softmax = grad[rows, first:end], weights[block]
            d_scores = torch.bmm(block_grad, v[rows, :seen].transpose(1, 2))
            kept = softmax
            if draws:
                kept = _kept(draws[block], ctx.threshold, q.dtype)
                d_scores.mul_(kept)
                kept.mul_(softmax)
            dv[rows, :seen] += torch.bmm(kept.transpose(1, 2), block_grad)
            d_scores.sub_(inner[rows, first:end]).mul_(softmax)
            torch.bmm(d_scores, k[rows, :seen], out=dq[rows, first:end])
            dk[rows, :seen] += torch.bmm(d_scores.transpose(1, 2), q[rows, first:end])
        return dq.mul_(ctx.scaling), dk.to(k.dtype), dv.to(v.dtype), None, None


def _blocks(queries: Tensor) -> list[tuple[slice, int, int]]:
    num_rows, length, _ = queries.shape
    size = BLOCKS[queries.dtype]
    return [
        (slice(row, row + GROUP), first, min(first + size, length))
        for row in range(0, num_rows, GROUP)
        for first in range(0, length, size)
    ]


def _random_levels(like: Tensor) -> Tensor:
    """Uniform in -2^15 .. 2^15 - 1, of the shape of ``like``."""
    words = torch.empty(-(-like.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    return words.view(torch.int16)[: like.numel()].view(like.shape)


def _kept(drawn: Tensor, threshold: int, dtype: torch.dtype) -> Tensor:
    """Return 1 for weights that stay and 0 for dropped ones: faster to multiply with than masks."""
    return torch.ge(drawn, threshold - LEVELS // 2, out=torch.empty(drawn.shape, dtype=dtype))
