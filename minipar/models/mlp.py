"""Multi-layer perceptron."""

from .. import nn


class MLP(nn.Sequential):
    """Linear layers with an activation between them; flattens its input.

    sizes: features of the input, of each hidden layer, and of the output.
    activation: a module class (ReLU), or None for a linear network.
    """

    def __init__(self, sizes, activation=nn.ReLU):
        if len(sizes) < 2:
            raise ValueError(f"an MLP has an input and an output size, not {list(sizes)}")
        layers = [nn.Flatten()]
        for i, (inp, out) in enumerate(zip(sizes, sizes[1:])):
            layers.append(nn.Linear(inp, out))
            if activation is not None and i < len(sizes) - 2:
                layers.append(activation())
        super().__init__(*layers)
