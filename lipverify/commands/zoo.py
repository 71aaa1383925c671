"""The verbs `zoo list`, `zoo build` and `zoo check`."""

from __future__ import annotations

from typing import Annotated

import typer

from lipverify.commands.shell import Json, print_json
from lipverify.errors import Refuted, Undecided

zoo_app = typer.Typer(no_args_is_help=True, help="Networks that come with lipverify.")


@zoo_app.command("list")
def zoo_list(as_json: Json = False) -> None:
    """List the networks of the model zoo."""
    from lipverify import zoo

    cards = [zoo.card(name) for name in zoo.names()]
    if as_json:
        rows = [
            {"name": c.name, "description": c.description, "input_shape": list(c.input_shape)} for c in cards
        ]
        print_json({"schema": "lipverify.zoo/1", "networks": rows})
        return
    for card in cards:
        typer.echo(f"zoo:{card.name}  {list(card.input_shape)}  {card.description}")


@zoo_app.command("build")
def zoo_build(
    name: Annotated[str, typer.Argument(help="a network of the zoo, or all")],
    force: Annotated[bool, typer.Option("--force", help="also where weights exist already")] = False,
) -> None:
    """Train a network of the zoo again and write its weights and card."""
    from lipverify import zoo

    for card in zoo.build(name, force, lambda line: typer.echo(line, err=True)):
        typer.echo(f"zoo:{card.name}")


@zoo_app.command("check")
def zoo_check(
    name: Annotated[str, typer.Argument(help="a network of the zoo, or all")] = "all",
    as_json: Json = False,
) -> None:
    """Audit what the cards claim: exit 3 when a claim is refuted, 4 when it stays open.

    With `all`, a copy that is broken on purpose must be refuted and every other claim confirmed.
    """
    from lipverify import zoo
    from lipverify.commands import claims

    verdicts = {}
    for each in zoo.names() if name == "all" else (name,):
        verdict = verdicts[each] = claims.check(each)
        row = verdict.to_json(each)
        upper = "none" if row["best"] is None else f"{row['best'].get('upper', 'beyond float64')}"
        text = f"zoo:{each}: {verdict.verdict}: claimed {row['claim']}, proved {upper}, found {row['lower']}"
        typer.echo(text, err=as_json)
    if as_json:
        rows = [verdict.to_json(each) for each, verdict in verdicts.items()]
        print_json({"schema": "lipverify.zoo-check/1", "networks": rows})
    odd = {e: v for e, v in verdicts.items() if not v.as_expected or (name != "all" and not v.claim.holds)}
    if odd:
        said = ", ".join(f"{each} is {verdict.verdict}" for each, verdict in odd.items())
        if any(verdict.verdict != claims.OPEN for verdict in odd.values()):
            raise Refuted(f"claims of the zoo: {said}")
        raise Undecided(f"claims of the zoo: {said}")
