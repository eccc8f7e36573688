"""Files of all types, and those that are no images."""

import struct
import zlib

import numpy as np
import pytest
from demo.images import LONGEST, SHORTEST, examples, fit, read_image
from PIL import Image

from mmsparse.errors import UsageError

RAMP = np.linspace(0, 255, 100).round().astype(np.uint8)
GRAY = RAMP[None].repeat(80, axis=0)  # (80, 100)


def save(image, path, **options):
    image.save(path, **options)
    return path


@pytest.mark.parametrize('mode', ['L', 'RGB', 'RGBA', 'LA', 'P', 'CMYK'])
def test_all_modes_are_read_as_rgb(mode, tmp_path):
    suffix = 'tif' if mode == 'CMYK' else 'png'
    path = save(Image.fromarray(GRAY).convert(mode), tmp_path / f'a.{suffix}')

    image = read_image(path)

    assert image.dtype == np.uint8 and image.shape == (80, 100, 3)
    assert np.abs(image.astype(int) - GRAY[..., None]).max() <= 2


@pytest.mark.parametrize('dtype', [np.uint16, np.int32, np.float32])
def test_images_of_more_bits_are_scaled_from_their_range(dtype, tmp_path):
    values = (1000 + 20 * GRAY.astype(np.float64)).astype(dtype)
    path = save(Image.fromarray(values), tmp_path / 'a.tif')

    image = read_image(path)

    assert np.abs(image.astype(int) - GRAY[..., None]).max() <= 1


def test_transparent_pixels_are_white(tmp_path):
    path = save(Image.new('RGBA', (70, 70), (255, 0, 0, 0)), tmp_path / 'a.png')

    assert (read_image(path) == 255).all()


def test_photos_are_turned_as_their_tag_says(tmp_path):
    exif = Image.Exif()
    exif[274] = 6  # turn by 90 degrees, clockwise
    path = save(Image.fromarray(GRAY), tmp_path / 'a.jpg', exif=exif)

    image = read_image(path)

    assert image.shape == (100, 80, 3)
    assert image[0].max() < 10 and image[-1].min() > 245


def test_large_images_shrink_and_small_ones_grow(tmp_path):
    large = save(Image.new('RGB', (6000, 4000)), tmp_path / 'large.jpg')
    small = save(Image.new('L', (28, 28)), tmp_path / 'small.png')

    assert read_image(large).shape == (427, LONGEST, 3)
    assert read_image(small).shape == (SHORTEST, SHORTEST, 3)
    assert fit((2, 10), longest=100, shortest=50) == (20, 100)


def png_header(width, height):
    """A PNG that has its size, and no pixels."""
    body = b'IHDR' + struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack('>I', 13) + body + struct.pack('>I', zlib.crc32(body))
    return b'\x89PNG\r\n\x1a\n' + chunk + struct.pack('>I', 100) + b'IDAT'


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (b'hello', 'a.png is no image of type PNG, JPEG, WebP, TIFF or GIF; upload'),
        (b'', 'a.png is no image of type'),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', 'a.png is no image of type'),
        (png_header(80, 80), 'a.png is cut off or damaged; upload another file'),
        (png_header(20000, 20000), 'a.png has more than 179 million pixels; upload'),
        (
            png_header(900, 100),
            'a.png must be at most 8 times as long as wide; it has 900 x 100 pixels',
        ),
    ],
    ids=['text', 'empty', 'svg', 'cut off', 'huge', 'long'],
)
def test_other_files_are_an_error_that_names_them(content, message, tmp_path):
    path = tmp_path / 'a.png'
    path.write_bytes(content)

    with pytest.raises(UsageError, match=message):
        read_image(path)


def test_a_jpeg_that_is_cut_off_is_an_error(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (90, 90, 3), np.uint8)
    path = save(Image.fromarray(noise), tmp_path / 'a.jpg')
    path.write_bytes(path.read_bytes()[:-900])

    with pytest.raises(UsageError, match=r'a\.jpg is cut off or damaged'):
        read_image(path)


def test_examples_are_images_of_installed_packages():
    assert {name: image.shape for name, image in examples()} == {
        'digits': (128, 128, 3),
        'flower': (427, 640, 3),
        'china': (427, 640, 3),
    }
