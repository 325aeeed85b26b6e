"""VGG16-slim, the paper's network: thirteen narrow convolutional layers and two linear layers."""

from torch import Tensor, nn
from torch.nn import functional

WIDTHS = ((32, 32), (64, 64), (128, 128, 128), (128, 128, 128), (256, 256, 256))


class _ConvBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, pool: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel_size=3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        self.pool = nn.MaxPool2d(2) if pool else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        # The paper pools after the ReLU. Pooling first gives the same outputs for a quarter of the work.
        return functional.relu(self.pool(self.bn(self.conv(x))), inplace=True)


class _Hidden(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs, bias=False)
        self.bn = nn.BatchNorm1d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.bn(self.linear(x)), inplace=True)


class _Output(nn.Module):
    def __init__(self, inputs: int, outputs: int, bias: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.linear(x)
        return output


class VGG16Slim(nn.Module):
    """Maps (N, 3, H, W) images, H and W at least 32, to (N, num_classes) logits.

    Its tensors have the names of the published checkpoints, so these can be loaded.
    """

    def __init__(self, num_classes: int = 3, bias: bool = False) -> None:
        """Create the network with weights as PyTorch draws them, from its global generator.

        That is what the published code starts from: uniform in ±1/√fan_in. He-normal weights are 2.45 times
        as large, and before a batch norm that makes training six times slower at the same learning rate.

        Args:
            num_classes: number of logits.
            bias: whether the last layer has a bias (``vgg_b``) or not (``vgg_nb``).
        """
        super().__init__()
        inputs = 3
        for index, widths in enumerate(WIDTHS, start=1):
            blocks = []
            for position, width in enumerate(widths, start=1):
                blocks.append(_ConvBlock(inputs, width, pool=position == len(widths)))
                inputs = width
            self.add_module(f"layer{index}", nn.Sequential(*blocks))
        self.fc1 = _Hidden(inputs, 64)
        self.fc2 = _Output(64, num_classes, bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        for index in range(1, len(WIDTHS) + 1):
            x = self.get_submodule(f"layer{index}")(x)
        output: Tensor = self.fc2(self.fc1(x.mean(dim=(2, 3))))
        return output


def vgg16_slim(num_classes: int = 3, bias: bool = False) -> VGG16Slim:
    """Return VGG16-slim with random weights.

    Examples:
        >>> from prrfl import vgg16_slim
        >>> sum(parameter.numel() for parameter in vgg16_slim(num_classes=3).parameters())
        2371104
    """
    return VGG16Slim(num_classes, bias)
