"""Import path of Something-Something v2 in the released code."""

from ivideogpt.data.formats.something_something import FrameFolder, SomethingEpisodes

__all__ = ["FrameFolder", "SomethingEpisodes"]
