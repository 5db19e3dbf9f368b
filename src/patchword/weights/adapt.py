"""Make loaded weights fit another task or another image size, and say each thing that was done."""

from patchword.models.contract import Model


def adapt(
    model: Model,
    *,
    labels: tuple[str, ...] | None = None,
    num_classes: int | None = None,
    image_size: tuple[int, int] | None = None,
) -> tuple[Model, list[str]]:
    """The model with a new head and at a new size where they differ, and a sentence for each change.

    `labels` decides the number of classes; a head that already names the same labels in the same order is kept.
    """
    changes = []
    if image_size is not None and image_size != model.image_size:
        old, old_size = model.grid, model.image_size
        model = model.with_image_size(image_size)
        sizes = f"image size {_by(old_size)} → {_by(image_size)}"
        grids = (
            ""
            if old is None or model.grid is None
            else f", position embedding resampled in 2-D from {_by(old)} to {_by(model.grid)} patches"
        )
        changes.append(sizes + grids)
    wanted = len(labels) if labels is not None else num_classes
    if wanted is not None and (wanted != model.num_classes or (labels is not None and labels != model.labels)):
        changes.append(f"new zero-initialised head for {wanted} classes (it had {model.num_classes})")
        model.replace_head(wanted, labels)
    return model, changes


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}×{size[1]}"
