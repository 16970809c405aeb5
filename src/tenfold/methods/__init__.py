"""The methods: each is one file, in the same order: sites, unfoldings, curve, skeleton, fill. One removes filters."""

from functools import cache
from importlib.metadata import entry_points

from tenfold._errors import TenfoldError
from tenfold._method import Curve, Method, Site
from tenfold._plan import MethodSpec
from tenfold.methods._cp import CP
from tenfold.methods._filter_pruning import FilterPruning, Ranking
from tenfold.methods._joint_svd import JointSVD
from tenfold.methods._spatial_svd import SpatialSVD
from tenfold.methods._svd import SVD
from tenfold.methods._tensor_train import TensorTrain
from tenfold.methods._tucker import Tucker

__all__ = [
    "CP",
    "DEFAULT",
    "SVD",
    "Curve",
    "FilterPruning",
    "JointSVD",
    "Method",
    "Ranking",
    "Site",
    "SpatialSVD",
    "TensorTrain",
    "Tucker",
    "find",
]

# Shared factors are left out: where CP competes they were never chosen, and their curves take a third of the time more.
DEFAULT: tuple[Method, ...] = (SVD("output"), SVD("input"), SpatialSVD(), Tucker(), CP(3), CP(4), TensorTrain())


def find(spec: MethodSpec) -> Method:
    """The method that a plan's step names.

    That is any subclass of `Method` imported so far, or one that an installed package names in its entry points
    under `tenfold.methods`.

    Raises:
        TenfoldError: for an unknown name or wrong fields.
    """
    if spec.name == FilterPruning.name:
        raise TenfoldError(f'a step of method "{spec.name}" needs links, which say where the filters lie; plan again.')
    _load(spec.name)
    known = {method.name: method for method in Method.__subclasses__()}
    if spec.name not in known:
        raise TenfoldError(f'there is no method "{spec.name}"; known are {", ".join(sorted(known))}.')
    try:
        return known[spec.name](**spec.fields)
    except TypeError as error:
        raise TenfoldError(f'method "{spec.name}" does not take {spec.fields}: {error}.') from None


@cache
def _load(name: str) -> None:
    for entry in entry_points(group="tenfold.methods", name=name):
        entry.load()
