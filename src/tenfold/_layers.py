"""The layers that methods serve: their weights in one form, and factor layers that stand in their place."""

# g groups, o outputs a group, i inputs a group, ... kernel axes, k kernel positions

from collections import Counter
from collections.abc import Iterable
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LAYERS = (nn.Linear, *CONVOLUTIONS, *TRANSPOSED, nn.Embedding)
# Layers of other libraries that compute what one of torch's computes. They are known by the names of their classes, so
# that those libraries need not be there.
_STORED_LIKE_EMBEDDINGS = "transformers.pytorch_utils.Conv1D"
_ALIKE = {"timm.layers.linear.Linear": nn.Linear, _STORED_LIKE_EMBEDDINGS: nn.Linear}


def kind(layer: nn.Module) -> type[nn.Module]:
    """Which layer of torch this is, or computes the same as: exactly, so subclasses are kinds of their own."""
    return _ALIKE.get(full_name(type(layer)), type(layer))


def full_name(cls: type) -> str:
    """The name of a class with its module's."""
    return f"{cls.__module__}.{cls.__qualname__}"


def owners(model: nn.Module) -> Counter[int]:
    """How many modules hold each parameter, by its id: more than one where layers share it."""
    return Counter(id(p) for module in model.modules() for p in module._parameters.values() if p is not None)


def channels(layer: Any) -> tuple[int, int]:
    """Inputs and outputs: channels, features, or rows and columns of an embedding."""
    if hasattr(layer, "nx"):
        return layer.nx, layer.nf
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    if isinstance(layer, nn.Embedding):
        return layer.num_embeddings, layer.embedding_dim
    return layer.in_channels, layer.out_channels


def groups(layer: Any) -> int:
    """Groups of a convolution; 1 otherwise."""
    return getattr(layer, "groups", 1)


def kernel_size(layer: Any) -> tuple[int, ...]:
    """One number for each kernel axis; none for Linear and Embedding."""
    return getattr(layer, "kernel_size", ())


def stores_channels_last(weight: Tensor) -> bool:
    """Whether a weight of two kernel axes stores channels last; where it makes no difference, it does not."""
    if weight.dim() != 4 or weight.is_contiguous():
        return False
    return weight.is_contiguous(memory_format=torch.channels_last)


def store_channels_last(model: nn.Module) -> None:
    """Let a model store its weights of two kernel axes channels last."""
    for parameter in model.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


def spatial_sides(layer: Any) -> tuple[int, int]:
    """H I and W O: the rows and columns of the spatial unfolding of a Linear or 2-d layer."""
    (inputs, outputs), (height, width) = channels(layer), kernel_size(layer) or (1, 1)
    return inputs * height, outputs * width


def is_pointwise(layer: Any) -> bool:
    """Whether the layer is one matrix (a group): Linear, Embedding, or a kernel of one position."""
    return prod(kernel_size(layer)) == 1


def kernels(layer: Any) -> Tensor:
    """The weight as `(g, o, i, *kernel)`, whatever way the layer stores it."""
    if hasattr(layer, "kernels"):
        return layer.kernels()
    return from_stored(type(layer), layer.weight, groups(layer))


def from_stored(cls: type, weight: Tensor, groups: int) -> Tensor:
    """`(g, o, i, *kernel)` from a weight as layers of this class store it."""
    if _inputs_come_first(cls):
        return weight.T[None]
    parted = weight.unflatten(0, (groups, weight.shape[0] // groups))
    return parted.transpose(1, 2) if issubclass(cls, TRANSPOSED) else parted


def to_stored(cls: type, kernels: Tensor) -> Tensor:
    """The inverse of `from_stored`."""
    if _inputs_come_first(cls):
        return kernels[0].T
    return (kernels.transpose(1, 2) if issubclass(cls, TRANSPOSED) else kernels).flatten(0, 1)


def _inputs_come_first(cls: type) -> bool:
    return issubclass(cls, nn.Embedding) or full_name(cls) == _STORED_LIKE_EMBEDDINGS


def matrices(layer: Any) -> Tensor:
    """The weight as `(g, o, i, k)` in float64."""
    weight = kernels(layer).detach().double()
    return weight.flatten(3) if weight.dim() > 3 else weight[..., None]


def write(factor: Any, values: Tensor) -> None:
    """Write `values`, in any shape that flattens to `(g, o, i, *kernel)`, as a factor's weight."""
    shape = from_stored(type(factor), factor.weight, groups(factor)).shape
    with torch.no_grad():
        factor.weight.copy_(to_stored(type(factor), values.reshape(shape)))


def write_bias(dense: Any, factored: Any) -> None:
    """The dense bias goes on the last factor: on an earlier one, zero padding would spoil it at the border."""
    if (bias := getattr(dense, "bias", None)) is not None:
        with torch.no_grad():
            factored.bias.copy_(bias)


def has_bias(layer: Any) -> bool:
    """Whether the layer adds a bias."""
    return getattr(layer, "bias", None) is not None


def factor(
    like: Any,
    inputs: int,
    outputs: int,
    *,
    axes: Iterable[int] = (),
    bias: bool = False,
    entry: bool = False,
    depthwise: bool = False,
) -> nn.Module:
    """A factor layer of `like`, from `inputs` to `outputs` channels, that spans the given kernel axes.

    Stride, padding and dilation of an axis go with the factor that spans it; a factor that spans none is pointwise.
    Groups are the dense layer's, unless the factor is `depthwise`. `entry` marks the factor that takes the layer's
    own input: for an embedding, the lookup. The dtype is the dense weight's.
    """
    dtype: torch.dtype = like.weight.dtype
    if isinstance(like, nn.Embedding) and entry:
        rules: dict[str, Any] = {
            "padding_idx": like.padding_idx,
            "scale_grad_by_freq": like.scale_grad_by_freq,
            "sparse": like.sparse,
        }
        return nn.Embedding(inputs, outputs, **rules, dtype=dtype)
    if not kernel_size(like):
        return nn.Linear(inputs, outputs, bias=bias, dtype=dtype)
    spanned = set(axes)

    def along(values: Any, otherwise: int) -> Any:
        return tuple(value if axis in spanned else otherwise for axis, value in enumerate(values))

    settings: dict[str, Any] = {
        "stride": along(like.stride, 1),
        # "same" and "valid" stay words: an even kernel pads unevenly, and pointwise axes get nothing either way.
        "padding": like.padding if spanned and isinstance(like.padding, str) else along(_sides(like), 0),
        "dilation": along(like.dilation, 1),
        "groups": inputs if depthwise else like.groups,
        "bias": bias,
        "padding_mode": like.padding_mode if spanned else "zeros",
        "dtype": dtype,
    }
    if isinstance(like, TRANSPOSED) and spanned:
        settings["output_padding"] = along(like.output_padding, 0)
    flat = isinstance(like, TRANSPOSED) and not spanned
    cls = CONVOLUTIONS[TRANSPOSED.index(type(like))] if flat else type(like)
    return cls(inputs, outputs, along(like.kernel_size, 1), **settings)


def _sides(conv: Any) -> tuple[int, ...]:
    return (0,) * len(conv.kernel_size) if isinstance(conv.padding, str) else conv.padding
