"""Fashion-MNIST (Xiao et al. 2017, arXiv:1708.07747): a resnet8 teaches a small student,
with few labels or with all.

Distillation: Hinton et al. 2015, arXiv:1503.02531, with the student's
unlabelled images as transfer set.

    # or --config.data.path=DIR with the four idx files
    apt-get install dataset-fashion-mnist
    # 20 labels a class for alone and student
    python -m kd_jax.main --config=configs/fashion_mnist.py
    # all labels for everybody
    python -m kd_jax.main --config=configs/fashion_mnist.py:all
    # any method of kd_jax/methods.py, and every one of them in one study
    python -m kd_jax.main --config=configs/fashion_mnist.py:method=at
    python -m kd_jax.main --config=configs/fashion_mnist.py:method=all

Hardware, duration, expected numbers: docs/results.md. Where no method is named the
student is a small CNN and learns by `kl`. With few labels the learning rates of alone and student
were each chosen on the validation split among 0.02, 0.05 and 0.1 (one seed, three epochs); with all
labels they are not tuned. Where a method is named, `kl` too, all labels are there and the student
is a resnet8 a quarter as wide, for the papers' weights were made for networks with BatchNorm. It
trains for one epoch; nothing is tuned. `few,method=NAME` leaves it 20 labels a class: as the
unlabelled images take part in every epoch, cross entropy then sees each label once.
"""

from kd_jax import config as common
from kd_jax import methods


def get_config(argument: str = ''):
    chosen = common.arguments(
        argument, regime=(None, 'few', 'all'), method=(None, *methods.METHODS, 'all')
    )
    method = chosen['method']
    few = chosen['regime'] == 'few' or not (chosen['regime'] or method)
    config = common.study()
    config.seeds = (0, 1, 2)
    config.data.source = 'idx'
    config.data.path = '/usr/share/datasets/fashion-mnist'
    config.augment.crop = 2
    config.augment.flip = True

    def make(objective=None, teacher=False):
        run = common.run(config, 'resnet8' if teacher or method else 'cnn', objective)
        run.batch_size = 128
        run.epochs = 2.0
        if not teacher:
            run.optim.learning_rate = 0.05
            run.model.width = 0.25
            if method:
                run.epochs = 1.0
            if few:
                run.data.labels_per_class = 20
        return run

    config.runs.teacher, config.runs.alone = make(teacher=True), make()
    if few and not method:
        config.runs.alone.optim.learning_rate = 0.02
    if method == 'all':
        methods.add_all(config, make)
    else:
        methods.add(config, method or 'kl', make)
    return config
