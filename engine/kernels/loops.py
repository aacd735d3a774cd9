#!/usr/bin/env python3
"""Counts the instructions in the loops of compiled kernels: what a processor has to issue, known without having one.

    loops.py NVDISASM TARGET [REGEX]        e.g. loops.py .../bin/nvdisasm sm_90 'few_.*_1$'

NVDISASM is NVIDIA's disassembler (the wheel nvidia-cuda-nvdisasm has it), TARGET one of packs/, REGEX chooses kernels. For
each loop: where it begins and ends, what lies in it outside of loops within, and of these the kinds that matter. A loop that is
taken seldom (a tail, a slow path of a division) looks like any other: read them beside the source.
"""

import collections
import lzma
import pathlib
import re
import struct
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).parent
KINDS = {
    "products": r"HMMA|IMMA",
    "copies": r"LDGSTS",
    "shared": r"LDS|STS|LDSM",
    "global": r"LDG|STG|ATOM.*|RED",
    "floats": r"FADD|FMUL|FFMA|FMNMX|FSEL|MUFU|F2F.*|I2F.*|F2I.*|HADD2|HFMA2|HMUL2",
    "spilled": r"LDL|STL",
}


def cubins(target):
    """The compiled bytes of each source in a pack: see build.py."""
    pack = lzma.decompress((HERE / "packs" / f"{target}.lzma").read_bytes(), format=lzma.FORMAT_ALONE)
    at = 0
    while at < len(pack):
        name_len, code_len = struct.unpack_from("<II", pack, at)
        at += 8 + name_len
        yield pack[at : at + code_len]
        at += code_len


def kernels(nvdisasm, cubin):
    """Name and instructions of each kernel, and where its labels point."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([nvdisasm, "-c", file.name], capture_output=True, text=True, check=True).stdout
    name, instructions, labels = None, [], {}
    for line in text.splitlines():
        if section := re.match(r"\s*\.text\.(\w+):", line):
            if name:
                yield name, instructions, labels
            name, instructions, labels = section[1], [], {}
        elif label := re.match(r"\s*(\.L_\w+):", line):
            labels[label[1]] = len(instructions)
        elif instruction := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(.*?);", line):
            instructions.append(instruction[1])
    if name:
        yield name, instructions, labels


def loops(instructions, labels):
    """First and last instruction of each jump backwards; one to itself only fills the end of a kernel."""
    for last, instruction in enumerate(instructions):
        jump = re.search(r"BRA.*`\((\.L_\w+)\)", instruction)
        first = labels.get(jump[1], last) if jump else last
        if first < last:
            yield first, last


def kind(instruction):
    name = re.sub(r"^@!?U?PT?\d*\s+", "", instruction).split()[0].split(".")[0]
    return next((kind for kind, pattern in KINDS.items() if re.fullmatch(pattern, name)), "other")


def main():
    if len(sys.argv) not in (3, 4):
        raise SystemExit(__doc__)
    nvdisasm, target, wanted = (*sys.argv[1:], ".")[:3]
    for cubin in cubins(target):
        for name, instructions, labels in kernels(nvdisasm, cubin):
            if not re.search(wanted, name):
                continue
            print(f"{name}: {len(instructions)} instructions")
            found = sorted(loops(instructions, labels))
            for first, last in found:
                within = [loop for loop in found if loop != (first, last) and first <= loop[0] and loop[1] <= last]
                own = [i for i in range(first, last + 1) if not any(a <= i <= b for a, b in within)]
                counts = collections.Counter(kind(instructions[i]) for i in own)
                kinds = ", ".join(f"{counts[k]} {k}" for k in [*KINDS, "other"] if counts[k])
                print(f"  {first:5} to {last:5}: {len(own):5} of its own: {kinds}")


main()
