"""PyTorch weights that are damaged: one line."""

import pytest
import torch_files
from helpers import random_splits, run_main, save_npz
from small_models import state_of


@pytest.fixture
def data(tmp_path):
    return save_npz(tmp_path / 'three.npz', random_splits(train=100))  # 8 x 8, grey


def test_a_mistake_in_the_file_is_one_line_and_exit_status_two(tmp_path):
    path = tmp_path / 'cut.pth'
    path.write_bytes(torch_files.state_dict(state_of(3)[0])[:5000])
    flags = (
        '--config=configs/pretrained.py',
        f'--config.teachers.teacher.torch={path}',
        f'--workdir={tmp_path}/w',
    )
    data = save_npz(tmp_path / 'd.npz', random_splits(classes=10, train=100))
    done = run_main(
        *flags,
        '--config.data.source=npz',
        f'--config.data.path={data}',
        '--config.data.labels_per_class=0',
    )
    assert done.returncode == 2
    assert (
        len(done.stderr.strip().splitlines()) == 1
        and 'cut.pth' in done.stderr
        and 'Traceback' not in done.stderr
    )
