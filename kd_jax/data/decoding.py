"""Image files as arrays: JPEG, PNG, WebP, BMP, TIFF and GIF (its first frame), by Pillow."""

import io
import warnings
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ('JPEG', 'PNG', 'WEBP', 'BMP', 'TIFF', 'GIF')
ENDINGS = ('.jpg', '.jpeg', '.jpe', '.png', '.webp', '.bmp', '.tif', '.tiff', '.gif')
MOST_PIXELS = 2**28  # of one image; what is larger was made to fill the memory
GREY = ('1', 'L', 'LA', 'I', 'I;16', 'I;16B', 'I;16L', 'F')  # Pillow's modes of one channel


class Bad(Exception):
    """What is wrong with a file, in words."""


class Header(NamedTuple):
    """What a file says of its image, upright."""

    width: int
    height: int
    grey: bool
    format: str


def header(content: bytes) -> Header:
    """Of a file's content, without decoding it; raises `Bad`."""
    image = _opened(content)
    width, height = image.size
    if image.getexif().get(0x0112, 1) in (5, 6, 7, 8):  # orientations on their side
        width, height = height, width
    return Header(width, height, image.mode in GREY, str(image.format))


def decode(content: bytes, side: int, channels: int) -> np.ndarray:
    """The image as uint8 `[side, side, channels]`: upright, the shorter side resized to `side`
    (bicubic, antialiased), the middle of the longer one. Transparency becomes white.

    channels: 1 (grey) or 3. Raises `Bad`.
    """
    image = _opened(content)
    try:
        # a JPEG is decoded at a half, a quarter or an eighth where that is enough
        image.draft('RGB' if channels == 3 else 'L', (2 * side, 2 * side))
        upright = ImageOps.exif_transpose(image)
        plain = _plain(upright, 'L' if channels == 1 else 'RGB')
        width, height = plain.size
        scale = side / min(width, height)
        size = (max(round(width * scale), side), max(round(height * scale), side))
        left, top = (size[0] - side) // 2, (size[1] - side) // 2
        if size != plain.size:
            plain = plain.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)
        found = np.asarray(plain.crop((left, top, left + side, top + side)))
    except Bad:
        raise
    except Exception as error:  # Pillow raises many types for damaged files
        raise Bad(_why(error)) from error
    return found.reshape(side, side, channels)


def _opened(content: bytes) -> Image.Image:
    if not content:
        raise Bad('is empty')
    try:
        with warnings.catch_warnings(action='ignore'):
            image = Image.open(io.BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError:
        raise Bad('is no image') from None
    except Exception as error:  # as above
        raise Bad(_why(error)) from error
    width, height = image.size
    if width * height > MOST_PIXELS:
        raise Bad(f'claims {width} x {height} pixels')
    if not width * height:
        raise Bad('has no pixels')
    return image


def _plain(image: Image.Image, mode: str) -> Image.Image:
    """In 8 bits a channel, on white."""
    if image.mode.startswith('I;16') or image.mode == 'I':
        values = np.asarray(image).astype(np.float64)
        top = 65535 if values.max(initial=0) > 255 or image.mode != 'I' else 255
        image = Image.fromarray(np.rint(np.clip(values, 0, top) * (255 / top)).astype(np.uint8))
    elif image.mode == 'F':
        values = np.nan_to_num(np.asarray(image))
        scale = 255 if values.max(initial=0) <= 1 else 1
        image = Image.fromarray(np.rint(np.clip(values * scale, 0, 255)).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert('RGBA')
        ground = Image.new('RGBA', image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(ground, image)
    return image.convert(mode)


def _why(error: Exception) -> str:
    text = ' '.join(str(error).split())[:100]
    if isinstance(error, Image.DecompressionBombError):
        return 'claims more pixels than are decoded'
    if 'truncated' in text.lower() or 'unexpected end' in text.lower():
        return 'is cut short'
    return f'cannot be decoded ({text or type(error).__name__})'
