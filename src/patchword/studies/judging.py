"""How a statement of the paper is judged: its differences, their intervals, and the verdict by all of them.

A statement is about differences between arms: each is taken seed by seed, so that what makes a seed hard for both sides is not in
it, and has Student's interval. *Holds*: every difference lies above zero (or, where two are said to be alike, within the
margin). *Does not hold*: one of them lies on the other side, by an interval that is as much wider as a claim of so many
differences has chances to be refuted (Bonferroni). *Undecided*: the interval says neither; more seeds may. How many times the
compute something needs is a difference, too: of logarithms (`equal.py`).

Whoever adds seeds until something is found finds it in 18 of 100 claims about nothing (looks at 3, 4, … 12 seeds). So looks are
few and fixed before: at the scale's number of seeds with intervals of 95 %, and where that leaves a claim undecided at twice
and at four times as many, with intervals of 99 %; together 6 in 100 (`tests/test_paper.py`). The first look that decides is
the last: seeds that another claim of the same experiment asked for do not judge it again.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from patchword.studies.equal import Family, above, slope, times_the_compute
from patchword.studies.experiment import Measured, Scale
from patchword.studies.statistics import LEVEL, Estimate, estimate

Verdict = Literal["holds", "does not hold", "undecided", "not judged"]
MARGIN = 0.01
"""Accuracies that differ by less, in 0…1, count as alike."""
LOOKS = ((1, LEVEL), (2, 0.99), (4, 0.99))
"""When claims are judged, in the scale's numbers of seeds, and at which level."""


@dataclasses.dataclass(frozen=True)
class Part:
    """A difference with what its interval says."""

    what: str
    estimate: Estimate
    alike: bool = False
    """Whether it should be near zero, and not above it."""
    ratio: bool = False
    """Whether it is log₂ of how many times as much one is as the other."""
    worth: float = 1.0
    """What a unit of it is in accuracy: by this the widths of different figures are compared."""

    @property
    def verdict(self) -> Verdict:
        """What the interval says of this difference."""
        low, high = self.estimate.low, self.estimate.high
        if math.isnan(self.estimate.value):
            return "undecided"
        if self.alike:
            if low > -MARGIN and high < MARGIN:
                return "holds"
            return "does not hold" if low > MARGIN or high < -MARGIN else "undecided"
        return "holds" if low > 0 else "does not hold" if high < 0 else "undecided"

    @property
    def width(self) -> float:
        """Half of the interval of what does not hold yet, in accuracy; infinite after a single seed."""
        # Where nothing can be compared more seeds do not help.
        open_ = self.verdict != "holds" and not math.isnan(self.estimate.value)
        return self.worth * self.estimate.half if open_ else 0.0


class Difference(NamedTuple):
    """One difference that a claim is about."""

    what: str
    """`2-D − 1-D`, as a reader subtracts."""
    values: list[float]
    """Of each seed that has both sides."""
    alike: bool = False

    def part(self, level: float) -> Part:
        """With its interval."""
        return Part(self.what, estimate(self.values, level), self.alike)


class Compute(NamedTuple):
    """How many times the compute of the first family the second needs for equal accuracy."""

    what: str
    first: Family
    second: Family

    def part(self, level: float) -> Part:
        """With its interval; a bound where the curves reach no accuracy in common, not a number where there are no two."""
        if not self.first.values.size or not self.second.values.size:
            return Part(self.what, estimate([], level), ratio=True)
        found = times_the_compute(self.first, self.second, level)
        bound = {None: "", 0: ", at least", 1: ", at most"}[above(self.first, self.second)]
        return Part(self.what + bound, found, ratio=True, worth=slope(self.first, self.second))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Claim:
    """A statement of the paper."""

    key: str
    statement: str
    source: str
    experiment: str
    statistic: str
    """What is compared, in words."""
    differences: Callable[[Sequence[Measured], Scale], Sequence[Difference | Compute]]
    note: Callable[[Sequence[Measured], Scale], str] = lambda measured, scale: ""
    """What else the experiment says about it."""


@dataclasses.dataclass(frozen=True)
class Judged:
    """A claim with what came of it."""

    claim: Claim
    verdict: Verdict
    parts: tuple[Part, ...]
    note: str
    seeds: int
    level: float
    """Of the intervals."""

    @property
    def width(self) -> float:
        """Of the widest part that does not hold yet: where another seed helps most."""
        return max((part.width for part in self.parts), default=0.0)


def judge(claim: Claim, measured: Sequence[Measured], scale: Scale, level: float = LEVEL) -> Judged:
    """The verdict on a claim by all seeds that were measured; none at a scale that is not meant for it."""
    differences = claim.differences(measured, scale)
    parts = tuple(each.part(level) for each in differences)
    verdicts = [part.verdict for part in parts]
    verdict: Verdict = "undecided"
    if not scale.verdicts:
        verdict = "not judged"
    elif "does not hold" in verdicts:
        # One of them is enough, so that chance may not have a whole go at each; to hold, all of them have to.
        stricter = 1 - (1 - level) / len(differences)
        if any(each.part(stricter).verdict == "does not hold" for each in differences):
            verdict = "does not hold"
    elif verdicts and all(each == "holds" for each in verdicts):
        verdict = "holds"
    return Judged(claim, verdict, parts, claim.note(measured, scale), len(measured[0].values), level)


def judge_by_looks(claim: Claim, measured: Sequence[Measured], scale: Scale) -> Judged | None:
    """The verdict of the first look that decides, or of the last that there are seeds for; None: it is too early to look."""
    judged = None
    for times, level in LOOKS:
        seeds = times * scale.seeds
        if seeds > len(measured[0].values):
            break
        seen = [dataclasses.replace(each, values=each.values[:seeds]) for each in measured]
        judged = judge(claim, seen, scale, level)
        if judged.verdict != "undecided":
            break
    return judged


def difference(first: Sequence[float | None], second: Sequence[float | None]) -> list[float]:
    """first − second of the seeds that have both."""
    return [one - other for one, other in zip(first, second, strict=True) if one is not None and other is not None]
