"A build that is killed and run again ends with the bytes of one that was not"
import os, random, signal, subprocess, sys
from pathlib import Path
import numpy as np
import pytest
from facecontrol.dataset import build
from facecontrol.faces import draw_face, sample_face
from facecontrol.facesynthetics import frames, write_frames
from facecontrol.store import verify

here = Path(__file__).parent
environment = os.environ | {'PYTHONPATH': os.pathsep.join([str(here.parent), str(here)])}

def caption(images): return [f'mean {np.mean(image):.3f}' for image in images]

def build_here(folder): return build(frames(folder/'faces'), 'dataset', caption, folder/'out', shard_size=10, batch_size=4, progress=False)

def contents(out): return {p.relative_to(out): p.read_bytes() for p in out.rglob('*') if p.is_file()}

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
    "Build in a process that is killed before its n-th touch of the dataset"
    return subprocess.run([sys.executable, '-c', killed_at, str(moment)], cwd=folder, env=environment, text=True, capture_output=True)


@pytest.fixture(scope='module')
def clean(tmp_path_factory):
    folder = tmp_path_factory.mktemp('clean')
    write_frames([draw_face(sample_face(seed), 32) for seed in range(60)], folder/'faces')
    done = run(folder, 10_000)
    return folder, 10_000 - int(done.stdout)        # how often a whole build touches the disk


@pytest.mark.parametrize('share', [.03, .35, .65, .97])
def test_killed_and_run_again(clean, tmp_path, share):
    folder, touches = clean
    (tmp_path/'faces').symlink_to(folder/'faces')
    moment = int(touches * share) + random.Random(share).randrange(3)
    assert run(tmp_path, moment).returncode == -signal.SIGKILL
    build_here(tmp_path)
    assert contents(tmp_path/'out') == contents(folder/'out')
    assert verify(tmp_path/'out')


def test_killed_again_and_again(clean, tmp_path):
    folder, touches = clean
    (tmp_path/'faces').symlink_to(folder/'faces')
    for _ in range(2): assert run(tmp_path, touches // 3).returncode == -signal.SIGKILL
    build_here(tmp_path)
    assert contents(tmp_path/'out') == contents(folder/'out')
