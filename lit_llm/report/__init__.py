"""HTML report of a run: ``lit_llm.report.html.write_report(run_dir)``.

The report is one self-contained file. It works for finished, running and killed runs.
"""
