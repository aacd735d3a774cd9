#!/usr/bin/env python3
"""Runs the README's shell blocks command by command, and holds what they print against what the README says.

A line `#=> …` after a command is a line of its output; the ones that begin so must come in this order, with others between
them. `…` stands for anything. Environment: URL and KEY of a server, and a PATH with the binary.

    ci/transcript.py README.md 'Use it' 'Without a server'
"""

import re
import subprocess
import sys


def block(text, title):
    """The first shell block under a heading."""
    section = re.search(rf"^## {re.escape(title)}$(.*?)(?=^## |\Z)", text, re.M | re.S)
    found = section and re.search(r"^```sh\n(.*?)^```$", section[1], re.M | re.S)
    if not found:
        raise SystemExit(f"there is no shell block under {title!r}")
    return found[1].splitlines()


def commands(lines):
    """Commands, with the lines that they are to print."""
    command, found = [], []
    for line in lines:
        if line.startswith("#=> "):
            if not found or command:
                raise SystemExit(f"output without a command: {line}")
            found[-1][1].append(line[4:])
        elif command or (line.strip() and not line.startswith("#")):
            command.append(line)
            whole = "\n".join(command)
            if not whole.endswith("\\") and subprocess.run(["bash", "-n", "-c", whole], capture_output=True).returncode == 0:
                found.append((whole, []))
                command = []
    if command:
        raise SystemExit(f"a command does not end: {command[0]}")
    return found


def missing(wanted, said):
    """The first line that did not come; none when all did, in their order."""
    rest = iter(said.splitlines())
    for line in wanted:
        pattern = re.compile(".*".join(map(re.escape, line.split("…"))))
        if not any(pattern.fullmatch(one.rstrip()) for one in rest):
            return line
    return None


def main(path, *titles):
    text, count, held = open(path, encoding="utf-8").read(), 0, 0
    for title in titles:
        for command, wanted in commands(block(text, title)):
            print(f"$ {command}", flush=True)
            # An error status of HTTP is an error here.
            whole = 'curl() { command curl --fail --max-time 120 "$@"; }\n' + command
            run = subprocess.run(["bash", "-c", whole], capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL)
            if run.returncode != 0:
                raise SystemExit(f"exit status {run.returncode}\n{run.stdout[-2000:]}{run.stderr[-2000:]}")
            line = missing(wanted, run.stdout)
            if line is not None:
                raise SystemExit(f"it did not print, at its place:\n{line}\nbut:\n{run.stdout[-4000:]}")
            count, held = count + 1, held + len(wanted)
    if held < count:
        raise SystemExit("most commands say nothing of what they print")
    print(f"{count} commands, {held} lines of output as {path} has them")


main(*sys.argv[1:])
