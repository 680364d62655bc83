"""A teacher from PyTorch: a resnet20 that was trained there teaches a small
MobileNetV2, on Fashion-MNIST.

Distillation: Hinton et al. 2015, arXiv:1503.02531, with the student's
unlabelled images as transfer set.

    apt-get install dataset-fashion-mnist     # or --config.data.path=DIR with the four idx files
    python -m kd_jax.main --config=configs/pretrained.py

The teacher's weights lie beside this file (made by tests/golden/train_teacher.py, in PyTorch, on
32 x 32 colour images); the student sees 28 x 28 grey ones, and the same view reaches the teacher
resized, in three channels, with its own normalisation. With weights of your own, say ImageNet's
fine-tuned on your classes, and your own images:

    python -m kd_jax.main --config=configs/pretrained.py \
        --config.teachers.teacher.torch=resnet50.pth --config.teachers.teacher.model=resnet50 \
        --config.data.source=npz --config.data.path=my_images.npz ...

The student and the same network alone have 20 labels a class. Hardware, duration, expected
numbers: docs/results.md.
"""

from pathlib import Path

from kd_jax import config as common


def get_config():
    config = common.study()
    config.seeds = (0, 1, 2)
    config.data.source = 'idx'
    config.data.path = '/usr/share/datasets/fashion-mnist'
    config.data.labels_per_class = 20
    config.augment.crop = 2
    config.augment.flip = True

    config.teachers.teacher = common.imported(
        str(Path(__file__).with_name('weights') / 'fashion_mnist_resnet20.pth'), 'resnet20'
    )
    config.teachers.teacher.size = 32
    config.teachers.teacher.mean = (0.2, 0.2, 0.2)
    config.teachers.teacher.std = (0.32, 0.32, 0.32)

    config.runs.alone = common.run(config, 'cifar_mobilenet_v2')
    config.runs.student = common.run(
        config, 'cifar_mobilenet_v2', common.distillation(alpha=0.9, tau=4.0)
    )
    config.runs.student.teachers = ('teacher',)
    for run in config.runs.values():
        run.model.width = 0.25
        run.batch_size = 64
        run.epochs = 0.5
        run.eval_every = 0.125
        run.optim.learning_rate = 0.05
    return config
