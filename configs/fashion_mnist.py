"""Fashion-MNIST (Xiao et al. 2017, arXiv:1708.07747): a resnet8 teaches a small CNN, with few labels or with all.

Distillation: Hinton et al. 2015, arXiv:1503.02531, with the student's unlabelled images as transfer set.

    apt-get install dataset-fashion-mnist          # or --config.data.path=DIR with the four idx files
    python -m kd_jax.main --config=configs/fashion_mnist.py            # 20 labels a class for alone and student
    python -m kd_jax.main --config=configs/fashion_mnist.py:all        # all labels for everybody

Hardware, duration, expected numbers: README, "Results". With few labels the learning rates of alone and student were each
chosen on the validation split among 0.02, 0.05 and 0.1 (one seed, three epochs); with all labels they are not tuned.
"""

from configs import common


def get_config(argument: str = ''):
    regime = common.arguments(argument, regime=('few', 'all'))['regime']
    config = common.study()
    config.seeds = (0, 1, 2)
    config.data.source = 'idx'
    config.data.path = '/usr/share/datasets/fashion-mnist'
    config.augment.crop = 2
    config.augment.flip = True

    config.runs.teacher = common.run(config, 'resnet8')
    config.runs.alone = common.run(config, 'cnn')
    config.runs.student = common.run(config, 'cnn', common.distillation(alpha=0.9, tau=4.0))
    config.runs.student.teachers = ('teacher',)
    for run in config.runs.values():
        run.batch_size = 128
        run.epochs = 2.0
    config.runs.alone.optim.learning_rate = 0.02 if regime == 'few' else 0.05
    config.runs.student.optim.learning_rate = 0.05
    for run in (config.runs.alone, config.runs.student):
        run.model.width = 0.25
        if regime == 'few':
            run.data.labels_per_class = 20
    return config
