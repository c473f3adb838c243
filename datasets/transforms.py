"""Pictures to normalised tensors, for training and for testing. Sizes are (rows, columns) of the network's input."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

Picture = NDArray[np.uint8] | Image.Image
"""RGB, of any size; an array is (H, W, 3)."""

ERASED_AREA = (0.02, 1 / 3)
"""Smallest and largest share of the picture that random erasing covers (Zhong et al. 2017, arXiv 1708.04896)."""

ERASED_ASPECT = (0.3, 1 / 0.3)
"""Smallest and largest height by width of the erased box."""


GREY = (19595, 38470, 7471)
"""Weights of red, green and blue in a pixel's grey, in units of 1 / 65536 (ITU-R 601)."""


def prepare(
    picture: Picture,
    generator: np.random.Generator | None = None,
    *,
    size: tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
) -> Tensor:
    """Resize bilinearly and normalise, for testing.

    Args:
        picture: RGB.
        generator: not used.
        size: (rows, columns) of the output.
        mean: of each band, of values in 0..1.
        std: of each band.

    Returns:
        (3, rows, columns) float32.
    """
    return normalise(resize(picture, size, Image.Resampling.BILINEAR), mean, std)


def augment(
    picture: Picture,
    generator: np.random.Generator,
    *,
    size: tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
    flip_probability: float,
    padding: int,
    erasing_probability: float,
    jitter: float = 0.0,
) -> Tensor:
    """Resize bicubically, flip, change colours, pad and crop, normalise, erase a box, all at random: for training.

    Args:
        picture: RGB.
        generator: every choice is drawn from it.
        size: (rows, columns) of the output.
        mean: of each band, of values in 0..1.
        std: of each band.
        flip_probability: of the flip, left and right.
        padding: black pixels added on each side before the crop.
        erasing_probability: of the erased box.
        jitter: how far factors of brightness, contrast and saturation may be from 1 (SDF-Net); 0: colours stay.

    Returns:
        (3, rows, columns) float32.
    """
    pixels = resize(picture, size, Image.Resampling.BICUBIC)
    if generator.random() < flip_probability:
        pixels = pixels[:, ::-1]
    if jitter:
        pixels = jitter_colours(pixels, generator.uniform(1 - jitter, 1 + jitter, size=3), generator.permutation(3))
    pixels = pad_and_crop(pixels, padding, generator)
    image = normalise(pixels, mean, std)
    if generator.random() < erasing_probability:
        erase_box(image, generator)
    return image


def resize(picture: Picture, size: tuple[int, int], resampling: Image.Resampling) -> NDArray[np.uint8]:
    """Resize to (rows, columns) with Pillow, which averages over the source pixels when it shrinks. Returns (H, W, 3).

    An array of that size already comes back itself.
    """
    if isinstance(picture, np.ndarray) and picture.shape[:2] == tuple(size):
        return picture
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    return np.asarray(image.resize((size[1], size[0]), resampling))


def jitter_colours(pixels: NDArray[np.uint8], factors: Sequence[float], order: Sequence[int]) -> NDArray[np.uint8]:
    """Change brightness, contrast and saturation: away from black, from the mean grey and from each pixel's own grey.

    Args:
        pixels: (H, W, 3).
        factors: of brightness, contrast and saturation; 1 changes nothing.
        order: in which the three (0, 1, 2) are applied, each to the 8-bit result of the one before.

    Returns:
        (H, W, 3), the arithmetic of Pillow's `ImageEnhance`.
    """
    for place in order:
        grey = (pixels.astype(np.int32) @ np.array(GREY, np.int32) + 32768 >> 16)[..., None]
        origin = (0, np.floor(0.5 + grey.mean()), grey)[place]
        origin = np.float32(origin)
        changed = origin + np.float32(factors[place]) * (pixels.astype(np.float32) - origin)
        pixels = np.clip(changed, 0, 255).astype(np.uint8)
    return pixels


def pad_and_crop(pixels: NDArray[np.uint8], padding: int, generator: np.random.Generator) -> NDArray[np.uint8]:
    """Shift the picture (H, W, 3) by up to `padding` pixels either way; what comes in from outside is black."""
    top, left = generator.integers(0, 2 * padding, size=2, endpoint=True)
    rows, columns = pixels.shape[:2]
    padded = np.zeros((rows + 2 * padding, columns + 2 * padding, 3), np.uint8)
    padded[padding : padding + rows, padding : padding + columns] = pixels
    return padded[top : top + rows, left : left + columns]


def normalise(pixels: NDArray[np.uint8], mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Turn pixels (H, W, 3) in 0..255 into (3, H, W) float32 of (value / 255 - mean) / std."""
    image = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))).to(torch.float32).div_(255)
    return image.sub_(torch.tensor(mean).view(3, 1, 1)).div_(torch.tensor(std).view(3, 1, 1))


def erase_box(image: Tensor, generator: np.random.Generator) -> None:
    """Fill one random box of `image` (3, H, W), in place, with standard normal noise drawn for each pixel and band.

    Area is uniform in `ERASED_AREA`, aspect log-uniform in `ERASED_ASPECT`; a box that does not fit is drawn again, and after
    ten of them the image stays whole.
    """
    bands, height, width = image.shape
    for _ in range(10):
        area = generator.uniform(*ERASED_AREA) * height * width
        aspect = math.exp(generator.uniform(*map(math.log, ERASED_ASPECT)))
        rows, columns = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if rows < height and columns < width:
            top = generator.integers(0, height - rows, endpoint=True)
            left = generator.integers(0, width - columns, endpoint=True)
            noise = generator.standard_normal((bands, rows, columns), dtype=np.float32)
            image[:, top : top + rows, left : left + columns] = torch.from_numpy(noise)
            return
