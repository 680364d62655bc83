"""Random weights of a narrow resnet18, by torchvision's names."""

import numpy as np
import torch_files

from kd_jax.pretrained import matching, resnet

MODEL = {'name': 'resnet18', 'width': 0.0625}


def write(path, classes):
    """The file `path`, for images of three channels."""
    shapes = matching.shapes_of(MODEL['name'], {'width': MODEL['width']})
    sizes = {matching.CLASSES: classes, matching.CHANNELS: 3}
    rng = np.random.default_rng(0)
    tensors = {}
    for name, place in matching.names_of(shapes, resnet.torchvision).items():
        shape = matching._torch_shape(shapes[place], place[-1])
        x = rng.normal(size=tuple(sizes.get(n, n) for n in shape)).astype(np.float32)
        tensors[name] = np.abs(x) + 0.5 if name.endswith('running_var') else 0.1 * x
    path.write_bytes(torch_files.state_dict(tensors))
    return path
