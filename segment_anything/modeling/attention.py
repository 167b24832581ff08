"""Attention with decomposed relative positions, without the N x N bias of all heads at once.

The score of query (y, x) for key (v, u) is  q.k / sqrt(d) + q.R_h[y - v] + q.R_w[x - u]  (ViTDet,
https://arxiv.org/abs/2203.16527, section 3; MViTv2, https://arxiv.org/abs/2112.01526, section 4.1).

Letters: B batch, M heads, N = h * w tokens, d head width, H x W token grid, C = M * d channels, S window side.
"""

import torch
from torch.nn.functional import interpolate, pad, scaled_dot_product_attention

from segment_anything.modeling.linear import has_wide_vectors, plain_wanted

SCORE_BYTES = 8 * 2**20
"""Most memory for attention scores at once without gradients: what a core's share of the cache holds, about."""

Projected = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Queries, keys and values (B, M, N, d)."""
Scores = tuple[torch.Tensor, torch.Tensor]
"""Of each query for each key row (B, M, N, h), and for each key column (B, M, N, w)."""


def relative_table(size: int, table: torch.Tensor) -> torch.Tensor:
    """Rows of `table` for every pair of coordinates along one axis.

    Args:
        size: length of the axis, in tokens.
        table: (L, d), one row for each offset from -(L-1)/2 to (L-1)/2; resampled linearly if L != 2 * size - 1.

    Returns:
        (size, size, d): entry [i, j] belongs to query i and key j.
    """
    index = torch.arange(size, device=table.device)
    return resampled(table, 2 * size - 1)[index[:, None] - index[None, :] + size - 1]


def resampled(table: torch.Tensor, length: int) -> torch.Tensor:
    """A relative table (L, d) with `length` rows, by linear interpolation."""
    if table.shape[0] == length:
        return table
    return interpolate(table.T[None].float(), size=length, mode="linear")[0].T.to(table.dtype)


def relative_scores(
    q: torch.Tensor, size_hw: tuple[int, int], table_h: torch.Tensor, table_w: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores of each query for each key row and each key column.

    Args:
        q: (B, M, N, d), not scaled.
        size_hw: token grid, h * w = N.
        table_h, table_w: (2h - 1, d) and (2w - 1, d).

    Returns:
        (B, M, N, h) and (B, M, N, w).
    """
    h, w = size_hw
    grid = q.unflatten(2, (h, w))
    rows = torch.einsum("bmyxd,yvd->bmyxv", grid, relative_table(h, table_h))
    columns = torch.einsum("bmyxd,xud->bmyxu", grid, relative_table(w, table_w))
    return rows.flatten(2, 3), columns.flatten(2, 3)


def relative_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    size_hw: tuple[int, int],
    table_h: torch.Tensor | None,
    table_w: torch.Tensor | None,
    score_bytes: int = SCORE_BYTES,
) -> torch.Tensor:
    """Softmax attention with decomposed relative positions.

    Args:
        q, k, v: (B, M, N, d).
        size_hw: token grid, h * w = N.
        table_h, table_w: relative tables, or None for plain attention.
        score_bytes: most memory for scores at once, where no gradient is wanted.

    Returns:
        (B, M, N, d).
    """
    if table_h is None or table_w is None:
        return scaled_dot_product_attention(q, k, v)
    rows, columns = relative_scores(q, size_hw, table_h, table_w)
    if plain_wanted():
        return scaled_dot_product_attention(q, k, v, attn_mask=_bias(rows, columns))
    in_blocks = q.dtype == torch.bfloat16 or (q.dtype == torch.float32 and has_wide_vectors())
    if q.device.type == "cpu" and in_blocks:
        return blocked_attention((q, k, v), (rows, columns), score_bytes)
    return fused_attention((q, k, v), (rows, columns), score_bytes)


def _bias(rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Scores for key rows (..., N, h) and columns (..., N, w) -> for keys (..., N, h * w)."""
    return (rows[..., :, None] + columns[..., None, :]).flatten(-2)


def _steps(heads: int, tokens: int, queries: int) -> tuple[int, int]:
    """How many heads, and how many query rows of each, are so many queries at most: whole heads if there are any."""
    return max(1, min(heads, queries // tokens)), max(1, min(tokens, queries))


def fused_attention(qkv: Projected, bias: Scores, score_bytes: int) -> torch.Tensor:
    """The same by PyTorch's kernel, with the bias of a few heads, or of a few query rows of one head, at a time."""
    (q, k, v), (rows, columns) = qkv, bias
    batch, heads, tokens, _ = q.shape
    head_step, query_step = _steps(heads, tokens, score_bytes // (batch * tokens * q.element_size()))
    out = torch.empty((batch, tokens, heads, v.shape[3]), dtype=q.dtype, device=q.device)  # as the projection reads it
    by_head = out.transpose(1, 2)
    room = rows.new_empty((batch, head_step, query_step, tokens))  # used again: new memory takes longer than the sums
    for head in range(0, heads, head_step):
        part = slice(None), slice(head, head + head_step)
        for query in range(0, tokens, query_step):
            some = (*part, slice(query, query + query_step))
            by_row, by_column = rows[some][..., :, None], columns[some][..., None, :]
            mask = room[:, : by_row.shape[1], : by_row.shape[2]]
            torch.add(by_row, by_column, out=mask.unflatten(3, (by_row.shape[3], by_column.shape[4])))
            by_head[some] = scaled_dot_product_attention(q[some], k[part], v[part], attn_mask=mask)
    return by_head


def blocked_attention(qkv: Projected, bias: Scores, score_bytes: int) -> torch.Tensor:
    """The same by plain products on a CPU: with wide vectors they are faster than the fused kernel with its bias.

    A few heads of one window, or a few query rows of one head, at a time: the scores never leave the cache. They are
    float32 in a bfloat16 model as well.
    """
    (q, k, v), (rows, columns) = qkv, bias
    batch, heads, tokens, width = q.shape
    is_exact = q.dtype == torch.float32
    bytes_per_query = tokens * (4 if is_exact else 8)  # with the copy that is multiplied
    head_step, query_step = _steps(heads, tokens, score_bytes // bytes_per_query)
    out = torch.empty((batch, tokens, heads, width), dtype=q.dtype, device=q.device)  # as the projection reads it
    by_head = out.transpose(1, 2)
    k = k * width**-0.5
    for b in range(batch):
        for head in range(0, heads, head_step):
            part = b, slice(head, head + head_step)
            keys, values = k[part].transpose(1, 2), v[part]
            for query in range(0, tokens, query_step):
                some = (*part, slice(query, query + query_step))
                if is_exact:
                    scores = _bias(rows[some], columns[some])
                    shares = scores.baddbmm_(q[some], keys).softmax(dim=-1)
                else:
                    scores = torch.bmm(q[some], keys).float().unflatten(2, (rows.shape[3], columns.shape[3]))
                    scores += rows[some][..., :, None]
                    scores += columns[some][..., None, :]
                    shares = scores.flatten(2).softmax(dim=-1).to(q.dtype)
                by_head[some] = torch.bmm(shares, values)
    return by_head


def grid_attention_plain(
    qkv: torch.Tensor,
    padding: torch.Tensor | None,
    table_h: torch.Tensor | None,
    table_w: torch.Tensor | None,
    heads: int,
    window: int,
) -> torch.Tensor:
    """Attention of a grid of tokens over all of it, or inside windows.

    Args:
        qkv: (B, H, W, 3C): queries, keys and values of the real tokens.
        padding: (3C,), those of the tokens that fill up windows which stick out at the bottom and the right; None for
            zeros. The published network pads its input with zeros before the projection, so its padding takes part as
            keys and values equal to the projection's bias.
        table_h, table_w: relative tables, or None for plain attention.
        heads: M.
        window: S, or 0 for the whole grid.

    Returns:
        (B, H, W, C).
    """
    height, width = qkv.shape[1:3]
    if not window:
        return _attend(qkv, heads, table_h, table_w)
    padded = _padded(qkv, padding, (-height) % window, (-width) % window)
    out = _attend(window_partition(padded, window), heads, table_h, table_w)
    return window_unpartition(out, window, (padded.shape[1], padded.shape[2]))[:, :height, :width]


def _attend(qkv: torch.Tensor, heads: int, table_h: torch.Tensor | None, table_w: torch.Tensor | None) -> torch.Tensor:
    batch, height, width, _ = qkv.shape
    q, k, v = qkv.reshape(batch, height * width, 3, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)  # B M N d
    out = relative_attention(q, k, v, (height, width), table_h, table_w)
    return out.transpose(1, 2).reshape(batch, height, width, -1)


def _padded(qkv: torch.Tensor, padding: torch.Tensor | None, bottom: int, right: int) -> torch.Tensor:
    if not bottom and not right:
        return qkv
    height, width = qkv.shape[1:3]
    qkv = pad(qkv, (0, 0, 0, right, 0, bottom))
    if padding is not None:
        outside = torch.ones(qkv.shape[1:3], dtype=qkv.dtype, device=qkv.device)
        outside[:height, :width] = 0
        qkv = qkv + outside[:, :, None] * padding
    return qkv


def window_partition(x: torch.Tensor, window_size: int) -> torch.Tensor:
    """(B, H, W, C) -> (B * H/S * W/S, S, S, C); S divides H and W."""
    batch, height, width, channels = x.shape
    s = window_size
    x = x.view(batch, height // s, s, width // s, s, channels)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, s, s, channels)


def window_unpartition(windows: torch.Tensor, window_size: int, size_hw: tuple[int, int]) -> torch.Tensor:
    """The inverse of `window_partition`: -> (B, H, W, C) for a grid of `size_hw`."""
    (height, width), s = size_hw, window_size
    x = windows.view(-1, height // s, width // s, s, s, windows.shape[-1])
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, height, width, windows.shape[-1])
