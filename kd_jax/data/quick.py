"""Plain JPEG and PNG files, decoded by simplejpeg (libjpeg-turbo) and OpenCV in a half to a fifth
of Pillow's time. What is not plain is left to `kd_jax.data.decoding`.
"""

import struct
import threading
import zlib
from typing import NamedTuple

import cv2
import numpy as np
import simplejpeg  # type: ignore[import-untyped]

cv2.setNumThreads(0)  # the threads of a stream share the images already

_JPEG, _PNG = b'\xff\xd8\xff', b'\x89PNG\r\n\x1a\n'
_END = b'\xff\xd9'
# Markers of a JPEG: those that begin a frame, those without a length, and the scan's.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SEQUENTIAL = (0xC0, 0xC1)
_BARE = frozenset(range(0xD0, 0xD8)) | {0x01}
_SCAN, _EXIF, _ADOBE = 0xDA, 0xE1, 0xEE
_mine = threading.local()
_MARGIN = 16  # rows below a part that its last ones may depend on


class Plain(NamedTuple):
    """An image whose pixels are what its file says: upright, opaque, 8 bits, grey or RGB."""

    width: int
    height: int
    channels: int
    is_jpeg: bool  # which can be decoded at a half, a quarter or an eighth
    frame: int = 0  # where its header is, if its rows are stored one after the other


def plain(content: bytes) -> Plain | None:
    """What a file is, by its header; None: it is left to others, who say what may be wrong."""
    try:
        if content.startswith(_JPEG):
            return _jpeg(content)
        return _png(content) if content.startswith(_PNG) else None
    except (IndexError, struct.error):  # cut short
        return None


def _jpeg(content: bytes) -> Plain | None:
    if _END not in content[-32:]:
        return None
    place = 2
    while True:
        if content[place] != 0xFF:
            return None
        marker, place = content[place + 1], place + 2
        if marker in _BARE:
            continue
        if marker == 0xFF:  # fills up
            place -= 1
            continue
        (length,) = struct.unpack_from('>H', content, place)
        if marker in _FRAMES:
            bits, height, width, channels = struct.unpack_from('>BHHB', content, place + 2)
            if bits != 8 or channels not in (1, 3) or not width or not height:
                return None
            frame = place if marker in _SEQUENTIAL else 0
            return Plain(width, height, channels, True, frame)
        if marker in (_SCAN, _ADOBE):  # Adobe's may be RGB or inverted
            return None
        if marker == _EXIF and content.startswith(b'Exif', place + 2):
            return None  # it may lie on its side
        place += length


def _png(content: bytes) -> Plain | None:
    """All checksums are compared: the decoder would not tell of damage."""
    place, found = 8, None
    while True:
        length, kind = struct.unpack_from('>I4s', content, place)
        end = place + 8 + length
        (checksum,) = struct.unpack_from('>I', content, end)
        if zlib.crc32(memoryview(content)[place + 4 : end]) != checksum:
            return None
        if kind == b'IHDR':
            width, height, bits, colour = struct.unpack_from('>IIBB', content, place + 8)
            if bits != 8 or colour not in (0, 2):
                return None
            found = Plain(width, height, 1 if colour == 0 else 3, False)
        elif kind in (b'tRNS', b'eXIf', b'gAMA', b'cHRM', b'iCCP', b'acTL'):
            return None
        elif kind == b'IEND':
            return found
        place = end + 4


def pixels(
    content: bytes, known: Plain, channels: int, rows: int = 0, reduction: int = 1
) -> np.ndarray | None:
    """uint8 `[H, W, channels]` of a plain image, until the next call in this thread; None where its
    decoder cannot.

    rows: so many of the first rows are wanted, by a transform that is a little faster and off by a
    grey level or two; 0: all, exactly. reduction: 1, 2, 4 or 8: of a JPEG every
    side is so many times shorter.
    """
    if not known.is_jpeg:
        flag = cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR_RGB
        try:
            found = cv2.imdecode(np.frombuffer(content, np.uint8), flag)
        except cv2.error:
            return None
        return found if found is None or found.ndim == 3 else found[..., None]
    height, last = known.height, rows + _MARGIN
    if rows and known.frame and last < height:
        # a header that ends the image there: what comes after it is not decoded
        at = known.frame + 3
        content, height = content[:at] + struct.pack('>H', last) + content[at + 2 :], last
    high, wide = -(-height // reduction), -(-known.width // reduction)
    try:
        return simplejpeg.decode_jpeg(
            content,
            'GRAY' if channels == 1 else 'RGB',
            min_height=high,
            min_width=wide,
            min_factor=reduction,
            fastdct=bool(rows),
            buffer=_buffer(high * wide * channels),
            strict=False,
        )
    except ValueError:
        return None


def _buffer(size: int) -> np.ndarray:
    """Memory of this thread; new one would be zeroed by the system, in a quarter of the time."""
    there: np.ndarray | None = getattr(_mine, 'buffer', None)
    if there is None or there.size < size:
        there = _mine.buffer = np.empty(size, np.uint8)
    return there


def resized(part: np.ndarray, side: int, *, bilinear: bool) -> np.ndarray:
    """uint8 `[H, W, C]` -> `[side, side, C]`: interpolated, or where it is more than twice as large
    averaged.
    """
    much = min(part.shape[:2]) > 2 * side
    usual = cv2.INTER_LINEAR if bilinear else cv2.INTER_CUBIC
    found = cv2.resize(part, (side, side), interpolation=cv2.INTER_AREA if much else usual)
    return found if found.ndim == 3 else found[..., None]
