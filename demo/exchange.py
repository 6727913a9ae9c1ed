"""Two tenants, one server that neither trusts: a document is encrypted, its key handed over, the document opened.

``python -m demo.exchange`` (``make demo``) plays it with an AES-256 key; with ``--covercrypt PYTHON``
(``make demo-covercrypt``) the key is a Covercrypt user decryption key for an access policy.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import secrets
import sys
import time
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from rich.markup import escape

from demo.stage import DemoError, Result, Stage, new_folder

ACME = "acme/eu-west"
GLOBEX = "globex/main"
USER_KEY = "application/vnd.cosmian.covercrypt.user-key"
_HERE = Path(__file__).resolve().parent
_DOCUMENT = _HERE / "contract.txt"
_WORKER = _HERE / "covercrypt_worker.py"
_DENIED = 3
_OWN = "Department::FIN && Security::Confidential"
_OTHERS = "Department::HR && Security::Protected"


def main() -> int:
    """Play the exchange; 0 when every step went well."""
    parser = argparse.ArgumentParser(prog="python -m demo.exchange", description=__doc__)
    parser.add_argument("--covercrypt", metavar="PYTHON", type=Path, help="a Python that has cloudproof_py")
    parser.add_argument("--into", metavar="DIR", type=Path, default=Path.cwd(), help="where the new folder is made")
    arguments = parser.parse_args()
    began = time.perf_counter()
    stage: Stage | None = None
    try:
        with Stage(new_folder(arguments.into.resolve())) as stage:
            _play(stage, arguments.covercrypt)
    except DemoError as error:
        folder = f"\nWhat there is by now lies in {stage.folder}" if stage else ""
        print(
            f"\nThe demonstration failed: {error.what}\n  on:   {error.on}\n  next: {error.hint}{folder}",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        return 130
    stage.console.print(
        f"\n[bold green]The whole way of a key, in {time.perf_counter() - began:.1f} s.[/bold green] "
        f"Everything lies in [bold]{escape(str(stage.folder))}[/bold]\n"
        "  server/  the operator's home: database, CA     server.log  what it wrote\n"
        "  acme/ globex/  the tenants' homes: sealed keys, journal     work/  documents and the report"
    )
    return 0


def _play(stage: Stage, covercrypt: Path | None) -> None:
    if covercrypt is not None and not covercrypt.exists():
        raise DemoError("There is no such Python", on=str(covercrypt), hint="make demo-covercrypt")
    work = stage.folder / "work"
    work.mkdir()
    stage.console.print("[bold]keymailbox[/bold]: acme hands globex a key, and the operator in between cannot read it.")
    with stage.step("operator", "starts the server (embedded: SQLite, the worker inside)"):
        stage.start()
        stage.tell("address", stage.url)
        stage.tell("process", stage.server.pid if stage.server else "")
    with stage.step("operator", "invites two tenants, each once, for a day"):
        for tenant in ("acme", "globex"):
            _invite(stage, tenant)
    for address in (ACME, GLOBEX):
        _enrol(stage, address)
    _compare(stage)
    secret = _covercrypt(stage, work, covercrypt) if covercrypt else _plain(stage, work)
    _receipts(stage)
    _report(stage, work)
    with stage.step("anybody", "searches all that the operator has for the key"):
        _search(stage, secret)


def _invite(stage: Stage, tenant: str) -> None:
    told = stage.operator("tenant", "invite", tenant, "--json")
    path = stage.folder / "work" / f"{tenant}.invitation.json"
    path.touch(mode=0o600)
    path.write_text(told.out)
    stage.tell(tenant, f"reference {told.json['reference']}, until {told.json['expires']}; the secret is stored hashed")


def _enrol(stage: Stage, address: str) -> None:
    tenant = address.partition("/")[0]
    with stage.step(tenant, f"enrols as {address}: three keys of its own, two certificates"):
        invitation = stage.folder / "work" / f"{tenant}.invitation.json"
        done = stage.kmb(tenant, "enroll", address, "--server", stage.url, "--invitation", str(invitation), "--json")
        for line in done.err.splitlines():
            what, _, value = line.strip().partition(": ")
            stage.tell(what, value)
        stage.tell("checked", "root, chain, validity, its own request; the new key had to open its certificate")


def _compare(stage: Stage) -> None:
    with stage.step("both", "tell each other the fingerprint of their identity key, on the phone"):
        prints = {who: stage.kmb(who, "whoami", "--json").json["identity"] for who in ("acme", "globex")}
        for who, other, address in (("acme", "globex", GLOBEX), ("globex", "acme", ACME)):
            done = stage.kmb(who, "peer", "verify", address, "--fingerprint", prints[other], "--json")
            stage.tell(f"{who} trusts", f"{address}, identity {done.json['identity']}, {done.json['trust']}")


# The exchange with a data key


def _plain(stage: Stage, work: Path) -> bytes:
    """Encrypt, hand over, decrypt; return the key that nobody else may have."""
    name = "contract-2026-117"
    with stage.step("acme", "makes a data key in its KMS and encrypts a contract with it (AES-256-GCM)"):
        stage.kmb("acme", "key", "create", name, "--json")
        key_file = work / "acme.data-key"
        stage.kmb("acme", "key", "export", name, "--out", str(key_file), "--json")
        key = key_file.read_bytes()
        document = _DOCUMENT.read_bytes()
        nonce = secrets.token_bytes(12)
        sealed = nonce + AESGCM(key).encrypt(nonce, document, None)
        (work / "contract.encrypted").write_bytes(sealed)
        stage.tell("document", f"{_DOCUMENT.name}, {len(document):,} bytes → contract.encrypted, {len(sealed):,} bytes")
    _hand_over(stage, name, "contract 2026-117")
    with stage.step("globex", "takes the key from its KMS and opens the contract"):
        got = _received(stage, name, work / "globex.data-key")
        opened = _opened(got, (work / "contract.encrypted").read_bytes())
        (work / "contract.decrypted.txt").write_bytes(opened)
        _demand(opened == document, "The decrypted document is not the original", "contract.decrypted.txt")
        stage.tell("document", f"contract.decrypted.txt, {len(opened):,} bytes, the same as the original")
        stage.tell("SHA-256", hashlib.sha256(opened).hexdigest())
    return key


def _opened(key: bytes, sealed: bytes) -> bytes:
    try:
        return AESGCM(key).decrypt(sealed[:12], sealed[12:], None)
    except (InvalidTag, ValueError):
        raise DemoError("The key does not open the document", on="contract.encrypted", hint="make demo") from None


# The exchange with a Covercrypt key


def _covercrypt(stage: Stage, work: Path, python: Path) -> bytes:
    """Make a user decryption key for finance, hand it over, try it on two departments' documents."""
    name = "finance-confidential"
    keys, user_key = work / "covercrypt", work / "acme.user-key"
    own, others = work / "finance.encrypted", work / "personnel.encrypted"

    def worker(*arguments: str, fine: tuple[int, ...] = (0,)) -> Result:
        # Absolute but not resolved: a virtual environment's Python is a link.
        return stage.run([str(python.absolute()), str(_WORKER)], arguments, fine=fine)

    with stage.step("acme", "makes Covercrypt master keys and encrypts two documents for two departments"):
        worker("setup", str(keys))
        worker("encrypt", str(keys), _OWN, str(_DOCUMENT), str(own))
        worker("encrypt", str(keys), _OTHERS, str(_DOCUMENT), str(others))
        stage.tell("finance.encrypted", f"for {_OWN}, {own.stat().st_size:,} bytes")
        stage.tell("personnel.encrypted", f"for {_OTHERS}, {others.stat().st_size:,} bytes")
    with stage.step("acme", "derives a user decryption key for finance, and keeps it in its KMS"):
        worker("user-key", str(keys), _OWN, str(user_key))
        stage.kmb("acme", "key", "create", name, "--in", str(user_key), "--media-type", USER_KEY, "--json")
        key = user_key.read_bytes()
        stage.tell("user key", f"{_OWN}, {len(key):,} bytes, {USER_KEY}")
    _hand_over(stage, name, "finance archive")
    delivered = work / "globex.user-key"
    with stage.step("globex", "takes the key from its KMS and opens the document of finance"):
        _demand(_received(stage, name, delivered) == key, "Another key arrived than was sent", delivered.name)
        worker("decrypt", str(delivered), str(own), str(work / "finance.decrypted.txt"))
        opened = (work / "finance.decrypted.txt").read_bytes()
        _demand(opened == _DOCUMENT.read_bytes(), "The decrypted document is not the original", "finance.decrypted.txt")
        stage.tell("document", f"finance.decrypted.txt, {len(opened):,} bytes, the same as the original")
    with stage.step("globex", "tries the same key on the document of another department"):
        target = work / "personnel.decrypted.txt"
        denied = worker("decrypt", str(delivered), str(others), str(target), fine=(0, _DENIED))
        _demand(denied.code == _DENIED and not target.exists(), "The key opened too much", others.name)
        stage.tell("refused", denied.err.strip().partition(": ")[2] or denied.err.strip())
    return key


# What both have in common


def _hand_over(stage: Stage, name: str, purpose: str) -> None:
    with stage.step("acme", f"wraps the key for {GLOBEX}, signs, deposits"):
        sent = stage.kmb("acme", "key", "send", name, "--to", GLOBEX, "--purpose", purpose, "--json").json[0]
        stage.tell("checked", "chain to acme's root, validity, revocation list, address,")
        stage.tell("", "and that the request for the certificate is signed by globex's pinned identity key")
        stage.tell("wrapped for", f"certificate {sent['certificate']}")
        stage.tell("deposit", f"{sent['deposit']}, {sent['size']:,} bytes, {sent['state']}: validated by the worker")
        _demand(sent["state"] == "available", "The deposit is not available", str(sent))
    with stage.step("globex", "fetches its mail, opens it, answers"):
        for one in stage.kmb("globex", "mailbox", "list", "--json").json:
            stage.tell("listed", f"number {one['number']}, {one['key']} v{one['version']} from {one['sender']}")
        taken = stage.kmb("globex", "mailbox", "receive", "--wait", "10", "--json").json
        _demand(len(taken) == 1 and taken[0]["answer"] == "receipt", "The key was not accepted", str(taken))
        stage.tell("checked", "sender's signature under its pin, address, both contexts equal, not seen before, no gap")
        stage.tell("stored", f"{taken[0]['key']} v{taken[0]['version']} from {taken[0]['sender']}, in globex's KMS")
        stage.tell("answered", f"a signed {taken[0]['answer']} for deposit {taken[0]['deposit']}")


def _received(stage: Stage, name: str, file: Path) -> bytes:
    done = stage.kmb("globex", "key", "export", name, "--owner", ACME, "--out", str(file), "--json").json
    stage.tell(
        "key", f"{done['key']} v{done['version']} of {done['owner']}, {done['size']:,} bytes, {done['media_type']}"
    )
    return file.read_bytes()


def _receipts(stage: Stage) -> None:
    with stage.step("acme", "fetches the receipt and checks it against what it sent"):
        rows = stage.kmb("acme", "receipt", "list", "--json").json
        good = [row for row in rows if row["state"] == "acknowledged" and row["receipt"] == "verified"]
        _demand(len(good) == len(rows) == 1, "There is no valid receipt", str(rows))
        stage.tell(
            "receipt", f"for deposit {good[0]['deposit']}, signed by {good[0]['recipient']}'s pinned identity key"
        )


def _report(stage: Stage, work: Path) -> None:
    with stage.step("operator", "reports who was given which key"):
        stage.operator("report", "distribution", "--format", "csv", "--out", str(work / "distribution.csv"))
        table = stage.operator("report", "distribution", "--format", "table")
        stage.console.print()
        stage.console.out(table.out.rstrip(), highlight=False)
        stage.console.print()


def _search(stage: Stage, secret: bytes) -> None:
    """The key must be nowhere at the server: raw, in hex, in base64, not even a part of it."""
    needles: dict[str, bytes] = {}
    for start in {0, len(secret) // 2 - 8, len(secret) - 16}:
        part = secret[start : start + 16]
        needles |= {f"raw {start}": part, f"hex {start}": part.hex().encode()}
    # Base64 of a part depends on where in a group of three it begins.
    for shift in range(3):
        coded = base64.b64encode(b"\0" * shift + secret[:32])[4:36]
        needles |= {f"base64 {shift}": coded, f"base64url {shift}": coded.translate(bytes.maketrans(b"+/", b"-_"))}
    files = [stage.folder / "server.log", *(path for path in (stage.folder / "server").rglob("*") if path.is_file())]
    size = 0
    for path in files:
        content = path.read_bytes()
        size += len(content)
        for form, needle in needles.items():
            _demand(needle not in content, f"The key stands in the server's files ({form})", str(path))
    stage.tell("searched", f"{len(files)} files, {size:,} bytes: database, write-ahead log, CA, logs")
    stage.tell("found", "nothing, neither raw nor in hex nor in base64")


def _demand(good: bool, what: str, on: str) -> None:
    if not good:
        raise DemoError(what, on=on, hint="this should not happen: keep the folder and report it")


if __name__ == "__main__":
    sys.exit(main())
