"""The four training steps of the benchmarks, built the same in minipar and in PyTorch."""

import math

import numpy as np

import minipar
from minipar import models, nn
from minipar import optim as our_optim

GPT = dict(vocab_size=65, block_size=128, n_layer=4, n_head=4, n_embd=256)

# name: (what it is, global batch, input shape, classes)
CASES = {
    "linear": ("linear 100-200-10, batch 10, SGD", 10, (100,), 10),
    "mlp": ("MLP 784-512-512-10, batch 128, AdamW", 128, (784,), 10),
    "cnn": ("CNN 1-16-32 3x3, 28x28, batch 64, AdamW", 64, (1, 28, 28), 10),
    "gpt": ("GPT d=256, 4 layers, 4 heads, T=128, batch 8, AdamW", 8, (128,), 65),
}


def batch(case):
    """(inputs, targets) of the global batch, the same in every process."""
    _, n, shape, classes = CASES[case]
    rng = np.random.default_rng(1)
    if case == "gpt":
        tokens = rng.integers(0, classes, (n, shape[0] + 1))
        return tokens[:, :-1].copy(), tokens[:, 1:].copy()
    return rng.standard_normal((n, *shape), np.float32), rng.integers(0, classes, n)


def our_model(case):
    minipar.manual_seed(0)
    if case == "linear":
        model = models.MLP([100, 200, 10], activation=None)
    elif case == "mlp":
        model = models.MLP([784, 512, 512, 10])
    elif case == "cnn":
        model = models.CNN((1, 28, 28), 10)
    else:
        model = models.GPT(models.GPTConfig(**GPT))
    return model.materialize()


def our_step(case, model, x, y):
    """A function that makes one training step and returns the loss as a float."""
    parameters = model.parameters()
    optimizer = (our_optim.SGD(parameters, lr=0.01) if case == "linear"
                 else our_optim.AdamW(parameters, lr=1e-3))
    x, y = minipar.tensor(x), minipar.tensor(y.reshape(-1))

    def step():
        optimizer.zero_grad()
        logits = model(x)
        loss = nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), y)
        loss.backward()
        optimizer.step()
        return loss
    return step


def torch_model(case):
    """The PyTorch model with the weights of `our_model`."""
    import torch
    from torch import nn as tnn

    class CNN(tnn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = tnn.Conv2d(1, 16, 3, padding=1)
            self.conv2 = tnn.Conv2d(16, 32, 3, padding=1)
            self.pool, self.fc = tnn.MaxPool2d(2), tnn.Linear(32 * 49, 10)

        def forward(self, x):
            x = self.pool(torch.relu(self.conv1(x)))
            return self.fc(self.pool(torch.relu(self.conv2(x))).flatten(1))

    if case == "linear":
        model = tnn.Sequential(tnn.Flatten(), tnn.Linear(100, 200), tnn.Linear(200, 10))
    elif case == "mlp":
        model = tnn.Sequential(tnn.Flatten(), tnn.Linear(784, 512), tnn.ReLU(),
                               tnn.Linear(512, 512), tnn.ReLU(), tnn.Linear(512, 10))
    else:
        model = CNN() if case == "cnn" else torch_gpt()
    state = {k: torch.from_numpy(v.array.copy()) for k, v in our_model(case).state_dict().items()}
    model.load_state_dict(state)
    return model


def torch_gpt(sizes=GPT):
    import torch
    from torch import nn as tnn
    from torch.nn import functional as F
    c, heads = sizes["n_embd"], sizes["n_head"]

    class Attention(tnn.Module):
        def __init__(self):
            super().__init__()
            self.c_attn, self.c_proj = tnn.Linear(c, 3 * c), tnn.Linear(c, c)

        def forward(self, x):
            b, t, _ = x.shape
            q, k, v = (z.view(b, t, heads, -1).transpose(1, 2)
                       for z in self.c_attn(x).split(c, dim=2))
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            return self.c_proj(y.transpose(1, 2).reshape(b, t, c))

    class FeedForward(tnn.Module):
        def __init__(self):
            super().__init__()
            self.c_fc, self.c_proj = tnn.Linear(c, 4 * c), tnn.Linear(4 * c, c)

        def forward(self, x):
            return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))

    class Block(tnn.Module):
        def __init__(self):
            super().__init__()
            self.ln_1, self.attn = tnn.LayerNorm(c), Attention()
            self.ln_2, self.mlp = tnn.LayerNorm(c), FeedForward()

        def forward(self, x):
            x = x + self.attn(self.ln_1(x))
            return x + self.mlp(self.ln_2(x))

    class Model(tnn.Module):
        def __init__(self):
            super().__init__()
            self.transformer = tnn.ModuleDict(dict(
                wte=tnn.Embedding(sizes["vocab_size"], c),
                wpe=tnn.Embedding(sizes["block_size"], c),
                h=tnn.ModuleList(Block() for _ in range(sizes["n_layer"])), ln_f=tnn.LayerNorm(c)))
            self.lm_head = tnn.Linear(c, sizes["vocab_size"], bias=False)
            self.lm_head.weight = self.transformer.wte.weight

        def forward(self, index):
            t = self.transformer
            x = t.wte(index) + t.wpe(torch.arange(index.shape[1], device=index.device))
            for block in t.h:
                x = block(x)
            return self.lm_head(t.ln_f(x))

    return Model()


def torch_step(case, model, x, y):
    """The same step in PyTorch."""
    import torch
    optimizer = (torch.optim.SGD(model.parameters(), lr=0.01) if case == "linear"
                 else torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True))
    x, y = torch.from_numpy(x), torch.from_numpy(y.reshape(-1))

    def step():
        optimizer.zero_grad()
        logits = model(x)
        loss = torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), y)
        loss.backward()
        optimizer.step()
        return loss
    return step


def gemms(case):
    """[(m, k, n)] of the products of one step's forward and backward."""
    if case == "linear":
        layers = [(10, 100, 200), (10, 200, 10)]
    elif case == "mlp":
        layers = [(128, 784, 512), (128, 512, 512), (128, 512, 10)]
    elif case == "cnn":
        layers = [(64 * 784, 9, 16), (64 * 196, 144, 32), (64, 1568, 10)]
    else:
        c, rows = GPT["n_embd"], 8 * 128
        layers = [(rows, c, 3 * c), (rows, c, c), (rows, c, 4 * c), (rows, 4 * c, c)] * 4
        layers.append((rows, c, 65))
    out = []
    for i, (m, k, n) in enumerate(layers):
        out += [(m, k, n), (k, m, n)] + ([(m, n, k)] if i or case == "gpt" else [])
    return out


def geometric_mean(values):
    return math.exp(sum(map(math.log, values)) / len(values))
