"""LPIPS with VGG16 features (Zhang et al. 2018). Knows its published weights' names; downloads nothing."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from ivideogpt.errors import UserError
from ivideogpt.paths import LPIPS_FOLDER, here_or_in_project
from ivideogpt.pixel_range import SIGNED, check_range
from ivideogpt.state_dicts import load_strict, read_foreign_tensors

VGG_FILE = "vgg16-397923af.pth"
LINEAR_FILE = "vgg.pth"
# The published linear layers. VGG16's file has the beginning of its sha256 sum in its name.
LINEAR_MD5 = "d507d7349b931f0638a25a48a722f98a"

# Channels of the convolutions (each followed by ReLU) in the five slices that end at relu1_2 .. relu5_3.
_SLICES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


def missing_weights(folder: Path) -> str | None:
    """Name the LPIPS weights that are missing from this folder and where to put them; None if they are there."""
    checksums = {VGG_FILE: "torchvision's VGG16, sha256 397923af...", LINEAR_FILE: f"linear layers, md5 {LINEAR_MD5}"}
    missing = [f"{name} ({sum_})" for name, sum_ in checksums.items() if not (folder / name).is_file()]
    return f"LPIPS weights missing: put {' and '.join(missing)} into {folder}" if missing else None


class _ScalingLayer(nn.Module):
    """Scales frames from [-1, 1] to ImageNet's statistics."""

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188])[None, :, None, None])
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450])[None, :, None, None])

    def forward(self, frames: Tensor) -> Tensor:
        return (frames - self.shift) / self.scale


class _Vgg16(nn.Module):
    """VGG16's convolutions in five slices; layers keep their indices in torchvision's ``vgg16.features`` as names."""

    def __init__(self) -> None:
        super().__init__()
        channels, layer = 3, 0
        for number, convolutions in enumerate(_SLICES, start=1):
            slice_ = nn.Sequential()
            if number > 1:
                slice_.add_module(str(layer), nn.MaxPool2d(2, 2))
                layer += 1
            for outputs in convolutions:
                slice_.add_module(str(layer), nn.Conv2d(channels, outputs, 3, padding=1))
                slice_.add_module(str(layer + 1), nn.ReLU())
                channels, layer = outputs, layer + 2
            self.add_module(f"slice{number}", slice_)

    def forward(self, frames: Tensor) -> list[Tensor]:
        features = []
        for slice_ in self.children():
            frames = slice_(frames)
            features.append(frames)
        return features


class LPIPS(nn.Module):
    """Perceptual distance of frames (N, 3, H, W) in [-1, 1] to others, one number each. Always frozen, in eval mode.

    Args:
        folder: holds the published files ``vgg16-397923af.pth`` (torchvision's VGG16) and ``vgg.pth`` (linear layers),
            here or in the project. None leaves the weights to a later ``load_state_dict``.

    Raises:
        UserError: a file is missing or holds other tensors.
    """

    def __init__(self, folder: str | Path | None = LPIPS_FOLDER) -> None:
        super().__init__()
        self.scaling_layer = _ScalingLayer()
        self.net = _Vgg16()
        for level, convolutions in enumerate(_SLICES):
            # learned 1x1 weights of a level; "model.0" is the published dropout, which never acts here
            linear = nn.Sequential(nn.Identity(), nn.Conv2d(convolutions[-1], 1, 1, bias=False))
            self.add_module(f"lin{level}", nn.ModuleDict({"model": linear}))
        self.requires_grad_(False).eval()
        if folder is not None:
            self._load(here_or_in_project(folder))

    def forward(self, frames: Tensor, others: Tensor) -> Tensor:
        """Return (N, 1, 1, 1), as the published network does.

        Raises:
            UserError: frames are outside of [-1, 1], and are not the reconstructions of a network in training.
        """
        for batch in (frames, others):
            if not batch.requires_grad:
                check_range(batch, "frames for LPIPS", SIGNED)
        return self.distance(self.features(frames), self.features(others))[:, None, None, None]

    def features(self, frames: Tensor) -> list[Tensor]:
        """Return normalised VGG features of frames at five levels; they can be compared any number of times."""
        levels = self.net(self.scaling_layer(frames))
        return [level / (level.norm(dim=1, keepdim=True) + 1e-10) for level in levels]

    def distance(self, features: list[Tensor], others: list[Tensor]) -> Tensor:
        """Return (N,) distances between the features of N frames and of as many others."""
        distance = torch.zeros(len(features[0]), device=features[0].device)
        for level, (ours, theirs) in enumerate(zip(features, others, strict=True)):
            distance = distance + getattr(self, f"lin{level}")["model"]((ours - theirs) ** 2).mean(dim=(1, 2, 3))
        return distance

    def _load(self, folder: Path) -> None:
        missing = missing_weights(folder)
        if missing is not None:
            raise UserError(missing)
        tensors = read_foreign_tensors(folder / LINEAR_FILE)
        vgg = read_foreign_tensors(folder / VGG_FILE)
        for name in self.net.state_dict():
            _, published = name.split(".", 1)  # slice2.5.weight is features.5.weight
            if f"features.{published}" in vgg:
                tensors[f"net.{name}"] = vgg[f"features.{published}"]
        load_strict(self, {**dict(self.named_buffers()), **tensors}, source=str(folder))
