"""The place of the loaders in the released code."""

from ivideogpt.data.dataset_mixes import DATASET_NAMED_MIXES
from ivideogpt.data.loaders import EvalDataLoader, SimpleRoboticDataLoaderv2

__all__ = ["DATASET_NAMED_MIXES", "EvalDataLoader", "SimpleRoboticDataLoaderv2"]
