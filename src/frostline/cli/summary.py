"""``frostline summary TARGET``: what is trainable, what a step will cost in memory, what leaks."""

from __future__ import annotations

from typing import Literal

import click

from frostline.cli.prints import prints_to_stderr
from frostline.cli.saying import say
from frostline.cli.targets import loaded, target_command
from frostline.errors import BatchError


@target_command
@click.option(
    "--depth",
    type=click.IntRange(min=0),
    default=2,
    show_default=True,
    metavar="N",
    help="Levels of modules; deeper only where something is mixed or leaks.",
)
@click.option(
    "--only",
    type=click.Choice(["trainable", "frozen", "mixed", "held", "leaky"]),
    help="Only modules of this kind.",
)
@click.option(
    "--sort",
    type=click.Choice(["name", "parameters", "memory"]),
    help="Order of the modules; without it, that of the model.",
)
def summary(
    target: str,
    depth: int,
    only: Literal["trainable", "frozen", "mixed", "held", "leaky"] | None,
    sort: Literal["name", "parameters", "memory"] | None,
    arguments: tuple[str, ...],
    as_json: bool,
) -> None:
    """Count a model, predict the memory of a training step, and say what leaks.

    The target's optimizer and batch are used where it gives them. The exit code is 0 whatever is
    found: this judges nothing.
    """
    from frostline.reports.machine import to_json
    from frostline.summaries import summary as ask

    with prints_to_stderr(as_json), loaded(target, arguments) as setup:
        try:
            found = ask(setup.model, optimizer=setup.optimizer, batch=setup.batch)
        except BatchError as error:
            # A batch may be meant for a compute_loss, which a count of activations does not call.
            click.echo(f"Saved activations are left out: {error}\n", err=True)
            found = ask(setup.model, optimizer=setup.optimizer)
    if as_json:
        click.echo(to_json(found.to_dict()), nl=False)
    else:
        say(found.text(depth, only, sort))
