"""``frostline guard SCRIPT``: run a script unchanged, and say what moved though frozen."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from frostline.cli.prints import prints_to_stderr
from frostline.cli.saying import say
from frostline.errors import FrostlineError

if TYPE_CHECKING:
    from frostline.guarding.scripts.discovering import Discovery
    from frostline.guarding.scripts.report import ScriptReport
    from frostline.guarding.scripts.running import End

FINDINGS, REFUSED, OUR_BUG = 1, 2, 3


@click.command(context_settings={"allow_interspersed_args": False})
@click.option(
    "--frozen",
    multiple=True,
    metavar="SELECT",
    help="Watch this too, frozen by a flag or not, as 'backbone' or '**.norm*'. Repeatable.",
)
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    metavar="N",
    help="Stop the script after N optimizer steps.",
)
@click.option("--pinpoint", is_flag=True, help="Name the line that wrote. Slow.")
@click.option(
    "--html",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="PATH",
    help="Write the report as a page.",
)
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print the report as JSON; what the script prints goes to stderr.",
)
@click.option("-m", "as_module", is_flag=True, help="SCRIPT is a module, as with python -m.")
@click.argument("script")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[ARGS]...")
@click.pass_context
def guard(
    context: click.Context,
    frozen: tuple[str, ...],
    steps: int | None,
    pinpoint: bool,
    html: Path | None,
    as_json: bool,
    as_module: bool,
    script: str,
    arguments: tuple[str, ...],
) -> None:
    """Run SCRIPT unchanged and say what moved in its models though frozen.

    Frozen is what the script freezes, by requires_grad=False or by fl.freeze. All
    that stands after SCRIPT belongs to the script.

    Exit codes: that of the script if it is not 0; else 0 nothing moved, 1 something
    frozen moved, 2 wrong use or something that could not be watched.
    """
    from frostline.guarding.scripts import running as scripts
    from frostline.guarding.scripts.discovering import Discovery

    rank = int(os.environ.get("RANK") or 0)
    page = _page_path(html, rank) if html is not None else None
    pid = os.getpid()
    with scripts.borrowed(arguments), prints_to_stderr(as_json):
        load = scripts.load_module if as_module else scripts.load_file
        loaded = load(script)
        with Discovery(frozen, pinpoint=pinpoint, steps=steps) as discovery:
            end = scripts.run(loaded)
            if os.getpid() != pid:  # a fork that the script made and that has come to its end
                context.exit(end.code)
            report = _report(discovery, end, script, arguments, steps)
    if page is not None:
        _write(page, report)
        click.echo(f"{page} was written", err=True)
    _hint_at_options(arguments)
    _tell(report, rank, as_json)
    for bug in discovery.bugs:
        click.echo(f"{bug}\nThis is a bug of frostline, not of your code.", err=True)
    context.exit(_code(report, discovery))


def _report(
    discovery: Discovery, end: End, script: str, arguments: tuple[str, ...], steps: int | None
) -> ScriptReport:
    from frostline.guarding.scripts.discovering import StepsDone
    from frostline.guarding.scripts.report import ScriptReport, named

    found = discovery.finish()
    models, left_out = named([(f.model, f.report) for f in found if f.report is not None])
    return ScriptReport(
        script=script,
        arguments=arguments,
        exit=end.code,
        raised=end.raised,
        stopped_after=steps if isinstance(end.stopped, StepsDone) else None,
        models=models,
        only_called=left_out,
        unwatched=discovery.unwatched,
        unmatched=discovery.unmatched,
    )


def _hint_at_options(arguments: tuple[str, ...]) -> None:
    """An option of ours behind the script is the script's, which may not know it."""
    ours = {"--frozen", "--steps", "--html", "--json", "--pinpoint"}
    late = [word for word in arguments if word.partition("=")[0] in ours]
    if late:
        click.echo(
            f"{late[0]} stands behind the script and was given to it; options of frostline guard "
            "stand before",
            err=True,
        )


def _code(report: ScriptReport, discovery: Discovery) -> int:
    if report.exit:
        return report.exit
    if discovery.bugs:
        return OUR_BUG
    if report.unmatched:
        return REFUSED
    if report.moved:
        return FINDINGS
    return REFUSED if report.unwatched else 0


def _tell(report: ScriptReport, rank: int, as_json: bool) -> None:
    """On rank 0 everything; of other ranks only what moved, marked as theirs."""
    if rank:
        for line in report.findings().splitlines():
            click.echo(f"[rank {rank}] {line}", err=True)
    elif as_json:
        from frostline.reports.machine import to_json

        click.echo(to_json(report.to_dict()), nl=False)
    else:
        say(str(report), sys.stderr if report.raised else sys.stdout)


def _page_path(html: Path, rank: int) -> Path:
    """Where the page of this rank goes; refused before the script starts."""
    from frostline.reports.page import prepare

    name = f"{html.stem}.rank{rank}{html.suffix}" if rank else html.name
    try:
        return prepare(html.parent.absolute(), name)
    except FrostlineError as error:
        reason = str(error).partition("\n")[0]
        raise FrostlineError(f"{reason}\nHand in another path with --html PATH") from error


def _write(path: Path, report: ScriptReport) -> None:
    from frostline.reports.guard_page import page
    from frostline.reports.page import write

    write(path, page(report.to_dict()))
