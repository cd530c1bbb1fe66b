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
    """`length` places of a dimension, from `start` on."""

    def __init__(self, dim: int, start: int, length: int) -> None:
        super().__init__()
        self.dim, self.start, self.length = dim, start, length

    def forward(self, value: Tensor) -> Tensor:
        return value.narrow(self.dim, self.start, self.length)


class Select(nn.Module):
    """One place of a dimension, which disappears."""

    def __init__(self, dim: int, index: int) -> None:
        super().__init__()
        self.dim, self.index = dim, index

    def forward(self, value: Tensor) -> Tensor:
        return value.select(self.dim, self.index)


class _Learned(nn.Module):
    """A parameter of its own, of a sample's shape or broadcast to it."""

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.weight = nn.Parameter(torch.zeros(self.shape))


class Shift(_Learned):
    """Plus a learned value, such as a position embedding."""

    def forward(self, value: Tensor) -> Tensor:
        return value + self.weight


class Scale(_Learned):
    """Times a learned value, such as a layer scale."""

    def forward(self, value: Tensor) -> Tensor:
        return value * self.weight


class Prepend(_Learned):
    """Learned tokens, [tokens, features], in front of each sample's own."""

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


class SelfAttention(nn.Module):
    """Multi-head attention of a sequence [batch, tokens, features] to itself, with nn.MultiheadAttention's tensors."""

    def __init__(self, embed_dim: int, num_heads: int, bias: bool = True, dropout: float = 0.0) -> None:
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(f"embed_dim {embed_dim} is not divisible by num_heads {num_heads}")
        self.embed_dim, self.num_heads, self.bias, self.dropout = embed_dim, num_heads, bias, dropout
        self.in_proj_weight = nn.Parameter(torch.zeros(3 * embed_dim, embed_dim))
        self.in_proj_bias: nn.Parameter | None
        self.register_parameter("in_proj_bias", nn.Parameter(torch.zeros(3 * embed_dim)) if bias else None)
        self.out_proj = nn.Linear(embed_dim, embed_dim, bias=bias)

    def forward(self, value: Tensor) -> Tensor:
        query, key, content = self.heads(value)
        dropout = self.dropout if self.training else 0.0
        return self.join(F.scaled_dot_product_attention(query, key, content, dropout_p=dropout))

    def heads(self, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and content, each [batch, heads, tokens, features of a head]."""
        projected = F.linear(value, self.in_proj_weight, self.in_proj_bias)
        query, key, content = (
            part.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for part in projected.chunk(3, dim=2)
        )
        return query, key, content

    def join(self, context: Tensor) -> Tensor:
        """The heads' outputs as one, through the output projection."""
        joined: Tensor = self.out_proj(context.transpose(1, 2).flatten(2))
        return joined


JOINS: tuple[type[nn.Module], ...] = (Add, Multiply, Concat)
"""Layers of several inputs: two for Add and Multiply, at least one for Concat."""
