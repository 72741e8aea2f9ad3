"""Look at the pages in a browser, as a reader would. Needs playwright and a chromium (apt install chromium); test_site.py looks at a few.

    python tests/browse.py SHOTS [PAGES]         pages as HTML, 1280 and 390 pixels wide; a picture of each goes into the folder SHOTS
    python tests/browse.py SHOTS --lab PAGES     JupyterLab, on a copy: open each, restart, run all (IN_TEST=1 in the environment makes them short)

PAGES are notebooks; all of them if none is named. A line for each thing that a reader would stumble over; their number at the end."""
import json, os, re, shutil, socket, subprocess, sys, tempfile, time, urllib.request
from argparse import ArgumentParser
from contextlib import contextmanager
from html import escape
from pathlib import Path
from nbconvert import HTMLExporter
from nbformat import read, write
from yaml import safe_load

root = Path(__file__).resolve().parents[1]
nbs = root/'nbs'
chromium = next((found for name in ('chromium', 'chromium-browser', 'google-chrome') if (found := shutil.which(name))), None)
patience = 40 * 60_000      # ms for one notebook

def all_pages(): return sorted(p for p in nbs.glob('**/*.ipynb') if not any(part[0] in '._' for part in p.relative_to(root).parts))

def name(page): return '-'.join(page.resolve().relative_to(nbs).with_suffix('').parts)

UNTOLD = 'No description has been provided for this image'

def spoken(cell):
    "The alternative text that the site will give to a cell's pictures; None if it has none"
    said = re.search(r'^#\| fig-alt: (.+)$', cell.source, re.M) if cell.cell_type == 'code' else None
    return safe_load(said[1]) if said else None

def as_html(page, folder, notebook=None):
    "A notebook, read from `page` if it is not given, as a page without the cells that the site hides"
    notebook = notebook or read(page, as_version=4)
    notebook.cells = [cell for cell in notebook.cells if not cell.source.startswith('#| hide')]
    text, _ = HTMLExporter(template_name='lab').from_notebook_node(notebook)
    said = iter([spoken(cell) for cell in notebook.cells for output in cell.get('outputs', []) if {'image/png', 'image/jpeg', 'image/svg+xml'} & set(output.get('data', {}))])
    text = re.sub(f'alt="{UNTOLD}"', lambda found: f'alt="{escape(next(said, None) or UNTOLD)}"', text)      # in nbconvert's own words, whatever the cell says
    out = folder/f'{name(page)}.html'
    out.write_text(text.replace('src="images/', f'src="{(nbs/"images").as_uri()}/').replace('src="../images/', f'src="{(nbs/"images").as_uri()}/'), encoding='utf-8')
    return out


WIDE = '''() => {
    const page = document.documentElement.clientWidth, scrolls = e => { for (; e; e = e.parentElement) if (['auto', 'scroll', 'hidden'].includes(getComputedStyle(e).overflowX)) return true }
    const wide = [...document.body.querySelectorAll('*')].filter(e => e.getBoundingClientRect().right > page + 1 && !scrolls(e))
    return document.documentElement.scrollWidth > page + 1 ? wide.slice(-3).map(e => `${e.tagName.toLowerCase()}.${e.className} ${Math.round(e.getBoundingClientRect().right)} px`) : []
}'''
SILENT = f'''() => [...document.images].filter(i => ['', '{UNTOLD}'].includes((i.alt || '').trim())).map(i => i.src.slice(0, 80))'''
EMPTY = '''() => [...document.images].filter(i => !i.src.startsWith('http') && !i.naturalWidth).map(i => i.src.slice(0, 80))'''

def look(browser, page, shots, folder):
    "What is wrong with a page at both widths"
    html = as_html(page, folder)
    for width in (1280, 390):
        tab = browser.new_page(viewport=dict(width=width, height=900))
        tab.route('http*://**', lambda route: route.abort())     # nothing from outside: fonts and formulas only
        tab.goto(html.as_uri(), wait_until='domcontentloaded')
        tab.wait_for_function('[...document.images].every(i => i.complete)')
        for question, fault in ((WIDE, 'is wider than the window'), (SILENT, 'has no alternative text'), (EMPTY, 'shows nothing')):
            for found in tab.evaluate(question): yield f'{width} px: {found} {fault}'
        tab.screenshot(path=shots/f'{name(page)}-{width}.png', full_page=True)
        tab.close()


def jupyter_lab(folder, root_dir, port):
    "A command that starts JupyterLab on `root_dir`, and what it adds to the environment; its settings lie in `folder`"
    for setting, value in (('notebook-extension/tracker', {'windowingMode': 'none'}),     # every cell is in the page, seen or not
                           ('apputils-extension/notification', {'fetchNews': 'false'})):
        path = folder/f'settings/@jupyterlab/{setting}.jupyterlab-settings'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value))
    command = [Path(sys.executable).with_name('jupyter'), 'lab', '--no-browser', '--allow-root', f'--port={port}', '--ip=127.0.0.1',
               '--IdentityProvider.token=', '--ServerApp.password=', f'--ServerApp.root_dir={root_dir}', '--LabApp.extension_manager=readonly',
               '--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate']
    homes = {key: str(folder/key.lower()) for key in ('JUPYTER_CONFIG_DIR', 'JUPYTER_DATA_DIR', 'JUPYTER_RUNTIME_DIR', 'IPYTHONDIR')}
    return command, homes | {'JUPYTERLAB_SETTINGS_DIR': str(folder/'settings')}

@contextmanager
def lab(folder):
    "JupyterLab on a copy of the project, so that nothing it saves stays; its address"
    for part in ('nbs', 'facecontrol'): shutil.copytree(root/part, folder/part, symlinks=True, ignore=shutil.ignore_patterns('cache', '.ipynb_checkpoints', '__pycache__'))
    for part in ('settings.ini', 'README.md', '_quarto.yml'): shutil.copy(root/part, folder)
    if (root/'runs').exists(): (folder/'runs').symlink_to(root/'runs')
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    command, homes = jupyter_lab(folder/'lab', folder, port)
    env = os.environ | homes | dict(PYTHONPATH=str(folder), HF_HUB_OFFLINE='1')
    with open(folder/'lab.log', 'w') as log:
        server = subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=log)
        try:
            for _ in range(240):
                try: urllib.request.urlopen(f'http://127.0.0.1:{port}/lab', timeout=5).close()
                except OSError: time.sleep(.5)
                else: break
            else: raise SystemExit('JupyterLab never answered:\n' + (folder/'lab.log').read_text())
            yield f'http://127.0.0.1:{port}/lab'
        finally:
            server.terminate()
            server.wait(30)

def without_hub_and_gpu(path):
    "Leave out the cells that the tests leave out, too"
    notebook = read(path, as_version=4)
    notebook.cells = [cell for cell in notebook.cells if not cell.source.startswith(('#| slow', '#| gpu'))]
    write(notebook, path)

ERRORS = '''() => [...document.querySelectorAll('[data-mime-type="application/vnd.jupyter.error"]')].map(e => e.innerText.slice(-600))'''
LOUD = '''() => [...document.querySelectorAll('[data-mime-type="application/vnd.jupyter.stderr"]')].map(e => e.innerText.slice(0, 200))'''
NOT_RUN = '''() => [...document.querySelectorAll('.jp-CodeCell .jp-InputArea-prompt')].filter(e => !/\\d/.test(e.innerText)).length'''

def run_all(browser, page, shots, folder, address):
    "What is wrong with a page after restart and run all"
    from playwright.sync_api import TimeoutError
    path = page.resolve().relative_to(root)
    without_hub_and_gpu(folder/path)
    tab = browser.new_page(viewport=dict(width=1280, height=1000))
    tab.set_default_timeout(60_000)
    tab.goto(f'{address}/tree/{path.as_posix()}?reset')
    tab.get_by_text('Python 3 (ipykernel) | Idle').wait_for()
    tab.get_by_role('menuitem', name='Run', exact=True).click()
    tab.get_by_text('Restart Kernel and Run All Cells…', exact=True).click()
    tab.locator('.jp-Dialog .jp-mod-accept').click()
    try: tab.wait_for_function('[...document.querySelectorAll(".jp-InputArea-prompt")].some(e => /[*\\d]/.test(e.innerText))')      # a short page is through before we look
    except TimeoutError: yield 'no cell began to run'
    tab.wait_for_function('![...document.querySelectorAll(".jp-InputArea-prompt")].some(e => e.innerText.includes("*"))', timeout=patience)
    for found in tab.evaluate(ERRORS): yield f'error: {found}'
    for found in tab.evaluate(LOUD):
        if '%|' not in found: yield f'on the error stream: {found}'      # progress bars may go there
    if count := tab.evaluate(NOT_RUN): yield f'{count} cells were not run'
    for found in tab.evaluate(EMPTY): yield f'{found} shows nothing'
    if count := tab.evaluate('() => document.querySelectorAll(".jupyter-widgets-disconnected").length'): yield f'{count} widgets are not alive'
    tab.screenshot(path=shots/f'{name(page)}-lab.png')
    tab.close()


def main():
    from playwright.sync_api import sync_playwright
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('shots', type=Path, help='folder for pictures of what was seen')
    parser.add_argument('pages', type=Path, nargs='*', help='notebooks; all if none is named')
    parser.add_argument('--lab', action='store_true', help='run them in JupyterLab')
    given = parser.parse_intermixed_args()      # PAGES may come after --lab
    if not chromium: raise SystemExit('no chromium on this machine: apt install chromium')
    given.shots.mkdir(parents=True, exist_ok=True)
    count = 0
    with sync_playwright() as p, tempfile.TemporaryDirectory() as folder:
        folder, browser = Path(folder), p.chromium.launch(executable_path=chromium, args=['--no-sandbox'])
        def tell(page, faults):
            nonlocal count
            faults = list(faults)
            count += len(faults)
            print(f'{name(page)}: {"nothing" if not faults else ""}', *faults, sep='\n  ' if faults else '', flush=True)
        if given.lab:
            with lab(folder) as address:
                for page in given.pages or all_pages(): tell(page, run_all(browser, page, given.shots, folder, address))
        else:
            for page in given.pages or all_pages(): tell(page, look(browser, page, given.shots, folder))
        browser.close()
    print(f'{count} things to look at; pictures are in {given.shots}')
    sys.exit(count > 0)


if __name__ == '__main__': main()
