"""Checkpoints: what is kept, what is restored, and what is refused."""

import os

import numpy as np
import pytest

from kd_jax.checkpoint import Checkpoints, checksum, load_variables
from kd_jax.errors import UserError, system_reason, told_to_the_user


def state(value, ema=None):
    rng = np.random.default_rng(value)
    return {
        'step': np.array(value, np.int32),
        'params': {
            'student': {'head': {'kernel': rng.normal(size=(300, 40)).astype(np.float32)}},
            'objective': {},
        },
        'model_state': {
            'student': {'batch_stats': {'mean': np.full(3, value, np.float32)}},
            'objective': {},
        },
        'opt_state': (None, {'trace': rng.normal(size=5)}),
        'ema': ema,
    }


def save(directory, steps, best_step):
    with Checkpoints(directory) as checkpoints:
        for step in steps:
            checkpoints.save(
                step, state(step), {'best_step': best_step if step >= best_step else None}
            )


def damage(directory, step, how):
    """Damages the largest file of a checkpoint's state."""
    files = [path for path in (directory / str(step) / 'state').rglob('*') if path.is_file()]
    path = max(files, key=lambda p: p.stat().st_size)
    content = bytearray(path.read_bytes())
    if how == 'flipped':
        content[len(content) // 2] ^= 0xFF
    else:
        content = content[: len(content) // 2]
    path.write_bytes(content)


def test_the_latest_two_and_the_best_are_kept(tmp_path):
    save(tmp_path, (10, 20, 30, 40, 50), best_step=20)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [20, 40, 50]


def test_the_latest_is_restored_exactly(tmp_path):
    save(tmp_path, (10, 20), best_step=10)
    warnings = []
    with Checkpoints(tmp_path) as checkpoints:
        restored, meta = checkpoints.restore_latest(state(0), warnings.append)
    assert checksum({'x': restored['params']}) == checksum({'x': state(20)['params']})
    assert restored['step'] == 20
    assert np.array_equal(restored['opt_state'][1]['trace'], state(20)['opt_state'][1]['trace'])
    assert meta == {'best_step': 10}
    assert not warnings


@pytest.mark.parametrize('how', ['flipped', 'truncated'])
def test_a_damaged_checkpoint_is_refused_and_the_one_before_it_used(tmp_path, how):
    save(tmp_path, (10, 20, 30), best_step=10)
    damage(tmp_path, 30, how)
    warnings = []
    with Checkpoints(tmp_path) as checkpoints:
        restored, _ = checkpoints.restore_latest(state(0), warnings.append)
        assert restored['step'] == 20
        assert len(warnings) == 1
        assert f'the checkpoint of step 30 in {tmp_path}' in warnings[0]
        assert 'going back to the one before it' in warnings[0]
        checkpoints.save(30, state(30), {'best_step': 10})  # training comes by again
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.read(30)[0]['step'] == 30


def test_a_directory_may_be_relative_or_text(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save('runs/checkpoints', (10,), best_step=10)
    assert (tmp_path / 'runs/checkpoints/10').is_dir()
    assert np.array_equal(load_variables('runs', 10)['batch_stats']['mean'], [10, 10, 10])


def test_nothing_saved_is_none(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore_latest(state(0), print) is None


def test_variables_are_the_students_or_their_average(tmp_path):
    average = {
        'params': {'head': {'kernel': np.ones(2)}},
        'model_state': {'batch_stats': {'mean': np.zeros(3)}},
    }
    with Checkpoints(tmp_path / 'checkpoints') as checkpoints:
        checkpoints.save(1, state(1), {})
        checkpoints.save(2, state(2, ema=average), {})
    plain, averaged = load_variables(tmp_path, 1), load_variables(tmp_path, 2)
    assert np.array_equal(
        plain['params']['head']['kernel'], state(1)['params']['student']['head']['kernel']
    )
    assert plain['batch_stats']['mean'].tolist() == [1, 1, 1]
    assert averaged['params']['head']['kernel'].tolist() == [1, 1]


def test_loading_a_missing_or_damaged_checkpoint_is_one_sentence(tmp_path):
    save(tmp_path / 'checkpoints', (10,), best_step=10)
    with pytest.raises(
        UserError, match='has no checkpoint of step 11; delete .* and run its study again'
    ):
        load_variables(tmp_path, 11)
    damage(tmp_path / 'checkpoints', 10, 'flipped')
    with pytest.raises(
        UserError, match='the checkpoint of step 10 .* does not match its checksum; delete'
    ):
        load_variables(tmp_path, 10)


def test_checksum_sees_names_types_shapes_and_values():
    x = np.arange(6, dtype=np.float32)
    sums = {
        checksum(tree)
        for tree in (
            {'a': x},
            {'b': x},
            {'a': x.reshape(2, 3)},
            {'a': x.astype(np.int32)},
            {'a': x + 1},
            {'a': {'a': x}},
        )
    }
    assert len(sums) == 6
    assert checksum({'a': x, 'b': x}) == checksum({'b': x.copy(), 'a': x})


def test_reasons_are_read_from_the_errors_text():
    assert system_reason(OSError(28, os.strerror(28))) == 'no space left on the device'
    assert system_reason(ValueError('shape mismatch')) is None


def test_a_disk_that_is_full_when_checkpoints_are_closed_is_told_once(tmp_path, monkeypatch):
    """A save that failed is raised by orbax again when its manager is closed."""

    def use(first=None):
        with Checkpoints(tmp_path) as checkpoints:
            close = checkpoints._manager.close
            monkeypatch.setattr(checkpoints._manager, 'close', lambda: (close(), fail()))
            if first:
                raise first

    def fail():
        raise ValueError('RESOURCE_EXHAUSTED: No space left on device')

    with pytest.raises(UserError, match='cannot save a checkpoint in .*: no space left'):
        use()
    first = OSError(28, os.strerror(28))
    with pytest.raises(OSError) as caught:
        use(first)
    assert caught.value is first


def test_a_command_ends_with_one_sentence_where_the_disk_is_full(capsys):
    with pytest.raises(SystemExit) as stopped, told_to_the_user():
        raise OSError(28, os.strerror(28), 'there/manifest.json')
    assert stopped.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith('error: there/manifest.json cannot be written: no space left')
    with pytest.raises(FileNotFoundError), told_to_the_user():
        raise FileNotFoundError(2, os.strerror(2))
