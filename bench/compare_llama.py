"""Run this engine and llama.cpp (pip's llama-cpp-python) on the same files, interleaved, and print a table of medians.

    pip install llama-cpp-python        # builds llama.cpp for this machine
    cargo build --release -p orchestratord-engine --example speed
    python compare_llama.py target/release/examples/speed [--threads 1,2] [--rounds 3] [--sequences 1] FILE...

Each measurement is a process of its own, so that neither has the other's threads or memory. A prompt of 512 tokens in one
step, then 32 decoded tokens. The share is that of the read bandwidth which ours measured in its own run, and the same
bandwidth is taken for llama.cpp, so the two are comparable.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import time

PROMPT, DECODE = 512, 32


def llama(path, threads, sequences, repack):
    """One measurement of llama.cpp in this process, through the C interface: no logits are copied."""
    import llama_cpp as c

    c.llama_backend_init()
    model_params = c.llama_model_default_params()
    model_params.use_extra_bufts = repack
    model = c.llama_model_load_from_file(str(path).encode(), model_params)
    params = c.llama_context_default_params()
    params.n_ctx = (PROMPT + DECODE + 8) * sequences
    params.n_batch = params.n_ubatch = PROMPT
    params.n_seq_max = sequences
    params.n_threads = params.n_threads_batch = threads
    context = c.llama_init_from_model(model, params)
    vocab_len = c.llama_vocab_n_tokens(c.llama_model_get_vocab(model))
    memory = c.llama_get_memory(context)

    def step(rows):
        """Rows are (token, position, sequence); logits of the last of each sequence."""
        batch = c.llama_batch_init(len(rows), 0, 1)
        batch.n_tokens = len(rows)
        for i, (token, position, sequence) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, position, 1
            batch.seq_id[i][0] = sequence
            batch.logits[i] = i == len(rows) - 1 or sequences > 1
        assert c.llama_decode(context, batch) == 0
        c.llama_synchronize(context)
        c.llama_batch_free(batch)

    prompt_len = PROMPT if sequences == 1 else 1
    step([(1, 0, s) for s in range(sequences)])
    c.llama_memory_clear(memory, True)
    start = time.perf_counter()
    step([((i * 7919 + s * 31 + 1) % vocab_len, i, s) for s in range(sequences) for i in range(prompt_len)])
    prefill = time.perf_counter() - start
    start = time.perf_counter()
    for n in range(DECODE):
        step([((n * 31 + s) % vocab_len, prompt_len + n, s) for s in range(sequences)])
    decode = time.perf_counter() - start
    print(json.dumps({"prefill": sequences * prompt_len / prefill, "decode": sequences * DECODE / decode}))


def child(command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{command}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("speed", type=pathlib.Path)
    parser.add_argument("files", nargs="+", type=pathlib.Path)
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sequences", type=int, default=1)
    parser.add_argument("--no-repack", action="store_true",
                        help="llama.cpp keeps weights as they are in the file; its AMX path crashes on some machines")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.child:
        return llama(a.files[0], int(a.threads), a.sequences, not a.no_repack)
    print("file,threads,sequences,read_gb_s,prefill,llama_prefill,ratio,decode,llama_decode,ratio,share,llama_share")
    for path in a.files:
        for threads in map(int, a.threads.split(",")):
            ours, theirs = [], []
            for _ in range(a.rounds):
                flags = ["--threads", str(threads), "--sequences", str(a.sequences)]
                theirs.append(child([sys.executable, __file__, str(a.speed), str(path), "--child", *flags,
                                     *(["--no-repack"] if a.no_repack else [])]))
                ours.append(child([str(a.speed), str(path), *flags, "--prompt", str(PROMPT), "--decode", str(DECODE)]))
            o = {key: statistics.median(run[key] for run in ours) for key in ours[0]}
            t = {key: statistics.median(run[key] for run in theirs) for key in theirs[0]}
            bandwidth = statistics.median(run["read_gb_s"] for run in ours)
            shares = [x["decode"] / a.sequences * o["step_bytes"] / bandwidth / 1e9 for x in (o, t)]
            print(f"{path.stem},{threads},{a.sequences},{bandwidth:.1f},{o['prefill']:.1f},{t['prefill']:.1f},"
                  f"{o['prefill'] / t['prefill']:.2f},{o['decode']:.2f},{t['decode']:.2f},"
                  f"{o['decode'] / t['decode']:.2f},{shares[0]:.2f},{shares[1]:.2f}", flush=True)


if __name__ == "__main__":
    main()
