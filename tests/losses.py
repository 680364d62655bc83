"""All losses: each with its oracle in float64 NumPy, its cases and its inputs; and the programs
that evaluate them.

Compiling is what takes time. One program of a loss evaluates all its cases: those that differ in
numbers are runs of it, and so are all inputs of the same shapes.
"""

from functools import cache
from typing import Any, NamedTuple
from unittest import mock

import feature_losses
import head_losses
import jax
import jax.numpy as jnp
import logit_losses
import numpy as np
import relation_losses
from loss_inputs import KEYS, Inputs, as_objective, float64, teachers_of

from kd_jax.objectives import OBJECTIVES, contrast, defaults

FAMILIES = (logit_losses, feature_losses, relation_losses, head_losses)
FAMILY = {name: family for family in FAMILIES for name in family.ORACLES}


class Case(NamedTuple):
    name: str
    given: tuple[tuple[str, Any], ...]  # fields that differ from the defaults
    pre: bool = True  # there are features before activations

    @property
    def fields(self):
        return defaults(self.name) | dict(self.given)

    @property
    def family(self):
        return FAMILY[self.name]

    def inputs(self):
        return self.family.inputs(self.name, **({} if self.pre else {'pre': False, 'small': True}))

    def small_inputs(self):
        more = {'small': True} if self.family is feature_losses else {}
        return self.family.inputs(self.name, **more)

    def __str__(self):
        fields = (f'{key}={value}' for key, value in self.given)
        return '-'.join([self.name, *fields, *([] if self.pre else ['without pre'])])


CASES = sorted(
    Case(name, tuple(sorted(fields.items())), pre)
    for family in FAMILIES
    for pre, pairs in ((True, family.CASES), (False, getattr(family, 'CASES_WITHOUT_PRE', ())))
    for name, fields in pairs
)
# Numbers that are compiled in: they decide on shapes, or are the objective's.
COMPILED_IN = ('weight', 'ramp_epochs', 'ramp_from', 'rate')


def numbers_of(name):
    """The fields of a loss that a program takes when it runs."""
    return [key for key, x in defaults(name).items() if type(x) is float and key not in COMPILED_IN]


def variant_of(case):
    """The fields of a case that a program has compiled in."""
    return tuple(pair for pair in case.given if pair[0] not in numbers_of(case.name))


@cache
def first_of_variants(name):
    """Of a loss's cases that differ in numbers the first one."""
    cases = [case for case in CASES if case.name == name and case.pre]
    return list({variant_of(case): case for case in reversed(cases)}.values())[::-1]


class Outcome(NamedTuple):
    values: Any  # [B]
    state: Any  # variables afterwards, without the parameters
    drawn: Any  # CRD's negatives, or None
    # gradients of the weighted sum of the values
    student: Any
    teacher: Any
    params: Any


def apply(name, loss, inputs):
    """(values [B], state, negatives)"""
    drawn, draw = [], contrast.draw_negatives

    def recorded(*args):
        drawn.append(draw(*args))
        return drawn[-1]

    with mock.patch.object(contrast, 'draw_negatives', recorded):
        if name in FAMILY[name].STOPS:  # not an objective, which stops the gradient too
            values, state = loss.apply({}, inputs.student, inputs.teacher, inputs.batch), {}
        else:
            kept = [kind for kind in inputs.variables if kind != 'params']
            values, state = as_objective(name, loss).apply(
                inputs.variables,
                inputs.student,
                teachers_of(loss, inputs),
                inputs.batch,
                mutable=kept,
                rngs={'negatives': KEYS['negatives']},
            )
            values = values[name]
    return values, state, drawn[-1] if drawn else None


def differentiated(name, loss, inputs, share):
    """The `Outcome`."""

    def total(student, teacher, params):
        variables = inputs.variables | ({'params': params} if params else {})
        found = apply(name, loss, Inputs(student, teacher, inputs.batch, variables))
        return (found[0] * share).sum(), found

    gradients, found = jax.grad(total, argnums=(0, 1, 2), has_aux=True)(
        inputs.student, inputs.teacher, inputs.variables.get('params', {})
    )
    return Outcome(*found, *gradients)


@cache
def program(name):
    """(numbers, inputs, share of each example in the sum) -> {variant: Outcome}"""
    variants = sorted({variant_of(case) for case in CASES if case.name == name}, key=str)

    @jax.jit
    def run(numbers, inputs, share):
        return {
            variant: differentiated(
                name, OBJECTIVES[name](**dict(variant), **numbers), inputs, share
            )
            for variant in variants
        }

    return run


def numbers(case):
    return {key: np.float32(case.fields[key]) for key in numbers_of(case.name)}


def outcome(case, inputs, share=None):
    """The `Outcome` of a case, as NumPy arrays."""
    share = np.ones(len(inputs.batch['label']), np.float32) if share is None else share
    return jax.device_get(program(case.name)(numbers(case), inputs, share))[variant_of(case)]


@cache
def usual_share(count):
    return np.float32(np.random.default_rng(4).standard_normal(count))


@cache
def usual(case):
    """(inputs, Outcome) of the case's own inputs, for a sum in which examples count differently."""
    inputs = case.inputs()
    return inputs, outcome(case, inputs, usual_share(len(inputs.batch['label'])))


def expected(case, inputs, drawn=None):
    """The oracle's values."""
    given = inputs if drawn is None else inputs._replace(batch=inputs.batch | {'drawn': drawn})
    return case.family.ORACLES[case.name](float64(given), case.fields)


def evaluate(name, fields, zs, zt, labels=None):
    """(values [B], gradient of their sum for the student's logits [B, K]) of a loss on logits."""
    found = outcome(case_of(name, fields), logit_losses.given(zs, zt, labels))
    return found.values, found.student.logits


def case_of(name, fields):
    case = Case(name, tuple(sorted(fields.items())))
    assert variant_of(case) in {variant_of(c) for c in CASES if c.name == name}
    return case


def on_four_devices(case, inputs):
    """The `Outcome`, the batch split over four devices."""
    name, fields = case.name, dict(variant_of(case))
    count = len(inputs.batch['label'])

    def run(numbers, inputs, share):
        loss = OBJECTIVES[name](**fields, **numbers, axis_name='batch')
        return differentiated(name, loss, inputs, share)

    def parts(tree):
        return jax.tree.map(lambda x: x.reshape(4, count // 4, *x.shape[1:]), tree)

    split = Inputs(*parts(inputs[:3]), inputs.variables)
    run = jax.pmap(run, 'batch', in_axes=(None, Inputs(0, 0, 0, None), 0))
    return jax.device_get(run(numbers(case), split, parts(usual_share(count))))


@cache
def bfloat16_program(name):
    """inputs -> {case: (values, state, negatives)}, with all fields compiled in."""
    cases = first_of_variants(name)

    @jax.jit
    def run(inputs):
        return [apply(name, OBJECTIVES[name](**dict(case.given)), inputs) for case in cases]

    return lambda inputs: dict(zip(cases, run(inputs), strict=True))


@cache
def of_bfloat16(case):
    """(inputs that bfloat16 can represent, (values, state, negatives) there)"""
    inputs = case.small_inputs()
    student, teacher = jax.tree.map(
        lambda x: x.astype(jnp.bfloat16), (inputs.student, inputs.teacher)
    )
    rounded = inputs._replace(student=student, teacher=teacher)
    return rounded, jax.device_get(bfloat16_program(case.name)(rounded)[case])
