"""Metrics under the name that the released code gave them."""

from ivideogpt.metrics.fvd import FeatureStats
from ivideogpt.released_api import Evaluator, compute_fvd

__all__ = ["Evaluator", "FeatureStats", "compute_fvd"]
