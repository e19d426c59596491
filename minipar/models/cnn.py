"""A small convolutional network in the manner of LeNet (LeCun et al. 1998)."""

from .. import nn


class CNN(nn.Module):
    """Two 3x3 convolutions, each with ReLU and 2x2 max pooling, and a linear layer.

    input_shape: (channels, height, width); height and width at least 4.
    """

    def __init__(self, input_shape=(1, 28, 28), num_classes=10, channels=(16, 32)):
        super().__init__()
        c, h, w = input_shape
        if h < 4 or w < 4:
            raise ValueError(f"cnn: images of {h} x {w} do not survive two 2x2 pools: "
                             f"at least 4 x 4")
        self.conv1 = nn.Conv2d(c, channels[0], 3, padding=1)
        self.conv2 = nn.Conv2d(channels[0], channels[1], 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.relu = nn.ReLU()
        self.fc = nn.Linear(channels[1] * (h // 4) * (w // 4), num_classes)

    def blocks(self):
        """Two of convolution, ReLU and pool, and the linear layer."""
        yield nn.Block("conv1", ("conv1", "relu", "pool"),
                       lambda x: self.pool(self.relu(self.conv1(x))))
        yield nn.Block("conv2", ("conv2", "relu", "pool"),
                       lambda x: self.pool(self.relu(self.conv2(x))))
        yield nn.Block("fc", ("fc",), lambda x: self.fc(x.flatten(1)))

    def forward(self, x):
        """x (N, C, H, W) -> logits (N, num_classes)."""
        for block in self.blocks():
            x = block.forward(x)
        return x
