"""`python -m kd_jax.pretrained resnet50.pth --model=resnet50 --workdir=runs/resnet50`:
PyTorch weights become a run.
"""

import argparse
import ast
import contextlib
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kd_jax import models, pretrained
from kd_jax.errors import Parser, UserError, told_to_the_user
from kd_jax.workdir import RunDirectory

SMALL = 32  # the size of images of models that have no published one


def numbers(text: str) -> tuple[float, ...]:
    """'0.5,0.5,0.5' -> (0.5, 0.5, 0.5)."""
    return tuple(float(part) for part in text.split(','))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog='python -m kd_jax.pretrained',
        description='Make a run that can teach of PyTorch weights.',
    )
    parser.add_argument(
        'file', type=Path, help='.pth, .pt, .bin or .safetensors; PyTorch is not needed'
    )
    parser.add_argument('--model', required=True, help='a name of the model zoo, such as resnet50')
    parser.add_argument(
        '--workdir', type=Path, required=True, help='the run is <workdir>/<name>/seed0'
    )
    parser.add_argument('--name', help="the run's name (default: the model's)")
    parser.add_argument(
        '--size', type=int, help='height and width of its images (default: as published, or 32)'
    )
    parser.add_argument(
        '--mean',
        type=numbers,
        help='for images in 0..1, such as 0.485,0.456,0.406 (default: as published)',
    )
    parser.add_argument('--std', type=numbers, help='as --mean')
    parser.add_argument(
        '--classes', type=Path, metavar='FILE', help='the names of the classes in order, one a line'
    )
    parser.add_argument(
        '--override',
        nargs='+',
        default=[],
        metavar='FIELD=VALUE',
        help='fields of the model, such as width=0.5',
    )
    return parser.parse_args(arguments)


def override(name: str, text: str) -> tuple[str, Any]:
    """'width=0.5' -> ('width', 0.5), of the type that the model's field has."""
    key, equals, word = text.partition('=')
    value: Any = word
    if not equals:
        raise UserError(f'override {text!r} is not of the form FIELD=VALUE, such as width=0.5')
    with contextlib.suppress(ValueError, SyntaxError):  # otherwise it is a word
        value = ast.literal_eval(word.capitalize() if word in ('true', 'false') else word)
    known = dataclasses.fields(models.family(name)) if name in models.MODELS else ()
    default = {field.name: field.default for field in known}.get(key)
    if isinstance(default, float) and type(value) is int:
        value = float(value)
    if isinstance(default, (bool, int, float, tuple)) and type(value) is not type(default):
        raise UserError(f'{key}={word} is no value for model {name!r}; it must be like {default!r}')
    return key, value


def run(options: argparse.Namespace) -> str:
    """Imports the weights and returns the line to print."""
    model = {'name': options.model} | dict(
        override(options.model, text) for text in options.override
    )
    overrides = {key: value for key, value in model.items() if key != 'name'}
    if not set(overrides) & set(pretrained.OWN):
        # Refuses what the model does not have before the file is read.
        models.build(options.model, 1, **overrides)
    name = options.name or options.model
    if Path(name).name != name or name in ('.', '..'):
        raise UserError(
            f'--name={name} is not the name of one directory; choose one such as teacher'
        )
    published = pretrained.input_of(options.model) or {'size': SMALL}
    mean, std = options.mean or published.get('mean'), options.std or published.get('std')
    if mean is None or std is None:
        raise UserError(
            f'images for {options.model!r} have no usual normalisation; give --mean and --std as '
            'in its training, such as --mean=0.5071,0.4867,0.4408 --std=0.2675,0.2565,0.2761'
        )
    size = published['size'] if options.size is None else options.size
    if size < 1:
        raise UserError(f'--size={size} is not possible; it must be 1 or more, such as 224')
    names = None if options.classes is None else class_names(options.classes)
    imported = pretrained.load(
        options.file, model, lambda sentence: print(f'note: {sentence}', file=sys.stderr)
    )
    directory = RunDirectory(options.workdir / name / 'seed0')
    new = pretrained.make_run(
        directory,
        name,
        imported,
        image_shape=(size, size, len(mean)),
        mean=mean,
        std=std,
        class_names=names,
    )
    params = directory.result()['params']
    summary = f'{params:,} parameters, {imported.num_classes} classes'
    return (
        f'{name}: {summary}; {"teacher" if new else "already there as teacher"}: '
        f'{options.workdir / name}'
    )


def class_names(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding='utf-8').splitlines()
    except (OSError, ValueError) as error:
        raise UserError(
            f'cannot read the class names in {path} ({error}); give a text file, one name a line'
        ) from error
    return [line.strip() for line in lines if line.strip()]


def main(arguments: Sequence[str] | None = None) -> None:
    with told_to_the_user():
        print(run(parse(arguments)))


if __name__ == '__main__':
    main()
