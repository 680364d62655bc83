"""Every field of a study and of a run, once, with its default. Config files start from `study()` and `run()`."""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from kd_jax import objectives
from kd_jax.errors import UserError


def study() -> ConfigDict:
    """What the runs of a study share. A run's `seeds`, `precision`, `data` and `augment` follow these unless it has its own."""
    c = ConfigDict()
    c.seeds = (0,)  # each run trains once a seed; a student's teacher is the one of the same seed
    c.parallel = 'auto'  # 'jit', 'pmap', or 'auto': jit on one device, pmap on several
    c.devices = 0  # how many of the devices; 0 = all (of a CPU's cores, as many as get 16 images of a batch each)
    c.precision = 'float32'  # of the networks' arithmetic: 'float32', 'tf32' or 'bfloat16'; parameters and losses are float32
    c.steps_per_dispatch = 0  # steps in one call of the compiled program; 0 = 4 on a CPU, 32 elsewhere
    c.fast = True  # False turns off what only makes a CPU faster (layers in other forms, allocator, cores as devices)
    c.profile = ()  # (first, last) step of which each run writes a trace to <workdir>/<run>/seed<k>/profile
    c.tensorboard = True  # write TensorBoard events
    c.wandb = ''  # Weights & Biases project; '' = off

    c.data = ConfigDict()
    c.data.source = 'digits'  # 'digits', 'idx' (MNIST format), 'npz' or 'tfds'
    c.data.name = ''  # TFDS name, such as 'cifar10'
    c.data.path = ''  # directory or file; '' = the source's default
    c.data.val_share = 0.1  # share of train that becomes validation where the source has none
    c.data.val_seed = 0  # which images those are
    c.data.labels_per_class = 0  # keep only so many training labels a class; 0 = all; the other images stay, unlabelled
    c.data.labels_seed = 0  # which labels those are
    c.data.mean = ()  # per channel, for images in 0..1; () = of the training images
    c.data.std = ()  # likewise

    c.augment = ConfigDict()
    c.augment.crop = 0  # pixels of zero padding before a random crop
    c.augment.flip = False  # horizontal
    c.augment.rotate = 0.0  # degrees, uniform in +- this
    c.augment.cutout = 0  # side in pixels of the square that is blanked
    c.augment.mixup = 0.0  # Beta(mixup, mixup) share of a second image; 0 = off

    c.teachers = ConfigDict()  # name -> imported(): PyTorch weights that teach
    c.runs = ConfigDict()  # name -> run()
    return c


def run(of: ConfigDict, model: str, objective: ConfigDict | None = None) -> ConfigDict:
    """A run of the study `of` that trains `model`; without an objective, on the labels alone."""
    c = ConfigDict()
    c.model = ConfigDict()
    c.model.name = model  # a name in kd_jax.models.MODELS
    c.model.width = placeholder(float)  # channel multiplier; None = the model's own
    c.model.depth = placeholder(float)  # multiplier of the blocks in each stage; None = the model's own
    c.model.kernel = placeholder(int)  # of the blocks' 3x3 convolutions; None = the model's own
    c.model.dropout = placeholder(float)  # rate before the classifier; None = the model's own
    c.model.adapter = placeholder(int)  # hidden channels of a residual adapter after every block; None = no adapters
    c.model.heads = placeholder(tuple)  # stages with an auxiliary head, such as (1, 2); None = none
    c.model.average_heads = placeholder(bool)  # predict the average of all heads' probabilities
    c.model.aux = placeholder(bool)  # Inception-v3 and GoogLeNet: with their own auxiliary heads; None = the model's own
    c.objective = labels() if objective is None else objective  # one entry a term
    c.teachers = ()  # runs ('teacher', 'teacher/seed0'), imported teachers, workdirs; 'self:average', 'self:past', 'self:peer'
    c.teacher_weights = ()  # one a teacher; () = equal
    c.past_epochs = 1.0  # how often the teacher 'self:past' becomes what the student is then
    c.peer = ''  # model of the second student, 'self:peer'; '' = the same as the first
    c.soft_targets = 'live'  # 'live': the teachers run in every step; 'exact' or '8': their logits for all (8) views are kept
    c.soft_targets_dtype = 'float16'  # in which those are kept: 'float16' or 'float32'
    c.soft_targets_top_k = 0  # keep so many classes only; 0 = all
    c.init = ''  # start from this run, workdir or file of PyTorch weights instead of at random
    c.population = ''  # 'objective.kl.tau=1,4; seed=0,1': a run for each combination, trained together; '' = one run
    c.order_seed = placeholder(int)  # of the order and the views of the images; None = the seed
    c.batch_size = 64  # over all devices
    c.epochs = 30.0  # passes over the training images; fractions count
    c.eval_every = 1.0  # epochs between validations, each with a checkpoint
    c.patience = 0  # stop after so many validations without a better top-1; 0 = never
    c.select = 'best'  # weights that are tested and that teach: 'best' on validation, or 'last'

    c.optim = ConfigDict()
    c.optim.name = 'sgd'  # 'sgd', 'adam' or 'adamw'
    c.optim.learning_rate = 0.1  # at its peak
    c.optim.teacher_factor = 0.0  # if not 0: the learning rate is this times the (first) teacher's
    c.optim.schedule = 'cosine'  # 'cosine', 'step' or 'constant'
    c.optim.warmup_epochs = 0.0  # linear, from 0
    c.optim.step_epochs = ()  # schedule 'step': when the learning rate drops
    c.optim.step_factor = 0.1  # and by what factor
    c.optim.final_factor = 0.0  # schedule 'cosine': where it ends, relative to its peak
    c.optim.momentum = 0.9  # SGD
    c.optim.nesterov = False  # SGD
    c.optim.b1 = 0.9  # Adam, AdamW
    c.optim.b2 = 0.999  # Adam, AdamW
    c.optim.eps = 1e-8  # Adam, AdamW
    c.optim.weight_decay = 5e-4  # SGD, Adam: added to the gradient as PyTorch does; AdamW: decoupled
    c.optim.decay_norm_and_bias = True  # whether norms and biases decay too (in the CIFAR tables they do)
    c.optim.clip_norm = 0.0  # largest global gradient norm; 0 = off
    c.optim.freeze = ()  # regular expressions from the start of parameter paths, such as 'stem', 'stage[12]'
    c.optim.train = ()  # likewise: if any, only what these match trains, such as 'head', '.*_adapter'
    c.optim.ema_decay = 0.0  # average the weights, and evaluate the average; 0 = off
    c.optim.accumulate = 1  # process a batch in so many parts

    for shared in ('data', 'augment'):
        c[shared] = ConfigDict({field: of[shared].get_oneway_ref(field) for field in of[shared]})
    for shared in ('seeds', 'precision'):
        c[shared] = of.get_oneway_ref(shared)
    return c


def follow(study: ConfigDict) -> ConfigDict:
    """`study`, in which what the runs have in common with it follows it from now on, as in those that `run` makes."""
    for run in study.runs.values():
        for shared in ('data', 'augment'):
            for field in study[shared]:
                if run[shared][field] == study[shared][field]:
                    run[shared][field] = study[shared].get_oneway_ref(field)
        for shared in ('seeds', 'precision'):
            if run[shared] == study[shared]:
                run[shared] = study.get_oneway_ref(shared)
    return study


def imported(torch: str, model: str) -> ConfigDict:
    """A teacher whose weights are a file of PyTorch's; name it in `study().teachers`."""
    c = ConfigDict()
    c.torch = torch  # .pth, .pt or .safetensors: a state dict, or a checkpoint that holds one
    c.model = model  # a name in kd_jax.models.MODELS
    c.size = 0  # side of the images it sees, in pixels; 0 = ImageNet models: their usual one, small-image models: the data's
    c.mean = ()  # per channel, for images in 0..1, as it was trained; () = ImageNet's, for ImageNet's models
    c.std = ()  # likewise
    return c


def term(name: str, **fields) -> ConfigDict:
    """All fields of the objective `name`, with `fields` changed, so that each can be overridden on the command line."""
    return ConfigDict(objectives.defaults(name) | fields)


def labels(**fields) -> ConfigDict:
    """Cross-entropy with the labels alone."""
    return ConfigDict({'cross_entropy': term('cross_entropy', **fields)})


def distillation(alpha: float = 0.9, tau: float = 4.0) -> ConfigDict:
    """Hinton et al. 2015: (1 - alpha) CE + alpha tau^2 KL."""
    return ConfigDict({'cross_entropy': term('cross_entropy', weight=1 - alpha), 'kl': term('kl', weight=alpha, tau=tau)})


def arguments(text: str, **allowed: tuple[str | None, ...]) -> dict[str, str | None]:
    """The argument of a config, `configs/x.py:key=value,key=value`, as a dict.

    allowed: key -> its values, the default first (None: what it is if left out). A value alone means the first key that
    allows it.

    Raises:
      UserError: for another key or value.
    """
    chosen = {key: values[0] for key, values in allowed.items()}
    for part in filter(None, text.split(',')):
        key, equals, value = part.partition('=')
        if not equals:
            value, key = key, next((k for k, values in allowed.items() if part in values), '')
        if key not in allowed or value not in allowed[key]:
            raise UserError(
                f'unknown config argument {part!r}; allowed: '
                + '; '.join(f'{k}={" | ".join(filter(None, values))}' for k, values in allowed.items())
            )
        chosen[key] = value
    return chosen
