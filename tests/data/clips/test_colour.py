"""Colour operations on whole batches against Pillow's on single frames."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance

from ivideogpt.data.clips import colour as colour_module
from ivideogpt.data.clips.batches import PackedClips
from ivideogpt.data.clips.colour import OPERATIONS, Colour
from ivideogpt.data.clips.transforms import STRONG_AUGMENTATION, sample_colour

ENHANCERS = {"brightness": ImageEnhance.Brightness, "contrast": ImageEnhance.Contrast, "saturation": ImageEnhance.Color}


def pillow_hue(image: Image.Image, turns: float) -> Image.Image:
    """The 8-bit wheel wraps at 256; the shift is truncated towards zero."""
    hue, saturation, value = image.convert("HSV").split()
    turned = (np.asarray(hue, dtype=np.int16) + int(turns * 255)).astype(np.uint8)
    return Image.merge("HSV", (Image.fromarray(turned), saturation, value)).convert("RGB")


def pillow(name: str, frame: np.ndarray, amount: float) -> np.ndarray:
    image = Image.fromarray(frame)
    changed = pillow_hue(image, amount) if name == "hue" else ENHANCERS[name](image).enhance(amount)
    return np.asarray(changed)


def picture() -> np.ndarray:
    """What a camera might see: a shaded table, a few coloured things, highlights, shadow, noise."""
    rng = np.random.default_rng(1)
    y, x = np.mgrid[0:48, 0:64] / 64
    frame = np.stack([150 + 60 * x, 130 + 50 * x - 20 * y, 110 + 40 * x], axis=-1)
    for colour in [(220, 40, 30), (30, 90, 200), (60, 160, 50), (240, 220, 60)]:
        row, column = rng.integers(0, 36), rng.integers(0, 50)
        frame[row : row + 12, column : column + 14] = np.array(colour) * (0.5 + 0.5 * y[:12, :14, None])
    frame[40:] *= 0.2
    frame[:4, :20] = 255
    return np.clip(frame + rng.normal(0, 4, frame.shape), 0, 255).astype(np.uint8)


def all_levels_of(levels: list[int]) -> np.ndarray:
    """Every colour with channels of these levels."""
    return (
        np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(len(levels), -1, 3).astype("u1")
    )


def hue_borders() -> np.ndarray:
    """Colours exactly on and just beside the borders between Pillow's 256 steps of hue, all around the wheel."""
    position = np.arange(1530)[:, None]
    ramps = np.stack([np.abs(position - 765) - 255, 510 - np.abs(position - 510), 510 - np.abs(position - 1020)], -1)
    vivid = np.clip(ramps, 0, 255)
    return np.concatenate([vivid, 20 + vivid // 3, 255 - vivid // 5], axis=1).astype(np.uint8)


FRAMES = {
    "random": np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8),
    "picture": picture(),
    "grey": np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2),
    "black": np.zeros((8, 8, 3), np.uint8),
    "white": np.full((8, 8, 3), 255, np.uint8),
    "extremes": all_levels_of([0, 1, 2, 127, 128, 253, 254, 255]),
    "hue borders": hue_borders(),
}
AMOUNTS = {
    **dict.fromkeys(ENHANCERS, (0.0, 0.6, 0.9, 0.937, 1.0, 1.05, 1.1, 1.4)),
    "hue": (-0.5, -0.05, -0.003, 0.0, 0.02, 0.05, 0.3, 0.5),
}


def changed(frames: np.ndarray, *operations: tuple[str, float]) -> np.ndarray:
    """Frames (T, H, W, 3) as one clip, in 0..255."""
    factors = [dict(operations).get(name, 1.0) for name in OPERATIONS]
    order = [OPERATIONS.index(name) for name, _ in operations]
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2)[None]
    result = Colour(np.array([factors]), np.array([order]))(pixels)
    assert result.dtype == torch.float32
    assert 0 <= result.min() <= result.max() <= 1
    return (result[0].permute(0, 2, 3, 1) * 255).numpy()


@pytest.mark.parametrize("kind", FRAMES)
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_is_pillows(name, kind):
    frame = FRAMES[kind]
    for amount in AMOUNTS[name]:
        expected = pillow(name, frame, amount)
        np.testing.assert_allclose(changed(frame[None], (name, amount))[0], expected, atol=1.01, err_msg=f"{amount}")


def test_turning_the_wheel_is_pillows_for_every_colour():
    """Pillow's steps are as large as 6/255: one border on the wrong side is a visible difference."""
    levels = np.arange(256, dtype=np.uint8)
    for red in range(0, 256, 51):
        frame = np.stack(np.broadcast_arrays(np.uint8(red), levels[:, None], levels), axis=-1)
        expected = pillow("hue", frame, 0.05).astype(int)
        assert np.abs(changed(frame[None], ("hue", 0.05))[0] - expected).max() < 1.01


def test_operations_follow_one_another_as_drawn():
    """A chain in another order gives other colours where they saturate."""
    frame = FRAMES["picture"]
    chain = [("brightness", 1.4), ("contrast", 0.7), ("hue", 0.1), ("saturation", 1.3)]
    for operations in (chain, chain[::-1]):
        expected = frame
        for name, amount in operations:
            expected = pillow(name, expected, amount)
        differences = np.abs(changed(frame[None], *operations)[0] - expected)
        assert differences.mean() < 1
        assert differences.max() < 8  # a difference of one before the hue can be a whole step of it
    assert np.abs(changed(frame[None], *chain) - changed(frame[None], *chain[::-1])).max() > 20


def test_contrast_pivots_on_each_frame_of_a_clip():
    """The mean of the clip, or of a piece of it, would let a bright frame change the others."""
    frames = np.stack([FRAMES["picture"], FRAMES["picture"] // 3])
    expected = [pillow("contrast", frame, 0.5) for frame in frames]
    np.testing.assert_allclose(changed(frames, ("contrast", 0.5)), expected, atol=1.01)


def clips(number: int) -> tuple[torch.Tensor, list[Colour]]:
    rng = np.random.default_rng(3)
    pixels = torch.from_numpy(rng.integers(0, 256, (number, 3, 3, 8, 10), dtype=np.uint8))
    return pixels, [sample_colour(np.random.default_rng(seed), STRONG_AUGMENTATION) for seed in range(number)]


def test_clips_of_a_batch_keep_their_own_colours(monkeypatch):
    """All clips at once, as on a GPU, must be what each is alone: own amounts, own order, own table of hues."""
    pixels, colours = clips(12)
    alone = torch.cat([colour(clip[None]) for clip, colour in zip(pixels, colours)])
    together = Colour.concatenate(colours)
    assert torch.equal(together(pixels), alone)
    monkeypatch.setattr(colour_module, "_pieces", lambda pixels: [(slice(None), [slice(None)])])
    torch.testing.assert_close(together(pixels), alone, atol=1.01 / 255, rtol=0)


def test_a_long_clip_is_changed_in_pieces_that_do_not_show(monkeypatch):
    pixels, colours = clips(2)
    whole = Colour.concatenate(colours)(pixels)
    monkeypatch.setattr(colour_module, "_PIXELS_AT_ONCE", 100)
    assert torch.equal(Colour.concatenate(colours)(pixels), whole)


def test_frames_are_copied():
    pixels, colours = clips(1)
    before = pixels.clone()
    colours[0](pixels)
    assert torch.equal(pixels, before)


def test_a_batch_of_plain_and_augmented_clips_leaves_the_plain_ones_alone():
    """Passes over a dataset follow one another, so the first augmented clip shares a batch with the last plain one."""
    pixels, colours = clips(2)
    plain = PackedClips(pixels[:1] + 0.25)
    packed = PackedClips.concatenate([plain, PackedClips(pixels[1:], colours[1])])
    frames = packed.to("cpu").frames
    torch.testing.assert_close(frames[0], (pixels[0] + 0.25) / 255)
    torch.testing.assert_close(frames[1:], colours[1](pixels[1:]))
