#!/usr/bin/env python3
"""The XML API of Google Cloud Storage, in front of a server that knows the JSON API.

fake-gcs-server has the JSON API, with its conditions. Of the XML API, which clients of object stores speak,
it has reading alone. This adds the rest as Google documents it, each request by one of the JSON API:

    PUT object                     an upload; x-goog-if-generation-match becomes ifGenerationMatch, so that
                                   it is the server that decides, in one step, who wins
    DELETE object                  a deletion
    GET bucket?list-type=2         a list, page by page
    POST ?uploads, PUT ?partNumber=&uploadId=, POST and DELETE ?uploadId=
                                   parts are kept here, in files, and become one upload at the end
    GET and HEAD of an object      go through as they are, ranges, too

The server lets everybody in. Here a request must have a token that a service account has signed with its own key,
as Google takes them (RS256).

Started by scripts/store. With --no-conditions it forgets conditions: a store that must be refused.
"""

import argparse
import base64
import hashlib
import http.client
import json
import os
import pathlib
import shutil
import threading
import time
import urllib.parse
import uuid
import xml.etree.ElementTree as xml
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from xml.sax.saxutils import escape

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding

PART_BYTES_MIN = 5 << 20
BODY_BYTES_MAX = 1 << 30
UPLOAD_ID = frozenset("0123456789abcdef")


class Refused(Exception):
    """An answer other than success: status, Google's code for it, and words."""

    def __init__(self, status, code, message):
        super().__init__(code)
        self.status, self.code, self.message = status, code, message


def unpadded(text):
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


class Tokens:
    """Who is let in: anyone who holds the account's private key."""

    def __init__(self, account):
        account = json.loads(pathlib.Path(account).read_text())
        key = serialization.load_pem_private_key(account["private_key"].encode(), None)
        self.key, self.email, self.known = key.public_key(), account["client_email"], {}

    def check(self, header):
        kind, _, token = (header or "").partition(" ")
        if kind != "Bearer" or not token:
            raise Refused(401, "AuthenticationRequired", "Authentication required.")
        if self.known.get(token, 0) < time.time():
            self.known[token] = self.expiry(token)

    def expiry(self, token):
        refused = Refused(401, "AuthenticationRequired", "Invalid Credentials")
        try:
            signed, _, signature = token.rpartition(".")
            self.key.verify(unpadded(signature), signed.encode(), padding.PKCS1v15(), hashes.SHA256())
            claims = json.loads(unpadded(signed.partition(".")[2]))
            expiry = float(claims["exp"])
        except (InvalidSignature, ValueError, KeyError):
            raise refused from None
        if claims.get("iss") != self.email or expiry < time.time():
            raise refused
        return expiry


class Uploads:
    """Uploads in parts, each a folder: a restart does not lose them."""

    def __init__(self, root):
        self.root = pathlib.Path(root)

    def begin(self, key):
        number = uuid.uuid4().hex
        at = self.root / number
        at.mkdir(parents=True)
        (at / "key").write_text(key)
        return number

    def find(self, number, key):
        at = self.root / number
        if not UPLOAD_ID.issuperset(number) or not (at / "key").exists() or (at / "key").read_text() != key:
            raise Refused(404, "NoSuchUpload", "The requested upload was not found.")
        return at

    def part(self, at, number, body):
        etag = f'"{hashlib.md5(body).hexdigest()}"'
        draft = at / f"draft-{uuid.uuid4().hex}"
        draft.write_bytes(body)
        os.replace(draft, at / str(number))
        return etag

    def whole(self, at, listed):
        """What the parts make together; each must be there as it is named."""
        try:
            parts = [(int(part.findtext("{*}PartNumber")), part.findtext("{*}ETag"))
                     for part in xml.fromstring(listed).iterfind("{*}Part")]
        except (xml.ParseError, TypeError, ValueError):
            raise Refused(400, "MalformedCompleteMultipartUploadRequest", "That is no list of parts.") from None
        if not parts or [n for n, _ in parts] != sorted({n for n, _ in parts}):
            raise Refused(400, "InvalidPartOrder", "Parts must be named once, in their order.")
        bodies = []
        for number, etag in parts:
            file = at / str(number)
            body = file.read_bytes() if file.exists() else None
            if body is None or hashlib.md5(body).hexdigest() != (etag or "").strip('"'):
                raise Refused(400, "InvalidPart", f"Part {number} was not found.")
            bodies.append(body)
        if any(len(body) < PART_BYTES_MIN for body in bodies[:-1]):
            raise Refused(400, "EntityTooSmall", "A part but the last is smaller than 5 MiB.")
        return b"".join(bodies)


class Server:
    """The server behind, by its JSON API."""

    def __init__(self, port):
        self.port, self.own = port, threading.local()

    def ask(self, method, target, body=None, headers=None):
        """Sends a request, on this thread's connection; the answer, not read yet."""
        if getattr(self.own, "connection", None) is None:
            self.own.connection = http.client.HTTPConnection("127.0.0.1", self.port)
        try:
            self.own.connection.request(method, target, body, headers or {})
            return self.own.connection.getresponse()
        except OSError:
            self.drop()
            raise

    def drop(self):
        """Ends this thread's connection."""
        if getattr(self.own, "connection", None) is not None:
            self.own.connection.close()
            self.own.connection = None

    def json(self, method, target, body=None, headers=None):
        answer = self.ask(method, target, body, headers)
        text = answer.read()
        if answer.status == 404:
            raise Refused(404, "NoSuchKey", "The specified key or bucket does not exist.")
        if answer.status == 412:
            raise Refused(412, "PreconditionFailed", "At least one of the conditions did not hold.")
        if answer.status != 200:
            raise Refused(500, "InternalError", f"{answer.status} of the server: {text[:200]!r}")
        return json.loads(text)

    def put(self, bucket, key, kind, body, generation):
        # It makes buckets as it goes; Google does not.
        self.json("GET", f"/storage/v1/b/{quote(bucket)}")
        query = {"uploadType": "multipart"} | ({} if generation is None else {"ifGenerationMatch": generation})
        mark = uuid.uuid4().hex
        head = json.dumps({"name": key, "contentType": kind})
        whole = b"".join([
            f"--{mark}\r\nContent-Type: application/json\r\n\r\n{head}\r\n".encode(),
            f"--{mark}\r\nContent-Type: {kind}\r\n\r\n".encode(), body, f"\r\n--{mark}--\r\n".encode()])
        return self.json("POST", f"/upload/storage/v1/b/{quote(bucket)}/o?{urllib.parse.urlencode(query)}", whole,
                         {"Content-Type": f"multipart/related; boundary={mark}"})

    def list(self, bucket, query):
        asked = {"prefix": query.get("prefix", ""), "delimiter": query.get("delimiter", ""),
                 "maxResults": query.get("max-keys", "1000")}
        if "continuation-token" in query:
            asked["pageToken"] = query["continuation-token"]
        if "start-after" in query:
            # Its own is the first that is listed; the next name there can be after this one.
            asked["startOffset"] = query["start-after"] + "\0"
        return self.json("GET", f"/storage/v1/b/{quote(bucket)}/o?{urllib.parse.urlencode(asked)}")


def quote(text):
    return urllib.parse.quote(text, safe="")


class Front(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def handle_any(self):
        try:
            body = self.read_body()
            self.server.tokens.check(self.headers.get("Authorization"))
            path, _, query = self.path.partition("?")
            query = dict(urllib.parse.parse_qsl(query, keep_blank_values=True))
            bucket, _, key = path.lstrip("/").partition("/")
            self.carry_out(urllib.parse.unquote(bucket), urllib.parse.unquote(key), query, body)
        except Refused as refused:
            self.answer(refused.status, f"<Error><Code>{refused.code}</Code>"
                                        f"<Message>{escape(refused.message)}</Message></Error>")
        except (OSError, http.client.HTTPException):
            # The server or the client has gone, in the middle or before; half an answer is none.
            self.server.behind.drop()
            self.close_connection = True
        except Exception:
            self.close_connection = True
            raise

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_any

    def read_body(self):
        length = int(self.headers.get("Content-Length") or 0)
        if not 0 <= length <= BODY_BYTES_MAX:
            raise Refused(400, "EntityTooLarge", "The body is too large.")
        body = self.rfile.read(length)
        if len(body) < length:
            # It broke in the middle: nothing may come of it.
            raise ConnectionError("half a body")
        return body

    def carry_out(self, bucket, key, query, body):
        behind, uploads = self.server.behind, self.server.uploads
        match self.command:
            case "GET" if not key and query.get("list-type") == "2":
                self.answer(200, listing(bucket, query, behind.list(bucket, query)))
            case "GET" | "HEAD" if key:
                self.pass_on(bucket, key)
            case "PUT" if key and "uploadId" in query:
                etag = uploads.part(uploads.find(query["uploadId"], f"{bucket}/{key}"),
                                    part_number(query.get("partNumber", "")), body)
                self.answer(200, headers={"ETag": etag})
            case "PUT" if key:
                put = self.put(bucket, key, body, self.headers.get("x-goog-if-generation-match"))
                self.answer(200, headers={"ETag": quoted(put["etag"]), "x-goog-generation": put["generation"]})
            case "POST" if key and "uploads" in query:
                behind.json("GET", f"/storage/v1/b/{quote(bucket)}")
                number = uploads.begin(f"{bucket}/{key}")
                self.answer(200, f"<InitiateMultipartUploadResult><Bucket>{escape(bucket)}</Bucket>"
                                 f"<Key>{escape(key)}</Key><UploadId>{number}</UploadId>"
                                 "</InitiateMultipartUploadResult>")
            case "POST" if key and "uploadId" in query:
                at = uploads.find(query["uploadId"], f"{bucket}/{key}")
                put = self.put(bucket, key, uploads.whole(at, body), None)
                shutil.rmtree(at, ignore_errors=True)
                self.answer(200, f"<CompleteMultipartUploadResult><Bucket>{escape(bucket)}</Bucket>"
                                 f"<Key>{escape(key)}</Key><ETag>{escape(quoted(put['etag']))}</ETag>"
                                 "</CompleteMultipartUploadResult>",
                            headers={"x-goog-generation": put["generation"]})
            case "DELETE" if key and "uploadId" in query:
                shutil.rmtree(uploads.find(query["uploadId"], f"{bucket}/{key}"), ignore_errors=True)
                self.answer(204)
            case "DELETE" if key:
                behind.json("DELETE", f"/storage/v1/b/{quote(bucket)}/o/{quote(key)}")
                self.answer(204)
            case _:
                raise Refused(501, "NotImplemented", "This server for tests has no such request.")

    def put(self, bucket, key, body, generation):
        if self.server.forgets:
            generation = None
        return self.server.behind.put(bucket, key, "application/octet-stream", body, generation)

    def pass_on(self, bucket, key):
        wanted = ("Range", "If-Match", "If-None-Match", "If-Modified-Since", "If-Unmodified-Since")
        headers = {name: self.headers[name] for name in wanted if name in self.headers}
        answer = self.server.behind.ask(self.command, f"/{quote(bucket)}/{quote(key)}", None, headers)
        body = answer.read()
        if answer.status == 404:
            raise Refused(404, "NoSuchKey", "The specified key does not exist.")
        passed = {name: value for name, value in answer.getheaders()
                  if name.lower() not in ("content-length", "connection", "date", "transfer-encoding")}
        length = answer.getheader("Content-Length") if self.command == "HEAD" else None
        self.answer(answer.status, body, passed, length)

    def answer(self, status, body=b"", headers=None, length=None):
        if isinstance(body, str):
            body = ('<?xml version="1.0" encoding="UTF-8"?>' + body).encode()
        self.send_response(status)
        for name, value in (headers or {"Content-Type": "application/xml"}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)) if length is None else length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def part_number(text):
    if not text.isdecimal() or not 1 <= int(text) <= 10000:
        raise Refused(400, "InvalidPartNumber", "Parts have numbers from 1 to 10000.")
    return int(text)


def quoted(etag):
    return '"' + etag.strip('"') + '"'


def listing(bucket, query, found):
    """A list as the XML API has it."""
    def item(entry):
        return (f"<Contents><Key>{escape(entry['name'])}</Key><Generation>{entry['generation']}</Generation>"
                f"<LastModified>{entry['updated']}</LastModified><ETag>{escape(quoted(entry['etag']))}</ETag>"
                f"<Size>{entry['size']}</Size></Contents>")
    token = found.get("nextPageToken")
    following = f"<NextContinuationToken>{escape(token)}</NextContinuationToken>" if token else ""
    common = "".join(f"<CommonPrefixes><Prefix>{escape(prefix)}</Prefix></CommonPrefixes>"
                     for prefix in found.get("prefixes", []))
    return (f"<ListBucketResult><Name>{escape(bucket)}</Name><Prefix>{escape(query.get('prefix', ''))}</Prefix>"
            f"<IsTruncated>{'true' if token else 'false'}</IsTruncated>{following}"
            + "".join(map(item, found.get("items", []))) + common + "</ListBucketResult>")


class Listener(ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = True


def main():
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--listen", required=True, metavar="IP:PORT")
    options.add_argument("--server", required=True, type=int, metavar="PORT", help="the server's, on 127.0.0.1")
    options.add_argument("--account", required=True, metavar="FILE", help="the service account that is let in")
    options.add_argument("--parts", required=True, metavar="DIR", help="where parts of uploads are kept")
    options.add_argument("--no-conditions", action="store_true", help="forget conditions")
    options = options.parse_args()
    address, _, port = options.listen.rpartition(":")
    front = Listener((address, int(port)), Front)
    front.behind, front.uploads = Server(options.server), Uploads(options.parts)
    front.tokens, front.forgets = Tokens(options.account), options.no_conditions
    front.serve_forever()


if __name__ == "__main__":
    main()
