"""The transformer: tokens and actions to next tokens and rewards."""

from ivideogpt.transformer.action_model import HeadModelWithAction
from ivideogpt.transformer.backends.cuda_graph import GraphPool
from ivideogpt.transformer.causal_dropout import ATTENTION
from ivideogpt.transformer.decoder import FrameDecoder
from ivideogpt.transformer.frame_model import FrameModel
from ivideogpt.transformer.llama import CachedLlama
from ivideogpt.transformer.sampling import SAMPLING_RULES, RandomStreams, Sampling, drawn_seed, expected_codes, sample

__all__ = [
    "ATTENTION",
    "SAMPLING_RULES",
    "CachedLlama",
    "FrameDecoder",
    "FrameModel",
    "GraphPool",
    "HeadModelWithAction",
    "RandomStreams",
    "Sampling",
    "drawn_seed",
    "expected_codes",
    "sample",
]
