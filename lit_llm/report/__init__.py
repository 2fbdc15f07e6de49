"""One self-contained HTML page about a run, finished or not:
``lit_llm.report.html.write_report(run_dir)``."""
