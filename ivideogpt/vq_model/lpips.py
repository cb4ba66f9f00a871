"""LPIPS under its name in the released code."""

from ivideogpt.metrics.lpips import LPIPS

__all__ = ["LPIPS"]
