"""Counterfoils: what stays of a deposit still proves who signed it, and no more than that."""

from __future__ import annotations

import pytest

from pki.core import counterfoils
from pki.core.deposits import parse_deposit
from pki.core.errors import KeymailboxError, MalformedError, ProfileError, SignatureError, TooLargeError
from tests.kit import forge_pki, tlv
from tests.kit.authority import acme, globex

DEPOSIT = globex().deposit(acme())
CUT = counterfoils.cut(DEPOSIT)


def test_a_counterfoil_says_what_the_deposit_said() -> None:
    """Id, context, time and signer are the deposit's, under the sender's key; the envelope is not in it."""
    parsed = parse_deposit(DEPOSIT)
    found = counterfoils.parse(CUT).verify(globex().key.public)
    assert (found.id, found.context, found.signing_time) == (parsed.id, parsed.context, parsed.signing_time)
    assert (found.signer_ski, found.der) == (parsed.signer_ski, CUT)
    assert parsed.signed.content not in CUT and len(CUT) < len(DEPOSIT) - len(parsed.signed.content) + 10
    found.match(DEPOSIT)


def test_it_matches_its_own_deposit_alone() -> None:
    """Who still has the bytes can show that they are the ones; others are not, however alike."""
    found = counterfoils.parse(CUT).verify(globex().key.public)
    with pytest.raises(SignatureError):
        found.match(globex().deposit(acme()))
    # The same attributes around another envelope.
    altered = bytearray(DEPOSIT)
    altered[DEPOSIT.index(parse_deposit(DEPOSIT).signed.content) + 500] ^= 1
    with pytest.raises(SignatureError):
        found.match(bytes(altered))


def test_another_key_did_not_sign_it() -> None:
    """A counterfoil is its signer's."""
    with pytest.raises(SignatureError):
        counterfoils.parse(CUT).verify(acme().key.public)


def test_no_bit_of_it_can_be_altered() -> None:
    """Each byte flipped is refused, by structure or by signature."""
    for place in range(len(CUT)):
        altered = bytearray(CUT)
        altered[place] ^= 1
        with pytest.raises(KeymailboxError):
            counterfoils.parse(bytes(altered)).verify(globex().key.public)


def test_what_is_no_counterfoil() -> None:
    """A whole deposit is none, nor is what is cut from something else, nor what is too large to be one."""
    with pytest.raises(MalformedError):
        counterfoils.parse(DEPOSIT)
    with pytest.raises(MalformedError):
        counterfoils.cut(CUT)
    with pytest.raises(ProfileError):
        counterfoils.parse(counterfoils.cut(forge_pki.receipt()))
    with pytest.raises(TooLargeError):
        counterfoils.parse(tlv.seq(bytes(20_000)))
