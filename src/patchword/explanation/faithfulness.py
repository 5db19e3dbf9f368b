"""Is the map true? Deletion, insertion, localisation and agreement, each beside a map that knows nothing.

A random map and a blob in the middle are measured by the same code, and so is the map of the same network with new weights
("Sanity checks for saliency maps", arXiv 1810.03292): what does not beat them says nothing of what the model has learned.

Letters: B images or n of them, h×w places of a map, H×W pixels.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchword.data.decoding.decode import decode
from patchword.data.formula import SIDES, find_formula
from patchword.evaluation.predict import comfortable_batch, evaluating
from patchword.explanation.maps import Choice, as_images, enlarge, named
from patchword.models.contract import Model
from patchword.models.names import build_model

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
"""Of fewer pictures no interval is given: a bootstrap over them would be a guess."""
_RESAMPLES = 2000
_STEPS = 8
_SERIES = 4  # a map and its three controls


@dataclasses.dataclass(frozen=True)
class Figure:
    """One figure of n pictures' maps, beside the same figure of maps that know nothing; float64 n each."""

    name: str
    high_is_good: bool
    values: np.ndarray
    controls: dict[str, np.ndarray]
    """`random`, `centre` and, where it was given, `untrained`; of agreement `others`."""

    @property
    def value(self) -> float:
        """The mean over pictures."""
        return float(self.values.mean())

    def control(self, name: str) -> float:
        """The mean of a control."""
        return float(self.controls[name].mean())

    def gain(self, control: str) -> tuple[float, list[float] | None]:
        """By how much the map is better than a control, picture by picture: the mean, and its 95 % interval."""
        gains = (self.values - self.controls[control]) * (1 if self.high_is_good else -1)
        return float(gains.mean()), mean_interval(gains)

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
        own = {"figure": self.name, "n": len(self.values), "high_is_good": self.high_is_good, "value": self.value}
        return {**own, "value_ci95": mean_interval(self.values), "controls": controls}


def mean_interval(values: np.ndarray) -> list[float] | None:
    """The 95 % percentile interval of a mean over resampled pictures, from a fixed seed; None for fewer than 8 of them."""
    n = len(values)
    if n < FEWEST:
        return None
    drawn = np.random.default_rng(0).integers(0, n, (_RESAMPLES, n))
    return [float(bound) for bound in np.percentile(values[drawn].mean(axis=1), [2.5, 97.5])]


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
    untrained: Tensor | None = None,
    on_picture: Callable[[], None] = lambda: None,
) -> tuple[Figure, Figure]:
    """How fast the class of an image goes when what its map points to is taken away, and how fast it comes (arXiv 1806.07421).

    Of B×C×H×W with maps B×h×w (and those of an untrained network) and classes B. Pixels are taken in the order of the map,
    an eighth of them at a time. Deleted ones get the mean colour of their picture; what is inserted comes into a blurred
    one. The figure is the area under the probability of the class, 0 to 1.
    """
    controls = _with_controls(maps, untrained)
    found = {name: _areas(model, images, each, classes, on_picture) for name, each in controls.items()}
    return _figure("deletion", False, found, 0), _figure("insertion", True, found, 1)


def localisation(maps: Tensor, masks: np.ndarray, untrained: Tensor | None = None) -> tuple[Figure, Figure]:
    """Maps B×h×w (and those of an untrained network) of pictures whose objects are known, bool B×H×W → energy and pointing.

    Energy is the share of the map that lies on an object; pointing is 1 where the highest pixel does (Zhang et al. 2016, arXiv
    1608.00507, without their margin). A map of equal values has the objects' share of the area.
    """
    found = {name: _on_objects(each, masks) for name, each in _with_controls(maps, untrained).items()}
    return _figure("energy", True, found, 0), _figure("pointing", True, found, 1)


def agreement(mapper: Mapper, images: Tensor) -> tuple[Figure, Figure]:
    """How well the map of a picture goes with it when it is mirrored, and moved by 1/28 of its shorter side: correlations.

    The control `others` is the correlation with the map of the next picture: maps that look alike whatever is on the
    picture agree with anything. B×C×H×W of at least two pictures.
    """
    height, width = images.shape[2:]
    step = max(1, round(min(height, width) / 28))
    here = _pixels(mapper(images), (height, width))
    mirrored = _pixels(mapper(images.flip(3)), (height, width))[:, :, ::-1]
    moved = _pixels(mapper(shifted(images, step)), (height, width))
    others = {"others": correlations(here, np.roll(here, 1, axis=0))}
    flip = Figure("flip", True, correlations(here, mirrored), others)
    after = correlations(here[:, : height - step, : width - step], moved[:, step:, step:])
    return flip, Figure("shift", True, after, others)


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
    drawn, new = as_images(model, pixels), untrained(model)
    theirs = named(model, drawn) if model.num_classes else None
    figures = [*localisation(choice.of(model, drawn, theirs), masks, choice.of(new, drawn, theirs))]
    total = steps(len(images))
    on_progress(1, total)
    if len(images) and classes is not None:
        maps, before = choice.of(model, images, classes), choice.of(new, images, classes)
        done = iter(range(2, total + 1))
        figures += deletion_and_insertion(model, images, maps, classes, before, lambda: on_progress(next(done), total))
    if len(images) > 1:
        figures += agreement(lambda those: choice.of(model, those, classes), images)
    return figures


def steps(pictures: int) -> int:
    """How many steps a `check` of so many pictures tells of."""
    return 1 + _SERIES * pictures


def untrained(model: Model, seed: int = 0) -> Model:
    """The same network with new weights, those of a seed; its head is drawn, too, so that it speaks for classes."""
    device = next(model.parameters()).device
    new = build_model(model.architecture, model.preprocessing).to_empty(device="cpu")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        new.reset()
        if isinstance(new.head, nn.Linear):
            nn.init.normal_(new.head.weight, std=new.num_features**-0.5)
    return new.to(device).eval()


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


def _with_controls(maps: Tensor, untrained: Tensor | None) -> dict[str, Tensor]:
    """By the name of each control; the maps themselves have none."""
    found = {"": maps.cpu(), "random": random_maps(maps), "centre": centre_maps(maps)}
    return found if untrained is None else {**found, "untrained": untrained.cpu()}


def _figure(name: str, high_is_good: bool, found: dict[str, tuple[np.ndarray, np.ndarray]], which: int) -> Figure:
    controls = {control: values[which] for control, values in found.items() if control}
    return Figure(name, high_is_good, found[""][which], controls)


def _areas(
    model: Model, images: Tensor, maps: Tensor, classes: Tensor, on_picture: Callable[[], None]
) -> tuple[np.ndarray, np.ndarray]:
    """The areas under deletion and insertion, B each; one picture at a time."""
    device, chunk = next(model.parameters()).device, comfortable_batch(model)
    size = (images.shape[2], images.shape[3])
    areas = np.zeros((2, len(images)))
    with evaluating(model), torch.inference_mode():
        for number, (image, each) in enumerate(zip(images.cpu(), enlarge(maps, size), strict=True)):
            rank = _ranks(each)
            steps = torch.arange(_STEPS + 1)[:, None, None] * rank.numel() // _STEPS
            taken = (rank < steps)[:, None]
            grey = image.mean(dim=(1, 2), keepdim=True)
            for row, series in enumerate(
                (torch.where(taken, grey, image), torch.where(taken, image, blurred(image[None])[0]))
            ):
                said = [model.probabilities(batch.to(device)) for batch in series.split(chunk)]
                curve = torch.cat(said)[:, int(classes[number])].double().cpu().numpy()
                areas[row, number] = (curve[1:] + curve[:-1]).mean() / 2
            on_picture()
    return areas[0], areas[1]


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
