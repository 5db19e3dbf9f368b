"""`patchword weights check` and `patchword weights convert`: what somebody's weights are, and the same in another format."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from patchword.core.errors import FaultError
from patchword.verbs.options import argument, parse_image_size

if TYPE_CHECKING:
    from patchword.weights.mapping import Hints

WeightsSource = Annotated[str | Path, tyro.conf.Positional, argument("SOURCE", constructor=str)]
WeightsTarget = Annotated[str | Path, tyro.conf.Positional, argument("TARGET", constructor=str)]
Facts = Annotated[tuple[str, ...], argument("FIELD=VALUE")]
Format = Annotated[Literal["google", "timm", "huggingface", "patchword"], argument("google|timm|huggingface|patchword")]

_WORDS = {"patchword": "patchword's", "google": "Google's", "timm": "timm's", "huggingface": "transformers'"}
_SHOWN_LABELS = 5


def check(source: WeightsSource, *, set: Facts = ()) -> dict[str, Any]:  # noqa: A002
    """What a file or folder of weights is: its format, architecture, values, and what would be assumed and dropped.

    Where timm or transformers wrote it and is installed, its answer to random images is compared with ours.

    Args:
        source: A run folder, a model folder, a file or folder of another library, or an address (docs/weights.md).
        set: What the tensors cannot say: num_heads, gelu, norm_eps, position, image_size; may be given several times.
    """
    from patchword.weights import facts, hub, io, original
    from patchword.weights.card import fields, parameters
    from patchword.weights.source import DIALECTS, open_source

    opened = open_source(hub.locate(source))
    found = io.read(opened, _hints(set))
    model = found.model
    compared = original.compare(opened, model)
    report: dict[str, Any] = {
        "source": str(source),
        "dialect": opened.dialect,
        "described": opened.dialect == "patchword" or bool(opened.description),
        "files": facts.files_of(opened),
        "model": model.name,
        "architecture": {"family": model.family, **fields(model)},
        "image_size": list(model.image_size),
        "channels": model.in_channels,
        "outputs": model.num_classes or model.num_features,
        "has_head": model.num_classes > 0,
        "parameters": parameters(model),
        "labels": None if model.labels is None else list(model.labels),
        "preprocessing": model.preprocessing.to_dict(),
        "assumed": found.assumed,
        "dropped": found.dropped,
        "values": facts.values_of(opened.tensors or model.state_dict()),
        "checked": facts.checked(opened),
        "writes": {name: io.refusal(model, name) for name in DIALECTS},
        "compared": str(compared),
    }
    if not report["values"]["finite"]:
        report["error"] = "not all values are finite"
    elif isinstance(compared, original.Comparison) and not compared.agrees:
        report["error"] = "the original library answers differently"
    return report


def convert(
    source: WeightsSource,
    target: WeightsTarget,
    *,
    to: Format,
    set: Facts = (),  # noqa: A002
    trust_pickle: bool = False,
) -> dict[str, Any]:
    """Write weights in another format, read back what was written, and compare the outputs of both.

    Args:
        source: A run folder, a model folder, a file or folder of another library, or an address (docs/weights.md).
        target: A new .npz file for google, a new folder for the others; one that holds a model of that format is replaced.
        to: Whose format to write.
        set: What the tensors cannot say: num_heads, gelu, norm_eps, position, image_size; may be given several times.
        trust_pickle: Read a pickle, with torch's reader that makes nothing but tensors.
    """
    from patchword.core.progress import say
    from patchword.weights import facts, hub, io, original
    from patchword.weights.adapt import adapt
    from patchword.weights.card import parameters
    from patchword.weights.source import open_source

    hints = _hints(set)
    io.check_target(Path(target), to)
    found = io.read(open_source(hub.locate(source), trust_pickle=trust_pickle), hints)
    model, adapted = adapt(found.model, image_size=hints.image_size)
    for sentence in [*found.assumed, *_dropped(found.dropped), *adapted]:
        say(f"{source}: {sentence}")
    io.save_model(model, target, to)
    again, changed = facts.read_back(model, Path(target))
    for sentence in changed:
        say(f"{target}: {sentence}")
    compared = original.compare_models("what was read back", model, again)
    if not compared.agrees:
        raise FaultError(f"{target} was written, but does not answer as {source} does: {compared}; do not use it")
    return {
        "source": str(source),
        "target": str(target),
        "format": to,
        "model": model.name,
        "parameters": parameters(model),
        "assumed": found.assumed,
        "dropped": found.dropped,
        "adapted": adapted,
        "changed": changed,
        "largest_difference": compared.largest_difference,
        "compared": str(compared),
    }


def show(report: dict[str, Any]) -> str:
    """The report as a person reads it at a terminal."""
    if "target" in report:
        return (
            f"{report['target']}: {report['model']} in {_WORDS[report['format']]} format, {report['parameters']:,} parameters; "
            f"{report['compared']}"
        )
    from patchword.core.progress import size

    kind = _WORDS[report["dialect"]] + " format"
    if report["dialect"] in ("timm", "huggingface"):
        kind += ", with its config.json" if report["described"] else ", bare tensors without a config.json"
    height, width = report["image_size"]
    values = report["values"]
    types = ", ".join(f"{count:,} of {name}" for name, count in values["types"].items())
    rows = [
        ("source", report["source"]),
        ("format", kind),
        *(("file", f"{each['path']}, {size(each['bytes'])}, SHA-256 {each['sha256']}") for each in report["files"]),
        ("model", report["model"]),
        ("architecture", _named(report["architecture"])),
        ("input", f"{report['channels']} channels of {height}×{width} pixels"),
        ("output", f"{report['outputs']:,} {'logits' if report['has_head'] else 'features, for there is no head'}"),
        ("parameters", f"{report['parameters']:,}"),
        ("labels", _shown_labels(report["labels"])),
        ("preprocessing", _named(report["preprocessing"])),
        *(("assumed", sentence) for sentence in report["assumed"]),
        *(("dropped", sentence) for sentence in _dropped(report["dropped"])),
        (
            "values",
            f"{types}; {values['least']:.4g} … {values['largest']:.4g}{'' if values['finite'] else ', NOT ALL FINITE'}",
        ),
        ("checked", report["checked"]),
        ("can become", ", ".join(name for name, reason in report["writes"].items() if reason is None)),
        *(("cannot become", f"{name}: {reason}") for name, reason in report["writes"].items() if reason is not None),
        ("compared", report["compared"]),
    ]
    return "\n".join(f"{head:<15}{text}" for head, text in rows)


def _hints(assignments: tuple[str, ...]) -> "Hints":
    from patchword.core import config
    from patchword.weights.mapping import Hints

    values = config.parse_assignments(list(assignments))
    if "image_size" in values:
        values["image_size"] = parse_image_size(values["image_size"])
    return config.build(Hints, values)


def _dropped(dropped: dict[str, str]) -> list[str]:
    """A sentence for each reason."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in dropped.items():
        by_reason.setdefault(reason, []).append(name)
    return [
        f"{names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''} left out: {reason}"
        for reason, names in by_reason.items()
    ]


def _shown_labels(labels: list[str] | None) -> str:
    if labels is None:
        return "none: the outputs have no names"
    return f"{len(labels):,}: {', '.join(labels[:_SHOWN_LABELS])}{', …' if len(labels) > _SHOWN_LABELS else ''}"


def _named(values: dict[str, Any]) -> str:
    from patchword.weights.facts import plain

    return ", ".join(f"{name} {plain(value)}" for name, value in values.items())
