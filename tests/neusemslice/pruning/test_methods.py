"""The four methods against cases worked out by hand, and against a plain oracle."""

import math

import pytest
import torch
from torch import nn

from neusemslice import trace
from neusemslice.errors import UnsupportedModelError
from neusemslice.pruning.methods import (
    choose_survivors,
    erk_survivors,
    lamp_scores,
    most_zeroed,
    uniform_plus_survivors,
)
from neusemslice.pruning.weights import PrunableWeight, prunable_weights
from tests.neusemslice.networks import randomised, vgg_like
from tests.reference import pruning as reference

METHODS = ["lamp", "global", "uniform+", "erk"]


def weights(*layers: list[float], shapes: list[tuple[int, ...]] | None = None, convolutions: int = 0):
    """Layers of these weights, [1, n] if no shapes are given; the first `convolutions` are convolutions."""
    return [
        PrunableWeight(
            f"{number}.weight",
            str(number),
            torch.tensor(layer).view((shapes or [(1, len(layer)) for layer in layers])[number]),
            convolution=number < convolutions,
        )
        for number, layer in enumerate(layers)
    ]


def drawn(seed: int, shapes: list[tuple[int, ...]], zeros: float, convolutions: int):
    generator = torch.Generator().manual_seed(seed)
    layers = []
    for number, shape in enumerate(shapes):
        layer = torch.randn(shape, generator=generator) * 10 ** float(torch.rand((), generator=generator))
        layer[torch.rand(shape, generator=generator) < zeros] = 0
        layers.append(PrunableWeight(f"{number}.weight", str(number), layer, convolution=number < convolutions))
    return layers


def survivors(method: str, layers, amount: float) -> list[list[float]]:
    """What is left of each layer's weights, in order."""
    kept = choose_survivors(method, layers, amount)
    return [layer.tensor[keep].tolist() for layer, keep in zip(layers, kept, strict=True)]


class TestLamp:
    def test_scores_by_hand(self) -> None:
        """Squares 1, 4, 4, 16 and the sums from each on: 25, 24, 20, 16."""
        assert lamp_scores(torch.tensor([[2.0, -4.0], [1.0, -2.0]])).tolist() == [1 / 25, 4 / 24, 4 / 20, 1]

    def test_zeros_count_for_nothing(self) -> None:
        assert lamp_scores(torch.tensor([0.0, 3.0, 0.0, -4.0])).tolist() == [9 / 25, 1]
        assert lamp_scores(torch.zeros(3)).tolist() == []

    def test_layers_are_compared_by_score_not_by_size(self) -> None:
        """Layer 0: squares 1, 4, 9 score 1/14, 4/13, 1. Layer 1, a hundred times larger, scores the same."""
        layers = weights([1.0, 2.0, 3.0], [100.0, 200.0, 300.0])
        assert survivors("lamp", layers, 1 / 3) == [[2.0, 3.0], [200.0, 300.0]]
        assert survivors("global", layers, 1 / 3) == [[3.0], [100.0, 200.0, 300.0]]

    def test_ties_stay(self) -> None:
        """Both layers' largest score 1: one survivor is asked for, both stay, so no layer is ever emptied."""
        assert survivors("lamp", weights([1.0, 2.0], [10.0, 20.0]), 0.75) == [[2.0], [20.0]]

    def test_the_largest_of_16_million_weights_scores_exactly_one(self) -> None:
        """A running sum in float32, taken from the total, gives 0.976."""
        weight = torch.randn(4096, 4096, generator=torch.Generator().manual_seed(0)) * 0.01
        scores = lamp_scores(weight)
        assert len(scores) == 4096 * 4096
        assert scores[-1] == scores.max() == 1.0
        assert scores[0] == pytest.approx(float(weight.abs().min()) ** 2 / float(weight.double().square().sum()))

    @pytest.mark.parametrize("seed", range(5))
    def test_scores_are_those_of_the_oracle(self, seed: int) -> None:
        (layer,) = drawn(seed, [(7, 9)], zeros=0.3, convolutions=0)
        expected = sorted(score for score in reference.lamp_scores(layer.tensor.flatten().tolist()) if score > 0)
        assert lamp_scores(layer.tensor).tolist() == pytest.approx(expected, rel=1e-12)


class TestGlobal:
    def test_by_hand(self) -> None:
        """A third of six: 0.5 and -1."""
        assert survivors("global", weights([3.0, -1.0, 2.0], [0.5, -4.0, 5.0]), 1 / 3) == [[3.0, 2.0], [-4.0, 5.0]]

    def test_of_equals_as_many_go_as_asked_for(self) -> None:
        assert survivors("global", weights([1.0, -1.0], [1.0, 2.0]), 0.5) == [[], [1.0, 2.0]]

    def test_zeros_are_not_counted_again(self) -> None:
        """Half of the four that are left."""
        assert survivors("global", weights([0.0, 1.0, 0.0, 2.0], [0.0, 3.0, 4.0]), 0.5) == [[], [3.0, 4.0]]


class TestUniformPlus:
    def test_linear_layers_give_equally(self) -> None:
        layers = weights([float(n) for n in range(1, 11)], [float(n) for n in range(1, 6)])
        assert uniform_plus_survivors(layers, 0.4) == [6, 3]
        assert survivors("uniform+", layers, 0.4) == [[5, 6, 7, 8, 9, 10], [3, 4, 5]]

    def test_a_first_convolution_is_spared_and_the_others_give_its_share(self) -> None:
        """A quarter of 40 are 10 weights, a third of the 30 behind the first layer."""
        layers = weights([1.0] * 10, [1.0] * 18, [1.0] * 12, convolutions=1)
        assert uniform_plus_survivors(layers, 0.25) == [10, 12, 8]

    def test_the_last_layer_keeps_a_fifth_of_all_its_weights(self) -> None:
        """The last has 4 of 10 left and may lose 2, not 3.2; of the 32 to zero (80 % of 40) 30 fall to the other 36."""
        layers = weights([1.0] * 36, [0.0] * 6 + [1.0] * 4)
        assert uniform_plus_survivors(layers, 0.8) == [6, 2]

    def test_a_last_layer_below_its_floor_is_left_alone(self) -> None:
        layers = weights([1.0] * 9, [0.0] * 9 + [1.0])
        assert uniform_plus_survivors(layers, 0.2) == [7, 1]

    def test_how_much_can_go_at_all(self) -> None:
        assert most_zeroed("uniform+", weights([1.0] * 10, [1.0] * 18, [1.0] * 12, convolutions=1)) == 18 + 10
        assert most_zeroed("uniform+", weights([1.0] * 10, [1.0] * 18, [1.0] * 12)) == 10 + 18 + 10
        assert most_zeroed("uniform+", weights([1.0] * 10, convolutions=1)) == 0
        assert most_zeroed("erk", weights([1.0, 0.0], [1.0, 1.0])) == 3


class TestErk:
    def test_by_hand(self) -> None:
        """Sides 4 + 2 + 3 + 3 = 12 and 4 + 8 = 12: the 52 survivors of half of 104 go to the layers in equal parts."""
        layers = weights([1.0] * 72, [1.0] * 32, shapes=[(4, 2, 3, 3), (4, 8)], convolutions=1)
        assert erk_survivors(layers, 0.5) == [26, 26]

    def test_a_layer_that_would_get_too_much_stays_dense_and_the_rest_is_shared_out_anew(self) -> None:
        """Sides 40, 24, 4; 224 of 448 survive. First 132, 79, 13 for 400, 44, 4: the third, at 3.3 times what it has,
        is made dense before the second (1.8 times). Of the 220 left the second would get 82, and is dense too.
        """
        layers = weights([1.0] * 400, [1.0] * 44, [1.0] * 4, shapes=[(20, 20), (22, 2), (2, 2)])
        assert [sum(layer.tensor.shape) for layer in layers] == [40, 24, 4]
        assert erk_survivors(layers, 0.5) == [176, 44, 4]

    def test_of_a_grouped_convolution_the_inputs_of_one_group_count(self) -> None:
        """8 + 1 + 3 + 3 = 15 and 5 + 10 = 15."""
        layers = weights([1.0] * 72, [1.0] * 50, shapes=[(8, 1, 3, 3), (5, 10)], convolutions=1)
        assert erk_survivors(layers, 0.5) == [30, 30]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("amount", [0.05, 0.6])
@pytest.mark.parametrize(("zeros", "convolutions"), [(0.0, 0), (0.3, 2), (0.3, 0)])
class TestOracle:
    shapes = ((6, 3, 3, 3), (4, 6, 3, 3), (10, 8), (3, 10))

    def layers(self, seed: int, zeros: float, convolutions: int):
        drawing = drawn(seed, list(self.shapes), zeros, convolutions)
        return drawing, [layer.tensor.flatten().tolist() for layer in drawing]

    @pytest.mark.parametrize("method", METHODS)
    def test_as_many_survive_as_the_oracle_says(self, method, seed, amount, zeros, convolutions) -> None:
        layers, numbers = self.layers(seed, zeros, convolutions)
        expected = {
            "lamp": lambda: reference.lamp(numbers, amount),
            "global": lambda: reference.by_magnitude(numbers, amount),
            "uniform+": lambda: reference.uniform_plus(numbers, amount, first_is_convolution=convolutions > 0),
            "erk": lambda: reference.erk(numbers, list(self.shapes), amount),
        }[method]()
        kept = choose_survivors(method, layers, amount)
        assert [int(keep.sum()) for keep in kept] == expected

    @pytest.mark.parametrize("method", METHODS)
    def test_within_a_layer_the_smallest_go_and_zeros_stay(self, method, seed, amount, zeros, convolutions) -> None:
        layers, _ = self.layers(seed, zeros, convolutions)
        for layer, keep in zip(layers, choose_survivors(method, layers, amount), strict=True):
            magnitude = layer.tensor.abs()
            assert not keep[magnitude == 0].any()
            if keep.any() and (gone := ~keep & (magnitude > 0)).any():
                assert magnitude[gone].max() <= magnitude[keep].min()

    @pytest.mark.parametrize("method", METHODS)
    def test_the_amount_goes(self, method, seed, amount, zeros, convolutions) -> None:
        """But for rounding in each layer."""
        layers, _ = self.layers(seed, zeros, convolutions)
        before = sum(layer.unmasked for layer in layers)
        after = sum(int(keep.sum()) for keep in choose_survivors(method, layers, amount))
        assert math.isclose(before - after, amount * before, abs_tol=len(layers))


class TestWhichWeights:
    def test_convolutions_and_linear_layers_in_order_and_nothing_else(self) -> None:
        model = trace(vgg_like(), torch.zeros(1, 2, 12, 12))
        found = prunable_weights(model.graph_module)
        assert [(weight.name, weight.convolution) for weight in found] == [
            ("0.weight", True),
            ("4.weight", True),
            ("10.weight", False),
            ("12.weight", False),
        ]
        assert all(weight.tensor is model.graph_module.get_parameter(weight.name) for weight in found)

    def test_grouped_and_depthwise_convolutions_and_attention_projections_count(self) -> None:
        network = nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 6, 1, groups=2), nn.Flatten(),
            nn.Linear(6 * 4, 3),
        )  # fmt: skip
        model = trace(randomised(network), torch.zeros(1, 2, 4, 4))
        assert [weight.total for weight in prunable_weights(model.graph_module)] == [72, 36, 12, 72]

    def test_a_network_without_any_is_refused(self) -> None:
        graph = torch.fx.symbolic_trace(nn.Sequential(nn.Flatten(), nn.ReLU()))
        with pytest.raises(UnsupportedModelError, match="no convolution and no linear layer"):
            prunable_weights(graph)
