"""What runs in the processes of a box: the standard library alone, imported without lit_llm.

A fresh interpreter imports this folder as the package ``inside`` (`box.py` starts it), because
importing lit_llm would take three times as long as the interpreter itself.
"""
