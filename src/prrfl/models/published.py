"""Names of tensors in published weights, where they differ from the network's own.

The networks have torchvision's names or MONAI's. Files of other libraries hold the same tensors under others.
"""

import re
from collections.abc import Callable, Collection, Mapping

from torch import Tensor

Rename = Callable[[str, Collection[str]], str]
"""Returns the network's name of a file's tensor, given the file's name and all names of the network."""


def with_own_names(weights: Mapping[str, Tensor], own: Collection[str]) -> tuple[str, dict[str, Tensor]]:
    """Return weights under the network's names.

    Args:
        weights: tensors of a file by name.
        own: the names of the network's tensors.

    Returns:
        Whose names the file has, empty if they are the network's; and the weights. Names that are in no list
        stay as they are. Constants that the network computes itself are left out.
    """
    kept = {key: tensor for key, tensor in weights.items() if not key.endswith(CONSTANTS)}
    found = {whose: {rename(key, own): key for key in kept} for whose, rename in NAMING.items()}
    best = max(found, key=lambda whose: len(found[whose].keys() & set(own)))
    return best, {name: kept[key] for name, key in found[best].items()}


CONSTANTS = ("relative_position_index", "attn_mask")


def _same(name: str, _: Collection[str]) -> str:
    return name


def _torchvision(name: str, _: Collection[str]) -> str:
    """Files of old versions number no layers of ViT's perceptron, and all layers of DenseNet."""
    name = name.replace(".mlp.linear_1.", ".mlp.0.").replace(".mlp.linear_2.", ".mlp.3.")
    name = re.sub(r"(denselayer\d+)\.(norm|conv)\.?([12])\.", r"\1.layers.\2\3.", name)
    return re.sub(r"^classifier\.(?=weight|bias)", "class_layers.out.", name)


def _torchvision_efficientnet(name: str, own: Collection[str]) -> str:
    name = re.sub(r"^features\.0\.0\.", "_conv_stem.", name)
    name = re.sub(r"^features\.0\.1\.", "_bn0.", name)
    name = re.sub(r"^features\.8\.0\.", "_conv_head.", name)
    name = re.sub(r"^features\.8\.1\.", "_bn1.", name)
    name = re.sub(r"^classifier\.1\.", "_fc.", name)
    match = re.fullmatch(r"features\.(\d+)\.(\d+)\.block\.(\d+)\.(\w+)\.(\w+)", name)
    if match is None:
        return name
    stage, block, part = (int(match[k]) for k in (1, 2, 3))
    blocks = sorted(number for number, of in _stages(own).items() if of == stage - 1)
    if block >= len(blocks):
        return name
    # The blocks of the first stage do not expand.
    kind = ("expand", "depthwise", "squeeze", "project")[part + (stage == 1)]
    place = {
        "expand": {"0": "_expand_conv", "1": "_bn0"},
        "depthwise": {"0": "_depthwise_conv", "1": "_bn1"},
        "squeeze": {"fc1": "_se_reduce", "fc2": "_se_expand"},
        "project": {"0": "_project_conv", "1": "_bn2"},
    }[kind].get(match[4], match[4])
    return f"_blocks.{stage - 1}.{blocks[block]}.{place}.{match[5]}"


def _efficientnet_pytorch(name: str, own: Collection[str]) -> str:
    match = re.match(r"_blocks\.(\d+)\.(?=_)", name)
    stage = _stages(own).get(int(match[1])) if match else None
    return name if match is None or stage is None else f"_blocks.{stage}.{match[1]}.{name[match.end() :]}"


def _stages(own: Collection[str]) -> dict[int, int]:
    """Return the stage of each block of MONAI's EfficientNet."""
    found = (re.match(r"_blocks\.(\d+)\.(\d+)\.", name) for name in own)
    return {int(match[2]): int(match[1]) for match in found if match}


def _timm_vit(name: str, _: Collection[str]) -> str:
    return _replaced(name, {
        r"^cls_token$": "class_token",
        r"^pos_embed$": "encoder.pos_embedding",
        r"^patch_embed\.proj\.": "conv_proj.",
        r"^norm\.": "encoder.ln.",
        r"^head\.": "heads.head.",
        r"^blocks\.(\d+)\.norm([12])\.": r"encoder.layers.encoder_layer_\1.ln_\2.",
        r"^blocks\.(\d+)\.attn\.qkv\.": r"encoder.layers.encoder_layer_\1.self_attention.in_proj_",
        r"^blocks\.(\d+)\.attn\.proj\.": r"encoder.layers.encoder_layer_\1.self_attention.out_proj.",
        r"^blocks\.(\d+)\.mlp\.fc1\.": r"encoder.layers.encoder_layer_\1.mlp.0.",
        r"^blocks\.(\d+)\.mlp\.fc2\.": r"encoder.layers.encoder_layer_\1.mlp.3.",
    })  # fmt: skip


def _authors_swin(name: str, _: Collection[str]) -> str:
    """In the authors' files a stage ends with the merging of tokens."""
    name = re.sub(r"^layers\.(\d+)\.downsample\.", lambda m: f"features.{2 * int(m[1]) + 2}.", name)
    return _swin(name)


def _timm_swin(name: str, _: Collection[str]) -> str:
    """Since timm 0.9 a stage begins with the merging of tokens."""
    name = re.sub(r"^layers\.(\d+)\.downsample\.", lambda m: f"features.{2 * int(m[1])}.", name)
    return _swin(re.sub(r"^head\.fc\.", "head.", name))


def _swin(name: str) -> str:
    name = re.sub(r"^layers\.(\d+)\.blocks\.", lambda m: f"features.{2 * int(m[1]) + 1}.", name)
    return _replaced(name, {
        r"^patch_embed\.proj\.": "features.0.0.",
        r"^patch_embed\.norm\.": "features.0.2.",
        r"\.mlp\.fc1\.": ".mlp.0.",
        r"\.mlp\.fc2\.": ".mlp.3.",
    })  # fmt: skip


def _replaced(name: str, patterns: Mapping[str, str]) -> str:
    for pattern, new in patterns.items():
        name = re.sub(pattern, new, name)
    return name


NAMING: Mapping[str, Rename] = {
    "": _same,
    "torchvision": _torchvision,
    "torchvision's EfficientNet": _torchvision_efficientnet,
    "efficientnet_pytorch": _efficientnet_pytorch,
    "timm's ViT": _timm_vit,
    "Swin's authors": _authors_swin,
    "timm's Swin": _timm_swin,
}
"""Whose names a file may have. Of several that fit equally well, the first is taken."""

DIFFERENT: Mapping[str, str] = {
    "torchvision's EfficientNet": "torchvision's EfficientNet pads images in another way and divides by a "
    "slightly smaller standard deviation in batch norm, so its outputs differ; efficientnet-b0-355c32eb.pth "
    "of efficientnet_pytorch fits exactly",
}
"""What to know of weights that fit, but come from a network that computes other outputs."""
