"""What a search may choose from, as `--space` has it: fields with ranges or values."""

import re
from typing import Any

import flax
from ml_collections import ConfigDict

from kd_jax import jobs
from kd_jax.errors import UserError, unknown

_NUMBER = r'[-+]?[0-9.]+(?:e[-+]?[0-9]+)?'
_RANGE = re.compile(rf'({_NUMBER})\.\.({_NUMBER})(\s+log)?')


def optuna() -> Any:
    """The module; `UserError` where it is not installed."""
    try:
        import optuna as module
    except ImportError as error:
        raise UserError('a search needs Optuna; pip install optuna') from error
    module.logging.set_verbosity(module.logging.WARNING)
    return module


def read_space(text: str, name: str, run: ConfigDict) -> dict[str, Any]:
    """Field -> Optuna distribution: `LOW..HIGH [log]`, or values to choose from.

    Raises:
      UserError: for a field that the run does not have, or what cannot be read.
    """
    distributions = optuna().distributions
    example = "'objective.kl.tau=1..16 log; model.name=cnn,resnet8'"
    space: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in text.split(';'))):
        field, equals, values = (piece.strip() for piece in part.partition('='))
        if not equals or not values or field in space:
            raise UserError(f'--space has {part!r}; write each field once, as {example}')
        try:
            default = jobs.value_of(run, field)
        except (AttributeError, KeyError, TypeError):
            known = flax.traverse_util.flatten_dict(run.to_dict(), sep='.')
            raise unknown(f'field of runs.{name} in --space', field, known) from None
        if isinstance(default, ConfigDict):
            raise UserError(
                f'--space names {field!r}, which is a group; name one of '
                f'its fields: {", ".join(default)}'
            )
        between = _RANGE.fullmatch(values)
        try:
            if between:
                low, high = float(between[1]), float(between[2])
                positive = between[3] or field.endswith('.weight')
                if not (low < high and (low > 0 or not positive)) or isinstance(
                    default, (str, bool, int, tuple)
                ):
                    raise ValueError
                space[field] = distributions.FloatDistribution(low, high, log=bool(between[3]))
            else:
                choices = [_typed(value.strip(), default) for value in values.split(',')]
                if len(set(choices)) < len(choices):
                    raise ValueError
                space[field] = distributions.CategoricalDistribution(choices)
        except ValueError:
            raise UserError(
                f'--space has {part!r}; write it as {example}: for numbers LOW..HIGH with LOW < '
                'HIGH, above 0 for weights and with log, or different values'
            ) from None
    if not space:
        raise UserError(f'--space is empty; name what is searched, such as {example}')
    return space


def _typed(text: str, default: Any) -> Any:
    """A value in the type of the field's; where that has none (None), a number if it is one."""
    if isinstance(default, bool):
        return (
            {'True': True, 'False': False}[text]
            if text in ('True', 'False')
            else float('not a truth')
        )
    if isinstance(default, (int, float, str)):
        return type(default)(text)
    try:
        return int(text) if text.lstrip('-').isdigit() else float(text)
    except ValueError:
        return text
