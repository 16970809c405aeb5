"""The rank rule of joint decomposition."""

from dataclasses import dataclass
from fractions import Fraction
from math import floor

from tenfold._candidate import Candidate
from tenfold._candidates import Options, Target
from tenfold._errors import TenfoldError
from tenfold._layers import channels, is_pointwise, spatial_sides
from tenfold._plan import Rank, Step, is_number
from tenfold.methods import JointSVD


@dataclass(frozen=True)
class JointRate(Target):
    """Ranks in proportion to the layers' widths, such that shared factors cost what separate ones would.

    The rule of Chen et al. 2021 (arXiv 2107.04386). A layer by itself gets rank `floor(rate b)`, where b is its
    outputs, or for pointwise layers the lesser of inputs and outputs. N layers that share a factor get
    `floor(rate b m)`, where m is what a rank costs them apart over what it costs them together; where both sides are
    shared, each rank has its own m and its share. Layers that could stand in several sites go to the largest;
    where several methods serve a site, the first is used.

    Raises:
        TenfoldError: for a rate outside (0, 1].
    """

    rate: float

    def __post_init__(self) -> None:
        if not (is_number(self.rate) and 0 < self.rate <= 1):
            raise TenfoldError(f"JointRate({self.rate!r}): the rate is in (0, 1].")

    def steps(self, options: Options) -> list[Step]:
        steps, taken = [], set[str]()
        for candidate in sorted(options.candidates, key=lambda candidate: -len(candidate.site.layers)):
            if taken.isdisjoint(candidate.site.layers):
                taken.update(candidate.site.layers)
                rank = candidate.method.clamped(candidate.site, self._rank(candidate))
                steps.append(candidate.step(rank))
        return steps

    def _rank(self, candidate: Candidate) -> Rank:
        layers, rate = candidate.site.modules, Fraction(repr(self.rate))
        wanted = rate * min(min(channels(layer)) if is_pointwise(layer) else channels(layer)[1] for layer in layers)
        full = candidate.method.full_rank(candidate.site)
        if len(layers) == 1:
            if len(full) != 1:
                raise TenfoldError(
                    f"JointRate gives ranks of one number, and {candidate.method.name} takes {len(full)}."
                )
            return (max(1, floor(wanted)),)
        if not isinstance(candidate.method, JointSVD):
            raise TenfoldError(f"JointRate knows joint decomposition only, not {candidate.method.name}.")
        rows, columns = zip(*map(spatial_sides, layers), strict=True)
        apart = sum(rows) + sum(columns)
        share = Fraction(repr(candidate.method.left_share))
        by_side = (
            wanted * share * apart / (rows[0] + sum(columns)),
            wanted * (1 - share) * apart / (sum(rows) + columns[0]),
        )
        return tuple(max(1, floor(entry)) for entry in by_side if entry)
