"""Rows a second: `build` against the published way (one process, one picture at a time, a Matplotlib figure for each mask,
`Dataset.from_generator`), the same detector and captioner, the same frames, in turns, medians; with --kills instead: how a build survives kill -9"""
import argparse, json, os, platform, random, shutil, signal, subprocess, sys, tempfile, time
from pathlib import Path
if sys.path[0] in ('', str(Path(__file__).parent)): sys.path.append(sys.path.pop(0)) # last, or spiga.py here would hide the package of that name
import datasets
import matplotlib
import numpy as np
import torch
from PIL import Image
from draw_mask import figure_mask
from facecontrol.caption import load_captioner
from facecontrol.dataset import COLUMNS, LOG, build
from facecontrol.detect import load_detector
from facecontrol.facesynthetics import draw_frames, frames
from facecontrol.landmarks import landmark_box
from facecontrol.workers import Lazy


def published(found, detector, captioner, out): # what everybody writes
    detect, caption = load_detector(detector), load_captioner(captioner, batch_size=1)
    def rows():
        for frame in found:
            image = frame.image
            points, = detect([image], [landmark_box(frame.landmarks)])
            if points is None: continue
            yield dict(image=image, image_seg=frame.image_seg, landmarks=frame.text, spiga=points.tolist(), spiga_seg=Image.fromarray(figure_mask(points, image.width)),
                       image_caption=caption([image])[0])
    made = datasets.Dataset.from_generator(rows, features=COLUMNS, cache_dir=str(out/'cache'))
    made.to_parquet(out/'train.parquet')
    return len(made)

def ours(found, detector, captioner, out, workers, shard_size=64): # `build`, its processes and their models from the start
    return build(found, Lazy(load_detector, detector), Lazy(load_captioner, captioner), out, workers=workers, test_share=0, shard_size=shard_size, progress=False).train

def speed(found, given, folder):
    ways = {'the published way': lambda out: published(found, given.detector, given.captioner, out)}
    ways |= {f'build, {n} worker{"s" * (n != 1)}': lambda out, n=n: ours(found, given.detector, given.captioner, out, n) for n in given.workers}
    rates, counts = {name: [] for name in ways}, set()
    for turn in range(given.rounds):
        for name, make in ways.items():
            begun = time.perf_counter()
            counts.add(count := make(folder/'out'))
            rates[name].append(count / (time.perf_counter() - begun))
            shutil.rmtree(folder/'out')
            print(f'round {turn + 1}: {name} {rates[name][-1]:.2f} rows/s', flush=True)
    assert len(counts) == 1, f'not the same rows: {counts}'
    base = np.median(rates['the published way'])
    for name, some in rates.items(): print(f'{name:20} {np.median(some):7.2f} rows/s ({min(some):.2f} to {max(some):.2f}), {np.median(some) / base:5.2f} ×')
    print(f'{len(found)} faces of {given.size} px, {counts.pop()} rows; detector {given.detector}, captioner {given.captioner}; loading models and starting processes counted; '
          f'medians of {given.rounds} rounds; {torch.get_num_threads()} threads for the published way, 1 a worker for ours')

def contents(folder): return {path.relative_to(folder): path.read_bytes() for path in folder.rglob('*') if path.is_file()}

def survive(source, given, folder): # kill -9 between a build's first shard on the disk and its last, and go on
    build_once = f"from build import Path, frames, ours, sys; ours(frames({str(source)!r}), {given.detector!r}, 'none', Path(sys.argv[1]), {given.workers[-1]}, 10)"
    def start(out): return subprocess.Popen([sys.executable, '-c', build_once, out], cwd=Path(__file__).parent, stderr=subprocess.DEVNULL)
    def lines(out): return len((out/LOG).read_text().splitlines()) if (out/LOG).exists() else 0
    def reach(out, process, count): # when its log had so many lines
        while process.poll() is None and lines(out) < count: time.sleep(.01)
        return time.time()
    clean = folder/'clean'
    process = start(clean)
    first, last = (reach(clean, process, count) for count in (1 + 1, 1 + 20)) # a line that opens it, one for each shard
    assert process.wait() == 0, f'the build failed: {build_once}'
    killed, same, draw = 0, 0, random.Random(0)
    expected = contents(clean)
    while killed < given.kills:
        out = folder/'killed'
        process = start(out)
        reach(out, process, 1 + 1)
        time.sleep(draw.uniform(0, last - first))
        process.kill()
        if process.wait() != -signal.SIGKILL: print('it had ended before it was killed: not counted')
        else:
            killed, shards = killed + 1, len(list(out.glob('data/*.parquet')))
            assert start(out).wait() == 0, 'it could not go on'
            same += (equal := contents(out) == expected)
            print(f'killed with {shards} of {sum(name.suffix == ".parquet" for name in expected)} shards written: {"the same bytes" if equal else "DIFFERENT"}', flush=True)
        shutil.rmtree(out)
    print(json.dumps(dict(kills=killed, identical=same)))


if __name__ == '__main__': # processes are spawned
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--frames', type=int, default=1024)
    parser.add_argument('--size', type=int, default=512)
    parser.add_argument('--detector', default='pocket')
    parser.add_argument('--captioner', default='pocket')
    parser.add_argument('--workers', type=int, nargs='+', default=[0, os.cpu_count()])
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--kills', type=int, default=0, help='kill and resume builds of 200 rows so often, in place of the race')
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        count = 200 if given.kills else given.frames
        draw_frames(folder/'faces', count, size=given.size)
        if given.kills: survive(folder/'faces', given, folder)
        else: speed(frames(folder/'faces'), given, folder)
    print(f'{platform.machine()}, {os.cpu_count()} cores, python {platform.python_version()}, torch {torch.__version__}, datasets {datasets.__version__}, matplotlib {matplotlib.__version__}'
          + (f', {torch.cuda.get_device_name()}' if torch.cuda.is_available() else ''))
