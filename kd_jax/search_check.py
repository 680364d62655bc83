"""A search's space, checked whole before anything trains."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from kd_jax import config_check, jobs
from kd_jax.errors import UserError
from kd_jax.search_report import words
from kd_jax.study import Study

MOST_TOGETHER = 32  # combinations of choices
_PROBE = '_probe'  # behind the name of a run that is not to train


def check_space(
    config: ConfigDict, name: str, space: Mapping[str, Any], workdir: epath.Path
) -> None:
    """Raises `UserError` for a value of the space that the run called `name` cannot have.

    Each value alone, of a range its ends; and, where they are few, all choices of what is no number
    together.
    """
    run = config.runs[name]
    tried = list(_tried(space, set(jobs.swept_fields(run))))
    for chosen, _ in tried:
        try:
            config_check.check_run(name, _with(run, chosen))
        except UserError as error:
            raise UserError(f'--space allows {words(chosen)}: {error}') from error
    built = [chosen for chosen, other in tried if other]
    try:
        _check(config, name, built, workdir)
    except UserError:
        for chosen in built:  # whose mistake is it?
            try:
                _check(config, name, [chosen], workdir)
            except UserError as error:
                sentence = str(error).replace(f'{name}{_PROBE}0', name)
                raise UserError(f'--space allows {words(chosen)}: {sentence}') from error
        raise


def _tried(space: Mapping[str, Any], numbers: set[str]) -> Iterator[tuple[dict[str, Any], bool]]:
    """(values, whether they make another program) of what is checked."""
    ends = {
        field: list(of.choices) if hasattr(of, 'choices') else [of.low, of.high]
        for field, of in space.items()
    }
    yield {field: values[0] for field, values in ends.items()}, True
    for field, values in ends.items():
        yield from (({field: value}, field not in numbers) for value in values)
    others = {field: values for field, values in ends.items() if field not in numbers}
    if len(others) > 1 and math.prod(map(len, others.values())) <= MOST_TOGETHER:
        for chosen in itertools.product(*others.values()):
            yield dict(zip(others, chosen, strict=True)), True


def _with(run: ConfigDict, chosen: Mapping[str, Any]) -> ConfigDict:
    changed = run.copy_and_resolve_references()
    changed.update_from_flattened_dict(chosen)
    return changed


def _check(
    config: ConfigDict, name: str, tried: Sequence[Mapping[str, Any]], workdir: epath.Path
) -> None:
    """Raises `UserError` for what a study with these forms of the run would find before its first
    step.
    """
    others = jobs.needed(name, config.runs)
    study = config.copy_and_resolve_references()
    run = study.runs[name]
    for other in set(study.runs) - set(others):
        del study.runs[other]
    for number, chosen in enumerate(tried):
        probe = study.runs[f'{name}{_PROBE}{number}'] = _with(run, chosen)
        probe.seeds = run.seeds[:1]
    Study(study, workdir, list(study.runs)).check()


def alike(run: ConfigDict, batch: Sequence[Any]) -> list[list[Any]]:
    """The trials in groups that differ in numbers only."""
    groups: dict[tuple[Any, ...], list[Any]] = {}
    numbers = set(jobs.swept_fields(run))
    for trial in batch:
        chosen = trial.params.items()  # a weight of 0 takes its loss away
        fixed = tuple(
            (f, v) for f, v in chosen if f not in numbers or (f.endswith('.weight') and not v)
        )
        groups.setdefault(fixed, []).append(trial)
    return list(groups.values())
