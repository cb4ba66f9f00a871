"""Metrics under the name that the released code gave them."""

from ivideogpt.metrics.frame_metrics import Evaluator, FeatureStats, compute_fvd

__all__ = ["Evaluator", "FeatureStats", "compute_fvd"]
