"""Makes the arrays of this folder from PyTorch and torchvision:

    pip install torch torchvision --index-url https://download.pytorch.org/whl/cpu
    python tests/golden/make.py            # all goldens and counts.json
    python tests/golden/make.py vgg11      # only these goldens

Every network gets the weights of `weights.py` and is run in evaluation mode, in float64.
`<name>.npz` keeps of each feature its shape, its greatest absolute value and a sample, NHWC, all
logits, and the state dict's names and shapes.
"""

import importlib
import json
import pathlib
import sys

import numpy as np
import torch
from weights import image, sample, tensor

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent.parent))
from benchmarks import torch_models  # noqa: E402

# The networks of the tables that stand for their families here.
FORMS = {
    name: torch_models.FORMS[name]
    for name in (
        'resnet8x4', 'cifar_resnet18', 'cifar_resnet50', 'wrn_16_2', 'cifar_vgg8',
        'cifar_mobilenet_v2_x0.5', 'cifar_shufflenet_v1', 'cifar_shufflenet_v2', 'mobilenet_v1',
    )
}  # fmt: skip


def import_torchvision():
    """torchvision, also where its compiled operators do not fit the installed
    PyTorch: no classifier needs them.
    """
    try:
        return importlib.import_module('torchvision')
    except (ImportError, RuntimeError, OSError):
        library = torch.library.Library('torchvision', 'DEF')
        import_torchvision.keep = library  # the operators live as long as this object
        for name in ('nms', 'qnms'):  # what torchvision decorates when it is imported
            library.define(f'{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
        for name in [name for name in sys.modules if name.split('.')[0] == 'torchvision']:
            del sys.modules[name]
        return importlib.import_module('torchvision')


MODELS = import_torchvision().models


# What the models are called in torchvision, by their name here, with the
# options of those that have any.
TORCHVISION = {
    **{name: name for name in ('resnet18', 'resnet34', 'resnet50', 'resnet101', 'resnet152')},
    **{
        name: name
        for name in (
            'wide_resnet50_2',
            'resnext50_32x4d',
            'inception_v3',
            'googlenet',
            'efficientnet_b0',
        )
    },
    **{f'imagenet_vgg{n}{norm}': f'vgg{n}{norm}' for n in (11, 13, 16, 19) for norm in ('', '_bn')},
    'googlenet_aux': 'googlenet',
    'imagenet_mobilenet_v2': 'mobilenet_v2',
    'mobilenet_v3_small': 'mobilenet_v3_small',
    'mobilenet_v3_large': 'mobilenet_v3_large',
    **{
        f'imagenet_shufflenet_v2_{x}': f'shufflenet_v2_{x}'
        for x in ('x0_5', 'x1_0', 'x1_5', 'x2_0')
    },
}
OPTIONS = {
    'inception_v3': {'aux_logits': True, 'init_weights': False},
    'googlenet': {'aux_logits': False, 'init_weights': False},
    'googlenet_aux': {'aux_logits': True, 'init_weights': False},
}
# Auxiliary heads: the module and the one whose output it sees.
HEADS = {
    'inception_v3': {'aux': ('AuxLogits', 'Mixed_6e')},
    'googlenet_aux': {'aux1': ('aux1', 'inception4a'), 'aux2': ('aux2', 'inception4d')},
}
# Which module's output each feature is, by the class of torchvision.
FEATURES = {
    'ResNet': {'stem': 'maxpool', **{f'stage{i}': f'layer{i}' for i in (1, 2, 3, 4)}},
    'Inception3': {
        'stem': 'maxpool2',
        'stage1': 'Mixed_5d',
        'stage2': 'Mixed_6e',
        'stage3': 'Mixed_7c',
    },
    'GoogLeNet': {
        'stem': 'maxpool2',
        'stage1': 'inception3b',
        'stage2': 'inception4e',
        'stage3': 'inception5b',
    },
    'ShuffleNetV2': {'stem': 'maxpool', **{f'stage{i}': f'stage{i + 1}' for i in (1, 2, 3)}},
}
# The number in `features` of the last block of each stage, the stem's first.
ENDS = {
    'mobilenet_v2': (0, 1, 3, 6, 10, 13, 16, 17),
    'mobilenet_v3_small': (0, 1, 3, 6, 8, 11),
    'mobilenet_v3_large': (0, 1, 3, 6, 10, 12, 15),
    'efficientnet_b0': (0, 1, 2, 3, 4, 5, 6, 7),
}
# The goldens' images. Sizes are odd and even, and no image is square where the network does not ask
# for it (the auxiliary head of Inception v3 does, of 299 pixels and more).
IMAGES = {
    **dict.fromkeys(('resnet18', 'resnet50', 'resnext50_32x4d', 'googlenet'), (2, 64, 75, 3)),
    'wide_resnet50_2': (2, 32, 41, 3),
    'imagenet_vgg11': (2, 64, 290, 3),  # a last map of 2 x 9, which is averaged to 7 x 7
    'imagenet_vgg11_bn': (2, 50, 32, 3),
    'inception_v3': (1, 299, 299, 3),
    'googlenet_aux': (2, 96, 75, 3),
    **dict.fromkeys(
        ('imagenet_mobilenet_v2', 'mobilenet_v3_small', 'mobilenet_v3_large', 'efficientnet_b0'),
        (2, 64, 75, 3),
    ),
    **dict.fromkeys(('imagenet_shufflenet_v2_x0_5', 'imagenet_shufflenet_v2_x1_0'), (2, 64, 75, 3)),
    **dict.fromkeys(FORMS, (2, 32, 32, 3)),
    'mobilenet_v1': (2, 64, 75, 3),
}


def make(name, device='meta'):
    """The PyTorch model of our model called `name`, in evaluation mode, without values."""
    with torch.device(device):
        model = (
            FORMS[name]()
            if name in FORMS
            else getattr(MODELS, TORCHVISION[name])(**OPTIONS.get(name, {}))
        )
    return model.eval()


def inventory(model):
    """Names and shapes of the state dict, without the counters that evaluation does not read."""
    state = model.state_dict()
    return {
        key: tuple(value.shape)
        for key, value in state.items()
        if not key.endswith('num_batches_tracked')
    }


def fill(model):
    """Gives `model` the weights of `weights.py`."""
    state = {key: torch.from_numpy(tensor(key, shape)) for key, shape in inventory(model).items()}
    counters = {
        key: torch.tensor(1) for key in model.state_dict() if key.endswith('num_batches_tracked')
    }
    model.load_state_dict(state | counters, assign=True)
    return model


def feature_modules(name, model):
    if isinstance(model, MODELS.VGG):  # what every pooling sees
        ends = [
            i - 1
            for i, module in enumerate(model.features)
            if isinstance(module, torch.nn.MaxPool2d)
        ]
        ends = [ends[0], *ends]
    elif TORCHVISION[name] in ENDS:
        ends = ENDS[TORCHVISION[name]]
    else:
        return FEATURES[type(model).__name__]
    return {f'stage{i}' if i else 'stem': f'features.{end}' for i, end in enumerate(ends)}


@torch.inference_mode()
def run(name, model, images):
    """Features, logits and the auxiliary heads' logits (`head_<name>`) of
    `images` `[B, H, W, 3]`, NHWC.
    """
    x, found = images.permute(0, 3, 1, 2), {}
    if name in FORMS:
        found = model(x)
    else:

        def keep(key):  # a copy: a ReLU that follows may overwrite it
            return lambda module, inputs, output: found.update({key: output.clone()})

        def keep_input(module, inputs):
            found['pooled'] = inputs[0].clone()

        modules = feature_modules(name, model) | {
            f'head_{key}': sees for key, (_, sees) in HEADS.get(name, {}).items()
        }
        hooks = [
            model.get_submodule(path).register_forward_hook(keep(key))
            for key, path in modules.items()
        ]
        auxiliary = tuple(module for module, _ in HEADS.get(name, {}).values())
        linear = [
            m
            for key, m in model.named_modules()
            if isinstance(m, torch.nn.Linear) and not key.startswith(auxiliary)
        ]
        hooks.append(linear[-1].register_forward_pre_hook(keep_input))
        logits = model(x)
        for hook in hooks:
            hook.remove()
        for key, (path, _) in HEADS.get(name, {}).items():
            found[f'head_{key}'] = model.get_submodule(path)(found[f'head_{key}'])
        found['logits'] = logits
    return {
        key: value.permute(0, 2, 3, 1) if value.ndim == 4 else value for key, value in found.items()
    }


def golden(name):
    model = fill(make(name))
    shapes = inventory(model)
    arrays = {'image': np.array(IMAGES[name])}
    lines = '\n'.join(f'{key} {" ".join(map(str, shape))}' for key, shape in shapes.items())
    arrays['inventory'] = np.frombuffer(lines.encode(), np.uint8)
    for key, value in run(
        name, model.double(), torch.from_numpy(image(*IMAGES[name])).double()
    ).items():
        value = value.numpy().astype(np.float32)
        arrays[f'{key}.shape'], arrays[f'{key}.max'] = np.array(value.shape), np.abs(value).max()
        arrays[key] = value.reshape(-1) if key == 'logits' else sample(value)
        print(
            f'{name:30} {key:10} {value.shape!s:20} std '
            f'{value.std():.3g} max {np.abs(value).max():.3g}'
        )
    np.savez_compressed(HERE / f'{name}.npz', **arrays)


def count(name):
    """Parameters, running statistics, multiply-accumulates of convolutions and dense
    layers, auxiliary heads included.
    """
    model, macs = make(name), 0
    size = {'inception_v3': 299, 'mobilenet_v1': 224}.get(name, 32 if name in FORMS else 224)

    def hook(module, inputs, output):
        nonlocal macs
        macs += output.numel() * module.weight[0].numel()

    for module in model.modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
            module.register_forward_hook(hook)
    run(name, model, torch.empty(1, size, size, 3, device='meta'))
    row = {
        'params': sum(p.numel() for p in model.parameters()),
        'statistics': sum(
            value.numel() for key, value in model.named_buffers() if 'running' in key
        ),
        'macs': macs,
        'size': size,
    }
    # as torchvision itself states them; those of the networks without auxiliary heads
    if name in TORCHVISION:
        metadata = MODELS.get_model_weights(TORCHVISION[name]).IMAGENET1K_V1.meta
        row |= {'published_params': metadata['num_params'], 'published_gmacs': metadata['_ops']}
    return row


def main():
    names = sys.argv[1:]
    if not names:
        counts = {name: count(name) for name in (*TORCHVISION, *FORMS)}
        rows = [f'  {json.dumps(name)}: {json.dumps(row)}' for name, row in counts.items()]
        (HERE / 'counts.json').write_text('{\n' + ',\n'.join(rows) + '\n}\n')
    for name in names or IMAGES:
        golden(name)


if __name__ == '__main__':
    main()
