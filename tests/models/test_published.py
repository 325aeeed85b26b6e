"""The networks are the published ones: their sizes, outputs, and names in files of other libraries."""

import re

import pytest
import torch

from prrfl.errors import StateMismatchError
from prrfl.models import build_network
from prrfl.models.swin import swin
from prrfl.models.vit import vit
from prrfl.models.weights import load_weights
from prrfl.testing import check_network
from tests.sites_on_disk import write_layout

PARAMETERS = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "densenet121": 7_978_856,
    "efficientnet-b0": 5_288_548,
    "vit-b16": 86_567_656,
    "swin-t": 28_288_354,
}
"""With 1000 classes, as torchvision's documentation lists them."""


@pytest.mark.parametrize("name", PARAMETERS)
def test_number_of_parameters(name):
    with torch.device("meta"):
        network = build_network(name, 1000)
    assert sum(parameter.numel() for parameter in network.parameters()) == PARAMETERS[name]


def filled(network):
    state = network.state_dict()
    for k, key in enumerate(sorted(state)):
        steps = torch.arange(state[key].numel()).double()
        state[key] = 0.3 * torch.sin(0.7 * steps + k).view(state[key].shape).float()
    network.load_state_dict(state)
    return network.double().eval()


# Of ViTForImageClassification and SwinForImageClassification in transformers 5.17, with the same weights.
OUTPUTS = {
    "vit": (vit(3, 16, 2, 2), [-0.6320681507531695, -1.027386911813411, -0.006306858096496976]),
    "swin": (swin(3, 8, "2,2", "2,4"), [0.635346374891994, -0.3990644718964488, -0.8006536136686832]),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs_are_those_of_transformers(name):
    network, expected = OUTPUTS[name]
    images = torch.sin(0.01 * torch.arange(2 * 3 * 96 * 96).double()).view(2, 3, 96, 96)
    with torch.no_grad():
        found = filled(network)(images)
    torch.testing.assert_close(found[0], torch.tensor(expected).double(), rtol=0, atol=1e-7)


@pytest.mark.parametrize("make", [lambda n: vit(n, 16, 2, 2), lambda n: swin(n, 8, "1,2,1,1", "1,1,1,1")])
def test_small_ones_keep_the_contract_of_networks(make):
    check_network(make)


BLOCK = {
    "norm1": "ln_1",
    "norm2": "ln_2",
    "attn.proj": "self_attention.out_proj",
    "mlp.fc1": "mlp.0",
    "mlp.fc2": "mlp.3",
}


def by_timm(state):
    renamed = {
        "cls_token": state["class_token"],
        "pos_embed": state["encoder.pos_embedding"],
        **{
            f"{new}.{p}": state[f"{old}.{p}"]
            for new, old in {
                "patch_embed.proj": "conv_proj",
                "norm": "encoder.ln",
                "head": "heads.head",
            }.items()
            for p in ("weight", "bias")
        },
    }
    for k in (0, 1):
        inside = f"encoder.layers.encoder_layer_{k}"
        for p in ("weight", "bias"):
            renamed |= {f"blocks.{k}.{new}.{p}": state[f"{inside}.{old}.{p}"] for new, old in BLOCK.items()}
            renamed[f"blocks.{k}.attn.qkv.{p}"] = state[f"{inside}.self_attention.in_proj_{p}"]
    return renamed


def by_old_torchvision(state):
    return {
        key.replace(".mlp.0.", ".mlp.linear_1.").replace(".mlp.3.", ".mlp.linear_2."): t
        for key, t in state.items()
    }


def swin_by_others(state, place):
    renamed = {}
    for key, tensor in state.items():
        stage, _, rest = key.removeprefix("features.").partition(".")
        rest = rest.replace("mlp.0.", "mlp.fc1.").replace("mlp.3.", "mlp.fc2.")
        if not key.startswith("features."):
            renamed[key] = tensor
        elif stage == "0":
            renamed[f"patch_embed.{rest.replace('0.', 'proj.').replace('2.', 'norm.')}"] = tensor
        elif int(stage) % 2:
            renamed[f"layers.{(int(stage) - 1) // 2}.blocks.{rest}"] = tensor
            renamed[f"layers.{(int(stage) - 1) // 2}.blocks.{rest[:2]}attn.relative_position_index"] = (
                torch.zeros(49, 49)
            )
        else:
            renamed[f"layers.{place(int(stage))}.downsample.{rest}"] = tensor
    return renamed


def timm_swin(state):
    return {
        re.sub("^head[.]", "head.fc.", key): tensor
        for key, tensor in swin_by_others(state, lambda stage: stage // 2).items()
    }


def densenet(dot):
    def renamed(state):
        return {
            re.sub(r"\.layers\.(norm|conv)(\d)", rf".\1{dot}\2", key).replace(
                "class_layers.out", "classifier"
            ): tensor
            for key, tensor in state.items()
        }

    return renamed


def flat_efficientnet(state):
    return {re.sub(r"^_blocks\.\d+\.", "_blocks.", key): tensor for key, tensor in state.items()}


def torchvision_efficientnet(state):
    parts = {"_expand_conv": "0.0", "_bn0": "0.1", "_depthwise_conv": "1.0", "_bn1": "1.1",
             "_se_reduce": "2.fc1", "_se_expand": "2.fc2", "_project_conv": "3.0", "_bn2": "3.1"}  # fmt: skip
    ends = {"_conv_stem": "features.0.0", "_bn0": "features.0.1", "_conv_head": "features.8.0",
            "_bn1": "features.8.1", "_fc": "classifier.1"}  # fmt: skip
    first = {}
    renamed = {}
    for key, tensor in state.items():
        name, _, last = key.rpartition(".")
        if name in ends:
            renamed[f"{ends[name]}.{last}"] = tensor
            continue
        _, stage, block, part = name.split(".")
        first.setdefault(stage, int(block))
        layer, _, inner = parts[part].partition(".")
        layer = int(layer) - (stage == "0")
        renamed[f"features.{int(stage) + 1}.{int(block) - first[stage]}.block.{layer}.{inner}.{last}"] = (
            tensor
        )
    return renamed


def small_vit(classes, seed):
    torch.manual_seed(seed)
    return vit(classes, 16, 2, 2)


def small_swin(classes, seed):
    torch.manual_seed(seed)
    return swin(classes, 8, "1,2,1", "1,1,1")


def named(name):
    return lambda classes, seed: build_network(name, classes, seed)


FILES = {
    "resnet18": (named("resnet18"), dict),
    "densenet121": (named("densenet121"), densenet("")),
    "densenet121, old": (named("densenet121"), densenet(".")),
    "efficientnet_pytorch": (named("efficientnet-b0"), flat_efficientnet),
    "torchvision's EfficientNet": (named("efficientnet-b0"), torchvision_efficientnet),
    "vit": (small_vit, dict),
    "vit, old": (small_vit, by_old_torchvision),
    "vit of timm": (small_vit, by_timm),
    "swin": (small_swin, dict),
    "swin of its authors": (small_swin, lambda state: swin_by_others(state, lambda stage: stage // 2 - 1)),
    "swin of timm": (small_swin, timm_swin),
}


@pytest.mark.parametrize("case", FILES)
def test_weights_of_other_libraries_fit(case, tmp_path, caplog):
    make, rename = FILES[case]
    theirs, ours = make(3, 1).state_dict(), make(3, 2)
    file = rename(theirs)
    assert rename is dict or file.keys() != theirs.keys()
    torch.save(file, tmp_path / "w.pth")
    load_weights(ours, str(tmp_path / "w.pth"))
    assert all(torch.equal(tensor, theirs[key]) for key, tensor in ours.state_dict().items())
    assert ("pads images in another way" in caplog.text) == (case == "torchvision's EfficientNet")


def test_what_does_not_fit_is_refused_by_name(tmp_path):
    state = by_timm(small_vit(3, 1).state_dict())
    del state["blocks.1.norm2.bias"]
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(
        StateMismatchError, match=r"names as in timm's ViT\) lacks tensor '.*layer_1.ln_2.bias'"
    ):
        load_weights(small_vit(3, 2), str(tmp_path / "w.pth"))


def test_a_published_vit_is_trained_frozen_exported_and_used(prrfl, tmp_path):
    data = write_layout(tmp_path / "data")
    torch.save(by_timm(small_vit(1000, 1).state_dict()), tmp_path / "w.pth")
    small = ["--set", "network.width=16", "--set", "network.depth=2", "--set", "network.heads=2"]
    flags = ["--image-size", 48, "--rounds", 1, "--epochs", 1, "--batch", 8, "--workers", 1]
    start = ["--weights", tmp_path / "w.pth", "--new-head", "--freeze", "encoder.*,conv_proj.*,class_token"]
    run = tmp_path / "run"
    network = ["--network", "prrfl.models.vit:vit", *small]
    code, _, err = prrfl("train", "--data", data, "--out", run, *network, *flags, *start)
    assert code == 0, err
    sent = [line for line in (run / "metrics.jsonl").read_text().splitlines() if "bytes_up" in line]
    assert re.search(r'"clientA": ?\d{2,3}\b', sent[0]), "only the last layer's 51 numbers travel"
    code, _, err = prrfl("export", run, "--site", "clientA", "--out", tmp_path / "onnx")
    assert code == 0, err
    image = next(data.rglob("*.png"))
    assert prrfl("predict", run, image, "--site", "clientA", "--out", tmp_path / "p.csv")[0] == 0


def test_inspect_lists_frozen_tensors(prrfl):
    _, out, _ = prrfl("inspect", "--network", "tiny", "--freeze", "0.*")
    assert re.search(r"0\.weight\W+4x3x3x3\W+frozen\W+0\b", out)
    assert re.search(r"5\.weight\W+3x16\W+fourier\W+[1-9]", out)
