"""The paper's testable statements, each with its experiment and its statistic; `judging.py` says what comes of them."""

import itertools
import math
from collections.abc import Sequence

import numpy as np

from patchword.studies import inside
from patchword.studies.curves import REACH, crossing, fit_power_law
from patchword.studies.equal import Family, above
from patchword.studies.experiment import Measured, Scale, grouped
from patchword.studies.judging import Claim, Compute, Difference, difference
from patchword.studies.telling import crossing_in_words


def _by_label(measured: Sequence[Measured]) -> dict[str, Measured]:
    return {each.arm.label: each for each in measured}


def _mean_of(arms: Sequence[Measured]) -> list[float | None]:
    """Seed by seed, the mean over arms; None where one is missing."""
    rows = zip(*(each.values for each in arms), strict=True)
    return [
        None if any(value is None for value in row) else float(np.mean([v for v in row if v is not None]))
        for row in rows
    ]


def _best_of(arms: Sequence[Measured]) -> list[float | None]:
    """The values of the arm with the highest mean: chosen by all seeds together, so that no seed chooses its luck."""
    known = [each for each in arms if each.known]
    if not known:
        return list(arms[0].values)
    return list(max(known, key=lambda each: float(np.mean(each.known))).values)


# The experiments' differences


def _pretraining(measured: Sequence[Measured], scale: Scale) -> list[Difference]:
    """The largest set against none, for each model."""
    parts = []
    for model, arms in grouped(measured).items():
        parts.append(Difference(f"{model}: all − nothing", difference(arms[-1].values, arms[0].values)))
    return parts


def _large_gains(measured: Sequence[Measured], scale: Scale) -> list[Difference]:
    """What the largest set gives over the smallest, for the large model less for the small one."""
    arms = grouped(measured)
    gains = {}
    for role in ("plain", "large"):
        row = arms[scale.models[role]]
        gains[role] = [
            None if one is None or other is None else one - other
            for one, other in zip(row[-1].values, row[1].values, strict=True)
        ]
    names = scale.models["large"], scale.models["plain"]
    return [Difference(f"gain of {names[0]} − gain of {names[1]}", difference(gains["large"], gains["plain"]))]


def _few_and_many(measured: Sequence[Measured], scale: Scale) -> list[Difference]:
    """Best ResNet less best ViT on the fewest pictures, and the other way round on all."""
    arms = grouped(measured)
    vits = [arms[scale.models[role]] for role in ("plain", "large")]
    nets = [arms[scale.models[role]] for role in ("resnet", "resnet-large")]
    few = difference(_best_of([row[0] for row in nets]), _best_of([row[0] for row in vits]))
    many = difference(_best_of([row[-1] for row in vits]), _best_of([row[-1] for row in nets]))
    return [
        Difference("fewest pictures: best ResNet − best ViT", few),
        Difference("all pictures: best ViT − best ResNet", many),
    ]


def _where_they_cross(measured: Sequence[Measured], scale: Scale) -> str:
    """The fitted crossing of the plain ViT and the smaller ResNet."""
    arms = grouped(measured)
    laws = []
    for role in ("resnet", "plain"):
        row = arms[scale.models[role]]
        sizes = [each.arm.x or 0.0 for each in row]
        errors = [[math.nan if value is None else 1 - value for value in each.values] for each in row]
        table = np.array(errors)
        seen = np.isfinite(table).any(axis=1)
        if seen.sum() < 2:
            return ""
        laws.append(fit_power_law(np.array(sizes)[seen], table[seen]))
    names = scale.models["resnet"], scale.models["plain"]
    called = {name: f"the {kind} ({name})" for name, kind in zip(names, ("ResNet", "plain ViT"), strict=True)}
    low, high = (int(max(law.sizes[end] for law in laws)) for end in (0, -1))
    told = {**crossing(*laws).row(*names), "alike": False}
    return f"By their fitted curves: {crossing_in_words(told, called, low, REACH * high)}"


def _at_shares(measured: Sequence[Measured], scale: Scale, role: str) -> list[Measured]:
    return grouped(measured)[scale.models[role]]


def _hybrids(measured: Sequence[Measured], scale: Scale) -> list[Difference]:
    """At the two smallest budgets: the hybrid less the best plain ViT, and less the best ResNet."""
    hybrid = _at_shares(measured, scale, "hybrid")
    parts = []
    for index in (0, 1):
        for word, roles in (("ViT", ("plain", "large")), ("ResNet", ("resnet", "resnet-large"))):
            others = [_at_shares(measured, scale, role)[index] for role in roles]
            what = f"{hybrid[index].arm.x:g} of the budget: hybrid − best {word}"
            parts.append(Difference(what, difference(hybrid[index].values, _best_of(others))))
    return parts


def _computes(measured: Sequence[Measured], scale: Scale) -> list[Compute]:
    return [Compute("FLOPs of ResNets ÷ FLOPs of ViTs", *_families(measured, scale))]


def _at_equal_compute(measured: Sequence[Measured], scale: Scale) -> str:
    """What the best ViT and the best ResNet reach with the same budget, and whether their curves meet no accuracy in common."""
    vits, nets = _families(measured, scale)
    if not vits.values.size or not nets.values.size:
        return ""
    names = ("ViTs", "ResNets")
    apart = above(vits, nets)
    lines = []
    if apart is not None:
        lines.append(
            f"{names[apart]} reach more with the least compute than {names[1 - apart]} with the most: no accuracy is common."
        )
    roles = (("plain", "large"), ("resnet", "resnet-large"))
    rows = [list(zip(*(_at_shares(measured, scale, role) for role in pair), strict=True)) for pair in roles]
    one, other = (_mean_of([Measured(arms[0].arm, tuple(_best_of(arms))) for arms in row]) for row in rows)
    if gains := difference(one, other):
        points = f"{100 * float(np.mean(gains)):+.1f}".replace("-", "−")
        lines.append(f"At equal compute the best ViT less the best ResNet is {points} points.")
    return " ".join(lines)


def _families(measured: Sequence[Measured], scale: Scale) -> tuple[Family, Family]:
    """ViTs and ResNets at all budgets, with the seeds that all have; arms without a value are left out."""
    arms = [
        [arm for role in roles for arm in _at_shares(measured, scale, role) if arm.known]
        for roles in (("plain", "large"), ("resnet", "resnet-large"))
    ]
    whole = [
        seed
        for seed, row in enumerate(zip(*(arm.values for each in arms for arm in each), strict=True))
        if None not in row
    ]
    vits, nets = (
        Family(
            np.array([arm.flops for arm in each]),
            np.array([arm.values[seed] for arm in each for seed in whole], np.float64).reshape(len(each), len(whole)),
        )
        for each in arms
    )
    return vits, nets


def _positions(measured: Sequence[Measured], scale: Scale) -> list[Difference]:
    arms = _by_label(measured)
    told = arms["1-D"].values
    parts = [Difference("1-D − none", difference(told, arms["no positions"].values))]
    return parts + [
        Difference(f"{label} − 1-D", difference(arms[label].values, told), alike=True) for label in ("2-D", "relative")
    ]


def _higher(measured: Sequence[Measured], scale: Scale) -> list[Difference]:
    low, high = measured
    return [Difference(f"{high.arm.label} − {low.arm.label}", difference(high.values, low.values))]


def _adam(measured: Sequence[Measured], scale: Scale) -> list[Difference]:
    return [
        Difference(f"{model}: Adam − SGD", difference(adam.values, sgd.values))
        for model, (adam, sgd) in grouped(measured).items()
    ]


def _masks(measured: Sequence[Measured], scale: Scale) -> list[Difference]:
    arms = _by_label(measured)
    masked = arms["masked patches"].values
    return [
        Difference("masked − nothing", difference(masked, arms["from nothing"].values)),
        Difference("supervised − masked", difference(arms["supervised"].values, masked)),
    ]


def _patches(measured: Sequence[Measured], scale: Scale) -> list[Difference]:
    """Each against the next larger."""
    return [
        Difference(f"{small.arm.label} − {large.arm.label}", difference(small.values, large.values))
        for small, large in itertools.pairwise(measured)
    ]


def _grows(measured: Sequence[Measured], scale: Scale) -> list[Difference]:
    """The correlation itself, and less that of the same networks untrained."""
    trained, untrained = _insides(measured, inside.DEPTH)
    return [
        *(Difference(f"{each.arm.model}: correlation", each.known) for each in trained),
        *_less(trained, untrained, "correlation"),
    ]


def _rows_and_columns(measured: Sequence[Measured], scale: Scale) -> list[Difference]:
    """What rows and columns explain, less what they do untrained; the same of the likeness of patches of one line."""
    return [
        *_less(*_insides(measured, inside.GRID), "explained by rows and columns"),
        *_less(*_insides(measured, inside.LINES), "likeness within lines"),
    ]


def _insides(measured: Sequence[Measured], figure: str) -> tuple[list[Measured], list[Measured]]:
    """The arms of a figure: trained, and as many untrained."""
    arms = grouped(measured)[figure]
    trained, untrained = ([each for each in arms if each.arm.untrained is which] for which in (False, True))
    return trained, untrained


def _less(trained: Sequence[Measured], untrained: Sequence[Measured], what: str) -> list[Difference]:
    return [
        Difference(f"{one.arm.model}: {what}, trained − untrained", difference(one.values, other.values))
        for one, other in zip(trained, untrained, strict=True)
    ]


CLAIMS: tuple[Claim, ...] = (
    Claim(
        key="pretraining",
        statement="Pre-training beats none.",
        source="section 4.3",
        experiment="fig3",
        statistic="accuracy after tuning: pre-trained on all pictures less from nothing, for each model",
        differences=_pretraining,
    ),
    Claim(
        key="large-models",
        statement="More pre-training data helps a large model more than a small one.",
        source="section 4.3, Figure 3",
        experiment="fig3",
        statistic="what the largest set gives over the smallest: the large ViT's less the small one's",
        differences=_large_gains,
    ),
    Claim(
        key="crossing",
        statement="On little pre-training data the ResNet leads, on more the ViT does.",
        source="section 4.3, Figure 4",
        experiment="fig4",
        statistic="few-shot accuracy: the best ResNet less the best ViT on the fewest pictures, and the other way round on all",
        differences=_few_and_many,
        note=_where_they_cross,
    ),
    Claim(
        key="hybrids",
        statement="Hybrids lead at small compute.",
        source="section 4.4, Figure 5",
        experiment="fig5",
        statistic="accuracy after tuning at the two smallest budgets: the hybrid less the best ViT and the best ResNet",
        differences=_hybrids,
    ),
    Claim(
        key="compute",
        statement="A ViT needs less compute than a ResNet for equal accuracy.",
        source="section 4.4, Figure 5",
        experiment="fig5",
        statistic="FLOPs of pre-training for equal accuracy after tuning: the best ResNet's over the best ViT's, geometric mean "
        "over the accuracies that both reach",
        differences=_computes,
        note=_at_equal_compute,
    ),
    Claim(
        key="positions",
        statement="No position embedding is clearly worse; 1-D, 2-D and relative ones are alike.",
        source="appendix D.4, Table 8",
        experiment="position",
        statistic="accuracy: 1-D less none; 2-D and relative less 1-D, alike within a point",
        differences=_positions,
    ),
    Claim(
        key="resolution",
        statement="A higher resolution at fine-tuning helps.",
        source="section 3.2",
        experiment="resolution",
        statistic="accuracy after tuning for as many steps: the higher resolution less that of pre-training",
        differences=_higher,
    ),
    Claim(
        key="adam",
        statement="Pre-training with Adam beats SGD for ResNets.",
        source="appendix D.1, Table 7",
        experiment="adam-vs-sgd",
        statistic="accuracy after tuning: pre-trained with Adam less with SGD, each at its own rate",
        differences=_adam,
    ),
    Claim(
        key="masked",
        statement="Masked patch prediction beats nothing and loses to supervision.",
        source="section 4.6",
        experiment="masked",
        statistic="accuracy after tuning: masked less nothing, supervised less masked",
        differences=_masks,
    ),
    Claim(
        key="patches",
        statement="Smaller patches are better at equal model size.",
        source="section 4.2, Table 5",
        experiment="patch",
        statistic="accuracy after as many looks at each picture: each patch less the next larger",
        differences=_patches,
    ),
    Claim(
        key="attention-distance",
        statement="Attention distance grows with depth.",
        source="section 4.5, Figure 7",
        experiment="fig7",
        statistic="rank correlation of the heads' mean attention distances with their depth: itself, and less the same untrained",
        differences=_grows,
        note=lambda measured, scale: inside.shipped_depth(),
    ),
    Claim(
        key="rows-and-columns",
        statement="Position embeddings learn rows and columns.",
        source="section 4.5, Figure 7",
        experiment="fig7",
        statistic="the share of position embeddings' variance that rows and columns explain, and by how much more alike patches "
        "of one line are than others as far apart: each less the same untrained",
        differences=_rows_and_columns,
        note=lambda measured, scale: inside.shipped_lines(),
    ),
)
