"""The servers of the tests end with the test, and so do their threads."""

import http.client
import socket
import threading
from http.server import BaseHTTPRequestHandler

import pytest
from hub_server import HubServer
from llm_server import LLMServer
from loopback import Loopback


class Slow(Loopback):
    "Writes without end, as a file that is loaded when the test is over."

    def handler(self):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200)
                self.end_headers()
                while True:
                    self.wfile.write(bytes(65536))

            def log_message(self, *_):
                pass

        return Handler


@pytest.mark.parametrize("make", [lambda: HubServer({}), lambda: LLMServer({}), Slow],
                         ids=["hub", "language model", "without end"])
def test_a_server_leaves_no_thread(make):
    "A connection that is kept, one that asked nothing, and one in the middle of an answer."
    before, server = {*threading.enumerate()}, make()
    with server:
        kept = http.client.HTTPConnection("127.0.0.1", server.port)
        kept.request("GET", "/")
        answer = kept.getresponse()
        answer.read(2)
        silent = socket.create_connection(("127.0.0.1", server.port))
    left = {*threading.enumerate()} - before
    kept.close()
    silent.close()
    assert not left, left
    with server:  # the same port again
        assert socket.create_connection(("127.0.0.1", server.port)).close() is None
