"""A server of HTTP on this machine, for as long as a test asks it."""

import threading
from http.server import ThreadingHTTPServer


class Loopback:
    """What takes requests while it is entered; `handler` gives the class that answers them. It has
    the same port each time."""

    port = 0  # any, until the first time
    path = ""  # of `url`

    def __enter__(self):
        self.server = ThreadingHTTPServer(("127.0.0.1", self.port), self.handler())
        self.server.owner, self.port = self, self.server.server_port
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}{self.path}"
