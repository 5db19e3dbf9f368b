"""Presets, their variants and TOML files → recipes: strict, whatever they hold."""

import os
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

from patchword.core import config
from patchword.core.errors import DataError, UsageError, blamed, nearest
from patchword.core.files import check_regular
from patchword.data.augment import AUGREG_LEVELS
from patchword.models.names import config_type, parse_name
from patchword.training.recipe.fields import Recipe
from patchword.training.run_folder import RECIPE

_PRESETS = resources.files("patchword.training") / "presets"
_ONLY_VARIANTS = "only_variants"
"""What a preset says that is no recipe without a variant."""


def presets() -> list[str]:
    """Names of the presets, with their variants: `paper-finetune`, `paper-finetune/pets`, …"""
    names = []
    for file in sorted(_PRESETS.iterdir(), key=lambda file: file.name):
        stem, values = file.name.removesuffix(".toml"), tomllib.loads(file.read_text("utf-8"))
        names += [] if values.get(_ONLY_VARIANTS) else [stem]
        names += [f"{stem}/{variant}" for variant in values.get("variants", {})]
    return names


def load(name_or_file: str, changes: dict[str, Any] | None = None) -> Recipe:
    """A preset by name (`paper-finetune/pets` takes a variant) or a TOML file, with `changes` (nested tables) on top.

    Raises `UsageError` for a name that is none and a field that does not fit, `DataError` for a file that cannot be read.
    """
    from_file = name_or_file.endswith(".toml")
    values = _file(name_or_file) if from_file else _preset(name_or_file)
    changes = _augment_level(changes or {})
    if isinstance(changes.get("model"), dict):
        values = _for_model(values, changes["model"].get("name"), preset=not from_file)
    if "budget" in changes:
        values.pop("budget", None)  # a budget is replaced as a whole: 5 minutes do not mix with the preset's epochs
    try:
        return config.build(Recipe, config.merge(values, changes))
    except UsageError as error:
        if from_file:
            # Is it the file, or what is asked for beside it?
            try:
                config.build(Recipe, values)
            except UsageError as alone:
                if str(alone) == str(error):
                    raise UsageError(f"recipe {name_or_file}: {error}") from error
        raise


def loads(text: str, where: str) -> Recipe:
    """The recipe in a text that `to_toml` has written, which lies at `where`."""
    try:
        values = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"recipe {where} cannot be read: {error}") from error
    with blamed(f"recipe {where}"):
        return config.build(Recipe, values)


def _file(name: str) -> dict[str, Any]:
    """The fields in a TOML file."""
    path = Path(name)
    check_regular(path)
    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise UsageError(f"recipe {name} does not exist; presets are {', '.join(presets())}") from error
    except (ValueError, RecursionError, OSError) as error:
        raise DataError(f"recipe {name} cannot be read: {error}") from error
    with blamed(f"recipe {name}"):
        return _augment_level(values)


def _preset(name: str) -> dict[str, Any]:
    """The fields of a preset, with those of the variant that its name may have behind a slash."""
    stem, slash, variant = name.partition("/")
    file = _PRESETS / f"{stem}.toml"
    if not file.is_file():
        raise _no_recipe(name)
    values = tomllib.loads(file.read_text("utf-8"))
    variants = values.pop("variants", {})
    if values.pop(_ONLY_VARIANTS, False) and not slash:
        raise UsageError(
            f"recipe {stem!r} is of several sizes; {', '.join(f'{stem}/{each}' for each in variants)} are right"
        )
    if slash and variant not in variants:
        right = nearest(variant, variants) if variants else f"{stem} alone is right"
        raise UsageError(f"recipe {stem!r} has no variant {variant!r}; {right}")
    return _augment_level({**config.merge(values, variants.get(variant, {})), "name": name})


def _no_recipe(name: str) -> UsageError:
    path, right = Path(name), "a preset, or a file that ends in .toml,"
    if name and os.path.isdir(path):
        return UsageError(f"{name} is a folder; {path / RECIPE if (path / RECIPE).is_file() else right} would be right")
    ends_like_a_file = path.suffix and not path.suffix[1:].isdigit()  # a variant may end in a number: hybrid-0.02
    if name and (ends_like_a_file or os.path.exists(path)):
        return UsageError(f"{name} is no recipe; {right} would be right")
    return UsageError(f"unknown recipe {name!r}; {nearest(name, presets())} (a file ends in .toml)")


def _for_model(values: dict[str, Any], name: Any, *, preset: bool) -> dict[str, Any]:
    """`values` without what they say of a model that is not the one of this name.

    Of a file that names another model, that is what the new name decides (its sizes), and what its family does not know. A
    preset names none; its wishes for a ViT, such as `model.pool`, mean nothing to a model that has no such field.
    """
    table = values.get("model")
    if not isinstance(name, str) or not isinstance(table, dict) or not (preset or table.get("name", name) != name):
        return values
    family, _ = parse_name(name, {})
    kept = config.field_types(config_type(family)).keys() - (family.parse(name) or {})
    return {**values, "model": {key: value for key, value in table.items() if key in kept}}


def _augment_level(values: dict[str, Any]) -> dict[str, Any]:
    """`augment.level=light2` stands for the fields of AugReg's level of that name."""
    augment = values.get("augment", {})
    if not isinstance(augment, dict) or "level" not in augment:
        return values
    level = augment["level"]
    if not isinstance(level, str) or level not in AUGREG_LEVELS:
        raise UsageError(f"unknown augment.level {level!r}; {nearest(str(level), AUGREG_LEVELS)}")
    rest = {name: value for name, value in augment.items() if name != "level"}
    return {**values, "augment": {**AUGREG_LEVELS[level], **rest}}
