import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ivideogpt.data.clips.colour import OPERATIONS
from ivideogpt.data.clips.transforms import (
    STRONG_AUGMENTATION,
    Augmentation,
    Preprocess,
    central_square,
    resize,
    sample_colour,
    sample_crop,
    truncate,
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


@pytest.mark.parametrize(("height", "width", "size"), [(57, 61, 64), (40, 30, 16), (9, 100, 33), (1, 5, 3)])
def test_resizing_is_torchs(height, width, size):
    frames = random_frames(2, height, width)
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2).float()
    expected = F.interpolate(pixels, size=(size, size), mode="bilinear", antialias=True)
    torch.testing.assert_close(resize(frames, size), expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("level", [1, 7, 100, 255])
def test_even_areas_keep_their_value(level):
    """Weights that sum to 0.9999999 turn 7 into 6 when cut to 8 bits: every augmented clip would be darker."""
    for height, width in [(57, 59), (50, 64), (230, 225)]:
        pixels = truncate(resize(np.full((1, height, width, 3), level, np.uint8), 64))
        assert pixels.dtype == torch.uint8
        assert (pixels == level).all()


def test_fractions_are_cut_downwards():
    assert truncate(torch.tensor([0.0, 0.9, 1.0, 254.99, 255.0])).tolist() == [0, 0, 1, 254, 255]


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
        crop = sample_crop(rng(seed), height, width, ranges)
        assert crop.top >= 0
        assert crop.left >= 0
        assert crop.top + crop.height <= height
        assert crop.left + crop.width <= width
        area = crop.height * crop.width / min(size) ** 2
        assert ranges.crop_scale[0] * 0.94 <= area <= ranges.crop_scale[1] * 1.06
        assert ranges.crop_ratio[0] * 0.95 <= crop.width / crop.height <= ranges.crop_ratio[1] * 1.05


def test_a_crop_that_never_fits_falls_back_to_the_centre():
    too_wide = Augmentation(crop_scale=(1, 1), crop_ratio=(2, 2))
    crop = sample_crop(rng(), 10, 10, too_wide)
    assert (crop.top, crop.left, crop.height, crop.width) == (2, 0, 5, 10)


def test_one_crop_serves_the_whole_clip():
    """Crops that jump within a clip would teach the model to predict noise."""
    frames = np.repeat(random_frames(1, 32, 32), 4, axis=0)
    pixels = Preprocess(16, augmentation=STRONG_AUGMENTATION)(frames, rng(3))
    assert (pixels == pixels[0]).all()
    assert pixels.dtype == torch.uint8


def test_augmented_pixels_are_8_bit_also_where_the_crop_is_of_training_size():
    pixels = Preprocess(16, augmentation=NEUTRAL)(random_frames(), rng())
    assert pixels.dtype == torch.uint8
    np.testing.assert_array_equal(pixels.permute(0, 2, 3, 1).numpy(), random_frames())


def test_augmentation_is_seeded():
    preprocess = Preprocess(16, augmentation=Augmentation())
    frames = random_frames(2, 32, 32)
    assert torch.equal(preprocess(frames, rng(1)), preprocess(frames, rng(1)))
    assert not torch.equal(preprocess(frames, rng(1)), preprocess(frames, rng(2)))
    np.testing.assert_array_equal(preprocess.colour(rng(1)).factors, preprocess.colour(rng(1)).factors)
    assert not np.array_equal(preprocess.colour(rng(1)).factors, preprocess.colour(rng(2)).factors)
    assert Preprocess(16).colour(rng()) is None


@pytest.mark.parametrize("ranges", [Augmentation(), STRONG_AUGMENTATION])
def test_colour_draws_are_uniform_and_come_in_every_order(ranges):
    colours = [sample_colour(rng(seed), ranges) for seed in range(600)]
    assert len({tuple(colour.order[0]) for colour in colours}) == math.factorial(4)
    factors = np.concatenate([colour.factors for colour in colours])
    for name, values in zip(OPERATIONS, factors.T):
        low, high = getattr(ranges, name)
        quartiles = np.quantile((values - low) / (high - low), [0, 0.25, 0.5, 0.75, 1])
        np.testing.assert_allclose(quartiles, [0, 0.25, 0.5, 0.75, 1], atol=0.08)
        assert low <= values.min() <= values.max() <= high
    assert abs(np.corrcoef(factors.T)[np.triu_indices(4, 1)]).max() < 0.15


def test_impossible_ranges_are_refused():
    with pytest.raises(UserError, match="brightness"):
        Augmentation(brightness=(1.1, 0.9))
    with pytest.raises(UserError, match="hue"):
        Augmentation(hue=(-0.6, 0.6))
