"""Swin transformer (Liu et al., ICCV 2021): Swin-T, with torchvision's names of tensors.

Own code, because MONAI's is the encoder of a segmentation network, which halves the map once more at its
end, and that of transformers fails where a map is smaller than a window, as with images of 128 px. Here it
is padded with zeros. No block is skipped at random in training (stochastic depth).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

WINDOW = 7
"""Width and height of a window, in tokens."""


class _Attention(nn.Module):
    """Attention among the tokens of each window; in every other block the windows are shifted by a half."""

    relative_position_index: Tensor

    def __init__(self, width: int, heads: int, shifted: bool) -> None:
        super().__init__()
        self.heads, self.shifted = heads, shifted
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * WINDOW - 1) ** 2, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.register_buffer("relative_position_index", _offsets(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, H, W, C) to the same shape."""
        _, height, width, channels = x.shape
        x = functional.pad(x, (0, 0, 0, -width % WINDOW, 0, -height % WINDOW))
        sides = x.shape[1:3]
        # A side with a single window has nothing to shift.
        shifts = [WINDOW // 2 if self.shifted and side > WINDOW else 0 for side in sides]
        x = x.roll([-shift for shift in shifts], (1, 2))
        rows, columns = (side // WINDOW for side in sides)
        x = x.reshape(-1, rows, WINDOW, columns, WINDOW, channels)
        x = x.transpose(2, 3).reshape(-1, rows * columns, WINDOW**2, channels)
        q, k, v = torch.unflatten(self.qkv(x), -1, (3, self.heads, -1)).permute(3, 0, 1, 4, 2, 5)
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)
        logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2) + bias
        if any(shifts):
            logits = logits + _apart(sides, shifts, logits.device).to(logits.dtype)
        x = self.proj((logits.softmax(-1) @ v).transpose(2, 3).flatten(3))
        x = x.reshape(-1, rows, columns, WINDOW, WINDOW, channels).transpose(2, 3)
        return x.reshape(-1, *sides, channels).roll(shifts, (1, 2))[:, :height, :width]


def _offsets() -> Tensor:
    """Return, for each pair of tokens in a window, the row of their offset in the table of biases."""
    steps = torch.arange(WINDOW)
    places = torch.cartesian_prod(steps, steps)
    apart = places[:, None] - places[None] + WINDOW - 1
    return apart[..., 0] * (2 * WINDOW - 1) + apart[..., 1]


def _apart(sides: Sequence[int], shifts: Sequence[int], device: torch.device) -> Tensor:
    """Return -100 for tokens that are in one window only because the shift wrapped around, else 0.

    The shape is (windows, 1, tokens, tokens).
    """
    parts = []
    for side, shift in zip(sides, shifts, strict=True):
        part = torch.zeros(side, device=device)
        if shift:
            part[-WINDOW:-shift], part[-shift:] = 1, 2
        parts.append(part.view(-1, WINDOW))
    down, across = parts
    region = 3 * down[:, None, :, None] + across[None, :, None, :]
    region = region.flatten(2).flatten(0, 1)
    return torch.where(region[:, :, None] == region[:, None, :], 0.0, -100.0)[:, None]


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, shifted: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = _Attention(width, heads, shifted)
        self.norm2 = nn.LayerNorm(width)
        # The published names count a dropout between, which has a rate of 0.
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Identity(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        output: Tensor = x + self.mlp(self.norm2(x))
        return output


class _Merging(nn.Module):
    """Joins each 2 x 2 tokens into one of twice the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * width)
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        four = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        output: Tensor = self.reduction(self.norm(torch.cat(four, dim=-1)))
        return output


class _ChannelsLast(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1)


class SwinTransformer(nn.Module):
    """Maps (N, 3, H, W) images to (N, num_classes) logits."""

    def __init__(self, num_classes: int, width: int, depths: Sequence[int], heads: Sequence[int]) -> None:
        """Create the network with random weights, from PyTorch's global generator.

        Args:
            num_classes: number of logits.
            width: length of a token in the first stage; it doubles from stage to stage.
            depths: number of blocks of each stage.
            heads: heads of each stage's attention.
        """
        super().__init__()
        stages: list[nn.Module] = [
            nn.Sequential(nn.Conv2d(3, width, 4, stride=4), _ChannelsLast(), nn.LayerNorm(width))
        ]
        for stage, (depth, count) in enumerate(zip(depths, heads, strict=True)):
            if stage > 0:
                stages.append(_Merging(width))
                width *= 2
            stages.append(nn.Sequential(*(_Block(width, count, k % 2 == 1) for k in range(depth))))
        self.features = nn.Sequential(*stages)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        output: Tensor = self.head(self.norm(self.features(x)).mean(dim=(1, 2)))
        return output


def swin(num_classes: int, width: int = 96, depths: str = "2,2,6,2", heads: str = "3,6,12,24") -> nn.Module:
    """Return a Swin transformer, by default Swin-T; commas separate the stages' depths and heads."""
    return SwinTransformer(
        num_classes, width, *([int(k) for k in text.split(",")] for text in (depths, heads))
    )
