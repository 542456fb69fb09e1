"""torchvision's networks: segmentation whole, the others without their classifiers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torchvision import models
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.feature_extraction import create_feature_extractor

from benchmarks.networks import Foreign, picked

NETWORKS: dict[str, Foreign] = {}


def _add(name: str, build: Callable[[], nn.Module]) -> None:
    NETWORKS[name] = Foreign(build)


def _segmenting(name: str, key: str | None) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        model = getattr(models.segmentation, name)(weights=None, weights_backbone=None, num_classes=3)
        return model if key is None else picked(model, key)

    return build


def _children(name: str, last: int, **arguments: Any) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(*list(getattr(models, name)(weights=None, **arguments).children())[:last])


def _parts(name: str, *parts: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        model = getattr(models, name)(weights=None)
        chosen = [getattr(model, part) for part in parts]
        modules = [each for part in chosen for each in (part if isinstance(part, nn.ModuleList) else [part])]
        return nn.Sequential(*modules) if len(modules) > 1 else modules[0]

    return build


def _until(name: str, last: str, **arguments: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        model = getattr(models, name)(weights=None, **arguments)
        return picked(create_feature_extractor(model, {last: "out"}), "out")

    return build


def _pyramid(key: str | None) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        model: nn.Module = resnet_fpn_backbone(backbone_name="resnet18", weights=None)
        return model if key is None else picked(model, key)

    return build


for _name in (
    "fcn_resnet50",
    "deeplabv3_resnet50",
    "deeplabv3_mobilenet_v3_large",
    "lraspp_mobilenet_v3_large",
):
    _add(_name, _segmenting(_name, None))
    _add(f"{_name} [out]", _segmenting(_name, "out"))
_add("resnet18 trunk", _children("resnet18", -2))
_add("resnet50 dilated", _children("resnet50", -3, replace_stride_with_dilation=[False, True, True]))
for _name in (
    "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "efficientnet_v2_s", "convnext_tiny",
    "densenet121",
    "squeezenet1_0", "squeezenet1_1", "vgg11", "vgg11_bn", "alexnet", "swin_t", "swin_v2_t",
):  # fmt: skip
    _add(f"{_name} features", _parts(_name, "features"))
_add("mnasnet0_5 layers", _parts("mnasnet0_5", "layers"))
_add(
    "shufflenet_v2 trunk",
    _parts("shufflenet_v2_x0_5", "conv1", "maxpool", "stage2", "stage3", "stage4", "conv5"),
)
_add("regnet_y_400mf trunk", _parts("regnet_y_400mf", "stem", "trunk_output"))
_add("maxvit_t blocks", _parts("maxvit_t", "stem", "blocks"))
_add("googlenet inception5b", _until("googlenet", "inception5b", aux_logits=False, init_weights=False))
_add("inception_v3 Mixed_7c", _until("inception_v3", "Mixed_7c", init_weights=False))
_add("resnet18 create_feature_extractor", _until("resnet18", "layer3"))
_add("efficientnet_b0 create_feature_extractor", _until("efficientnet_b0", "features.5"))
_add(
    "resnet18 IntermediateLayerGetter",
    lambda: picked(
        IntermediateLayerGetter(models.resnet18(weights=None), {"layer2": "a", "layer4": "b"}), "b"
    ),
)
_add("resnet18 fpn", _pyramid(None))
_add("resnet18 fpn [0]", _pyramid("0"))
_add("resnet18 classifier", lambda: models.resnet18(weights=None))
_add("vit_b_32", lambda: models.vit_b_32(weights=None))
