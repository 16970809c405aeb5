"""A sweep as one file: networks, methods, budgets and seeds, all of them crossed."""

from collections import Counter
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, StringConstraints, field_validator, model_validator

from tenfold._budget import Budget
from tenfold._compress import check_recovery
from tenfold._engines import Engine
from tenfold._given import FromFile, Trained, methods_named
from tenfold._plan import Record

DENSE = "dense"  # what the row of a network as it is has for a method


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    twice = [str(value) for value, count in Counter(values).items() if count > 1]
    if twice:
        raise ValueError(f'"{twice[0]}" is there twice')
    return values


Name = Annotated[str, StringConstraints(pattern=r"^\w[\w.+-]*$")]  # of a file too
Some = Field(min_length=1)


class Net(Trained):
    """A trained network, its data, and its own `evaluate` if it is not the sweep's."""

    name: Name
    evaluate: str | None = None


class Limits(Record):
    """The limits of a `Budget`: floats are shares of the dense network, whole numbers absolute."""

    params: float | int | None = None
    macs: float | int | None = None
    bytes: float | int | None = None
    latency: float | None = None
    latency_ms: float | None = None
    max_drop: float | None = None

    @model_validator(mode="after")
    def _is_a_budget(self) -> Self:
        _ = self.budget
        return self

    def __str__(self) -> str:
        return ",".join(f"{name}={limit}" for name, limit in self if limit is not None)

    @property
    def budget(self) -> Budget:
        """The target that they are."""
        return Budget(**dict(self))


class Sweep(FromFile):
    """What `tenfold sweep` reads; names of models, data, functions and methods as on the command line."""

    nets: Annotated[tuple[Net, ...], Some]
    methods: Annotated[dict[Name, str], Some]  # a name, and the methods that compete under it: "svd,tucker"
    budgets: Annotated[tuple[Limits, ...], Some, AfterValidator(_distinct)]
    seeds: Annotated[tuple[int, ...], Some, AfterValidator(_distinct)] = (0,)  # of the examples drawn and of recovery
    evaluate: str  # higher is better
    calibration: int = Field(1024, gt=0)  # examples of the data
    recover: str = "auto"
    guard: bool = False
    engine: Engine = "eager"  # where networks are timed
    device: str = "cpu"
    rows: tuple[str, ...] = ()  # files with rows of other libraries, .parquet or .csv

    @field_validator("nets")
    @classmethod
    def _named_apart(cls, nets: tuple[Net, ...]) -> tuple[Net, ...]:
        _distinct(tuple(net.name for net in nets))
        return nets

    @field_validator("methods")
    @classmethod
    def _known(cls, methods: dict[str, str]) -> dict[str, str]:
        if DENSE in methods:
            raise ValueError(f'"{DENSE}" names the rows of networks as they are; name it otherwise')
        for names in methods.values():
            methods_named(names)
        return methods

    @field_validator("recover")
    @classmethod
    def _is_a_way(cls, recover: str) -> str:
        check_recovery([], recover)
        return recover

    @property
    def is_timed(self) -> bool:
        """Whether networks are timed while they are planned."""
        return self.guard or any(limits.budget.is_timed for limits in self.budgets)
