"""`patchword models`: what there is to train."""

from typing import Annotated

import tyro

from patchword.verbs.options import argument


def models(pattern: Annotated[str, tyro.conf.Positional, argument("[PATTERN]")] = "*") -> str:
    """List the models with their parameters and the FLOPs of one picture, at 224 px or the patch's usual size.

    Args:
        pattern: A shell pattern such as 'ViT-S/*'.
    """
    import torch

    from patchword.core.errors import UsageError, nearest
    from patchword.models.cost import cost
    from patchword.models.names import create_model, list_models, parse_name

    names = list_models(pattern)
    if not names:
        raise UsageError(f"no model matches {pattern!r}; {nearest(pattern, list_models())}")
    widest = max(map(len, names)) + 2
    lines = [f"{'model':<{widest}}{'image':>6}{'width':>7}{'depth':>7}{'heads':>7}{'params':>10}{'GFLOP':>9}"]
    for name in names:
        family, config = parse_name(name, {})
        encoder = [
            getattr(config, field) if family.has_attention else "–" for field in ("embed_dim", "depth", "num_heads")
        ]
        side = 32 if 1 < config.stride < 8 else 224
        with torch.device("meta"):
            counted = cost(create_model(name, 1000, side))
        lines.append(
            f"{name:<{widest}}{side:>6}{encoder[0]:>7}{encoder[1]:>7}{encoder[2]:>7}"
            f"{counted.params / 1e6:>8.2f} M{counted.forward_flops / 1e9:>9.2f}"
        )
    return "\n".join(lines)
