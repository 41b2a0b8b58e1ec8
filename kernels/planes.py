"""Tiles of activations: arrays as kernels take them, products of bytes, and squeezed positions.

docs/kernels.md has the words that kernels use for pointers, offsets, masks and positions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from mlic_fast.kernels.functions import from_planes, high_byte, low_byte

#: Values of COLOUR: which positions of a tensor are read.
ALL, NON_ANCHORS, ANCHORS = -1, 0, 1

#: Smallest K of a product of int8 on tensor cores, and other sides; tiles are padded with zeros.
SMALLEST_K, SMALLEST_SIDE = 32, 16


class Rows(NamedTuple):
    """Numbers of positions [.., C] as kernels take them. Channels are contiguous.

    ``stride_position``: from one position to the next, in elements.
    """

    ptr: Tensor
    stride_position: int

    @classmethod
    def of(cls, x: Tensor) -> Rows:
        return cls(x, x.stride(-2))


class Planes(NamedTuple):
    """An activation [2, .., C] as kernels take it: the strides from plane to plane and from one
    position to the next, in elements.
    """

    ptr: Tensor
    stride_plane: int
    stride_position: int

    @classmethod
    def of(cls, x: Tensor) -> Planes:
        return cls(x, x.stride(0), x.stride(-2))


@triton.jit
def tile_of(positions, channels, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Positions m [BLOCK_M] and channels n [BLOCK_N] of this program, and which of them there are,
    [BLOCK_M, BLOCK_N].
    """
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    return m, n, (m < positions)[:, None] & (n < channels)[None, :]


@triton.jit
def split_product(a_low, a_high, b_low, b_high):
    """The halves (high, low) of a product of planes: its value is 256 * high + low.

    Tensor cores may saturate a sum of int8 products. With K <= 4096 none comes near the limit: with
    activations for a (high bytes at most 16) and activations, weights or softmax weights for b (at
    most 64), or the other way round, |low| <= 2^14 K and what becomes high stays below 2^19 K.
    """
    high = tl.dot(a_high, b_high, out_dtype=tl.int32) << 8
    high = tl.dot(a_high, b_low, acc=high, out_dtype=tl.int32)
    high = tl.dot(a_low, b_high, acc=high, out_dtype=tl.int32)
    return high, tl.dot(a_low, b_low, out_dtype=tl.int32)


@triton.jit
def product(a_low, a_high, b_low, b_high):
    """Product of planes [M, K] and [K, N] that fits int32 -> int32 [M, N]."""
    high, low = split_product(a_low, a_high, b_low, b_high)
    return (high << 8) + low


@triton.jit
def wide_product(a_low, a_high, b_low, b_high):
    """Product of planes [M, K] and [K, N] -> int64 [M, N]."""
    high, low = split_product(a_low, a_high, b_low, b_high)
    return (high.to(tl.int64) << 8) + low


@triton.jit
def no_product(M: tl.constexpr, N: tl.constexpr):
    """The three sums [M, N] of :func:`add_product`, zero."""
    zero = tl.zeros((M, N), tl.int32)
    return zero, zero, zero


@triton.jit
def add_product(hh, mid, ll, a_low, a_high, b_low, b_high):
    """The three sums of a product of planes [M, K] and [K, N], taken further by one block of K.

    For activations a and weights b: |ll|, the largest, stays below 2^14 K, so none saturates up to
    K = 2^17. :func:`mlic_fast.kernels.functions.join_products` makes them one.
    """
    hh = tl.dot(a_high, b_high, hh, out_dtype=tl.int32)
    mid = tl.dot(a_high, b_low, mid, out_dtype=tl.int32)
    mid = tl.dot(a_low, b_high, mid, out_dtype=tl.int32)
    ll = tl.dot(a_low, b_low, ll, out_dtype=tl.int32)
    return hh, mid, ll


@triton.jit
def load_planes(ptr, offset, stride_plane, mask):
    """Both planes of a tile, int8 like ``offset``, zero where the mask is false."""
    low = tl.load(ptr + offset, mask=mask, other=0)
    high = tl.load(ptr + stride_plane + offset, mask=mask, other=0)
    return low, high


@triton.jit
def store_planes(q, p_x, stride_plane, mask):
    """int32 q in +-ACTIVATION_LIMIT -> both planes."""
    tl.store(p_x, low_byte(q), mask=mask)
    tl.store(p_x + stride_plane, high_byte(q), mask=mask)


@triton.jit
def position_of(index, half_width, COLOUR: tl.constexpr):
    """Position in a full image (row * width + column) of position ``index`` of one colour."""
    if COLOUR < 0:
        return index
    return 2 * index + ((index // half_width + COLOUR) & 1)


@triton.jit
def head_of(x, i_image, i_head, d, positions, DEPTH: tl.constexpr, COLOUR: tl.constexpr):
    """Pointers [1, BLOCK_D] to the channels d of a head at the first position of an image, of which
    ``positions`` positions are read.
    """
    if COLOUR < 0:
        p_image = x.ptr + i_image.to(tl.int64) * positions * x.stride_position
    else:
        p_image = x.ptr + i_image.to(tl.int64) * positions * (2 * x.stride_position)
    return p_image + i_head * DEPTH + d[None, :]


@triton.jit
def load_rows(p_x, x, index, mask, half_width, COLOUR: tl.constexpr):
    """Both planes [BLOCK_M, BLOCK_D] of the positions ``index`` of one colour, from where
    :func:`head_of` points.
    """
    p_row = p_x + position_of(index, half_width, COLOUR)[:, None] * x.stride_position
    return tl.load(p_row, mask=mask, other=0), tl.load(p_row + x.stride_plane, mask=mask, other=0)


def padded(channels: int, smallest: int = SMALLEST_K) -> int:
    """Channels of a tile: a power of two that tensor cores take."""
    return max(smallest, triton.next_power_of_2(channels))


def check_planes(x: Tensor) -> None:
    """Raise ValueError unless x is planes [2, B, H, W, C], equally spaced positions of channels."""
    _, batch, height, width, _ = x.shape
    stride = x.stride(3)
    spaced = [(batch, x.stride(1), height * width * stride), (height, x.stride(2), width * stride)]
    if x.stride(4) != 1 or any(size > 1 and is_ != should for size, is_, should in spaced):
        raise ValueError(f"strides {x.stride()} of shape {tuple(x.shape)} are not a channel slice")
    if height * width * stride >= 2**31:
        raise ValueError(f"an image of {height} x {width} positions is too large for the kernels")


def colour_positions(x: Tensor, colour: int) -> tuple[int, int]:
    """How many positions of an image of planes x are read, and how many of each row."""
    _, _, height, width, _ = x.shape
    row = width if colour == ALL else width // 2
    return height * row, row


def read_colour(x: Tensor, colour: int) -> Tensor:
    """Twin of loading tiles: planes [2, B, H, W, C] -> int32 [B, positions of the colour, C]."""
    positions, half = colour_positions(x, colour)
    index = torch.arange(positions, device=x.device)
    if colour != ALL:
        index = 2 * index + ((index // half + colour) & 1)
    return from_planes(x).flatten(1, 2)[:, index]


def read_heads(x: Tensor, heads: int, colour: int) -> Tensor:
    """:func:`read_colour`, by heads: int32 [B, heads, positions, C / heads]."""
    return read_colour(x, colour).unflatten(-1, (heads, -1)).transpose(1, 2)
