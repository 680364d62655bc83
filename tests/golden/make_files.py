"""Writes `files/`: small files as PyTorch itself writes them, and
`expected.npz` with what is in them.

python tests/golden/make_files.py        (needs torch and safetensors; the tests do not)
"""

import io
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

FILES = Path(__file__).parent / 'files'


def network(seed: int = 0) -> nn.Module:
    """Convolution, BatchNorm and a dense layer, with no value at its start."""
    torch.manual_seed(seed)
    made = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 5))
    made[1].running_mean.normal_()
    made[1].num_batches_tracked.fill_(7)
    return made


def views() -> dict[str, torch.Tensor]:
    """Tensors that are parts of a storage: transposed, strided, shifted, shared, empty, scalar."""
    whole = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4)
    return {
        'transposed': whole.permute(2, 0, 1),
        'strided': whole[:, ::2, 1:],
        'shifted': whole[1],
        'shared': whole,
        'same': whole,
        'scalar': torch.tensor(2.5),
        'empty': torch.zeros(0, 3),
    }


def main() -> None:
    FILES.mkdir(exist_ok=True)
    state, expected = network().state_dict(), {}

    def write(name, content, tensors, **options):
        torch.save(content, FILES / name, **options)
        expected.update(
            {f'{name}/{key}': np.asarray(value.float().numpy()) for key, value in tensors.items()}
        )

    write('plain.pth', state, state)
    training = {
        'epoch': 3,
        'best_acc': torch.tensor(0.5),
        'optimizer': {'state': {0: {'momentum': torch.ones(3)}}, 'lr': 0.1},
    }
    write(
        'checkpoint.pth',
        training | {'state_dict': {f'module.{key}': value for key, value in state.items()}},
        state,
    )
    half = {key: value.half() for key, value in state.items() if value.is_floating_point()}
    write('half.pth', half, dict(half))
    low = {
        'a': torch.tensor([1.0, -2.5, 3e38, 1e-40, 0.1]).bfloat16(),
        'b': torch.tensor([[0.1, 0.2]], dtype=torch.float64),
    }
    write('bfloat16_float64.pth', low, low)
    write('views.pth', views(), views())
    write('protocol4.pth', state, state, pickle_protocol=4)
    save_file(
        low | {'n.num_batches_tracked': torch.tensor(7), 'index': torch.arange(3)},
        FILES / 'some.safetensors',
    )
    kept = low | {'n.num_batches_tracked': torch.tensor(7)}
    expected.update(
        {
            f'some.safetensors/{key}': np.asarray(value.float().numpy())
            for key, value in kept.items()
        }
    )

    torch.save(network(), FILES / 'module.pth')
    torch.save(state, FILES / 'legacy.pth', _use_new_zipfile_serialization=False)
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), buffer)
    (FILES / 'script.pt').write_bytes(buffer.getvalue())
    np.savez(FILES / 'expected.npz', **expected)


if __name__ == '__main__':
    main()
