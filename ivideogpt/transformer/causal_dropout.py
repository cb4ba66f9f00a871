"""Causal attention with dropout on a CPU, where PyTorch has no fused one and multiplies the whole square.

Knows queries, keys and values; knows no models. Queries are taken in blocks, each with the keys before its end: half of
the square, in pieces that stay in a core's cache. Random bits for dropout are drawn 16 at a time.

Shapes: N rows times heads, L positions, d head dimension.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.amp import custom_bwd, custom_fwd
from torch.autograd.function import once_differentiable

BLOCK = 64  # queries of a block
GROUP = 16  # rows that are multiplied at once
LEVELS = 2**16  # values of a 16-bit random number


def attention(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """Attend from (B, H, L, d) to keys and values (B, G, P + L, d), causally if there is no mask."""
    is_causal = mask is None and queries.shape[2] > 1
    is_on_cpu = queries.device.type == "cpu" and queries.dtype == torch.float32 and not torch.compiler.is_compiling()
    if dropout > 0 and is_causal and is_on_cpu and queries.shape == keys.shape:
        return causal_attention(queries, keys, values, dropout)
    grouped = queries.shape[1] != keys.shape[1]
    return F.scaled_dot_product_attention(queries, keys, values, mask, dropout, is_causal, enable_gqa=grouped)


def causal_attention(queries: Tensor, keys: Tensor, values: Tensor, dropout: float) -> Tensor:
    """Return ``softmax(queries keys^T / sqrt(d))`` over positions that are not later, with dropout, times values.

    All are (..., L, d) and float32; where autocast is on, they are made float32 and computed so. Dropout draws from
    torch's global generator; its probability is rounded to a multiple of 2^-16.
    """
    flat = [tensor.flatten(0, -3).contiguous() for tensor in (queries, keys, values)]
    attended: Tensor = _CausalAttention.apply(*flat, dropout, queries.shape[-1] ** -0.5)
    return attended.view(queries.shape)


class _CausalAttention(torch.autograd.Function):
    @staticmethod
    @custom_fwd(device_type="cpu", cast_inputs=torch.float32)  # without autocast within
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, dropout: float, scaling: float) -> Tensor:
        threshold = round(dropout * LEVELS)
        ctx.scaling, ctx.threshold, ctx.share = scaling, threshold, 1 - threshold / LEVELS
        out = torch.empty_like(q)
        weights, draws = [], []
        for rows, first, end in _blocks(q):
            scores = torch.bmm(q[rows, first:end] * scaling, k[rows, :end].transpose(1, 2))
            later = torch.ones(end - first, end - first, dtype=torch.bool).triu_(1)
            scores[:, :, first:].masked_fill_(later, float("-inf"))
            softmax = torch.softmax(scores, dim=-1, out=scores)
            drawn = _random_levels(softmax)
            kept = _kept(drawn, threshold).mul_(softmax)
            torch.bmm(kept, v[rows, :end], out=out[rows, first:end])
            weights.append(softmax)
            draws.append(drawn)
        out /= ctx.share
        ctx.save_for_backward(q, k, v, out, *weights, *draws)
        return out

    @staticmethod
    @custom_bwd(device_type="cpu")
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, *saved = ctx.saved_tensors
        grad = grad.contiguous()
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        inner = (grad * out).sum(-1, keepdim=True)  # sum over keys of weight times gradient, per query
        grad = grad / ctx.share
        half = len(saved) // 2
        for (rows, first, end), weights, drawn in zip(_blocks(q), saved[:half], saved[half:], strict=True):
            block_grad = grad[rows, first:end]
            kept = _kept(drawn, ctx.threshold)
            d_scores = torch.bmm(block_grad, v[rows, :end].transpose(1, 2)).mul_(kept)
            dv[rows, :end] += torch.bmm(kept.mul_(weights).transpose(1, 2), block_grad)
            d_scores.sub_(inner[rows, first:end]).mul_(weights).mul_(ctx.scaling)
            torch.bmm(d_scores, k[rows, :end], out=dq[rows, first:end])
            dk[rows, :end] += torch.bmm(d_scores.transpose(1, 2), q[rows, first:end])
        return dq, dk, dv, None, None


def _blocks(queries: Tensor) -> list[tuple[slice, int, int]]:
    num_rows, length, _ = queries.shape
    return [
        (slice(row, row + GROUP), first, min(first + BLOCK, length))
        for row in range(0, num_rows, GROUP)
        for first in range(0, length, BLOCK)
    ]


def _random_levels(like: Tensor) -> Tensor:
    """Uniform in -2^15 .. 2^15 - 1, of the shape of ``like``."""
    words = torch.empty(-(-like.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    return words.view(torch.int16)[: like.numel()].view(like.shape)


def _kept(drawn: Tensor, threshold: int) -> Tensor:
    """Return 1 for weights that stay and 0 for dropped ones, float32: faster to multiply with than masks."""
    return torch.ge(drawn, threshold - LEVELS // 2, out=torch.empty(drawn.shape))
