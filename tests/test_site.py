"The course as one thing: its table of contents, links, pictures, words, cells, and the way into Colab"
import ast, builtins, importlib.util, io, os, re, subprocess, sys
from configparser import ConfigParser
from importlib.metadata import version
from pathlib import Path
import browse
import nbformat
import pytest
import yaml

root = Path(__file__).parents[1]
nbs = root/'nbs'
pages = sorted(p for p in nbs.glob('**/*.ipynb') if not any(part[0] in '._' for part in p.relative_to(root).parts))
each = pytest.mark.parametrize('page', pages, ids=lambda p: p.stem)
settings = ConfigParser()
settings.read(root/'settings.ini', encoding='utf-8')
ini = settings['DEFAULT']

def cells(page): return nbformat.read(page, as_version=4).cells

def prose(page):
    "A page's markdown, without the code in it"
    text = '\n\n'.join(cell.source for cell in cells(page) if cell.cell_type == 'markdown')
    return re.sub(r'`[^`\n]*`', '`', re.sub(r'^```.*?^```', '', re.sub(r'^    .*$', '', text, flags=re.M), flags=re.S | re.M))

def links(page):
    "Where its links and pictures lead"
    return re.findall(r'\]\(([^)\s]+)(?: "[^"]*")?\)', prose(page)) + re.findall(r'(?:src|href)="([^"]+)"', prose(page))

def relative(page): return [link for link in links(page) if not re.match(r'[a-z]+:|#', link)]


# Keys that Quarto 1.x knows, of those a site like this may use: src/resources/schema/project.yml and definitions.yml (base-website,
# sidebar-contents, navigation-item-object) in github.com/quarto-dev/quarto-cli, and quarto.org/docs/reference/formats/html.html
KEYS = dict(
    top='project metadata-files lang website format execute',
    project='title type render execute-dir output-dir lib-dir resources preview pre-render post-render',
    website='''title description favicon site-url site-path repo-url repo-link-target repo-link-rel repo-subdir repo-branch issue-url repo-actions
        reader-mode search navbar sidebar body-header body-footer margin-header margin-footer page-navigation back-to-top-navigation bread-crumbs
        page-footer image image-alt comments open-graph twitter-card other-links code-links''',
    sidebar='id title logo search tools contents style background foreground border alignment collapse-level pinned header footer',
    section='section contents text href file url icon id',
    html='''theme css toc toc-depth toc-location toc-title toc-expand number-sections anchor-sections smooth-scroll page-layout code-fold code-summary
        code-copy code-tools code-overflow code-line-numbers highlight-style link-external-newwindow fig-responsive lightbox html-math-method
        embed-resources df-print grid''')

site = yaml.safe_load((root/'_quarto.yml').read_text(encoding='utf-8'))

def known(kind, given):
    odd = set(given) - set(KEYS[kind].split())
    assert not odd, f'_quarto.yml: {kind} has no {", ".join(sorted(odd))}'

def listed(contents):
    "The pages of a table of contents, in order"
    for entry in contents:
        if isinstance(entry, str): yield entry
        else:
            known('section', entry)
            yield from listed(entry['contents'])

def test_quarto_knows_every_key():
    known('top', site), known('project', site['project']), known('website', site['website']), known('sidebar', site['website']['sidebar'])
    assert set(site['format']) == {'html'} and site['project']['type'] == 'website'
    known('html', site['format']['html'])
    assert site['website']['sidebar']['style'] in ('docked', 'floating')
    assert set(site['website']['repo-actions']) <= {'none', 'edit', 'source', 'issue'}

def test_what_nbdev_adds_is_there():
    assert site['metadata-files'] == ['nbdev.yml']      # written by nbdev_docs from these:
    assert all(name in ini for name in ('title', 'description', 'branch', 'git_url', 'doc_host', 'doc_baseurl', 'doc_path'))
    assert (nbs/'_quarto.yml').resolve() == root/'_quarto.yml' and (nbs/site['project']['resources']).is_dir()

order = list(listed(site['website']['sidebar']['contents']))

def test_every_page_is_listed_once():
    assert sorted(order) == [p.relative_to(nbs).as_posix() for p in sorted(pages, key=lambda p: p.relative_to(nbs).as_posix())]


@each
def test_a_page_begins_with_its_title_alone(page):
    "nbdev makes the site's title and description of the first cell, and drops whatever else is in it"
    first = cells(page)[0]
    assert first.cell_type == 'markdown' and re.fullmatch(r'# .+\n\n> .+', first.source), first.source[:200]

way = [name for name in order if not name.startswith('pocket/')], [name for name in order if name.startswith('pocket/')]
following = {name: after for part in way for name, after in zip(part, part[1:]) if name != 'index.ipynb'}

@pytest.mark.parametrize('name, after', following.items())
def test_a_page_ends_with_the_next_one(name, after):
    visible = [cell for cell in cells(nbs/name) if not cell.source.startswith('#| hide')]
    last = visible[-1].source.strip().splitlines()[-1]
    assert visible[-1].cell_type == 'markdown' and last.startswith('**Next:**'), f'{name} ends with {last[:100]!r}'
    assert f']({after.removeprefix("pocket/")})' in last, f'{name} must lead on to {after}, got {last}'

@each
def test_relative_links_and_pictures_are_there(page):
    lost = [link for link in relative(page) if not (page.parent/link.split('#')[0]).is_file()]
    assert not lost
    outside = [link for link in relative(page) if not (page.parent/link.split('#')[0]).resolve().is_relative_to(nbs)]
    assert not outside, f'these are not on the site: {outside}'

@each
def test_pictures_say_in_words_what_they_show(page):
    text = prose(page)
    silent = [found for found in re.findall(r'!\[([^\]]*)\]\(', text) if len(found.split()) < 2]
    assert not silent and not re.findall(r'<img(?![^>]*alt="[^"]+)', text), 'a picture needs alternative text'


@each
def test_stored_pictures_say_in_words_what_they_show(page):
    "Where a cell has left a picture, its `#| fig-alt` is what the site reads out"
    drawn = [cell for cell in cells(page) if any(kind.startswith('image/') for output in cell.get('outputs', []) for kind in output.get('data', {}))]
    silent = [cell.id for cell in drawn if len((browse.spoken(cell) or '').split()) < 4]
    assert not silent, f'these cells need #| fig-alt with four words or more: {silent}'


glossary = [cell.source for cell in cells(nbs/'glossary.ipynb')] if (nbs/'glossary.ipynb').exists() else []
terms = re.findall(r'^### (.+)$', '\n'.join(glossary), re.M)
anchors = [term.replace(' ', '-') for term in terms]    # as JupyterLab, nbconvert and Quarto make them of small letters

def test_the_glossary_is_in_order(): assert len(terms) > 50 and terms == sorted(set(terms)) and all(re.fullmatch('[a-z0-9 -]+', term) for term in terms)

@each
def test_words_are_in_the_glossary(page):
    inside = r'#(.+)' if page.stem == 'glossary' else r'(?:\.\./)?glossary\.ipynb#(.+)'
    asked = [found[1] for link in links(page) if (found := re.fullmatch(inside, link))]
    assert not set(asked) - set(anchors), f'the glossary has no {sorted(set(asked) - set(anchors))}'

def test_every_word_says_where_it_is_met():
    entries = re.split(r'^### .+$', '\n'.join(glossary), flags=re.M)[1:]
    assert not [term for term, entry in zip(terms, entries) if not re.search(r'\]\((?!#|glossary)[^)]+\)', entry)]
    assert not [term for term, entry in zip(terms, entries) if not 5 <= len(entry.split()) <= 70]


def lines(source):
    "How many lines of code a cell has: without blank ones, comments, signatures (each line of which says what one parameter is) and texts"
    tree = ast.parse(re.sub(r'^[%!].*', '', source, flags=re.M))
    left = {n for n, line in enumerate(source.splitlines(), 1) if line.strip() and not line.strip().startswith('#')}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef): left -= set(range(node.lineno, node.body[0].lineno))
        elif isinstance(node, (ast.Constant, ast.JoinedStr)): left -= set(range(node.lineno + 1, node.end_lineno))
    return len(left)

@each
def test_a_cell_is_short(page):
    long = {cell.source.splitlines()[:3][-1]: lines(cell.source) for cell in cells(page) if cell.cell_type == 'code' and lines(cell.source) > 25}
    assert not long, f'over 25 lines: {long}'

@pytest.mark.parametrize('page', [p for p in pages if p.stem not in ('index', 'glossary')], ids=lambda p: p.stem)
def test_a_page_has_its_parts(page):
    "A question and a picture before the first section, three points to remember, exercises, each with its solution"
    sources = [cell.source for cell in cells(page)]
    first = next(n for n, source in enumerate(sources) if re.search('^## ', source, re.M))
    opening = '\n'.join(sources[1:first] + [sources[first].partition('\n## ')[0]])
    assert '?' in opening and re.search(r'!\[|^#\| (?:echo: false|fig-alt:)', opening, re.M), f'{page.stem} opens without a question or a picture'
    text = '\n\n'.join(sources)
    points, tasks = (re.search(rf'^## {title}\n(.*?)(?=^## |\Z)', text, re.M | re.S) for title in ('What to remember', 'Exercises'))
    assert len(re.findall(r'^(?:- |\d\. )', points[1], re.M)) == 3, f'{page.stem} must have three points to remember'
    assert len(re.findall(r'^\*{0,2}\d\.', tasks[1], re.M)) == text.count('#| code-summary: Solution') >= 2
    assert page.stem == 'full_size' or '\n## At full size\n' in text

@each
def test_solutions_are_folded_and_hidden(page):
    for cell in cells(page):
        if '#| code-summary: Solution' not in cell.source: continue
        assert cell.source.startswith('#| code-fold: true\n#| code-summary: Solution\n') and 'assert' in cell.source
        assert cell.metadata.get('jupyter', {}).get('source_hidden')

@each
def test_stored_outputs_teach(page):
    "Few pictures, short texts; no errors, logs, or paths of somebody's machine"
    outputs = [output for cell in cells(page) for output in cell.get('outputs', [])]
    texts = [output.get('text') or output.get('data', {}).get('text/plain', '') for output in outputs]
    assert not [output for output in outputs if output.output_type == 'error' or output.get('name') == 'stderr']
    assert not [text for text in texts if len(text) > 5000 or len(text.splitlines()) > 60]
    assert not [text for text in texts if re.search(r'/tmp/|/home/|/root/|/Users/|\d+%\|', text)]
    pictures = [output for output in outputs if any(kind.startswith('image/') for kind in output.get('data', {}))]
    assert len(pictures) <= 14, f'{len(pictures)} stored pictures'


def colab(page): # the cell that begins the page
    return cells(page)[2].source

@each
def test_a_page_opens_in_colab(page):
    title, badge, start, *rest = cells(page)
    repo, path = ini['git_url'].removeprefix('https://github.com/').rstrip('/'), page.relative_to(root).as_posix()
    assert badge.source == ('[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]'
                            f'(https://colab.research.google.com/github/{repo}/blob/{ini["branch"]}/{path})')
    assert start.cell_type == 'code' and start.source == colab(nbs/'index.ipynb') and ini['git_url'] in start.source
    assert start.source.startswith('#| hide\nimport os\nif ') and not [cell for cell in rest if 'COLAB_RELEASE_TAG' in cell.source]

def test_elsewhere_the_colab_cell_does_nothing():
    env = {name: value for name, value in os.environ.items() if name != 'COLAB_RELEASE_TAG'}
    code = colab(nbs/'index.ipynb') + '\nimport sys; print("torch" in sys.modules, "subprocess" in sys.modules)'
    assert subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True, check=True).stdout == 'False False\n'

def test_on_colab_it_installs_what_is_missing_and_leaves_torch_alone(monkeypatch, capsys):
    "Acted: nothing is fetched, and the files in /content are kept in memory"
    asked, files, places, really = [], {}, [], builtins.open
    class Kept(io.StringIO):
        def __init__(self, name): super().__init__(); self.name = name
        def close(self): files[self.name] = self.getvalue(); super().close()
    monkeypatch.setenv('COLAB_RELEASE_TAG', 'acted')
    monkeypatch.setitem(sys.modules, 'nbdev', object())
    monkeypatch.setattr(builtins, 'open', lambda name, *how, **more: Kept(name) if str(name).startswith('/content') else really(name, *how, **more))
    monkeypatch.setattr(subprocess, 'run', lambda command, **how: asked.append(command))
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    monkeypatch.setattr(os, 'chdir', places.append)
    monkeypatch.setattr('torch.cuda.is_available', lambda: False)
    exec(colab(nbs/'index.ipynb'), {})
    clone, install, alone = asked
    assert clone[:2] == ['git', 'clone'] and ini['git_url'] in clone and places == ['/content/course/nbs']
    assert install[install.index('-c') + 1] in files and files[install[install.index('-c') + 1]] == f'torch=={version("torch")}'
    assert not [word for word in install + alone if word.startswith(('torch', '-U', '--upgrade', '--force'))] and alone[-2:] == ['--no-deps', 'spiga==0.0.6']
    extras = re.search(r'\[(.*)\]', ' '.join(install))[1].split(',')
    assert all(f'{extra}_requirements' in ini for extra in extras) and 'the CPU will do' in capsys.readouterr().out


@pytest.mark.parametrize('page', [p for p in pages if p.parent != nbs], ids=lambda p: p.stem)
def test_a_pocket_page_finds_its_own_folder(page, monkeypatch):
    "Whether it begins in nbs/, as on Colab, or beside itself, as everywhere else"
    found = cells(page)[3]
    assert found.cell_type == 'code' and found.source == cells(nbs/'pocket/vae.ipynb')[3].source
    for begin in (nbs, page.parent):
        monkeypatch.chdir(begin)
        exec(found.source, dict(os=os))
        assert Path.cwd() == page.parent


@each
def test_a_page_becomes_html(page, tmp_path):
    "By nbconvert, with the words of every picture; what the pictures hold is looked at in a browser, and makes this slow"
    notebook = nbformat.read(page, as_version=4)
    for data in (output.data for cell in notebook.cells for output in cell.get('outputs', []) if 'data' in output):
        data.update({kind: 'AAAA' for kind in data if kind.startswith('image/') and kind != 'image/svg+xml'})
    html = browse.as_html(page, tmp_path, notebook).read_text(encoding='utf-8')
    silent = [tag[:100] for tag in re.findall('<img[^>]*>', html) if browse.UNTOLD in tag or not re.search(r'alt="[^"]*\w', tag)]
    assert not silent and '<h1' in html

@pytest.mark.skipif(not browse.chromium, reason='no chromium on this machine: apt install chromium')
def test_pages_look_right_in_a_browser(tmp_path):
    "On a wide and on a narrow screen: nothing cut off, empty or without words"
    sync_api = pytest.importorskip('playwright.sync_api')
    with sync_api.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=browse.chromium, args=['--no-sandbox'])
        faults = {name: list(browse.look(browser, nbs/f'{name}.ipynb', tmp_path, tmp_path)) for name in ('index', '01_landmarks', '12_cli', 'pocket/blip')}
        browser.close()
    assert not {name: found for name, found in faults.items() if found}


def test_lowest_versions_are_those_of_settings():
    "constraints-lowest.txt names what settings.ini asks for at least, so that what is promised is what is tried"
    wanted = [re.fullmatch(r'([\w-]+)(?:\[.*\])?>=([\d.]+)', line).groups() for part in ('', 'demo_', 'scale_', 'small_') for line in ini[f'{part}requirements'].split()]
    pins = re.findall(r'^([\w-]+)==([\d.]+)', (root/'constraints-lowest.txt').read_text(encoding='utf-8'), re.M)
    def tried(name, bound): return any(pin == name.replace('_', '-') and f'{at}.'.startswith(f'{bound}.') for pin, at in pins)
    assert not [f'{name}>={bound}' for name, bound in wanted if not tried(name, bound)], 'see .ci/lowest'
