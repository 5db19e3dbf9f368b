"""`patchword data check` and `patchword data pack`: look at a data set before training on it; write it as shards."""

from typing import TYPE_CHECKING, Any

from patchword.verbs.options import Data, Shards, Whole

if TYPE_CHECKING:
    from patchword.data.check import Report


def check(data: Data, *, labels: bool = True, decode: bool = True) -> Any:
    """Counts, sizes, bad files, duplicates, leakage, imbalance, and what training would do with the set.

    Args:
        data: As for train.
        labels: Labels count; with --no-labels any folder of pictures will do, as for objective=masked-patch.
        decode: Decode every picture; --no-decode looks at names and headers only.
    """
    from patchword.core.progress import Progress
    from patchword.data import check as checks

    with Progress("looking at pictures", 0) as progress:

        def progressed(done: int, total: int) -> None:
            progress.total = total
            progress.update(done)

        return checks.check(data, labelled=labels, decode_all=decode, on_progress=progressed)


def pack(data: Data, shards: Shards, *, side: Whole = None, quality: int = 90, shard_size: int = 256) -> dict[str, Any]:
    """Write a data set as tar shards in the WebDataset layout, which train, evaluate and data check open like any other.

    The same command goes on where it was ended. Files of pictures are copied as they are unless they are resized; one that
    cannot be decoded is left out and listed.

    Args:
        data: As for train; its splits become those of the shards.
        shards: The folder to write; new, empty, or begun by the same command.
        side: Resize pictures whose shorter side is longer than so many pixels, and store them as JPEG.
        quality: Of these JPEGs, 1 to 100.
        shard_size: The size of a shard in MB (10^6 bytes).
    """
    from patchword.core.progress import Progress
    from patchword.data.shards import pack as packing

    with Progress("packing", 0) as progress:

        def progressed(done: int, total: int) -> None:
            progress.total = total
            progress.update(done)

        return packing.pack(
            data,
            shards,
            side=side,
            quality=quality,
            shard_bytes=shard_size * 1_000_000,
            on_progress=progressed,
        )


def show(result: "Report | dict[str, Any]") -> str:
    """The report, or what was packed, as lines."""
    if not isinstance(result, dict):
        return result.to_text()
    from patchword.core.progress import size

    pictures = ", ".join(f"{name} {count:,}" for name, count in result["pictures"].items())
    lines = [f"{result['out']}: {result['shards']:,} shards, {size(result['bytes'])}; pictures: {pictures}"]
    lines += [f"left out: {each['name']} ({each['split']}) {each['reason']}" for each in result["left_out"][:_NAMED]]
    if len(result["left_out"]) > _NAMED:
        lines.append(f"left out: {len(result['left_out']) - _NAMED:,} more, all listed in dataset.json")
    return "\n".join(lines)


_NAMED = 10
