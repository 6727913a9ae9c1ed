"""Changes of DER that keep its lengths right, so that a change deep inside gets past the outer layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

_DEPTH = 24
_NODES = 4000
_ODD = [
    b"\x05\x00",
    b"\x02\x01\x00",
    b"\x02\x09\x00" + b"\xff" * 8,
    b"\x04\x00",
    b"\x30\x00",
    b"\x31\x00",
    b"\xa0\x00",
    b"\xa1\x00",
    b"\x80\x00",
    b"\x01\x01\xff",
    b"\x0a\x01\x63",
    b"\x0c\x01\xff",
    b"\x17\x0d700101000000Z",
    b"\x18\x0f99991231235959Z",
    b"\x30\x88\x80\x00\x00\x00\x00\x00\x00\x00",
    b"\x30\x80\x00\x00",
    b"\x06\x03\x55\x04\x03",
    b"\x03\x02\x07\x80",
]


@dataclass
class Node:
    """One value: its tag, and either bytes or what is inside; ``lead`` stands before that (unused bits)."""

    tag: int
    content: bytes = b""
    inside: list[Node] = field(default_factory=list)
    lead: bytes = b""

    def encode(self) -> bytes:
        """Return DER."""
        content = self.lead + b"".join(node.encode() for node in self.inside) if self.inside else self.content
        size = len(content)
        if size < 0x80:
            return bytes([self.tag, size]) + content
        length = size.to_bytes((size.bit_length() + 7) // 8, "big")
        return bytes([self.tag, 0x80 | len(length)]) + length + content


def parse(data: bytes, depth: int = 0) -> list[Node] | None:
    """Return the values that ``data`` consists of, or None; strings that hold whole values are opened, too."""
    nodes: list[Node] = []
    at = 0
    while at < len(data):
        if depth > _DEPTH or at + 2 > len(data) or len(nodes) > _NODES:
            return None
        tag, size = data[at], data[at + 1]
        at += 2
        if size & 0x80:
            count = size & 0x7F
            if not 1 <= count <= 4 or at + count > len(data):
                return None
            size = int.from_bytes(data[at : at + count], "big")
            at += count
        if at + size > len(data):
            return None
        content = data[at : at + size]
        at += size
        node = Node(tag, content)
        if tag & 0x20 or (tag == 0x04 and size > 4):
            node.inside = parse(content, depth + 1) or []
        elif tag == 0x03 and size > 4:
            node.inside, node.lead = parse(content[1:], depth + 1) or [], content[:1]
        nodes.append(node)
    return nodes


def mutate(data: bytes, seed: int, bytewise: Callable[[bytes], bytes]) -> bytes:
    """Return ``data`` with one value changed, doubled, moved, or taken away; ``bytewise`` changes plain bytes."""
    random = Random(seed)  # noqa: S311  must be repeatable, not secret
    nodes = parse(data)
    if not nodes:
        return bytewise(data)
    holders = [holder for holder in _holders(Node(0, inside=nodes)) if holder.inside]
    holder = random.choice(holders)
    position = random.randrange(len(holder.inside))
    node = holder.inside[position]
    what = random.randrange(8)
    if what == 0:
        holder.inside.insert(position, node)
    elif what == 1:
        del holder.inside[position]
    elif what == 2:
        other = random.choice(random.choice(holders).inside)
        # A copy of its bytes, so that no value comes to stand inside of itself.
        holder.inside[position] = Node(other.tag, other.encode()[_head(other) :])
    elif what == 3:
        odd = random.choice(_ODD)
        holder.inside[position] = _Raw(odd)
    elif what == 4:
        node.tag = random.choice(
            [0x02, 0x03, 0x04, 0x05, 0x06, 0x0A, 0x0C, 0x17, 0x18, 0x30, 0x31, 0x80, 0xA0, 0xA1, 0xA4]
        )
    elif what == 5:
        random.shuffle(holder.inside)
    else:
        content = node.encode()[_head(node) :]
        node.content, node.inside = bytewise(content), []
    return b"".join(one.encode() for one in nodes)


class _Raw(Node):
    """Bytes as they are."""

    def __init__(self, raw: bytes) -> None:
        super().__init__(0, raw)

    def encode(self) -> bytes:
        """Return the bytes."""
        return self.content


def _head(node: Node) -> int:
    size = len(node.encode())
    return 2 if size < 0x82 else size - len(node.content) if not node.inside else 2 + (node.encode()[1] & 0x7F)


def _holders(node: Node) -> list[Node]:
    return [node, *(deeper for one in node.inside for deeper in _holders(one))]
