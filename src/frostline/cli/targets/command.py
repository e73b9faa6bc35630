"""What every command with a target takes: TARGET, ``--json``, and what follows ``--``."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import click

ABOUT = (
    "TARGET is file.py:name or package.module:name. The name is a function without required "
    'parameters, or an attribute, that gives the model, or a dict with "model" and where needed '
    '"frozen", "optimizer", "batch", "compute_loss", "dataset". The file is imported, which runs '
    "it; what stands behind -- is its sys.argv. Without a name its functions are listed and "
    "nothing is run."
)


def target_command(function: Callable[..., None]) -> click.Command:
    """Make a command of ``function``, in the place of ``click.command``.

    ``function`` is called by name with ``target``, ``as_json``, ``arguments`` (the words behind
    ``--``, for :func:`frostline.cli.targets.load`), and what its own decorators add. An argument
    of its own stands behind TARGET, and never takes a word from behind ``--``.

    Example:
        >>> @target_command
        ... @click.argument("select", required=False)
        ... def explain(target, select, arguments, as_json):
        ...     print(target, select, arguments, as_json)
        >>> explain.main(["t.py:f", "--json", "--", "--data", "x"], standalone_mode=False)
        t.py:f None ('--data', 'x') True
    """
    command = click.command(cls=_TargetCommand, epilog=ABOUT)(function)
    command.params.insert(0, click.Argument(["target"]))
    command.params.append(
        click.Option(
            ["--json", "as_json"],
            is_flag=True,
            help="Print the result as JSON; what the code of TARGET prints goes to stderr.",
        )
    )
    return command


def split_words(words: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """The words of the command line before the first ``--``, and those behind it.

    Example:
        >>> split_words(["t.py:f", "--", "--data", "x", "--"])
        (['t.py:f'], ('--data', 'x', '--'))
    """
    if "--" not in words:
        return list(words), ()
    here = list(words).index("--")
    return list(words[:here]), tuple(words[here + 1 :])


class _TargetCommand(click.Command):
    def parse_args(self, context: click.Context, words: list[str]) -> list[str]:
        # click itself drops the `--`, and the first optional argument takes what stood behind it.
        own, context.params["arguments"] = split_words(words)
        try:
            return super().parse_args(context, own)
        except click.NoSuchOption as error:
            raise click.UsageError(
                f"{error.format_message()} An option of your own code stands behind --: "
                f"{context.command_path} TARGET -- {error.option_name}",
                context,
            ) from error

    def collect_usage_pieces(self, context: click.Context) -> list[str]:
        return [*super().collect_usage_pieces(context), "[-- ARGS]..."]
