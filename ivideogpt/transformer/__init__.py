"""The transformer: tokens and actions to next tokens and rewards."""

from ivideogpt.transformer.action_model import HeadModelWithAction
from ivideogpt.transformer.decoder import FrameDecoder, FrameModel
from ivideogpt.transformer.llama import CachedLlama
from ivideogpt.transformer.sampling import RandomStreams, Sampling, drawn_seed, sample

__all__ = [
    "CachedLlama",
    "FrameDecoder",
    "FrameModel",
    "HeadModelWithAction",
    "RandomStreams",
    "Sampling",
    "drawn_seed",
    "sample",
]
