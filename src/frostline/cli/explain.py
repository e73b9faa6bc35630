"""``frostline explain TARGET``: why the output of a model changes, module by module."""

from __future__ import annotations

import click

from frostline.cli.prints import prints_to_stderr
from frostline.cli.rule import tell
from frostline.cli.saying import say
from frostline.cli.targets import loaded, target_command
from frostline.errors import TargetError


@target_command
@click.argument("select", required=False)
@click.option(
    "--microbatches",
    type=click.IntRange(min=1),
    metavar="K",
    help="Say what accumulation over K microbatches a step does to running statistics.",
)
@click.option(
    "--run",
    is_flag=True,
    help="Run the model once on the target's batch, and say what ran and what was written.",
)
def explain(
    target: str,
    select: str | None,
    microbatches: int | None,
    run: bool,
    arguments: tuple[str, ...],
    as_json: bool,
) -> None:
    """Say what each module does in its mode, what it writes to itself, and who holds it.

    SELECT is a part of the model, as 'backbone' or '**.norm*'. The exit code is 0 whatever is
    found: this judges nothing. A code of a rule in the place of TARGET gives its page.
    """
    from frostline.auditing.policy.codes import looks_like_code

    if looks_like_code(target):
        tell(target, as_json)
        return
    from frostline.explaining import explain as ask
    from frostline.reports.machine import to_json

    with prints_to_stderr(as_json), loaded(target, arguments) as setup:
        if run and setup.batch is None:
            raise TargetError(
                f"{target} gives no batch, so there is nothing to run. Return "
                '{"model": model, "batch": batch}, or leave --run away'
            )
        batch = setup.batch if run else None
        explanation = ask(setup.model, select, microbatches=microbatches, batch=batch)
    if as_json:
        click.echo(to_json(explanation.to_dict()), nl=False)
    else:
        say(str(explanation))
