"""Residual networks (He et al. 2016, "Deep residual learning for image recognition"), with the
names and shapes of torchvision's: state dicts can be exchanged.

In a Bottleneck the 3x3 convolution has the stride, as there ("ResNet v1.5").
"""

from .. import nn
from ..nn import init


def _conv(inputs, outputs, size, stride=1):
    """A convolution that keeps height and width, up to its stride; normalisation adds the bias."""
    return nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)


class BasicBlock(nn.Module):
    """relu(x + two 3x3 convolutions)."""

    expansion = 1

    def __init__(self, inputs, width, stride=1, downsample=None):
        super().__init__()
        self.conv1 = _conv(inputs, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.conv2 = _conv(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = downsample  # of x, where the sizes differ

    def forward(self, x):
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """relu(x + a 3x3 convolution between two 1x1 ones); the last has 4 times the width."""

    expansion = 4

    def __init__(self, inputs, width, stride=1, downsample=None):
        super().__init__()
        self.conv1 = _conv(inputs, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv(width, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = _conv(width, width * self.expansion, 1)
        self.bn3 = nn.BatchNorm2d(width * self.expansion)
        self.relu = nn.ReLU()
        self.downsample = downsample

    def forward(self, x):
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """A stem, four stages of blocks that halve the image and double the width, and a mean.

    block: BasicBlock or Bottleneck. layers: how many blocks each of the four stages has.
    small_images: a stem of one 3x3 convolution with stride 1, for images of about 32 x 32, as in
    section 4.2 of the paper; otherwise 7x7 with stride 2 and max pooling, which shrink an image 4
    times. Height and width may be any.
    """

    def __init__(self, block, layers, num_classes=1000, in_channels=3, small_images=False):
        super().__init__()
        if len(layers) != 4 or min(layers) < 1:
            raise ValueError(f"resnet: 4 stages of at least 1 block each, not {list(layers)}")
        self.conv1 = _conv(in_channels, 64, 3) if small_images else _conv(in_channels, 64, 7, 2)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU()
        self.maxpool = nn.Identity() if small_images else nn.MaxPool2d(3, stride=2, padding=1)
        inputs = 64
        for i, count in enumerate(layers):
            width, stage = 64 * 2**i, nn.Sequential()
            for j in range(count):
                stride = 2 if i and not j else 1
                outputs, downsample = width * block.expansion, None
                if stride != 1 or inputs != outputs:
                    downsample = nn.Sequential(_conv(inputs, outputs, 1, stride),
                                               nn.BatchNorm2d(outputs))
                stage.add_module(str(j), block(inputs, width, stride, downsample))
                inputs = outputs
            self.add_module(f"layer{i + 1}", stage)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def blocks(self):
        """The stem, every residual block, and the head."""
        yield nn.Block("stem", ("conv1", "bn1", "relu", "maxpool"),
                       lambda x: self.maxpool(self.relu(self.bn1(self.conv1(x)))))
        for stage in ("layer1", "layer2", "layer3", "layer4"):
            for key, block in getattr(self, stage).named_children():
                yield nn.Block(f"{stage}.{key}", (f"{stage}.{key}",), block)
        yield nn.Block("head", ("avgpool", "fc"), lambda x: self.fc(self.avgpool(x).flatten(1)))

    def forward(self, x):
        """x (N, in_channels, H, W) -> logits (N, num_classes)."""
        for block in self.blocks():
            x = block.forward(x)
        return x


def resnet18(num_classes=1000, **options):
    """11.7 million parameters. options: those of ResNet."""
    return ResNet(BasicBlock, (2, 2, 2, 2), num_classes, **options)


def resnet34(num_classes=1000, **options):
    """21.8 million parameters. options: those of ResNet."""
    return ResNet(BasicBlock, (3, 4, 6, 3), num_classes, **options)


def resnet50(num_classes=1000, **options):
    """25.6 million parameters. options: those of ResNet."""
    return ResNet(Bottleneck, (3, 4, 6, 3), num_classes, **options)
