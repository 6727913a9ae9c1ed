// Opens a deposit with nothing but node:crypto (Node 26 or newer), step by step; docs/protocol.md says the rest.
//
//   node open.mjs DEPOSIT SENDER KEY OUT
//
// DEPOSIT is DER. SENDER is the sender's identity certificate (PEM), whose chain and revocation you have checked before
// and which you have pinned. KEY is the recipient's private key (PKCS #8, PEM). OUT gets the key (a private one as
// PKCS #8); who sent what to whom is printed, for you to compare. Any failure throws, and OUT is not written.
import assert from 'node:assert/strict';
import * as crypto from 'node:crypto';
import fs from 'node:fs';
import { algorithm, attribute, dotted, inside, list, read } from './der.mjs';

const pem = (file) => Buffer.from(fs.readFileSync(file, 'ascii').replace(/-----[^-]+-----/g, ''), 'base64');
const sha256 = (bytes) => crypto.hash('sha256', bytes, 'buffer');
// The bits of a public key; an identifier is the first 20 bytes of their SHA-256 (RFC 7093 §2).
const bits = (key) => list(read(key.export({ type: 'spki', format: 'der' })))[1].content.subarray(1);
const imported = (type, format, key) => ({ key, format, asymmetricKeyType: type });
const CONTEXT = '2.25.190657131263726506617233032095942278161.1.1';
const [depositFile, senderFile, keyFile, out] = process.argv.slice(2);

// 1. The signature (RFC 5652 §5.4): over the signed attributes, tagged as a SET; one of them is the content's digest.
const [, , encapsulated, signers] = list(inside(list(read(fs.readFileSync(depositFile)))[1]));
const content = inside(list(encapsulated)[1]).content;
const [, sid, digestAlgorithm, signedAttrs, , signature] = list(inside(signers));
const sender = new crypto.X509Certificate(fs.readFileSync(senderFile)).publicKey;
assert(sid.content.equals(sha256(bits(sender)).subarray(0, 20)), 'somebody else signed');
const hashes = {
  '2.16.840.1.101.3.4.2.1': 'sha256', '2.16.840.1.101.3.4.2.2': 'sha384', '2.16.840.1.101.3.4.2.3': 'sha512',
};
const hash = hashes[algorithm(digestAlgorithm)];
const digest = attribute(signedAttrs, '1.2.840.113549.1.9.4').content;
assert(digest.equals(crypto.hash(hash, content, 'buffer')), 'the content is not what was signed');
const toVerify = Buffer.concat([Buffer.from([0x31]), signedAttrs.der.subarray(1)]);
const prehash = sender.asymmetricKeyType === 'ec' ? hash : null; // ML-DSA and Ed25519 hash by themselves
assert(crypto.verify(prehash, toVerify, sender, signature.content), 'the signature is wrong');

// 2. The recipient's key. The composite's is the 64-byte seed of ML-KEM-768 and the 32-byte X25519 key.
const [, keyAlgorithm, secretKey] = list(read(pem(keyFile)));
const composite = algorithm(keyAlgorithm) === '1.3.6.1.5.5.7.6.58';
const ml = crypto.createPrivateKey(
  composite ? imported('ml-kem-768', 'raw-seed', secretKey.content.subarray(0, 64)) : fs.readFileSync(keyFile));
const x = composite && crypto.createPrivateKey(imported('x25519', 'raw-private', secretKey.content.subarray(64)));
const xBits = x ? bits(crypto.createPublicKey(x)) : Buffer.alloc(0);
const rid = sha256(Buffer.concat([bits(crypto.createPublicKey(ml)), xBits])).subarray(0, 20);

// 3. Its slot in AuthEnvelopedData (RFC 5083): KEMRecipientInfo (RFC 9629 §3) inside of OtherRecipientInfo, tag [4].
const [, recipients, encrypted, authAttrs, mac] = list(inside(list(read(content))[1]));
const slots = list(recipients).filter(({ tag }) => tag === 0xa4).map((each) => list(list(each)[1]));
const slot = slots.find((each) => each[1].content.equals(rid));
assert(slot, 'the deposit is for another key');
const [, , , kemct, kdf, kekLength, ...rest] = slot;
const [wrap, encryptedKey] = rest.slice(-2);

// 4. The shared secret. The composite's is SHA3-256(ss_M || ss_X || ct_X || pk_X || label), draft composite-kem.
const ctX = kemct.content.subarray(composite ? 1088 : kemct.content.length);
let shared = crypto.decapsulate(ml, kemct.content.subarray(0, kemct.content.length - ctX.length));
if (composite) {
  const theirs = crypto.createPublicKey(imported('x25519', 'raw-public', ctX));
  const ssX = crypto.diffieHellman({ privateKey: x, publicKey: theirs });
  shared = crypto.hash('sha3-256', Buffer.concat([shared, ssX, ctX, xBits, Buffer.from('\\.//^\\')]), 'buffer');
}

// 5. HKDF gives the wrapping key, that the content key (RFC 9629 §5: info is SEQUENCE { wrap, kekLength, [0] ukm }).
const other = Buffer.concat([wrap, kekLength, ...rest.slice(0, -2)].map(({ der }) => der));
const { length } = other;
const size = length < 0x80 ? [length] : length < 0x100 ? [0x81, length] : [0x82, length >> 8, length & 0xff];
const info = Buffer.concat([Buffer.from([0x30, ...size]), other]);
const kdfs = {
  '1.2.840.113549.1.9.16.3.28': 'sha256',
  '1.2.840.113549.1.9.16.3.29': 'sha384',
  '1.2.840.113549.1.9.16.3.30': 'sha512',
};
const kek = Buffer.from(crypto.hkdfSync(kdfs[algorithm(kdf)], shared, '', info, 32));
const unwrap = crypto.createDecipheriv('aes256-wrap', kek, Buffer.alloc(8, 0xa6));
const key = Buffer.concat([unwrap.update(encryptedKey.content), unwrap.final()]);

// 6. AES-256-GCM; its additional data are the authenticated attributes, tagged as a SET (RFC 5083 §2.2).
const [contentType, cipher, ciphertext] = list(encrypted);
const nonce = list(list(cipher)[1])[0].content;
const open = crypto.createDecipheriv('aes-256-gcm', key, nonce, { authTagLength: 16 });
open.setAAD(Buffer.concat([Buffer.from([0x31]), authAttrs.der.subarray(1)])).setAuthTag(mac.content);
const opened = Buffer.concat([open.update(ciphertext.content), open.final()]);

// 7. What was signed and what was authenticated agree: the type, and the context, which says who hands what to whom.
assert(attribute(authAttrs, '1.2.840.113549.1.9.3').content.equals(contentType.content), 'the type was exchanged');
const context = attribute(signedAttrs, CONTEXT);
assert(context.der.equals(attribute(authAttrs, CONTEXT).der), 'the envelope was made for another deposit');
const [, from, to, id, version] = list(context).map((each) => each.content);
const said = { from: `${from}`, to: `${to}`, key: `${id}`, version: version.readUIntBE(0, version.length) };

// 8. The key package: SymmetricKeyPackage (RFC 6031) ends with its keys, AsymmetricKeyPackage (RFC 5958) is them.
const type = dotted(contentType);
const symmetric = type === '1.2.840.113549.1.9.16.1.25';
const [first] = list(symmetric ? list(read(opened)).at(-1) : read(opened));
fs.writeFileSync(out, symmetric ? list(first).at(-1).content : first.der, { mode: 0o600 });
console.log(JSON.stringify({ ...said, type }));
