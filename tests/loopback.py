"""A server of HTTP on this machine, for as long as a test asks it."""

import socket
import sys
import threading
from contextlib import suppress
from http.server import ThreadingHTTPServer


class _Server(ThreadingHTTPServer):
    "Ends with all of its connections, and the threads that wait on them."

    daemon_threads = False  # closing waits for them

    def __init__(self, *given):
        self.connections = set()
        super().__init__(*given)

    def process_request(self, request, address):
        self.connections.add(request)
        super().process_request(request, address)

    def shutdown_request(self, request):
        self.connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, *given):
        if not isinstance(sys.exc_info()[1], OSError):  # who asked has gone, or the test is over
            super().handle_error(*given)

    def server_close(self):
        for connection in [*self.connections]:
            with suppress(OSError):  # it is closed already
                connection.shutdown(socket.SHUT_RDWR)
        super().server_close()


class Loopback:
    """What takes requests while it is entered; `handler` gives the class that answers them. It has
    the same port each time, and leaves no thread."""

    port = 0  # any, until the first time
    path = ""  # of `url`

    def __enter__(self):
        self.server = _Server(("127.0.0.1", self.port), self.handler())
        self.server.owner, self.port = self, self.server.server_port
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}{self.path}"
