"""The arms of the paper's experiments: which models, what they begin with and what they learn, at a scale."""

from typing import Any

from patchword.data.sources import open_data
from patchword.data.vtab import LITE, LITE_TASKS, PREFIX, TASKS
from patchword.studies import inside, vtab
from patchword.studies.experiment import Arm, Measured, Scale, Stage
from patchword.studies.scales import PICTURES


def on(scale: Scale, role: str) -> str:
    """The data set of a role."""
    return scale.sets[role]


def _tuned(scale: Scale, **stage: Any) -> Stage:
    return Stage(data=on(scale, "tune"), images=scale.few, **stage)


def _alone(scale: Scale) -> Stage:
    """What a model learns before it is tuned where it begins with nothing: the same pictures, for as much as others pre-train."""
    return Stage(data=on(scale, "tune"), images=scale.few, recipe=scale.alone_recipe)


def of_tuning(scale: Scale) -> str:
    pictures = f"{scale.few:,} pictures of " if scale.few else ""
    return f"accuracy in % on test after tuning on {pictures}{on(scale, 'tune')}"


def positions(scale: Scale) -> list[Arm]:
    kinds = {"none": "no positions", "1d": "1-D", "2d": "2-D", "relative": "relative"}
    wish = {kind: {"model": {"position": kind, "pool": "token"}} for kind in kinds}
    return [
        Arm(
            label=label,
            series="positions",
            model=scale.models["plain"],
            before=Stage(data=on(scale, "pretrain"), changes=wish[kind]),
        )
        for kind, label in kinds.items()
    ]


def insides(scale: Scale) -> list[Arm]:
    """Two ViTs with learned positions, and the same networks untrained; the first ones are the `1-D` of `positions`."""
    return [
        Arm(
            label=f"{model}{' untrained' if untrained else ''}, {figure}",
            series=figure,
            model=model,
            before=Stage(data=on(scale, "pretrain"), changes={"model": {"position": "1d", "pool": "token"}}),
            inside=figure,
            untrained=untrained,
        )
        for figure in inside.FIGURES
        for model in (scale.models["plain"], scale.models["large"])
        for untrained in (False, True)
    ]


def patches(scale: Scale) -> list[Arm]:
    """As many looks at each picture for all: smaller patches cost more."""
    size = scale.models["plain"].partition("/")[0]
    sides = (16, 32) if scale.name == "full" else (4, 8, 16)
    return [
        Arm(
            label=f"{size}/{side}",
            series="patches",
            model=f"{size}/{side}",
            before=Stage(data=on(scale, "pretrain"), steps=scale.steps),
        )
        for side in sides
    ]


def resolutions(scale: Scale) -> list[Arm]:
    """As many looks at each picture for both: the higher resolution costs more."""
    sides = (224, 384) if scale.name == "full" else (scale.image_size, scale.image_size * 3 // 2)
    return [
        Arm(
            label=f"tuned at {side} px",
            series="resolution",
            published=f"B/16 at {theirs}",
            model=scale.models["plain"],
            before=Stage(data=on(scale, "pretrain")),
            after=_tuned(scale, image_size=side, steps=scale.steps and scale.steps // 3),
        )
        for side, theirs in zip(sides, (224, 384), strict=True)
    ]


def optimizers(scale: Scale) -> list[Arm]:
    sgd = {"optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4}}
    return [
        Arm(
            label=f"{scale.models[role]}, {word}",
            series=scale.models[role],
            model=scale.models[role],
            published=f"{theirs}, {word}",
            before=Stage(data=on(scale, "pretrain"), changes=changes),
            after=_tuned(scale),
        )
        for role, theirs in (("resnet", "R50x1"), ("resnet-large", "R152x2"))
        for word, changes in (("Adam", {}), ("SGD", sgd))
    ]


def masked(scale: Scale) -> list[Arm]:
    """The same FLOPs of pre-training without and with labels."""
    data, model = on(scale, "pretrain"), scale.models["plain"]
    changes: dict[str, Any] = {"objective": "masked-patch"}
    if scale.name == "full":  # appendix B.1.2
        changes |= {"optimizer": {"lr": 2e-4}, "schedule": {"decay": "cosine"}}
    starts = {
        "from nothing": _alone(scale),
        "masked patches": Stage(data=data, changes=changes),
        "supervised": Stage(data=data),
    }
    return [
        Arm(label=label, series="starts", model=model, before=before, after=_tuned(scale))
        for label, before in starts.items()
    ]


def _subset(scale: Scale, count: int) -> tuple[str, float]:
    """What a subset is called, and where it stands on an axis of pictures."""
    whole = PICTURES.get(on(scale, "pretrain"))
    if whole is None and not count:
        whole = len(open_data(on(scale, "pretrain")).splits["train"])
    return (f"{count:,}" if count else "all"), float(count or whole or 0)


def datasets(scale: Scale) -> list[Arm]:
    models = [scale.models[role] for role in ("plain", "large", "resnet-large")]
    arms = []
    for model in models:
        label = f"{model}, from nothing"
        arms.append(Arm(label=label, series=model, x=0.0, model=model, before=_alone(scale), after=_tuned(scale)))
        for index, count in enumerate(scale.subsets[-3:]):
            called, _ = _subset(scale, count)
            before = Stage(data=on(scale, "pretrain"), images=count)
            arms.append(
                Arm(
                    label=f"{model}, {called}",
                    series=model,
                    x=float(index + 1),
                    model=model,
                    before=before,
                    after=_tuned(scale),
                )
            )
    return arms


def few_shots(scale: Scale) -> list[Arm]:
    """Subsets that lie in one another, no more regularisation for the smaller ones, features measured as they stand."""
    arms = []
    for model in (scale.models[role] for role in ("plain", "large", "resnet", "resnet-large")):
        for count in scale.subsets:
            called, place = _subset(scale, count)
            before = Stage(data=on(scale, "pretrain"), images=count)
            arms.append(
                Arm(
                    label=f"{model}, {called}",
                    series=model,
                    x=place,
                    model=model,
                    before=before,
                    few_shot=on(scale, "tune"),
                )
            )
    return arms


def computes(scale: Scale) -> list[Arm]:
    shares = (0.125, 0.25, 0.5, 1.0)
    arms = []
    for role in ("plain", "large", "hybrid", "resnet", "resnet-large"):
        for share in shares:
            before = Stage(data=on(scale, "pretrain"), share=share)
            label = f"{scale.models[role]}, {share:g} of the budget"
            model = scale.models[role]
            arms.append(Arm(label=label, series=model, x=share, model=model, before=before, after=_tuned(scale)))
    return arms


def vtab_tasks(scale: Scale) -> list[Arm]:
    """The tasks of VTAB, or what every machine has of them, from three pre-trainings."""
    names = {
        "smoke": [f"{LITE}{task}" for task in ("count", "location")],
        "laptop": [f"{LITE}{task}" for task in LITE_TASKS],
        "full": [f"{PREFIX}{task}" for task in TASKS],
    }[scale.name]
    arms = []
    for model in (scale.models[role] for role in ("large", "plain", "resnet-large")):
        for address in names:
            task = address.partition(":")[2]
            arms.append(
                Arm(
                    label=f"{model} on {task}",
                    series=vtab.group_of(task),
                    model=model,
                    before=Stage(data=on(scale, "pretrain")),
                    after=vtab.stage(address, scale),
                    one_start=True,
                )
            )
    return arms


def in_groups(measured: list[Measured]) -> list[Measured]:
    """A bar for each model and group, where no task of the group is missing."""
    counts: dict[str, int] = {}
    for each in measured:
        counts[each.arm.series] = max(
            counts.get(each.arm.series, 0),
            sum(other.arm.series == each.arm.series and other.arm.model == each.arm.model for other in measured),
        )
    bars = []
    for group in counts:
        for model in dict.fromkeys(each.arm.model for each in measured):
            mine = [each for each in measured if each.arm.model == model]
            means = vtab.group_means(mine, counts)[group]
            arm = Arm(label=f"{model}, {group}", series=group, model=model)
            bars.append(Measured(arm, tuple(means or (None,)), mine[0].flops if mine else 0.0))
    return bars


def transfer(scale: Scale) -> list[Arm]:
    """Three tunings of one pre-training, as in the paper."""
    arms = []
    for data in (on(scale, "tune"), *scale.others):
        for model in (scale.models[role] for role in ("large", "plain", "resnet-large")):
            few = scale.few if data == on(scale, "tune") else 0
            arms.append(
                Arm(
                    label=f"{model} on {data}",
                    series=data,
                    model=model,
                    before=Stage(data=on(scale, "pretrain")),
                    after=Stage(data=data, images=few),
                    one_start=True,
                )
            )
    return arms
