"""Contract of tenants, invitations, instances and nonces."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pki.core.errors import AddressTakenError, ConflictError, NotFoundError
from pki.core.tenants import TenantName, parse_address
from pki.server.store import access, tenants
from pki.server.store.access import Nonce
from pki.server.store.engine import Store
from tests.kit.facts import ACME, GLOBEX, NOW, at, instance, invitation
from tests.kit.threads import together


def _with_tenants(store: Store) -> None:
    with store.unit() as unit:
        for name in ("globex", "acme"):
            tenants.insert_tenant(unit, TenantName(name), NOW)


def test_a_tenant_is_created_once(store: Store) -> None:
    """The second time says that it was there, and keeps the first time's date."""
    with store.unit() as unit:
        assert tenants.insert_tenant(unit, TenantName("acme"), NOW)
        assert not tenants.insert_tenant(unit, TenantName("acme"), at(5))
        (tenant,) = tenants.list_tenants(unit)
    assert tenant.created_at == NOW


def test_an_invitation_is_used_once(store: Store) -> None:
    """It comes back as it was stored, is marked once, and then refused."""
    _with_tenants(store)
    invited = invitation()
    with store.unit() as unit:
        tenants.insert_invitation(unit, invited)
        assert tenants.lock_invitation(unit, invited.reference) == invited
        assert tenants.lock_invitation(unit, "other") is None
        tenants.mark_invitation_used(unit, invited.reference, ACME, at(3))
        used = tenants.lock_invitation(unit, invited.reference)
        assert used is not None and (used.used_at, used.used_by) == (at(3), ACME)
        with pytest.raises(ConflictError):
            tenants.mark_invitation_used(unit, invited.reference, GLOBEX, at(4))
        with pytest.raises(NotFoundError):
            tenants.mark_invitation_used(unit, "other", GLOBEX, at(4))
        with pytest.raises(ConflictError):
            tenants.insert_invitation(unit, invited)


def test_of_many_who_use_an_invitation_at_once_one_wins(store: Store) -> None:
    """The row is held from the look to the mark."""
    _with_tenants(store)
    invited = invitation()
    with store.unit() as unit:
        tenants.insert_invitation(unit, invited)

    def enrol(number: int) -> bool:
        with store.unit() as unit:
            held = tenants.lock_invitation(unit, invited.reference)
            assert held is not None
            if held.used_at is not None:
                return False
            tenants.mark_invitation_used(unit, invited.reference, parse_address(f"acme/kms-{number}"), at(number))
            return True

    assert sum(together(8, enrol)) == 1


def test_an_instance_is_found_by_address_and_by_key(store: Store) -> None:
    """What was enrolled comes back byte for byte."""
    _with_tenants(store)
    first, second = instance(ACME), instance(GLOBEX)
    with store.unit() as unit:
        tenants.insert_instance(unit, second)
        tenants.insert_instance(unit, first)
    with store.read() as unit:
        assert tenants.instance(unit, ACME) == first
        assert tenants.instances_by_key(unit, [str(second.access_key_id), "00"]) == [second]
        assert tenants.existing(unit, [ACME, parse_address("acme/other")]) == {ACME}
        assert tenants.instance(unit, parse_address("acme/other")) is None
        assert tenants.list_instances(unit) == [first, second]
        assert tenants.list_instances(unit, TenantName("globex")) == [second]


def test_an_address_and_an_access_key_belong_to_one_instance(store: Store) -> None:
    """A second claim of either is refused, each with its own error, and the unit goes on."""
    _with_tenants(store)
    first = instance(ACME)
    with store.unit() as unit:
        tenants.insert_instance(unit, first)
        with pytest.raises(AddressTakenError):
            tenants.insert_instance(unit, instance(ACME))
        with pytest.raises(ConflictError) as caught:
            tenants.insert_instance(unit, instance(GLOBEX, access_key_id=first.access_key_id))
        assert not isinstance(caught.value, AddressTakenError)
        assert tenants.list_instances(unit) == [first]


def test_instances_without_an_access_key_stand_beside_each_other(store: Store) -> None:
    """Who was enrolled by EST or CMP has none yet: two of them are no conflict, and no key finds them."""
    _with_tenants(store)
    keyless = [instance(one, access_key=None, access_key_id=None) for one in (ACME, GLOBEX)]
    with store.unit() as unit:
        for one in keyless:
            tenants.insert_instance(unit, one)
    with store.read() as unit:
        assert tenants.list_instances(unit) == keyless
        assert tenants.instances_by_key(unit, [""]) == []


def test_a_nonce_is_good_once_for_each_key(store: Store) -> None:
    """The second use is a replay until the nonce is purged, which happens past its time only."""
    own, other = Nonce("key", "n1", at(300)), Nonce("other", "n1", at(300))
    with store.unit() as unit:
        assert access.use_nonces(unit, [own, other, own]) == [True, True, False]
    with store.unit() as unit:
        assert access.use_nonces(unit, [Nonce("key", "n0", at(600)), replace(own, expires_at=at(600))]) == [True, False]
    with store.unit() as unit:
        assert access.purge_nonces(unit, at(299)) == 0
        assert access.purge_nonces(unit, at(300)) == 2
        assert access.use_nonces(unit, [own]) == [True]
        assert access.use_nonces(unit, []) == []


def test_of_many_replays_at_once_one_passes(store: Store) -> None:
    """The same nonces in many units at the same time, and in another order in each, are fresh once."""
    nonces = [Nonce("key", f"n{number}", at(300)) for number in range(5)]

    def use(number: int) -> list[bool]:
        wanted = nonces[number % 5 :] + nonces[: number % 5]
        with store.unit(durable=False) as unit:
            told = dict(zip(wanted, access.use_nonces(unit, wanted), strict=True))
        return [told[one] for one in nonces]

    assert [sum(found) for found in zip(*together(8, use), strict=True)] == [1] * 5
