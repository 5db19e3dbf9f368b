"""The parts of the encoder (paper: section 3.1, equations 2 to 4 and appendix A).

Letters: B images, M tokens, Q tokens that ask, D width, H heads, K = D/H head width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchword.models import linear
from patchword.models.chance import Dropout, StochasticDepth
from patchword.models.gelu import Gelu, gelu
from patchword.models.linear import Linear
from patchword.models.position import RelativeKeys, Rotation


class Attention(nn.Module):
    """Multi-head self-attention (appendix A)."""

    def __init__(
        self, embed_dim: int, num_heads: int, relative: RelativeKeys | None = None, rotation: Rotation | None = None
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = Linear(embed_dim, 3 * embed_dim)
        self.proj = Linear(embed_dim, embed_dim)
        self.relative = relative
        self.rotation = rotation

    def reset(self) -> None:
        """Xavier-uniform for queries, keys, values and output, each as a D×D matrix of its own."""
        for matrix in self.qkv.weight.chunk(3):
            nn.init.xavier_uniform_(matrix)
        nn.init.xavier_uniform_(self.proj.weight)
        nn.init.zeros_(self.qkv.bias)
        nn.init.zeros_(self.proj.bias)
        if self.relative is not None:
            self.relative.reset()

    @torch.no_grad()
    def look_beside(self, block: int) -> None:
        """Let each head begin as a look at one neighbour of each patch; heads of all blocks take turns."""
        if self.rotation is not None:
            biases = self.qkv.bias.view(3, self.num_heads, -1)
            for head in range(self.num_heads):
                self.rotation.look_beside(block * self.num_heads + head, biases[0, head], biases[1, head])

    def heads(self, x: Tensor, rows: int | None, places: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens B×M×D → queries B×H×Q×K of the first `rows` tokens (all if None), keys and values B×H×M×K."""
        B, M, D = x.shape
        H = self.num_heads
        if rows is None or type(self.qkv) is not Linear:  # an adapter in its place wants to be called
            qkv = self.qkv(x).view(B, M, 3, H, D // H)
            if self.rotation is None:
                q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
            else:
                asked, v = qkv.split((2, 1), dim=2)
                q, k = self.rotation(asked, places).permute(2, 0, 3, 1, 4).unbind(0)
                v = v[:, :, 0].transpose(1, 2)
            return q[:, :, :rows], k, v
        q = linear.linear(x[:, :rows], self.qkv.weight[:D], self.qkv.bias[:D]).view(B, rows, 1, H, D // H)
        k, v = linear.linear(x, self.qkv.weight[D:], self.qkv.bias[D:]).view(B, M, 2, H, D // H).split(1, dim=2)
        if self.rotation is not None:
            q, k = self.rotation(q, places), self.rotation(k, places)
        q, k, v = (each[:, :, 0].transpose(1, 2) for each in (q, k, v))
        return q, k, v

    def join(self, heads: Tensor) -> Tensor:
        """B×H×Q×K → B×Q×D through the output projection."""
        return self.proj(heads.transpose(1, 2).flatten(2))

    def forward(self, x: Tensor, rows: int | None = None, places: Tensor | None = None) -> Tensor:
        """B×M×D → B×Q×D by PyTorch's fused attention, which never holds the M×M weights."""
        q, k, v = self.heads(x, rows, places)
        bias = None if self.relative is None else self.relative(q * q.shape[-1] ** -0.5, places)
        return self.join(F.scaled_dot_product_attention(q, k, v, attn_mask=bias))

    def weights(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """B×M×D → the attention weights B×H×M×M and the values B×H×M×K (equations 5 and 6)."""
        q, k, v = self.heads(x, None)
        q = q * q.shape[-1] ** -0.5
        logits = q @ k.transpose(-2, -1)
        if self.relative is not None:
            logits = logits + self.relative(q)
        return logits.softmax(dim=-1), v

    def explicit(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """B×M×D → (the same as `forward`, the attention weights B×H×M×M) step by step (equations 5 to 7)."""
        weights, values = self.weights(x)
        return self.join(weights @ values), weights


class MLP(nn.Module):
    """Two linear layers with GELU between; dropout after each."""

    def __init__(self, embed_dim: int, mlp_dim: int, gelu: Gelu) -> None:
        super().__init__()
        self.fc1: nn.Linear = Linear(embed_dim, mlp_dim)
        self.fc2: nn.Linear = Linear(mlp_dim, embed_dim)
        self.gelu: Gelu = gelu
        self.dropout = Dropout()

    def reset(self) -> None:
        """Xavier-uniform weights, biases normal with standard deviation 1e-6."""
        for layer in (self.fc1, self.fc2):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.normal_(layer.bias, std=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """B×M×D → B×M×D."""
        return self.dropout(self.fc2(self.dropout(self.activate(self.fc1(x)), 0)), 1)

    def activate(self, x: Tensor) -> Tensor:
        """GELU of the kind that this MLP has."""
        return gelu(x, self.gelu)


class Block(nn.Module):
    """One encoder block: attention and MLP, each behind a norm and around a residual (equations 2 and 3)."""

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        mlp_dim: int,
        *,
        gelu: Gelu = "tanh",
        norm_eps: float = 1e-6,
        layer_scale: bool = False,
        relative: RelativeKeys | None = None,
        rotation: Rotation | None = None,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(embed_dim, eps=norm_eps)
        self.attention = Attention(embed_dim, num_heads, relative, rotation)
        self.scale1 = nn.Parameter(torch.empty(embed_dim)) if layer_scale else None
        self.norm2 = nn.LayerNorm(embed_dim, eps=norm_eps)
        self.mlp = MLP(embed_dim, mlp_dim, gelu)
        self.scale2 = nn.Parameter(torch.empty(embed_dim)) if layer_scale else None
        self.dropout = Dropout()
        self.stochastic_depth = StochasticDepth()

    def reset(self) -> None:
        """Initial values as in the original code; LayerScale begins at 1e-5 (arXiv 2103.17239)."""
        self.norm1.reset_parameters()
        self.norm2.reset_parameters()
        self.attention.reset()
        self.mlp.reset()
        for scale in (self.scale1, self.scale2):
            if scale is not None:
                nn.init.constant_(scale, 1e-5)

    def forward(self, x: Tensor, rows: int | None = None, places: Tensor | None = None) -> Tensor:
        """B×M×D → B×Q×D: all tokens, or exactly the first `rows` where nothing reads the others (the last block's)."""
        if linear.applies(self, x):
            return linear.infer(self, x, rows, places)
        x = x[:, :rows] + self.branch(self.dropout(self.attention(self.norm1(x), rows, places)), self.scale1)
        return x + self.branch(self.mlp(self.norm2(x)), self.scale2, 1)

    def explicit(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The same as `forward`, with the attention weights B×H×M×M beside it."""
        weights, values = self.look(x)
        return self.go_on(x, weights, values), weights

    def look(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The first half of it: B×M×D → the attention weights B×H×M×M and the values B×H×M×K."""
        return self.attention.weights(self.norm1(x))

    def go_on(self, x: Tensor, weights: Tensor, values: Tensor) -> Tensor:
        """The second half: the block's input and what `look` gave → B×M×D."""
        heads = weights @ values
        if linear.applies(self, x):
            return linear.after_attention(self, x, heads)
        x = x + self.branch(self.dropout(self.attention.join(heads)), self.scale1)
        return x + self.branch(self.mlp(self.norm2(x)), self.scale2, 1)

    def branch(self, x: Tensor, scale: nn.Parameter | None, use: int = 0) -> Tensor:
        """What is added to the residual: B×Q×D, scaled for each of D where the block has LayerScale."""
        return self.stochastic_depth(x if scale is None else x * scale, use)


class AttentionPool(nn.Module):
    """Multi-head attention pooling (MAP): a learned probe asks the tokens once, then one MLP (Scaling ViTs, section 3.2)."""

    def __init__(self, embed_dim: int, num_heads: int, mlp_dim: int, gelu: Gelu, norm_eps: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.probe = nn.Parameter(torch.empty(1, embed_dim))
        self.q = Linear(embed_dim, embed_dim)
        self.kv = Linear(embed_dim, 2 * embed_dim)
        self.proj = Linear(embed_dim, embed_dim)
        self.norm = nn.LayerNorm(embed_dim, eps=norm_eps)
        self.mlp = MLP(embed_dim, mlp_dim, gelu)

    def reset(self) -> None:
        """Xavier-uniform, as the encoder's attention."""
        for matrix in (self.probe, self.q.weight, *self.kv.weight.chunk(2), self.proj.weight):
            nn.init.xavier_uniform_(matrix)
        for layer in (self.q, self.kv, self.proj):
            nn.init.zeros_(layer.bias)
        self.norm.reset_parameters()
        self.mlp.reset()

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens B×M×D → the probe's query B×H×1×K, keys and values B×H×M×K."""
        B, M, D = x.shape
        H = self.num_heads
        q = self.q(self.probe).view(1, 1, H, D // H).transpose(1, 2).expand(B, -1, -1, -1)
        k, v = self.kv(x).view(B, M, 2, H, D // H).permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v

    def forward(self, x: Tensor) -> Tensor:
        """B×M×D → B×D."""
        return self.finish(F.scaled_dot_product_attention(*self.heads(x)))

    def explicit(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The same as `forward`, with the probe's attention weights B×H×1×M beside it."""
        q, k, v = self.heads(x)
        weights = (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(dim=-1)
        return self.finish(weights @ v), weights

    def finish(self, heads: Tensor) -> Tensor:
        x = self.proj(heads.transpose(1, 2).flatten(2))
        return (x + self.mlp(self.norm(x)))[:, 0]
