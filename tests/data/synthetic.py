"""Episodes whose values say which frame they belong to: pixels, action and reward of frame i are i."""

from pathlib import Path

import av
import numpy as np


def numbered_frames(num_frames: int, size: tuple[int, int] = (8, 8)) -> np.ndarray:
    return np.broadcast_to(np.arange(num_frames, dtype=np.uint8)[:, None, None, None], (num_frames, *size, 3)).copy()


def write_episode(path: Path, num_frames: int = 20, size: tuple[int, int] = (8, 8), save=np.savez, **arrays) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    numbers = np.arange(num_frames, dtype=np.float32)
    content = dict(
        image=numbered_frames(num_frames, size), action=np.stack([numbers, -numbers], axis=1), reward=numbers
    )
    content.update(arrays)
    save(path, **{key: value for key, value in content.items() if value is not None})
    return path


def write_dataset(folder: Path, num_episodes: int = 3, **options) -> Path:
    for i in range(num_episodes):
        write_episode(folder / f"{i:05d}.npz", **options)
    return folder


def square(num_frames=40, seed=0, late=0, size=64):
    """A square that moves by its action, stored ``late`` rows too late."""
    rng = np.random.default_rng(seed)
    moves = rng.choice([-1, 1], (num_frames, 2)) * rng.integers(1, 6, (num_frames, 1))
    place, frames = np.array([24, 24]), []
    for move in moves:
        move[:] = np.where((place + move < 0) | (place + move > size - 16), -move, move)
        frame = np.full((size, size, 3), 60, np.uint8)
        frame[place[0] : place[0] + 16, place[1] : place[1] + 16] = (250, 120, 30)
        frames.append(frame)
        place = place + move
    action = np.concatenate([moves, np.zeros((num_frames, 1))], axis=1).astype(np.float32)
    return dict(image=np.stack(frames), action=np.roll(action, late, axis=0))


def write_squares(folder, number=8, **options):
    for seed in range(number):
        write_episode(folder / f"{seed}.npz", 40, **square(seed=seed, **options))
    return folder


def record_video(folder: Path, name: str, seed: int) -> None:
    """A video at 10 frames per second of a square that follows the first two of four numbers."""
    rng = np.random.default_rng(seed)
    moves = rng.integers(-3, 4, (30, 2))
    place = np.array([40, 40])
    with av.open(str(folder / f"{name}.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for move in moves:
            frame = np.full((96, 128, 3), 60, np.uint8)
            frame[place[0] : place[0] + 20, place[1] : place[1] + 20] = (250, 120, 30)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            place = np.clip(place + move, 0, 70)
        container.mux(stream.encode())
    rows = np.concatenate([moves, np.zeros((30, 1)), rng.integers(0, 2, (30, 1))], axis=1)
    np.savetxt(folder / f"{name}.csv", rows, delimiter=",", header="x,y,z,grip", comments="")
