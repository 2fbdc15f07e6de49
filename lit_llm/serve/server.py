"""Builds the server of ``lit_llm serve CKPT`` from its options."""

from __future__ import annotations

import argparse
from pathlib import Path

from lit_llm.errors import UserError
from lit_llm.people.gate import Gate
from lit_llm.people.store.database import Store
from lit_llm.serve.options import server_parser


def run_server(args: list[str]) -> None:
    """Parse the options, load the model and serve until a signal.

    Raises:
        UserError: a mistake in the options, or a checkpoint that does not load.
        SystemExit: the engine has died; the status is `run.ENGINE_FAILED`.
    """
    options = server_parser().parse_args(args)
    # After the options: these imports take seconds.
    from lit_llm.serve.api.service import Service
    from lit_llm.serve.loading import load_served
    from lit_llm.serve.run import Listening, is_loopback, run_service

    store = Store(options.store)
    gate = Gate(store, options.no_keys)
    local = is_loopback(options.host)
    _check_address(options, gate, local)
    model = load_served(options.ckpt, options.name or Path(options.ckpt).name, options.device)
    service = Service(
        {model.name: model},
        gate,
        unknown=options.unknown,
        prefix_scope=options.prefix_scope,
        store_texts=options.store_texts,
        loopback=local,
    )
    listening = Listening(
        options.host,
        options.port,
        options.grace,
        options.root_path,
        options.trusted_proxy,
        options.retention_days,
    )
    status = run_service(service, listening)
    store.close()
    if status:
        raise SystemExit(status)


def _check_address(options: argparse.Namespace, gate: Gate, local: bool) -> None:
    """Raise UserError if people on the network could use the model without a key."""
    if not local and not options.no_keys and not gate.keys.exist():
        raise UserError(
            f"--host {options.host}: others can reach this address, and there is no key: make one "
            "with lit_llm serve keys create NAME, or say --no_keys"
        )
