"""``frostline demo``: the story on a terminal, as JSON, and as a page."""

from __future__ import annotations

from pathlib import Path

import click

from frostline.cli.progress import progress
from frostline.cli.saying import say


@click.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default="frostline-demo",
    show_default=True,
    metavar="DIR",
    help="Folder for report.html.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON and nothing else.")
@click.option(
    "--seeds",
    type=click.IntRange(1, 5),
    default=5,
    show_default=True,
    help="How many starts to train from.",
)
@click.option(
    "--epochs",
    type=click.IntRange(1, 20),
    default=3,
    show_default=True,
    help="How long the second branch is trained.",
)
@click.option(
    "--momentum",
    type=click.FloatRange(0, 1),
    default=0.1,
    show_default=True,
    help="Momentum of the norms. With 0 nothing drifts, and the demo says so and exits 1.",
)
@click.pass_context
def demo(
    context: click.Context, out: Path, as_json: bool, seeds: int, epochs: int, momentum: float
) -> None:
    """A frozen network that changes, and how to make it stay: on real digits, in a minute.

    Exits 1 if the network does not drift by the flag alone, or drifts although it is held.
    """
    from frostline.demo.branches import steps
    from frostline.demo.page import NAME, page
    from frostline.demo.settings import Settings
    from frostline.demo.story import tell_story
    from frostline.reports.machine import to_json
    from frostline.reports.page import prepare, write

    settings = Settings(seeds, epochs, momentum)
    path = prepare(out, NAME)
    with progress(steps(settings)) as (tick, hide):

        def tell(chapter: str) -> None:
            hide()
            say(f"{chapter}\n")

        story = tell_story(settings, say=_silent if as_json else tell, tick=tick)
    write(path, page(story))
    for failure in story.failures:
        click.echo(f"Not as expected: {failure}", err=True)
    if as_json:
        click.echo(to_json(story.to_dict()), nl=False)
    else:
        from frostline.demo.telling import your_turn

        click.echo(f"The same with plots: {path}\n")
        say(f"{your_turn()}\n")
    context.exit(0 if story.ok else 1)


def _silent(chapter: str) -> None:
    pass
