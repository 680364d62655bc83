"""Two photographs, and what torchvision does with the likes of them through PIL."""

from functools import cache

import numpy as np
from PIL import Image, ImageEnhance, ImageOps
from sklearn.datasets import load_sample_images


@cache
def photos(height=96, width=112):
    """Parts of scikit-learn's two photographs, uint8 `[2, H, W, 3]`: a temple, a flower."""
    china, flower = load_sample_images().images
    parts = (
        china[150 : 150 + height, 240 : 240 + width],
        flower[80 : 80 + height, 250 : 250 + width],
    )
    return np.stack(parts)


def enhanced(kind, image, factor):
    """'Brightness', 'Contrast', 'Color' or 'Sharpness' times a factor."""
    return np.asarray(getattr(ImageEnhance, kind)(Image.fromarray(image)).enhance(factor))


def transformed(image, *matrix):
    """What PIL sees of an image at the places of a matrix; black outside."""
    picture = Image.fromarray(image)
    affine, nearest = Image.Transform.AFFINE, Image.Resampling.NEAREST
    return np.asarray(picture.transform(picture.size, affine, matrix, nearest))


def crop_resized(image, box):
    top, left, height, width = map(int, box)
    picture = Image.fromarray(image)
    part = picture.crop((left, top, left + width, top + height))
    return np.asarray(part.resize(picture.size, Image.Resampling.BILINEAR))


def operated(image, name, magnitude, sign, space):
    """An operation of RandAugment or TrivialAugment."""
    height, width, _ = image.shape
    share, picture = sign * magnitude / 30, Image.fromarray(image)
    if name == 'identity':
        return image
    if name == 'shear_x':
        return transformed(image, 1, share * space.shear, 0, 0, 1, 0)
    if name == 'shear_y':
        return transformed(image, 1, 0, 0, share * space.shear, 1, 0)
    if name == 'translate_x':
        return transformed(
            image, 1, 0, -int(share * (space.translate * width + space.pixels)), 0, 1, 0
        )
    if name == 'translate_y':
        return transformed(
            image, 1, 0, 0, 0, 1, -int(share * (space.translate * height + space.pixels))
        )
    if name == 'rotate':
        return np.asarray(picture.rotate(share * space.rotate, Image.Resampling.NEAREST))
    if name == 'posterize':
        return np.asarray(ImageOps.posterize(picture, 8 - round(magnitude / 30 * space.bits)))
    if name == 'solarize':
        return np.asarray(ImageOps.solarize(picture, 255 - 8.5 * magnitude))
    if name == 'autocontrast':
        return np.asarray(ImageOps.autocontrast(picture))
    if name == 'equalize':
        return np.asarray(ImageOps.equalize(picture))
    return enhanced(name.capitalize(), image, 1 + share * space.blend)
