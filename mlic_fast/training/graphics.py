"""Synthetic graphics for training: pages of text, windows, charts, line art, pixel patterns.

Photographs alone teach a codec nothing of sharp edges between flat colours.
"""

from __future__ import annotations

import random

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from mlic_fast.training.patches import ImageCache

COUNT = 144
_TEXT = """the of and to in a is that for it as was with be by on not he this are or his from at
which but have an they you were her she there would their we him been has when who will no more"""
_WORDS = _TEXT.split()
_TILE = 128

Colour = tuple[int, ...]


def make_graphics(seed: int, side: int, count: int = COUNT) -> ImageCache:
    """Pictures of ``side`` x ``side``; the same ones for the same seed."""
    chance = random.Random(seed)
    kinds = (_page, _page, _page, _window, _window, _chart, _lines, _patterns)
    pictures = [kinds[i % len(kinds)](chance, side) for i in range(count)]
    return ImageCache.of([np.asarray(picture, np.uint8) for picture in pictures])


def _colour(chance: random.Random, low: int = 0, high: int = 255) -> Colour:
    if chance.random() < 0.25:  # the corners of the cube
        return tuple(chance.choice((0, 255)) for _ in range(3))
    return tuple(chance.randint(low, high) for _ in range(3))


def _sheet(chance: random.Random, side: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    white = chance.random() < 0.5
    picture = Image.new("RGB", (side, side), (255,) * 3 if white else _colour(chance, 200))
    return picture, ImageDraw.Draw(picture)


def _font(
    chance: random.Random, low: int, high: int
) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(round(low * (high / low) ** chance.random()))


def _sentence(chance: random.Random, words: int) -> str:
    return " ".join(
        chance.choice(_WORDS) if chance.random() < 0.9 else str(chance.randrange(100_000))
        for _ in range(words)
    )


def _page(chance: random.Random, side: int) -> Image.Image:
    picture, draw = _sheet(chance, side)
    columns, height = chance.choice((1, 1, 2, 3)), round(8 * 3 ** chance.random())
    font, ink = ImageFont.load_default(height), _colour(chance, 0, 90)
    for column in range(columns):
        for y in range(8, side, round(height * 1.4)):
            line = _sentence(chance, side // columns // height // 3 + 1)
            draw.text((8 + column * side // columns, y), line, font=font, fill=ink)
    return picture


def _window(chance: random.Random, side: int) -> Image.Image:
    picture, draw = _sheet(chance, side)
    for _ in range(chance.randint(12, 40)):
        x, y = (chance.randrange(side) for _ in range(2))
        width, height = chance.randint(20, side // 2), chance.randint(14, side // 3)
        box, fill = (x, y, x + width, y + height), _colour(chance)
        shape = chance.random()
        if shape < 0.6:
            radius = chance.choice((0, 0, 4, 8))
            draw.rounded_rectangle(box, radius, fill, _colour(chance), chance.randint(1, 3))
        elif shape < 0.8:
            draw.ellipse(box, fill)
        text = _sentence(chance, chance.randint(1, 5))
        draw.text((x + 4, y + 2), text, font=_font(chance, 9, 22), fill=_colour(chance))
    return picture


def _chart(chance: random.Random, side: int) -> Image.Image:
    picture, draw = _sheet(chance, side)
    gap = chance.choice((40, 64, 100))
    for at in range(0, side, gap):
        draw.line((at, 0, at, side), fill=(221,) * 3)
        draw.line((0, at, side, at), fill=(221,) * 3)
        draw.text((2, at), str(at), font=_font(chance, 9, 16), fill=(0, 0, 0))
    for _ in range(chance.randint(1, 6)):
        value, points = side / 2, []
        for i in range(60):
            value += chance.gauss(0, side / 40)
            points.append((i * side / 59, value))
        ink = _colour(chance)
        if chance.random() < 0.6:
            draw.line(points, ink, chance.randint(1, 3))
        else:
            for x, y in points[::3]:
                draw.rectangle((x, min(y, side), x + side / 90, side), ink)
    return picture


def _lines(chance: random.Random, side: int) -> Image.Image:
    scale = chance.choice((1, 2))  # with and without soft edges
    picture, draw = _sheet(chance, side * scale)
    for _ in range(chance.randint(20, 90)):
        points = [
            (chance.randrange(side * scale), chance.randrange(side * scale))
            for _ in range(chance.randint(3, 6))
        ]
        if chance.random() < 0.6:
            draw.line(points, _colour(chance), chance.choice((1, 1, 2, 4, 8)))
        else:
            draw.polygon(points, _colour(chance), _colour(chance))
    return picture.resize((side, side), Image.Resampling.LANCZOS) if scale > 1 else picture


def _patterns(chance: random.Random, side: int) -> Image.Image:
    tiles = -(-side // _TILE)
    picture = np.empty((tiles * _TILE, tiles * _TILE, 3), np.uint8)
    for y in range(0, side, _TILE):
        for x in range(0, side, _TILE):
            picture[y : y + _TILE, x : x + _TILE] = _pattern(chance)
    return Image.fromarray(picture[:side, :side])


def _pattern(chance: random.Random) -> NDArray[np.float64]:
    y, x = np.mgrid[:_TILE, :_TILE]
    n = chance.choice((1, 1, 2, 3, 4, 8))
    masks = (
        (y // n + x // n) % 2,
        x // n % 2,
        y // n % 2,
        x / _TILE,
        y / _TILE,
        np.zeros_like(x),
        np.hypot(y - _TILE / 2, x - _TILE / 2) < _TILE / 3,
    )
    mask = np.asarray(chance.choice(masks), np.float64)[..., None]
    return mask * np.array(_colour(chance)) + (1 - mask) * np.array(_colour(chance))
