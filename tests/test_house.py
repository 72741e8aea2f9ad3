"The house: floors, shown names, README, quiet imports, export, wheel"
import ast, os, re, shutil, subprocess, sys, zipfile
from pathlib import Path
import nbformat
import pytest
from readme import render

root = Path(__file__).parents[1]
floors = {p.stem[3:]: int(p.stem[:2]) for p in sorted(root.glob('nbs/[0-9][0-9]_*.ipynb'))}
modules = sorted(p.stem for p in root.glob('facecontrol/*.py') if not p.stem.startswith('_'))

def run(*command, cwd=root):
    "Run a command; hand back what it said"
    done = subprocess.run([str(c) for c in command], cwd=cwd, env=os.environ | {'PYTHONPATH': str(cwd)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout

def imported(module):
    "The rooms that a module imports from"
    for node in ast.walk(ast.parse((root/'facecontrol'/f'{module}.py').read_text(encoding='utf-8'))):
        if isinstance(node, ast.ImportFrom):
            package = ['facecontrol'] * bool(node.level) + (node.module or '').split('.')
            package = [part for part in package if part]
            if package == ['facecontrol']: yield from (alias.name for alias in node.names)
            elif package[0] == 'facecontrol': yield package[1]
        elif isinstance(node, ast.Import):
            yield from (alias.name.split('.')[1] for alias in node.names if alias.name.startswith('facecontrol.'))


def test_every_module_has_its_notebook(): assert modules == sorted(floors)

@pytest.mark.parametrize('module', modules)
def test_a_module_imports_only_from_lower_floors(module):
    above = {name: floors[name] for name in imported(module) if floors[name] >= floors[module]}
    assert not above, f'{module} is on floor {floors[module]} and imports from {above}'


def names(tree):
    "Every name that a piece of code mentions"
    return {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)} | {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}

def defined(tree):
    "The public names that a cell defines"
    found = set()
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)): found.add(node.name)
        elif isinstance(node, ast.Assign): found |= {name.id for target in node.targets for name in ast.walk(target) if isinstance(name, ast.Name)}
        elif isinstance(node, ast.AnnAssign): found.add(node.target.id)
    return {name for name in found if not name.startswith('_')}

@pytest.mark.parametrize('module', modules)
def test_every_exported_name_is_used_in_its_notebook(module):
    notebook = nbformat.read(next(root.glob(f'nbs/[0-9][0-9]_{module}.ipynb')), as_version=4)
    cells = [(cell.source, ast.parse(re.sub(r'^[%!].*', '', cell.source, flags=re.M))) for cell in notebook.cells if cell.cell_type == 'code']
    unused = {name for source, tree in cells if re.match(r'#\|\s*export', source) for name in defined(tree)
              if not any(name in names(other) for _, other in cells if other is not tree)}
    assert not unused, f'{module} exports but never uses {sorted(unused)}'


def test_readme_is_what_index_renders_to():
    text, pictures = render()
    assert (root/'README.md').read_text(encoding='utf-8') == text, 'run `make readme`'
    for path, data in pictures.items(): assert path.read_bytes() == data, 'run `make readme`'

def test_readme_links_lead_somewhere():
    links = re.findall(r'\]\(([^)\s]+)\)', (root/'README.md').read_text(encoding='utf-8'))
    local = [link.split('#')[0] for link in links if not re.match('https?:|#', link)]
    assert local and not [link for link in local if not (root/link).exists()]

@pytest.mark.parametrize('path', sorted(root.glob('nbs/**/*.ipynb')), ids=lambda p: p.stem)
def test_a_notebook_is_light(path): assert path.stat().st_size < 500_000


quiet = 'plan store pocket landmarks faces facesynthetics page cli'.split()

@pytest.mark.parametrize('name', ['facecontrol'] + [f'facecontrol.{m}' for m in quiet])
def test_a_quiet_import_loads_no_torch(name): run(sys.executable, '-c', f'import {name}, sys; assert "torch" not in sys.modules')

def test_pyflakes_finds_nothing(): run(sys.executable, '-m', 'pyflakes', 'facecontrol', 'tests', 'benchmarks', 'setup.py')


@pytest.fixture
def copy(tmp_path):
    "The project in another folder, to be exported and built there"
    for name in ('facecontrol', 'nbs'):
        shutil.copytree(root/name, tmp_path/name, symlinks=True, ignore=shutil.ignore_patterns('cache', 'runs', '__pycache__', '.ipynb_checkpoints'))
    for name in ('settings.ini', 'setup.py', 'MANIFEST.in', 'README.md', 'LICENSE', '_quarto.yml'):
        if (root/name).exists(): shutil.copy(root/name, tmp_path/name)
    return tmp_path

def test_export_changes_nothing(copy):
    run(Path(sys.executable).with_name('nbdev_export'), cwd=copy)
    assert not (copy/'pyproject.toml').exists()
    for path in sorted(copy.glob('facecontrol/*.py')):
        assert path.read_text() == (root/'facecontrol'/path.name).read_text(), f'run nbdev_export: {path.name} differs'

def test_cleaning_changes_nothing(copy):
    run(Path(sys.executable).with_name('nbdev_clean'), cwd=copy)
    for path in sorted(copy.glob('nbs/**/*.ipynb')):
        assert path.read_text() == (root/path.relative_to(copy)).read_text(), f'run nbdev_clean: {path.name} differs'

@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    "The package, built from a copy of the project"
    source = tmp_path_factory.mktemp('source')
    shutil.copytree(root/'facecontrol', source/'facecontrol', ignore=shutil.ignore_patterns('__pycache__'))
    for name in ('settings.ini', 'setup.py', 'MANIFEST.in', 'README.md', 'LICENSE'): shutil.copy(root/name, source)
    run(sys.executable, '-m', 'pip', 'wheel', '--no-deps', '--no-build-isolation', '-w', source/'dist', '.', cwd=source)
    return next((source/'dist').glob('facecontrol-*.whl'))

def test_the_wheel_carries_the_weights(wheel):
    inside = zipfile.ZipFile(wheel).namelist()
    weights = [p.relative_to(root).as_posix() for p in root.glob('facecontrol/weights/**/*') if p.is_file()]
    assert any(name.endswith('.safetensors') for name in weights)
    assert set(weights) <= set(inside) and 'facecontrol/cli.py' in inside
    assert wheel.stat().st_size < 30e6

def seen(folder):
    "Everything in a folder, with sizes and times of change"
    return {p.relative_to(folder): (p.stat().st_size, p.stat().st_mtime_ns) for p in folder.rglob('*')}

def test_it_works_anywhere(wheel, tmp_path):
    "Installed in a folder with a space and an accent that nobody may write, started from another, without a home, none of our warnings allowed"
    place, work, homeless = tmp_path/'Café au lait', tmp_path/'Über uns', tmp_path/'file'
    run(sys.executable, '-m', 'pip', 'install', '--no-deps', '--no-index', '--target', place, wheel)
    for path in (place, *place.rglob('*')): path.chmod(path.stat().st_mode & ~0o222)
    before = seen(place)                                # root may write all the same: then it shows here
    work.mkdir()
    homeless.touch()                                    # a folder in a file: not even root can make that
    lost = 'HF_HOME HF_DATASETS_CACHE HF_HUB_CACHE XDG_CACHE_HOME XDG_CONFIG_HOME MPLCONFIGDIR TORCHINDUCTOR_CACHE_DIR'.split()
    env = {k: v for k, v in os.environ.items() if k not in lost} | dict(HOME=str(homeless/'home'), PYTHONPATH=str(place), HF_HUB_OFFLINE='1')
    strict = [f'-Werror:::{name}' for name in ('__main__', 'facecontrol', *(f'facecontrol.{module}' for module in modules))]
    def said(*words):
        done = subprocess.run([sys.executable, *strict, *map(str, words)], cwd=work, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout
    command = place/'bin'/'facecontrol'
    assert str(place) in said('-c', 'import facecontrol; print(facecontrol.__file__)')
    said(command, 'faces', 'drawn faces', '--n', 4, '--size', 128)
    said(command, 'build', 'drawn faces', 'rows', '--detector', 'dataset', '--captioner', 'none', '--size', 128)
    trained = said('-m', 'facecontrol.train', '--pretrained_model_name_or_path', 'pocket', '--dataset_name', 'rows', '--output_dir', 'né hier',
                   '--max_train_steps', 2, '--train_batch_size', 2)
    assert 'né hier: 2 steps' in trained
    said(command, 'generate', '--prompt', 'a face', '--controlnet', 'né hier', '--landmarks', 'drawn faces/000000_ldmks.txt', '--landmarks-size', 128, '--steps', 1, '--out', 'face.png')
    assert (work/'face.png').stat().st_size and seen(place) == before and homeless.read_bytes() == b''
