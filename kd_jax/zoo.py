"""The model zoo as a Markdown table; `python -m kd_jax.zoo --write docs/zoo.md` renews
that of the documentation.

Nothing is trained, compiled or put on a device: parameters and
multiply-accumulates follow from shapes.
"""

import math
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax

from kd_jax import markdown, models, pretrained
from kd_jax.errors import Parser, UserError, told_to_the_user
from kd_jax.models.common import param_count

BEGIN, END = '<!-- zoo -->', '<!-- /zoo -->'
HEAD = ('name', 'form', 'parameters', 'MACs (M)', 'weights import from')


class Entry(NamedTuple):
    """A model of the zoo with `classes` outputs, for images of `size` x `size` x 3."""

    name: str
    size: int
    classes: int
    params: int
    macs: int  # of one image's forward pass
    sources: tuple[str, ...]  # code bases whose weights can be imported


@cache
def entry(name: str) -> Entry:
    """The `Entry` of the model called `name`: with 1000 classes, or
    100 if it is for small images.
    """
    published = pretrained.input_of(name)
    size, classes = (published['size'], 1000) if published else (32, 100)
    model = models.build(name, classes, fast=False)  # convolutions as they are published
    image = jax.ShapeDtypeStruct((1, size, size, 3), 'float32')
    key = jax.eval_shape(partial(jax.random.key, 0))
    # One trace for both counts; initialisers multiply no matrices.
    start = partial(model.init_with_output, train=False)
    forward, (_, variables) = jax.make_jaxpr(start, return_shape=True)(key, image)
    return Entry(
        name,
        size,
        classes,
        param_count(variables),
        macs(forward.jaxpr),
        pretrained.sources(name, variables),
    )


def macs(jaxpr: Any) -> int:
    """Multiply-accumulates of the convolutions and matrix products of a jaxpr; those
    with the padding's zeros count.
    """
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == 'conv_general_dilated':
            kernel = equation.invars[1].aval
            outputs = kernel.shape[equation.params['dimension_numbers'].rhs_spec[0]]
            total += equation.outvars[0].aval.size * (kernel.size // outputs)
        elif equation.primitive.name == 'dot_general':
            (contracted, _), _ = equation.params['dimension_numbers']
            total += equation.outvars[0].aval.size * math.prod(
                equation.invars[0].aval.shape[i] for i in contracted
            )
        total += sum(
            macs(inner.jaxpr) for inner in equation.params.values() if hasattr(inner, 'jaxpr')
        )
    return total


def table() -> str:
    """One line a model, in the order of `MODELS`."""
    rows = []
    for name in models.MODELS:
        e = entry(name)
        form = f'{"small images" if pretrained.input_of(name) is None else "ImageNet"}, {e.size} px'
        rows.append(
            (
                f'`{name}`',
                form,
                f'{e.params:,}',
                f'{e.macs / 1e6:,.1f}',
                ', '.join(e.sources) or '—',
            )
        )
    return markdown.table(HEAD, rows, 'llrrl')


def write(path: Path) -> None:
    """Puts the table between the two markers of a Markdown file.

    Raises:
      UserError: if the file cannot be read or written, or does not have the markers,
        once each and in this order.
    """
    try:
        text = path.read_text(encoding='utf-8')
    except (OSError, ValueError) as error:
        raise UserError(f'cannot read {path} ({error}); give a Markdown file') from error
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end) or (text.count(BEGIN), text.count(END)) != (1, 1):
        raise UserError(
            f'{path} has no place for the table; put one line {BEGIN} and '
            f'below it one line {END} into it'
        )
    try:
        path.write_text(f'{before}{BEGIN}\n\n{table()}\n\n{END}{after}', encoding='utf-8')
    except OSError as error:
        raise UserError(
            f'cannot write {path} ({error}); give a file that may be changed'
        ) from error


def main(arguments: Sequence[str] | None = None) -> None:
    parser = Parser(
        prog='python -m kd_jax.zoo', description='Print the model zoo as a Markdown table.'
    )
    parser.add_argument(
        '--write',
        type=Path,
        metavar='FILE',
        help=f'renew the table between {BEGIN} and {END} there instead',
    )
    path = parser.parse_args(arguments).write
    with told_to_the_user():
        if path:
            write(path)
        else:
            print(table())


if __name__ == '__main__':
    main()
