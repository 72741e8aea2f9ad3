"`make test`: every notebook through nbdev_test, then tests/; the last line is `N passed, N failed`"
import os, subprocess, sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import pytest

here = Path(__file__).parent
root = here.parent
at_once = min(os.cpu_count(), 4)        # notebooks side by side; each gets its share of the cores
limit = 1200                            # seconds for one notebook: beyond them it hangs


def test_notebook(path:Path)->bool: # did every cell of it pass?
    "Run one notebook in a process of its own; say how it went and, if it failed, where"
    start = time.time()
    nbdev_test = Path(sys.executable).with_name('nbdev_test')
    env = os.environ | {'OMP_NUM_THREADS': str(max(1, os.cpu_count() // at_once)), 'HF_HUB_OFFLINE': '1', 'MPLBACKEND': 'agg'}
    try:
        done = subprocess.run([nbdev_test, '--path', path, '--n_workers', '0'], cwd=root, env=env, timeout=limit,
                              text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        passed, said = done.returncode == 0 and 'Success.' in done.stdout, done.stdout
    except subprocess.TimeoutExpired as late:
        passed, said = False, f'{(late.stdout or b"").decode(errors="replace")}\nstill running after {limit} s'
    print(f"{'passed' if passed else 'FAILED'}  {time.time() - start:4.0f} s  {path.relative_to(root)}", flush=True)
    if not passed: print(said, flush=True)
    return passed


class Count:
    "A pytest plugin that counts what passed and what failed"
    def __init__(self): self.passed = self.failed = 0
    def pytest_collectreport(self, report): self.failed += report.failed
    def pytest_runtest_logreport(self, report):
        self.passed += report.when == 'call' and report.passed
        self.failed += report.failed


if __name__ == '__main__':
    notebooks = sorted(p for p in (root/'nbs').glob('**/*.ipynb') if not any(part[0] in '._' for part in p.relative_to(root).parts))
    with ThreadPoolExecutor(at_once) as pool: results = list(pool.map(test_notebook, notebooks))
    count = Count()
    sys.path.insert(0, str(root))
    ended = pytest.main(['-q', '--durations=5', '--continue-on-collection-errors', str(here)], plugins=[count])
    passed, failed = sum(results) + count.passed, len(results) - sum(results) + count.failed
    failed += ended not in (0, 1) and not count.failed      # pytest itself broke down
    print(f'{passed} passed, {failed} failed', flush=True)
    sys.exit(failed > 0)
