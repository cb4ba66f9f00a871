"""The transformer: tokens and actions to next tokens and rewards."""

from ivideogpt.transformer.action_model import HeadModelWithAction
from ivideogpt.transformer.decoder import CachedLlama, FrameDecoder
from ivideogpt.transformer.sampling import Sampling, sample

__all__ = ["CachedLlama", "FrameDecoder", "HeadModelWithAction", "Sampling", "sample"]
