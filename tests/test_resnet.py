"""ResNets beside one in PyTorch with torchvision's names, and a U-Net beside its twin."""

import numpy as np
import pytest
from peer import single_threaded_torch

import minipar as mp
from minipar import nn, optim
from minipar.context import Context, use
from minipar.models import ResNet, resnet18, resnet34, resnet50
from minipar.models.resnet import BasicBlock, Bottleneck
from minipar.tensor import Tensor

rng = np.random.default_rng(31)


@pytest.fixture(autouse=True)
def context():
    """Each test has a fresh context: seed 0, float64."""
    with use(Context()) as fresh:
        mp.set_default_dtype("float64")
        yield fresh


def assert_close(ours, theirs, what, relative=1e-9):
    worst = np.abs(ours - theirs).max()
    assert worst <= relative * max(np.abs(theirs).max(), 1e-6), f"{what} is off by {worst}"


def torch_resnet(T, bottleneck, layers, num_classes, small):
    """torchvision.models.ResNet (v1.5), as short as it can be."""
    def conv(inputs, outputs, size, stride=1):
        return T.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)

    class Block(T.Module):
        def __init__(self, inputs, width, stride):
            super().__init__()
            outputs = width * (4 if bottleneck else 1)
            sizes = ([(inputs, width, 1, 1), (width, width, 3, stride), (width, outputs, 1, 1)]
                     if bottleneck else [(inputs, width, 3, stride), (width, width, 3, 1)])
            for i, (a, b, size, s) in enumerate(sizes, 1):
                setattr(self, f"conv{i}", conv(a, b, size, s))
                setattr(self, f"bn{i}", T.BatchNorm2d(b))
            self.convolutions = len(sizes)
            self.downsample = None
            if stride != 1 or inputs != outputs:
                self.downsample = T.Sequential(conv(inputs, outputs, 1, stride),
                                               T.BatchNorm2d(outputs))

        def forward(self, x):
            y = x
            for i in range(1, self.convolutions + 1):
                y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
                y = y.relu() if i < self.convolutions else y
            return (y + (x if self.downsample is None else self.downsample(x))).relu()

    class Net(T.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = conv(3, 64, 3) if small else conv(3, 64, 7, 2)
            self.bn1 = T.BatchNorm2d(64)
            inputs = 64
            for i, count in enumerate(layers):
                blocks = []
                for j in range(count):
                    blocks.append(Block(inputs, 64 * 2**i, 2 if i and not j else 1))
                    inputs = 64 * 2**i * (4 if bottleneck else 1)
                setattr(self, f"layer{i + 1}", T.Sequential(*blocks))
            self.fc = T.Linear(inputs, num_classes)

        def forward(self, x):
            x = self.bn1(self.conv1(x)).relu()
            if not small:
                x = T.functional.max_pool2d(x, 3, 2, 1)
            for i in range(1, 5):
                x = getattr(self, f"layer{i}")(x)
            return self.fc(x.mean((2, 3)))
    return Net().double()


@pytest.mark.parametrize("make, parameters, entries", [
    (resnet18, 11_689_512, 122), (resnet34, 21_797_672, 218), (resnet50, 25_557_032, 320),
])
def test_a_resnet_has_torchvisions_number_of_parameters_and_of_entries(make, parameters, entries):
    model = make()
    assert sum(p.numel() for p in model.parameters()) == parameters
    state = list(dict(model.named_parameters())) + list(dict(model.named_buffers()))
    assert len(state) == entries
    assert not any(p.is_materialized for p in model.parameters())


def test_resnet50_has_torchvisions_names_and_shapes():
    state = {k: t.shape for k, t in (*resnet50().named_parameters(), *resnet50().named_buffers())}
    for name, shape in {
            "conv1.weight": (64, 3, 7, 7), "bn1.running_var": (64,),
            "layer1.0.conv1.weight": (64, 64, 1, 1), "layer1.0.conv3.weight": (256, 64, 1, 1),
            "layer1.0.downsample.0.weight": (256, 64, 1, 1),
            "layer1.0.downsample.1.num_batches_tracked": (),
            "layer2.0.conv2.weight": (128, 128, 3, 3), "layer4.2.bn3.bias": (2048,),
            "layer4.0.downsample.0.weight": (2048, 1024, 1, 1), "fc.weight": (1000, 2048)}.items():
        assert state[name] == shape, name
    assert "layer1.1.downsample.0.weight" not in state
    block = resnet50().layer2[0]
    assert block.conv1.stride == (1, 1) and block.conv2.stride == (2, 2)  # v1.5


@pytest.mark.peer
@pytest.mark.parametrize("make, block, layers, small, shape", [
    (resnet18, False, (2, 2, 2, 2), False, (2, 3, 33, 40)),
    (lambda n, **o: ResNet(BasicBlock, (1, 1, 1, 1), n, **o), False, (1, 1, 1, 1), True,
     (2, 3, 9, 8)),
    (lambda n, **o: ResNet(Bottleneck, (1, 2, 1, 1), n, **o), True, (1, 2, 1, 1), False,
     (2, 3, 33, 32)),
])
def test_a_resnet_has_pytorchs_outputs_gradients_and_statistics(make, block, layers, small, shape):
    torch = single_threaded_torch()
    ours = make(5, small_images=small)
    theirs = torch_resnet(torch.nn, block, layers, 5, small)
    state = {k: torch.tensor(t.array) for k, t in ours.state_dict().items()}
    assert list(theirs.state_dict()) == list(state)
    theirs.load_state_dict(state)
    x, targets = rng.standard_normal(shape), np.array([3, 1])
    image, other = Tensor(x, True), torch.tensor(x, requires_grad=True)
    logits, expected = ours(image), theirs(other)
    assert_close(logits.detach().numpy(), expected.detach().numpy(), "logits")
    nn.functional.cross_entropy(logits, Tensor(targets)).backward()
    torch.nn.functional.cross_entropy(expected, torch.tensor(targets)).backward()
    assert_close(image.grad.array, other.grad.numpy(), "the image's gradient", 1e-7)
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert_close(p.grad.array, q.grad.numpy(), name, 1e-7)
    for name, t in theirs.state_dict().items():
        assert_close(ours.state_dict()[name].array, t.numpy(), name)
    ours.eval(), theirs.eval()
    assert_close(ours(image).detach().numpy(), theirs(other).detach().numpy(), "eval mode")


@pytest.mark.peer
def test_a_state_dict_goes_from_pytorch_to_a_resnet_and_back_unchanged():
    torch = single_threaded_torch()
    theirs = torch_resnet(torch.nn, False, (2, 2, 2, 2), 10, False)
    theirs(torch.randn(2, 3, 32, 32, dtype=torch.float64))  # statistics that are not 0 and 1
    model = resnet18(10)
    model.load_state_dict({k: t.numpy() for k, t in theirs.state_dict().items()})
    back = torch_resnet(torch.nn, False, (2, 2, 2, 2), 10, False)
    back.load_state_dict({k: torch.tensor(t.array) for k, t in model.state_dict().items()})
    for (name, a), b in zip(theirs.state_dict().items(), back.state_dict().values(), strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b), name


def test_the_filters_of_a_resnet_start_with_kaimings_deviation():
    for name, p in resnet18(in_channels=1).named_parameters():
        if name in ("conv1.weight", "layer2.0.conv1.weight", "layer3.0.downsample.0.weight"):
            fan_out = p.shape[0] * p.shape[2] * p.shape[3]
            assert p.array.std() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05), name


def test_a_resnet_refuses_another_number_of_stages():
    with pytest.raises(ValueError, match="4 stages"):
        ResNet(BasicBlock, (2, 2, 2))


# ---------------------------------------------------------------------------------------- U-Net

def unet(library, cat, functional):
    """Down, across and up again with a skip connection at each height."""
    class Pair(library.Module):
        def __init__(self, inputs, outputs):
            super().__init__()
            self.conv1 = library.Conv2d(inputs, outputs, 3, padding="same", bias=False)
            self.norm1 = library.BatchNorm2d(outputs)
            self.conv2 = library.Conv2d(outputs, outputs, 3, padding=2, dilation=2, groups=2)
            self.norm2 = library.GroupNorm(2, outputs)

        def forward(self, x):
            x = functional.relu(self.norm1(self.conv1(x)))
            return functional.gelu(self.norm2(self.conv2(x)))

    class UNet(library.Module):
        def __init__(self):
            super().__init__()
            self.down1, self.down2, self.bottom = Pair(1, 4), Pair(4, 6), Pair(6, 8)
            self.max, self.mean = library.MaxPool2d(2), library.AvgPool2d(2)
            self.enlarge1, self.up1 = library.ConvTranspose2d(8, 6, 2, stride=2), Pair(12, 6)
            self.enlarge2, self.up2 = library.Upsample(scale_factor=2), Pair(10, 4)
            self.head = library.Conv2d(4, 1, 1)

        def forward(self, x):
            first = self.down1(x)
            second = self.down2(self.max(first))
            x = self.enlarge1(self.bottom(self.mean(second)))
            x = self.enlarge2(self.up1(cat([second, x], 1)))
            return self.head(self.up2(cat([first, x], 1)))
    return UNet()


@pytest.mark.peer
def test_a_unet_trains_as_pytorchs_does():
    torch = single_threaded_torch()
    ours = unet(nn, mp.cat, nn.functional)
    theirs = unet(torch.nn, torch.cat, torch.nn.functional).double()
    theirs.load_state_dict({k: torch.tensor(t.array) for k, t in ours.state_dict().items()})
    optimizer = optim.SGD(ours.parameters(), 0.2)
    images = rng.standard_normal((4, 1, 12, 8))
    targets = np.sign(images.cumsum(2))  # something that a convolution can learn
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        theirs.zero_grad()
        loss = nn.functional.mse_loss(ours(Tensor(images)), Tensor(targets))
        expected = torch.nn.functional.mse_loss(theirs(torch.tensor(images)), torch.tensor(targets))
        loss.backward()
        expected.backward()
        losses.append(loss.item())
        assert losses[-1] == pytest.approx(expected.item(), rel=1e-9)
        for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            assert_close(p.grad.array, q.grad.numpy(), name, 1e-6)
        optimizer.step()
        with torch.no_grad():  # its optimizers take seconds to import
            for q in theirs.parameters():
                q -= 0.2 * q.grad
    assert losses[-1] < losses[0]
    for name, t in theirs.state_dict().items():
        assert_close(ours.state_dict()[name].array, t.numpy(), name, 1e-7)
