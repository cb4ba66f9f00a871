"""The place of LPIPS in the released code."""

from ivideogpt.lpips import LPIPS

__all__ = ["LPIPS"]
