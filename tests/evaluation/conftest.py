from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ivideogpt.metrics.lpips import LPIPS
from tests.data.synthetic import write_episode
from tests.parity.formulas import fill


class StandInI3D(nn.Module):
    """Called as the published network is; its features are means over halves of the picture."""

    def forward(self, videos: torch.Tensor, rescale: bool, resize: bool, return_features: bool) -> torch.Tensor:
        assert all((rescale, resize, return_features))
        halves = videos.unflatten(3, (2, -1)).mean(dim=(2, 4, 5))
        return halves.flatten(1)


@pytest.fixture(scope="session")
def metric_weights(tmp_path_factory) -> list[str]:
    """Flags that name LPIPS weights of the parity data's formula, and a stand-in for I3D."""
    folder = tmp_path_factory.mktemp("metrics")
    tensors = fill(LPIPS(None)).state_dict()
    torch.save({name: of for name, of in tensors.items() if name.startswith("lin")}, folder / "vgg.pth")
    vgg = {f"features.{name.split('.', 2)[2]}": of for name, of in tensors.items() if name.startswith("net.")}
    torch.save(vgg, folder / "vgg16-397923af.pth")
    torch.jit.script(StandInI3D()).save(folder / "i3d.pt")
    return ["--lpips_path", str(folder), "--i3d_path", str(folder / "i3d.pt")]


@pytest.fixture(scope="session")
def episodes(tmp_path_factory) -> Path:
    """Two data sets of three episodes each, pictures that move and 4-D actions."""
    folder = tmp_path_factory.mktemp("episodes")
    rng = np.random.default_rng(0)
    for dataset in ("left", "right"):
        for number in range(3):
            image = rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)
            film = np.stack([np.roll(image, shift * (1 + number), axis=1) for shift in range(9)])
            action = rng.normal(size=(9, 4)).astype(np.float32)
            write_episode(folder / dataset / f"{number}.npz", 9, image=film, action=action)
    return folder
