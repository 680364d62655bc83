"""What a command left in its workdir that must not depend on how often it was cut off, and in what
two of them differ.
"""

import contextlib
import hashlib
import json
import shutil
import tempfile
import threading
from pathlib import Path

from etils import epath

from kd_jax import records, report
from kd_jax.checkpoint import Checkpoints, Damaged, checksum, load_variables
from kd_jax.errors import UserError
from kd_jax.search_space import optuna
from kd_jax.target_store import TargetStore
from kd_jax.workdir import RunDirectory

# what depends on the machine and its load
TIMES = {'seconds', 'images_per_second', 'data_wait', 'images/s', 'latency_ms', 'latency ms'}
MISSING = 'nothing'
_one_at_a_time = threading.Lock()  # orbax's readers


def outcome(workdir, unread=''):
    """Name -> what can be compared, of all runs, stored targets and searches in `workdir`; of what
    lies in the folder `unread`, or is that file, nothing.

    Raises:
      UserError: as the commands that read these files would, with the fix.
    """
    with _one_at_a_time:
        return _outcome(Path(workdir), unread)


def _outcome(workdir, unread):
    found = {}
    for config in sorted(workdir.rglob('config.json')):
        if not within(config.relative_to(workdir), unread):
            found |= _run(workdir, config.parent)
    for manifest in sorted(workdir.rglob('soft_targets/*/manifest.json')):
        found |= _targets(workdir, manifest.parent)
    again = 'run its study again'
    for name, kind in (('study', dict), ('results', records.Results), ('search', dict)):
        path = epath.Path(workdir, f'{name}.json')
        if path.exists() and not within(path.name, unread):
            records.read(path, kind, again)
            found[path.name] = _json(workdir, path)
    for path in sorted([*workdir.glob('*_best.py'), *workdir.glob('search.md')]):
        found[path.name] = path.read_text().replace(str(workdir), 'WORKDIR')
    if (workdir / 'search.journal').exists():
        found['trials'] = _trials(workdir / 'search.journal')
    return found


def within(name, folder):
    return Path(name).parts[:1] == (folder,)


def ended_trials(workdir):
    """The folders of the trials of a search that are not trained any more."""
    found = {path.parts[-3] for path in workdir.glob('trial*/seed*/result.json')}
    with (
        contextlib.suppress(Exception),  # its journal may be missing, or cut off anywhere
        tempfile.TemporaryDirectory() as folder,
    ):
        copy = shutil.copy(workdir / 'search.journal', folder)  # Optuna writes one that it misses
        states = [trial['state'] for trial in _trials(copy)]
        found |= {f'trial{k:04d}' for k, state in enumerate(states) if state != 'RUNNING'}
    return found


def differences(one, other):
    """A line for each name whose contents differ; none where the outcomes are the same."""
    return [
        f'{name}: {_first_difference(one.get(name, MISSING), other.get(name, MISSING))}'
        for name in sorted({*one, *other})
        if one.get(name, MISSING) != other.get(name, MISSING)
    ]


def _first_difference(one, other):
    """Where two JSON values differ first, in words."""
    if isinstance(one, list) and isinstance(other, list):
        if len(one) != len(other):
            return f'{len(one)} undisturbed, {len(other)} disturbed'
        pairs = dict(enumerate(zip(one, other, strict=True)))
    elif isinstance(one, dict) and isinstance(other, dict):
        pairs = {key: (one.get(key), other.get(key)) for key in [*one, *other]}
    else:
        return f'{str(one)[:200]} undisturbed, {str(other)[:200]} disturbed'
    key, (a, b) = next((key, pair) for key, pair in pairs.items() if pair[0] != pair[1])
    return f'{key}: {_first_difference(a, b)}'


def _json(workdir, path):
    content = json.loads(path.read_text().replace(str(workdir), 'WORKDIR'))
    return _without_times(content)


def _without_times(content):
    if isinstance(content, dict):
        return {key: _without_times(of) for key, of in content.items() if key not in TIMES}
    return [_without_times(of) for of in content] if isinstance(content, list) else content


def _run(workdir, directory):
    """A run with one seed. Its weights: those that were tested, and all of the last state."""
    name, run = directory.relative_to(workdir), RunDirectory(directory)
    run.info()
    found = {f'{name}/config.json': _json(workdir, directory / 'config.json')}
    report.read_metrics(directory)
    if run.metrics.exists():
        found[f'{name}/metrics.jsonl'] = run.metrics.read_text().splitlines()
    if not run.finished():  # such as a trial that was pruned
        return found
    result = run.result()
    found[f'{name}/result.json'] = _without_times(result)
    variables = load_variables(directory, result['checkpoint'])
    found[f'{name}/tested weights'] = checksum(variables)
    last = result['steps']
    with Checkpoints(run.checkpoints, read_only=True) as checkpoints:
        try:
            found[f'{name}/last state'] = checksum(checkpoints.read(last)[0])
        except Damaged as error:
            raise UserError(
                f'the checkpoint of step {last} in {directory} {error}; delete {directory} and run '
                'its study again'
            ) from error
    return found


def _targets(workdir, directory):
    name = directory.relative_to(workdir)
    fix = f'delete {directory} and extract them again'
    manifest = records.read(epath.Path(directory, 'manifest.json'), records.Manifest, fix)
    rows = TargetStore(directory, manifest).read()
    found = {f'{name}/manifest.json': {**manifest, 'made_from': None}}
    for split, table in rows.items():
        found[f'{name}/{split}.rows'] = hashlib.sha256(table.tobytes()).hexdigest()
    return found


def _trials(path):
    """The trials of a search in order: what was tried, what came out."""
    module = optuna()
    with contextlib.redirect_stderr(None):
        backend = module.storages.journal.JournalFileBackend(str(path))
        storage = module.storages.JournalStorage(backend)
        (study,) = module.get_all_study_summaries(storage)
        trials = module.load_study(study_name=study.study_name, storage=storage).get_trials()
    return [
        {
            'state': trial.state.name,
            'params': trial.params,
            'values': trial.values,
            'validations': {str(step): value for step, value in trial.intermediate_values.items()},
            'val': trial.user_attrs.get('val'),
        }
        for trial in trials
    ]
