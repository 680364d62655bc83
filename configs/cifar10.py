"""CIFAR-10: a resnet56 teaches the tables' MobileNetV2 x0.5, through TensorFlow Datasets.

Hinton et al. 2015 (arXiv:1503.02531) with the recipe of the CIFAR tables
(RepDistiller, arXiv:1910.10699).

    python -m kd_jax.main --config=configs/cifar10.py [--config.data.path=TFDS_DIRECTORY]

Duration: 200 epochs a run, meant for one accelerator; `--config.seeds='(0,)'` for one seed.
Expected: other code bases report resnet56 93.6-94.4 %, MobileNetV2 x0.5 92.9 % alone (with all
50,000 images; here a tenth is kept for validation). Not yet measured with this code.
"""

from kd_jax import config as common


def get_config():
    config = common.study()
    config.seeds = (0, 1, 2)
    config.data.source = 'tfds'
    config.data.name = 'cifar10'
    config.augment.crop = 4
    config.augment.flip = True

    config.runs.teacher = common.run(config, 'resnet56')
    config.runs.alone = common.run(config, 'cifar_mobilenet_v2_x0.5')
    config.runs.student = common.run(
        config, 'cifar_mobilenet_v2_x0.5', common.distillation(alpha=0.9, tau=4.0)
    )
    config.runs.student.teachers = ('teacher',)
    for run in config.runs.values():
        run.batch_size = 128
        run.epochs = 200.0
        run.eval_every = 5.0
        run.optim.warmup_epochs = 5.0
    return config
