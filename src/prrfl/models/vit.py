"""Vision transformer (Dosovitskiy et al., ICLR 2021): ViT-B/16, with torchvision's names of tensors.

Own code, because published weights do not fit MONAI's ViT: its class token has no position, each block has an
unused norm layer, and the image size is fixed. transformers renamed its tensors from version 4 to 5: a saved
network must not depend on that.
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width, eps=1e-6)
        self.self_attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_2 = nn.LayerNorm(width, eps=1e-6)
        # The published names count a dropout between, which has a rate of 0.
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Identity(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.ln_1(x)
        # On a GPU the gradient of the fused kernels, which compute no weights, has other bits each time.
        x = x + self.self_attention(y, y, y, need_weights=x.is_cuda)[0]
        output: Tensor = x + self.mlp(self.ln_2(x))
        return output


class _Encoder(nn.Module):
    def __init__(self, width: int, depth: int, heads: int, side: int) -> None:
        super().__init__()
        self.side = side
        self.pos_embedding = nn.Parameter(torch.randn(1, 1 + side * side, width) * 0.02)
        self.layers = nn.Sequential()
        for k in range(depth):
            self.layers.add_module(f"encoder_layer_{k}", _Block(width, heads))
        self.ln = nn.LayerNorm(width, eps=1e-6)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        output: Tensor = self.ln(self.layers(x + self._positions(height, width)))
        return output

    def _positions(self, height: int, width: int) -> Tensor:
        """Return the position embeddings of a grid of patches, (1, 1 + height * width, C)."""
        if height == width == self.side:
            return self.pos_embedding
        of_class, of_patches = self.pos_embedding[:, :1], self.pos_embedding[:, 1:]
        grid = torch.unflatten(of_patches, 1, (self.side, self.side))
        # As matrices, because the gradient of interpolation has other bits each time on a GPU.
        down, across = (self._resizing(length, grid) for length in (height, width))
        resized = torch.einsum("hi,wj,nijc->nhwc", down, across, grid)
        return torch.cat([of_class, resized.flatten(1, 2)], dim=1)

    def _resizing(self, length: int, like: Tensor) -> Tensor:
        """Return the (length, side) matrix of bicubic interpolation."""
        one_each = torch.eye(self.side, dtype=like.dtype, device=like.device)[None, None]
        return functional.interpolate(one_each, (length, self.side), mode="bicubic")[0, 0]


class VisionTransformer(nn.Module):
    """Maps (N, 3, H, W) images to (N, num_classes) logits.

    The position embeddings are those of 224 px; for other sizes they are interpolated. An edge narrower than
    a patch is cut off.
    """

    def __init__(
        self, num_classes: int, width: int = 768, depth: int = 12, heads: int = 12, patch: int = 16
    ) -> None:
        """Create the network with random weights, from PyTorch's global generator.

        Args:
            num_classes: number of logits.
            width: length of a token.
            depth: number of blocks.
            heads: heads of each attention; they divide the width.
            patch: width and height of a patch, in pixels.
        """
        super().__init__()
        self.conv_proj = nn.Conv2d(3, width, patch, stride=patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.encoder = _Encoder(width, depth, heads, 224 // patch)
        self.heads = nn.Sequential(OrderedDict(head=nn.Linear(width, num_classes)))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        patches = self.conv_proj(x)
        tokens = patches.flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(x.shape[0], -1, -1), tokens], dim=1)
        output: Tensor = self.heads(self.encoder(tokens, *patches.shape[2:])[:, 0])
        return output


def vit(num_classes: int, width: int = 768, depth: int = 12, heads: int = 12, patch: int = 16) -> nn.Module:
    """Return a vision transformer, by default ViT-B/16."""
    return VisionTransformer(num_classes, width, depth, heads, patch)
