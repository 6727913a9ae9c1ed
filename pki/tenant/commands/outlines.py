"""What ``kmb object show`` prints: a tree for people, and JSON as schemas/object.schema.json describes it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict

from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from pki.tenant.objects.looking import FORMAT, Look, Party, Verdict
from pki.tenant.objects.outline import Node


def record(one: Look) -> dict[str, object]:
    """Return what schemas/object.schema.json describes."""

    return {
        "format": FORMAT,
        "file": one.file,
        "kind": str(one.kind),
        "pem_label": one.label or None,
        "ber": one.ber,
        "size": one.size,
        "der_size": one.der_size,
        "sha256": one.sha256 or None,
        "for": [asdict(party) for party in one.recipients],
        "signed_by": None if one.signer is None else asdict(one.signer),
        "signed_at": one.signed_at or None,
        "profiles": [
            {
                "profile": str(verdict.profile),
                "keeps": verdict.broken is None,
                "rules": list(verdict.rules),
                "broken": None if verdict.broken is None else asdict(verdict.broken),
            }
            for verdict in one.verdicts
        ],
        "tree": asdict(one.tree),
    }


def print_look(one: Look) -> None:
    """Print the tree of an object for people, for whom and by whom it is, and what the profiles say."""

    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    form = "BER" if one.ber else "DER"
    head = Tree(Text(f"{one.kind}: {one.file}, {one.size} bytes, {one.label or form}", style="bold"), guide_style="dim")
    _branch(head, one.tree)
    console.print(head)
    for party in one.recipients:
        usable = f"; cannot be used here: {party.unsupported}" if party.unsupported else ""
        console.print(Text(f"for        {_who(party)} ({party.algorithm}){usable}"))
    if one.signer is not None:
        said = f"{_who(one.signer)} ({one.signer.algorithm})"
        console.print(Text(f"signed by  {said}, not verified: kmb object verify"))
    for verdict in one.verdicts:
        _print_verdict(console.print, verdict)


def _who(party: Party) -> str:
    if not (party.certificate or party.ski or party.serial):
        return "somebody unnamed"
    return party.certificate or (f"key {party.ski}" if party.ski else f"{party.issuer}, serial {party.serial}")


def _print_verdict(say: Callable[[Text], None], verdict: Verdict) -> None:

    broken = verdict.broken
    if broken is None:
        say(Text(f"{verdict.profile:<9}  keeps {_ranges(verdict.rules)}", style="green"))
        return
    where = f" at byte {broken.offset}" if broken.offset is not None else ""
    on = f" ({broken.on})" if broken.on else ""
    rule = f" {broken.rule}" if broken.rule else ""
    say(Text(f"{verdict.profile:<9}  breaks{rule}: {broken.message}{on}{where}", style="red"))
    if broken.hint:
        say(Text(f"           next: {broken.hint}"))


def _branch(parent: Tree, node: Node) -> None:

    for item in node.items:
        text = Text(f"{item.name}: " if item.name and item.value else item.name)
        text.append(item.value, style="cyan")
        text.append(f"  @{item.offset}+{item.size}", style="dim")
        _branch(parent.add(text), item)


def _ranges(rules: Sequence[str]) -> str:
    """Write rules that follow each other as a range."""
    found: list[list[str]] = []
    for rule in rules:
        last = found[-1][-1] if found else ""
        if last[:3] == rule[:3] and int(rule[4:]) == int(last[4:]) + 1:
            found[-1].append(rule)
        else:
            found.append([rule])
    return ", ".join(one[0] if len(one) == 1 else f"{one[0]} to {one[-1][4:]}" for one in found)
