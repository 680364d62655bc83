"""From a config to what is to be trained, in order: sweeps as their members, what runs name,
what comes after what. Pure.
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from kd_jax import fields, objectives
from kd_jax.errors import UserError, unknown
from kd_jax.optim import Settings
from kd_jax.teacher_outputs import outside

EXAMPLE = "'objective.kl.tau=1,2,4; seed=0,1'"

MOST_MEMBERS = 1024  # of a sweep


def references(run: ConfigDict) -> tuple[str, ...]:
    """What a run names: its teachers, and the run it starts from."""
    return outside(run.teachers) + ((run.init,) if run.init else ())


def owner(reference: str, runs: Iterable[str]) -> str | None:
    """The one of `runs` that `reference` ('teacher' or 'teacher/seed0') names;
    None for a workdir elsewhere.
    """
    name, _, rest = reference.partition('/')
    return name if name in runs and (not rest or rest.startswith('seed')) else None


def order(runs: Mapping[str, ConfigDict]) -> list[str]:
    """The names of the runs, each after those it names; those that others name come first.

    Raises:
      UserError: for a cycle.
    """
    done: list[str] = []

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            raise UserError(
                'the runs depend on each other in a circle: '
                f'{" -> ".join((*path[path.index(name) :], name))}'
            )
        if name not in done:
            for reference in references(runs[name]):
                other = owner(reference, runs)
                if other is not None:
                    visit(other, (*path, name))
            done.append(name)

    named = {owner(reference, runs) for run in runs.values() for reference in references(run)}
    for name in sorted(runs, key=lambda name: name not in named):
        visit(name, ())
    return done


def needed(name: str, runs: Mapping[str, ConfigDict]) -> list[str]:
    """The runs that `name` names, with what those name, in order."""
    queue, seen = [name], set()
    while queue:
        for reference in references(runs[queue.pop()]):
            other = owner(reference, runs)
            if other is not None and other not in seen:
                seen.add(other)
                queue.append(other)
    return [other for other in order(runs) if other in seen]


def value_of(run: ConfigDict, path: str) -> Any:
    """The value of a field such as 'objective.kl.tau'."""
    node = run
    for part in path.split('.'):
        node = node[part]
    return node


def swept_fields(run: ConfigDict) -> list[str]:
    """In which fields the members of a sweep may differ, besides their seeds: the
    step takes them as arguments.
    """
    labels = [
        (label, name)
        for label in run.objective
        for name in objectives.swept(objectives.loss_of(label, run.objective[label]))
        if name in run.objective[label]
    ]
    return [
        *(f'objective.{label}.{name}' for label, name in labels),
        *(f'optim.{name}' for name in fields.swept(Settings)),
    ]


def parse_sweep(name: str, run: ConfigDict) -> dict[str, tuple[Any, ...]]:
    """Field -> values of `run.sweep`.

    Raises:
      UserError: if it cannot be read, or a field or a value makes no sense.
    """
    path, known = f'runs.{name}.sweep', ['seed', *swept_fields(run)]
    values: dict[str, tuple[Any, ...]] = {}
    for part in filter(None, (part.strip() for part in run.sweep.split(';'))):
        field, equals, text = (piece.strip() for piece in part.partition('='))
        if not equals or field in values:
            raise UserError(
                f'{path} has {part!r}; write it as {EXAMPLE}, each '
                f'field once, of: {", ".join(known)}'
            )
        if field not in known:
            raise unknown(f'field in {path}', field, known)
        try:
            numbers = tuple(
                (int if field == 'seed' else float)(value)
                for value in text.strip('()').rstrip(',').split(',')
            )
        except ValueError:
            raise UserError(
                f'{path} has {part!r}, where not all values are numbers; write it as {EXAMPLE}'
            ) from None
        if len(set(numbers)) < len(numbers):
            raise UserError(f'{path} has {part!r}, which names a value twice')
        if field.endswith('.weight') and not all(numbers):
            raise UserError(
                f'{path} has {part!r}; a weight of 0 takes the term '
                'away: make that a run of its own'
            )
        if not all(math.isfinite(value) for value in numbers):
            raise UserError(f'{path} has {part!r}; the values must be finite')
        values[field] = numbers
    return values


def members_of(name: str, run: ConfigDict) -> dict[str, ConfigDict]:
    """The runs of a sweep, one for each combination of values: `student-kl.tau=4`
    with the seeds of the sweep.
    """
    values = parse_sweep(name, run)
    if run.optim.teacher_factor and 'optim.learning_rate' in values:
        raise UserError(
            f'runs.{name}.sweep names optim.learning_rate, which '
            'optim.teacher_factor sets; take one of them'
        )
    count = math.prod(map(len, values.values()))
    if count > MOST_MEMBERS:
        raise UserError(
            f'runs.{name}.sweep has {count} students; at most {MOST_MEMBERS} train together: '
            'take fewer values'
        )
    base = run.copy_and_resolve_references()
    base.seeds = values.pop('seed', tuple(run.seeds))
    base.sweep = ''
    if base.order_seed is None:
        base.order_seed = min(base.seeds, default=0)
    members = {}
    for combination in itertools.product(*values.values()):
        member = base.copy_and_resolve_references()
        words = [name]
        for field, value in zip(values, combination, strict=True):
            with member.ignore_type():  # a weight of 1 may be swept to 0.5
                member.update_from_flattened_dict({field: value})
            words.append(f'{field.partition(".")[2]}={value:g}')
        member_name = '-'.join(words)
        if member_name in members:
            raise UserError(
                f'runs.{name}.sweep has values that are equal in six '
                f'digits, {member_name}; take others'
            )
        members[member_name] = member
    return members


@dataclasses.dataclass(frozen=True)
class Plan:
    """The runs of a study in order, each sweep as its members. members:
    sweep -> names of its members.
    """

    runs: Mapping[str, ConfigDict]
    members: Mapping[str, tuple[str, ...]]

    def sweep_of(self, name: str) -> str | None:
        """The sweep that a run is a member of."""
        return next((sweep for sweep, members in self.members.items() if name in members), None)

    def group_of(self, name: str) -> str:
        """What trains together with a run: its sweep, or itself."""
        return self.sweep_of(name) or name

    def groups(self, chosen: Sequence[str]) -> dict[str, list[str]]:
        """Group -> those of its runs that are `chosen`, in order."""
        groups: dict[str, list[str]] = {}
        for name in chosen:
            groups.setdefault(self.group_of(name), []).append(name)
        return groups

    def chosen(self, only: Sequence[str]) -> list[str]:
        """The runs that `only` names, or the sweeps of which they are members;
        all of them where it is empty.

        Raises:
          UserError: for a name that is neither.
        """
        for name in only:
            if name not in self.runs and name not in self.members:
                raise unknown('run', name, [*self.runs, *self.members])
        wanted = [member for name in only for member in self.members.get(name, (name,))]
        return [name for name in self.runs if not only or name in wanted]


def _check_name(name: str) -> None:
    """Raises `UserError` unless a run, or an imported teacher, can be a folder of the workdir."""
    if not re.fullmatch(r'\w[\w.,=+-]{0,99}', name):
        raise UserError(
            f'{name!r} cannot name a run: its folder has that name; use up to 100 letters, digits '
            'and _ . , = + -, beginning with a letter, a digit or _'
        )


def plan(config: ConfigDict, together: Mapping[str, Sequence[str]] | None = None) -> Plan:
    """The runs of a study. together: name -> runs that differ in
    numbers only, and train as a sweep.

    Raises:
      UserError: for a sweep that makes no sense, a name that is taken, a run
        that names a sweep, or a circle.
    """
    for name in (*config.runs, *config.teachers):
        _check_name(name)
    runs: dict[str, ConfigDict] = {}
    members: dict[str, tuple[str, ...]] = {}
    for name in config.runs:
        run = config.runs[name].copy_and_resolve_references()
        expanded = members_of(name, run) if run.sweep else {name: run}
        if run.sweep:
            members[name] = tuple(expanded)
        for member in expanded:
            if member in runs:
                raise UserError(
                    f'the sweep of runs.{name} would name a run {member!r}, '
                    'which there is; rename one of them'
                )
        runs |= expanded
    for name, run in runs.items():
        for reference in references(run):
            sweep = reference.partition('/')[0]
            if sweep in members:
                raise UserError(
                    f'runs.{name} names the sweep {reference!r}; name one of its '
                    f'members, such as {members[sweep][0]!r}'
                )
    if not runs:
        raise UserError('the config has no runs; add one to config.runs')
    members |= {name: tuple(names) for name, names in (together or {}).items()}
    return Plan({name: runs[name] for name in order(runs)}, members)
