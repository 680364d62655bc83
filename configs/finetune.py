"""A network that was trained on ImageNet in PyTorch is fine-tuned on your images and teaches a
small one.

    python -m kd_jax.main --config=configs/finetune.py \
        --config.runs.teacher.init=resnet50.pth \
        --config.data.source=npz --config.data.path=my_images.npz

The file holds torchvision's weights (a state dict, .pth or .safetensors). The teacher sees your
images in the weights' own size and with their own normalisation (224 x 224, ImageNet's mean and
std) unless `runs.teacher.size`, `data.mean` or `data.std` say otherwise; its head starts afresh.
Another teacher: `--config.runs.teacher.model.name=resnet18`. The students see the images as they
are; `--config.runs.student.size=96` (and `alone`) resizes them.

Distillation: Hinton et al. 2015, arXiv:1503.02531; the teacher sees what the student sees (Beyer et
al. 2022, arXiv:2106.05237). Duration: 10 epochs of the teacher and 60 of each student, meant for
one accelerator. Expected numbers: those of your images; compare `student` with `alone`.
"""

from kd_jax import config as common


def get_config():
    config = common.study()
    config.data.source = 'npz'
    config.augment.flip = True

    teacher = common.run(config, 'resnet50')
    teacher.init = 'resnet50.pth'
    teacher.epochs = 10.0
    teacher.optim.learning_rate = 0.005
    config.runs.teacher = teacher

    config.runs.alone = common.run(config, 'mobilenet_v3_small')
    config.runs.student = common.run(
        config, 'mobilenet_v3_small', common.distillation(alpha=0.9, tau=4.0)
    )
    config.runs.student.teachers = ('teacher',)
    for name in ('alone', 'student'):
        run = config.runs[name]
        run.epochs = 60.0
        run.optim.learning_rate = 0.05
        run.optim.warmup_epochs = common.share(run, 0.05)
    for run in config.runs.values():
        run.batch_size = 64
        run.optim.weight_decay = 1e-4
    return config
