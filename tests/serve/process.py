"""``python process.py STORE GRACE``: a server with a scripted engine in a process of its own.

It answers "slow" with a token after each line on its standard input, and all else at once.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from lit_llm.data.chat.chat_format import ChatFormat
from lit_llm.models.tokenizer import CHATML_TEMPLATE, Tokenizer
from lit_llm.people.gate import Gate
from lit_llm.people.store.database import Store
from lit_llm.serve.api.service import ServedModel, Service
from lit_llm.serve.run import Listening, run_service
from tests.serve.scripted import ScriptedEngine


def main() -> int:
    store, grace = sys.argv[1:]
    tokenizer = Tokenizer.train([Path(__file__).read_text(encoding="utf-8") * 3], 300)
    engine = ScriptedEngine(tokenizer, lambda request: "hello there")
    engine.pause.clear()
    engine.free = 1

    def read_orders() -> None:
        for line in sys.stdin:
            if line == "go\n":
                engine.pause.set()
            elif line == "die\n":
                engine.is_alive = False

    threading.Thread(target=read_orders, daemon=True).start()
    model = ServedModel("tiny", engine, tokenizer, ChatFormat(tokenizer, CHATML_TEMPLATE))
    service = Service({"tiny": model}, Gate(Store(store)))
    return run_service(service, Listening("127.0.0.1", 0, float(grace), "", 30))


if __name__ == "__main__":
    sys.exit(main())
