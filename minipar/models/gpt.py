"""GPT-2's architecture (Radford et al. 2019): pre-norm transformer decoder with tied weights."""

import math
from dataclasses import dataclass

import numpy as np

from .. import nn
from ..context import current, no_grad
from ..device import beside, host
from ..nn import functional as F
from ..tensor import Tensor


# Of GPT-2's published models: layers, heads, features.
GPT2 = {"124M": (12, 12, 768), "355M": (24, 16, 1024), "774M": (36, 20, 1280),
        "1558M": (48, 25, 1600)}


@dataclass(frozen=True)
class GPTConfig:
    """Sizes. The defaults are a small model; see `gpt2` for the published ones."""
    vocab_size: int = 65
    block_size: int = 128
    n_layer: int = 4
    n_head: int = 4
    n_embd: int = 128
    dropout: float = 0.0

    def __post_init__(self):
        if self.n_embd % self.n_head:
            raise ValueError(f"gpt: {self.n_embd} features do not divide into "
                             f"{self.n_head} heads")


    @classmethod
    def gpt2(cls, size="124M", **changes):
        """The sizes of a published GPT-2 (a key of GPT2), with changes. ValueError for another."""
        if size not in GPT2:
            raise ValueError(f"no GPT-2 of size {size!r}: there are {', '.join(GPT2)}")
        layers, heads, features = GPT2[size]
        return cls(**{"vocab_size": 50257, "block_size": 1024, "n_layer": layers, "n_head": heads,
                      "n_embd": features, **changes})


class Attention(nn.Module):
    """Causal self-attention; query, key and value in one projection.

    n_head: heads that are here; piece: (index, count), which of them, if it is not all.
    """

    piece = (0, 1)

    def __init__(self, config):
        super().__init__()
        self.n_head, self.p = config.n_head, config.dropout
        self.head_size = config.n_embd // config.n_head
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)
        self.resid_dropout = nn.Dropout(config.dropout)

    def forward(self, x):
        """x (B, T, C) -> (B, T, C)."""
        qkv = self.c_attn(x)
        b, t, _ = qkv.shape
        qkv = qkv.reshape(b, t, 3, self.n_head, self.head_size)
        q, k, v = (qkv[:, :, i].transpose(1, 2) for i in range(3))  # (B, heads, T, head size)
        y = F.scaled_dot_product_attention(
            q, k, v, is_causal=True, dropout_p=self.p if self.training else 0.0,
            name=self.qualified_name(), piece=self.piece)
        y = y.transpose(1, 2).reshape(b, t, self.n_head * self.head_size)
        return self.resid_dropout(self.c_proj(y))


class FeedForward(nn.Module):
    """Four times wider, GELU, and back."""

    def __init__(self, config):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.gelu = nn.GELU(approximate="tanh")
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x):
        return self.dropout(self.c_proj(self.gelu(self.c_fc(x))))


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x))."""

    def __init__(self, config):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd)
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd)
        self.mlp = FeedForward(config)

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    """Token and position embeddings, blocks, final norm, and a head tied to the embedding."""

    def __init__(self, config=GPTConfig()):
        super().__init__()
        self.config = config
        self.transformer = nn.Module()
        self.transformer.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.transformer.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.transformer.drop = nn.Dropout(config.dropout)
        self.transformer.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.transformer.ln_f = nn.LayerNorm(config.n_embd)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.lm_head.weight = self.transformer.wte.weight
        for name, p in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(p)
            elif p.ndim == 2:
                # GPT-2: projections into the residual stream shrink with their number.
                residual = name.endswith("c_proj.weight")
                nn.init.normal_(p, std=0.02 / (math.sqrt(2 * config.n_layer) if residual else 1))

    def blocks(self):
        """The embedding, every transformer block, and the head."""
        yield nn.Block("embedding", ("transformer.wte", "transformer.wpe", "transformer.drop"),
                       self._embed)
        for i, block in enumerate(self.transformer.h):
            yield nn.Block(f"h.{i}", (f"transformer.h.{i}",), block)
        yield nn.Block("head", ("transformer.ln_f", "lm_head"),
                       lambda x: self.lm_head(self.transformer.ln_f(x)))

    def _embed(self, index):
        """index (B, T) integer -> (B, T, n_embd). ValueError if T > block_size."""
        t = index.shape[1]
        if t > self.config.block_size:
            raise ValueError(f"gpt: {t} tokens do not fit a block of {self.config.block_size}")
        position = Tensor(np.arange(t, like=index.array))
        x = self.transformer.wte(index) + self.transformer.wpe(position)
        return self.transformer.drop(x)

    def forward(self, index):
        """index (B, T) integer -> logits (B, T, vocab_size). ValueError if T > block_size."""
        x = index
        for block in self.blocks():
            x = block.forward(x)
        return x

    def generate(self, index, max_new_tokens, temperature=1.0, top_k=None, generator=None):
        """Continue index (B, T) by sampling; returns (B, T + max_new_tokens).

        temperature: divides the logits; 0 takes the likeliest token. top_k: only the k likeliest.
        generator: a numpy Generator; the context's if None.
        """
        if temperature < 0 or (top_k is not None and top_k < 1):
            raise ValueError(f"generate: temperature {temperature} >= 0 and top_k {top_k} >= 1 "
                             f"are needed")
        generator = generator or current().generator
        tokens, mode = index.array, self.training
        self.eval()
        with no_grad():
            for _ in range(max_new_tokens):
                logits = self(Tensor(tokens[:, -self.config.block_size:])).array[:, -1]
                drawn = _sample(host(logits).astype(np.float64), temperature, top_k, generator)
                tokens = np.concatenate([tokens, beside(tokens, drawn)], axis=1)
        self.train(mode)
        return Tensor(tokens)


def _sample(logits, temperature, top_k, generator):
    """One token per row of logits (B, V), as (B, 1)."""
    if temperature == 0:
        return logits.argmax(axis=1)[:, None]
    if top_k is not None and top_k < logits.shape[1]:
        bound = np.partition(logits, -top_k, axis=1)[:, -top_k]
        logits = np.where(logits < bound[:, None], -np.inf, logits)
    # Gumbel's trick: the argmax of logits plus Gumbel noise is a sample of their softmax.
    noise = generator.gumbel(size=logits.shape)
    return (logits / temperature + noise).argmax(axis=1)[:, None]
