"""A server of its own for each test that needs special settings."""

import os
import re
import subprocess
import tempfile
import time
import urllib.request

KEY = "a-key-for-clients"


class Server:
    """Starts the binary with some settings; stops it at the end of a `with`."""

    def __init__(self, **settings):
        self.settings = {"listen": "127.0.0.1:0", "gateway_listen": "127.0.0.1:0", "api_keys": KEY, **settings}

    def __enter__(self):
        kept = {name: value for name, value in os.environ.items() if not name.startswith("ORCH_")}
        ours = {f"ORCH_{name.upper()}": str(value) for name, value in self.settings.items()}
        self.out = tempfile.TemporaryFile("w+")
        self.log = tempfile.TemporaryFile("w+")
        command = [os.environ["ORCHESTRATORD_BIN"]]
        self.process = subprocess.Popen(command, env={**kept, **ours}, stdout=self.out, stderr=self.log)
        self.main = "http://" + self._said(r"address +http://(\S+)")
        self.gateway = "http://" + self._said(r"gateway +http://([^/\s]+)/v1\n")
        return self

    def __exit__(self, *failure):
        self.process.kill()
        self.process.wait()
        if failure[0] is not None:
            self.log.seek(0)
            print(self.log.read()[-4000:])

    def _said(self, pattern):
        for _ in range(600):
            self.out.seek(0)
            if found := re.search(pattern, self.out.read()):
                return found[1]
            assert self.process.poll() is None, "the server ended"
            time.sleep(0.05)
        raise AssertionError(f"the server did not say {pattern}")

    def metric(self, name, **labels):
        """The sum of the series of that name with these labels."""
        with urllib.request.urlopen(f"{self.main}/metrics") as page:
            lines = page.read().decode().splitlines()
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        found = [line for line in lines if re.match(rf"{name}[{{ ]", line) and all(w in line for w in wanted)]
        return sum(float(line.rsplit(" ", 1)[1]) for line in found)

    def wait_until(self, what, holds):
        for _ in range(600):
            if holds():
                return
            time.sleep(0.05)
        raise AssertionError(f"waited in vain for {what}")
