"A folder is whole or not there, whatever kills its writer"
import os, signal, subprocess, sys
from pathlib import Path
import pytest
from facecontrol.checkpoint import latest_checkpoint
from facecontrol.store import lock, staged, verify, write_file

root = Path(__file__).parents[1]
environment = os.environ | {'PYTHONPATH': str(root)}

unplug = '''
import os, sys
from pathlib import Path
from facecontrol.store import lock, staged, write_file
moment, touches = int(sys.argv[1]), {'open', 'os.mkdir', 'os.rename', 'os.remove', 'os.rmdir'}
def hook(event, args):
    global moment
    if event in touches:
        moment -= 1
        if moment < 0: os.kill(os.getpid(), 9)
sys.addaudithook(hook)
'''

def kill_everywhere(
    script:str, # what is run; killed at its n-th touch of the disk, for every n
    before, # before(folder): puts things as they were
    after, # after(folder): looks at what is left
    folder:Path,
)->int: # how many kills it took
    "Kill a script before everything it does to the disk, and look each time at what is left"
    for moment in range(1000):
        here = folder/str(moment)
        here.mkdir()
        before(here)
        ended = subprocess.run([sys.executable, '-c', unplug + script, str(moment)], cwd=here, env=environment).returncode
        assert ended in (0, -signal.SIGKILL)
        after(here)
        if ended == 0: return moment
    raise AssertionError('it never came to an end')

def write(out, text):
    with staged(out) as new:
        for n in range(2): (new/f'{n}.txt').write_text(text)

def read(out):
    verify(out)
    return [p.read_text() for p in sorted(out.glob('*.txt'))]


def test_a_replaced_folder_is_the_old_or_the_new_one(tmp_path):
    seen = set()
    def after(here):
        out = here/'faces'
        if not out.exists():            # the moment between the two renames: the next writer brings it back
            with pytest.raises(KeyError):
                with staged(out): raise KeyError
        seen.add(read(out)[0])
        assert read(out) in (['old'] * 2, ['new'] * 2)
        write(out, 'next')
        assert read(out) == ['next'] * 2
        assert [p.name for p in here.iterdir()] == ['faces']
    script = "with staged('faces') as out:\n    for n in range(2): (out/f'{n}.txt').write_text('new')"
    assert kill_everywhere(script, lambda here: write(here/'faces', 'old'), after, tmp_path) > 10
    assert seen == {'old', 'new'}


def test_a_replaced_file_is_the_old_or_the_new_one(tmp_path):
    seen = []
    def after(here): seen.append((here/'report').read_text())
    kill_everywhere("write_file('report', 'new')", lambda here: write_file(here/'report', 'old'), after, tmp_path)
    assert set(seen) == {'old', 'new'} and seen == sorted(seen, reverse=True)      # once it is new, it stays new


def test_a_second_process_is_turned_away_until_the_first_is_dead(tmp_path):
    script = "import time\nwith lock('faces'): print('locked', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, '-c', unplug + script, '1000000'], cwd=tmp_path, env=environment, stdout=subprocess.PIPE) as first:
        assert first.stdout.readline() == b'locked\n'
        with pytest.raises(ValueError, match='being written by another process'):
            with lock(tmp_path/'faces'): pass
        first.kill()
    with lock(tmp_path/'faces'): pass


@pytest.mark.skipif(not Path('/dev/full').exists(), reason='only Linux has a disk that is always full')
def test_a_full_disk_leaves_the_old_folder(tmp_path):
    out = tmp_path/'faces'
    write(out, 'old')
    with pytest.raises(ValueError, match=r'no room left on the disk for .*faces: 4 bytes were written, \d+ are free'):
        with staged(out) as new:
            (new/'0.txt').write_text('1234')
            with open('/dev/full', 'w') as disk: disk.write('more')
    assert read(out) == ['old'] * 2


def test_a_checkpoint_with_one_wrong_byte_in_its_manifest_is_passed_over(tmp_path, capsys):
    for n in (1, 2):
        with staged(tmp_path/f'checkpoint-{n}', dict(seed=0, learning_rate=1e-5)) as new: (new/'weights').write_text('1234')
    manifest = tmp_path/'checkpoint-2/manifest.json'
    whole = manifest.read_bytes()
    for n, byte in enumerate(whole):
        manifest.write_bytes(whole[:n] + bytes([byte ^ 1 << n % 8]) + whole[n + 1:])
        assert latest_checkpoint(tmp_path) == tmp_path/'checkpoint-1', n
        assert f'{manifest} is damaged' in capsys.readouterr().out, n
    manifest.write_bytes(whole)
    assert latest_checkpoint(tmp_path) == tmp_path/'checkpoint-2'

def test_a_link_is_followed_and_stays(tmp_path):
    (tmp_path/'big').mkdir()
    (tmp_path/'faces').symlink_to(tmp_path/'big')
    for text in ('old', 'new'):
        write(tmp_path/'faces', text)
        assert (tmp_path/'faces').is_symlink() and read(tmp_path/'big') == [text] * 2 and len(list(tmp_path.iterdir())) == 2
