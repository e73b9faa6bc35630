"""``frostline rule [CODE]``: all rules of the audit, or the page of one."""

from __future__ import annotations

from copy import copy

import click

from frostline.cli.saying import say


@click.command()
@click.argument("code", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON and nothing else.")
def rule(code: str | None, as_json: bool) -> None:
    """Say what a rule of the audit finds, why that is bad, and what to write instead.

    CODE is a code or a name, as FRZ101 or batchnorm-stats-update. Without it all rules are listed.
    """
    tell(code, as_json)


rules = copy(rule)  # what people type for the list
rules.name, rules.hidden = "rules", True


def tell(code: str | None, as_json: bool) -> None:
    """Print the page of a rule, or the table of all.

    Raises:
        SelectionError: there is no such rule; the message has the nearest.
    """
    from frostline.auditing.policy.codes import rule_of
    from frostline.auditing.telling import pages
    from frostline.reports.machine import to_json

    if code is None:
        told = {"version": 1, "rules": [pages.to_dict(one) for one in pages.all_rules()]}
        shown = pages.table()
    else:
        told = {"version": 1, **pages.to_dict(rule_of(code))}
        shown = pages.text(rule_of(code))
    if as_json:
        click.echo(to_json(told), nl=False)
    else:
        say(shown)
