"""The place of LPIPS in the released code."""

from ivideogpt.metrics.lpips import LPIPS

__all__ = ["LPIPS"]
