"""One decoder under atheris: `python -m fuzz.harness DECODER [libFuzzer's options and folders]`."""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["pki.core", "pki.tenant.objects"]):
    from fuzz.decoders import DECODERS
    from pki.core.errors import KeymailboxError

from fuzz.mutation import mutate


def main() -> None:
    """Fuzz until libFuzzer has enough; anything but a typed error ends it."""
    name = sys.argv.pop(1)
    decode = DECODERS[name]

    def one(data: bytes) -> None:
        try:
            decode(data)
        except KeymailboxError as error:
            str(error)

    def change(data: bytes, most: int, seed: int) -> bytes:
        if seed % 4 == 0:
            return bytes(atheris.Mutate(data, most))
        changed = mutate(data, seed, lambda part: bytes(atheris.Mutate(part, len(part) + 16)))
        return changed[:most]

    # libFuzzer starts itself again by this name when it merges.
    again = f"{sys.executable} -m fuzz.harness {name}"
    atheris.Setup([again, *sys.argv[1:]], one, custom_mutator=change)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
