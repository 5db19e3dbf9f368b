"""What a recipe is: its parts and the whole, typed and frozen, and when two of them ask for the same run."""

import dataclasses
import hashlib
import json
from typing import Any, Literal

from patchword.core.errors import UsageError
from patchword.core.processes import TIMEOUT
from patchword.data.augment import Augment
from patchword.data.store import MEMORY_SHARE
from patchword.models.position import Resampling
from patchword.training.optimizer import OptimizerConfig, ScheduleConfig
from patchword.training.tune import rank_of

_MOST = 1e12
"""No budget is larger."""
_MOST_THREADS = 1024


def _check_least(part: Any, where: str, **least: int) -> None:
    for field, value in least.items():
        if getattr(part, field) < value:
            raise UsageError(f"{where}.{field}={getattr(part, field)} must be at least {value}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget:
    """How long to train. One of the last three may be asked for; `steps` is what it came to, and wins where given."""

    steps: int = 0
    """Updates."""
    epochs: float = 0.0
    """Passes over the training pictures."""
    minutes: float = 0.0
    """Of training and the looks at validation between; what comes before and after is not counted."""
    pflop: float = 0.0
    """Training FLOPs in units of 10¹⁵."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if not 0 <= getattr(self, field.name) <= _MOST:
                raise UsageError(f"budget.{field.name}={getattr(self, field.name)} must lie in 0…{_MOST:g}")
        if sum(value > 0 for value in (self.epochs, self.minutes, self.pflop)) > 1:
            raise UsageError("a budget is given in steps, epochs, minutes or PFLOP, in one of them only")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Regularization:
    """What keeps the model from learning the training pictures by heart, beside augmentation."""

    dropout: float = 0.0
    """After every dense layer but queries, keys and values, and after adding positions (Table 3)."""
    stochastic_depth: float = 0.0
    """The share of images that skip a branch of the last block; it grows linearly with depth from 0."""
    label_smoothing: float = 0.0
    """The share of the label's probability that is spread over all classes."""
    patch_dropout: float = 0.0
    """The share of patches left out of every training image (arXiv 2208.07220)."""
    average_decay: float = 0.0
    """Evaluate and save an exponential moving average of the weights; 0 takes the weights themselves."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if not 0 <= getattr(self, field.name) < 1:
                raise UsageError(f"regularization.{field.name}={getattr(self, field.name)} must lie in 0…1, below 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Balance:
    """What helps small classes where there are large ones, for one label a picture: one of the two, or some of each."""

    sampling: float = 0.0
    """How far pictures are drawn from all classes alike: 0 draws each picture as often as any other, 1 each class, 0.5 (the
    square root of its size) between. An epoch stays as long as it is, and within a class each picture comes as often as the
    others."""
    class_weights: float = 0.0
    """How far all classes count alike in the loss: 0 leaves it as it is, 1 divides each picture's loss by the size of its class,
    0.5 by the square root of it; all by the same factor then, so that the mean weight is 1."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if not 0 <= getattr(self, field.name) <= 1:
                raise UsageError(f"balance.{field.name}={getattr(self, field.name)} must lie in 0…1")
        if self.sampling + self.class_weights > 1:
            raise UsageError(
                f"balance.sampling={self.sampling} and balance.class_weights={self.class_weights} together turn large classes "
                "into small ones; a sum of 1 or less would be right"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loading:
    """How pictures come to the model."""

    in_memory: Literal["auto", "yes", "no"] = "auto"
    """Hold the decoded pictures, or decode them as they come; auto holds what `memory_share` allows, but not a large set of
    which the budget comes to a part. Large JPEGs differ a little: those that are streamed are decoded at 1/2, 1/4 or 1/8 of
    their size where that is enough for the model."""
    memory_share: float = MEMORY_SHARE
    """Decoded pictures are held when all splits take at most this share of the free memory; else they are streamed."""
    workers: int = -1
    """Processes that decode streamed pictures; −1 takes the number of cores less one, 0 decodes in a thread."""
    duplicates: Literal["auto", "yes", "no"] = "auto"
    """Look for exact duplicates across splits; auto does so for sets under 100,000 pictures."""

    def __post_init__(self) -> None:
        _check_least(self, "loading", workers=-1)
        if not 0 <= self.memory_share <= 1:
            raise UsageError(f"loading.memory_share={self.memory_share} must lie in 0…1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How often the validation split is looked at in training."""

    every_steps: int = 0
    """0 looks ten times in the run, or less often where that would take more than a fifth of the training."""
    batch_size: int = 0
    """Images at once; 0 takes what suits the caches. It changes nothing but speed."""
    final: Literal["test", "validation"] = "test"
    """The split that the final model is measured on; `validation` where something is chosen by it, so that test is not looked
    at."""
    mirror: bool = False
    """Let the model see each picture and its mirror image, and take the mean of what it says: twice the time."""

    def __post_init__(self) -> None:
        _check_least(self, "evaluation", every_steps=0, batch_size=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compute:
    """How the arithmetic is done: for speed and memory, not for what is computed."""

    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of products in training: auto takes bfloat16 on GPUs that have it. Weights and their updates are always float32."""
    recompute: bool = False
    """Keep the outputs of blocks alone and compute what is in between again in the backward pass (activation
    checkpointing): about a third more time, far less memory, the same gradients."""
    compile: bool = False
    """Let `torch.compile` fuse each block. It needs a C++ compiler, takes a minute or more at the start, rounds otherwise."""
    sharded: Literal["auto", "yes", "no"] = "auto"
    """Share weights, gradients and the optimizer's state out over all processes (FSDP2); auto does where one device has no
    room for them. With a single process nothing is shared."""
    timeout: float = TIMEOUT
    """Seconds that a process waits for the others before it gives them up."""

    def __post_init__(self) -> None:
        if not 1 <= self.timeout <= 86400:
            raise UsageError(f"compute.timeout={self.timeout} must lie in 1…86400 seconds")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Guard:
    """What happens when the training goes wrong. By default it stops before the update that would spoil the weights."""

    spike: float = 0.0
    """A loss so many times the median of the last hundred steps counts as wrong, as one that is not finite always does;
    0 looks for none."""
    rollbacks: int = 0
    """How many times to answer by going back to the newest checkpoint and leaving the step's pictures out."""

    def __post_init__(self) -> None:
        _check_least(self, "guard", rollbacks=0)
        if not (self.spike == 0 or 1 < self.spike <= _MOST):
            raise UsageError(f"guard.spike={self.spike} must be 0 or more than 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Teacher:
    """A model whose answers are learned beside the labels (distillation), or in their place where there are none."""

    weights: str = ""
    """A run or model folder, or weights of others, of the same classes; empty: no teacher."""
    share: float = 0.5
    """The teacher's share of the target of a picture that has a label."""
    temperature: float = 1.0
    """What the teacher's logits are divided by: above 1 its answers are softer."""
    unlabelled: str = ""
    """More pictures to learn from, whose labels are the teacher's: a folder of them, or any data set (its training pictures, if
    it came with splits). Exact copies of what is measured on, or is in train with a label, are left out, unless
    `loading.duplicates` looks for none."""
    confidence: float = 0.0
    """Unlabelled pictures of whose class the teacher is less sure are left out (Noisy Student: 0.3)."""

    def __post_init__(self) -> None:
        for field, low, high in (("share", 0, 1), ("temperature", 1e-3, 1e3), ("confidence", 0, 1)):
            if not low <= getattr(self, field) <= high:
                raise UsageError(f"teacher.{field}={getattr(self, field)} must lie in {low:g}…{high:g}")
        if self.unlabelled and not self.weights:
            raise UsageError("teacher.unlabelled needs somebody who labels them; teacher.weights names the teacher")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What survives a crash."""

    every_steps: int = 0
    """0 saves ten times in the run."""
    every_minutes: float = 15.0
    """At least so often, by the clock."""
    keep: int = 2
    """How many of the newest checkpoints stay."""

    def __post_init__(self) -> None:
        _check_least(self, "checkpoint", every_steps=0, keep=1)
        if not 0 < self.every_minutes <= _MOST:
            raise UsageError(f"checkpoint.every_minutes={self.every_minutes} must be greater than 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """The whole of it. Empty and zero mean "choose for me"; a run's own `recipe.toml` leaves nothing open."""

    name: str = ""
    """The preset it came from."""
    data: str = ""
    """A folder, a table, a named set or `formula:…`."""
    train_images: int = 0
    """Train on so many pictures only, of each class its share; a smaller number takes a part of a larger one's. 0: all."""
    train_images_seed: int = 0
    """Which pictures these are: another number takes others."""
    validation_share: float = 0.0
    """Take so large a share of train, of each class alike, for validation where the set has none: to choose by, so that test
    chooses nothing. The pictures are not learned from. Where the set has validation and no test, its validation is test then."""
    learn_validation: bool = False
    """Learn from the pictures of validation, too: when nothing is left to be chosen by them."""
    model: dict[str, Any] = dataclasses.field(default_factory=dict)
    """`name`, one of `patchword models`, and fields of the model's configuration, such as `pool`. With `init`, another
    `patch_size` resamples a ViT's projection, `hidden_head=true` keeps the tanh layer of a pre-training head under the new
    head, and the others must be what the weights say."""
    init: str = "none"
    """Where the weights come from: `none`; `auto`, those that come with the package where architecture and size fit, else the
    hub's for a named model if they are at hand, else none; `shipped:small-hybrid` or `shipped:small-plain`, these wherever; a
    run or model folder; or weights of others as `load_model` takes them."""
    zero_init_residual: bool = False
    """Let every block of a new encoder begin as the identity: the last layers of attention and of MLP are zero, but for the
    attention by which a class token first sees the picture."""
    resampling: Resampling = "official"
    """How the position embedding of `init` goes to another grid: `official` (linear, corners kept) or `bicubic` (as timm)."""
    tune: str = "all"
    """What learns: `all`; `head`, before which the body is as in evaluation; `attention`, that of the encoder's blocks, and
    the head (arXiv 2203.09795); or `lora:8`, updates of rank 8 to its queries, keys, values and outputs, and the head (arXiv
    2106.09685; α is the rank; merged into the weights at the end). The rest stands still. A PFLOP is counted as for `all`,
    which is more than is done."""
    image_size: tuple[int, int] = (0, 0)
    """Height and width of the model's input, in pixels."""
    preprocessing: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Fields of `Preprocessing`; those not given come with the weights or are chosen for the data. The number of means is
    that of the model's channels: a new model for grey pictures has one, weights of `init` keep theirs (for RGB, they see grey
    pictures as three equal colours) unless `mean` and `std` say another number."""
    objective: Literal["", "softmax", "sigmoid", "masked-patch", "masked-autoencoder"] = ""
    """`softmax` for one label a picture, `sigmoid` for several; `masked-patch` (appendix B.1.2) and `masked-autoencoder`
    (arXiv 2111.06377) learn from the pictures alone, and leave a model without a head for `init`."""
    seed: int = 0
    """Of the initial weights, of the order of the pictures and of every chance in training."""
    batch_size: int = 256
    """Images of one update; not more than there are in train."""
    micro_batch: int = 0
    """Images that pass through the model at once; their gradients add up to the batch's. 0 takes what suits the caches. Batch
    norm takes its statistics over these images, so for models that have it another number trains another model."""
    device: str = "auto"
    """One of torch's names; auto is the first GPU, or else the CPU."""
    threads: int = 0
    """CPU threads of all processes on a machine together; 0 takes torch's choice. Another number rounds sums differently and,
    where `micro_batch` is left open, may come to another one."""
    budget: Budget = Budget()
    augment: Augment = Augment()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    regularization: Regularization = Regularization()
    balance: Balance = Balance()
    teacher: Teacher = Teacher()
    evaluation: Evaluation = Evaluation()
    checkpoint: Checkpoint = Checkpoint()
    loading: Loading = Loading()
    compute: Compute = Compute()
    guard: Guard = Guard()

    def __post_init__(self) -> None:
        for field, least in (
            ("batch_size", 1),
            ("micro_batch", 0),
            ("threads", 0),
            ("seed", 0),
            ("train_images", 0),
            ("train_images_seed", 0),
        ):
            if getattr(self, field) < least:
                raise UsageError(f"{field}={getattr(self, field)} must be at least {least}")
        if self.threads > _MOST_THREADS:
            raise UsageError(f"threads={self.threads} must be at most {_MOST_THREADS}")
        if not 0 <= self.validation_share < 1:
            raise UsageError(f"validation_share={self.validation_share} must lie in 0…1, below 1")
        if min(self.image_size) < 0:
            raise UsageError(f"image_size={self.image_size} must not be negative")
        rank_of(self.tune)

    def difference(self, stored: "Recipe") -> str | None:
        """The first field in which a request differs from the stored recipe of a run; None if it asks for the same.

        What the request leaves open does not differ from what the run chose for it, and what makes no difference to
        the weights or the log may be another.
        """
        asked = dataclasses.asdict(self)
        if self.augment.crop == "auto":
            del asked["augment"]["shift_pixels"]  # chosen with the crop, whatever was asked for
        return _difference(asked, dataclasses.asdict(stored), "")

    def going_on(self, asked: "Recipe") -> "Recipe":
        """The recipe of a run that is resumed by a request for the same: what makes no difference is as asked for now."""
        parts: dict[str, dict[str, Any]] = {}
        for path in NO_DIFFERENCE:
            part, _, field = path.partition(".")
            value = getattr(getattr(asked, part), field)
            if not (path in LEFT_OPEN and value == LEFT_OPEN[path]):
                parts.setdefault(part, {})[field] = value
        return dataclasses.replace(
            self, **{part: dataclasses.replace(getattr(self, part), **fields) for part, fields in parts.items()}
        )

    def identity(self) -> str:
        """A hash of all that makes a difference to the weights and the log."""
        values = dataclasses.asdict(self)
        for path in NO_DIFFERENCE:
            part, _, field = path.partition(".")
            del values[part][field]
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()

    def to_toml(self) -> str:
        """The recipe as TOML, every field written out."""
        import tomli_w

        return tomli_w.dumps(dataclasses.asdict(self))


LEFT_OPEN: dict[str, Any] = {
    "name": "",
    "init": "auto",
    "image_size": (0, 0),
    "objective": "",
    "micro_batch": 0,
    "device": "auto",
    "threads": 0,
    "augment.crop": "auto",
    "budget.steps": 0,
    "evaluation.every_steps": 0,
    "evaluation.batch_size": 0,
    "checkpoint.every_steps": 0,
    "compute.precision": "auto",
    "loading.in_memory": "auto",
    "loading.workers": -1,
}
"""Fields whose value means "choose for me"; the run replaces each."""


NO_DIFFERENCE = (
    "checkpoint.every_steps",
    "checkpoint.every_minutes",
    "checkpoint.keep",
    "compute.timeout",
    "loading.workers",
)
"""Fields that make no difference to the weights or the log: they may change when a run is resumed."""


def _difference(asked: dict[str, Any], stored: dict[str, Any], where: str) -> str | None:
    for name, value in asked.items():
        path = where + name
        if path in NO_DIFFERENCE:
            continue
        if isinstance(value, dict):
            found = _difference(value, stored.get(name, {}), path + ".")
            if found:
                return found
        elif name not in stored or (value != stored[name] and not (path in LEFT_OPEN and value == LEFT_OPEN[path])):
            return f"{path} is {value!r}, not {stored.get(name)!r}"
    return None
