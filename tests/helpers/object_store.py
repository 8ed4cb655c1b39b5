"""An object store on this machine that speaks enough of S3 to read and list."""

import contextlib
import http.server
import threading
import urllib.parse
from collections.abc import Iterator

KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}


class Store:
    """Objects by "/bucket/key", and the requests that were made."""

    def __init__(self):
        self.objects: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.status = 200  # of answers; another one refuses them all


@contextlib.contextmanager
def serving() -> Iterator[tuple[Store, str]]:
    """Yields the store and its endpoint."""
    store = Store()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self):
            self._answer()

        do_GET = do_HEAD

        def log_message(self, *_):
            pass

        def _answer(self):
            store.requests.append((self.command, self.path))
            url = urllib.parse.urlsplit(self.path)
            path = urllib.parse.unquote(url.path)
            query = dict(urllib.parse.parse_qsl(url.query))
            if store.status != 200:
                self._send(store.status, b"")
            elif "list-type" in query:
                self._send(200, _listing(store.objects, path.strip("/"), query))
            elif path not in store.objects:
                self._send(404, b"")
            else:
                self._send_part(store.objects[path])

        def _send_part(self, content):
            wanted = self.headers.get("Range")
            if wanted is None:
                return self._send(200, content)
            first, last = wanted.removeprefix("bytes=").split("-")
            last = min(int(last or len(content)), len(content) - 1)
            place = f"bytes {first}-{last}/{len(content)}"
            self._send(206, content[int(first) : last + 1], {"Content-Range": place})

        def _send(self, status, content, headers=()):
            self.send_response(status)
            sent = {"Content-Length": len(content), "ETag": '"1"', **dict(headers)}
            sent["Last-Modified"] = "Wed, 21 Oct 2015 07:28:00 GMT"
            for name, value in sent.items():
                self.send_header(name, str(value))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield store, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _listing(objects, bucket, query):
    prefix, entries, folders = query.get("prefix", ""), [], set()
    for path, content in objects.items():
        key = path.removeprefix(f"/{bucket}/")
        if key == path or not key.startswith(prefix):
            continue
        rest = key[len(prefix) :]
        if query.get("delimiter") and "/" in rest:
            folders.add(prefix + rest.partition("/")[0] + "/")
            continue
        entries.append(
            f"<Contents><Key>{key}</Key><Size>{len(content)}</Size>"
            "<LastModified>2015-10-21T07:28:00.000Z</LastModified></Contents>"
        )
    entries += [
        f"<CommonPrefixes><Prefix>{folder}</Prefix></CommonPrefixes>"
        for folder in sorted(folders)
    ]
    count = len(entries)
    return (
        '<?xml version="1.0"?><ListBucketResult><IsTruncated>false</IsTruncated>'
        f"<KeyCount>{count}</KeyCount>{''.join(entries)}</ListBucketResult>"
    ).encode()
