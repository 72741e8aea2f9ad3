"Workers end with their parent, whatever ends it"
import importlib.util, os, signal, subprocess, sys, time
from pathlib import Path
import pytest

here = Path(__file__).parent
environment = os.environ | {'PYTHONPATH': os.pathsep.join([str(here.parent), str(here)])}

def nap(task, tell):
    tell(1)
    time.sleep(60 if task else 0)
    return os.getpid()

parent = '''
import multiprocessing, signal, sys, time
from contextlib import closing
from test_workers import nap
from facecontrol.workers import spread
def pids(): return [child.pid for child in multiprocessing.active_children()]
signal.signal(signal.SIGINT, signal.default_int_handler) # tests that run in the background are started without it
try:
    with closing(spread(nap, [0, 1, 2, 3], workers=2)) as results:
        print(next(results)[1], *pids(), flush=True)
        next(results)
except KeyboardInterrupt:
    print('left', pids(), 'and still works', dict(spread(nap, [0], workers=1)).keys() == {0}, flush=True)
'''

def alive(pid):
    "Is this process there, and not only waiting to be buried?"
    try: return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
    except FileNotFoundError: return False

def begun():
    process = subprocess.Popen([sys.executable, '-c', parent], env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    pids = {int(pid) for pid in process.stdout.readline().split()}
    assert len(pids) == 2 and all(map(alive, pids))
    return process, pids


@pytest.mark.skipif(not Path('/proc/self/stat').exists(), reason='looks for processes as Linux lists them')
def test_no_orphans_five_seconds_after_the_parent_was_killed():
    process, pids = begun()
    process.kill()
    process.wait()
    deadline = time.time() + 5
    while any(map(alive, pids)) and time.time() < deadline: time.sleep(.05)
    assert not any(map(alive, pids))


@pytest.mark.skipif(os.name != 'posix', reason='Ctrl-C goes to a process group')
def test_ctrl_c_ends_the_workers_and_leaves_a_usable_process():
    process, pids = begun()
    os.killpg(process.pid, signal.SIGINT)      # as a terminal does: to everybody at once
    said, errors = process.communicate(timeout=60)
    assert said == 'left [] and still works True\n' and not errors

@pytest.mark.skipif(not importlib.util.find_spec('ray'), reason='Ray is not installed')
def test_ray_works_from_a_folder_with_a_space(tmp_path):
    (tmp_path/'a folder').symlink_to(sys.prefix)
    script = 'import operator; from facecontrol.scale import ray_spread; print(sorted(ray_spread(operator.is_, [1, 2], workers=1)))'
    said = subprocess.run([tmp_path/'a folder/bin/python', '-c', script], capture_output=True, text=True, timeout=300)
    assert said.stdout.strip().endswith('[(1, False), (2, False)]'), said.stderr[-2000:]
