"""Functions in forward become layers that compute the same, for any number of samples, and can be cut."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 torch's own name for it
from torch import Tensor, nn

from neusemslice import load_checkpoint, restructure, trace
from neusemslice.errors import UnsupportedModelError
from neusemslice.graph_layers import Add, Prepend, Scale, Shift
from neusemslice.masking import mask_neurons
from tests.neusemslice.networks import randomised
from tests.neusemslice.test_restructuring import random_keep


class Network(nn.Module):
    """A convolution to [6, 4, 4], `function`, the mean over what is left of the positions, and two linear layers."""

    def __init__(self, function: Callable[["Network", Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.conv, self.norm, self.linear = nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Linear(6, 6)
        self.hidden, self.out = nn.Linear(6, 8), nn.Linear(8, 3)
        self.gain, self.bias = nn.Parameter(0.5 + torch.rand(6)), nn.Parameter(torch.randn(6))
        self.slope, self.kernel = nn.Parameter(torch.rand(6)), nn.Parameter(torch.randn(6, 6, 3, 3) / 5)
        self.line, self.cube = nn.Parameter(torch.randn(6, 6, 3) / 4), nn.Parameter(torch.randn(6, 6, 1, 3, 3) / 5)
        self.positions, self.token = nn.Parameter(torch.randn(1, 17, 6)), nn.Parameter(torch.randn(1, 1, 6))
        self.register_buffer("mean", torch.randn(6, 1, 1))
        self.register_buffer("std", 0.5 + torch.rand(6, 1, 1))
        self.register_buffer("places", torch.arange(17))

    def forward(self, x: Tensor) -> Tensor:
        x = self.function(self, self.conv(x))
        return self.out(F.relu(self.hidden(x.flatten(2).mean(2))))


class Bare(Network):
    """The convolution and `function` alone, whatever shape it gives."""

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, self.conv(x))


def network(function: Callable[[Network, Tensor], Tensor], kind: type[Network] = Network) -> Network:
    torch.manual_seed(0)
    return randomised(kind(function)).double()


def tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


def channels(x: Tensor) -> Tensor:
    """Tokens as sequences of channels again."""
    return x.transpose(1, 2)


def expanded_gate(net: Network, x: Tensor) -> Tensor:
    return x * net.linear(x.mean((2, 3))).sigmoid()[:, :, None, None].expand_as(x)


def expanded_sum(net: Network, x: Tensor) -> Tensor:
    return net.linear(x.mean((2, 3))).view(-1, 6, 1, 1).expand(-1, -1, 4, 4) + x


def class_token(net: Network, x: Tensor) -> Tensor:
    token = net.token.repeat(x.shape[0], 1, 1)
    return channels(torch.cat([token, tokens(x)], 1) + net.positions)


def split_positions(net: Network, x: Tensor) -> Tensor:
    token = (net.token + net.positions[:, :1]).expand(x.shape[0], -1, -1)
    return channels(torch.cat((token, tokens(x) + net.positions[:, 1:]), dim=1))


def chunked(net: Network, x: Tensor) -> Tensor:
    one, other = x.chunk(2, 3)
    return one * other.sigmoid_()


def unbound(net: Network, x: Tensor) -> Tensor:
    first, *_, last = x.unbind(-1)[0], x.unbind(-1)[-1]
    return first + torch.unbind(x, dim=3)[1] + last


def group_normed(net: Network, x: Tensor) -> Tensor:
    return F.group_norm(x, 2, net.gain, net.bias, eps=1e-3)


EXACT: dict[str, Callable[[Network, Tensor], Tensor]] = {
    "own tensors: view": lambda net, x: x * net.gain.view(1, -1, 1, 1) + net.bias.view(-1, 1, 1),
    "own tensors: None": lambda net, x: net.gain[:, None, None] * x,
    "own tensors: unsqueeze": lambda net, x: x + net.bias.unsqueeze(-1).unsqueeze(-1),
    "own tensors: squashed": lambda net, x: x * torch.sigmoid(net.gain).reshape(6, 1, 1),
    "own tensors: minus": lambda net, x: x - net.bias.view(6, 1, 1),
    "own tensors: from": lambda net, x: net.bias.view(6, 1, 1) - x,
    "own tensors: divided": lambda net, x: x / net.gain.view(6, 1, 1),
    "own tensors: sum": lambda net, x: channels(tokens(x) + (net.positions[:, 1:] + net.token)),
    "own tensors: one number": lambda net, x: x * net.gain[0] + torch.tensor(0.1, dtype=torch.float32),
    "buffers": lambda net, x: (x - net.mean) / net.std,
    "class token": class_token,
    "split positions": split_positions,
    "zeros in front": lambda net, x: channels(torch.cat([x.new_zeros(x.size(0), 1, 6), tokens(x)], 1)),
    "index: None": lambda net, x: x.mean((2, 3))[:, :, None, None],
    "index: places": lambda net, x: x[:, :, 0, 0][:, :, None],
    "index: ellipsis": lambda net, x: x[..., -1],
    "index: range of channels": lambda net, x: torch.cat([x[:, 1:], x[:, :1]], 1),
    "index: strided": lambda net, x: x[:, :, ::2, 1::2],
    "index: all": lambda net, x: x[:, :, None, :, -2:][:, :, 0],
    "index: negative": lambda net, x: tokens(x)[:, -1].unsqueeze(2),
    "select": lambda net, x: x.select(2, -1),
    "narrow": lambda net, x: x.narrow(2, 1, 2).narrow(dim=3, start=-2, length=1),
    "chunk of one": lambda net, x: x.chunk(1, 1)[0],
    "chunk": chunked,
    "split": lambda net, x: x.split(3, dim=3)[0].split([1, 3], 2)[-1],
    "unbind": unbound,
    "expand_as": expanded_gate,
    "expand": expanded_sum,
    "spelling": lambda net, x: torch.concatenate(
        [torch.multiply(x, 2), torch.subtract(x, (x / 2).tanh_(), alpha=1)], -1
    ),
    "clamp": lambda net, x: torch.clamp(x, -0.5, 0.5) + x.clip(min=0) + x.clamp(max=0.25),
    "axes": lambda net, x: x.swapaxes(2, 3).movedim(1, -1).movedim((3, 1), (1, 3)),
    "keywords": lambda net, x: torch.permute(input=x, dims=(0, 1, 3, 2)).transpose(dim0=3, dim1=2),
    "sum": lambda net, x: x.sum((2, 3), keepdim=True) + x.sum(dim=-1)[..., None],
    "amax": lambda net, x: x.amax((2, 3), keepdim=True) + x.amax((-2, -1))[:, :, None, None],
    "max": lambda net, x: x.flatten(2).max(2)[0][:, :, None] + tokens(x).max(dim=1).values.unsqueeze(2),
    "max of tokens": lambda net, x: channels(tokens(x).max(1, keepdim=True)[0]),
    "linear": lambda net, x: channels(F.linear(tokens(x), net.linear.weight, net.linear.bias)),
    "convolutions": lambda net, x: F.conv1d(
        F.conv2d(x, net.kernel, net.bias, padding=1, stride=(2, 1)).flatten(2), net.line, stride=2
    ),
    "convolution of volumes": lambda net, x: F.conv3d(x.unsqueeze(2), net.cube),
    "batch norm": lambda net, x: F.batch_norm(
        x, net.norm.running_mean, net.norm.running_var, net.norm.weight, net.norm.bias, net.training
    ),
    "layer norm": lambda net, x: channels(F.layer_norm(tokens(x), (6,), net.gain)),
    "group norm": group_normed,
    "prelu": lambda net, x: F.prelu(x, net.slope) + torch.prelu(x, net.slope[:1]),
    "nothing": lambda net, x: x.detach().double().to(torch.float64).type_as(x).clone(),
    "implicit softmax": lambda net, x: F.softmax(x, _stacklevel=3) + x,
}


@pytest.mark.filterwarnings("ignore:Implicit dimension choice")
@pytest.mark.parametrize("name", EXACT)
def test_the_canonical_form_is_the_network_and_can_be_cut(name: str) -> None:
    net = network(EXACT[name])
    model = trace(net, torch.zeros(1, 2, 4, 4))
    inputs = torch.randn(5, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for samples in (1, 2, 5):
            torch.testing.assert_close(model(inputs[:samples]), net(inputs[:samples]), rtol=1e-12, atol=1e-12)
    keep = random_keep(model, 0)
    for branches in ("union", "scatter"):
        smaller = restructure(model, keep, branches=branches)
        expected = mask_neurons(model, keep, branches)(inputs)
        torch.testing.assert_close(smaller.model(inputs), expected, rtol=0, atol=1e-11)
        assert smaller.report.parameters_after < smaller.report.parameters_before


def test_own_tensors_keep_their_names_and_whether_they_are_learned(tmp_path: Path) -> None:
    """What a network learns stays a parameter under its name, what it only holds stays a buffer, in checkpoints too."""

    class Normalised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.tensor([1.0, 2, 3, 4]))
            self.register_buffer("std", torch.tensor([4.0, 3, 2, 1]))
            self.gain = nn.Parameter(torch.tensor([2.0]))
            self.inner, self.out = nn.Linear(4, 5), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = (x - self.mean) / self.std * self.gain
            return self.out(torch.relu(F.linear(x, self.inner.weight, self.inner.bias)))

    model = trace(randomised(Normalised()), torch.zeros(2, 4))
    assert dict(model.graph_module.named_buffers()).keys() == {"shift.weight", "std.weight"}
    assert dict(model.graph_module.named_parameters()).keys() == {
        *("gain.weight", "inner.weight", "inner.bias", "out.weight", "out.bias")
    }
    assert torch.equal(model.graph_module.get_buffer("shift.weight"), torch.tensor([-1.0, -2, -3, -4]))
    smaller = restructure(model, {"inner": torch.arange(5) < 2})
    smaller.save(tmp_path / "small.safetensors")
    loaded = load_checkpoint(tmp_path / "small.safetensors")
    inputs = torch.randn(3, 4)
    assert torch.equal(loaded(inputs), smaller.model(inputs))
    assert dict(loaded.named_buffers()).keys() == {"shift.weight", "std.weight"}


def test_a_class_token_is_one_token_however_many_samples_the_example_has() -> None:
    net = network(split_positions)
    for samples in (1, 3):
        graph = trace(net, torch.zeros(samples, 2, 4, 4)).graph_module
        (token,) = (layer for layer in graph.modules() if isinstance(layer, Prepend))
        (positions,) = (layer for layer in graph.modules() if isinstance(layer, Shift))
        assert torch.equal(token.weight, (net.token + net.positions[:, :1])[0])
        assert torch.equal(positions.weight, net.positions[0, 1:])


def test_embedded_places_are_a_tensor_of_the_network() -> None:
    class Embedded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.places, self.embed = nn.Embedding(4, 6), nn.Linear(2, 6)
            self.hidden, self.out = nn.Linear(6, 5), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.embed(x) + self.places(torch.arange(x.shape[1], device=x.device))
            return self.out(torch.relu(self.hidden(x)).mean(1))

    net = randomised(Embedded())
    model = trace(net, torch.zeros(1, 4, 2))
    (places,) = (layer for layer in model.graph_module.modules() if isinstance(layer, Shift))
    assert torch.equal(places.weight, net.places.weight)
    inputs = torch.randn(3, 4, 2)
    assert torch.equal(model(inputs), net(inputs))


def test_scales_over_neurons_are_cut_with_them() -> None:
    model = trace(network(EXACT["own tensors: view"]), torch.zeros(1, 2, 4, 4))
    smaller = restructure(model, {"conv": torch.tensor([True, False, True, False, False, True])}).model
    (scale,) = (layer for layer in smaller.modules() if isinstance(layer, Scale))
    assert torch.equal(scale.weight.flatten(), network(EXACT["buffers"]).gain[[0, 2, 5]])


REFUSED: dict[str, tuple[Callable[[Network, Tensor], Tensor], str, str]] = {
    "first of a batch": (lambda net, x: x[0], "getitem", "takes some samples of a batch"),
    "first of a layer": (lambda net, x: net.norm(x)[0], "getitem", "takes some samples of a batch"),
    "some of a batch": (lambda net, x: x[1:], "getitem", "takes some samples of a batch"),
    "places by a list": (lambda net, x: x[:, [0, 2]], "getitem", "no number and no range"),
    "places by a tensor": (lambda net, x: x[:, net.places[:2]], "getitem", "no number and no range"),
    "no place": (lambda net, x: x[:, :0], "getitem", "takes no place"),
    "chunk of the batch": (lambda net, x: x.chunk(2)[0], "getitem", "other samples of its batch"),
    "two of a list": (lambda net, x: torch.cat(x.chunk(3, 1)[:2], 1), "cat", "a list that another function gives"),
    "list of chunks": (lambda net, x: torch.cat(x.chunk(3, 1), 1), "cat", "a list that another function gives"),
    "part of topk": (lambda net, x: x.topk(2, 1)[0], "getitem", "'?topk'? gives"),
    "softmax over samples": (lambda net, x: F.softmax(x, 0), "softmax", "other samples of its batch"),
    "implicit softmax over samples": (lambda net, x: F.softmax(x.flatten(2)), "softmax", "other samples"),
    "sum of samples": (lambda net, x: x - x.sum(0, keepdim=True), "sum", "reduces the samples"),
    "mean of all": (lambda net, x: x - x.mean(), "mean", "reduces the samples"),
    "cat of samples": (lambda net, x: torch.cat([x, x]), "cat", "other samples of its batch"),
    "moved samples": (lambda net, x: x.movedim(0, 1), "movedim", "moves the samples away"),
    "repeated value": (lambda net, x: x[:, :1].expand(-1, 6, -1, -1).relu(), "expand", "repeats a value"),
    "integers": (lambda net, x: x * net.places[:4], "mul", "own tensor of type torch.int64"),
    "flags": (lambda net, x: x * (net.gain > 1).view(6, 1, 1), "mul", "own tensor of type torch.bool"),
    "another type": (lambda net, x: x.float(), "float", "turns torch.float64 on cpu into torch.float32"),
    "softmax to another type": (lambda net, x: x.softmax(1, dtype=torch.float32), "softmax", "changes the type"),
    "alpha": (lambda net, x: torch.add(x, x, alpha=2), "add", "has alpha or rounding_mode set"),
    "rounded": (lambda net, x: torch.div(x, 2, rounding_mode="floor"), "div", "has alpha or rounding_mode set"),
    "type of a mean": (lambda net, x: x.mean(1, dtype=torch.float32), "mean", "has dtype set"),
    "divided by a value": (lambda net, x: x / x.exp(), "exp", "is no layer"),
    "divided by samples": (lambda net, x: x / x.size(0), "truediv", "depends on the input"),
    "clamped by a tensor": (lambda net, x: x.clamp(max=net.gain.view(6, 1, 1)), "clamp", "no two numbers"),
    "bounds in no order": (lambda net, x: x.clamp(0.5, 0.5), "clamp", "no two numbers in order"),
    "own tensor behind": (
        lambda net, x: torch.cat([tokens(x), net.token.repeat(x.shape[0], 1, 1)], 1), "cat", "own tensor with its"
    ),
    "max over channels": (lambda net, x: x.amax(1, keepdim=True), "amax", "largest along these dimensions"),
    "weights of the input": (lambda net, x: F.linear(x.mean((2, 3)), x.mean((2, 3))), "linear", "weight that depends"),
    "kernel that is a buffer": (lambda net, x: F.conv2d(x, net.std[None]), "conv2d", "weight that is not learned"),
    "statistics of the batch": (lambda net, x: F.batch_norm(x, None, None, training=True), "batch_norm", "training"),
    "number in the input": (lambda net, x: x * x.max().item(), "max", "is no layer"),
    "setting by the samples": (lambda net, x: F.leaky_relu(x, x.size(0) / 10), "leaky_relu", "depends on its input"),
    "random": (lambda net, x: x + torch.randn(4, dtype=x.dtype), "randn", "is no layer"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Implicit dimension choice")
@pytest.mark.parametrize("name", REFUSED)
def test_what_no_layer_computes_is_named(name: str) -> None:
    function, place, message = REFUSED[name]
    with pytest.raises(UnsupportedModelError, match=message) as caught:
        trace(network(function, Bare), torch.zeros(1, 2, 4, 4))
    assert caught.value.node == place
    assert caught.value.hint


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.out = nn.LSTM(4, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.lstm(x)[0][:, -1])


class Chunks(nn.Module):
    def __init__(self, returned: Callable[[Tensor, "Chunks"], object]) -> None:
        super().__init__()
        self.out, self.returned = nn.Linear(4, 6), returned

    def forward(self, x: Tensor) -> object:
        return self.returned(self.out(x), self)


@pytest.mark.parametrize(
    ("build", "shape", "node", "message"),
    [
        (Recurrent, (1, 3, 4), "lstm", "is a LSTM"),
        (lambda: Chunks(lambda x, _: x.chunk(2, 1)), (1, 4), "output", "something else than one tensor"),
        (lambda: Chunks(lambda x, _: x[0]), (1, 4), "getitem", "takes some samples"),
        (lambda: Chunks(lambda x, net: net.out.bias.expand(x.size(0), -1)), (1, 4), "output", "something else than"),
        (lambda: Chunks(lambda x, _: x.shape), (1, 4), "output", "something else than"),
    ],
)
def test_what_a_network_gives_is_one_tensor(
    build: Callable[[], nn.Module], shape: tuple[int, ...], node: str, message: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=message) as caught:
        trace(build(), torch.zeros(shape))
    assert caught.value.node == node


class OwnTensorIntoLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.add, self.out = nn.Linear(4, 6), Add(), nn.Linear(6, 3)
        self.own = nn.Parameter(torch.ones(6))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.add(self.first(x), self.own * 2))


def test_own_tensors_are_no_inputs_of_layers() -> None:
    with pytest.raises(UnsupportedModelError, match="own, is an input of 'add'") as caught:
        trace(OwnTensorIntoLayer(), torch.zeros(1, 4))
    assert caught.value.node == "add"
