"""PyTorch weights as Flax variables, complete both ways, and as a finished run that can teach.

`load(path, model)` reads a file without PyTorch (`kd_jax.pretrained.reader`), finds the published
code whose names fit (`RULES`) and returns the variables of a model of the zoo. Every tensor of the
file has its place in the model and the other way round, or nothing is loaded. `make_run` writes the
run directory that `python -m kd_jax.pretrained` is for.
"""

import dataclasses
import hashlib
import math
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np

from kd_jax import models, parallel
from kd_jax.checkpoint import Checkpoints
from kd_jax.errors import UserError, unknown
from kd_jax.models.common import param_count
from kd_jax.models.efficientnet import EfficientNet
from kd_jax.models.googlenet import GoogLeNet
from kd_jax.models.inception import InceptionV3
from kd_jax.models.mobilenet import CifarMobileNetV2, MobileNetV1, MobileNetV2
from kd_jax.models.mobilenet_v3 import MobileNetV3
from kd_jax.models.resnet import CifarResNet, ResNet
from kd_jax.models.shufflenet import ShuffleNetV1, ShuffleNetV2
from kd_jax.models.vgg import VGG, CifarVGG
from kd_jax.models.wide_resnet import WideResNet
from kd_jax.pretrained import inception, mobilenet, reader, resnet, shufflenet, vgg
from kd_jax.workdir import RunDirectory, differences, to_json

# (path of a module of ours, all names `stage<i>_block<j>` in order) -> PyTorch's prefix.
Rule = Callable[[str, Sequence[str]], str]

# The code bases that publish weights of a family, each by its names.
RULES: dict[type, tuple[Rule, ...]] = {
    CifarMobileNetV2: (mobilenet.repdistiller,),
    CifarResNet: (resnet.repdistiller, resnet.chenyaofo),
    CifarVGG: (vgg.repdistiller,),
    EfficientNet: (mobilenet.torchvision_efficientnet,),
    GoogLeNet: (inception.torchvision_googlenet,),
    InceptionV3: (inception.torchvision,),
    MobileNetV1: (mobilenet.mdistiller_v1,),
    MobileNetV2: (mobilenet.torchvision_v2,),
    MobileNetV3: (mobilenet.torchvision_v3,),
    ResNet: (resnet.torchvision, resnet.repdistiller_small),
    ShuffleNetV1: (shufflenet.repdistiller_v1,),
    ShuffleNetV2: (shufflenet.torchvision, shufflenet.repdistiller_v2),
    VGG: (vgg.torchvision, vgg.torchvision_bn),
    WideResNet: (resnet.repdistiller_wide,),
}

SMALL_IMAGES = re.compile(r'cnn|(cifar|wrn)_.+|resnet(8|14|20|32|38|44|56|110)(x4)?')

# Code bases by their published names: which of our models they have, and by which rules. Names
# alone do not tell forms for small and for large images apart, nor depths.
_TABLES = (
    mobilenet.repdistiller,
    resnet.repdistiller,
    resnet.repdistiller_small,
    resnet.repdistiller_wide,
)
_TABLES += (shufflenet.repdistiller_v1, shufflenet.repdistiller_v2, vgg.repdistiller)
_TORCHVISION = (
    inception.torchvision,
    inception.torchvision_googlenet,
    mobilenet.torchvision_efficientnet,
)
_TORCHVISION += (
    mobilenet.torchvision_v2,
    mobilenet.torchvision_v3,
    resnet.torchvision,
    shufflenet.torchvision,
)
_TORCHVISION += (vgg.torchvision, vgg.torchvision_bn)
SOURCES: dict[str, tuple[re.Pattern, tuple[Rule, ...]]] = {
    'torchvision': (re.compile(rf'(?!({SMALL_IMAGES.pattern})$).+'), _TORCHVISION),
    'RepDistiller': (SMALL_IMAGES, _TABLES),
    'mdistiller': (
        re.compile(rf'{SMALL_IMAGES.pattern}|mobilenet_v1'),
        (*_TABLES, mobilenet.mdistiller_v1),
    ),
    'pytorch-cifar-models': (re.compile(r'resnet(20|32|44|56)'), (resnet.chenyaofo,)),
}

LEAVES = {
    'kernel': 'weight',
    'bias': 'bias',
    'scale': 'weight',
    'mean': 'running_mean',
    'var': 'running_var',
}
# PyTorch's prefixes of the auxiliary heads that a field `aux` switches
AUXILIARY = ('AuxLogits.', 'aux1.', 'aux2.')
NEW = ('adapter', 'heads')  # overrides that add layers of our own
OWN = ('num_classes', 'frozen', 'fast', 'axis_name', 'dtype')  # fields that are no overrides
CLASSES, CHANNELS = 7919, 7907  # stand in shapes for what the file decides; no layer is as wide
MOST = 12  # names in a sentence

IMAGENET = {'size': 224, 'mean': (0.485, 0.456, 0.406), 'std': (0.229, 0.224, 0.225)}
# what torchvision's `transform_input` amounts to
HALVES = {'mean': (0.5, 0.5, 0.5), 'std': (0.5, 0.5, 0.5)}
DEFAULTS = {'inception_v3': HALVES | {'size': 299}, 'googlenet': IMAGENET | HALVES}


class Imported(NamedTuple):
    """Weights of a file as those of a model of the zoo."""

    model: dict[str, Any]  # {'name', and overrides}
    num_classes: int
    channels: int  # of its images
    variables: dict[str, Any]  # {'params', 'batch_stats'}: numpy, float32
    checksum: str  # SHA-256 of the file
    path: str


class _Fit(NamedTuple):
    """How the tensors of a file fit to a model under one rule; the
    three lists are empty if they do.
    """

    places: dict[str, tuple[str, ...]]  # PyTorch's name -> path in our variables
    sizes: dict[int, int]  # of the file, for `CLASSES` and `CHANNELS`
    missing: list[str]
    left: list[str]
    wrong: list[str]

    def misfits(self) -> int:
        return len(self.missing) + len(self.left) + len(self.wrong)


def input_of(name: str) -> dict[str, Any] | None:
    """{'size', 'mean', 'std'} of the images that published weights of the model expect;
    None for small-image models.
    """
    return None if SMALL_IMAGES.fullmatch(name) else dict(DEFAULTS.get(name, IMAGENET))


def sources(name: str, variables: Mapping[str, Any] | None = None) -> tuple[str, ...]:
    """The code bases of `SOURCES` whose weights are those of the model
    called `name`, without overrides.

    variables: the model's, or their shapes, where they are known; they are traced otherwise.
    """
    family = _family(name)
    paths = flax.traverse_util.flatten_dict(variables) if variables else _shapes(name, {})
    rules = {rule for rule in RULES.get(family, ()) if _names(paths, rule)}
    return tuple(
        source
        for source, (ours, theirs) in SOURCES.items()
        if ours.fullmatch(name) and rules & {*theirs}
    )


def load(
    path: Path, model: Mapping[str, Any], note: Callable[[str], None] = lambda sentence: None
) -> Imported:
    """The weights in a PyTorch file as those of `model`, {'name': ..., and overrides; None
    keeps the variant's own value}.

    The numbers of classes and of the images' channels are those of the file. A family's field `aux`
    follows the file too, unless it is given; with `aux=False` the file may hold auxiliary heads.
    `note(sentence)` tells of choices that were made in reading.

    Raises:
      UserError: if the file cannot be read, or holds anything but exactly the model's tensors; the
        sentence lists what is missing, left over or of another shape, and names the model whose
        weights these are if there is one.
    """
    overrides = {key: value for key, value in model.items() if value is not None and key != 'name'}
    name = str(model.get('name'))
    family = _family(name)
    for key in OWN:
        if key in overrides:
            raise UserError(
                f'{key} is no override of imported weights; leave it out: it '
                'follows from the file and the program'
            )
    for key in NEW:
        if overrides.get(key):
            raise UserError(
                f'PyTorch weights of {name!r} have no tensors for '
                f'{key}={overrides[key]}; import them without it'
            )
    if family not in RULES:
        known = ', '.join(sorted(n for n in models.MODELS if _family(n) in RULES))
        raise UserError(
            f'there is no PyTorch form of {name!r}; weights can be imported for {known}'
        )
    tensors = reader.read(path, note)
    switch = any(field.name == 'aux' for field in dataclasses.fields(family))
    if switch:
        overrides.setdefault('aux', _has_auxiliary(tensors))
    best = _best_fit(tensors, name, overrides)
    if best is None:
        raise UserError(
            f'there is no PyTorch form of {name!r} with {_shown(overrides)}; import it without them'
        )
    if best.misfits():
        raise UserError(_misfit(path, tensors, name, overrides, best))
    flat = {place: _converted(path, key, tensors[key]) for key, place in best.places.items()}
    with open(path, 'rb') as file:
        checksum = hashlib.file_digest(file, 'sha256').hexdigest()
    variables = flax.traverse_util.unflatten_dict(flat)
    return Imported(
        {'name': name, **overrides},
        best.sizes[CLASSES],
        best.sizes[CHANNELS],
        variables,
        checksum,
        str(path),
    )


def _family(name: str) -> type:
    if name in models.FORMS or name not in models.MODELS:
        models.build(name, 1)  # says what is wrong with it
        raise unknown('model', name, models.MODELS)
    return models.MODELS[name].func


def _has_auxiliary(tensors: Mapping[str, Any]) -> bool:
    return any(key.startswith(AUXILIARY) for key in tensors)


def _shapes(name: str, overrides: Mapping[str, Any]) -> dict[tuple[str, ...], tuple[int, ...]]:
    """{path: shape} of the model's variables; `CLASSES` and `CHANNELS`
    stand for what the file decides.
    """
    return _cached_shapes(
        name,
        tuple(sorted((k, tuple(v) if isinstance(v, list) else v) for k, v in overrides.items())),
    )


@cache
def _cached_shapes(name, overrides):
    model = models.build(name, CLASSES, **dict(overrides))
    size = (input_of(name) or {'size': 32})['size']
    tree = jax.eval_shape(
        partial(model.init, train=False),
        jax.random.key(0),
        jax.ShapeDtypeStruct((1, size, size, CHANNELS), 'float32'),
    )
    return {path: tuple(leaf.shape) for path, leaf in flax.traverse_util.flatten_dict(tree).items()}


def _torch_shape(shape: Sequence[int], leaf: str) -> tuple[int, ...]:
    """PyTorch's order: `[kh, kw, in, out]` -> `[out, in, kh, kw]`, `[in, out]` -> `[out, in]`."""
    if leaf != 'kernel':
        return tuple(shape)
    return (shape[3], shape[2], shape[0], shape[1]) if len(shape) == 4 else (shape[1], shape[0])


def _converted(path: Path, key: str, x: np.ndarray) -> np.ndarray:
    """The tensor in our order, float32."""
    with np.errstate(over='ignore'):
        x = x.astype(np.float32)
    if not np.isfinite(x).all():
        raise UserError(
            f'tensor {key} of {path} holds values that are not finite; take a '
            'checkpoint of a run that went well'
        )
    return np.ascontiguousarray(x.transpose((2, 3, 1, 0)) if x.ndim == 4 else x.T)


def _names(shapes: Mapping[tuple[str, ...], Any], rule: Rule) -> dict[str, tuple[str, ...]] | None:
    """{PyTorch's name: path of ours}; None if the code that the rule is about has no such model."""
    blocks = list(
        dict.fromkeys(path[1] for path in shapes if re.fullmatch(r'stage\d+_block\d+', path[1]))
    )
    blocks.sort(key=lambda block: [int(n) for n in re.findall(r'\d+', block)])
    try:
        names = {
            f'{rule("/".join(path[1:-1]), blocks)}.{LEAVES.get(path[-1], path[-1])}': path
            for path in shapes
        }
    except UserError:  # how a rule says so
        return None
    return names if len(names) == len(shapes) else None


def _fit(
    tensors: Mapping[str, np.ndarray], shapes: Mapping[tuple[str, ...], tuple[int, ...]], rule: Rule
) -> _Fit | None:
    places = _names(shapes, rule)
    if places is None:
        return None
    expected = {key: _torch_shape(shapes[place], place[-1]) for key, place in places.items()}
    sizes = {}
    # a kernel decides before a bias
    for key in sorted(expected, key=lambda key: -len(expected[key])):
        if key in tensors and tensors[key].ndim == len(expected[key]):
            for want, size in zip(expected[key], tensors[key].shape, strict=True):
                if want in (CLASSES, CHANNELS) and size:
                    sizes.setdefault(want, size)
    expected = {key: tuple(sizes.get(n, n) for n in shape) for key, shape in expected.items()}
    given = {key for key in tensors if not key.endswith(reader.COUNTER)}
    both = [key for key in expected if key in given]
    shown = {
        key: str(shape).replace(str(CLASSES), '?').replace(str(CHANNELS), '?')
        for key, shape in expected.items()
    }
    wrong = [
        f'{key} is {tensors[key].shape}, should be {shown[key]}'
        for key in both
        if tensors[key].shape != expected[key]
    ]
    missing = [key for key in expected if key not in given]
    left = [key for key in tensors if key in given and key not in expected]
    return _Fit(places, sizes, missing, left, wrong)


def _best_fit(
    tensors: Mapping[str, np.ndarray], name: str, overrides: Mapping[str, Any]
) -> _Fit | None:
    """Under the rule with the fewest misfits; None if the published code has no such model."""
    shapes = _shapes(name, overrides)
    if overrides.get('aux') is False:
        tensors = {key: x for key, x in tensors.items() if not key.startswith(AUXILIARY)}
    fits = [
        fit for rule in RULES[_family(name)] if (fit := _fit(tensors, shapes, rule)) is not None
    ]
    return min(fits, key=_Fit.misfits, default=None)


def _misfit(
    path: Path,
    tensors: Mapping[str, np.ndarray],
    name: str,
    overrides: Mapping[str, Any],
    fit: _Fit,
) -> str:
    """The sentence about tensors that do not fit."""
    parts, room = [], MOST
    for word, names in (
        ('missing', fit.missing),
        ('left over', fit.left),
        ('of another shape', fit.wrong),
    ):
        if names:
            shown = [
                n if n.isprintable() and len(n) < 200 else repr(n[:80])
                for n in names[: max(room, 1)]
            ]
            more = f' and {len(names) - len(shown)} more' if len(names) > len(shown) else ''
            parts.append(f'{len(names)} {word}: {", ".join(shown)}{more}')
            room -= len(shown)
    given = f' with {_shown(overrides)}' if overrides else ''
    others = [
        other
        for other in models.MODELS
        if _family(other) in RULES and (other != name or overrides) and _fits(tensors, other)
    ]
    alternatives = ' or '.join(f'{o!r}{" without overrides" if o == name else ""}' for o in others)
    hint = (
        f'these are the weights of {alternatives}'
        if others
        else 'no model of the zoo has exactly these tensors'
    )
    return f'{path} does not hold the weights of {name!r}{given}: {"; ".join(parts)}; {hint}'


def _fits(tensors: Mapping[str, np.ndarray], name: str) -> bool:
    """Whether the tensors are exactly those of the model called `name`."""
    switch = any(field.name == 'aux' for field in dataclasses.fields(_family(name)))
    fit = _best_fit(tensors, name, {'aux': _has_auxiliary(tensors)} if switch else {})
    return fit is not None and not fit.misfits()


def _shown(overrides: Mapping[str, Any]) -> str:
    return ', '.join(f'{key}={value}' for key, value in overrides.items())


def make_run(
    directory: RunDirectory,
    name: str,
    imported: Imported,
    *,
    image_shape: Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
    class_names: Sequence[str] | None = None,
    data_name: str = 'imported',
    measured: Mapping[str, Any] | None = None,
) -> bool:
    """Writes the weights as the finished run `name` with seed 0; False if they are there already.

    image_shape: (height, width, channels) of the images that it will see. mean, std: a number for
    each channel, for images in 0..1. measured: what the caller has measured, by the names of
    result.json; everything else is unknown, None.

    Raises:
      UserError: if what is given does not fit to the weights, or the directory holds anything
        else, which is left as it is.
    """
    _check_data(imported, image_shape, mean, std, class_names)
    data = {
        'name': data_name,
        'num_classes': imported.num_classes,
        'class_names': class_names or [str(k) for k in range(imported.num_classes)],
        'image_shape': image_shape,
        'mean': mean,
        'std': std,
        'count': {'train': None, 'labelled': None, 'val': None, 'test': None},
    }
    config = {'model': imported.model, 'torch': imported.path, 'sha256': imported.checksum}
    info = to_json({'run': name, 'seed': 0, 'learning_rate': None, 'data': data, 'config': config})
    if _already_there(directory, info) and directory.finished():
        return False
    # of several processes one writes the files, and all save the checkpoint
    parallel.barrier(f'{name} looked up')
    if parallel.is_main():
        directory.start(info)
        # what an interrupted import of the same weights left
        shutil.rmtree(directory.checkpoints, ignore_errors=True)
    parallel.barrier(f'{name} directory')
    variables = dict(imported.variables)
    params = variables.pop('params')
    with Checkpoints(directory.checkpoints) as checkpoints:
        checkpoints.save(
            0, {'params': {'student': params}, 'model_state': {'student': variables}}, {}
        )
    unmeasured = dict.fromkeys(
        ('flops', 'latency_ms', 'images_per_second', 'seconds', 'teacher', 'val', 'test')
    )
    result = {
        'run': name,
        'seed': 0,
        'model': imported.model['name'],
        'params': param_count(imported.variables),
        'steps': 0,
        'checkpoint': 0,
        'imported': {'path': imported.path, 'sha256': imported.checksum},
    }
    if parallel.is_main():
        directory.finish(to_json(result | unmeasured | dict(measured or {})))
    parallel.barrier(f'{name} imported')
    return True


def _check_data(imported: Imported, image_shape, mean, std, class_names) -> None:
    """Raises `UserError` unless the model of the weights can see such
    images and has so many classes.
    """
    if class_names is not None and len(class_names) != imported.num_classes:
        raise UserError(
            f'{len(class_names)} class names for {imported.num_classes} classes; '
            f'name each class of {imported.path}'
        )
    channels = image_shape[-1]
    for word, values in (('mean', mean), ('std', std)):
        if len(values) != channels or not all(math.isfinite(v) for v in values):
            raise UserError(
                f'{word} {tuple(values)} does not fit to images of {channels} '
                'channels; give one number a channel'
            )
    if min(std) <= 0:
        raise UserError(
            f'std {tuple(std)} is not possible; it must be greater than 0 in every channel'
        )
    overrides = dict(imported.model)
    model = models.build(overrides.pop('name'), imported.num_classes, **overrides)
    shapes = jax.eval_shape(
        partial(model.init, train=False), jax.random.key(0), jnp.zeros((1, *image_shape))
    )
    here, there = (
        jax.tree.map(lambda x: tuple(x.shape), tree) for tree in (shapes, imported.variables)
    )
    if here != there:
        raise UserError(
            f'the weights of {imported.path} do not take images of shape '
            f'{tuple(image_shape)}; give their own shape'
        )


def _already_there(directory: RunDirectory, info: Mapping[str, Any]) -> bool:
    """Whether the directory holds these weights; `UserError` if it holds something else."""
    if not (directory.path / 'config.json').exists():
        if directory.path.is_dir() and any(directory.path.iterdir()):
            raise UserError(
                f'{directory.path} is not empty and holds no run; choose another --workdir'
            )
        return False
    there = directory.info()
    wanted = {key: info[key] for key in ('run', 'data')} | {
        'config': info['config'] | {'torch': None}
    }
    other = {key: there.get(key) for key in ('run', 'data')} | {
        'config': there.get('config', {}) | {'torch': None}
    }
    if fields := differences(wanted, other):
        raise UserError(
            f'{directory.path} holds another run or other weights ({"; ".join(fields[:MOST])}); '
            'choose another --workdir or --name, or delete that directory'
        )
    return True
