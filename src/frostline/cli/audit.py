"""``frostline audit TARGET``: what a training step will change though it is frozen."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from frostline.cli.prints import prints_to_stderr
from frostline.cli.saying import say
from frostline.cli.targets import Setup, loaded, target_command
from frostline.cli.targets.importing import current_directory, find, tree_of
from frostline.cli.targets.listing import candidates
from frostline.cli.targets.spelling import is_module, split
from frostline.errors import FrostlineError, TargetError

if TYPE_CHECKING:
    from frostline.auditing.policy.policy import FailOn, Policy
    from frostline.auditing.report import AuditReport


@target_command
@click.option(
    "--select",
    multiple=True,
    metavar="CODES",
    help="Show only these, as FRZ1 or FRZ101,FRZ102. Repeatable.",
)
@click.option("--ignore", multiple=True, metavar="CODES", help="Leave these out. Repeatable.")
@click.option(
    "--fail-on",
    type=click.Choice(["error", "warning", "info", "never"]),
    help="The mildest finding that makes the exit code 1.  [default: warning]",
)
@click.option(
    "--html",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="PATH",
    help="Write the report as a page.",
)
@click.option("--github", is_flag=True, help="Annotate in GitHub Actions, on stderr.")
@click.option("--meta", is_flag=True, help="Build the model without memory, and predict.")
@click.pass_context
def audit(
    context: click.Context,
    target: str,
    select: tuple[str, ...],
    ignore: tuple[str, ...],
    fail_on: FailOn | None,
    html: Path | None,
    github: bool,
    meta: bool,
    arguments: tuple[str, ...],
    as_json: bool,
) -> None:
    """Say what a training step will change though it is frozen, why, and the code that mends it.

    With a batch in the target, a real step is run and undone. What [tool.frostline] in
    pyproject.toml selects and ignores counts where no option says otherwise.

    Exit codes: 0 nothing found, 1 a warning or an error, 2 wrong use.
    """
    policy = _policy(select, ignore, fail_on)
    page = _page_path(html) if html is not None else None
    home = current_directory()
    with prints_to_stderr(as_json), _setup(target, arguments, meta) as setup:
        report = _filtered(_report(setup, target), policy)
        place = _place(target, home) if github else None
    if page is not None:
        click.echo(f"{report.save_html(page)} was written", err=True)
    if place is not None:
        _annotate(report, *place)
    _tell(report, as_json)
    context.exit(1 if policy.fail_on != "never" and report.worth(policy.fail_on) else 0)


def _policy(select: tuple[str, ...], ignore: tuple[str, ...], fail_on: FailOn | None) -> Policy:
    """That of ``pyproject.toml``, with what the options say in its place."""
    from frostline.auditing.policy.pyproject import configured

    found = configured(Path(current_directory()))
    if select:
        found = replace(found, select=_codes(select))
    if ignore:
        found = replace(found, ignore=_codes(ignore))
    return replace(found, fail_on=fail_on) if fail_on is not None else found


def _codes(given: tuple[str, ...]) -> list[str]:
    return [code.strip() for part in given for code in part.split(",") if code.strip()]


def _page_path(html: Path) -> Path:
    """Where the page goes; refused before anything is run."""
    from frostline.reports.page import prepare

    try:
        return prepare(html.parent.absolute(), html.name)
    except FrostlineError as error:
        reason = str(error).partition("\n")[0]
        raise FrostlineError(f"{reason}\nHand in another path with --html PATH") from error


@contextmanager
def _setup(target: str, arguments: tuple[str, ...], meta: bool) -> Iterator[Setup]:
    import torch

    with ExitStack() as lent:
        with torch.device("meta") if meta else nullcontext():
            setup = lent.enter_context(loaded(target, arguments))
        yield setup


def _report(setup: Setup, target: str) -> AuditReport:
    from frostline.auditing import audit as ask
    from frostline.auditing.arguments import check

    try:
        check(setup.model, setup.optimizer, setup.batch, setup.compute_loss)
    except (TypeError, ValueError) as error:
        raise TargetError(f"{target}: {error}") from error
    with _waiting(f"auditing {type(setup.model).__name__}"):
        return ask(
            setup.model,
            frozen=setup.frozen,
            optimizer=setup.optimizer,
            batch=setup.batch,
            compute_loss=setup.compute_loss,
        )


@contextmanager
def _waiting(doing: str) -> Iterator[None]:
    """Something that moves on a terminal: how long a step takes is not known before."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(doing):
        yield


def _filtered(report: AuditReport, policy: Policy) -> AuditReport:
    return report.filter(
        select=policy.select, ignore=policy.ignore, per_name_ignores=policy.per_name_ignores
    )


def _place(target: str, home: str) -> tuple[str, int]:
    """The file of a target below the root of the repository, and the line of its function."""
    where, name = split(target)
    spec = find(where) if is_module(where) else None
    path = spec.origin if spec is not None and spec.origin else os.path.join(home, where)
    lines = {one.name: one.line for one in candidates(tree_of(path))}
    root = os.environ.get("GITHUB_WORKSPACE") or home
    return Path(os.path.relpath(path, root)).as_posix(), lines.get(name or "", 1)


def _annotate(report: AuditReport, file: str, line: int) -> None:
    """On stderr, which a runner reads as it does stdout, so that JSON stays alone there."""
    from frostline.auditing.telling.github import commands

    lines = commands(report.findings, file, line)
    if lines:
        click.echo(lines, err=True)


def _tell(report: AuditReport, as_json: bool) -> None:
    if as_json:
        from frostline.reports.machine import to_json

        click.echo(to_json(report.to_dict()), nl=False)
    else:
        say(str(report))
