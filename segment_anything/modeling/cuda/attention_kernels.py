"""Triton kernels: attention with decomposed relative positions over a grid of tokens, or inside its windows.

Imports Triton, so this module is loaded on use only (`grid_attention`). The softmax runs over keys as they come
(Milakov and Gimelshein, https://arxiv.org/abs/1805.02867; FlashAttention, https://arxiv.org/abs/2205.14135): scores
never leave the chip. Windows are cut by addresses: nothing is padded, gathered or laid out anew in memory.

Letters: H x W token grid, C = M * d channels of M heads, SH x SW window (the grid itself for a global block), NY x NX
windows. A head's width d is taken as D0 + D1, a power of two and what is left of it: 80 = 64 + 16, not 128.
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _place(place, heads, windows_y, windows_x, SH: tl.constexpr, SW: tl.constexpr):
    """Which head of which window of which image: (head, first column and row of the window, image)."""
    head = place % heads
    window = place // heads
    left = (window % windows_x) * SW
    top = (window // windows_x) % windows_y * SH
    return head, left, top, (window // (windows_x * windows_y)).to(tl.int64)  # offsets of many images exceed 32 bits


@triton.jit
def _tokens(base, offset, real, padding, WIDTH: tl.constexpr, START: tl.constexpr, D: tl.constexpr, PAD: tl.constexpr):
    """Channels START to START + D of tokens, (tokens, D); where they are not `real`, those of the padding, or zeros."""
    d = START + tl.arange(0, D)
    inside = (d < WIDTH)[None, :]
    found = tl.load(base + offset[:, None] + d[None, :], mask=real[:, None] & inside, other=0.0)
    if PAD:
        found = tl.where(real[:, None], found, tl.load(padding + d, mask=d < WIDTH, other=0.0)[None, :])
    return found


@triton.jit
def _write(out, row, values, asked, WIDTH: tl.constexpr, START: tl.constexpr, D: tl.constexpr):
    """Write channels START to START + D of the tokens whose first channel lies at offset `row`."""
    d = START + tl.arange(0, D)
    target = out + row[:, None] + d[None, :]
    tl.store(target, values.to(out.dtype.element_ty), mask=asked[:, None] & (d < WIDTH)[None, :])


@triton.jit
def relative_scores_kernel(
    qkv,
    tables,
    scores,
    grid_h,
    grid_w,
    heads,
    windows_y,
    windows_x,
    SH: tl.constexpr,
    SW: tl.constexpr,
    WIDTH: tl.constexpr,
    D0: tl.constexpr,
    D1: tl.constexpr,
    LINE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Scores of each query for each key row and each key column of its window.

    One program: the queries of one line of a window (a row, or a column) for one head. They share their distances
    to all lines of keys, so their scores are one small product.

    Args:
        qkv: (B, H, W, 3, M, d).
        tables: (2 SH - 1 + 2 SW - 1, d), the relative table of rows and then that of columns.
        scores: (B * NY * NX * M, SH * SW, SH + SW), written; left as it is for queries outside the grid.
        LINE: a power of two, at least SH and SW.
    """
    line = tl.program_id(0) % (SH + SW)
    place = tl.program_id(0) // (SH + SW)
    head, left, top, image = _place(place, heads, windows_y, windows_x, SH, SW)

    is_row = line < SH
    index = tl.where(is_row, line, line - SH)
    queries = tl.where(is_row, SW, SH)
    keys = tl.where(is_row, SH, SW)

    t = tl.arange(0, LINE)
    y = tl.where(is_row, index, t)
    x = tl.where(is_row, t, index)
    asked = (t < queries) & (top + y < grid_h) & (left + x < grid_w)
    token = (image * grid_h + top + y) * grid_w + left + x
    q = (token * 3 * heads + head) * WIDTH
    row = (tl.where(is_row, 0, 2 * SH - 1) + index - t + keys - 1) * WIDTH  # of key t
    known = t < keys

    q_part = _tokens(qkv, q, asked, qkv, WIDTH, 0, D0, False)
    t_part = _tokens(tables, row, known, tables, WIDTH, 0, D0, False)
    found = tl.dot(q_part, tl.trans(t_part), input_precision=PRECISION)
    if D1 > 0:
        q_part = _tokens(qkv, q, asked, qkv, WIDTH, D0, D1, False)
        t_part = _tokens(tables, row, known, tables, WIDTH, D0, D1, False)
        found = tl.dot(q_part, tl.trans(t_part), found, input_precision=PRECISION)

    target = scores + ((place.to(tl.int64) * SH + y) * SW + x) * (SH + SW) + tl.where(is_row, 0, SH)
    tl.store(target[:, None] + t[None, :], found.to(scores.dtype.element_ty), mask=asked[:, None] & known[None, :])


@triton.jit
def attention_kernel(
    qkv,
    padding,
    scores,
    out,
    grid_h,
    grid_w,
    heads,
    windows_y,
    windows_x,
    scale,
    SH: tl.constexpr,
    SW: tl.constexpr,
    WIDTH: tl.constexpr,
    D0: tl.constexpr,
    D1: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    LINES: tl.constexpr,
    CUT: tl.constexpr,
    PAD: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Softmax attention of BLOCK_Q queries of one window and head over all keys of the window.

    Keys come a row at a time (LINES = 0: their scores by rows are then one number for each query, those by columns are
    the same in every step), or BLOCK_K at a time (LINES, a power of two, at least SH + SW: relative scores are picked
    by a product with ones and zeros, which tensor cores do almost for nothing).

    Args:
        qkv: (B, H, W, 3, M, d).
        padding: (3, M, d), q, k and v of tokens outside the grid; not read unless PAD (zeros then).
        scores: of `relative_scores_kernel`.
        out: (B, H, W, M, d), written.
        scale: of the products q.k.
        CUT: whether windows stick out of the grid.
    """
    blocks: tl.constexpr = (SH * SW + BLOCK_Q - 1) // BLOCK_Q
    place = tl.program_id(0) // blocks
    head, left, top, image = _place(place, heads, windows_y, windows_x, SH, SW)

    i = (tl.program_id(0) % blocks) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    y = i // SW
    x = i % SW
    asked = (i < SH * SW) & (top + y < grid_h) & (left + x < grid_w)
    stride = 3 * heads * WIDTH  # from token to token
    first = qkv + image * grid_h * grid_w * stride + head * WIDTH  # of the image's first token
    here = ((top + y) * grid_w + left + x) * stride
    q0 = _tokens(first, here, asked, padding, WIDTH, 0, D0, False)
    if D1 > 0:
        q1 = _tokens(first, here, asked, padding, WIDTH, D0, D1, False)
    k_first = first + heads * WIDTH
    v_first = first + 2 * heads * WIDTH
    k_padding = padding + (heads + head) * WIDTH
    v_padding = padding + (2 * heads + head) * WIDTH

    by_line = scores + (place.to(tl.int64) * SH * SW + i) * (SH + SW)
    n = tl.arange(0, BLOCK_K)
    if LINES == 0:
        columns = tl.load(by_line[:, None] + SH + n[None, :], mask=asked[:, None] & (n < SW)[None, :], other=0.0)
        columns = columns.to(tl.float32) * LOG2_E
    else:
        line = tl.arange(0, LINES)
        lines = tl.load(by_line[:, None] + line[None, :], mask=asked[:, None] & (line < SH + SW)[None, :], other=0.0)

    highest = tl.full([BLOCK_Q], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_Q], tl.float32)
    sum0 = tl.zeros([BLOCK_Q, D0], tl.float32)
    if D1 > 0:
        sum1 = tl.zeros([BLOCK_Q, D1], tl.float32)
    steps: tl.constexpr = SH if LINES == 0 else (SH * SW + BLOCK_K - 1) // BLOCK_K
    for step in range(steps):
        if LINES == 0:
            v = tl.full([BLOCK_K], 0, tl.int32) + step
            u = n
            inside = n < SW
        else:
            v = (step * BLOCK_K + n) // SW
            u = (step * BLOCK_K + n) % SW
            inside = step * BLOCK_K + n < SH * SW
        if CUT:
            real = inside & (top + v < grid_h) & (left + u < grid_w)
        else:
            real = inside
        there = ((top + v) * grid_w + left + u) * stride

        k0 = _tokens(k_first, there, real, k_padding, WIDTH, 0, D0, PAD)
        found = tl.dot(q0, tl.trans(k0), input_precision=PRECISION)
        if D1 > 0:
            k1 = _tokens(k_first, there, real, k_padding, WIDTH, D0, D1, PAD)
            found = tl.dot(q1, tl.trans(k1), found, input_precision=PRECISION)
        found = found * (scale * LOG2_E)
        if LINES == 0:
            by_row = tl.load(by_line + step, mask=asked, other=0.0).to(tl.float32) * LOG2_E
            found = found + by_row[:, None] + columns
        else:
            picked = (line[:, None] == v[None, :]) | (line[:, None] == SH + u[None, :])
            found = found + tl.dot(lines, picked.to(lines.dtype), input_precision=PRECISION) * LOG2_E
        if steps * BLOCK_K != SH * SW:
            found = tl.where(inside[None, :], found, float("-inf"))

        higher = tl.maximum(highest, tl.max(found, 1))
        weights = tl.exp2(found - higher[:, None])
        fade = tl.exp2(highest - higher)
        total = total * fade + tl.sum(weights, 1)
        weights = weights.to(q0.dtype)
        v0 = _tokens(v_first, there, real, v_padding, WIDTH, 0, D0, PAD)
        sum0 = tl.dot(weights, v0, sum0 * fade[:, None], input_precision=PRECISION)
        if D1 > 0:
            v1 = _tokens(v_first, there, real, v_padding, WIDTH, D0, D1, PAD)
            sum1 = tl.dot(weights, v1, sum1 * fade[:, None], input_precision=PRECISION)
        highest = higher

    row = (((image * grid_h + top + y) * grid_w + left + x) * heads + head) * WIDTH
    _write(out, row, sum0 / total[:, None], asked, WIDTH, 0, D0)
    if D1 > 0:
        _write(out, row, sum1 / total[:, None], asked, WIDTH, D0, D1)
