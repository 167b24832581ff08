"""Attention with decomposed relative positions, without the N x N bias of all heads at once.

The score of query (y, x) for key (v, u) is  q.k / sqrt(d) + q.R_h[y - v] + q.R_w[x - u]  (ViTDet,
https://arxiv.org/abs/2203.16527, section 3; MViTv2, https://arxiv.org/abs/2112.01526, section 4.1).

Letters: B batch, M heads, N = h * w tokens, d head width.
"""

import torch
from torch.nn.functional import interpolate, scaled_dot_product_attention

BIAS_BYTES = 64 * 2**20
"""Largest attention bias held at once without gradients; more heads are done one chunk after the other."""


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
    batch, heads, tokens, _ = q.shape
    step = heads
    if not torch.is_grad_enabled() and not torch.compiler.is_exporting():
        step = max(1, min(heads, BIAS_BYTES // (batch * tokens * tokens * q.element_size())))
    out = []
    for head in range(0, heads, step):
        part = slice(head, head + step)
        bias = (rows[:, part, :, :, None] + columns[:, part, :, None, :]).flatten(3)  # B m N N
        out.append(scaled_dot_product_attention(q[:, part], k[:, part], v[:, part], attn_mask=bias))
    return out[0] if len(out) == 1 else torch.cat(out, dim=1)
