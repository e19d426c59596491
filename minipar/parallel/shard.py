"""From a model to its tensor-parallel form: which of its layers are cut, and how.

Names and initial values stay: a parameter that is cut is a slice of the whole one.
"""

from ..models import GPT, MLP
from ..nn import Linear
from .tensor import ColumnParallelLinear, ReplicatedEmbedding, ReplicatedNorm, RowParallelLinear
from .vocabulary import VocabParallelEmbedding, VocabParallelHead


def shard_model(model, comm, *, sequence_parallel=False, gather_logits=True):
    """Cut a GPT or an MLP over the ranks of `comm`, in place; returns it.

    Before it is materialised: no rank ever makes more than its own. The parameters' `placement`
    says which piece a rank has; what all ranks have is `counted` on the first.
    sequence_parallel: norms, dropouts and residuals of a GPT work on pieces of the sequence.
    gather_logits: False where the loss is `vocab_parallel_cross_entropy` in training.
    Raises ValueError, with the arithmetic, for what does not divide.
    """
    model.assign_names()
    if isinstance(model, GPT):
        _shard_gpt(model, comm, sequence_parallel, gather_logits)
    elif isinstance(model, MLP) and not sequence_parallel:
        _shard_mlp(model, comm)
    else:
        raise ValueError(f"{type(model).__name__} has no tensor-parallel form"
                         + " along a sequence" * sequence_parallel)
    return model


def _shard_gpt(model, comm, sequence, gathers):
    heads, size = model.config.n_head, comm.size
    if heads % size:
        raise ValueError(f"gpt: {heads} heads do not divide into tp {size}")
    if sequence and model.config.block_size % size:
        raise ValueError(f"gpt: a sequence of {model.config.block_size} tokens does not divide "
                         f"into tp {size}")
    piece = comm.rank, size
    top = model.transformer
    top.wte = VocabParallelEmbedding(top.wte, comm, sequence)
    top.wpe = ReplicatedEmbedding(top.wpe, comm, sequence)
    for block in top.h:
        attention, mlp = block.attn, block.mlp
        attention.n_head, attention.piece = heads // size, piece
        attention.c_attn = ColumnParallelLinear(attention.c_attn, comm, 3, sequence)
        attention.c_proj = RowParallelLinear(attention.c_proj, comm, sequence)
        mlp.c_fc = ColumnParallelLinear(mlp.c_fc, comm, 1, sequence)
        mlp.c_proj = RowParallelLinear(mlp.c_proj, comm, sequence)
        block.ln_1 = ReplicatedNorm(block.ln_1, comm, sequence)
        block.ln_2 = ReplicatedNorm(block.ln_2, comm, sequence)
        if sequence:
            attention.resid_dropout.piece = mlp.dropout.piece = piece
    if sequence:
        top.drop.piece = piece
    top.ln_f = ReplicatedNorm(top.ln_f, comm, sequence)
    model.lm_head = VocabParallelHead(model.lm_head, comm, sequence, gathers)


def _shard_mlp(model, comm):
    """Pairs of layers: columns, then rows. A last one that has no pair every rank has whole."""
    found = [(key, layer) for key, layer in model.named_children() if isinstance(layer, Linear)]
    for i, (key, layer) in enumerate(found):
        if i % 2 == 0 and i == len(found) - 1:
            for p in layer.parameters():
                p.counted = comm.rank == 0
        else:
            kind = RowParallelLinear if i % 2 else ColumnParallelLinear
            setattr(model, key, kind(layer, comm))
