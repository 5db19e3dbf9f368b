"""`patchword models`: what there is to train."""

from typing import Annotated

import tyro

from patchword.verbs.options import argument


def models(pattern: Annotated[str, tyro.conf.Positional, argument("[PATTERN]")] = "*") -> str:
    """List the models with their parameters for 1,000 classes, at 224 px (32 px where the patch is smaller than 8).

    Args:
        pattern: A shell pattern such as 'ViT-S/*'; with one, the FLOPs of one picture are counted, too.
    """
    import torch

    from patchword.core.errors import UsageError, nearest
    from patchword.models.cost import cost
    from patchword.models.names import create_model, list_models, parse_name

    names = list_models(pattern)
    if not names:
        raise UsageError(f"no model matches {pattern!r}; {nearest(pattern, list_models())}")
    widest = max(map(len, names)) + 2
    lines = [f"{'model':<{widest}}{'image':>6}{'width':>7}{'depth':>7}{'heads':>7}{'params':>11}"]
    if pattern != "*":
        lines[0] += f"{'GFLOP':>9}"
    for name in names:
        family, config = parse_name(name, {})
        encoder = [
            getattr(config, field) if family.has_attention else "–" for field in ("embed_dim", "depth", "num_heads")
        ]
        side = 32 if 1 < config.stride < 8 else 224
        with torch.device("meta"):
            model = create_model(name, 1000, side)
        params = sum(parameter.numel() for parameter in model.parameters())
        line = f"{name:<{widest}}{side:>6}{encoder[0]:>7}{encoder[1]:>7}{encoder[2]:>7}{params / 1e6:>9.2f} M"
        # Counting takes a tenth of a second for each: too long for all of them.
        lines.append(line if pattern == "*" else f"{line}{cost(model).forward_flops / 1e9:>9.2f}")
    return "\n".join(lines)
