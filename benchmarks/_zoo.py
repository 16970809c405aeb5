"""Many architectures with random weights: which, how each is built, and what goes into it.

Those of timm stand in `_timm.txt`: of every family of models up to three of the smallest, with different numbers of
parameters, each with the side of the smallest image it takes (64 or more). Where its layers depend on that side, it
is built for it.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tenfold._sources import declare_operators

Build = Callable[[], nn.Module]


@dataclass(frozen=True)
class Entry:
    """An architecture."""

    build: Build  # with whatever weights
    example: Callable[[], Any]  # two images or sequences: norms need two in training
    targets: Callable[[], Any] | None = None  # that a detector takes in training, besides its images

    @property
    def detects(self) -> bool:
        """Whether how many boxes it finds depends on the weights."""
        return self.targets is not None


def entries(library: str, *, small: bool) -> dict[str, Entry]:
    """The architectures of a library by name: those of the matrix, or small ones for a quick run."""
    return LIBRARIES[library](small)


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model with random weights and random statistics of its batch norms, in eval mode.

    Weights keep the variance of what goes through them. Norms scale by less than one: in eval mode nothing else keeps
    the sums of a hundred residual blocks from overflowing.
    """
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1 and not name.endswith("bias"):
            parameter.data.uniform_(0.5, 1.0, generator=generator)
        elif parameter.dim() >= 1 and parameter.numel():  # a single number is a temperature: left as it is
            deviation = 0.1 if parameter.dim() == 1 else parameter[0].numel() ** -0.5
            parameter.data.normal_(0, deviation, generator=generator)
    return model.eval()


def _images(side: int) -> Tensor:
    return _drawn(2, 3, side, side)


def _drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _tokens(length: int = 12) -> Tensor:
    return torch.randint(3, 96, (2, length), generator=torch.Generator().manual_seed(0))


def _find_operators() -> None:
    """Load torchvision's compiled operators, or declare them, for all that imports torchvision or timm after this."""
    spec = find_spec("torchvision")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for file in Path(folder).glob("_C*.so"):
            with suppress(OSError):
                torch.ops.load_library(file)
                return
    declare_operators()


_find_operators()

# torchvision ---------------------------------------------------------------------------------------------------------

_OTHER_KINDS = ("quantization", "video", "optical_flow")  # modules of torchvision.models that are left out
_SIDE = 64
_SIDES = {"inception_v3": 299, "maxvit_t": 224, "vit_h_14": 56}
_DETECTION_SIDE = 96


def _torchvision(small: bool) -> dict[str, Entry]:
    return _torchvision_small() if small else _torchvision_all()


def _torchvision_all() -> dict[str, Entry]:
    from torchvision import models

    taken = [
        name
        for name in models.list_models()
        if not any(kind in models.get_model_builder(name).__module__.split(".") for kind in _OTHER_KINDS)
    ]
    return {name: _torchvision_entry(name) for name in taken}


def _torchvision_entry(name: str) -> Entry:
    from torchvision import models

    module, settings = models.get_model_builder(name).__module__, {}
    if ".detection." in module:
        settings = {"weights_backbone": None}
        if "ssd" not in name:  # those have one size, that of their anchors
            settings |= {"min_size": _DETECTION_SIDE, "max_size": _DETECTION_SIDE}
        build = partial(models.get_model, name, weights=None, **settings)
        return Entry(build, lambda: (list(_images(_DETECTION_SIDE)),), targets=_objects)
    side = _SIDES.get(name, _SIDE)
    if ".segmentation." in module:
        settings = {"weights_backbone": None}
    elif name.startswith("vit_"):
        settings = {"image_size": side}
    elif name in ("googlenet", "inception_v3"):
        settings = {"init_weights": False}  # theirs takes minutes
    return Entry(partial(models.get_model, name, weights=None, **settings), partial(_images, side))


def _objects() -> list[dict[str, Tensor]]:
    """One object in each of two images, with all that any detector wants to know of it."""
    masks = torch.zeros(1, _DETECTION_SIDE, _DETECTION_SIDE, dtype=torch.uint8)
    masks[:, 20:60, 20:60] = 1
    points = torch.tensor([40.0, 40.0, 1.0]).expand(1, 17, 3).clone()
    box, label = torch.tensor([[20.0, 20.0, 60.0, 60.0]]), torch.ones(1, dtype=torch.int64)
    return [{"boxes": box, "labels": label, "masks": masks, "keypoints": points} for _ in range(2)]


def _torchvision_small() -> dict[str, Entry]:
    from torchvision import models
    from torchvision.models import convnext, densenet, regnet, resnet, swin_transformer

    classes = {"num_classes": 10}
    widths = regnet.BlockParams.from_init_params(depth=4, w_0=24, w_a=24.0, w_m=2.5, group_width=8)
    blocks = [convnext.CNBlockConfig(24, 48, 1), convnext.CNBlockConfig(48, None, 1)]
    builds: dict[str, Build] = {
        "convnext": partial(convnext.ConvNeXt, blocks, **classes),
        "densenet": partial(densenet.DenseNet, 8, (2, 2, 2), 16, **classes),
        "lraspp": partial(models.segmentation.lraspp_mobilenet_v3_large, weights_backbone=None, **classes),
        "mnasnet": partial(models.MNASNet, 0.35, **classes),
        "mobilenet_v2": partial(models.MobileNetV2, width_mult=0.35, **classes),
        "mobilenet_v3": partial(models.mobilenet_v3_small, width_mult=0.5, **classes),
        "regnet": partial(regnet.RegNet, widths, **classes),
        "resnet": partial(resnet.ResNet, resnet.BasicBlock, [1, 1, 1, 1], **classes),
        "shufflenet_v2": partial(models.shufflenet_v2_x0_5, **classes),
        "squeezenet": partial(models.squeezenet1_1, **classes),
        "swin": partial(swin_transformer.SwinTransformer, [4, 4], 24, [2, 2], [2, 4], [4, 4], **classes),
        "vit": partial(models.VisionTransformer, _SIDE, 16, 2, 2, 48, 96, **classes),
    }
    return {name: Entry(build, partial(_images, _SIDE)) for name, build in builds.items()}


# timm ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Line:
    """A line of `_timm.txt`: `name side built`, the last word being `built` or `any`."""

    name: str
    side: int
    built: bool  # for that side


def _timm(small: bool) -> dict[str, Entry]:
    import timm

    def entry(line: _Line) -> Entry:
        settings = {"img_size": line.side} if line.built else {}
        return Entry(partial(timm.create_model, line.name, **settings), partial(_images, line.side))

    # timm's own tiny models, for tests, start with "test_".
    return {line.name: entry(line) for line in _timm_lines() if line.name.startswith("test_") == small}


def _timm_lines() -> Sequence[_Line]:
    text = Path(__file__).with_name("_timm.txt").read_text()
    words = [line.split() for line in text.splitlines()]
    return [_Line(name, int(side), built == "built") for name, side, built in words]


# transformers --------------------------------------------------------------------------------------------------------

_VISION = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "image_size": 32,
    "patch_size": 8,
}
_TEXT = {
    "vocab_size": 99,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 64,
}


def _transformers(small: bool) -> dict[str, Entry]:  # noqa: ARG001  all of them are small
    import transformers as hf

    pixels = partial(_keywords, pixel_values=partial(_images, 32))
    words = partial(_keywords, input_ids=_tokens, attention_mask=partial(torch.ones, 2, 12, dtype=torch.int64))
    pair = partial(_keywords, input_ids=_tokens, decoder_input_ids=partial(_tokens, 6))
    sound = partial(_keywords, input_features=partial(_drawn, 2, 16, 40), decoder_input_ids=partial(_tokens, 6))
    both = partial(_keywords, input_ids=_tokens, pixel_values=partial(_images, 32))
    swin = hf.SwinConfig(image_size=32, patch_size=4, embed_dim=24, depths=[2, 2], num_heads=[2, 4], window_size=4)
    ends = {"bos_token_id": 1, "eos_token_id": 2}
    gpt = hf.GPT2Config(vocab_size=99, n_positions=64, n_embd=64, n_layer=2, n_head=4, **ends, use_cache=False)
    llama = hf.LlamaConfig(**_TEXT, num_key_value_heads=2, use_cache=False)
    t5 = hf.T5Config(vocab_size=99, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, use_cache=False)
    whisper = hf.WhisperConfig(
        vocab_size=99,
        num_mel_bins=16,
        d_model=64,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=128,
        decoder_ffn_dim=128,
        max_source_positions=20,
        max_target_positions=32,
        pad_token_id=0,
        **ends,
        decoder_start_token_id=1,
        use_cache=False,
    )
    clip = hf.CLIPConfig(text_config=_TEXT | ends, vision_config=_VISION, projection_dim=32)
    return {
        "beit": Entry(partial(hf.BeitForImageClassification, hf.BeitConfig(**_VISION)), pixels),
        "bert": Entry(partial(hf.BertForSequenceClassification, hf.BertConfig(**_TEXT)), words),
        "clip": Entry(partial(hf.CLIPModel, clip), both),
        "deit": Entry(partial(hf.DeiTForImageClassification, hf.DeiTConfig(**_VISION)), pixels),
        "gpt2": Entry(partial(hf.GPT2LMHeadModel, gpt), words),
        "llama": Entry(partial(hf.LlamaForCausalLM, llama), words),
        "swin": Entry(partial(hf.SwinForImageClassification, swin), pixels),
        "t5": Entry(partial(hf.T5ForConditionalGeneration, t5), pair),
        "vit": Entry(partial(hf.ViTForImageClassification, hf.ViTConfig(**_VISION)), pixels),
        "whisper": Entry(partial(hf.WhisperForConditionalGeneration, whisper), sound),
    }


def _keywords(**makers: Callable[[], Tensor]) -> dict[str, Tensor]:
    return {name: make() for name, make in makers.items()}


LIBRARIES: dict[str, Callable[[bool], dict[str, Entry]]] = {
    "torchvision": _torchvision,
    "timm": _timm,
    "transformers": _transformers,
}
