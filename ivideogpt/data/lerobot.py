"""LeRobot episodes under the name that they had before `formats/`."""

from ivideogpt.data.formats.lerobot import LeRobotEpisodes

__all__ = ["LeRobotEpisodes"]
