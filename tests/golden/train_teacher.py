"""Trains the PyTorch teacher of configs/pretrained.py: resnet20 on
Fashion-MNIST as 32 x 32 colour images.

    pip install torch
    apt-get install dataset-fashion-mnist
    python tests/golden/train_teacher.py  # writes configs/weights/fashion_mnist_resnet20.pth

The state dict has the names of RepDistiller's networks, in half precision to stay small. The last
6,000 training images are left out, as a validation split; the test split is not touched.
"""

import argparse
import gzip
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parents[2]))
from benchmarks import torch_models

MEAN, STD = 0.2, 0.32  # of the padded images; the same for each of the three channels


def load(directory: Path, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(images `[N, 3, 32, 32]` in 0..1, labels `[N]`)."""
    images = np.frombuffer(
        gzip.decompress((directory / f'{kind}-images-idx3-ubyte.gz').read_bytes()),
        np.uint8,
        offset=16,
    )
    labels = np.frombuffer(
        gzip.decompress((directory / f'{kind}-labels-idx1-ubyte.gz').read_bytes()),
        np.uint8,
        offset=8,
    )
    images = torch.tensor(images.reshape(-1, 1, 28, 28).copy()).float() / 255
    # As the importing side will see them: 28 x 28 resized, not padded.
    return F.interpolate(images, (32, 32), mode='bilinear', antialias=True), torch.tensor(
        labels.astype(np.int64)
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument('--data', type=Path, default=Path('/usr/share/datasets/fashion-mnist'))
    parser.add_argument(
        '--out', type=Path, default=Path('configs/weights/fashion_mnist_resnet20.pth')
    )
    parser.add_argument('--epochs', type=float, default=4)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    images, labels = load(arguments.data, 'train')
    net = torch_models.resnet((3, 3, 3), (16, 32, 64), 16)
    net.fc = torch.nn.Linear(64, 10)
    net = net.to(memory_format=torch.channels_last)
    for module in net.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, mode='fan_out')
    count, batch = len(images) - 6000, 128
    steps = int(arguments.epochs * count / batch)
    optimiser = torch.optim.SGD(net.parameters(), 0.1, 0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 0.2, steps, pct_start=0.2)
    for step in range(steps):
        if step % (count // batch) == 0:
            order = torch.randperm(count)
        index = order[torch.arange(batch) + step % (count // batch) * batch]
        x = images[index]
        flips = torch.rand(batch) < 0.5
        x[flips] = x[flips].flip(-1)
        dx, dy = (int(v) for v in torch.randint(-2, 3, (2,)))
        x = F.pad(x, (2, 2, 2, 2))[:, :, 2 + dy : 34 + dy, 2 + dx : 34 + dx]
        x = ((x - MEAN) / STD).expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)
        loss = F.cross_entropy(net(x)['logits'], labels[index])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % 50 == 0:
            print(step, steps, round(loss.item(), 3), flush=True)
    net.eval()
    with torch.no_grad():
        x = ((images[count:] - MEAN) / STD).expand(-1, 3, -1, -1)
        predictions = torch.cat([net(part)['logits'].argmax(1) for part in x.split(500)])
    print('validation top-1', (predictions == labels[count:]).float().mean().item())
    arguments.out.parent.mkdir(exist_ok=True)
    torch.save(
        {
            'state_dict': {
                k: v.half() if v.is_floating_point() else v for k, v in net.state_dict().items()
            }
        },
        arguments.out,
    )


if __name__ == '__main__':
    main()
