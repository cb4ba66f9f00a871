"""Where a stream of batches stands, counted so that other batch sizes and numbers of ranks can go on from there."""

from __future__ import annotations


class StreamPosition:
    """A part of every stream whose ranks take turns at whole batches: ``position`` batches handed out on each rank."""

    def __init__(self, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
        self.position = 0

    @property
    def samples_per_step(self) -> int:
        return self.batch_size * self.world_size

    def state_dict(self) -> dict[str, int]:
        return {"samples": self.position * self.samples_per_step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Goes on after the samples already used: exactly, if batches and ranks are as before."""
        self.position = -(-state["samples"] // self.samples_per_step)
