"""Pictures to tensors: sizes, arithmetic, and that every random choice comes from the generator that is given."""

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from datasets.transforms import ERASED_AREA, ERASED_ASPECT, augment, erase_box, normalise, pad_and_crop, prepare
from tests.chip_files import optical_pixels

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def train_transform(size=(32, 16), *, flip=0.0, padding=0, erasing=0.0):
    chances = {"flip_probability": flip, "padding": padding, "erasing_probability": erasing}
    return partial(augment, size=size, mean=MEAN, std=STD, **chances)


def plain_transform(size=(32, 16)):
    return partial(prepare, size=size, mean=MEAN, std=STD)


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_normalising_worked_by_hand():
    image = normalise(np.array([[[0, 51, 255]]], np.uint8), (0.0, 0.1, 0.5), (1.0, 0.5, 0.25))
    assert image.shape == (3, 1, 1)
    torch.testing.assert_close(image.flatten(), torch.tensor([0.0, 0.2, 2.0]))


@pytest.mark.parametrize("size", [(256, 128), (8, 8), (40, 100)])
def test_test_transform_is_a_bilinear_resize(size):
    pixels = optical_pixels()
    image = plain_transform(size)(pixels)
    assert image.shape == (3, *size)
    assert image.dtype == torch.float32
    resized = np.asarray(Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BILINEAR)) / 255
    expected = (resized - np.array(MEAN)) / np.array(STD)
    np.testing.assert_allclose(image.permute(1, 2, 0), expected, rtol=0, atol=1e-6)


def test_training_without_chance_is_a_bicubic_resize():
    pixels = optical_pixels()
    image = train_transform()(pixels, generator())
    resized = np.asarray(Image.fromarray(pixels).resize((16, 32), Image.Resampling.BICUBIC))
    torch.testing.assert_close(image, normalise(resized, MEAN, STD), rtol=0, atol=0)


def test_arrays_and_pillow_images_are_the_same_picture():
    pixels = optical_pixels()
    for transform in (plain_transform(), train_transform(flip=0.5, padding=3, erasing=0.5)):
        first, second = (transform(picture, generator(1)) for picture in (pixels, Image.fromarray(pixels)))
        torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_a_certain_flip_mirrors_left_and_right():
    pixels = optical_pixels()
    plain, flipped = (train_transform(flip=flip)(pixels, generator()) for flip in (0.0, 1.0))
    torch.testing.assert_close(flipped, plain.flip(2), rtol=0, atol=0)


def test_flips_and_boxes_come_as_often_as_asked():
    pixels = optical_pixels(height=8, width=8)
    plain = train_transform((8, 8))(pixels, generator())
    flips = sum(bool((train_transform((8, 8), flip=0.3)(pixels, generator(i)) != plain).any()) for i in range(400))
    boxes = sum(bool((train_transform((8, 8), erasing=0.7)(pixels, generator(i)) != plain).any()) for i in range(400))
    assert 0.3 * 400 - 40 < flips < 0.3 * 400 + 40
    assert 0.7 * 400 - 40 < boxes < 0.7 * 400 + 40


def test_the_crop_shifts_by_up_to_the_padding_and_fills_with_black():
    pixels = np.full((12, 10, 3), 9, np.uint8)
    pixels[6, 5] = 255
    shifts = set()
    for seed in range(600):
        cropped = pad_and_crop(pixels, 2, generator(seed))
        assert cropped.shape == pixels.shape
        row, column = np.argwhere(cropped[..., 0] == 255)[0]
        shifts.add((int(row) - 6, int(column) - 5))
        assert (cropped[..., 0] == 0).sum() == 120 - (12 - abs(row - 6)) * (10 - abs(column - 5))
    assert shifts == {(row, column) for row in range(-2, 3) for column in range(-2, 3)}


@given(st.integers(0, 10**6), st.sampled_from([(256, 128), (64, 32), (30, 90)]))
def test_one_box_of_the_right_area_and_aspect_is_erased(seed, size):
    image = torch.full((3, *size), 100.0)
    erase_box(image, generator(seed))
    changed = (image != 100).all(dim=0)
    assert torch.equal(changed, (image != 100).any(dim=0)), "all bands or none"
    rows, columns = changed.any(dim=1).nonzero().flatten(), changed.any(dim=0).nonzero().flatten()
    height, width = len(rows), len(columns)
    assert changed.sum() == height * width == (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1), "one whole box"
    slack = (height + width + 1) / 2  # of rounding both sides
    assert ERASED_AREA[0] * changed.numel() - slack <= height * width <= ERASED_AREA[1] * changed.numel() + slack
    assert (height - 1) / (width + 1) <= ERASED_ASPECT[1]
    assert (height + 1) / max(width - 1, 1) >= ERASED_ASPECT[0]


def test_erased_pixels_are_standard_normal_each():
    image = torch.full((3, 256, 128), 100.0)
    noise = []
    for seed in range(20):
        image.fill_(100.0)
        erase_box(image, generator(seed))
        noise.append(image[image != 100].clone())
    values = torch.cat(noise)
    assert abs(values.mean()) < 0.02
    assert abs(values.std() - 1) < 0.02


def test_the_generator_decides_all():
    transform = train_transform((64, 32), flip=0.5, padding=10, erasing=0.5)
    pixels = optical_pixels()
    torch.manual_seed(0)
    first = transform(pixels, generator(5))
    torch.manual_seed(1)
    np.random.seed(1)
    torch.testing.assert_close(transform(pixels, generator(5)), first, rtol=0, atol=0)
    assert len({float(transform(pixels, generator(seed)).sum()) for seed in range(20)}) > 15


@given(st.integers(1, 400), st.integers(1, 400))
def test_chips_of_any_size_give_the_same_shape(height, width):
    pixels = optical_pixels(height=height, width=width)
    transform = train_transform((32, 16), flip=0.5, padding=10, erasing=0.5)
    for image in (transform(pixels, generator()), plain_transform()(pixels)):
        assert image.shape == (3, 32, 16)
        assert image.isfinite().all()
