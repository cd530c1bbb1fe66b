"""Leaves of the canonical form that torch has no layer for: joins of branches, and functions with a setting.

Every one is called with tensors alone, works on a batch of any size, and can be written as data like torch's layers.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812 torch's own name for it
from torch import Tensor, nn


class Add(nn.Module):
    """The sum of two branches, with broadcasting."""

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        return one + other


class Multiply(nn.Module):
    """The product of two branches, with broadcasting: a gate."""

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        return one * other


class Subtract(nn.Module):
    """The difference of two branches, with broadcasting."""

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        return one - other


class Affine(nn.Module):
    """Times, divided by, and plus a number, in this order."""

    def __init__(self, factor: float = 1.0, divisor: float = 1.0, shift: float = 0.0) -> None:
        super().__init__()
        self.factor, self.divisor, self.shift = factor, divisor, shift

    def forward(self, value: Tensor) -> Tensor:
        return value * self.factor / self.divisor + self.shift


class Concat(nn.Module):
    """Branches side by side along a dimension."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, *branches: Tensor) -> Tensor:
        return torch.cat(branches, self.dim)


class Mean(nn.Module):
    """The mean over some dimensions."""

    def __init__(self, dims: Sequence[int], keepdim: bool = False) -> None:
        super().__init__()
        self.dims, self.keepdim = tuple(dims), keepdim

    def forward(self, value: Tensor) -> Tensor:
        return value.mean(self.dims, self.keepdim)


class Sum(Mean):
    """The sum over some dimensions: their mean times their size."""

    def forward(self, value: Tensor) -> Tensor:
        return value.sum(self.dims, self.keepdim)


class Permute(nn.Module):
    """Dimensions in another order; the batch stays first."""

    def __init__(self, dims: Sequence[int]) -> None:
        super().__init__()
        self.dims = tuple(dims)

    def forward(self, value: Tensor) -> Tensor:
        return value.permute(self.dims)


class Reshape(nn.Module):
    """Each sample in another shape."""

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape = tuple(shape)

    def forward(self, value: Tensor) -> Tensor:
        return value.reshape(len(value), *self.shape)


class Narrow(nn.Module):
    """`length` places of a dimension, every `step`-th from `start` on."""

    def __init__(self, dim: int, start: int, length: int, step: int = 1) -> None:
        super().__init__()
        self.dim, self.start, self.length, self.step = dim, start, length, step

    def forward(self, value: Tensor) -> Tensor:
        span = value.narrow(self.dim, self.start, (self.length - 1) * self.step + 1)
        if self.step == 1:
            return span
        return span[tuple(slice(None, None, self.step if d == self.dim % value.ndim else 1) for d in range(value.ndim))]


class Select(nn.Module):
    """One place of a dimension, which disappears."""

    def __init__(self, dim: int, index: int) -> None:
        super().__init__()
        self.dim, self.index = dim, index

    def forward(self, value: Tensor) -> Tensor:
        return value.select(self.dim, self.index)


class _Learned(nn.Module):
    """A tensor of its own, of a sample's shape or broadcast to it: a parameter, or a buffer if it is not learned."""

    weight: Tensor

    def __init__(self, shape: Sequence[int], learned: bool = True) -> None:
        super().__init__()
        self.shape, self.learned = tuple(shape), learned
        if learned:
            self.weight = nn.Parameter(torch.zeros(self.shape))
        else:
            self.register_buffer("weight", torch.zeros(self.shape))


class Shift(_Learned):
    """Plus a value of its own, such as a position embedding."""

    def forward(self, value: Tensor) -> Tensor:
        return value + self.weight


class Scale(_Learned):
    """Times a value of its own, such as a layer scale."""

    def forward(self, value: Tensor) -> Tensor:
        return value * self.weight


class Divide(_Learned):
    """Divided by a value of its own, such as the standard deviation of the data."""

    def forward(self, value: Tensor) -> Tensor:
        return value / self.weight


class Prepend(_Learned):
    """Tokens of its own, [tokens, features], in front of each sample's."""

    def forward(self, value: Tensor) -> Tensor:
        return torch.cat([self.weight.expand(len(value), *self.shape), value], 1)


class Scatter(nn.Module):
    """A branch of which only some neurons are left, at their places among zeros: it can join the others again."""

    index: Tensor

    def __init__(self, kept: Sequence[int], size: int, dim: int) -> None:
        super().__init__()
        self.kept, self.size, self.dim = tuple(kept), size, dim
        if len(set(self.kept)) != len(self.kept) or not all(place < size for place in self.kept):
            raise ValueError(f"kept has to name different places below {size}")
        self.register_buffer("index", torch.tensor(self.kept, dtype=torch.long, device="cpu"), persistent=False)

    def forward(self, value: Tensor) -> Tensor:
        sizes = [self.size if dim == self.dim % value.ndim else size for dim, size in enumerate(value.shape)]
        return value.new_zeros(sizes).index_copy(self.dim, self.index, value)


class QueryKeyValue(nn.Module):
    """The projection in front of an attention: queries, keys and contents of all heads, [batch, tokens, 3 * features].

    A head is one neuron.
    """

    def __init__(self, embed_dim: int, num_heads: int, head_dim: int, bias: bool = True) -> None:
        super().__init__()
        self.embed_dim, self.num_heads, self.head_dim = embed_dim, num_heads, head_dim
        features = 3 * num_heads * head_dim
        self.weight = nn.Parameter(torch.zeros(features, embed_dim))
        self.bias: nn.Parameter | None
        self.register_parameter("bias", nn.Parameter(torch.zeros(features)) if bias else None)

    def forward(self, value: Tensor) -> Tensor:
        return F.linear(value, self.weight, self.bias)


class Attention(nn.Module):
    """Scaled dot-product attention of each head, from what `QueryKeyValue` gives to [batch, tokens, features]."""

    def __init__(self, num_heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout

    def forward(self, projected: Tensor) -> Tensor:
        query, key, content = self.heads(projected)
        dropout = self.dropout if self.training else 0.0
        return self.join(F.scaled_dot_product_attention(query, key, content, dropout_p=dropout))

    def heads(self, projected: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and content, each [batch, heads, tokens, features of a head]."""
        query, key, content = (
            part.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for part in projected.chunk(3, dim=2)
        )
        return query, key, content

    def join(self, context: Tensor) -> Tensor:
        """The heads' outputs side by side."""
        return context.transpose(1, 2).flatten(2)


JOINS: tuple[type[nn.Module], ...] = (Add, Subtract, Multiply, Concat)
"""Layers of several inputs: at least one for Concat, two for the others."""
