"""The entry: commands, and what each way of ending means.

0 nothing found, 1 findings, 2 wrong use or refused input, 3 our bug, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

import click

from frostline.cli.audit import audit
from frostline.cli.demo import demo
from frostline.cli.explain import explain
from frostline.cli.guard import guard
from frostline.cli.rule import rule, rules
from frostline.cli.summary import summary
from frostline.errors import FrostlineError

FINDINGS, WRONG_USE, OUR_BUG, INTERRUPTED = 1, 2, 3, 130


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80})
@click.version_option(package_name="frostline", message="frostline %(version)s")
def cli() -> None:
    """Hold what is frozen in a PyTorch model, and prove that it held.

    Exit codes: 0 nothing found, 1 findings, 2 wrong use or refused input, 3 a bug of frostline.
    """


for command in (demo, guard, audit, summary, explain, rule, rules):
    cli.add_command(command)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and end the process; ``arguments`` are those of the process if None."""
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; errors of any kind are told on stderr."""
    try:
        code = cli.main(arguments, prog_name="frostline", standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        return WRONG_USE
    except FrostlineError as error:
        click.echo(f"Error: {error}", err=True)
        return WRONG_USE
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted.", err=True)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has gone, as `head` does; nothing is left to tell it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception:
        click.echo(traceback.format_exc(), err=True, nl=False)
        click.echo(
            "\nThis is a bug of frostline, not of your code. Please report the above.", err=True
        )
        return OUR_BUG
    return code if isinstance(code, int) else 0
