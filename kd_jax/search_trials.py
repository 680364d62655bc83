"""Which trials a search tries next, and what it knows of those that train; wherever it was cut
off, both are what they would have been.
"""

import statistics
from collections.abc import Mapping
from typing import Any

from kd_jax.search_space import optuna
from kd_jax.workdir import RunDirectory, read_metrics


def ask(study: Any, space: Mapping[str, Any], worker: str, together: int, most: int) -> list[Any]:
    """The next trials of this worker, at most `together`: those that it left unfinished, and new
    ones as long as the search has fewer than `most`; [] at the end.

    A batch is asked before any of it trains: to one that had begun none is added.
    """
    module = optuna()
    running = module.trial.TrialState.RUNNING

    def mine() -> list[Any]:
        there = study.get_trials(deepcopy=False)
        return [trial for trial in there if trial.user_attrs.get('worker', worker) == worker]

    left = [trial for trial in mine() if trial.state == running]
    count = len(study.get_trials(deepcopy=False))
    first = left[-1].user_attrs.get('batch') if left else count
    begun = any(t.state != running and t.user_attrs.get('batch') == first for t in mine())
    batch = [_asked(study, space, trial, together) for trial in left[:together]]
    while not begun and len(batch) < together and count < most:
        # One line of the journal: nobody sees a trial that is nobody's.
        attributes = {'worker': worker, 'batch': first}
        study.add_trial(module.trial.create_trial(state=running, user_attrs=attributes))
        batch.append(_asked(study, space, mine()[-1], together))
        count = len(study.get_trials(deepcopy=False))
    return batch


def _asked(study: Any, space: Mapping[str, Any], trial: Any, together: int) -> Any:
    """The trial with a value of each field, those that depend on its number and on the trials
    before it alone. A kill may have left it with some of them.
    """
    module = optuna()
    sampler = module.samplers.TPESampler(
        seed=trial.number, n_startup_trials=max(together, 10), constant_liar=True
    )
    before = module.create_study(direction='maximize', sampler=sampler)
    before.add_trials(study.get_trials(deepcopy=False)[: trial.number])
    values = before.ask(space).params
    for field, of in space.items():
        if field not in trial.params:
            value = of.to_internal_repr(values[field])
            study._storage.set_trial_param(trial._trial_id, field, value, of)
    study.sampler = module.samplers.RandomSampler()  # which has nothing to add
    return module.trial.Trial(study, trial._trial_id)


def validation(
    validated: Mapping[int, float], runs: Mapping[int, RunDirectory], step: int
) -> float | None:
    """The mean over its seeds of a trial's validation at `step`; None as long as one of them has
    not got there, which a kill between their saves can do.

    validated: {seed: top-1} of those that train together, maybe none; runs: {seed: directory} of
    all.
    """
    if not validated:
        return None
    found = {**validated}
    for seed in runs.keys() - found.keys():
        for line in read_metrics(runs[seed].path):
            if line['split'] == 'val' and line['step'] == step:
                found[seed] = line['top1']
    return statistics.mean(found[seed] for seed in runs) if found.keys() == runs.keys() else None


def is_pruned(study: Any, trial: Any, step: int, value: float) -> bool:
    """Tells Optuna of a validation, once; whether the trial is to end there."""
    known = study.get_trials(deepcopy=False)[trial.number].intermediate_values
    if step not in known:
        trial.report(value, step)
    # a step before others is one that it went on from
    return step >= max(known, default=step) and bool(trial.should_prune())
