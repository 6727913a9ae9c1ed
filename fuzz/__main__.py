"""`python -m fuzz`: fuzz one decoder or all, one after the other or several at once, and say what came of it."""

from __future__ import annotations

import argparse
import hashlib
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from fuzz.decoders import DECODERS, seeds

HERE = Path(__file__).parent
CORPUS = HERE / "corpus"
MAX_INPUT = 16 * 1024
"""Bytes of one input."""
RSS = 400
"""MiB that a process may hold; with libraries and instrumentation loaded it starts at about 150."""
KEPT = 14 * 1024
"""Bytes of the corpus of one decoder: what is large comes again by itself, from the seeds."""
_LAST = re.compile(r"#(\d+)\s+DONE.*?rss: (\d+)Mb", re.DOTALL)


@dataclass(frozen=True)
class Outcome:
    """What came of one decoder: how many inputs, the most memory, and what was said if it failed."""

    decoder: str
    inputs: int
    rss: int
    failure: str


def main() -> None:
    """Fuzz, print a line per decoder, and end with 1 if one of them failed."""
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("--seconds", type=int, default=10, help="for each decoder")
    parser.add_argument("--decoder", choices=sorted(DECODERS), action="append", help="this one only; may be repeated")
    parser.add_argument("--jobs", type=int, default=2, help="decoders at once")
    parser.add_argument("--keep", action="store_true", help="add what reaches new code to fuzz/corpus")
    options = parser.parse_args()
    with ThreadPoolExecutor(options.jobs) as pool:
        outcomes = pool.map(lambda name: fuzz(name, options.seconds, options.keep), options.decoder or DECODERS)
        failed = False
        for outcome in outcomes:
            print(f"fuzz: {outcome.decoder:18} {outcome.inputs:>9} inputs, {outcome.rss:>4} MiB", flush=True)
            if outcome.failure:
                failed = True
                print(f"fuzz: {outcome.decoder} failed:\n{outcome.failure}", file=sys.stderr)
    sys.exit(failed)


def fuzz(name: str, seconds: int, keep: bool) -> Outcome:
    """Fuzz one decoder for some seconds, in a process of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        room = Path(scratch)
        start, found, broken = room / "start", room / "found", room / "broken"
        for folder in (start, found, broken):
            folder.mkdir()
        for seed in seeds(name):
            (start / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)
        kept = CORPUS / name
        given = [str(kept)] if kept.is_dir() else []
        limits = [f"-max_len={MAX_INPUT}", f"-rss_limit_mb={RSS}", "-timeout=10", f"-artifact_prefix={broken}/"]
        done = _harness(
            name,
            [f"-max_total_time={seconds}", "-seed=1", "-print_final_stats=0", *limits, str(found), str(start), *given],
        )
        failure = "" if done.returncode == 0 else _told(done.stdout + done.stderr, broken)
        if keep and not failure:
            _merge(name, kept, [*limits, str(found)], start)
        last = _LAST.search(done.stderr)
        return Outcome(name, int(last[1]) if last else 0, int(last[2]) if last else 0, failure)


def _merge(name: str, kept: Path, arguments: list[str], start: Path) -> None:
    # What the seeds reach need not be kept: they go first, and are taken out again.
    with tempfile.TemporaryDirectory() as scratch:
        merged = Path(scratch)
        own = {seed.name for seed in start.iterdir()}
        for seed in start.iterdir():
            (merged / seed.name).write_bytes(seed.read_bytes())
        _harness(
            name,
            ["-set_cover_merge=1", "-use_counters=0", str(merged), *([str(kept)] if kept.is_dir() else []), *arguments],
        )
        kept.mkdir(parents=True, exist_ok=True)
        for path in kept.iterdir():
            path.unlink()
        left = KEPT
        for path in sorted(
            (one for one in merged.iterdir() if one.name not in own), key=lambda one: one.stat().st_size
        ):
            left -= path.stat().st_size
            if left >= 0:
                (kept / path.name[:16]).write_bytes(path.read_bytes())


def _harness(name: str, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fuzz.harness", name, *arguments]
    return subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, cwd=HERE.parent)  # noqa: S603  our own module


def _told(said: str, broken: Path) -> str:
    inputs = "".join(f"input: {path.read_bytes().hex()}\n" for path in broken.iterdir())
    traceback = said.find("Uncaught Python exception")
    return (said[traceback:][:3000] if traceback >= 0 else said[-3000:]) + "\n" + inputs[:40000]


if __name__ == "__main__":
    main()
