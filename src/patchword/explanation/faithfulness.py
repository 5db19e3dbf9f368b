"""Is the map true? Deletion, insertion, localisation and agreement, each beside a map that knows nothing.

A random map and a blob in the middle are measured by the same code, and so are the maps of the same network with new weights
("Sanity checks for saliency maps", arXiv 1810.03292): what does not beat them says nothing of what the model has learned.
New weights are drawn five times, for one draw may point at objects half as often again as another.

Letters: B images or n of them, S draws of new weights, h×w places of a map, H×W pixels.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from patchword.data.decoding.decode import decode
from patchword.data.formula import SIDES, find_formula
from patchword.evaluation.intervals import student_half
from patchword.evaluation.predict import comfortable_batch, evaluating
from patchword.explanation.maps import Choice, as_images, enlarge, named
from patchword.explanation.untrained import untrained
from patchword.models.contract import Model

Mapper = Callable[[Tensor], Tensor]
"""Images B×C×H×W → maps B×h×w."""

__all__ = [
    "FEWEST",
    "SIDES",
    "Figure",
    "Mapper",
    "agreement",
    "check",
    "deletion_and_insertion",
    "known_objects",
    "localisation",
    "steps",
]

FEWEST = 8
"""Of fewer pictures no interval is given."""
_STEPS = 8
_DRAWS = 5
"""Of new weights, seeds 0 to 4."""
_SERIES = 3 + _DRAWS  # a map, a random one, the middle


@dataclasses.dataclass(frozen=True)
class Figure:
    """One figure of n pictures' maps, beside the same figure of maps that know nothing; float64 n each, n×S of `untrained`."""

    name: str
    high_is_good: bool
    values: np.ndarray
    controls: dict[str, np.ndarray]
    """`random`, `centre` and, where they were given, `untrained`; of agreement also `others`."""

    @property
    def value(self) -> float:
        """The mean over pictures."""
        return float(self.values.mean())

    @property
    def rivals(self) -> tuple[str, ...]:
        """The controls that it has to beat: all; of agreement only `others`, as a blob in the middle follows any picture."""
        return ("others",) if "others" in self.controls else tuple(self.controls)

    def control(self, name: str) -> float:
        """The mean of a control."""
        return float(self.controls[name].mean())

    def gain(self, control: str) -> tuple[float, list[float] | None]:
        """By how much the map is better than a control, picture by picture: the mean, and its 95 % interval.

        Student's over the pictures, and over the draws of new weights where there are some: their halves are added as squares.
        """
        theirs = self.controls[control].reshape(len(self.values), -1)
        gains = (self.values[:, None] - theirs) * (1 if self.high_is_good else -1)
        mean = float(gains.mean())
        if len(gains) < FEWEST:
            return mean, None
        half = student_half(gains.mean(axis=1))
        if gains.shape[1] > 1:
            half = math.hypot(half, student_half(gains.mean(axis=0)))
        return mean, [mean - half, mean + half]

    def beats(self, control: str) -> bool | None:
        """Whether the interval of the gain lies above 0; None where there are too few pictures to say."""
        _, interval = self.gain(control)
        return None if interval is None else interval[0] > 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values: the figure with its interval, and of each control its own and what is gained over it."""
        controls = {}
        for name in self.controls:
            gain, interval = self.gain(name)
            controls[name] = {
                "value": self.control(name),
                "gain": gain,
                "gain_ci95": interval,
                "beaten": self.beats(name),
            }
            if self.controls[name].ndim > 1:
                controls[name]["draws"] = self.controls[name].mean(axis=0).tolist()
        own = {"figure": self.name, "n": len(self.values), "high_is_good": self.high_is_good, "value": self.value}
        return {**own, "value_ci95": mean_interval(self.values), "controls": controls}


def mean_interval(values: np.ndarray) -> list[float] | None:
    """Student's 95 % interval of a mean over pictures; None for fewer than 8 of them."""
    if len(values) < FEWEST:
        return None
    mean, half = float(values.mean()), student_half(values)
    return [mean - half, mean + half]


def random_maps(like: Tensor) -> Tensor:
    """B×h×w of equally spread random numbers, always the same ones."""
    return torch.rand(like.shape, generator=torch.Generator().manual_seed(0))


def centre_maps(like: Tensor) -> Tensor:
    """B×h×w: a Gaussian in the middle, of a quarter of each side as its standard deviation."""
    rows, columns = (torch.exp(-(((torch.arange(n) + 0.5) / n - 0.5) ** 2) / (2 * 0.25**2)) for n in like.shape[1:])
    return (rows[:, None] * columns).expand(like.shape).contiguous()


def deletion_and_insertion(
    model: Model,
    images: Tensor,
    maps: Tensor,
    classes: Tensor,
    untrained: Sequence[Tensor] = (),
    on_picture: Callable[[], None] = lambda: None,
) -> tuple[Figure, Figure]:
    """How fast the class of an image goes when what its map points to is taken away, and how fast it comes (arXiv 1806.07421).

    Of B×C×H×W with maps B×h×w (and those of untrained networks) and classes B. Pixels are taken in the order of the map,
    an eighth of them at a time. Deleted ones get the mean colour of their picture; what is inserted comes into a blurred
    one. The figure is the area under the probability of the class, 0 to 1.
    """
    images, classes = images.cpu(), classes.cpu()
    grey, soft = _grey(images).expand_as(images), blurred(images)
    ends = np.stack([_probabilities(model, each, classes) for each in (images, grey, soft)], axis=1)
    areas = functools.partial(_areas, model, images, soft=soft, classes=classes, ends=ends, on_picture=on_picture)
    return _beside_controls(("deletion", "insertion"), (False, True), areas, maps, untrained)


def localisation(maps: Tensor, masks: np.ndarray, untrained: Sequence[Tensor] = ()) -> tuple[Figure, Figure]:
    """Maps B×h×w (and those of untrained networks) of pictures whose objects are known, bool B×H×W → energy and pointing.

    Energy is the share of the map that lies on an object; pointing is 1 where the highest pixel does (Zhang et al. 2016, arXiv
    1608.00507, without their margin). A map of equal values has the objects' share of the area.
    """
    on_objects = functools.partial(_on_objects, masks=masks)
    return _beside_controls(("energy", "pointing"), (True, True), on_objects, maps, untrained)


def agreement(mapper: Mapper, images: Tensor) -> tuple[Figure, Figure]:
    """How well the map of a picture goes with it when it is mirrored, and moved by 1/28 of its shorter side: correlations.

    The control that counts, `others`, is the correlation with the map of the next picture: maps that look alike whatever is on
    the picture agree with anything. So does the blob in the middle, and a random map with nothing; they stand beside it.
    B×C×H×W of at least two pictures.
    """
    height, width = size = (images.shape[2], images.shape[3])
    step = max(1, round(min(size) / 28))
    here = mapper(images)
    series = {
        "": (here, mapper(images.flip(3)), mapper(shifted(images, step))),
        **{name: (each, each, each) for name, each in (("random", random_maps(here)), ("centre", centre_maps(here)))},
    }
    flip, shift = {}, {}
    for name, maps in series.items():
        first, mirrored, moved = (_pixels(each, size) for each in maps)
        flip[name] = correlations(first, mirrored[:, :, ::-1])
        shift[name] = correlations(first[:, : height - step, : width - step], moved[:, step:, step:])
    pixels = _pixels(here, size)
    others = {"others": correlations(pixels, np.roll(pixels, 1, axis=0))}
    return Figure("flip", True, flip.pop(""), flip | others), Figure("shift", True, shift.pop(""), shift | others)


def check(
    model: Model,
    choice: Choice,
    images: Tensor,
    classes: Tensor | None,
    known: tuple[np.ndarray, np.ndarray],
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Figure]:
    """All figures of a model's maps: of B×C×H×W for the classes B, and localisation on `known_objects`.

    What needs pictures, or classes, is left out where there are none; of drawn pictures the class is the one that is named.
    """
    pixels, masks = known
    drawn, total = as_images(model, pixels), steps(len(images))
    theirs = named(model, drawn) if model.num_classes else None
    of_drawn, of_images = [], []
    everything = torch.cat([drawn, images.to(drawn)])
    for seed in range(_DRAWS):  # one at a time, for they may be large
        new = untrained(model, everything, seed)
        of_drawn.append(choice.of(new, drawn, theirs))
        if len(images) and classes is not None:
            of_images.append(choice.of(new, images, classes))
    figures = [*localisation(choice.of(model, drawn, theirs), masks, of_drawn)]
    on_progress(1, total)
    if len(images) and classes is not None:
        maps, done = choice.of(model, images, classes), iter(range(2, total + 1))
        figures += deletion_and_insertion(
            model, images, maps, classes, of_images, lambda: on_progress(next(done), total)
        )
    if len(images) > 1:
        figures += agreement(lambda those: choice.of(model, those, classes), images)
    return figures


def steps(pictures: int) -> int:
    """How many steps a `check` of so many pictures tells of."""
    return 1 + _SERIES * pictures


def known_objects(
    size: tuple[int, int], channels: int, classes: int = 64, each: int = 1, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Shapes on textured ground (`data/drawing/shapes.py`): uint8 n×H×W×C, and bool n×H×W that is true on the objects.

    The first `each` test pictures of the first classes, none of which is in the train split of any `formula:shapes-…`.
    """
    height, width = size
    address = f"formula:shapes-{classes}x{10 * each}@{height}x{width},seed={seed}"
    items = find_formula(address).parts["test"].items
    pixels = np.stack([decode(items.read(row), channels) for row in range(len(items))])
    return pixels, np.stack([items.scene(row).mask for row in range(len(items))])  # pyright: ignore[reportAttributeAccessIssue] (they are Drawn)


def shifted(images: Tensor, step: int) -> Tensor:
    """B×C×H×W moved by so many pixels to the right and down; the edge is repeated."""
    height, width = images.shape[2:]
    return F.pad(images, (step, 0, step, 0), mode="replicate")[:, :, :height, :width]


def blurred(images: Tensor) -> Tensor:
    """B×C×H×W through a Gaussian whose standard deviation is a tenth of the shorter side."""
    sigma = min(images.shape[2:]) / 10
    reach = min(int(3 * sigma + 0.5), min(images.shape[2:]) - 1)
    weights = torch.exp(-(torch.arange(-reach, reach + 1, dtype=images.dtype) ** 2) / (2 * sigma**2))
    weights = (weights / weights.sum()).to(images.device).expand(images.shape[1], 1, -1)
    padded = F.pad(images, (reach, reach, reach, reach), mode="reflect")
    across = F.conv2d(padded, weights[:, :, None, :], groups=images.shape[1])
    return F.conv2d(across, weights[:, :, :, None], groups=images.shape[1])


def correlations(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Pearson's, of each pair of maps B×H×W; 0 where a map has one value everywhere."""
    a, b = (each.reshape(len(each), -1).astype(np.float64) for each in (first, second))
    a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
    below = np.sqrt((a * a).sum(1) * (b * b).sum(1))
    return np.divide((a * b).sum(1), below, out=np.zeros(len(a)), where=below > 0)


def _beside_controls(
    names: tuple[str, str],
    high_is_good: tuple[bool, bool],
    measure: Callable[[Tensor], tuple[np.ndarray, np.ndarray]],
    maps: Tensor,
    untrained: Sequence[Tensor],
) -> tuple[Figure, Figure]:
    """Two figures that are measured together, of maps B×h×w and of all their controls."""
    own, by_chance, middle = (measure(each) for each in (maps, random_maps(maps), centre_maps(maps)))
    before = [measure(each) for each in untrained]
    figures = []
    for which, (name, high) in enumerate(zip(names, high_is_good, strict=True)):
        controls = {"random": by_chance[which], "centre": middle[which]}
        if before:
            controls["untrained"] = np.stack([pair[which] for pair in before], axis=1)
        figures.append(Figure(name, high, own[which], controls))
    return figures[0], figures[1]


def _areas(
    model: Model,
    images: Tensor,
    maps: Tensor,
    soft: Tensor,
    classes: Tensor,
    ends: np.ndarray,
    on_picture: Callable[[], None],
) -> tuple[np.ndarray, np.ndarray]:
    """The areas under deletion and insertion, B each; `ends`, B×3: the probabilities of an image, its grey, its blur `soft`."""
    areas = np.zeros((2, len(images)))
    steps = torch.arange(1, _STEPS)[:, None, None]
    for number, (image, each) in enumerate(
        zip(images, enlarge(maps.cpu(), (images.shape[2], images.shape[3])), strict=True)
    ):
        rank, asked = _ranks(each), classes[number].expand(_STEPS - 1)
        taken = (rank < steps * rank.numel() // _STEPS)[:, None]
        whole, without, before = ends[number]
        deleted = _probabilities(model, torch.where(taken, _grey(image), image), asked)
        areas[0, number] = _area([whole, *deleted, without])
        inserted = _probabilities(model, torch.where(taken, image, soft[number]), asked)
        areas[1, number] = _area([before, *inserted, whole])
        on_picture()
    return areas[0], areas[1]


def _area(curve: list[float]) -> float:
    """Under a curve of evenly spaced values between 0 and 1."""
    return float(np.mean(curve[1:]) + np.mean(curve[:-1])) / 2


def _grey(images: Tensor) -> Tensor:
    """…×C×H×W → …×C×1×1: the mean colour."""
    return images.mean(dim=(-2, -1), keepdim=True)


def _probabilities(model: Model, images: Tensor, classes: Tensor) -> np.ndarray:
    """Of each image of B×C×H×W the probability of its class, float64 B."""
    device = next(model.parameters()).device
    with evaluating(model), torch.inference_mode():
        said = [model.probabilities(part.to(device)).cpu() for part in images.split(comfortable_batch(model))]
    return torch.cat(said).gather(1, classes[:, None])[:, 0].double().numpy()


def _ranks(pixels: Tensor) -> Tensor:
    """H×W → H×W: 0 for the highest pixel, 1 for the next; equal ones in an order drawn once."""
    drawn = torch.randperm(pixels.numel(), generator=torch.Generator().manual_seed(0))
    order = drawn[torch.argsort(pixels.flatten()[drawn], descending=True, stable=True)]
    ranks = torch.empty_like(order)
    ranks[order] = torch.arange(len(order))
    return ranks.view(pixels.shape)


def _on_objects(maps: Tensor, masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Energy and pointing, B each."""
    pixels = _pixels(maps, (masks.shape[1], masks.shape[2]))
    whole = pixels.sum(axis=(1, 2))
    area = masks.mean(axis=(1, 2))  # what a map without any value has: that of one of equal values
    energy = np.divide((pixels * masks).sum(axis=(1, 2)), whole, out=area.astype(np.float64), where=whole > 0)
    highest = np.array([int(np.flatnonzero(_ranks(torch.from_numpy(each)).numpy() == 0)[0]) for each in pixels])
    pointing = masks.reshape(len(masks), -1)[np.arange(len(masks)), highest].astype(np.float64)
    return energy, pointing


def _pixels(maps: Tensor, size: tuple[int, int]) -> np.ndarray:
    """B×h×w → float64 B×H×W."""
    return enlarge(maps.cpu(), size).double().numpy()
