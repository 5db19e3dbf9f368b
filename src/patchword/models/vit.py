"""The Vision Transformer, as the paper tells it (Dosovitskiy et al. 2021, arXiv 2010.11929, section 3.1).

Letters: B images, C channels, H×W pixels, P patch side, h×w grid of patches, N = h·w patches,
M tokens (the patches, and before them the class token and the registers if there are any), D width, K classes.
"""

import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple, Self, cast, get_args

import torch
from torch import Tensor, nn

from patchword.core.errors import UsageError, nearest
from patchword.core.preprocessing import Preprocessing
from patchword.models.chance import Dropout, StochasticDepth
from patchword.models.contract import Model
from patchword.models.gelu import Gelu
from patchword.models.layers import AttentionPool, Block
from patchword.models.linear import Linear
from patchword.models.position import POSITIONS, Position, PositionEmbedding, RelativeKeys, Resampling, Rotation

Pool = Literal["token", "gap", "gap-norm", "map"]

MOST_PATCHES = 2**16
"""Attention over more patches of one image fits in no memory."""


class Size(NamedTuple):
    embed_dim: int
    depth: int
    mlp_dim: int
    num_heads: int
    patches: tuple[int, ...]
    """Patch sides that `list_models` names; any other works too."""


SIZES: dict[str, Size] = {
    # For small pictures and small budgets: ours, named downwards in the same way (atto, femto, pico, nano).
    "At": Size(64, 4, 256, 2, (4, 8)),
    "Fe": Size(96, 6, 384, 3, (4, 8)),
    "Pi": Size(128, 6, 512, 4, (4, 8)),
    "Na": Size(192, 9, 768, 6, (4, 8, 16)),
    # "How to train your ViT" (arXiv 2106.10270), Table 2.
    "Ti": Size(192, 12, 768, 3, (4, 8, 16)),
    "S": Size(384, 12, 1536, 6, (8, 16, 32)),
    # The paper's Table 1.
    "B": Size(768, 12, 3072, 12, (8, 16, 32)),
    "L": Size(1024, 24, 4096, 16, (16, 32)),
    "H": Size(1280, 32, 5120, 16, (14,)),
    # "Scaling Vision Transformers" (arXiv 2106.04560), Table 2.
    "g": Size(1408, 40, 6144, 16, (14,)),
    "G": Size(1664, 48, 8192, 16, (14,)),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """Everything that makes a ViT what it is; what only acts in training is not part of it."""

    patch_size: int
    embed_dim: int
    depth: int
    mlp_dim: int
    num_heads: int
    pool: Pool = "token"
    """Class token; average of all patches (gap); the same before the final norm, not after it (gap-norm); attention (map)."""
    position: Position = "1d"
    hidden_head: bool = False
    """The pre-training head: one tanh layer of width D before the linear one."""
    gelu: Gelu = "tanh"
    norm_eps: float = 1e-6
    registers: int = 0
    """Learned tokens beside the patches, which nothing reads at the end (arXiv 2309.16588)."""
    layer_scale: bool = False
    """A learned factor for every channel of every branch (arXiv 2103.17239)."""

    def __post_init__(self) -> None:
        for field, choices in (("pool", get_args(Pool)), ("position", POSITIONS), ("gelu", get_args(Gelu))):
            if getattr(self, field) not in choices:
                value = getattr(self, field)
                raise UsageError(f"model.{field}={value!r} is not known; {nearest(str(value), choices)}")
        for field in ("patch_size", "embed_dim", "depth", "mlp_dim", "num_heads"):
            if getattr(self, field) < 1:
                raise UsageError(f"model.{field}={getattr(self, field)} must be at least 1")
        if self.registers < 0:
            raise UsageError(f"model.registers={self.registers} must not be negative")
        if self.embed_dim % self.num_heads:
            raise UsageError(f"model.embed_dim={self.embed_dim} is not divisible by model.num_heads={self.num_heads}")
        if self.position == "sincos" and (self.embed_dim % 4 or self.embed_dim < 8):
            raise UsageError(
                f"model.position=sincos needs model.embed_dim divisible by 4 and at least 8, not {self.embed_dim}"
            )
        if self.position == "rope" and self.embed_dim // self.num_heads % 4:
            raise UsageError(
                f"model.position=rope needs heads of a width divisible by 4, and {self.embed_dim} by {self.num_heads} is "
                f"{self.embed_dim // self.num_heads}"
            )

    @property
    def stride(self) -> int:
        """Sides of images must be multiples of it."""
        return self.patch_size


class ViT(Model):
    """Patches as words, a transformer encoder over them, one linear layer on what the class token says."""

    family = "vit"
    has_attention = True
    config: ViTConfig

    def __init__(self, name: str, config: ViTConfig, preprocessing: Preprocessing, num_classes: int) -> None:
        super().__init__(name, config, preprocessing)
        P, D = config.patch_size, config.embed_dim
        height, width = preprocessing.image_size
        if height % P or width % P:
            right = " or ".join(f"{n}×{m}" for n, m in _sizes_near(height, width, P))
            raise UsageError(
                f"an image of {height}×{width} is not divided by the patch of {P}×{P}; {right} would be right"
            )
        if (height // P) * (width // P) > MOST_PATCHES:
            count = (height // P) * (width // P)
            raise UsageError(
                f"an image of {height}×{width} has {count:,} patches of {P}×{P}, more than {MOST_PATCHES:,}; "
                "a smaller image or a larger patch would be right"
            )
        has_token = config.pool == "token"
        self.prefix = has_token + config.registers
        num_tokens = self.prefix + self.grid[0] * self.grid[1]

        self.patch_embed = Linear(self.word_size, D)
        self.class_token = nn.Parameter(torch.empty(D)) if has_token else None
        self.registers = nn.Parameter(torch.empty(config.registers, D)) if config.registers else None
        self.position = PositionEmbedding(config.position, self.grid, D, int(has_token))
        self.dropout = Dropout()
        blocks = nn.ModuleList(self._block(num_tokens) for _ in range(config.depth))
        self.blocks = cast("Sequence[Block]", blocks)  # ModuleList does not say what it holds
        self.norm = nn.LayerNorm(D, eps=config.norm_eps)
        self.attention_pool = (
            AttentionPool(D, config.num_heads, config.mlp_dim, config.gelu, config.norm_eps)
            if config.pool == "map"
            else None
        )
        self.pre_logits = Linear(D, D) if config.hidden_head else None
        self.head = nn.Linear(D, num_classes) if num_classes else nn.Identity()

    def _block(self, num_tokens: int) -> Block:
        config = self.config
        head_dim = config.embed_dim // config.num_heads
        relative = RelativeKeys(num_tokens, head_dim) if config.position == "relative" else None
        rotation = Rotation(self.grid, head_dim, self.prefix) if config.position == "rope" else None
        return Block(
            config.embed_dim,
            config.num_heads,
            config.mlp_dim,
            gelu=config.gelu,
            norm_eps=config.norm_eps,
            layer_scale=config.layer_scale,
            relative=relative,
            rotation=rotation,
        )

    @classmethod
    def parse(cls, name: str) -> dict[str, Any] | None:
        """`ViT-B/16` → the fields of the configuration; None for a name of another kind."""
        match = re.fullmatch(r"ViT-(\w+)/(\d+)", name)
        return None if match is None or match[1] not in SIZES else {"patch_size": int(match[2]), **encoder(match[1])}

    @classmethod
    def names(cls) -> list[str]:
        """Every size with its usual patch sides, smallest first."""
        return [f"ViT-{size}/{patch}" for size, row in SIZES.items() for patch in row.patches]

    @classmethod
    def likely_names(cls, fields: dict[str, Any]) -> list[str]:
        """Every size with the configuration's own patch side."""
        return [f"ViT-{size}/{fields['patch_size']}" for size in SIZES]

    def reset(self) -> Self:
        """Initial values as in the original code: LeCun-normal projection, Xavier blocks, zero class token and head."""
        for linear in (self.patch_embed, self.pre_logits):
            if linear is not None:
                _lecun_normal(linear)
        if self.class_token is not None:
            nn.init.zeros_(self.class_token)
        if self.registers is not None:
            nn.init.normal_(self.registers, std=0.02)
        self.position.reset()
        for number, block in enumerate(self.blocks):
            block.reset()
            block.attention.look_beside(number)
        self.norm.reset_parameters()
        if self.attention_pool is not None:
            self.attention_pool.reset()
        self.reset_head()
        return self

    @torch.no_grad()
    def zero_init_residual(self) -> None:
        """Let every block be the identity: zero what its attention and its MLP end with.

        But for the last attention of a model that reads its class token: the token would be the same for all pictures, and,
        under a head of zeros, without a gradient.
        """
        for number, block in enumerate(self.blocks, 1):
            if self.config.pool != "token" or number < len(self.blocks):
                nn.init.zeros_(block.attention.proj.weight)
            nn.init.zeros_(block.mlp.fc2.weight)
            nn.init.zeros_(block.mlp.fc2.bias)

    @property
    def word_size(self) -> int:
        """Numbers in one patch: C·P·P."""
        return self.in_channels * self.config.patch_size**2

    def patchify(self, images: Tensor) -> Tensor:
        """B×C×H×W → B×N×(C·P·P): every patch as one row, in raster order."""
        B, C = images.shape[:2]
        (h, w), P = (
            self.grid,
            images.shape[2] // self.grid[0],
        )  # a hybrid's "images" are feature maps, with patches of their own
        return images.reshape(B, C, h, P, w, P).permute(0, 2, 4, 1, 3, 5).reshape(B, h * w, C * P * P)

    def project(self, images: Tensor) -> Tensor:
        """B×C×H×W → B×N×D: the patches, projected."""
        return self.patch_embed(self.patchify(images))

    def embed(self, images: Tensor) -> Tensor:
        """B×C×H×W → tokens B×M×D with their positions: class token, registers, patches (equation 1)."""
        self.check_images(images)
        return self.place(self.project(images))

    def encode(self, tokens: Tensor, keep: Tensor | None = None) -> Tensor:
        """B×M×D → B×M×D through all blocks and the final norm, unless that comes after the pooling (equations 2 to 4).

        `keep` (B×n, int64) are the patches to go on with; the tokens before them always do. They keep the order of `keep`.
        """
        return self._encode(tokens, keep, None)

    def place(self, stem: Tensor) -> Tensor:
        """The words of the patches B×N×D → tokens B×M×D with their positions."""
        return self.dropout(self.position(stem, self.class_token, self.registers))

    def _encode(self, tokens: Tensor, keep: Tensor | None, rows: int | None) -> Tensor:
        """As `encode`; of the last block only the first `rows`."""
        tokens, places = self._keep(tokens, keep)
        for block in self.blocks[:-1]:
            tokens = self.run(block, tokens, None, places)
        return self.final_norm(self.run(self.blocks[-1], tokens, rows, places))

    def final_norm(self, tokens: Tensor) -> Tensor:
        """What the last block gives → B×M×D encoded; where the norm comes after the pooling, nothing changes."""
        return tokens if self.config.pool == "gap-norm" else self.norm(tokens)

    def pool(self, tokens: Tensor) -> Tensor:
        """Encoded tokens B×M×D → B×D by class token, average or attention, then the hidden layer if there is one."""
        if self.attention_pool is not None:
            pooled = self.attention_pool(tokens[:, self.prefix :])
        elif self.config.pool == "token":
            pooled = tokens[:, 0]
        else:
            pooled = tokens[:, self.prefix :].mean(dim=1)
            pooled = self.norm(pooled) if self.config.pool == "gap-norm" else pooled
        return self.hidden(pooled)

    def hidden(self, pooled: Tensor) -> Tensor:
        """Pooled tokens B×D → what the last linear layer sees, B×D: the same where there is no hidden layer."""
        return pooled if self.pre_logits is None else torch.tanh(self.pre_logits(pooled))

    def features(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """B×C×H×W → B×D; `keep` as in `encode`."""
        # Nothing reads the patches after the last block when the class token speaks for them: only its row is computed there.
        rows = 1 if self.config.pool == "token" else None
        return self.pool(self._encode(self.embed(images), keep, rows))

    def feature_map(self, images: Tensor) -> Tensor:
        """B×C×H×W → encoded patches as B×D×h×w."""
        patches = self.encode(self.embed(images))[:, self.prefix :]
        return patches.transpose(1, 2).unflatten(2, self.grid)

    def walk(self, images: Tensor, *, attention: bool = False) -> Iterator[tuple[str, Tensor]]:
        """Yield `stem` B×N×D, then `with_position`, each `block_00` and `encoded`, all B×M×D, and `pre_logits` B×D.

        With `attention`, `block_00/attention` B×heads×M×M comes before its block, and for attention pooling
        `pool/attention` B×heads×1×N before `pre_logits`.
        """
        self.check_images(images)
        yield from self._walk_encoder(self.project(images), attention)

    def _walk_encoder(self, stem: Tensor, attention: bool) -> Iterator[tuple[str, Tensor]]:
        yield "stem", stem
        tokens = self.place(stem)
        yield "with_position", tokens
        for i, block in enumerate(self.blocks):
            if attention:
                weights, values = block.look(tokens)
                yield f"block_{i:02d}/attention", weights  # whoever stops here has not paid for the rest of the block
                tokens = block.go_on(tokens, weights, values)
                del weights, values  # before those of the next block are made
            else:
                tokens = block(tokens)
            yield f"block_{i:02d}", tokens
        tokens = self.final_norm(tokens)
        yield "encoded", tokens
        if attention and self.attention_pool is not None:
            yield "pool/attention", self.attention_pool.explicit(tokens[:, self.prefix :])[1]
        yield "pre_logits", self.pool(tokens)

    def stages(self) -> list[list[str]]:
        """The embedding, each block, and what comes after them."""
        groups: list[list[str]] = [[] for _ in range(len(self.blocks) + 2)]
        for name, _ in self.named_parameters():
            first, _, rest = name.partition(".")
            if first == "blocks":
                groups[1 + int(rest.partition(".")[0])].append(name)
            else:
                groups[-1 if first in ("norm", "attention_pool", "pre_logits", "head") else 0].append(name)
        return groups

    def no_weight_decay(self) -> set[str]:
        """Biases, norms, class token, registers, probe and positions."""
        spared = ("position.", "relative.", "registers", "attention_pool.probe")
        return super().no_weight_decay() | {
            name for name, _ in self.named_parameters() if any(part in name for part in spared)
        }

    def matrices(self) -> dict[str, int]:
        """As ever; queries, keys and values are three matrices in one weight, keys and values of attention pooling two."""
        stacked = {"qkv.weight": 3, "attention_pool.kv.weight": 2}
        return {
            name: next((number for ending, number in stacked.items() if name.endswith(ending)), number)
            for name, number in super().matrices().items()
        }

    def with_image_size(self, image_size: tuple[int, int], mode: Resampling = "official") -> Self:
        """The same weights at another H×W: position embeddings are resampled in 2-D (section 3.2)."""
        with torch.device("meta"):
            other = type(self)(self.name, self.config, self.preprocessing.with_image_size(image_size), self.num_classes)
        other.labels, other.multi_label, other.provenance = self.labels, self.multi_label, self.provenance
        for mine, theirs in zip(self.modules(), other.modules(), strict=True):
            if isinstance(mine, Dropout | StochasticDepth) and isinstance(theirs, Dropout | StochasticDepth):
                theirs.p, theirs.stream = mine.p, mine.stream
        where = {module for module in other.modules() if isinstance(module, PositionEmbedding | RelativeKeys)}
        tables = {name for name, module in other.named_modules() if module in where}
        shared = {k: v.clone() for k, v in self.state_dict().items() if k.rpartition(".")[0] not in tables}
        other.load_state_dict(shared, strict=False, assign=True)
        for name in tables:
            table: Any = other.get_submodule(name)
            table.to_empty(device=self.patch_embed.weight.device).to(self.patch_embed.weight.dtype)
            table.resample_from(self.get_submodule(name), mode)
        for mine, theirs in zip(self.parameters(), other.parameters(), strict=True):
            theirs.requires_grad_(mine.requires_grad)
        return other.train(self.training)

    @property
    def grid(self) -> tuple[int, int]:
        height, width = self.preprocessing.image_size
        return (height // self.config.patch_size, width // self.config.patch_size)

    @property
    def num_features(self) -> int:
        return self.config.embed_dim

    def _keep(self, tokens: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """All tokens before the patches and the kept patches, with their places in the whole sequence."""
        if keep is None:
            return tokens, None
        before = torch.arange(self.prefix, device=keep.device).expand(len(keep), -1)
        places = torch.cat([before, keep + self.prefix], dim=1)
        return tokens.gather(1, places[:, :, None].expand(-1, -1, tokens.shape[2])), places


def encoder(size: str) -> dict[str, Any]:
    """The fields of a configuration that a size decides."""
    return {name: value for name, value in SIZES[size]._asdict().items() if name != "patches"}


def _lecun_normal(linear: nn.Linear) -> None:
    """Normal cut off at two standard deviations, of variance 1 / fan-in after the cut (the factor undoes its shrinking)."""
    std = linear.in_features**-0.5 / 0.87962566
    nn.init.trunc_normal_(linear.weight, std=std, a=-2 * std, b=2 * std)
    nn.init.zeros_(linear.bias)


def _sizes_near(height: int, width: int, patch: int) -> list[tuple[int, int]]:
    """The sizes just below and above that the patch divides."""
    below = (height // patch * patch, width // patch * patch)
    above = (-(-height // patch) * patch, -(-width // patch) * patch)
    return [size for size in (below, above) if min(size) > 0]
