"""SVD training: factors that stay orthogonal, and singular values that the loss may bring to nothing."""

# O outputs, K inputs times kernel positions, R rank; h rows and w columns of a matrix

from typing import Any, Literal

import torch
from torch import Tensor, nn

from tenfold._apply import places_of, replace_module
from tenfold._errors import TenfoldError
from tenfold._factored import Factored, materialise
from tenfold._fit import made
from tenfold._layers import CONVOLUTIONS, channels, groups, kernel_size, kernels, owners, write, write_bias
from tenfold._method import Method, Site
from tenfold._plan import Fingerprint, MethodSpec, Plan, Step
from tenfold._run import copied, unwrapped
from tenfold.methods import SVD, SpatialSVD
from tenfold.train._hooks import Hooks

_SERVED = (nn.Linear, *CONVOLUTIONS)
_TINY = 1e-10


class SVDTraining(Hooks):
    """Train `W = U diag|s| V`, `lo [L(U) + L(V)] + ls R(s)` added to the loss (Yang et al. 2020, arXiv 2004.09031).

    L(M) = |M^T M - 1|^2 / R^2 keeps factors orthogonal, so that s are singular values; R(s) makes them sparse:
    Hoyer |s|_1 / |s|_2 - 1, its square |s|_1^2 / |s|_2^2 - 1, or L1 |s|_1. Both sum over layers. In stages:

    ```python
    training = SVDTraining("channel", orthogonality=1.0, sparsity=0.01)
    model = training.factorised(dense)         # trained or not
    ...                                        # train, with training.penalty(model) added to the loss
    model = training.cut(model, kept=0.95)     # of the energy
    ...                                        # train on, with SVDTraining("channel", sparsity=0)
    small, plan = training.finished(model, dense)
    ```

    Linear layers and convolutions without groups take part; form "spatial" needs kernels of two axes, and all other
    layers take the form "channel".

    Raises:
        TenfoldError: if there is no such form or regulariser, or a strength is below 0.
    """

    def __init__(
        self,
        form: Literal["channel", "spatial"] = "channel",
        *,
        orthogonality: float = 1.0,
        sparsity: float = 0.0,
        regulariser: Literal["hoyer", "hoyer-square", "l1"] = "hoyer",
    ) -> None:
        super().__init__()
        if form not in ("channel", "spatial"):
            raise TenfoldError(f'SVDTraining has no form {form!r}; use "channel" or "spatial".')
        if regulariser not in ("hoyer", "hoyer-square", "l1"):
            raise TenfoldError(f'SVDTraining has no regulariser {regulariser!r}; use "hoyer", "hoyer-square" or "l1".')
        if orthogonality < 0 or sparsity < 0:
            raise TenfoldError("SVDTraining: orthogonality and sparsity are 0 or more.")
        self.form, self.regulariser = form, regulariser
        self.orthogonality, self.sparsity = orthogonality, sparsity

    def factorised(self, dense: nn.Module) -> nn.Module:
        """A copy of the network whose layers are factorised at full rank; it computes the same.

        Raises:
            TenfoldError: if no layer takes part.
        """
        new = copied(unwrapped(dense))
        layers = _taking_part(new)
        if not layers:
            raise TenfoldError("SVDTraining: the network has no Linear layer and no convolution without groups.")
        places = places_of(new)
        for layer in layers:
            replace_module(places, layer, _with_values(self._method(layer), layer))
        return new

    def _method(self, layer: Any) -> Method:
        return SpatialSVD() if self.form == "spatial" and len(kernel_size(layer)) == 2 else SVD("output")

    def penalty(self, model: nn.Module) -> Tensor:
        total = super().penalty(model)
        for _, factored in _trained(model):
            first, values, then = factored
            if self.orthogonality:
                total = total + self.orthogonality * (_skewness(_rows_of_first(first)) + _skewness(_rows_of_last(then)))
            if self.sparsity:
                total = total + self.sparsity * self._sparse(values.values.abs())
        return total

    def _sparse(self, values_R: Tensor) -> Tensor:
        ones, twos = values_R.sum(), values_R.square().sum()
        if self.regulariser == "l1":
            return ones
        return ones / (twos + 1e-12).sqrt() - 1 if self.regulariser == "hoyer" else ones.square() / (twos + 1e-12) - 1

    def cut(self, model: nn.Module, kept: float) -> nn.Module:
        """A copy without the least singular values: of each layer as many stay as hold this share of their energy.

        Raises:
            TenfoldError: if the share is not in (0, 1].
        """
        if not 0 < kept <= 1:
            raise TenfoldError(f"SVDTraining.cut(kept={kept!r}): the share of energy is in (0, 1].")
        new = copied(model)
        for _, factored in _trained(new):
            energies = factored[1].values.detach().double().square()
            order = energies.argsort(descending=True)
            held = energies[order].cumsum(0) >= (kept - 1e-12) * energies.sum()
            _keep(factored, order[: int(held.double().argmax()) + 1].sort().values)
        return new

    def finished(self, model: nn.Module, dense: nn.Module) -> tuple[nn.Module, Plan]:
        """An ordinary compressed network and its plan; layers whose factors are no cheaper are dense again."""
        new, steps = copied(unwrapped(dense)), []
        known = new.state_dict()
        new.load_state_dict({n: value for n, value in model.state_dict().items() if n in known}, strict=False)
        places = places_of(new)
        for name, factored in _trained(model):
            layer, rank = new.get_submodule(name), (len(factored[1].values),)
            method = self._method(layer)
            with torch.device("meta"):
                (plain,) = method.skeleton(Site((name,), (layer,)), rank)
            if sum(p.numel() for p in plain.parameters()) < sum(p.numel() for p in layer.parameters()):
                _write_product(plain, factored)
                replace_module(places, layer, plain.train(layer.training))
                steps.append(Step(layers=(name,), method=MethodSpec.model_validate(method), rank=rank))
            else:
                _write_dense(layer, factored)
        return new, Plan(steps, fingerprint=Fingerprint.of(dense))


class SingularValues(nn.Module):
    """Each channel times the absolute value of a number: a root of it would have no gradient at 0."""

    def __init__(self, values_R: Tensor, axes: int) -> None:
        super().__init__()
        self.values, self.axes = nn.Parameter(values_R), axes

    def forward(self, x: Tensor) -> Tensor:
        """Scale the channels of `(N, R, ...)`, or of `(..., R)` where there are no kernel axes."""
        return x * self.values.abs().reshape(-1, *[1] * self.axes)

    def kernels(self) -> Tensor:
        """As those of a depthwise layer, `(R, 1, 1)`."""
        return self.values.abs()[:, None, None]


def _taking_part(model: nn.Module) -> list[Any]:
    times = owners(model)
    layers: list[Any] = [module for module in model.modules() if type(module) in _SERVED and groups(module) == 1]
    alone = [layer for layer in layers if times[id(layer.weight)] == 1]
    return [layer for layer in alone if min(layer.weight.flatten(1).shape) > 1]  # else there is nothing to cut


def _trained(model: nn.Module) -> list[tuple[str, Any]]:
    return [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, Factored) and any(isinstance(part, SingularValues) for part in module)
    ]


def _with_values(method: Method, layer: Any) -> Factored:
    site = Site(("",), (layer,))
    ((first, then),) = made(method, site, method.full_rank(site))
    rows = [_rows_of_first(first).detach().double(), _rows_of_last(then).detach().double()]
    values = rows[0].norm(dim=1) * rows[1].norm(dim=1)
    real = (values > _TINY * values.max())[:, None]
    for part, own, write_rows in zip((first, then), rows, (_write_first, _write_last), strict=True):
        unit = torch.where(real, own / own.norm(dim=1, keepdim=True), 0)
        left, _, right = torch.linalg.svd(unit, full_matrices=False)
        write_rows(part, left @ right)  # the rows themselves, and for values of 0 any that are orthogonal to them
    return Factored.of(layer, first, SingularValues(values.to(layer.weight.dtype), len(kernel_size(layer))), then)


def _skewness(rows_Rn: Tensor) -> Tensor:
    """L."""
    gram = rows_Rn @ rows_Rn.mT
    return (gram - torch.eye(len(gram), dtype=gram.dtype, device=gram.device)).square().sum() / len(gram) ** 2


def _rows_of_first(first: Any) -> Tensor:
    return kernels(first)[0].flatten(1)


def _rows_of_last(then: Any) -> Tensor:
    return kernels(then)[0].transpose(0, 1).flatten(1)


def _write_first(first: Any, rows_Rn: Tensor) -> None:
    write(first, rows_Rn)


def _write_last(then: Any, rows_Rn: Tensor) -> None:
    write(then, rows_Rn.unflatten(1, (channels(then)[1], -1)).transpose(0, 1))


def _keep(factored: Any, kept: Tensor) -> None:
    first, values, then = factored
    for part, name, chosen in ((first, "out", first.weight[kept]), (then, "in", then.weight[:, kept])):
        part.weight = nn.Parameter(chosen.detach().clone(), requires_grad=part.weight.requires_grad)
        setattr(part, f"{name}_{'channels' if kernel_size(part) else 'features'}", len(kept))
    values.values = nn.Parameter(values.values.detach()[kept].clone(), requires_grad=values.values.requires_grad)


def _write_product(plain: Factored, factored: Any) -> None:
    first, values, then = factored
    materialise(plain, first.weight.device)
    _write_first(plain[0], _rows_of_first(first).detach())
    _write_last(plain[1], values.values.detach().abs()[:, None] * _rows_of_last(then).detach())
    write_bias(factored, plain)


def _write_dense(layer: Any, factored: Factored) -> None:
    with torch.no_grad():
        layer.weight.copy_(factored.weight)
    write_bias(factored, layer)
