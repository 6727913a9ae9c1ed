"""pkilint in front of the CA's signature: what RFC 5280 and its relatives say against a certificate (docs/adr/0013)."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from pki.server.ports import Finding

if TYPE_CHECKING:
    from pkilint.document import PDUNode
    from pkilint.validation import ValidationResult, Validator, ValidatorContainer


class PkiLinter:
    """All of pkilint's validators of PKIX certificates; none is switched off. Threads share it.

    The library is loaded with the first certificate: only the process that issues pays for it.
    """

    def __init__(self) -> None:
        """Load nothing yet."""
        self._lock = threading.Lock()
        self._linted = 0
        self._stopped = 0

    @property
    def linted(self) -> int:
        """How many certificates were looked at."""
        return self._linted

    @property
    def stopped(self) -> int:
        """How many of them must not be signed."""
        return self._stopped

    def findings(self, certificate_der: bytes, /) -> Sequence[Finding]:
        """Return what there is against a certificate, worst first; a certificate that cannot be read is an error."""
        found = sorted(self._found(certificate_der), key=lambda finding: not finding.stops)
        with self._lock:
            self._linted += 1
            self._stopped += any(finding.stops for finding in found)
        return found

    @property
    def validators(self) -> Sequence[str]:
        """The names of the validators, for those who want to know what is looked at."""
        return sorted({type(one).__name__ for one in self._walk.all()})

    @cached_property
    def _walk(self) -> _Walk:
        with self._lock:
            return _Walk(container())

    def _found(self, certificate_der: bytes) -> list[Finding]:
        from pkilint.pkix.certificate import RFC5280Certificate
        from pkilint.validation import ValidationFindingSeverity

        results: list[ValidationResult] = []
        document = RFC5280Certificate("", certificate_der)
        try:
            self._walk.run(document.decode(), results)
        except ValueError as error:
            return [Finding("FATAL", "itu.invalid_asn1_syntax", "certificate", type(error).__name__, stops=True)]
        return [
            Finding(
                told.finding.severity.name,
                told.finding.code,
                result.node.path,
                told.message or "",
                stops=told.finding.severity <= ValidationFindingSeverity.ERROR,
            )
            for result in results
            for told in result.finding_descriptions
        ]


def container() -> ValidatorContainer:
    """Return the library's own composition of its validators, as its command `lint_pkix_cert` has it."""
    from pkilint.pkix import certificate, extension, name

    return certificate.create_pkix_certificate_validator_container(
        certificate.create_decoding_validators(name.ATTRIBUTE_TYPE_MAPPINGS, extension.EXTENSION_MAPPINGS),
        [
            certificate.create_issuer_validator_container([]),
            certificate.create_validity_validator_container(),
            certificate.create_subject_validator_container([]),
            certificate.create_extensions_validator_container([]),
            certificate.create_spki_validator_container([]),
        ],
    )


_MOST_PLACES = 4096


class _Walk:
    """The library's recursion over a document, with the same visits: which validators fit a place is asked once.

    The library asks each of its validators at each node, which costs more than all their work. Path and class of a node
    decide for most; those with a condition of their own are asked each time.
    """

    def __init__(self, validators: ValidatorContainer) -> None:
        from pkilint.validation import ValidatorContainer as Container

        self._all = [(one, _Walk(one) if isinstance(one, Container) else None) for one in validators.validators]
        self._fitting: dict[tuple[str, type], Sequence[tuple[Validator, _Walk | None, bool]]] = {}

    def all(self) -> Sequence[Validator]:
        """Return the validators, without what only holds some."""
        return [one for validator, inner in self._all for one in (inner.all() if inner else [validator])]

    def run(self, node: PDUNode, results: list[ValidationResult]) -> None:
        """Visit a node and what is below it, with what decoding it brings to light."""
        place = (node.path, type(node.pdu))
        fitting = self._fitting.get(place)
        if fitting is None:
            fitting = [(one, inner, _asks(one)) for one, inner in self._all if _fits(one, node)]
            if len(self._fitting) < _MOST_PLACES:
                self._fitting[place] = fitting
        for validator, inner, asks in fitting:
            if asks and not validator.match(node):
                continue
            if inner is not None:
                inner.run(node, results)
            else:
                results.append(validator.validate_wrapper(node))
        for child in node.children.values():
            self.run(child, results)


def _fits(validator: Validator, node: PDUNode) -> bool:
    """Tell whether a validator can match nodes of this path and class: the constant part of its ``match``."""
    if validator._path is not None and validator._path != node.path:
        return False
    if validator._path_re is not None and validator._path_re.match(node.path) is None:
        return False
    return validator._pdu_class is None or isinstance(node.pdu, validator._pdu_class)


def _asks(validator: Validator) -> bool:
    """Tell whether a validator's ``match`` looks at more than path and class."""
    from pkilint.document import NodeVisitor

    conditions = (validator._predicate, validator._pdu_supertype)
    return any(one is not None for one in conditions) or type(validator).match is not NodeVisitor.match
