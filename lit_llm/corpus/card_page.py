from pathlib import Path
def write_page(card, path: Path): path.write_text("x")
