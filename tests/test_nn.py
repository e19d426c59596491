"""Modules, parameters that are made when needed, and the models, beside PyTorch's."""

import copy

import numpy as np
import pytest

import minipar as mp
from minipar import nn
from minipar.context import Context, use
from minipar.models import CNN, GPT, MLP, GPTConfig
from minipar.tensor import Tensor


@pytest.fixture(autouse=True)
def context():
    """Each test has a fresh context: seed 0, float32."""
    with use(Context()) as fresh:
        yield fresh


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 3, bias=False)
        self.second = nn.Linear(3, 3, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(self.first(x))


class Tree(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(Tensor(np.ones(2)))
        self.body = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2, bias=False))
        self.register_buffer("count", Tensor(np.zeros(())))
        self.register_buffer("scratch", Tensor(np.zeros(4)), persistent=False)
        self.register_parameter("shift", None)
        self.norm = nn.LayerNorm(2)
        self.again = self.body[0]


def arrays(module):
    return {name: p.array.copy() for name, p in module.named_parameters()}


def assert_same(ours, expected):
    assert list(ours) == list(expected)
    for name, value in ours.items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


# Registration and the tree


@pytest.mark.peer
def test_names_and_their_order_are_those_of_pytorch():
    torch = pytest.importorskip("torch")

    class Same(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(2))
            self.body = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(),
                                            torch.nn.Linear(3, 2, bias=False))
            self.register_buffer("count", torch.zeros(()))
            self.register_buffer("scratch", torch.zeros(4), persistent=False)
            self.register_parameter("shift", None)
            self.norm = torch.nn.LayerNorm(2)
            self.again = self.body[0]
    ours, theirs = Tree(), Same()
    for listing in ("named_parameters", "named_modules", "named_buffers", "named_children"):
        assert [n for n, _ in getattr(ours, listing)()] == [
            n for n, _ in getattr(theirs, listing)()], listing
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert [n for n, _ in ours.named_parameters(prefix="x")] == [
        n for n, _ in theirs.named_parameters(prefix="x")]
    assert [n for n, _ in ours.named_parameters(recurse=False)] == ["scale"]


def test_a_tied_parameter_is_listed_once_and_stands_twice_in_the_state_dict():
    model = Tied()
    assert [n for n, _ in model.named_parameters()] == ["first.weight"]
    assert len(list(model.parameters())) == 1
    state = model.state_dict()
    assert list(state) == ["first.weight", "second.weight"]
    assert np.shares_memory(state["first.weight"].array, state["second.weight"].array)


def test_a_tied_parameter_gets_the_gradient_of_both_uses():
    model = Tied()
    x = Tensor(np.eye(3, dtype=np.float32))
    model(x).sum().backward()
    w = model.first.weight.array
    # y = x W^T W^T: the sum's derivative by W_ij, by hand
    one = np.ones((3, 3))
    np.testing.assert_allclose(model.first.weight.grad.array, one @ w.T + w.T @ one, rtol=1e-5)


def test_attributes_are_registered_replaced_and_deleted():
    model = nn.Module()
    model.w = nn.Parameter(Tensor(np.ones(2)))
    model.layer = nn.Linear(2, 2)
    model.number = 3
    assert [n for n, _ in model.named_parameters()] == ["w", "layer.weight", "layer.bias"]
    model.w = nn.Parameter(Tensor(np.zeros(2)))
    assert (dict(model.named_parameters())["w"].array == 0).all()
    with pytest.raises(TypeError, match="w is a Parameter here"):
        model.w = Tensor(np.zeros(2))
    with pytest.raises(TypeError, match="layer is a Module here"):
        model.layer = 5
    model.layer.bias = None
    assert [n for n, _ in model.named_parameters()] == ["w", "layer.weight"]
    del model.layer
    assert [n for n, _ in model.named_parameters()] == ["w"] and not hasattr(model, "layer")


def test_what_was_registered_as_none_can_be_set_to_its_kind_alone():
    model = nn.Linear(2, 2, bias=False)
    model.register_buffer("mask", None)
    assert list(model.state_dict()) == ["weight"]
    with pytest.raises(TypeError, match="bias is a Parameter here"):
        model.bias = Tensor(np.ones(2))
    model.bias, model.mask = nn.Parameter(Tensor(np.ones(2))), Tensor(np.ones(2))
    assert list(model.state_dict()) == ["weight", "bias", "mask"]


def test_a_buffer_that_becomes_temporary_leaves_the_state_dict():
    model = nn.Module()
    model.register_buffer("b", Tensor(np.ones(2)))
    assert list(model.state_dict()) == ["b"]
    model.register_buffer("b", Tensor(np.ones(2)), persistent=False)
    assert list(model.state_dict()) == [] and [n for n, _ in model.named_buffers()] == ["b"]


def test_setting_an_attribute_before_init_is_refused():
    class Hasty(nn.Module):
        def __init__(self):
            self.layer = nn.Linear(2, 2)
    with pytest.raises(AttributeError, match="super"):
        Hasty()


def test_a_parameter_is_made_from_a_tensor_of_a_floating_type():
    with pytest.raises(TypeError, match="ndarray"):
        nn.Parameter(np.ones(2))
    with pytest.raises(RuntimeError, match="floating"):
        nn.Parameter(Tensor(np.ones(2, np.int64)))


def test_train_and_eval_reach_every_module():
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Dropout(0.5)))
    assert all(m.training for m in model.modules())
    assert model.eval() is model and not any(m.training for m in model.modules())
    x = Tensor(np.ones((4, 2), np.float32))
    assert model[1](x) is x
    model.train()
    assert all(m.training for m in model.modules())


def test_apply_visits_children_first():
    seen = []
    model = nn.Sequential(nn.ReLU(), nn.Sequential(nn.Tanh()))
    model.apply(lambda m: seen.append(type(m).__name__))
    assert seen == ["ReLU", "Tanh", "Sequential", "Sequential"]


def test_a_forward_that_is_missing_is_named():
    with pytest.raises(TypeError, match="Module defines no forward"):
        nn.Module()(1)


def test_sequential_and_modulelist_index_and_slice():
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 4))
    assert len(model) == 3 and model[-1] is list(model)[2] and len(model[1:]) == 2
    layers = nn.ModuleList([nn.ReLU()]).append(nn.Tanh())
    assert len(layers) == 2 and isinstance(layers[-1], nn.Tanh)


# State


def test_load_state_dict_copies_into_the_same_memory():
    model = Tree()
    state = {k: np.full(t.shape, len(k.replace("again", "body.0")))  # two names of one module
             for k, t in model.state_dict().items()}
    memory = model.scale.array
    assert model.load_state_dict(state) == ([], [])
    assert model.scale.array is memory
    for name, tensor in model.state_dict().items():
        np.testing.assert_array_equal(tensor.array, state[name], err_msg=name)


def test_load_state_dict_names_every_wrong_key_and_changes_nothing():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    before = arrays(model)
    state = {"0.weight": np.zeros((3, 2)), "0.bias": np.zeros(4), "1.weight": np.zeros((3, 2)),
             "x": np.zeros(1), "y": np.zeros(1)}
    with pytest.raises(RuntimeError) as error:
        model.load_state_dict(state)
    for part in ("missing 1.bias", "unexpected x, y", "0.bias is (4,)", "has (3,)",
                 "1.weight is (3, 2)", "has (2, 3)"):
        assert part in str(error.value)
    assert_same(arrays(model), before)
    with pytest.raises(RuntimeError) as error:  # shapes matter even when names need not
        model.load_state_dict(state, strict=False)
    assert "missing" not in str(error.value)
    assert_same(arrays(model), before)


def test_load_state_dict_without_strict_returns_what_did_not_fit():
    model = nn.Linear(2, 3)
    missing, unexpected = model.load_state_dict({"bias": np.ones(3), "x": np.ones(1)}, False)
    assert (missing, unexpected) == (["weight"], ["x"]) and (model.bias.array == 1).all()


@pytest.mark.peer
def test_a_state_dict_goes_to_pytorch_and_back():
    torch = pytest.importorskip("torch")
    ours = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3), nn.LayerNorm(3))
    theirs = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.Flatten(),
                                 torch.nn.Linear(8, 3), torch.nn.LayerNorm(3))
    theirs.load_state_dict({k: torch.tensor(t.array) for k, t in ours.state_dict().items()})
    x = np.random.default_rng(0).standard_normal((2, 1, 4, 4)).astype(np.float32)
    np.testing.assert_allclose(ours(Tensor(x)).detach().numpy(),
                               theirs(torch.tensor(x)).detach().numpy(), rtol=1e-4, atol=1e-6)
    fresh = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3), nn.LayerNorm(3))
    fresh.load_state_dict({k: t.numpy() for k, t in theirs.state_dict().items()})
    assert_same(arrays(fresh), arrays(ours))


@pytest.mark.parametrize("flattened", [False, True])
def test_a_deep_copy_is_a_model_of_its_own(flattened):
    from minipar import optim
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)).materialize()
    if flattened:
        optim.SGD(model.parameters(), 0.1)
    before = arrays(model)
    twin = copy.deepcopy(model)
    assert_same(arrays(twin), before)
    optimizer = optim.SGD(twin.parameters(), 0.1)
    twin(Tensor(np.ones((1, 2), np.float32))).sum().backward()
    optimizer.step()
    assert_same(arrays(model), before)
    assert all(p.grad is None for p in model.parameters())
    assert not (twin[0].weight.array == before["0.weight"]).all()


def test_a_deep_copy_of_what_is_not_materialised_has_its_values_wherever_it_goes():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.student = Tied()
            self.teacher = copy.deepcopy(self.student)
    pair = Pair().materialize()
    assert_same(arrays(pair.teacher), arrays(pair.student))
    assert not np.shares_memory(pair.teacher.first.weight.array, pair.student.first.weight.array)
    assert pair.teacher.second.weight is pair.teacher.first.weight
    assert pair.teacher.second.qualified_name() == "teacher.second"


# Parameters that are made when they are first needed


def mlp():
    return MLP([4, 5, 3])


def test_nothing_is_allocated_before_it_is_needed():
    model = nn.Linear(10**6, 10**6)  # 4 TB
    assert model.weight.shape == (10**6, 10**6) and model.weight.dtype is mp.float32
    assert model.weight.ndim == 2 and model.weight.numel() == 10**12
    assert model.weight.nbytes == 4 * 10**12
    assert model.weight.requires_grad and model.weight.is_leaf and model.weight.grad is None
    model.zero_grad()
    model.requires_grad_(False)
    assert [n for n, _ in model.named_parameters()] == ["weight", "bias"]
    assert "1000000" in repr(model)
    assert not model.weight.is_materialized


def test_values_depend_on_seed_and_name_alone():
    reference = arrays(mlp().materialize())
    touched = mlp()
    for p in reversed(list(touched.parameters())):
        p.array
    assert_same(arrays(touched), reference)
    nn.Linear(7, 7).materialize()
    mp.Tensor(np.ones(3))
    assert_same(arrays(mlp()), reference)

    built = nn.Sequential()  # from the end to the front
    for key, layer in [("3", nn.Linear(5, 3)), ("1", nn.Linear(4, 5))]:
        built.add_module(key, layer)
    values = arrays(built)
    assert_same({k: values[k] for k in reference}, reference)

    mp.manual_seed(1)
    other = arrays(mlp())
    assert all((other[k] != reference[k]).any() for k in reference)


def test_two_layers_of_one_shape_differ():
    values = arrays(MLP([4, 4, 4, 4]))
    assert (values["1.weight"] != values["3.weight"]).any()


def test_values_are_drawn_in_float64_and_rounded():
    low = arrays(mlp())
    mp.set_default_dtype("float64")
    high = arrays(mlp())
    for name, value in high.items():
        assert value.dtype == np.float64 and low[name].dtype == np.float32
        np.testing.assert_array_equal(low[name], value.astype(np.float32))


def test_the_seed_is_that_of_the_creation():
    model = mlp()
    mp.manual_seed(9)
    late = arrays(model)
    mp.manual_seed(0)
    assert_same(late, arrays(mlp()))


def test_a_module_cut_out_of_a_named_model_has_the_values_of_the_whole():
    config = GPTConfig(vocab_size=11, block_size=8, n_layer=3, n_head=2, n_embd=8)
    whole = arrays(GPT(config).materialize())

    model = GPT(config).assign_names()
    block = model.transformer.h[1].materialize()
    for name, value in arrays(block).items():
        np.testing.assert_array_equal(value, whole[f"transformer.h.1.{name}"])
    assert not model.transformer.h[0].attn.c_attn.weight.is_materialized

    # and in a new container, which gives it a new place
    stage = nn.Sequential(*[GPT(config).assign_names().transformer.h[i] for i in (1, 2)])
    stage.materialize()
    for name, value in arrays(stage).items():
        i, rest = name.split(".", 1)
        np.testing.assert_array_equal(value, whole[f"transformer.h.{int(i) + 1}.{rest}"])
    assert stage[0].attn.qualified_name() == "transformer.h.1.attn"


def test_materialize_allocates_everything_and_keeps_what_was_there():
    model = mlp()
    first = model[1].weight
    first.array[...] = 7
    memory = first.array
    assert model.materialize() is model and all(p.is_materialized for p in model.parameters())
    assert first.array is memory and (memory == 7).all()


@pytest.mark.parametrize("fill, check", [
    (lambda p: nn.init.normal_(p, 1.0, 0.1), lambda a: abs(a.mean() - 1) < 0.02),
    (lambda p: nn.init.uniform_(p, 2.0, 3.0), lambda a: (a >= 2).all() and (a < 3).all()),
    (lambda p: nn.init.constant_(p, 4.0), lambda a: (a == 4).all()),
    (nn.init.zeros_, lambda a: (a == 0).all()),
    (nn.init.ones_, lambda a: (a == 1).all()),
], ids=["normal", "uniform", "constant", "zeros", "ones"])
def test_init_gives_the_same_values_before_and_after_materialisation(fill, check):
    early, late = nn.Linear(30, 40), nn.Linear(30, 40).materialize()
    assert fill(early.weight) is early.weight and not early.weight.is_materialized
    assert fill(late.weight) is late.weight
    assert check(late.weight.array)
    np.testing.assert_array_equal(early.weight.array, late.weight.array)
    plain = Tensor(np.empty((30, 40)))
    assert check(fill(plain).array)


def test_init_of_a_parameter_with_a_graph_counts_as_a_change_in_place():
    layer = nn.Linear(2, 2)
    loss = (layer.weight * layer.weight).sum()
    nn.init.zeros_(layer.weight)
    with pytest.raises(RuntimeError, match="changed in place"):
        loss.backward()


@pytest.mark.parametrize("layer, bound", [(nn.Linear(50, 40), 50 ** -0.5),
                                          (nn.Conv2d(3, 40, (3, 5)), 45 ** -0.5)])
def test_default_initialisation_is_uniform_in_pytorchs_bounds(layer, bound):
    for p in layer.parameters():
        assert np.abs(p.array).max() <= bound
    assert np.abs(layer.weight.array).max() > 0.97 * bound
    assert layer.weight.array.std() == pytest.approx(bound / 3 ** 0.5, rel=0.05)


# Models

SMALL = GPTConfig(vocab_size=13, block_size=10, n_layer=2, n_head=2, n_embd=8)


def tokens(b, t, vocab=13, seed=0):
    return np.random.default_rng(seed).integers(0, vocab, (b, t))


def gpt(config=SMALL):
    """A float64 GPT whose every parameter, biases and norms too, is far from its start."""
    mp.set_default_dtype("float64")
    model = GPT(config)
    rng = np.random.default_rng(4)
    for _, p in model.named_parameters():
        p.array[...] = rng.normal(p.ndim == 1, 0.3, p.shape)
    return model


def test_gpt_has_nanogpts_parameter_names():
    block = ["ln_1.weight", "ln_1.bias", "attn.c_attn.weight", "attn.c_attn.bias",
             "attn.c_proj.weight", "attn.c_proj.bias", "ln_2.weight", "ln_2.bias",
             "mlp.c_fc.weight", "mlp.c_fc.bias", "mlp.c_proj.weight", "mlp.c_proj.bias"]
    expected = ["transformer.wte.weight", "transformer.wpe.weight",
                *[f"transformer.h.{i}.{name}" for i in range(2) for name in block],
                "transformer.ln_f.weight", "transformer.ln_f.bias"]
    model = GPT(SMALL)
    assert [n for n, _ in model.named_parameters()] == expected
    assert list(model.state_dict()) == [*expected, "lm_head.weight"]


@pytest.mark.parametrize("size, count", [("124M", 124_439_808), ("355M", 354_823_168),
                                         ("774M", 774_030_080), ("1558M", 1_557_611_200)])
def test_gpt2s_sizes_have_the_published_parameters_without_allocating_them(size, count):
    model = GPT(GPTConfig.gpt2(size))
    assert sum(p.numel() for p in model.parameters()) == count
    assert not any(p.is_materialized for p in model.parameters())


def test_gpt_starts_with_gpt2s_standard_deviations():
    model = GPT(GPTConfig(64, 64, 4, 4, 64))
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            assert (p.array == 0).all(), name
        elif ".ln_" in name:
            assert (p.array == 1).all(), name
        else:
            std = 0.02 / 8 ** 0.5 if name.endswith("c_proj.weight") else 0.02
            assert p.array.std() == pytest.approx(std, rel=0.06), name


def torch_gpt(torch, weights, index, config):
    """Logits of GPT-2 from a dict of torch tensors, after Radford et al. 2019."""
    F = torch.nn.functional
    w, c = weights, config.n_embd
    x = w["transformer.wte.weight"][index] + w["transformer.wpe.weight"][:index.shape[1]]
    for i in range(config.n_layer):
        def at(name):
            return w[f"transformer.h.{i}.{name}.weight"], w[f"transformer.h.{i}.{name}.bias"]
        q, k, v = (part.unflatten(-1, (config.n_head, -1)).transpose(1, 2) for part in F.linear(
            F.layer_norm(x, (c,), *at("ln_1")), *at("attn.c_attn")).split(c, dim=-1))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + F.linear(y.transpose(1, 2).flatten(2), *at("attn.c_proj"))
        y = F.linear(F.layer_norm(x, (c,), *at("ln_2")), *at("mlp.c_fc"))
        x = x + F.linear(F.gelu(y, approximate="tanh"), *at("mlp.c_proj"))
    x = F.layer_norm(x, (c,), w["transformer.ln_f.weight"], w["transformer.ln_f.bias"])
    return x @ w["transformer.wte.weight"].T


def assert_close(ours, theirs, what, relative=1e-11):
    worst = np.abs(ours - theirs).max()
    assert worst <= relative * np.abs(theirs).max(), f"{what} is off by {worst}"


@pytest.mark.peer
def test_gpt_has_the_logits_and_gradients_of_a_pytorch_gpt():
    torch = pytest.importorskip("torch")
    model, index, targets = gpt(), tokens(3, 7), tokens(3, 7, seed=1)
    weights = {k: torch.tensor(p.array, requires_grad=True) for k, p in model.named_parameters()}
    theirs = torch_gpt(torch, weights, torch.tensor(index), SMALL)
    logits = model(Tensor(index))
    assert_close(logits.detach().numpy(), theirs.detach().numpy(), "logits")
    nn.functional.cross_entropy(logits.reshape(-1, 13), Tensor(targets.reshape(-1))).backward()
    torch.nn.functional.cross_entropy(theirs.flatten(0, 1), torch.tensor(targets.ravel())
                                      ).backward()
    scale = max(float(w.grad.abs().max()) for w in weights.values())
    for name, p in model.named_parameters():
        worst = np.abs(p.grad.array - weights[name].grad.numpy()).max()
        assert worst <= 1e-11 * scale, f"{name} is off by {worst}"


def test_a_later_token_changes_no_earlier_logit():
    model, index = gpt(), tokens(1, 10)
    before = model(Tensor(index)).array
    for t in range(10):
        changed = index.copy()
        changed[0, t] = (index[0, t] + 1) % 13
        after = model(Tensor(changed)).array
        np.testing.assert_array_equal(after[0, :t], before[0, :t])
        assert (after[0, t:] != before[0, t:]).any(axis=-1).all()


def test_gpt_refuses_more_tokens_than_its_block():
    with pytest.raises(ValueError, match="11 tokens .* block of 10"):
        gpt()(Tensor(tokens(1, 11)))
    with pytest.raises(ValueError, match="8 features .* 3 heads"):
        GPTConfig(n_embd=8, n_head=3)


def test_generating_greedily_takes_the_likeliest_token_each_time():
    model, index = gpt(), tokens(2, 3)
    expected = index
    for _ in range(12):  # past the block: the model then sees the last ten
        logits = model(Tensor(expected[:, -10:])).array[:, -1]
        expected = np.concatenate([expected, logits.argmax(axis=1)[:, None]], axis=1)
    for options in (dict(temperature=0), dict(top_k=1), dict(top_k=1, temperature=3.0)):
        out = model.generate(Tensor(index), 12, **options)
        np.testing.assert_array_equal(out.array, expected)
    assert model.training


def test_generation_is_reproduced_by_its_seed():
    model, start = gpt(), Tensor(tokens(2, 3))

    def draw(seed):
        mp.manual_seed(seed)
        return model.generate(start, 10).array
    np.testing.assert_array_equal(draw(3), draw(3))
    assert (draw(3) != draw(4)).any()
    a, b = (model.generate(start, 10, generator=np.random.default_rng(1)).array for _ in range(2))
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("temperature, top_k", [(1.0, None), (0.5, None), (2.0, 3)])
def test_generated_tokens_follow_the_softmax_of_the_logits(temperature, top_k):
    model = gpt()
    n = 4000
    start = np.repeat(tokens(1, 4), n, axis=0)
    out = model.generate(Tensor(start), 1, temperature, top_k, np.random.default_rng(0)).array
    logits = model(Tensor(start[:1])).array[0, -1] / temperature
    if top_k:
        logits[np.argsort(logits)[:-top_k]] = -np.inf
    p = np.exp(logits - logits.max())
    p /= p.sum()
    seen = np.bincount(out[:, -1], minlength=13) / n
    assert (seen[p == 0] == 0).all()
    assert (np.abs(seen - p) <= 5 * np.sqrt(p * (1 - p) / n) + 1e-12).all()


@pytest.mark.parametrize("options", [dict(temperature=-1), dict(top_k=0)])
def test_generation_refuses_what_is_no_distribution(options):
    with pytest.raises(ValueError, match="generate"):
        gpt().generate(Tensor(tokens(1, 2)), 1, **options)


def torch_twin(torch, kind):
    """(our model, PyTorch's with the same structure, input)."""
    mp.set_default_dtype("float64")
    rng, T = np.random.default_rng(8), torch.nn
    if kind == "mlp":
        return MLP([12, 7, 6, 4]), T.Sequential(
            T.Flatten(), T.Linear(12, 7), T.ReLU(), T.Linear(7, 6), T.ReLU(), T.Linear(6, 4)
        ), rng.standard_normal((5, 3, 4))

    class Net(T.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.conv2 = T.Conv2d(2, 3, 3, padding=1), T.Conv2d(3, 5, 3, padding=1)
            self.pool, self.fc = T.MaxPool2d(2), T.Linear(5 * 2 * 2, 4)

        def forward(self, x):
            x = self.pool(self.conv1(x).relu())
            return self.fc(self.pool(self.conv2(x).relu()).flatten(1))
    return CNN((2, 9, 11), 4, (3, 5)), Net(), rng.standard_normal((5, 2, 9, 11))


@pytest.mark.peer
@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_the_model_has_pytorchs_outputs_and_gradients(kind):
    torch = pytest.importorskip("torch")
    ours, theirs, x = torch_twin(torch, kind)
    theirs = theirs.double()
    theirs.load_state_dict({k: torch.tensor(t.array) for k, t in ours.state_dict().items()})
    targets = np.array([0, 3, 1, 2, 1])
    logits, expected = ours(Tensor(x)), theirs(torch.tensor(x))
    assert_close(logits.detach().numpy(), expected.detach().numpy(), "logits")
    nn.functional.cross_entropy(logits, Tensor(targets)).backward()
    torch.nn.functional.cross_entropy(expected, torch.tensor(targets)).backward()
    for (name, p), (other, q) in zip(ours.named_parameters(), theirs.named_parameters()):
        assert name == other
        assert_close(p.grad.array, q.grad.numpy(), name)


def test_models_refuse_sizes_that_cannot_be():
    with pytest.raises(ValueError, match="3 x 8"):
        CNN((1, 3, 8))
    with pytest.raises(ValueError, match="input and an output"):
        MLP([4])
    with pytest.raises(ValueError, match="1.5"):
        nn.Dropout(1.5)
