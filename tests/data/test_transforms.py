import colorsys
import math

import numpy as np
import pytest
import torch

from ivideogpt.data.transforms import (
    STRONG_AUGMENTATION,
    Augmentation,
    Colour,
    Preprocess,
    central_square,
    draw_colour,
    draw_crop,
    resize,
    unit_range,
)
from ivideogpt.errors import UserError

NEUTRAL = Augmentation((1, 1), (1, 1), (1, 1), (1, 1), (1, 1), (0, 0))


def rng(seed=0):
    return np.random.default_rng(seed)


def random_frames(num_frames=3, height=16, width=16):
    return rng(5).integers(0, 256, (num_frames, height, width, 3), dtype=np.uint8)


def test_frames_of_the_right_size_are_not_touched():
    frames = random_frames()
    pixels = Preprocess(16)(frames, rng())
    assert pixels.dtype == torch.uint8
    np.testing.assert_array_equal(pixels.permute(0, 2, 3, 1).numpy(), frames)


def test_resizing_is_antialiased_and_in_float():
    """Halving with antialiasing weighs neighbours 1 3 3 1; plain bilinear sampling would weigh them 0 1 1 0."""
    line = np.zeros((1, 8, 8, 3), np.uint8)
    line[:, :, 3] = 255
    row = resize(line, 4)[0, 0, 2]
    torch.testing.assert_close(row[1:3], 255 * torch.tensor([3 / 8, 1 / 8]), atol=1e-3, rtol=0)


def test_unit_range_of_8_bit_and_float_pixels_is_the_same():
    pixels = torch.arange(256)
    torch.testing.assert_close(unit_range(pixels.to(torch.uint8)), unit_range(pixels.float()), rtol=0, atol=0)
    assert unit_range(pixels.to(torch.uint8)).dtype == torch.float32


def test_a_square_is_cut_from_the_centre_only_without_augmentation():
    frames = np.zeros((1, 4, 8, 3), np.uint8)
    frames[:, :, 2:6] = 200
    assert central_square(4, 8)(frames).min() == 200
    assert (Preprocess(4, square_crop=True)(frames, rng()) == 200).all()
    assert not (Preprocess(4)(frames, rng()) == 200).all()
    random_crops = [Preprocess(4, square_crop=True, augmentation=NEUTRAL)(frames, rng(seed)) for seed in range(10)]
    assert not all((pixels == 200).all() for pixels in random_crops)


@pytest.mark.parametrize("size", [(64, 64), (48, 100), (300, 40)])
@pytest.mark.parametrize("ranges", [Augmentation(), STRONG_AUGMENTATION])
def test_crops_fit_and_have_the_drawn_area_and_aspect(size, ranges):
    height, width = size
    for seed in range(200):
        crop = draw_crop(rng(seed), height, width, ranges)
        assert crop.top >= 0
        assert crop.left >= 0
        assert crop.top + crop.height <= height
        assert crop.left + crop.width <= width
        area = crop.height * crop.width / min(size) ** 2
        assert ranges.crop_scale[0] * 0.94 <= area <= ranges.crop_scale[1] * 1.06
        assert ranges.crop_ratio[0] * 0.95 <= crop.width / crop.height <= ranges.crop_ratio[1] * 1.05


def test_a_crop_that_never_fits_falls_back_to_the_centre():
    too_wide = Augmentation(crop_scale=(1, 1), crop_ratio=(2, 2))
    crop = draw_crop(rng(), 10, 10, too_wide)
    assert (crop.top, crop.left, crop.height, crop.width) == (2, 0, 5, 10)


def test_one_draw_serves_the_whole_clip():
    """Colours that flicker within a clip would teach the model to predict noise."""
    frames = np.repeat(random_frames(1, 32, 32), 4, axis=0)
    pixels = Preprocess(16, augmentation=STRONG_AUGMENTATION)(frames, rng(3))
    assert (pixels == pixels[0]).all()
    assert pixels.dtype == torch.uint8


def test_augmentation_is_seeded():
    preprocess = Preprocess(16, augmentation=Augmentation())
    frames = random_frames(2, 32, 32)
    assert torch.equal(preprocess(frames, rng(1)), preprocess(frames, rng(1)))
    assert not torch.equal(preprocess(frames, rng(1)), preprocess(frames, rng(2)))


def test_neutral_colour_changes_nothing_but_hsv_rounding():
    frames = random_frames()
    same = Colour((("brightness", 1.0), ("contrast", 1.0), ("saturation", 1.0)))(frames)
    np.testing.assert_array_equal(same, frames)


def grey(frames):
    return (frames @ np.array([19595, 38470, 7471]) + 0x8000) // 65536


@pytest.mark.parametrize("factor", [0.6, 0.9, 1.2])
def test_colour_operations_are_pillows(factor):
    frames = random_frames()

    def blend(away, towards):
        return np.clip(away + factor * (towards.astype(float) - away), 0, 255)

    mean = np.floor(grey(frames).mean(axis=(1, 2)) + 0.5)[:, None, None, None]
    expected = {
        "brightness": blend(0, frames),
        "contrast": blend(mean, frames),
        "saturation": blend(grey(frames)[..., None], frames),
    }
    for name, values in expected.items():
        np.testing.assert_allclose(Colour(((name, factor),))(frames), values, atol=1.01, err_msg=name)


@pytest.mark.parametrize("turns", [-0.5, -0.05, 0.05, 0.3])
def test_hue_turns_the_colour_wheel(turns):
    frames = random_frames()
    turned = Colour((("hue", turns),))(frames)
    for before, after in zip(frames.reshape(-1, 3)[:200] / 255, turned.reshape(-1, 3)[:200] / 255):
        hue, saturation, value = colorsys.rgb_to_hsv(*before)
        np.testing.assert_allclose(after, colorsys.hsv_to_rgb((hue + turns) % 1, saturation, value), atol=0.05)


def test_colour_draws_stay_in_range_and_come_in_every_order():
    orders = set()
    for seed in range(300):
        operations = draw_colour(rng(seed), Augmentation()).operations
        orders.add(tuple(name for name, _ in operations))
        for name, factor in operations:
            low, high = getattr(Augmentation(), name)
            assert low <= factor <= high
    assert len(orders) == math.factorial(4)


def test_impossible_ranges_are_refused():
    with pytest.raises(UserError, match="brightness"):
        Augmentation(brightness=(1.1, 0.9))
    with pytest.raises(UserError, match="hue"):
        Augmentation(hue=(-0.6, 0.6))
