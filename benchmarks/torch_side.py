"""Training loops in PyTorch as the distillation code bases have them, for comparison.

`eager` is the loop of RepDistiller and mdistiller: one step at a time, the teacher under `no_grad`,
losses and accuracies fetched with `.item()` at every step. `channels_last`, `compile` are the same
tuned as far as we can: that memory format, nothing fetched between steps, fused optimiser,
torch.compile. `loader` is `eager` behind a DataLoader with the usual augmentation; the others get
their batches from memory, already augmented and normalised, for free.
"""

import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks import torch_models


def network(name: str, classes: int):
    """One of `torch_models`, or torchvision's."""
    if name in torch_models.FORMS:
        return torch_models.FORMS[name]()
    import torchvision

    return torchvision.models.get_model(name.removeprefix('imagenet_'), num_classes=classes)


def logits(net, images):
    out = net(images)
    return out['logits'] if isinstance(out, dict) else out


def augment(image: np.ndarray, rng: np.random.Generator) -> torch.Tensor:
    """Crop with 4 pixels of padding, flip, normalise: `[H, W, C]` uint8 -> `[C, H, W]`."""
    side = image.shape[0]
    padded = np.pad(image, ((4, 4), (4, 4), (0, 0)))
    y, x = rng.integers(0, 9, 2)
    image = padded[y : y + side, x : x + side]
    if rng.random() < 0.5:
        image = image[:, ::-1]
    return (torch.from_numpy(image.copy()).permute(2, 0, 1).contiguous().float() / 255 - 0.5) / 0.25


class Images(torch.utils.data.Dataset):
    def __init__(self, images: np.ndarray, labels: np.ndarray):
        self.images, self.labels, self.rng = images, labels, np.random.default_rng(0)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return augment(self.images[index], self.rng), int(self.labels[index])


def batches(peer: str, images: np.ndarray, labels: np.ndarray, batch: int, device: str):
    """An endless stream of `(images, labels)` on the device."""
    if peer == 'loader':
        workers = min(8, len(os.sched_getaffinity(0))) if device == 'cuda' else 0
        loader = torch.utils.data.DataLoader(
            Images(images, labels),
            batch,
            shuffle=True,
            drop_last=True,
            num_workers=workers,
            pin_memory=device == 'cuda',
        )
        while True:
            for x, y in loader:
                yield x.to(device), y.to(device)
    x = ((torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().float() / 255 - 0.5) / 0.25).to(
        device
    )
    y = torch.from_numpy(labels).long().to(device)
    if peer != 'eager':
        x = x.contiguous(memory_format=torch.channels_last)
    parts = [(x[i : i + batch], y[i : i + batch]) for i in range(0, len(x) - batch + 1, batch)]
    while True:
        yield from parts


def build(
    spec: Mapping[str, Any], images: np.ndarray, labels: np.ndarray
) -> tuple[Callable[[int], None], dict[str, Any]]:
    """`(work(steps), info)` of the peer `spec['peer']`; one step is done."""
    begin = time.perf_counter()
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = (
        spec['precision'] == 'tf32'
    )
    torch.backends.cudnn.benchmark = True
    peer, tuned = spec['peer'], spec['peer'] in ('channels_last', 'compile')
    student = network(spec['student'], spec['classes']).to(device)
    teacher = (
        network(spec['teacher'], spec['classes']).to(device).eval() if spec['teacher'] else None
    )
    if tuned:
        student = student.to(memory_format=torch.channels_last)
        teacher = teacher.to(memory_format=torch.channels_last) if teacher else None
    optimiser = torch.optim.SGD(
        student.parameters(), 0.05, 0.9, weight_decay=5e-4, fused=tuned or None
    )
    stream = batches(peer, images, labels, spec['batch'], device)
    half = torch.autocast(device, torch.bfloat16, enabled=spec['precision'] == 'bfloat16')

    def forward(x, y):
        with half:
            z = logits(student, x)
            if teacher is None:
                return F.cross_entropy(z.float(), y), z
            with torch.no_grad():
                targets = logits(teacher, x)
        soft = F.kl_div(
            F.log_softmax(z.float() / 4, 1),
            F.softmax(targets.float() / 4, 1),
            reduction='batchmean',
        )
        return 0.1 * F.cross_entropy(z.float(), y) + 0.9 * 16 * soft, z

    student.train()
    compute = torch.compile(forward) if peer == 'compile' else forward

    def work(steps: int) -> None:
        for _ in range(steps):
            x, y = next(stream)
            loss, z = compute(x, y)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            if not tuned:  # as the peers' meters do
                loss.item()
                top = z.topk(5, 1).indices == y[:, None]
                for k in (1, 5):
                    top[:, :k].any(1).float().mean().item()
        if device == 'cuda':
            torch.cuda.synchronize()

    work(1)
    return work, {'first_s': time.perf_counter() - begin, 'device': device}
