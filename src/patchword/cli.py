"""The command line: find the verb, run it, turn errors into one sentence and an exit code."""

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints


class Verb(NamedTuple):
    module: str
    function: str
    shown: str
    """The call, for the list of verbs."""
    summary: str


# Modules are imported when their verb is called: the list of verbs must not wait for torch.
VERBS: dict[str, Verb] = {
    "train": Verb("train", "train", "train DATA", "train a model and write its report"),
    "evaluate": Verb("evaluate", "evaluate", "evaluate MODEL DATA", "measure a saved model on a data set"),
    "predict": Verb("predict", "predict", "predict MODEL IMAGE…", "name what is on pictures"),
    "explain": Verb("explain", "explain", "explain MODEL IMAGE…", "show where a model looks, as a page"),
    "compare": Verb("compare", "compare", "compare DATA --models A,B", "set models side by side on your own pictures"),
    "paper": Verb("paper", "paper", "paper NAME [MODEL]", "run an experiment of the paper, or judge its claims"),
    "data check": Verb("data", "check", "data check DATA", "look at a data set before training on it"),
    "data pack": Verb(
        "data", "pack", "data pack DATA SHARDS", "write a data set as tar shards, for sets that are large"
    ),
    "weights check": Verb("weights", "check", "weights check SOURCE", "say what somebody's weights are"),
    "weights convert": Verb(
        "weights", "convert", "weights convert SOURCE TARGET --to FORMAT", "write weights as another library has them"
    ),
    "models": Verb("models", "models", "models [PATTERN]", "list the models"),
}


def main(arguments: list[str] | None = None) -> None:
    """Run `patchword` with the process's arguments and exit with its code."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: list[str]) -> int:
    """Run one command; the exit code is returned. 0 done, 2 wrong use, 3 bad data, 4 a fault, 143 stopped and resumable."""
    from patchword.core.errors import PatchwordError, UsageError, nearest

    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stdout.write(overview())
        return 0
    if arguments[0] == "--version":
        from importlib.metadata import version

        sys.stdout.write(f"patchword {version('patchword')}\n")
        return 0
    try:
        for length in (2, 1):
            verb = VERBS.get(" ".join(arguments[:length]))
            if verb is not None:
                return _call(verb, arguments[:length], arguments[length:])
        several = any(name.startswith(f"{arguments[0]} ") for name in VERBS)
        if several and arguments[1:2] in (["-h"], ["--help"]):
            sys.stdout.write(overview(arguments[0]))
            return 0
        wanted = " ".join(arguments[:2]) if several else arguments[0]
        raise UsageError(f"unknown verb {wanted!r}; {nearest(wanted, VERBS)}")
    except PatchwordError as error:
        if not error.told:
            sys.stderr.write(f"patchword: {error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("patchword: interrupted\n")
        return 130
    except BrokenPipeError:
        # The reader of our output has gone; without this, Python would complain once more when it closes the stream.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.filename is None:
            raise
        sys.stderr.write(f"patchword: {error.filename} cannot be used: {error.strerror}\n")
        return 3
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "allocate" not in str(error) and "out of memory" not in str(error):
            raise
        sys.stderr.write("patchword: out of memory; a smaller model, image size or micro_batch would be right\n")
        return 4


def overview(first_word: str = "") -> str:
    """What is shown without a verb, or with the first word of several."""
    verbs = [verb for name, verb in VERBS.items() if name.startswith(first_word)]
    width = max(len(verb.shown) for verb in verbs)
    rows = "\n".join(f"  patchword {verb.shown:<{width}}  {verb.summary}" for verb in verbs)
    return (
        f"patchword: the Vision Transformer, whole.\n\n{rows}\n\n"
        "'patchword VERB --help' explains a verb; 'patchword --version' names the release.\n"
    )


def _call(verb: Verb, called: list[str], arguments: list[str]) -> int:
    import tyro

    from patchword.core.errors import one_line
    from patchword.core.progress import is_quiet

    module = importlib.import_module(f"patchword.verbs.{verb.module}")
    function: Callable[..., Any] = getattr(module, verb.function)
    _check_values(function, arguments)
    result = tyro.cli(
        function,
        prog=" ".join(["patchword", *called]),
        args=_one_set_each(arguments),
        config=(tyro.conf.UseAppendAction,),
    )
    show = getattr(module, "show", str)
    if result is not None and not is_quiet():
        # Labels and names of files are other people's text: no escape code of theirs reaches the terminal.
        sys.stdout.write("\n".join(one_line(line) for line in show(result).split("\n")) + "\n")
    rows = result if isinstance(result, list) else [result]
    failed = any(isinstance(row, dict) and "error" in row for row in rows)
    return 3 if failed or getattr(result, "damaged", False) else 0


def _check_values(function: Callable[..., Any], arguments: list[str]) -> None:
    """Raise `UsageError` for an option whose value is not of its type: of that, tyro draws a box of six lines."""
    from patchword.core.errors import UsageError, nearest

    kinds = get_type_hints(function)
    for place, argument in enumerate(arguments):
        option, equals, value = argument.partition("=")
        kind = kinds.get(option.removeprefix("--").replace("-", "_")) if option.startswith("--") else None
        value = value if equals else "".join(arguments[place + 1 : place + 2])
        if kind is None or not value or value.startswith("--"):
            continue
        if get_origin(kind) is Literal and value not in get_args(kind):
            raise UsageError(f"{option} {value!r} is not known; {nearest(value, get_args(kind))}")
        for number, wanted in ((int, "whole number, such as 10"), (float, "number, such as 10 or 2.5")):
            if number in (kind, *get_args(kind)):
                try:
                    number(value)
                except ValueError as error:
                    raise UsageError(f"{option} {value!r} is not a {wanted}") from error


def _one_set_each(arguments: list[str]) -> list[str]:
    """`--set a=1 b=2` means `--set a=1 --set b=2`."""
    expanded: list[str] = []
    for place, argument in enumerate(arguments):
        before = arguments[place - 1] if place else ""
        continues = "=" in argument and not argument.startswith("-") and "=" in before and expanded[-2:-1] == ["--set"]
        expanded += ["--set", argument] if continues else [argument]
    return expanded


if __name__ == "__main__":
    main()
