#!/usr/bin/env python3
"""Tables of bench/cpu.sh's measurements, and which rows fall short of what is asked for.

    python3 bench/cpu_table.py LINES

Each line of LINES is one measurement as JSON, named by its `part`; each function below makes the section of one part.
"""

import json
import sys
from statistics import median

short = []


def must(what, value, least):
    """The value as text; remembered as short when it is."""
    if value < least:
        short.append(f"{what}: {value:.2f}, at least {least:g} is asked for")
    return f"{value:.2f}"


def table(head, rows):
    """Markdown, the head's columns parted by |."""
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")


def least_prefill(model):
    return 0.95 if model.endswith("bf16") else 1.1


def alone(lines):
    print("\n## One sequence: prefill of the prompt, then decode\n")
    rows = []
    for line in lines:
        for r in line["rows"]:
            name, llama = f"{line['model']}, {r['threads']} thread(s)", r.get("llama")
            share = r["bandwidth_share"]
            row = [line["model"], str(r["threads"]), f"{r['read_bytes_per_s'] / 1e9:.1f}"]
            if llama:
                prefill = r["prefill_tokens_per_s"] / llama["prefill_tokens_per_s"]
                decode = r["decode_tokens_per_s"] / llama["decode_tokens_per_s"]
                row += [f"{r['prefill_tokens_per_s']:.1f} / {llama['prefill_tokens_per_s']:.1f}",
                        must(f"prefill over llama.cpp's, {name}", prefill, least_prefill(line["model"])),
                        f"{r['decode_tokens_per_s']:.2f} / {llama['decode_tokens_per_s']:.2f}",
                        must(f"decode over llama.cpp's, {name}", decode, 1.0),
                        f"{share:.2f} / {share / decode:.2f}"]
            else:
                row += [f"{r['prefill_tokens_per_s']:.1f}", "", f"{r['decode_tokens_per_s']:.2f}", "", f"{share:.2f}"]
            rows.append(row)
    table(["file", "threads", "read, GB/s", "prefill, ours / llama.cpp, tok/s", "ratio", "decode, ours / llama.cpp, tok/s",
           "ratio", "share of bandwidth, ours / llama.cpp"], rows)


def sixteen(lines):
    print("\n## Sixteen sequences that decode together\n")
    rows = []
    for line in lines:
        for r in line["rows"]:
            row = [line["model"], str(r["threads"]), f"{r['decode_tokens_per_s']:.1f}", ""]
            if llama := r.get("llama"):
                row[2] += f" / {llama['decode_tokens_per_s']:.1f}"
                what = f"sixteen sequences over llama.cpp's, {line['model']}, {r['threads']} thread(s)"
                row[3] = must(what, r["decode_tokens_per_s"] / llama["decode_tokens_per_s"], 1.1)
            rows.append(row)
    table(["file", "threads", "decode, ours / llama.cpp, tok/s", "ratio"], rows)


def neighbour(lines):
    print("\n## Two threads, while another process keeps one processor half busy (5 ms of work, 5 ms of sleep)\n")
    rows = []
    for model in dict.fromkeys(line["model"] for line in lines):
        def of(case, pick):
            return median(pick(line["rows"][0]) for line in lines if (line["model"], line["case"]) == (model, case))
        ours = {case: of(case, lambda r: r["decode_tokens_per_s"]) for case in ("undisturbed", "disturbed")}
        row = [model, f"{ours['undisturbed']:.2f}", f"{ours['disturbed']:.2f}", f"{ours['disturbed'] / ours['undisturbed']:.2f}"]
        if "llama" in lines[0]["rows"][0]:
            theirs = {case: of(case, lambda r: r["llama"]["decode_tokens_per_s"]) for case in ours}
            ratio = ours["disturbed"] / theirs["disturbed"]
            row += [f"{theirs['undisturbed']:.2f}", f"{theirs['disturbed']:.2f}",
                    f"{theirs['disturbed'] / theirs['undisturbed']:.2f}",
                    must(f"beside a neighbour, over llama.cpp's, {model}", ratio, 2.0)]
        else:
            row += [""] * 4
        rows.append(row)
    table(["file", "ours undisturbed, tok/s", "disturbed", "kept", "llama.cpp undisturbed, tok/s", "disturbed", "kept",
           "ours / llama.cpp, disturbed"], rows)
    print("\nThe goal for what is kept of the undisturbed rate is 0.7.")


def start(lines):
    print("\n## From executing the server to its first 202, file in the page cache\n")
    for line in lines:
        times = sorted(line["ms"])
        middle = median(times)
        if middle > 200:
            short.append(f"start to ready: {middle:.0f} ms, at most 200 is asked for")
        print(f"- {line['model']}: median {middle:.0f} ms, best {times[0]:.0f}, worst {times[-1]:.0f} of {len(times)}. "
              "Asked for: 200; the goal is 50.")


def memory(lines):
    print("\n## Memory beyond weights and KV cache, after a prompt of 512 tokens\n")
    for line in lines:
        beyond = (line["resident"] - line["kv"]) / 1e6
        if beyond > 100:
            short.append(f"memory beyond: {beyond:.1f} MB, at most 100 is asked for")
        print(f"- {line['model']}: {beyond:.1f} MB. Counted is everything resident (program, heap, stacks, buffers: "
              f"{line['resident'] / 1e6:.1f} MB, of that {line['anonymous'] / 1e6:.1f} MB anonymous) but the mapped pages of the "
              f"model's file, less the {line['kv'] / 1e6:.1f} MB that the server states as the session's KV cache. "
              "Asked for: 100; the goal is 30.")


def idle(lines):
    print("\n## A server that nobody asks anything\n")
    for line in lines:
        share = line["ns"] / line["seconds"] / 1e9
        if share > 0.005:
            short.append(f"an idle server uses {share:.1%} of a processor")
        print(f"- {line['model']}: {line['ns'] / 1e6:.2f} ms of processor time in {line['seconds']} s, {share:.3%} of one "
              "processor (all threads, as the scheduler counts them).")


def reactor(lines):
    print("\n## A status request while the engine decodes one sequence, on the same processors\n")
    rows = []
    for case in dict.fromkeys(line["case"] for line in lines):
        of = [line["report"] for line in lines if line["case"] == case]

        def middle(pick):
            return median(pick(report) for report in of)
        rows.append([case, *(f"{middle(lambda r: r['scrape'][at]):.0f}" for at in ("p50_us", "p90_us", "p99_us", "max_us")),
                     f"{middle(lambda r: r['loop_lag_max_us']):.0f}", f"{middle(lambda r: r['tokens_per_second']):.1f}"])
    table(["", "p50, us", "p90, us", "p99, us", "worst, us", "reactor's timer late at worst, us", "decode, tok/s"], rows)


def grammar(lines):
    print("\n## What a grammar costs in decode\n")
    rate = {}
    for line in lines:
        format_name, sequences = line["case"].split(", ")
        rate.setdefault((format_name, int(sequences)), []).append(line["report"]["tokens_per_second"])
    rows = []
    for sequences in sorted({sequences for _, sequences in rate}):
        plain = median(rate["none", sequences])
        row = [str(sequences), f"{plain:.1f}"]
        for format_name in ("text", "objects"):
            masked = median(rate[format_name, sequences])
            row += [f"{masked:.1f}", f"{masked / plain:.3f}"]
        rows.append(row)
    table(["sequences", "no grammar, tok/s", "schema of a long text", "over none", "schema of small objects", "over none"], rows)


def determinism(lines):
    print("\n## What determinism costs: lone rows, two threads\n")
    rows, step = [], {}
    for r in lines[0]["rows"]:
        ours, other = step.get(r["tensor_type"], (0, 0))
        step[r["tensor_type"]] = ours + r["count"] * r["rows_us"], other + r["count"] * r["columns_us"]
        rows.append([r["tensor_type"], r["what"], f"{r['outputs']} by {r['cols']}", f"{r['rows_us']:.0f}",
                     f"{r['columns_us']:.0f}", f"{r['columns_us'] / r['rows_us']:.2f}"])
    for kind, (ours, other) in step.items():
        rows.append([kind, "**all of a step**", "", f"{ours:.0f}", f"{other:.0f}", f"{other / ours:.2f}"])
    table(["weight", "product", "shape", "shared by rows (as it is), us", "by columns (sums split), us", "columns / rows"], rows)
    print("\nA ratio under 1 is time that splitting sums would save. It is a tax of determinism where the split has to follow the number of "
          "threads; one at fixed columns gives the same bits always.")


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    for section in (alone, sixteen, neighbour, start, memory, idle, reactor, grammar, determinism):
        if of := [line for line in lines if line["part"] == section.__name__]:
            section(of)
    print("\n## What falls short of what must be\n")
    print("\n".join(f"- {line}." for line in short) or "Nothing of what was measured.")


if __name__ == "__main__":
    main()
