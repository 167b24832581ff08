"""Attention with decomposed relative positions, without the N x N bias of all heads at once.

The score of query (y, x) for key (v, u) is  q.k / sqrt(d) + q.R_h[y - v] + q.R_w[x - u]  (ViTDet,
https://arxiv.org/abs/2203.16527, section 3; MViTv2, https://arxiv.org/abs/2112.01526, section 4.1).

Letters: B batch, M heads, N = h * w tokens, d head width.
"""

import torch
from torch.nn.functional import interpolate, scaled_dot_product_attention

from segment_anything.modeling.linear import plain_wanted

SCORE_BYTES = 8 * 2**20
"""Most memory for attention scores at once without gradients: what a core's share of the cache holds, about."""


def relative_table(size: int, table: torch.Tensor) -> torch.Tensor:
    """Rows of `table` for every pair of coordinates along one axis.

    Args:
        size: length of the axis, in tokens.
        table: (L, d), one row for each offset from -(L-1)/2 to (L-1)/2; resampled linearly if L != 2 * size - 1.

    Returns:
        (size, size, d): entry [i, j] belongs to query i and key j.
    """
    length = 2 * size - 1
    if table.shape[0] != length:
        table = interpolate(table.T[None].float(), size=length, mode="linear")[0].T.to(table.dtype)
    index = torch.arange(size, device=table.device)
    return table[index[:, None] - index[None, :] + size - 1]


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
) -> torch.Tensor:
    """Softmax attention with decomposed relative positions.

    Args:
        q, k, v: (B, M, N, d).
        size_hw: token grid, h * w = N.
        table_h, table_w: relative tables, or None for plain attention.

    Returns:
        (B, M, N, d).
    """
    if table_h is None or table_w is None:
        return scaled_dot_product_attention(q, k, v)
    rows, columns = relative_scores(q, size_hw, table_h, table_w)
    if plain_wanted():
        return scaled_dot_product_attention(q, k, v, attn_mask=_bias(rows, columns))
    if q.device.type == "cpu" and q.dtype == torch.float32:
        return _blocked_attention(q, k, v, rows, columns)
    batch, heads, tokens, _ = q.shape
    step = max(1, SCORE_BYTES // (batch * tokens * tokens * q.element_size()))
    parts = [slice(head, head + step) for head in range(0, heads, step)]
    out = [
        scaled_dot_product_attention(q[:, p], k[:, p], v[:, p], attn_mask=_bias(rows[:, p], columns[:, p]))
        for p in parts
    ]
    return out[0] if len(out) == 1 else torch.cat(out, dim=1)


def _bias(rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Scores for key rows (B, M, N, h) and columns (B, M, N, w) -> for keys (B, M, N, N)."""
    return (rows[..., :, None] + columns[..., None, :]).flatten(3)


def _blocked_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor
) -> torch.Tensor:
    """The same in float32 on a CPU, where plain products are faster than the fused kernel with its bias.

    A few heads of one window, or a few query rows of one head, at a time: the scores never leave the cache.
    """
    batch, heads, tokens, width = q.shape
    bytes_per_query = tokens * q.element_size()
    head_step = max(1, min(heads, SCORE_BYTES // (tokens * bytes_per_query)))
    query_step = max(1, min(tokens, SCORE_BYTES // bytes_per_query))
    out = torch.empty((batch, tokens, heads, width), dtype=q.dtype, device=q.device)  # as the projection reads it
    by_head = out.transpose(1, 2)
    k = k * width**-0.5
    for b in range(batch):
        for head in range(0, heads, head_step):
            part = b, slice(head, head + head_step)
            keys, values = k[part].transpose(1, 2), v[part]
            for query in range(0, tokens, query_step):
                some = (*part, slice(query, query + query_step))
                scores = (rows[some][..., :, None] + columns[some][..., None, :]).flatten(2)
                by_head[some] = torch.bmm(scores.baddbmm_(q[some], keys).softmax(dim=-1), values)
    return by_head
