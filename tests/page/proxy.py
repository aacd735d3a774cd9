"""A proxy that can lose a connection in the middle of an answer, as networks do."""

import socket
import threading


class Proxy:
    """Hands bytes on. Once `lose` or `stall` is called, the next answer to such a request is cut or goes silent there."""

    def __init__(self, target):
        host, port = target.removeprefix("http://").split(":")
        self.target = (host, int(port))
        self.request, self.cut_after, self.cuts, self.cut_count = b"", None, True, 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = "http://127.0.0.1:%d" % self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def lose(self, request, after):
        """The connection is gone after so many bytes of the answer."""
        self.request, self.cuts, self.cut_after = request, True, after

    def stall(self, request, after):
        """Nothing more comes after so many bytes, and nobody says so."""
        self.request, self.cuts, self.cut_after = request, False, after

    def _accept(self):
        while True:
            client, _ = self.listener.accept()
            try:
                server = socket.create_connection(self.target)
            except OSError:
                client.close()
                continue
            left = {"bytes": None}
            threading.Thread(target=self._up, args=(client, server, left), daemon=True).start()
            threading.Thread(target=self._down, args=(client, server, left), daemon=True).start()

    def _up(self, client, server, left):
        try:
            while data := client.recv(65536):
                if self.cut_after is not None and data.startswith(self.request):
                    left["bytes"], self.cut_after = self.cut_after, None
                server.sendall(data)
        except OSError:
            pass
        self._close(client, server)

    def _down(self, client, server, left):
        try:
            while data := server.recv(1024):
                if left["bytes"] is not None:
                    left["bytes"] -= len(data)
                    if left["bytes"] < 0 and self.cuts:
                        self.cut_count += 1
                        break
                    if left["bytes"] < 0:
                        continue
                client.sendall(data)
        except OSError:
            pass
        self._close(client, server)

    @staticmethod
    def _close(*sockets):
        for one in sockets:
            try:
                one.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
