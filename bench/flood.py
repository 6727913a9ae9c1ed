"""What one tenant's flood costs another: the p99 of a deposit and of a poll, alone and meanwhile."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from bench.figures import Figure, within
from tests.kit.flood import CONNECTIONS, Felt, feel, flooded
from tests.kit.members import Members
from tests.kit.processes import Installation
from tests.kit.services import Services, drop_database, new_database

GOAL = 2.0
"""Others' p99 within twice of what it is alone (goals: reliability)."""


def measure(folder: Path, services: Services, *, deposits: int = 300, rounds: int = 3) -> list[Figure]:
    """Return the figures: alone and flooded in turn, since the machine has moods; the median round counts."""
    database = new_database(services.postgres.url)
    try:
        with Installation(folder / "flood", database, services.rabbitmq.url, direct=True) as installed:
            installed.start()
            with Members(installed, folder / "members") as members:
                quiet, friend, flood = (members.enrol(name) for name in ("quiet/main", "friend/main", "flood/main"))
                feel(quiet, friend.address, 20)
                pairs, told = [], Counter[str]()
                for _ in range(rounds):
                    alone = feel(quiet, friend.address, deposits)
                    with flooded(members.home("flood/main"), flood.address) as felt:
                        pairs.append((alone, feel(quiet, friend.address, deposits)))
                    told += felt.told
        return _figures(pairs, told)
    finally:
        drop_database(database)


def _figures(pairs: list[tuple[Felt, Felt]], told: Counter[str]) -> list[Figure]:
    figures = []
    for name, of in (
        ("a deposit until it is available", lambda felt: felt.deposit_p99),
        ("an empty poll", lambda felt: felt.poll_p99),
    ):
        ratio, alone, meanwhile = sorted((of(after) / of(before), of(before), of(after)) for before, after in pairs)[
            len(pairs) // 2
        ]
        title = f"p99 of {name}, another tenant floods"
        figures.append(within(title, round(meanwhile, 1), "ms", round(alone, 1), ratio, GOAL))
    answered = sum(count for status, count in told.items() if status.isdigit())
    figures.append(Figure(f"the flood, {2 * CONNECTIONS} connections: answered", answered, "requests"))
    figures.append(Figure("of these 429", told["429"], "requests"))
    figures.append(Figure("of these deposits that were taken", told["202"], "requests"))
    return figures


def main() -> None:
    """Measure and print."""
    import tempfile

    from bench.figures import table

    with tempfile.TemporaryDirectory(prefix="keymailbox-flood-") as name, Services() as services:
        print(table(measure(Path(name), services)))


if __name__ == "__main__":
    main()
