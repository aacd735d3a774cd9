"""One measurement of llama.cpp through the C interface of its Python binding: no logits are copied.

Arguments: FILE THREADS SEQUENCES PROMPT DECODE [--no-repack]. Prints one line of JSON. The steps are those of
`orchestratord_engine::bench::measure`.
"""

import json
import sys
import time

import llama_cpp as c

path = sys.argv[1]
threads, sequences, prompt_len, decode_len = map(int, sys.argv[2:6])
c.llama_backend_init()
model_params = c.llama_model_default_params()
model_params.use_extra_bufts = "--no-repack" not in sys.argv
model = c.llama_model_load_from_file(path.encode(), model_params)
if not model:
    sys.exit("llama.cpp cannot load the file")
params = c.llama_context_default_params()
params.n_ctx = (prompt_len + decode_len + 8) * sequences
params.n_batch = params.n_ubatch = max(prompt_len, sequences)
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
    if c.llama_decode(context, batch) != 0:
        sys.exit("llama.cpp cannot decode")
    c.llama_synchronize(context)
    c.llama_batch_free(batch)


prompt_len = prompt_len if sequences == 1 else 1
step([(1, 0, s) for s in range(sequences)])
c.llama_memory_clear(memory, True)
start = time.perf_counter()
step([((i * 7919 + s * 31 + 1) % vocab_len, i, s) for s in range(sequences) for i in range(prompt_len)])
prefill = time.perf_counter() - start
start = time.perf_counter()
for n in range(decode_len):
    step([((n * 31 + s) % vocab_len, prompt_len + n, s) for s in range(sequences)])
decode = time.perf_counter() - start
print(json.dumps({
    "prefill_tokens_per_s": sequences * prompt_len / prefill,
    "decode_tokens_per_s": sequences * decode_len / decode,
}))
