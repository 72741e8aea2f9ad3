"A build that is killed and run again ends with the bytes of one that was not"
import io, json, os, random, shutil, signal, subprocess, sys, time, warnings
from pathlib import Path
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from facecontrol.dataset import LOG, build
from facecontrol.faces import draw_face, sample_face
from facecontrol.facesynthetics import Frame, encode_png, frames, write_frames
from facecontrol.store import verify

here = Path(__file__).parent
environment = os.environ | {'PYTHONPATH': os.pathsep.join([str(here.parent), str(here)])}

def caption(images): return [f'mean {np.mean(image):.3f}' for image in images]

def build_here(folder, caption=caption, **options):
    return build(frames(folder/'faces'), 'dataset', caption, folder/'out', **dict(shard_size=10, batch_size=4, progress=False) | options)

def contents(out): return {p.relative_to(out): p.read_bytes() for p in out.rglob('*') if p.is_file()}

def python(script, *args, **options):
    return subprocess.Popen([sys.executable, '-c', script, *map(str, args)], env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


killed_at = '''
import os, sys
from pathlib import Path
from test_dataset import build_here
moment, touches = int(sys.argv[1]), {'open', 'os.mkdir', 'os.rename', 'os.remove', 'os.rmdir'}
def hook(event, args):
    global moment
    if event in touches and any('/out' in str(arg) for arg in args):
        moment -= 1
        if moment < 0: os.kill(os.getpid(), 9)
sys.addaudithook(hook)
build_here(Path.cwd())
print(moment)
'''

def run(folder, moment):
    "Build in a process that is killed before its n-th touch of the dataset; what it said, and how it ended"
    process = python(killed_at, moment, cwd=folder)
    return process.communicate()[0], process.returncode


@pytest.fixture(scope='module')
def clean(tmp_path_factory):
    folder = tmp_path_factory.mktemp('clean')
    write_frames([draw_face(sample_face(seed), 32) for seed in range(60)], folder/'faces')
    return folder, 10_000 - int(run(folder, 10_000)[0])        # how often a whole build touches the disk

@pytest.fixture
def folder(clean, tmp_path):
    (tmp_path/'faces').symlink_to(clean[0]/'faces')
    return tmp_path


@pytest.mark.parametrize('share', [.03, .35, .65, .97])
def test_killed_and_run_again(clean, folder, share):
    moment = int(clean[1] * share) + random.Random(share).randrange(3)
    assert run(folder, moment)[1] == -signal.SIGKILL
    build_here(folder)
    assert contents(folder/'out') == contents(clean[0]/'out')
    assert verify(folder/'out')


def test_killed_again_and_again(clean, folder):
    for _ in range(2): assert run(folder, clean[1] // 3)[1] == -signal.SIGKILL
    build_here(folder)
    assert contents(folder/'out') == contents(clean[0]/'out')


in_parallel = '''
from pathlib import Path
from test_dataset import build_here, slowly
build_here(Path.cwd(), slowly, workers=2)
'''

def slowly(images):
    time.sleep(.1)
    return caption(images)
slowly.settings = 'caption'      # so that the other may go on with its build

def wait_for(there, process, seconds=60):
    "Wait until something is so, as long as a process lives"
    deadline = time.time() + seconds
    while not there():
        assert process.poll() is None and time.time() < deadline, process.communicate()
        time.sleep(.01)

def logged(folder): return len((folder/'out'/LOG).read_text().splitlines()) - 1 if (folder/'out'/LOG).exists() else 0


def test_parallel_build_killed_taken_over_by_another_number_of_workers(clean, folder):
    process = python(in_parallel, cwd=folder)
    wait_for(lambda: logged(folder) >= 2, process)
    with pytest.raises(ValueError, match='being written by another process'): build_here(folder)
    process.kill()
    process.communicate()
    done = logged(folder)
    assert 2 <= done < 7
    build_here(folder)
    assert contents(folder/'out') == contents(clean[0]/'out')
    assert pq.read_table(folder/'out/data').num_rows == 60


class Fatal:
    "A captioner whose process is killed, the first time or every time"
    settings = 'fatal'
    def __init__(self, marker, always=False): self.marker, self.always = marker, always
    def __call__(self, images):
        if self.always or not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return caption(images)

def test_a_killed_worker_is_replaced_and_a_deadly_shard_is_named(clean, folder):
    with pytest.warns(UserWarning, match=r'while it made frames 0000\d\d to 0000\d\d \(data/train-00000-of-0000\d.parquet\) \(exit code -9'):
        build_here(folder, Fatal(folder/'marker'), workers=1)
    shards = [name for name in contents(clean[0]/'out') if name.suffix == '.parquet']
    assert all((folder/'out'/name).read_bytes() == (clean[0]/'out'/name).read_bytes() for name in shards)
    shutil.rmtree(folder/'out')
    with warnings.catch_warnings(), pytest.raises(ValueError, match=r'frames 0000\d\d to 0000\d\d .* and so did the one before it'):
        warnings.simplefilter('ignore')
        build_here(folder, Fatal(folder/'marker', always=True), workers=1)


limited = '''
import resource, sys
from pathlib import Path
from test_dataset import build_here
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
try: build_here(Path.cwd(), workers=int(sys.argv[2]))
except ValueError as error: print(error)
'''

@pytest.mark.parametrize('workers', [0, 2])
def test_no_room_for_a_file(clean, folder, workers):
    sizes = sorted(path.stat().st_size for path in (clean[0]/'out/data').iterdir())
    said, errors = python(limited, sizes[-1] - 1, workers, cwd=folder).communicate()
    assert said.startswith(f'no room left on the disk for {folder}/out/data/') and f': {sizes[-1] - 1} bytes were written, ' in said and len(said.splitlines()) == 1, errors
    for name, data in contents(folder/'out').items(): assert name.suffix != '.parquet' or data == contents(clean[0]/'out')[name]
    build_here(folder)
    assert contents(folder/'out') == contents(clean[0]/'out')

def test_a_disk_of_four_megabytes(tmp_path):
    disk = tmp_path/'disk'
    disk.mkdir()
    if os.name != 'posix' or subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=4m', 'tmpfs', disk], capture_output=True).returncode:
        pytest.skip('may not mount a disk here')
    try:
        (disk/'older').write_text('mine')
        noise = np.random.default_rng(0).integers(0, 256, (60, 200, 200, 3), np.uint8)
        points = draw_face(sample_face(0), 200).landmarks[:68]
        many = [Frame(f'{n:03d}', encode_png(Image.fromarray(picture)), spiga=points.tolist()) for n, picture in enumerate(noise)]
        def go(): return build(many, 'dataset', caption, disk/'out', shard_size=10, test_share=0, progress=False)
        with pytest.raises(ValueError, match=r'no room left on the disk for .*disk/out/data/train-00003.*: \d+ bytes were written, \d+ are free'): go()
        before = contents(disk/'out')
        assert len([name for name in before if name.suffix == '.parquet']) == 3 and (disk/'older').read_text() == 'mine'
        subprocess.run(['mount', '-o', 'remount,size=40m', disk], check=True)
        assert go().train == 60 and all(contents(disk/'out')[name] == data for name, data in before.items() if name.suffix == '.parquet')
    finally: subprocess.run(['umount', disk], check=True)


def stored(image, format='PNG', **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()

def test_every_kind_of_file_among_a_hundred_good_ones(tmp_path):
    good = [draw_face(sample_face(seed), 32) for seed in range(100)]
    image, points = good[0].image, good[0].landmarks[:68].tolist()
    whole, grey = encode_png(image), image.convert('L')
    flipped, exif = bytearray(whole), Image.Exif()
    flipped[len(flipped) // 2] ^= 4
    read = dict(
        deep=(stored(Image.fromarray(np.asarray(grey, np.uint16) * 257)), grey), grey=(stored(grey), grey),
        palette=(stored(image.quantize(64)), image.quantize(64)), cmyk=(stored(image.convert('CMYK'), 'TIFF'), image.convert('CMYK')),
        clear=(stored(Image.new('RGBA', (32, 32), (9, 9, 9, 0))), Image.new('RGB', (32, 32), 'white')))
    for n in range(1, 9):       # a camera's notes on how it was held; noted and turned back must be what it was
        exif[0x0112] = n
        back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}.get(n)     # Pillow's names for the inverse
        turned = image if back is None else image.transpose(Image.Transpose(back))
        read[f'exif{n}'] = stored(turned, exif=exif), image
    broken = dict(
        truncated=whole[:700], flipped=bytes(flipped), empty=b'', text=b'<html>404', animated=stored(image, save_all=True, append_images=[image.rotate(9)]),
        bomb=stored(Image.new('1', (20_000, 20_000))), large=stored(Image.new('1', (10_000, 10_000))))
    source = [Frame(f'{n:03d}', encode_png(one.image), spiga=one.landmarks[:68].tolist()) for n, one in enumerate(good)]
    source += [Frame(id, data, spiga=points) for id, data in [*((id, data) for id, (data, _) in read.items()), *broken.items()]]
    built = build(source, 'dataset', caption, tmp_path/'out', max_bad=.1, test_share=0, progress=False)
    assert built.train == 100 + len(read) and built.bad == len(broken)
    assert {json.loads(line)['id'] for line in (tmp_path/'out/quarantine.jsonl').open()} == broken.keys()
    rows = {Path(row['image']['path']).stem: Image.open(io.BytesIO(row['image']['bytes'])) for row in pq.read_table(tmp_path/'out/data').to_pylist()}
    for id, (_, expected) in read.items(): assert np.array_equal(rows[id].convert('RGB'), expected.convert('RGB')), id
    for n, one in enumerate(good): assert np.array_equal(rows[f'{n:03d}'], one.image)


def test_names_from_everywhere_come_back(tmp_path):
    names = ['-rf', 'a b', 'mamá', '👵🏽', '顔', "50% [x]{y}*?'", 'x' * 251]      # with .png the longest that a disk takes
    source = tmp_path/'photos'
    source.mkdir()
    for seed, name in enumerate(names): (source/f'{name}.png').write_bytes(encode_png(draw_face(sample_face(seed), 32).image))
    points = draw_face(sample_face(0), 32).landmarks[:68]
    built = build(frames(source), lambda images, boxes=None: [points] * len(images), caption, tmp_path/'out', test_share=0, progress=False)
    rows = pq.read_table(tmp_path/'out/data').to_pylist()
    assert built.train == len(names) and {row['image']['path']: row['image']['bytes'] for row in rows} == {p.name: p.read_bytes() for p in source.iterdir()}


def test_memory_stays_flat():
    "The benchmark of 100,000 rows, at a toy length"
    said = subprocess.run([sys.executable, here.parent/'benchmarks/build_memory.py', '--rows', '2000'], env=environment, capture_output=True, text=True)
    found = json.loads(said.stdout.splitlines()[-1])
    assert found['rows'] == 2000 and found['files_before'] == found['files_after'] and found['growth'] < .15, said.stdout + said.stderr
