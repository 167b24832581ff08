"""Masks to polygons: outlines along the edges of pixels, with holes; pixel (x, y) covers [x, x+1) x [y, y+1).

At tolerance 0 the outlines fill to the same mask again (`polygons_to_mask`, and COCO's own tools).

Letters: H rows, W columns, V vertices.
"""

from typing import Literal, get_args

import numpy as np

from segment_anything.masks._arrays import ArrayLike, BoolArray, FloatArray, IntArray, as_bool
from segment_anything.masks.components import connected_components

Holes = Literal["bridge", "separate", "drop"]

_MANY_RINGS = 64  # above it, the time to find short cuts between rings would grow with the square of their number


def mask_to_polygons(mask: ArrayLike, tolerance: float = 0.0, *, holes: Holes = "bridge") -> list[FloatArray]:
    """Outlines of a mask, one polygon a region (8-connected), along the edges of the pixels.

    Args:
        mask: (H, W) bool.
        tolerance: how far, in pixels, the outline may leave the edges of the pixels (Douglas and Peucker 1973). 0 keeps
            every corner and is exact.
        holes: "bridge" joins each hole to its region's outline by a cut of no width, so that formats without holes
            (COCO, YOLO, labelme) keep them; "separate" returns holes as polygons of their own, to be filled "even_odd";
            "drop" leaves them out.

    Returns:
        list of (V, 2) float64 polygons x, y; the last point is not the first one again. Outlines run clockwise on the
        screen, separate holes the other way round. A region or hole thinned to less than three points is left out.

    Raises:
        ValueError: for a wrong shape, a negative tolerance or an unknown `holes`.
    """
    array = as_bool(mask, 2)
    if not tolerance >= 0:
        raise ValueError(f"tolerance must be a number of pixels >= 0, but is {tolerance!r}")
    if holes not in get_args(Holes):
        raise ValueError(f'holes must be "bridge", "separate" or "drop", but is {holes!r}')
    labels, areas = connected_components(array)
    outlines: list[FloatArray] = [np.zeros((0, 2))] * len(areas)
    inner: list[list[FloatArray]] = [[] for _ in areas]
    for ring in _trace(array):
        x, y = ring[0]
        is_outline = bool(array[y, x])  # a ring starts at its top left corner: below right of it is its inside
        region = labels[y, x] - 1 if is_outline else labels[y - 1, x] - 1
        thinned = simplify(ring.astype(np.float64), tolerance)
        if len(thinned) >= 3 and is_outline:
            outlines[region] = thinned
        elif len(thinned) >= 3:
            inner[region].append(thinned[::-1])
    if holes == "separate":
        return [ring for outline, rings in zip(outlines, inner, strict=True) for ring in (outline, *rings) if len(ring)]
    pairs = [(outline, rings) for outline, rings in zip(outlines, inner, strict=True) if len(outline)]
    return [_bridge(outline, rings) if holes == "bridge" else outline for outline, rings in pairs]


def mask_to_ring(mask: ArrayLike, tolerance: float = 0.0) -> FloatArray:
    """A whole mask as one ring, its holes and its separate regions joined by cuts of no width (for YOLO).

    Args and errors as `mask_to_polygons`. Returns (V, 2) float64, V = 0 for an empty mask.
    """
    polygons = mask_to_polygons(mask, tolerance)
    return _bridge(polygons[0], polygons[1:]) if polygons else np.zeros((0, 2))


def simplify(ring: FloatArray, tolerance: float) -> FloatArray:
    """Thin a closed ring so that no dropped point lies farther than `tolerance` from the line that replaces it.

    Douglas and Peucker (1973), https://doi.org/10.3138/FM57-6770-U75U-7727. (V, 2) -> (V', 2), V' <= V.
    """
    if tolerance <= 0 or len(ring) <= 3:
        return ring
    far = int(np.square(ring - ring[0]).sum(axis=1).argmax())
    closed = np.concatenate([ring, ring[:1]])
    keep = np.zeros(len(closed), dtype=np.bool_)
    keep[[0, far]] = True
    spans = [(0, far), (far, len(ring))]
    while spans:
        first, last = spans.pop()
        if last - first < 2:
            continue
        distance = _distance(closed[first + 1 : last], closed[first], closed[last])
        worst = int(distance.argmax())
        if distance[worst] > tolerance:
            middle = first + 1 + worst
            keep[middle] = True
            spans += [(first, middle), (middle, last)]
    return ring[keep[:-1]]


def _distance(points: FloatArray, a: FloatArray, b: FloatArray) -> FloatArray:
    """Distance of (V, 2) points from the segment a-b."""
    along = b - a
    length = float(along @ along)
    t = np.clip((points - a) @ along / length, 0, 1)[:, None] if length else 0.0
    return np.asarray(np.hypot(*(points - a - t * along).T))


def _bridge(outline: FloatArray, others: list[FloatArray]) -> FloatArray:
    """One ring along the outline, over to each other ring, around it and back: every cut is walked both ways."""
    if len(others) > _MANY_RINGS:  # one after the other, without looking for short cuts
        there = [ring[:1] for ring in others]
        back = [np.concatenate([ring, ring[:1]]) for ring in reversed(others)]
        return np.concatenate([outline[:1], *there, *back, outline])
    for ring in sorted(others, key=lambda ring: float(ring[:, 0].min())):
        i, j = _near_pair(outline, ring)
        outline = np.concatenate([outline[: i + 1], ring[j:], ring[: j + 1], outline[i:]])
    return outline


def _near_pair(a: FloatArray, b: FloatArray) -> tuple[int, int]:
    """Vertices of two rings, each the other's nearest: found by going to and fro, without all pairs of distances."""
    i, j = -1, 0
    while True:
        nearest = int(np.square(a - b[j]).sum(axis=1).argmin())
        if nearest == i:
            return i, j
        i, j = nearest, int(np.square(b - a[nearest]).sum(axis=1).argmin())


def _trace(mask: BoolArray) -> list[IntArray]:
    """All rings of pixel edges around a mask, corners only, each from its top left corner clockwise: (V, 2) x, y.

    In every row of grid points, corners pair up to horizontal edges; in every column, to vertical ones. Walking from
    partner to partner gives the rings. Where two pixels touch at a corner only, two corners coincide, ordered so that
    the walk keeps the touching pixels in one ring.
    """
    x, y, by_row, by_column = _corners(mask)
    beside, below = np.empty_like(by_row), np.empty_like(by_column)
    for partner, order in ((beside, by_row), (below, by_column)):
        partner[order[0::2]], partner[order[1::2]] = order[1::2], order[0::2]
    across, along = beside.tolist(), below.tolist()
    seen = [False] * len(x)
    rings = []
    for first in by_row.tolist():  # reading order: the first corner of a ring is its top left
        corner = first
        path = []
        while not seen[corner]:
            path += [corner, across[corner]]
            seen[corner] = seen[across[corner]] = True
            corner = along[across[corner]]
        if path:
            rings.append(np.stack([x[path], y[path]], axis=1))
    return rings


def _corners(mask: BoolArray) -> tuple[IntArray, IntArray, IntArray, IntArray]:
    """Corners of the pixel edges: x, y, and their order by row and by column (corners that coincide appear twice)."""
    padded = np.pad(mask, 1)
    nw, ne, sw, se = padded[:-1, :-1], padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]  # (H+1, W+1) around each point
    turn = nw ^ ne ^ sw ^ se
    touch = (nw == se) & (ne == sw) & (nw != ne)
    y1, x1 = np.nonzero(turn)
    y2, x2 = np.nonzero(touch)
    x, y = np.concatenate([x1, x2, x2]), np.concatenate([y1, y2, y2])
    copy = np.concatenate([np.zeros(len(x1)), np.zeros(len(x2)), np.ones(len(x2))]).astype(np.int64)
    # copy 0 ends the edge from the left and copy 1 starts the one to the right. Around the background pixel north west
    # the edge from the left meets the one from above; around the one south west, the one that goes down.
    falling = np.concatenate([np.zeros(len(x1), dtype=np.bool_), nw[y2, x2], nw[y2, x2]])
    down = np.where(falling, 1 - copy, copy)
    return x, y, np.lexsort((copy, x, y)), np.lexsort((down, y, x))
