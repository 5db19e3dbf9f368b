"""Position embeddings and their way to another grid (paper: sections 3.1, 3.2 and appendix D.4, Table 8).

| kind       | what is learned                                             | added to             |
|------------|-------------------------------------------------------------|----------------------|
| `none`     | nothing                                                     |                      |
| `1d`       | one vector for every token in raster order (the paper's)    | the tokens           |
| `2d`       | one half-width vector for every row and for every column    | the tokens           |
| `relative` | one head-width key for every raster offset, in every block  | the attention logits |
| `sincos`   | nothing: fixed sines and cosines of row and column          | the tokens           |
| `rope`     | nothing: queries and keys are turned by row and column      | nothing              |

Letters: N patches in a grid of h×w, D width, K head width.
"""

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Position = Literal["none", "1d", "2d", "relative", "sincos", "rope"]
POSITIONS = get_args(Position)
Resampling = Literal["official", "bicubic"]


class PositionEmbedding(nn.Module):
    """Adds where a token stands to what it is; a class token in front has a slot of its own when learned in 1-D.

    `grid` is h×w; `prefix` is the number of tokens before the patches (1 with a class token, else 0).
    """

    fixed: Tensor

    def __init__(self, kind: Position, grid: tuple[int, int], embed_dim: int, prefix: int) -> None:
        super().__init__()
        self.kind, self.grid, self.prefix = kind, grid, prefix
        height, width = grid
        if kind == "1d":
            self.table = nn.Parameter(torch.empty(prefix + height * width, embed_dim))
        elif kind == "2d":
            self.rows = nn.Parameter(torch.empty(height, embed_dim // 2))
            self.columns = nn.Parameter(torch.empty(width, embed_dim - embed_dim // 2))
        elif kind == "sincos":
            # Saved with the model: on another grid it is not what the formula gives there, but what the blocks learned to read.
            self.register_buffer("fixed", torch.empty(height * width, embed_dim).copy_(sincos(grid, embed_dim)))

    def reset(self) -> None:
        """Normal with standard deviation 0.02, as BERT and the original code."""
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.02)

    def extra_repr(self) -> str:
        return f"{self.kind}, grid={self.grid[0]}×{self.grid[1]}"

    def patches(self) -> Tensor | None:
        """What is added to the patch tokens, N×D, or None where nothing is."""
        height, width = self.grid
        if self.kind == "1d":
            return self.table[self.prefix :]
        if self.kind == "2d":
            rows = self.rows[:, None].expand(-1, width, -1)
            columns = self.columns[None].expand(height, -1, -1)
            return torch.cat([columns, rows], dim=-1).flatten(0, 1)
        return self.fixed if self.kind == "sincos" else None

    def forward(self, patches: Tensor, token: Tensor | None, registers: Tensor | None = None) -> Tensor:
        """Patches B×N×D, an optional class token D and R registers R×D → tokens B×(1+R+N)×D with positions added.

        Registers stand nowhere: they get no position.
        """
        position = self.patches()
        if token is None and registers is None:
            return patches if position is None else patches + position
        B, N, D = patches.shape
        first = 0 if token is None else 1
        before = first + (0 if registers is None else len(registers))
        tokens = patches.new_empty(B, before + N, D)
        if token is not None:
            tokens[:, 0] = token + self.table[0] if self.kind == "1d" else token
        if registers is not None:
            tokens[:, first:before] = registers
        tokens[:, before:] = patches if position is None else patches + position
        return tokens

    @torch.no_grad()
    def resample_from(self, other: "PositionEmbedding", mode: Resampling = "official") -> None:
        """Take the values of an embedding of the same kind that served on another grid."""
        if self.kind == "1d":
            self.table[: self.prefix] = other.table[: other.prefix]
            self.table[self.prefix :] = resample_grid(other.table[other.prefix :], other.grid, self.grid, mode)
        elif self.kind == "sincos":
            self.fixed.copy_(resample_grid(other.fixed, other.grid, self.grid, mode))
        elif self.kind == "2d":
            for mine, theirs in ((self.rows, other.rows), (self.columns, other.columns)):
                mine.copy_(resample_grid(theirs, (len(theirs), 1), (len(mine), 1), mode))


class Rotation(nn.Module):
    """Turns queries and keys by where their patches stand, so that a logit depends on the offset between two of them.

    RoPE (arXiv 2104.09864) in 2-D: each two neighbouring numbers of a word turn together, in the first half of a head's width
    with the row, in the second with the column (arXiv 2403.13298). Angles are π·k·(row + ½)/h for k = 1 … K/4, and the same of
    columns: the picture's side is the unit, so that they mean the same on another grid. The tokens before the patches are not
    turned.
    """

    def __init__(self, grid: tuple[int, int], head_dim: int, prefix: int) -> None:
        super().__init__()
        self.grid, self.head_dim, self.prefix = grid, head_dim, prefix

    def extra_repr(self) -> str:
        return f"grid={self.grid[0]}×{self.grid[1]}"

    def forward(self, words: Tensor, places: Tensor | None = None) -> Tensor:
        """Queries, keys or both, B×Q×P×H×K, of the first Q of M tokens → the same, turned.

        `places` (B×M) are the tokens' places in the whole sequence when some were dropped; None means all are there.
        """
        angles = self.angles(words.device)[None] if places is None else self.angles(words.device)[places]
        angles = angles[:, : words.shape[1], None, None]
        # A product of complex numbers is one pass over the memory; there are none in half precision.
        exact = words if words.dtype == torch.float64 else words.float()
        turned = torch.view_as_complex(exact.unflatten(-1, (-1, 2))) * torch.polar(torch.ones_like(angles), angles)
        return torch.view_as_real(turned).flatten(-2).to(words.dtype)

    def angles(self, device: torch.device) -> Tensor:
        """M×K/2, in radians: those of rows, then those of columns."""
        height, width = self.grid
        rows, columns = (
            (torch.arange(side, device=device)[:, None] + 0.5) * self.steps(side, device) for side in self.grid
        )
        patches = torch.cat([rows.repeat_interleave(width, 0), columns.repeat(height, 1)], dim=1)
        return F.pad(patches, (0, 0, self.prefix, 0))

    def steps(self, side: int, device: torch.device | None = None) -> Tensor:
        """By how much each of K/4 angles grows from one patch to the next, of `side` patches in a row."""
        return torch.arange(1, self.head_dim // 4 + 1, device=device) * (math.pi / side)

    @torch.no_grad()
    def look_beside(self, number: int, queries: Tensor, keys: Tensor) -> None:
        """Let the `number`-th head look at one of its patch's neighbours in 3×3 at the start: biases of K queries and K keys.

        Both are vectors of which the rotation makes a kernel around the neighbour; the weights still see the content. What a
        convolution is given by its form ("ConViT", arXiv 2103.10697, does so with positions of their own), and training may undo.
        """
        row, column = _NEIGHBOURS[number % len(_NEIGHBOURS)]
        height, width = self.grid
        angles = torch.cat([row * self.steps(height), column * self.steps(width)])
        length = (_PEAK * self.head_dim**0.5 / len(angles)) ** 0.5
        queries.copy_(length * torch.stack([angles.cos(), angles.sin()], dim=1).flatten())
        keys.copy_(length * torch.stack([torch.ones_like(angles), torch.zeros_like(angles)], dim=1).flatten())


_NEIGHBOURS = ((0, 0), (0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (-1, -1), (1, -1), (-1, 1))
_PEAK = 16.0
"""The attention logit of the neighbour that a head looks at in the beginning; those of far patches are about 0."""


def sincos(grid: tuple[int, int], embed_dim: int, temperature: float = 10_000.0) -> Tensor:
    """Fixed 2-D sines and cosines, N×D (MoCo v3, as used by "Better plain ViT baselines")."""
    # On the CPU even where new tensors are made on the meta device, on which torch counts by a program of a second's import.
    h, w, steps = (torch.arange(n, dtype=torch.float32, device="cpu") for n in (*grid, embed_dim // 4))
    rows, columns = torch.meshgrid(h, w, indexing="ij")
    frequencies = temperature ** -(steps / (embed_dim // 4 - 1))
    x, y = columns.reshape(-1, 1) * frequencies, rows.reshape(-1, 1) * frequencies
    return torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], dim=1)


def resample_grid(table: Tensor, old: tuple[int, int], new: tuple[int, int], mode: Resampling = "official") -> Tensor:
    """A table with one row for every cell of an `old` h×w grid → one row for every cell of the `new` grid.

    `official` interpolates linearly with aligned corners, which is what the original code's `scipy.ndimage.zoom` does;
    `bicubic` is antialiased, as in timm. Equal grids give the table back unchanged.
    """
    if old == new:
        return table
    cells = table.reshape(1, *old, -1).permute(0, 3, 1, 2)
    if mode == "official":
        cells = F.interpolate(cells, size=new, mode="bilinear", align_corners=True)
    else:
        cells = F.interpolate(cells, size=new, mode="bicubic", antialias=True)
    return cells.permute(0, 2, 3, 1).reshape(new[0] * new[1], -1)


class RelativeKeys(nn.Module):
    """One key for every offset between two tokens in raster order, shared by the heads of a block (appendix D.4).

    The product of a query with the key of its offset to another token is added to the attention logit of the pair.
    """

    def __init__(self, num_tokens: int, head_dim: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(2 * num_tokens - 1, head_dim))

    def reset(self) -> None:
        nn.init.normal_(self.table, std=0.02)

    def forward(self, queries: Tensor, places: Tensor | None = None) -> Tensor:
        """Scaled queries B×H×Q×K of the first Q of M tokens → logits B×H×Q×M.

        `places` (B×M) are the tokens' places in the whole sequence when some were dropped; None means all are there.
        """
        whole = (len(self.table) + 1) // 2
        by_offset = queries @ self.table.T  # B×H×Q×(2·whole−1)
        if places is None:
            places = torch.arange(whole, device=queries.device)[None]
        offsets = places[:, : queries.shape[2], None] - places[:, None] + whole - 1  # B×Q×M
        return by_offset.gather(3, offsets[:, None].expand(*queries.shape[:2], -1, -1))

    @torch.no_grad()
    def resample_from(self, other: "RelativeKeys", mode: Resampling = "official") -> None:
        """Stretch the offsets of another grid onto ours: exact in whole rows, approximate within a row, linear in any mode."""
        if other.table.shape == self.table.shape:
            self.table.copy_(other.table)
        else:
            stretched = F.interpolate(other.table.T[None], size=len(self.table), mode="linear", align_corners=True)
            self.table.copy_(stretched[0].T)
