"""What of a model learns: all of it, the head, attention (arXiv 2203.09795), or low-rank updates (LoRA, arXiv 2106.09685).

Letters: I inputs and O outputs of a layer, R rank, S matrices that lie one below the other in its weight.
"""

import re

import torch
from torch import Tensor, nn

from patchword.core.errors import UsageError, nearest
from patchword.models.contract import Model
from patchword.models.layers import Attention
from patchword.models.linear import Linear, linear
from patchword.models.vit import ViT

_KINDS = ("all", "head", "attention", "lora:8")
_HEAD = ("head.", "pre_logits.")
_ATTENTION = re.compile(r"blocks\.\d+\.attention\.(qkv|proj)\.")


def rank_of(what: str) -> int:
    """`lora:8` → 8, and 0 for the other ways to tune; anything else raises `UsageError`."""
    match = re.fullmatch(r"lora:(\d{1,9})", what, re.ASCII)
    if match is not None and int(match[1]) > 0:
        return int(match[1])
    if what.partition(":")[0] == "lora":
        raise UsageError(f"tune={what!r} needs a rank, a whole number of at least 1; lora:8 would be right")
    if what not in _KINDS:
        raise UsageError(f"tune={what!r} is not known; {nearest(what, _KINDS)}")
    return 0


def tune(model: Model, what: str, seed: int) -> None:
    """Let only a part of `model` learn, in place: `all`, `head`, `attention` or `lora:RANK`; the head always does.

    Everything else stands still: no gradient is computed for it. With `head` the body is as in evaluation, too. `seed`
    decides the initial low-rank updates, whose product is zero: the outputs are as before. `merge` undoes it all but
    what was learned. Raises `UsageError` where the model has no attention, or the rank is more than its width.
    """
    rank = rank_of(what)
    if what == "all":
        return
    if what != "head" and not isinstance(model, ViT):
        raise UsageError(
            f"tune={what} needs a model with attention, which {model.name} does not have; head or all is right"
        )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(_HEAD) or (what == "attention" and bool(_ATTENTION.match(name))))
    model.constant_body = what == "head"
    model.train(model.training)
    if rank:
        _add_updates(model, rank, seed)


def merge(model: Model) -> None:
    """Make a tuned model one like any other, in place: low-rank updates go into the weights, and everything may learn."""
    for attention in _attentions(model):
        for name, layer in list(attention.named_children()):
            if isinstance(layer, LowRank):
                setattr(attention, name, layer.merged())
    model.requires_grad_(True)
    model.constant_body = False
    model.train(model.training)


class LowRank(Linear):
    """A linear layer that stands still, and an update of rank R to each of the S matrices in its weight, which learns.

    The update is up · down, unscaled (LoRA's α is R). Queries, keys and values have one each, as in the paper, though they
    lie in one weight: what a rank can do is then the same for each, and the same as for the output projection.
    """

    def __init__(self, layer: nn.Linear, rank: int, matrices: int, generator: torch.Generator) -> None:
        """Around `layer`, whose weight and bias it shares.

        `down` S×R×I begins uniform in ±1/√I, as in LoRA's code, and `up` S×(O/S)×R with zeros.
        """
        with torch.device("meta"):
            super().__init__(layer.in_features, layer.out_features)
        self.weight, self.bias = layer.weight, layer.bias
        bound = layer.in_features**-0.5
        down = torch.empty(matrices, rank, layer.in_features).uniform_(-bound, bound, generator=generator)
        self.down = nn.Parameter(down.to(layer.weight))
        self.up = nn.Parameter(layer.weight.new_zeros(matrices, layer.out_features // matrices, rank))

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (the name in torch)
        """…×I → …×O."""
        narrow = linear(input, self.down.flatten(0, 1), None)  # …×(S·R)
        return super().forward(input) + linear(narrow, torch.block_diag(*self.up), None)

    def merged(self) -> Linear:
        """A plain layer that does the same, in the memory of the weight."""
        with torch.device("meta"):
            layer = Linear(self.in_features, self.out_features)
        layer.weight, layer.bias = self.weight, self.bias
        with torch.no_grad():
            layer.weight += (self.up @ self.down).flatten(0, 1)
        return layer.train(self.training)


def _add_updates(model: Model, rank: int, seed: int) -> None:
    if rank > (most := model.num_features):
        raise UsageError(
            f"tune=lora:{rank} asks for more than the width of {model.name}, {most}; lora:8 would be right"
        )
    generator = torch.Generator().manual_seed(seed)
    for attention in _attentions(model):
        attention.qkv = LowRank(attention.qkv, rank, 3, generator).train(model.training)
        attention.proj = LowRank(attention.proj, rank, 1, generator).train(model.training)


def _attentions(model: Model) -> list[Attention]:
    return [module for module in model.modules() if isinstance(module, Attention)]
