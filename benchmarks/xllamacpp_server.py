"""llama.cpp's server from the package xllamacpp, for benchmarks/serve.py.

    python benchmarks/xllamacpp_server.py FILE.gguf PORT REQUESTS POSITIONS THREADS

It runs in an environment of its own, with nothing else of ours.
"""

from __future__ import annotations

import sys
import threading


def main() -> None:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = sys.argv[1]
    params.port, params.n_parallel, params.n_ctx, params.cpuparams.n_threads = map(
        int, sys.argv[2:6]
    )
    params.cpuparams_batch.n_threads = params.cpuparams.n_threads
    params.kv_unified = False
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
