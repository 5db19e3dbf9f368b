"""The paper's tables and figures as experiments: what they ask, with which arms, and what was published (arXiv 2010.11929).

Three scales. `smoke` proves the machinery in minutes and judges nothing. `laptop` asks the same of small models and pictures,
within hours. `full` is the paper's own protocol, for whoever has its data and machines.
"""

from collections.abc import Sequence
from typing import Any

import torch

from patchword.core.errors import DataError, UsageError, nearest
from patchword.data.sources import open_data
from patchword.data.vtab import LITE, LITE_TASKS, PREFIX, TASKS
from patchword.models.cost import cost
from patchword.models.names import create_model
from patchword.studies import vtab
from patchword.studies.experiment import Arm, Experiment, Measured, Published, Scale, ScaleName, Stage, Trials
from patchword.training.recipe import Budget, Recipe

SCALES: dict[ScaleName, Scale] = {
    "smoke": Scale(
        name="smoke",
        seeds=1,
        models={
            "plain": "ViT-At/8",
            "large": "ViT-Fe/8",
            "hybrid": "C3+ViT-At/8",
            "resnet": "BiT-R14x0.25",
            "resnet-large": "BiT-R14x0.5",
        },
        sets={
            "pretrain": "formula:shapes-20x60",
            "tune": "formula:shapes-8x60@32,seed=1",
        },
        others=("formula:fractals-8x60", "formula:shapes-4x60@32,seed=2"),
        image_size=32,
        before=Budget(pflop=1.2e-5),
        after=Budget(pflop=1e-5),
        subsets=(100, 400, 0),
        few=80,
        searched=False,
        steps=9,
        verdicts=False,
    ),
    "laptop": Scale(
        name="laptop",
        seeds=3,
        models={
            "plain": "ViT-At/4",
            "large": "ViT-Fe/4",
            "hybrid": "C3+ViT-At/8",
            "resnet": "BiT-R14x0.5",
            "resnet-large": "BiT-R26x0.5",
        },
        sets={"pretrain": "cifar10", "tune": "fashion-mnist"},
        others=("clothing", "digits"),
        image_size=32,
        before=Budget(pflop=0.008),
        after=Budget(pflop=0.001),
        subsets=(500, 2000, 10_000, 0),
        few=1000,
        steps=1500,
    ),
    "full": Scale(
        name="full",
        seeds=3,
        models={
            "plain": "ViT-B/32",
            "large": "ViT-L/16",
            "hybrid": "R50+ViT-B/32",
            "resnet": "BiT-R50x1",
            "resnet-large": "BiT-R152x2",
        },
        sets={"pretrain": "imagenet21k", "tune": "imagenet"},
        others=("cifar10", "cifar100", "pets", "flowers102"),
        image_size=224,
        before=Budget(),
        after=Budget(),
        before_recipe="paper-imagenet/i21k-B",
        after_recipe="paper-finetune/imagenet",
        subsets=(1_281_167, 4_000_000, 0),
        few=0,
        searched=False,
    ),
}
PICTURES = {"imagenet21k": 14_197_122, "imagenet": 1_281_167, "cifar10": 50_000, "cifar100": 50_000, "pets": 3_680}
PICTURES |= {"flowers102": 1_020}
"""Training pictures of public sets, for what a full experiment costs where they are not there."""


def on(scale: Scale, role: str) -> str:
    """The data set of a role."""
    return scale.sets[role]


def _tuned(scale: Scale, **stage: Any) -> Stage:
    return Stage(data=on(scale, "tune"), images=scale.few, **stage)


def _of_tuning(scale: Scale) -> str:
    pictures = f"{scale.few:,} pictures of " if scale.few else ""
    return f"accuracy in % on test after tuning on {pictures}{on(scale, 'tune')}"


def _position(scale: Scale) -> list[Arm]:
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


def _patch(scale: Scale) -> list[Arm]:
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


def _resolution(scale: Scale) -> list[Arm]:
    """As many looks at each picture for both: the higher resolution costs more."""
    sides = (224, 384) if scale.name == "full" else (scale.image_size, scale.image_size * 3 // 2)
    return [
        Arm(
            label=f"tuned at {side} px",
            series="resolution",
            model=scale.models["plain"],
            before=Stage(data=on(scale, "pretrain")),
            after=_tuned(scale, image_size=side, steps=scale.steps and scale.steps // 3),
        )
        for side in sides
    ]


def _optimizers(scale: Scale) -> list[Arm]:
    sgd = {"optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4}}
    return [
        Arm(
            label=f"{model}, {word}",
            series=model,
            model=model,
            before=Stage(data=on(scale, "pretrain"), changes=changes),
            after=_tuned(scale),
        )
        for model in (scale.models["resnet"], scale.models["resnet-large"])
        for word, changes in (("Adam", {}), ("SGD", sgd))
    ]


def _masked(scale: Scale) -> list[Arm]:
    """The same FLOPs of pre-training without and with labels."""
    data, model = on(scale, "pretrain"), scale.models["plain"]
    starts = {
        "from nothing": None,
        "masked patches": Stage(data=data, changes={"objective": "masked-patch"}),
        "supervised": Stage(data=data),
    }
    return [
        Arm(label=label, series="starts", model=model, before=before, after=_tuned(scale))
        for label, before in starts.items()
    ]


def _subset(scale: Scale, count: int, index: int) -> tuple[str, float]:
    """What a subset is called, and where it stands on an axis of pictures."""
    whole = PICTURES.get(on(scale, "pretrain"))
    if whole is None and not count:
        whole = len(open_data(on(scale, "pretrain")).splits["train"])
    return (f"{count:,}" if count else "all"), float(count or whole or 10**index)


def _datasets(scale: Scale) -> list[Arm]:
    models = [scale.models[role] for role in ("plain", "large", "resnet-large")]
    arms = []
    for model in models:
        nothing = Arm(label=f"{model}, from nothing", series=model, model=model, after=_tuned(scale), x=0.0)
        arms.append(nothing)
        for index, count in enumerate(scale.subsets[-3:]):
            called, _ = _subset(scale, count, index)
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


def _few_shots(scale: Scale) -> list[Arm]:
    """Subsets that lie in one another, no more regularisation for the smaller ones, features measured as they stand."""
    arms = []
    for model in (scale.models[role] for role in ("plain", "large", "resnet", "resnet-large")):
        for index, count in enumerate(scale.subsets):
            called, place = _subset(scale, count, index)
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


def _computes(scale: Scale) -> list[Arm]:
    shares = (0.125, 0.25, 0.5, 1.0)
    arms = []
    for role in ("plain", "large", "hybrid", "resnet", "resnet-large"):
        for share in shares:
            before = Stage(data=on(scale, "pretrain"), share=share)
            label = f"{scale.models[role]}, {share:g} of the budget"
            model = scale.models[role]
            arms.append(Arm(label=label, series=model, x=share, model=model, before=before, after=_tuned(scale)))
    return arms


def _vtab_groups(scale: Scale) -> list[Arm]:
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


def _in_groups(measured: list[Measured]) -> list[Measured]:
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


def _published_groups() -> tuple[Published, ...]:
    """The means over the tasks of each group, from Table 9."""
    rows = []
    for group in vtab.GROUPS:
        for place, who in enumerate(vtab.PUBLISHED):
            values = [facts.published[place] for facts in vtab.FACTS.values() if facts.group == group]
            rows.append(Published(f"{who}, {group}", group, round(sum(values) / len(values), 2)))
    return tuple(rows)


def _transfer(scale: Scale) -> list[Arm]:
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


_MAIN = {"H/14, JFT": 0, "L/16, JFT": 1, "L/16, I21k": 2, "BiT-L, R152x4": 3}
_TABLE2: dict[str, tuple[tuple[float, float | None], ...]] = {
    "ImageNet": ((88.55, 0.04), (87.76, 0.03), (85.30, 0.02), (87.54, 0.02)),
    "ReaL": ((90.72, 0.05), (90.54, 0.03), (88.62, 0.05), (90.54, None)),
    "CIFAR-10": ((99.50, 0.06), (99.42, 0.03), (99.15, 0.03), (99.37, 0.06)),
    "CIFAR-100": ((94.55, 0.04), (93.90, 0.05), (93.25, 0.05), (93.51, 0.08)),
    "Pets": ((97.56, 0.03), (97.32, 0.11), (94.67, 0.15), (96.62, 0.23)),
    "Flowers-102": ((99.68, 0.02), (99.74, 0.00), (99.61, 0.02), (99.63, 0.03)),
    "VTAB": ((77.63, 0.23), (76.28, 0.46), (72.72, 0.21), (76.29, 1.70)),
}
_TABLE6 = (
    ("ViT-B/32", 80.73, 55),
    ("ViT-B/16", 84.15, 224),
    ("ViT-L/32", 84.37, 196),
    ("ViT-L/16", 86.30, 783),
    ("ViT-L/16", 87.12, 1567),
    ("ViT-H/14", 88.08, 4262),
    ("R50x1", 77.54, 50),
    ("R50x2", 82.12, 199),
    ("R101x1", 80.67, 96),
    ("R152x1", 81.88, 141),
    ("R152x2", 84.97, 563),
    ("R152x2", 85.56, 1126),
    ("R200x3", 87.22, 3306),
    ("R50+B/32", 84.90, 106),
    ("R50+B/16", 85.58, 274),
    ("R50+L/32", 85.68, 246),
    ("R50+L/16", 86.60, 859),
    ("R50+L/16", 87.12, 1668),
)


def _family(name: str) -> str:
    return "ViT" if name.startswith("ViT") else "hybrid" if "+" in name else "ResNet"


EXPERIMENTS: dict[str, Experiment] = {
    each.name: each
    for each in (
        Experiment(
            name="position",
            title="Position embeddings",
            question="Does a ViT need to be told where its patches are, and does it matter how?",
            source="appendix D.4, Table 8",
            arms=_position,
            measures=lambda scale: f"accuracy in % on test of {on(scale, 'pretrain')}, from nothing",
            published=tuple(
                Published(label, "positions", value)
                for label, value in (
                    ("no positions", 61.382),
                    ("1-D", 64.206),
                    ("2-D", 64.001),
                    ("relative", 64.032),
                )
            ),
            published_is="5-shot accuracy in % on ImageNet, ViT-B/16 pre-trained on JFT",
        ),
        Experiment(
            name="patch",
            title="Patch size",
            question="Are smaller patches better for an encoder of the same size?",
            source="section 4.2, Table 5",
            arms=_patch,
            measures=lambda scale: (
                f"accuracy in % on test of {on(scale, 'pretrain')}, as many looks at each picture for all"
            ),
            published=(
                Published("B/32", "B", 81.28),
                Published("B/16", "B", 83.97),
                Published("L/32", "L", 80.99),
                Published("L/16", "L", 85.15),
            ),
            published_is="accuracy in % on ImageNet, pre-trained on ImageNet-21k",
        ),
        Experiment(
            name="resolution",
            title="Fine-tuning at a higher resolution",
            question="Does it help to fine-tune at a higher resolution than that of pre-training?",
            source="section 3.2",
            arms=_resolution,
            measures=_of_tuning,
            published=(
                Published("Ti/16 at 224", "Ti/16", 75.45),
                Published("Ti/16 at 384", "Ti/16", 78.44),
                Published("S/16 at 224", "S/16", 81.40),
                Published("S/16 at 384", "S/16", 83.81),
                Published("B/16 at 224", "B/16", 84.53),
                Published("B/16 at 384", "B/16", 86.01),
            ),
            published_is="accuracy in % on ImageNet of AugReg's weights from ImageNet-21k, as timm measured it",
        ),
        Experiment(
            name="adam-vs-sgd",
            title="Adam or SGD for pre-training ResNets",
            question="Are ResNets better transferred when they were pre-trained with Adam?",
            source="appendix D.1, Table 7",
            arms=_optimizers,
            measures=_of_tuning,
            published=(
                Published("R50x1, Adam", "R50x1", 89.33),
                Published("R50x1, SGD", "R50x1", 88.79),
                Published("R152x2, Adam", "R152x2", 94.01),
                Published("R152x2, SGD", "R152x2", 93.72),
            ),
            published_is="mean accuracy in % over five data sets, pre-trained on JFT",
        ),
        Experiment(
            name="masked",
            title="Self-supervision by masked patches",
            question="Is predicting masked patches better than nothing, and does it come up to supervision?",
            source="section 4.6 and appendix B.1.2",
            arms=_masked,
            measures=_of_tuning,
            published=(
                Published("from nothing", "starts", 77.9),
                Published("masked patches", "starts", 79.9),
                Published("supervised", "starts", 84.0),
            ),
            published_is="accuracy in % on ImageNet, ViT-B/16, pre-trained on JFT",
        ),
        Experiment(
            name="fig3",
            title="Pre-training set and model size",
            question="Does a larger set to pre-train on help a large model more than a small one?",
            source="section 4.3, Figure 3; Table 5 has the numbers",
            arms=_datasets,
            measures=_of_tuning,
            published=tuple(
                Published(f"{model}, {data}", model, value, float(index + 1))
                for model, values in (
                    ("ViT-B/16", (77.91, 83.97, 84.15)),
                    ("ViT-B/32", (73.38, 81.28, 80.73)),
                    ("ViT-L/16", (76.53, 85.15, 87.12)),
                    ("ViT-L/32", (71.16, 80.99, 84.37)),
                )
                for index, (data, value) in enumerate(
                    zip(("ImageNet", "ImageNet-21k", "JFT-300M"), values, strict=True)
                )
            ),
            published_is="accuracy in % on ImageNet; 1, 2 and 3 are ImageNet, ImageNet-21k and JFT-300M",
            axis="set to pre-train on: none, then larger and larger",
            figure="lines",
        ),
        Experiment(
            name="fig4",
            title="Few-shot accuracy against pictures of pre-training",
            question="Who makes more of few pictures of pre-training, who of many?",
            source="section 4.3, Figure 4",
            arms=_few_shots,
            measures=lambda scale: (
                f"{scale.shots}-shot linear accuracy in % on {on(scale, 'tune')}, features as they stand"
            ),
            published=(),
            published_is="a figure without numbers: ViT-B/32 is behind ResNet-50x1 at 9 M pictures of JFT, ahead from 90 M on; "
            "ViT-L/16 and ResNet-152x2 likewise",
            axis="pictures of pre-training",
            figure="lines",
        ),
        Experiment(
            name="fig5",
            title="Accuracy against compute of pre-training",
            question="Who makes more of the same compute: ViT, hybrid or ResNet?",
            source="section 4.4, Figure 5; Table 6 has the numbers",
            arms=_computes,
            measures=_of_tuning,
            published=tuple(
                Published(f"{name}, {flops} exaFLOPs", _family(name), value, float(flops))
                for name, value, flops in _TABLE6
            ),
            published_is="accuracy in % on ImageNet against exaFLOPs of pre-training on JFT",
            axis="compute of pre-training, in PFLOP",
            over_compute=True,
            figure="lines",
        ),
        Experiment(
            name="table2",
            title="Transfer",
            question="How good are the largest models on several sets, over three tunings?",
            source="section 4.2, Table 2",
            arms=_transfer,
            measures=lambda scale: (
                "accuracy in % on test after tuning, mean and deviation over tunings of one pre-training"
            ),
            published=tuple(
                Published(f"{model} on {data}", data, values[place][0], spread=values[place][1])
                for data, values in _TABLE2.items()
                for model, place in _MAIN.items()
            ),
            published_is="accuracy in %, mean and standard deviation over three fine-tunings",
        ),
        Experiment(
            name="fig2",
            title="VTAB by groups",
            question="On which kinds of tasks do ViTs lead, on which ResNets?",
            source="section 4.2, Figure 2; Table 9 has the numbers",
            arms=_vtab_groups,
            measures=lambda scale: "mean accuracy in % over the tasks of a group, 1,000 training pictures each",
            published=_published_groups(),
            published_is="mean accuracy in % over the tasks of a group of VTAB-1k",
            fold=_in_groups,
        ),
    )
}
OTHERS = ("vtab", "vtab-lite", "table1", "claims")
"""The others: VTAB for somebody's weights, with its own data or what every machine has; the sizes; all claims."""


def experiment(name: str) -> Experiment:
    """The experiment of a name."""
    if name not in EXPERIMENTS:
        raise UsageError(f"the paper has no {name!r}; {nearest(name, (*EXPERIMENTS, *OTHERS))}")
    return EXPERIMENTS[name]


def missing(arms: Sequence[Arm]) -> dict[str, str]:
    """Data set → why it cannot be had, of those that the arms need."""
    needed = {stage.data for arm in arms for stage in (arm.before, arm.after) if stage is not None}
    needed |= {arm.few_shot for arm in arms if arm.few_shot}
    lacking = {}
    for data in sorted(needed):
        try:
            open_data(data)
        except (DataError, UsageError) as error:
            lacking[data] = str(error)
    return lacking


def without(arms: Sequence[Arm], lacking: dict[str, str]) -> list[Arm]:
    """The arms whose data is there."""
    return [
        arm
        for arm in arms
        if not ({stage.data for stage in (arm.before, arm.after) if stage is not None} | {arm.few_shot}) & set(lacking)
    ]


def flops_of(arms: Sequence[Arm], trials: Trials, seeds: int) -> float:
    """Training FLOPs of all distinct runs of the arms, searches aside, by shapes alone: no data set need be there."""
    counted: dict[str, tuple[Arm, Recipe]] = {}
    for seed in range(seeds):
        for arm in arms:
            for step in trials.steps(arm, seed):
                counted[step.cell(1.0).place] = (arm, step.recipe)
    total, known = 0.0, dict[str, float]()
    for arm, recipe in counted.values():
        budget = recipe.budget
        if budget.pflop:
            total += 1e15 * budget.pflop
            continue
        kind = f"{recipe.model} {recipe.image_size}"
        if kind not in known:
            known[kind] = arm.flops_per_image or _train_flops(recipe)
        pictures = recipe.train_images or PICTURES.get(recipe.data, 10_000)
        looks = budget.steps * recipe.batch_size if budget.steps else budget.epochs * pictures
        total += looks * known[kind]
    return total


def _train_flops(recipe: Recipe) -> float:
    options = {name: value for name, value in recipe.model.items() if name != "name"}
    with torch.device("meta"):
        return cost(create_model(recipe.model["name"], 1000, recipe.image_size, **options)).train_flops
