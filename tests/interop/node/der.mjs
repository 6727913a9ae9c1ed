// A reader of DER that fits on a page: enough for objects whose form is known.
import assert from 'node:assert/strict';

// The value at `at`: `der` is all of it, `content` is without tag and length. A length above 127 has bytes of its own.
export const read = (bytes, at = 0) => {
  const long = bytes[at + 1] > 0x80 ? bytes[at + 1] & 0x7f : 0;
  const start = at + 2 + long;
  const end = start + (long ? bytes.readUIntBE(at + 2, long) : bytes[at + 1]);
  assert(end <= bytes.length, 'the DER is cut off');
  return { tag: bytes[at], content: bytes.subarray(start, end), der: bytes.subarray(at, end), end };
};

// The values inside of a SEQUENCE or SET; and the one inside of an explicit tag or an OCTET STRING.
export const list = ({ content }) => {
  const found = [];
  for (let at = 0; at < content.length; at = found.at(-1).end) found.push(read(content, at));
  return found;
};
export const inside = (value) => read(value.content);

// An OBJECT IDENTIFIER: seven bits a byte, the first two arcs in one number.
export const dotted = ({ content }) => {
  const arcs = [0n];
  for (const byte of content) {
    arcs.push((arcs.pop() << 7n) | BigInt(byte & 0x7f));
    if (byte < 0x80) arcs.push(0n);
  }
  const top = arcs[0] < 80n ? arcs[0] / 40n : 2n;
  return [top, arcs[0] - top * 40n, ...arcs.slice(1, -1)].join('.');
};

// The name of an AlgorithmIdentifier, or of an attribute: SEQUENCE { type, ... }.
export const algorithm = (value) => dotted(list(value)[0]);

// The one value of the one attribute of a type in a SET OF SEQUENCE { type, SET OF value }.
export const attribute = (set, type) => {
  const [one, ...more] = list(set).filter((each) => algorithm(each) === type);
  assert(one && more.length === 0, `the attribute ${type} is not there once`);
  return inside(list(one)[1]);
};
