"""Image files as arrays: JPEG, PNG, WebP, BMP, TIFF and GIF (its first frame), by Pillow."""

import io
import warnings
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from kd_jax.data import quick
from kd_jax.data.crops import Box

FORMATS = ('JPEG', 'PNG', 'WEBP', 'BMP', 'TIFF', 'GIF')
ENDINGS = ('.jpg', '.jpeg', '.jpe', '.png', '.webp', '.bmp', '.tif', '.tiff', '.gif')
MOST_PIXELS = 2**28  # of one image; what is larger was made to fill the memory
GREY = ('1', 'L', 'LA', 'I', 'I;16', 'I;16B', 'I;16L', 'F')  # Pillow's modes of one channel


ORIENTATION, ON_THEIR_SIDE = 0x0112, (5, 6, 7, 8)  # of EXIF


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
    known = quick.plain(content)
    if known and known.width * known.height <= MOST_PIXELS:
        kind = 'JPEG' if known.is_jpeg else 'PNG'
        return Header(known.width, known.height, known.channels == 1, kind)
    image = _opened(content)
    width, height = image.size
    if image.getexif().get(ORIENTATION, 1) in ON_THEIR_SIDE:
        width, height = height, width
    return Header(width, height, image.mode in GREY, str(image.format))


class Form(NamedTuple):
    """How a photo becomes an example: upright, the shorter side resized to `resize` (0: `side`),
    the `side` pixels in the middle; or a box of it, resized. Transparency becomes white.

    channels: 1 (grey) or 3. bilinear: instead of bicubic; both are antialiased.
    """

    side: int
    channels: int
    resize: int = 0
    bilinear: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        return self.side, self.side, self.channels

    def decode(self, content: bytes, box: Box | None = None) -> np.ndarray:
        """uint8 `[side, side, channels]` of a file's content; raises `Bad`.

        box: (width, height) of the upright photo -> the part that is cut, (left, top, width,
        height).
        """
        found = self._quickly(content, box)
        if found is not None:
            return found
        image = _opened(content)
        try:
            if box is None:
                return np.asarray(self._whole(image)).reshape(self.shape)
            return self._part(image, box)
        except Bad:
            raise
        except Exception as error:  # Pillow raises many types for damaged files
            raise Bad(_why(error)) from error

    def into(self, target: np.ndarray, content: bytes, box: Box | None = None) -> None:
        """`decode` into an array that is there."""
        target[:] = self.decode(content, box)

    def fitted(self, pixels: np.ndarray) -> np.ndarray:
        """As `decode`, of an image `[H, W, 1, 3 or 4]` uint8 that is decoded already."""
        return np.asarray(self._whole(_image_of(pixels))).reshape(self.shape)

    def stretched(self, pixels: np.ndarray) -> np.ndarray:
        """All of an image `[H, W, 1 or 3]` uint8, resized to the square."""
        plain = _image_of(pixels).convert(self._mode)
        square = plain.resize((self.side, self.side), self._resampling)
        return np.asarray(square).reshape(self.shape)

    @property
    def _mode(self) -> str:
        return 'L' if self.channels == 1 else 'RGB'

    @property
    def _resampling(self) -> Image.Resampling:
        return Image.Resampling.BILINEAR if self.bilinear else Image.Resampling.BICUBIC

    def _whole(self, image: Image.Image) -> Image.Image:
        side, shorter = self.side, max(self.resize, self.side)
        # a JPEG is decoded at a half, a quarter or an eighth where that is enough
        image.draft(self._mode, (2 * shorter, 2 * shorter))
        plain = _plain(ImageOps.exif_transpose(image), self._mode)
        width, height = plain.size
        scale = shorter / min(width, height)
        size = (max(round(width * scale), side), max(round(height * scale), side))
        left, top = (size[0] - side) // 2, (size[1] - side) // 2
        if size != plain.size:
            plain = plain.resize(size, self._resampling, reducing_gap=3.0)
        return plain.crop((left, top, left + side, top + side))

    def _quickly(self, content: bytes, box: Box | None) -> np.ndarray | None:
        """The same where the file is plain, and a part or of the right size; None: it is not."""
        known = quick.plain(content)
        if known is None or known.width * known.height > MOST_PIXELS:
            return None
        if box is None:
            fits = known.width == known.height == self.side == max(self.resize, self.side)
            # colours become grey as Pillow has it
            fits = fits and (known.channels <= self.channels or known.is_jpeg)
            found = quick.pixels(content, known, self.channels) if fits else None
            return None if found is None else found.copy()
        left, top, wide, high = box(known.width, known.height)
        reduction = 1
        while known.is_jpeg and reduction < 8 and min(wide, high) >= 2 * reduction * self.side:
            reduction *= 2
        found = quick.pixels(content, known, self.channels, top + high, reduction)
        if found is None:
            return None
        edges = (left, top, left + wide, top + high)
        return self._cut(found, edges, (1 / reduction, 1 / reduction))

    def _cut(
        self, pixels: np.ndarray, edges: tuple[int, int, int, int], scale: tuple[float, float]
    ) -> np.ndarray:
        """A part, (left, top, right, bottom) of the whole photo, of which `pixels` may be fewer."""
        left, right = (round(edge * scale[0]) for edge in edges[::2])
        top, bottom = (round(edge * scale[1]) for edge in edges[1::2])
        part = pixels[top : max(bottom, top + 1), left : max(right, left + 1)]
        return quick.resized(part, self.side, bilinear=self.bilinear)

    def _part(self, image: Image.Image, box: Box) -> np.ndarray:
        side, turned = self.side, image.getexif().get(ORIENTATION, 1) in ON_THEIR_SIDE
        width, height = image.size[::-1] if turned else image.size
        left, top, wide, high = box(width, height)
        # as before, of the box
        least = (width * side // wide, height * side // high)
        image.draft(self._mode, least[::-1] if turned else least)
        plain = _plain(ImageOps.exif_transpose(image), self._mode)
        scale = plain.size[0] / width, plain.size[1] / height
        pixels = np.asarray(plain).reshape(plain.size[1], plain.size[0], self.channels)
        return self._cut(pixels, (left, top, left + wide, top + high), scale)


def decode(content: bytes, side: int, channels: int) -> np.ndarray:
    """`Form(side, channels)` of a file's content; raises `Bad`."""
    return Form(side, channels).decode(content)


def as_it_is(content: bytes, channels: int | None, most_pixels: int) -> np.ndarray:
    """`[H, W, C]` of a file's content, neither turned nor resized, in its own type; raises `Bad`.

    channels: that it should have; None: its own.
    """
    known = quick.plain(content)
    if known and known.channels == channels and known.width * known.height <= most_pixels:
        found = quick.pixels(content, known, known.channels)
        if found is not None:
            return found.copy()
    image = _opened(content)
    if image.width * image.height > most_pixels:
        raise Bad(f'claims {image.width} x {image.height} pixels, more than {most_pixels}')
    try:
        array = np.asarray(image)
    except Exception as error:  # as above
        raise Bad(_why(error)) from error
    return array if array.ndim == 3 else array[..., None]


def pixels_of(content: bytes, channels: int) -> np.ndarray:
    """All pixels of a file, upright: uint8 `[H, W, channels]`; raises `Bad`."""
    image = _opened(content)
    try:
        plain = _plain(ImageOps.exif_transpose(image), 'L' if channels == 1 else 'RGB')
    except Exception as error:  # as above
        raise Bad(_why(error)) from error
    return np.asarray(plain).reshape(plain.size[1], plain.size[0], channels)


def halved(pixels: np.ndarray) -> np.ndarray:
    """An image `[H, W, C]` uint8 at half its size: means of two by two pixels."""
    small = _image_of(pixels).reduce(2)
    return np.asarray(small).reshape(small.size[1], small.size[0], pixels.shape[-1])


def _image_of(pixels: np.ndarray) -> Image.Image:
    plain = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
    return Image.fromarray(np.ascontiguousarray(plain))


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
