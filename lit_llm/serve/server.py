"""Builds the server of ``lit_llm serve CKPT`` from its options."""

from __future__ import annotations

import argparse
import os

from lit_llm.errors import UserError
from lit_llm.people.gate import Gate
from lit_llm.people.store.database import Store
from lit_llm.serve.options import BACKEND_KEY, server_parser


def run_server(args: list[str]) -> None:
    """Parse the options, load the model and serve until a signal.

    Raises:
        UserError: a mistake in the options, or a checkpoint that does not load.
        SystemExit: the engine has died, with status `run.ENGINE_FAILED`; or ``--check``, with 0 if
            no answer depends on its company, else 1.
    """
    options = server_parser().parse_args(args)
    if options.ckpt is None and (options.check or not options.backend):
        raise UserError("give a checkpoint" + ("" if options.check else ", or --backend NAME=URL"))
    # After the options: these imports take seconds.
    from lit_llm.serve.api.backends.backend import Backend
    from lit_llm.serve.api.service import ServedModel, Service
    from lit_llm.serve.run import Listening, is_loopback, run_service

    if options.check:
        from lit_llm.serve.loading import check_engine

        raise SystemExit(0 if check_engine(options) else 1)
    store = Store(options.store)
    gate = Gate(store, options.no_keys)
    local = is_loopback(options.host)
    _check_address(options, gate, local)
    models: dict[str, ServedModel] = {}
    if options.ckpt is not None:
        from lit_llm.serve.loading import load_served

        models = load_served(options)
    backends = {}
    for given in options.backend:
        name, _, url = given.partition("=")
        if name in models or name in backends:
            raise UserError(f"--backend {given}: there is another model of this name")
        backends[name] = Backend(name, url.rstrip("/"), os.environ.get(BACKEND_KEY))
    service = Service(
        models,
        gate,
        backends=backends,
        unknown=options.unknown,
        prefix_scope=options.prefix_scope,
        store_texts=options.store_texts,
        loopback=local,
        hosts=options.allow_host,
    )
    listening = Listening(
        options.host,
        options.port,
        options.grace,
        options.root_path,
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
