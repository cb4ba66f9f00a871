"""The place of the loaders in the released code."""

from ivideogpt.data.clips.loaders import EvalDataLoader, SimpleRoboticDataLoaderv2
from ivideogpt.data.dataset_mixes import DATASET_NAMED_MIXES

__all__ = ["DATASET_NAMED_MIXES", "EvalDataLoader", "SimpleRoboticDataLoaderv2"]
