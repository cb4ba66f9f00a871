"""What users of the released code call and this code does not: generation by the transformer alone, the Evaluator.

Methods of :class:`~ivideogpt.transformer.HeadModelWithAction` delegate to the functions here.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from ivideogpt.errors import UserError
from ivideogpt.metrics.frame_metrics import FrameScorer, best_of_samples, find_lpips
from ivideogpt.metrics.fvd import I3D, FeatureStats, frechet_distance
from ivideogpt.paths import LPIPS_FOLDER
from ivideogpt.transformer import (
    FrameDecoder,
    FrameModel,
    HeadModelWithAction,
    RandomStreams,
    Sampling,
    drawn_seed,
    open_backend,
)
from ivideogpt.transformer.decoder import DecodedFrames

compute_fvd = frechet_distance


def generate(
    model: HeadModelWithAction,
    prompt: Tensor,
    sampling: Sampling,
    max_new_tokens: int | None,
    action: Tensor,
    generator: torch.Generator | None,
) -> Tensor | tuple[Tensor, Tensor]:
    """See :meth:`HeadModelWithAction.generate`."""
    num_frames = _num_new_frames(model, max_new_tokens)
    with torch.no_grad():
        action_embeddings = model.embed_actions(model.actions_to_future(action, num_frames))
    frames = _roll_out(model, prompt, num_frames, sampling, generator, action_embeddings, model.reward_linear)
    tokens = torch.cat([prompt[:, :-1], frames.tokens], dim=1)
    return tokens if frames.rewards is None else (tokens, frames.rewards)


def generate_without_action(
    model: HeadModelWithAction,
    prompt: Tensor,
    sampling: Sampling,
    max_new_tokens: int | None,
    generator: torch.Generator | None,
) -> Tensor:
    """See :meth:`HeadModelWithAction.generate_without_action`."""
    frames = _roll_out(model, prompt, _num_new_frames(model, max_new_tokens), sampling, generator)
    return torch.cat([prompt[:, :-1], frames.tokens], dim=1)


def _roll_out(
    model: HeadModelWithAction,
    prompt: Tensor,
    num_frames: int,
    sampling: Sampling,
    generator: torch.Generator | None,
    action_embeddings: Tensor | None = None,
    reward_head: nn.Linear | None = None,
) -> DecodedFrames:
    layout = model.layout.with_future_frames(num_frames)
    if prompt.shape[1] != layout.prompt_length:
        raise UserError(
            f"the prompt has {prompt.shape[1]} tokens, expected {layout.prompt_length}: {model.context} context "
            "frames, each followed by a separator"
        )
    streams = RandomStreams.of_clips(drawn_seed(generator, sampling), torch.arange(len(prompt)))
    # a graph that is captured for one call alone would cost more than it saves
    backend = open_backend("torch" if model.llm.device.type == "cuda" else "auto", model.llm)
    decoder = FrameDecoder(FrameModel(backend, layout, sampling, reward_head), streams)
    decoder.prefill(prompt, max_frames=num_frames)
    return decoder.rollout(num_frames, action_embeddings)


def _num_new_frames(model: HeadModelWithAction, max_new_tokens: int | None) -> int:
    if max_new_tokens is None:
        return model.layout.future_frames
    step = model.layout.step_length
    num_frames, rest = divmod(max_new_tokens + 1, step)
    if rest:
        raise UserError(f"max_new_tokens is {max_new_tokens}, must be {step} F - 1 for F whole frames")
    return num_frames


class Evaluator(nn.Module):
    """The published protocol for the clips of one call: means over all frames, each metric's best of N samples.

    Args:
        i3d_path: network for :meth:`features`; without it there is no FVD.
        max_batchsize: frames that LPIPS, and clips that I3D is given at a time.
        lpips_path: folder of its weights; without them LPIPS is NaN, and the log says what is missing.
    """

    def __init__(
        self,
        i3d_path: str | Path | None = None,
        max_batchsize: int | None = None,
        lpips_path: str | Path = LPIPS_FOLDER,
    ) -> None:
        super().__init__()
        self.max_batchsize = max_batchsize
        self.lpips = find_lpips(lpips_path)
        self.i3d = None if i3d_path is None else I3D(Path(i3d_path))

    def forward(self, truth: Tensor, prediction: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """``truth`` (B, T, 3, H, W), ``prediction`` (N B, T, 3, H, W), sample by sample: MSE, PSNR, SSIM, LPIPS."""
        if truth.ndim != 5 or prediction.shape[1:] != truth.shape[1:] or len(prediction) % len(truth):
            raise UserError(
                f"predictions have shape {tuple(prediction.shape)}, expected (N B, T, 3, H, W), sample by sample, for "
                f"true clips of shape {tuple(truth.shape)}"
            )
        samples = prediction.unflatten(0, (-1, len(truth))).transpose(0, 1)
        scores = FrameScorer(self.lpips, self.max_batchsize)(truth, samples)
        means = {name: best_of_samples(name, of.mean(dim=-1)).mean() for name, of in scores.items()}
        lpips = means.get("lpips", torch.full_like(means["mse"], torch.nan))
        return means["mse"], means["psnr"], means["ssim"], lpips

    @property
    def i3d_model(self) -> Callable[..., Tensor] | None:
        """The published network itself, for pixels (n, 3, T, H, W) in 0..255; None without i3d_path."""
        return None if self.i3d is None else self.i3d.network

    def features(self, videos: Tensor) -> Tensor:
        """Videos (n, T, 3, H, W) in [0, 1] to I3D features (n, d), for :class:`FeatureStats`."""
        if self.i3d is None:
            raise UserError("no I3D network: make the Evaluator with i3d_path")
        return self.i3d.in_parts(videos, self.max_batchsize)

    def compute_fvd(self, real_stats: FeatureStats, generated_stats: FeatureStats) -> float:
        return compute_fvd(real_stats, generated_stats)
