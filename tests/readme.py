"`make readme`: README.md is nbs/index.ipynb, rendered, with its links read from the top of the repository"
import posixpath, re
from pathlib import Path
from nbconvert import MarkdownExporter
from nbformat import read

root = Path(__file__).parents[1]


def render()->tuple[str, dict]: # README's text, and the pictures its cells made: {path: bytes}
    "What README.md should be"
    notebook = read(root/'nbs/index.ipynb', as_version=4)
    notebook.cells = [cell for cell in notebook.cells if not cell.source.startswith('#| hide')]
    for cell in notebook.cells: cell.source = re.sub(r'^#\|.*\n', '', cell.source, flags=re.M)
    text, extras = MarkdownExporter().from_notebook_node(notebook, {'unique_key': 'index', 'output_files_dir': 'images'})
    link = lambda found: f'{found[1]}{posixpath.normpath("nbs/" + found[2])}{found[3]}'
    text = re.sub(r'(\]\(|src="|href=")(?!https?:|#)([^)"\s]+)([)"\s])', link, text)
    return text.strip() + '\n', {root/'nbs'/name: data for name, data in extras.get('outputs', {}).items()}


if __name__ == '__main__':
    text, pictures = render()
    (root/'README.md').write_text(text, encoding='utf-8')
    for path, data in pictures.items(): path.write_bytes(data)
