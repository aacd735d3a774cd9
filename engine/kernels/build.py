#!/usr/bin/env python3
"""Compiles the kernels for every target with NVRTC, without a GPU, a toolkit or a C compiler.

    build.py NVRTC_FOLDER            writes kernels.lock and packs/
    build.py NVRTC_FOLDER --check    compiles and compares; fails on any difference

NVRTC_FOLDER holds libnvrtc.so.12 and its builtins: `nvidia/cuda_nvrtc/lib` of the wheel that ci/kernels.sh pins.

The lock is a line a kernel and target: registers, bytes of spills, stack and shared memory, as ptxas says them, then for
each source its SHA-256 and for each target the SHA-256 of what was compiled. So a spill cannot come in unseen, and whoever
compiles the same sources gets the same bytes.

A pack is what the binary carries for one target: each source's code, and before it the name's and the code's length in
32 bits, little-endian, and the name; all of it as one .lzma stream. What is compared is what comes out of the packs, for
compressors of different versions may well write different streams.
"""

import concurrent.futures
import ctypes
import hashlib
import lzma
import pathlib
import re
import struct
import sys

HERE = pathlib.Path(__file__).parent
LOCK = HERE / "kernels.lock"
PACKS = HERE / "packs"
# Code for chips of today, and PTX for those that come; a cubin runs on later chips of its generation, too.
TARGETS = ["sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120", "compute_80"]
OPTIONS = ["--std=c++17", "--fmad=false", "--ptxas-options=-v"]


class Nvrtc:
    """The few calls of the library that are needed."""

    def __init__(self, folder):
        # The library looks for its builtins by name only; once loaded, it finds them.
        ctypes.CDLL(str(next(folder.glob("libnvrtc-builtins.so.12*"))), mode=ctypes.RTLD_GLOBAL)
        self.library = ctypes.CDLL(str(folder / "libnvrtc.so.12"))
        major, minor = ctypes.c_int(), ctypes.c_int()
        self.check(self.library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)), "version")
        self.version = f"{major.value}.{minor.value}"

    @staticmethod
    def check(result, what):
        if result != 0:
            raise SystemExit(f"NVRTC: {what}: error {result}")

    def compile(self, name, source, headers, target):
        """The compiled bytes, and what ptxas said."""
        program = ctypes.c_void_p()
        texts = (ctypes.c_char_p * len(headers))(*[text.encode() for text in headers.values()])
        names = (ctypes.c_char_p * len(headers))(*[header.encode() for header in headers])
        created = self.library.nvrtcCreateProgram(
            ctypes.byref(program), source.encode(), name.encode(), len(headers), texts, names
        )
        self.check(created, "create")
        options = [option.encode() for option in [f"--gpu-architecture={target}", *OPTIONS]]
        result = self.library.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
        log = self.text(program, "ProgramLog").decode()
        if result != 0:
            raise SystemExit(f"{name} for {target}:\n{log}")
        code = self.text(program, "CUBIN" if target.startswith("sm_") else "PTX")
        self.library.nvrtcDestroyProgram(ctypes.byref(program))
        return code, log

    def text(self, program, what):
        size = ctypes.c_size_t()
        self.check(getattr(self.library, f"nvrtcGet{what}Size")(program, ctypes.byref(size)), what)
        buffer = ctypes.create_string_buffer(size.value)
        self.check(getattr(self.library, f"nvrtcGet{what}")(program, buffer), what)
        return buffer.raw


def resources(log):
    """Registers, spills, stack and shared memory of each kernel in ptxas's report."""
    found, kernel, stack, spills = {}, None, 0, 0
    for line in log.splitlines():
        if match := re.search(r"Compiling entry function '(\w+)'", line):
            kernel = match[1]
        if match := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            stack, spills = int(match[1]), int(match[2]) + int(match[3])
        if match := re.search(r"Used (\d+) registers", line):
            shared = re.search(r"(\d+) bytes smem", line)
            found[kernel] = (int(match[1]), spills, stack, int(shared[1]) if shared else 0)
    return found


def compiled_one(folder, name, source, headers, target):
    """Code and report of a source, in a process of its own: a compiler uses one processor."""
    return Nvrtc(folder).compile(name, source, headers, target)


def compiled(folder):
    """The text of the lock, and for each target what its pack unpacks to."""
    headers = {path.name: path.read_text() for path in sorted(HERE.glob("*.cuh"))}
    sources = {path.name: path.read_text() for path in sorted(HERE.glob("*.cu"))}
    packs = {target: bytearray() for target in TARGETS}
    lines = [f"# NVRTC {Nvrtc(folder).version} {' '.join(OPTIONS)}; by build.py, not by hand"]
    for name, text in sorted((headers | sources).items()):
        lines.append(f"source {name} sha256 {hashlib.sha256(text.encode()).hexdigest()}")
    with concurrent.futures.ProcessPoolExecutor() as pool:
        jobs = {
            (name, target): pool.submit(compiled_one, folder, name, source, headers, target)
            for name, source in sources.items()
            for target in TARGETS
        }
        for (name, target), job in jobs.items():
            code, log = job.result()
            stem = name.removesuffix(".cu").encode()
            packs[target] += struct.pack("<II", len(stem), len(code)) + stem + code
            lines.append(f"code {name} {target} bytes {len(code)} sha256 {hashlib.sha256(code).hexdigest()}")
            for kernel, (registers, spills, stack, shared) in sorted(resources(log).items()):
                lines.append(
                    f"kernel {kernel} {target} registers {registers} spills {spills} stack {stack} shared {shared}"
                )
    return "\n".join(lines) + "\n", {target: bytes(pack) for target, pack in packs.items()}


def different(made, packs):
    """What of the lock and the packs is not what the sources give."""
    kept = LOCK.read_text().splitlines()
    wrong = [("- " if line in kept else "+ ") + line for line in sorted(set(made.splitlines()) ^ set(kept))][:40]
    for target, pack in packs.items():
        path = PACKS / f"{target}.lzma"
        if not path.exists() or lzma.decompress(path.read_bytes()) != pack:
            wrong.append(f"{path.name} does not hold what was compiled")
    wrong += [f"{path.name} belongs to no target" for path in PACKS.iterdir() if path.stem not in packs]
    return wrong


def main():
    arguments = [argument for argument in sys.argv[1:] if argument != "--check"]
    if len(arguments) != 1:
        raise SystemExit(__doc__)
    made, packs = compiled(pathlib.Path(arguments[0]))
    if "--check" not in sys.argv:
        LOCK.write_text(made)
        PACKS.mkdir(exist_ok=True)
        for target, pack in packs.items():
            # An end mark instead of a length, as decoders of streams expect it.
            packed = lzma.compress(pack, format=lzma.FORMAT_ALONE, preset=9 | lzma.PRESET_EXTREME)
            (PACKS / f"{target}.lzma").write_bytes(packed)
        return
    if wrong := different(made, packs):
        raise SystemExit("the kernels are not what the sources give; run build.py without --check:\n" + "\n".join(wrong))
    print(f"{len(made.splitlines())} lines of kernels.lock and {len(packs)} packs hold")


if __name__ == "__main__":
    main()
