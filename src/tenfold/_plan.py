"""A plan: which layers are replaced, by which method, at which rank. Plain data that a person can read and edit."""

import hashlib
import json
from dataclasses import asdict, fields, is_dataclass
from typing import Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)
from torch import Tensor, nn

from tenfold._errors import TenfoldError

Rank = tuple[int, ...]
Side = Literal["out", "in", "both", "norm"]  # makes channels, reads them, is depthwise, scales them


def is_number(value: Any) -> bool:
    """Whether it is a plain number, which a truth value is not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


class Record(BaseModel):
    """Frozen plain data, checked when made; a wrong value is a `TenfoldError` in one sentence."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def __init__(self, **data: Any) -> None:
        try:
            super().__init__(**data)
        except ValidationError as error:
            raise TenfoldError(f"{type(self).__name__}: {_sentence(error)}") from None

    @classmethod
    def loads(cls, text: str | bytes, name: str | None = None) -> Self:
        """Read JSON text; `name` is what messages call it."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            name = name or f"this {cls.__name__.lower()}"
            raise TenfoldError(f"{name} cannot be read: {_sentence(error)}") from None


class MethodSpec(Record):
    """A method by name, with its fields: `MethodSpec(name="svd", side="output")`."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str

    @model_validator(mode="before")
    @classmethod
    def _from_name_or_method(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"name": value}
        if is_dataclass(value) and not isinstance(value, type):
            kept = {f.name for f in fields(value) if f.metadata.get("planned", True)}
            described = {name: part for name, part in asdict(value).items() if name in kept}
            value = {"name": getattr(value, "name", type(value).__name__), **described}
        # Through JSON, so that a plan equals itself after a round trip: tuples become lists.
        return json.loads(json.dumps(value)) if isinstance(value, dict) else value

    @property
    def fields(self) -> dict[str, Any]:
        """The method's own fields, without its name."""
        return dict(self.model_extra or {})


class Link(Record):
    """Where filters lie in a module: each is `repeat` of its `width` channels, the first one's at `offset`."""

    module: str
    side: Side
    filters: PositiveInt
    width: PositiveInt
    offset: NonNegativeInt = 0  # behind what is concatenated before
    repeat: PositiveInt = 1  # positions that were flattened into channels

    @model_validator(mode="after")
    def _inside(self) -> Self:
        if self.offset + self.filters * self.repeat > self.width:
            raise ValueError(f"its filters end at channel {self.offset + self.filters * self.repeat} of {self.width}")
        return self


class Step(Record):
    """Replace `layers` together by what `method` makes of them at `rank`, run in `form`.

    With links, filters of `layers` are removed wherever they lie, and the rank says how many stay.
    """

    layers: tuple[str, ...]
    method: MethodSpec
    rank: tuple[PositiveInt, ...]
    form: str = "factors"
    links: tuple[Link, ...] = ()

    @field_validator("layers")
    @classmethod
    def _some_layers(cls, layers: tuple[str, ...]) -> tuple[str, ...]:
        if not layers:
            raise ValueError("a step needs at least one layer")
        if len(set(layers)) < len(layers):
            raise ValueError("a step names a layer twice")
        return layers

    @model_validator(mode="after")
    def _links_of_one_group(self) -> Self:
        if not self.links:
            return self
        if {link.module for link in self.links if link.side == "out"} != set(self.layers):
            raise ValueError("its links do not say where the filters of its layers lie")
        if len({link.filters for link in self.links}) > 1:
            raise ValueError("its links are of different numbers of filters")
        if len(self.rank) != 1 or self.rank[0] > self.links[0].filters:
            raise ValueError(f"its rank is one number, of the filters that stay: {self.links[0].filters} at most")
        return self


class Fingerprint(Record):
    """Tells one architecture from another: a digest of the names, shapes and dtypes of all tensors."""

    tensors: int
    params: int
    sha256: str

    @classmethod
    def of(cls, model: nn.Module) -> "Fingerprint":
        """The fingerprint of `model`, which may be on the meta device."""
        every = {n: t for n, t in model.state_dict(keep_vars=True).items() if isinstance(t, Tensor)}
        state = [f"{n} {tuple(t.shape)} {t.dtype}" for n, t in every.items()]
        return cls(
            tensors=len(state),
            params=sum(p.numel() for p in model.parameters()),
            sha256=hashlib.sha256("\n".join(state).encode()).hexdigest(),
        )


class Plan(Record):
    """Steps to apply in order, and the fingerprint of the dense model that they were made for.

    `Plan.loads(plan.dumps()) == plan`, and `apply(model, p + q)` equals `apply(apply(model, p), q)`.
    """

    version: Literal[1] = 1
    fingerprint: Fingerprint | None = None  # None: not checked
    reference: str | None = None  # how to build the dense model again: "timm:NAME", "module:callable", ...
    channels_last: bool = False  # whether the network stores its kernels of two axes so, however the dense one does
    steps: tuple[Step, ...] = ()

    def __init__(self, steps: Any = (), **data: Any) -> None:
        super().__init__(steps=steps, **data)

    def __add__(self, other: "Plan") -> "Plan":
        last = self.channels_last or other.channels_last
        return self.model_copy(update={"steps": self.steps + other.steps, "channels_last": last})

    def dumps(self) -> str:
        """JSON with one step a line."""
        data = self.model_dump(mode="json")
        given = [{key: value for key, value in step.items() if key != "links" or value} for step in data.pop("steps")]
        steps = ",\n".join("    " + json.dumps(step) for step in given)
        head = "\n".join(f"  {json.dumps(key)}: {json.dumps(value)}," for key, value in data.items())
        return f'{{\n{head}\n  "steps": [\n{steps}\n  ]\n}}\n'

    def check_made_for(self, model: nn.Module) -> None:
        """Refuse a model that this plan was not made for."""
        if self.fingerprint is None:
            return
        found = Fingerprint.of(model)
        if found != self.fingerprint:
            raise TenfoldError(
                f"the plan was made for another network: {self.fingerprint.tensors} tensors with "
                f"{self.fingerprint.params:,} parameters there, {found.tensors} with {found.params:,} here"
                f"{'' if found.params != self.fingerprint.params else ' (names, shapes or dtypes differ)'}. "
                "Plan this network again."
            )


def _sentence(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{where + ': ' if where else ''}{first['msg'].removeprefix('Value error, ').rstrip('.')}{more}."
