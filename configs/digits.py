"""First run (Hinton et al. 2015, arXiv:1503.02531, on scikit-learn's digits)."""

from configs import common


def get_config(regime: str = 'few'):
    """`regime`: 'few' (5 labels a class; the student also learns from the unlabelled images) or 'all'."""
    config = common.study()
    config.seeds = (0, 1, 2, 3, 4)
    config.data.source = 'digits'
    config.data.val_share = 0.15
    config.augment.crop = 1
    config.runs.teacher = common.run(config, 'resnet8')
    config.runs.alone = common.run(config, 'cnn')
    config.runs.student = common.run(config, 'cnn', common.distillation(alpha=0.9, tau=4.0))
    config.runs.student.teachers = ('teacher',)
    config.runs.teacher.epochs = 30.0
    for run in (config.runs.alone, config.runs.student):
        run.model.width = 0.25
        run.epochs = 60.0
        if regime == 'few':
            run.data.labels_per_class = 5
    for name in config.runs:
        config.runs[name].eval_every = 10.0
    return config
