"""Scikit-learn's digits: a resnet8 teaches a small CNN that has 5 labels a
class; the first thing to run.

Distillation: Hinton et al. 2015, arXiv:1503.02531; the student also learns from the teacher's
outputs on the 970 images whose labels it does not have, which is what makes the difference.

    python -m kd_jax.main --config=configs/digits.py        # few labels: distillation plainly pays
    python -m kd_jax.main --config=configs/digits.py:all    # all labels: it need not

Hardware and duration: two CPU cores, 1 minute 19 seconds. Expected (5 seeds, test top-1): README,
"First run". The learning rates of alone and student were each chosen on the validation split among
0.02, 0.05 and 0.1, in each regime.
"""

from kd_jax import config as common


def get_config(argument: str = ''):
    regime = common.arguments(argument, regime=('few', 'all'))['regime']
    config = common.study()
    config.seeds = (0, 1, 2, 3, 4)
    config.data.source = 'digits'
    config.data.val_share = 0.15
    config.augment.crop = 1

    config.runs.teacher = common.run(config, 'resnet8')
    config.runs.alone = common.run(config, 'cnn')
    config.runs.student = common.run(config, 'cnn', common.distillation(alpha=0.9, tau=4.0))
    config.runs.student.teachers = ('teacher',)
    for run in config.runs.values():
        run.epochs = 60.0
        run.eval_every = 10.0
    config.runs.teacher.epochs = 30.0
    config.runs.alone.optim.learning_rate = 0.05 if regime == 'few' else 0.1
    config.runs.student.optim.learning_rate = 0.02
    for run in (config.runs.alone, config.runs.student):
        run.model.width = 0.25
        if regime == 'few':
            run.data.labels_per_class = 5
    return config
